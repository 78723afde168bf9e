"""A metric's course over a model's checkpoints, as data for the chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..catalog import Course, Point
from ..records import Checkpoint, Model
from ..registry import Registry
from . import views
from .table import Asked

MOST: Final = 5_000
"""About how many points are drawn; of more, as many, spread evenly, and the best always."""

AXES: Final[Mapping[str, Callable[[Point | Checkpoint], float | None]]] = {
    "epoch": lambda point: point.epoch,
    "step": lambda point: point.step,
    "version": lambda point: point.version,
    "time": lambda point: round(point.created_at.timestamp(), 3),
}
"""What a metric is drawn against; the first that the points have unless one is asked for."""


def chart(request: Request) -> Response:
    """Return the points of a metric as JSON, by column: lines are runs.

    Raises:
        ValueError: no model, or an axis that there isn't.
        NotFoundError: no such model or run.
    """
    reg, asked = views.registry_of(request), Asked.of(request)
    if asked.model is None:
        raise ValueError("a chart is of one model: /chart.json?model=NAME")
    if asked.x is not None and asked.x not in AXES:
        raise ValueError(f"x is one of {', '.join(AXES)}, not {asked.x!r}")
    model = next(iter(reg.models([asked.model])), None)
    if model is None:
        reg.latest(asked.model)  # which says what is near
    metric = asked.metric or ("acc" if model is None else model.metric)
    course = reg.course(asked.model, metric, **asked.words, most=MOST)
    x = asked.x or next((name for name in AXES if _has(course, AXES[name])), "version")
    plain = {"metric": metric, "x": x, **_columns(course, AXES[x])}
    plain["mode"] = "max" if model is None else model.mode
    plain["best"] = [] if model is None else _best(reg, model, course, metric, AXES[x], asked)
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    return Response(text, media_type="application/json")


def _has(course: Course, axis: Callable[[Point], float | None]) -> bool:
    return any(axis(point) is not None for point in course.points)


def _columns(course: Course, axis: Callable[[Point], float | None]) -> dict[str, Any]:
    runs: dict[str | None, int] = {}
    names: list[str | None] = []
    found: list[tuple[float, float, int, int, str | None]] = []
    for point in course.points:
        x = axis(point)
        if x is None:
            continue
        id = None if point.run is None else point.run.id
        if id not in runs:
            runs[id] = len(names)
            names.append(None if point.run is None else point.run.name or point.run.id[:8])
        found.append((x, point.value, point.version, runs[id], point.dataset))
    found.sort(key=lambda row: (row[0], row[2]))
    datasets = list(dict.fromkeys(row[4] for row in found))
    number = {name: at for at, name in enumerate(datasets)}
    return {
        "total": course.total,
        "shown": len(found),
        "without_x": len(course.points) - len(found),
        "runs": names,
        "no_run": runs.get(None),
        "whole": None
        if course.whole is None
        else [at for id, at in runs.items() if id in course.whole],
        "datasets": datasets,
        "at": [row[0] for row in found],
        "value": [row[1] for row in found],
        "version": [row[2] for row in found],
        "run": [row[3] for row in found],
        "dataset": [number[row[4]] for row in found],
    }


def _best(
    reg: Registry,
    model: Model,
    course: Course,
    metric: str,
    axis: Callable[[Point | Checkpoint], float | None],
    asked: Asked,
) -> list[dict[str, object]]:
    """Return the best checkpoint on each dataset that is drawn, as `MODEL@best` means it."""
    drawn = {point.dataset for point in course.points}
    leaders = [] if not drawn else reg.standings([model.name])[model.name].leaders
    found: list[dict[str, object]] = []
    for leader in leaders:
        if leader.dataset not in drawn or not _is_among(reg, leader.id, model, asked):
            continue
        ckpt = reg.get(leader.id)
        x, value = axis(ckpt), ckpt.metrics.get(metric)
        if x is not None and value is not None:
            found.append(
                {"at": x, "value": value, "version": ckpt.version, "dataset": ckpt.dataset}
            )
    return found


def _is_among(reg: Registry, id: str, model: Model, asked: Asked) -> bool:
    """Return whether a checkpoint is one of those that are asked for: it may not be drawn."""
    if not asked.narrow:
        return True
    where = f'id == "{id}"' + (f" and ({asked.where})" if asked.where else "")
    return reg.count(model.name, **{**asked.words, "where": where}) > 0


ROUTES: Final = [Route("/chart.json", chart)]
