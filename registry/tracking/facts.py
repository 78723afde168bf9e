"""Which of what a tracking server tells is said of one checkpoint.

A metric belongs to a checkpoint when the server links them, or by its step: the checkpoint's own
step, or the steps that the run's metric `epoch` says were of its epoch. A checkpoint that says only
its epoch takes the value of that step, and the only checkpoint of a run the last value: both may be
otherwise, and are marked as inferred.

Law: no metric is renamed; a value that isn't finite, a tag or alias that can't be one here is left
out, and said. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..drafting import Given
from ..records import CarriedRun, Git, RunRecord, brief, small
from ..values import FrozenMap, checkpoint_id, digest_of, label, now, printable
from .told import Point, Registered, TrackedRun, Tree

_OWN_METRICS = "system/"  # of the machine, logged each few seconds


@dataclass(slots=True)
class Facts:
    """What is said of one checkpoint.

    Attributes:
        metrics: those that are known to be its own.
        inferred: those that may be.
        left_out: what was told and isn't recorded, in sentences.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    inferred: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def metrics_of(
    tree: Tree, *, epoch: int | None, step: int | None, only: bool, best: bool = False
) -> Facts:
    """Return the metrics of one checkpoint.

    Args:
        epoch, step: what it says of itself.
        only: the run has no other checkpoint.
        best: it is named the best of several: which, nothing says.
    """
    said = Facts()
    linked = {name: point.value for name, point in tree.metrics.items()}
    history = {} if tree.run is None else _countable(tree.run.metrics)
    step = tree.step if step is None else step
    for name, points in history.items():
        if name in linked or name == "epoch" or name.startswith(_OWN_METRICS):
            continue
        exact = _at_step(points, epoch, step, history.get("epoch", ()))
        if exact is not None:
            said.metrics[name] = exact
        elif epoch is not None and step is None:
            by_epoch = [p for p in points if p.step == epoch]
            if by_epoch:
                said.inferred[name] = by_epoch[-1].value
        elif epoch is None and step is None and (len(points) == 1 or (only and not best)):
            said.inferred[name] = points[-1].value
    said.metrics.update(linked)
    for values in (said.metrics, said.inferred):
        for name, value in list(values.items()):
            odd = _odd(name, value)
            if odd is not None:
                del values[name]
                said.left_out.append(odd)
    return said


def _countable(metrics: Mapping[str, tuple[Point, ...]]) -> Mapping[str, tuple[Point, ...]]:
    return {name: tuple(sorted(points)) for name, points in metrics.items() if points}


def _at_step(
    points: Sequence[Point], epoch: int | None, step: int | None, epochs: Sequence[Point]
) -> float | None:
    """Return the value of a checkpoint's step, or the last of its epoch up to its step."""
    if step is not None:
        at = [p.value for p in points if p.step == step]
        if at:
            return at[-1]
    if epoch is None or not epochs:
        return None
    of = {p.step for p in epochs if p.value == epoch}
    within = [p.value for p in points if p.step in of and (step is None or p.step <= step)]
    return within[-1] if within else None


def _odd(name: str, value: float) -> str | None:
    if not math.isfinite(value):
        return f"the metric {name!r} is {value}, and is left out"
    try:
        printable(name, "metric")
    except ValueError as error:
        return f"{error}, and is left out"
    return None


# --- settings -------------------------------------------------------------------------------------


def config_of(params: Mapping[str, str]) -> dict[str, Any]:
    """Return parameters, which are text on the server, as the values that they are the text of.

    Example:
        >>> config_of({"lr": "0.001", "n": "8", "amp": "True", "v": "1.10", "x": "nan"})
        {'lr': 0.001, 'n': 8, 'amp': True, 'v': '1.10', 'x': 'nan'}
    """
    return {name: _value(text) for name, text in params.items()}


def _value(text: str) -> object:
    words: dict[str, object] = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if repr(value) == text and math.isfinite(value):
            return value
    return text


def run_of(run: TrackedRun, model: str, dataset: str | None) -> tuple[CarriedRun, list[str]]:
    """Return a run as the registry keeps it, of the server's own id; and what is left out."""
    said: list[str] = []
    config: Mapping[str, Any] = config_of(run.params)
    try:
        small(config, "config")
    except ValueError as error:
        config = {}
        said.append(f"the run's parameters are left out: {error}")
    return (
        CarriedRun(
            id=_run_id(run.id),
            model=model,
            name=_kept(run.name, "run"),
            dataset=dataset,
            config=FrozenMap(config),
            command=_brief(run.command),
            git=None if run.git is None else Git(run.git, dirty=False),
            author=_brief(run.author),
            created_at=run.started or now(),
        ),
        said,
    )


def run_ids(run: RunRecord) -> frozenset[str]:
    """Return the ids that a run may have in the registry; see `catalog.adding`."""
    other = digest_of([run.id, run.model, run.dataset, run.name]).removeprefix("blake3:")[:32]
    return frozenset({run.id, other})


def _run_id(text: str) -> str:
    """Return a server's id of a run, which MLflow makes as we do: 32 hex digits."""
    try:
        return checkpoint_id(text)
    except ValueError:
        return digest_of(["run", text]).removeprefix("blake3:")[:32]


def _kept(text: str | None, what: str) -> str | None:
    try:
        return None if text is None else printable(text.strip(), what)
    except ValueError:
        return None


def _brief(text: str | None) -> str | None:
    try:
        return brief(text, "text")
    except ValueError:
        return None


# --- registered versions --------------------------------------------------------------------------


def marks(
    given: Given, versions: Iterable[Registered], run: TrackedRun | None
) -> tuple[Given, Facts]:
    """Return what is given with the tags, aliases and note of versions and of their run.

    A tag `quality: good` becomes `quality-good`, one whose value is empty or true its name alone, a
    stage `stage-production`.
    """
    said = Facts()
    tags, aliases, note = list(given.tags), list(given.aliases), given.note
    for version in versions:
        of = f"{version.model} version {version.version}"
        tags += _labels(_words(version.tags), f"the tag {{!r}} of {of}", said)
        if version.stage:
            tags += _labels([f"stage-{version.stage.lower()}"], f"the stage {{!r}} of {of}", said)
        aliases += _labels(version.aliases, f"the alias {{!r}} of {of}", said)
        note = note or _brief(version.note)
    if run is not None:
        tags += _labels(_words(run.tags), f"the tag {{!r}} of the run {run.title}", said)
    unique = tuple(dict.fromkeys(tags)), tuple(dict.fromkeys(aliases))
    return replace(given, tags=unique[0], aliases=unique[1], note=note or None), said


def _words(tags: Mapping[str, str]) -> list[str]:
    return [
        name if value.strip().lower() in ("", "true") else f"{name}-{value}"
        for name, value in tags.items()
    ]


def _labels(words: Iterable[str], what: str, said: Facts) -> list[str]:
    found = []
    for word in words:
        try:
            found.append(label(word, "tag"))
        except ValueError as error:
            why = str(error).removeprefix(f"tag {word!r} ")
            said.left_out.append(f"{what.format(word)} is left out: here it {why}")
    return found
