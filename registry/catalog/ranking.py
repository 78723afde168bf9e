"""The best and the latest checkpoint, each by a few index steps at any number of rows.

Law: best is the extreme value and of equals the highest version; a checkpoint without the metric is
never best, a removed one neither, and datasets are never mixed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, true

from ..errors import NotFoundError
from ..records import Checkpoint, Mode
from ..tables import checkpoints, metrics, runs
from ..values import CheckpointId
from .naming import METRICS_SHOWN, listed, metric_names, the_model
from .rows import fetch
from .scopes import ANY, Dataset, of_dataset, shown, the_dataset


def best(
    connection: Connection,
    model: str,
    *,
    dataset: Dataset,
    metric: str | None,
    mode: Mode | None,
    run: str | None,
) -> Checkpoint:
    """Return the checkpoint with the best value of a metric, by default of the model's monitor."""
    row = the_model(connection, model)
    name = metric if metric is not None else str(row.metric)
    if mode is None:
        if name != row.metric:
            there = metric_names(connection, row.pk)
            if there and name not in there and len(there) < METRICS_SHOWN:
                raise _without(connection, row, name, ANY, None)
            raise ValueError(
                f"whether more or less of {name!r} is better isn't known (the monitor of {model!r} "
                f"is {row.metric!r}, {row.mode}): say mode='max' or mode='min' (--mode)"
            )
        mode = row.mode
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', not {mode!r}")
    scope: list[ColumnElement[bool]] = [
        metrics.c.model_pk == row.pk, metrics.c.name == name, metrics.c.live == true(),
    ]  # fmt: skip
    if run is not None:
        scope[0] = metrics.c.run_pk == run_key(connection, run, row)
    if dataset is ANY:
        dataset = the_dataset(connection, metrics, scope, model=model, verb="best")
    pk = None
    if dataset is not ANY:
        scope.append(of_dataset(metrics.c.dataset, dataset))
        pk = connection.scalar(best_of(scope, mode))
    if pk is None:
        raise _without(connection, row, name, dataset, run)
    return fetch(connection, [pk])[0]


def best_of(scope: Sequence[ColumnElement[bool]], mode: Mode) -> Any:
    """Return the statement for the newest version at the extreme value: two steps in the index."""
    extreme = func.max if mode == "max" else func.min
    value = select(extreme(metrics.c.value)).where(*scope).scalar_subquery()
    return (
        select(metrics.c.checkpoint_pk)
        .where(*scope, metrics.c.value == value)
        .order_by(metrics.c.version.desc())
        .limit(1)
    )


def older(
    connection: Connection, model: str, *, dataset: Dataset, run: str | None, than: int | None
) -> tuple[CheckpointId, int] | None:
    """Return the id and version of the latest checkpoint, or of the next one below a version.

    Its other facts aren't looked at: who asks wants to know whether they are whole.
    """
    row = the_model(connection, model)
    scope: list[ColumnElement[bool]] = [
        checkpoints.c.model_pk == row.pk, checkpoints.c.removed_at.is_(None),
    ]  # fmt: skip
    if run is not None:
        scope[0] = checkpoints.c.run_pk == run_key(connection, run, row)
    if dataset is ANY:
        dataset = the_dataset(connection, checkpoints, scope, model=model, verb="latest")
    if dataset is not ANY:
        scope.append(of_dataset(checkpoints.c.dataset, dataset))
    below = () if than is None else (checkpoints.c.version < than,)
    found = connection.execute(
        select(checkpoints.c.id, checkpoints.c.version)
        .where(*scope, *below)
        .order_by(checkpoints.c.version.desc())
        .limit(1)
    ).one_or_none()
    if found is None and than is None:
        raise _nothing(connection, row, "is there", dataset, run)
    return None if found is None else (CheckpointId(found.id), found.version)


def latest_key(connection: Connection, scope: Sequence[ColumnElement[bool]]) -> int | None:
    """Return the key of the highest version in a scope of checkpoints."""
    found: int | None = connection.scalar(
        select(checkpoints.c.pk).where(*scope).order_by(checkpoints.c.version.desc()).limit(1)
    )
    return found


def latest(
    connection: Connection, model: str, *, dataset: Dataset, run: str | None = None
) -> Checkpoint:
    """Return the checkpoint with the highest version of one dataset, or of one run."""
    row = the_model(connection, model)
    scope: list[ColumnElement[bool]] = [
        checkpoints.c.model_pk == row.pk, checkpoints.c.removed_at.is_(None),
    ]  # fmt: skip
    if run is not None:
        scope[0] = checkpoints.c.run_pk == run_key(connection, run, row)
    if dataset is ANY:
        dataset = the_dataset(connection, checkpoints, scope, model=model, verb="latest")
    pk = None
    if dataset is not ANY:
        scope.append(of_dataset(checkpoints.c.dataset, dataset))
        pk = latest_key(connection, scope)
    if pk is None:
        raise _nothing(connection, row, "is there", dataset, run)
    return fetch(connection, [pk])[0]


def run_key(connection: Connection, run: str, model: Row[Any]) -> int:
    """Return the key of a model's run.

    Raises:
        NotFoundError: it has none with that id.
    """
    pk = connection.scalar(select(runs.c.pk).where(runs.c.id == run, runs.c.model_pk == model.pk))
    if pk is None:
        raise NotFoundError(
            f"{model.name!r} has no run with the id {run!r}", hint=f"see: ckreg list {model.name}"
        )
    return int(pk)


def _without(
    connection: Connection, model: Row[Any], name: str, dataset: Dataset, run: str | None
) -> NotFoundError:
    """Return the error that says that nothing has a metric; the hint names one that is there."""
    error = _nothing(connection, model, f"has the metric {name!r}", dataset, run)
    there = metric_names(connection, model.pk)
    if there and name not in there:
        near = [n for n in there if name in n or n in name] or get_close_matches(name, there, 1)
        word = shlex.quote((near or there)[0])
        error.hint = (
            f"by another one: ckreg best {model.name} --metric {word} --mode max (or min); "
            f"for good: ckreg monitor {model.name} {word} --mode max (or min)"
        )
    return error


def _nothing(
    connection: Connection, model: Row[Any], what: str, dataset: Dataset, run: str | None
) -> NotFoundError:
    where = "" if dataset is ANY else f" trained on {shown(dataset)}"
    where += "" if run is None else f" in the run {run[:8]}"
    gone = model.versions - model.live
    removed = f"; {gone} removed" if gone else ""
    return NotFoundError(
        f"no checkpoint of {model.name!r}{where} {what} ({model.live} live{removed}; metrics: "
        f"{listed(metric_names(connection, model.pk))})",
        hint=f"see: ckreg list {model.name}",
    )
