"""What prune asks of the database, and the tombstones that it sets.

Law: whether a checkpoint may still go is seen inside the transaction that removes it: one that is
the best or the latest by now, or that got a tag or an alias since it was judged, stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, true

from ..errors import DamagedError
from ..records import Checkpoint
from ..retention import Candidate, Monitor
from ..tables import aliases, blobs, checkpoints, files, metrics, models, tags
from ..values import CheckpointId, FrozenMap, now, time_text
from .changing import set_live
from .collecting import portions
from .naming import the_model
from .ranking import best_of, latest_key, run_key
from .rows import fetch, metric_seal, moment, storable
from .scopes import ANY, Dataset, of_dataset

_MANY = 500


@dataclass(frozen=True, slots=True)
class Prunable:
    """The live checkpoints that a policy is to judge, and what best means for their model."""

    monitor: Monitor
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one transaction removed, and what it spared, with the reason."""

    removed: tuple[CheckpointId, ...]
    spared: Mapping[CheckpointId, str]


def monitor_of(connection: Connection, model: str) -> Monitor:
    """Return what best means for a model; what it will mean for one that isn't there yet."""
    row = connection.execute(
        select(models.c.metric, models.c.mode).where(models.c.name == model)
    ).one_or_none()
    return ("acc", "max") if row is None else (row.metric, row.mode)


def prunable(
    connection: Connection,
    model: str,
    *,
    dataset: Dataset,
    run: str | None,
    named: Collection[str],
) -> Prunable:
    """Return the live checkpoints of a model, of one dataset or run of it, as a policy sees them.

    Args:
        run: an id.
        named: the metrics that are asked for beside the monitor.
    """
    row = the_model(connection, model)
    scope: list[ColumnElement[bool]] = [
        checkpoints.c.model_pk == row.pk, checkpoints.c.removed_at.is_(None),
    ]  # fmt: skip
    if dataset is not ANY:
        scope.append(of_dataset(checkpoints.c.dataset, dataset))
    if run is not None:
        scope[0] = checkpoints.c.run_pk == run_key(connection, run, row)
    c = checkpoints.c
    rows = connection.execute(
        select(c.pk, c.id, c.version, c.dataset, c.epoch, c.created_at, c.size_bytes).where(*scope)
    ).all()
    values = _metrics(connection, scope, {row.metric, *named})
    tagged, aliased = (_labels(connection, table, scope) for table in (tags, aliases))
    found = tuple(
        Candidate(
            id=CheckpointId(one.id),
            ref=f"{model}@v{one.version}",
            version=one.version,
            dataset=one.dataset,
            epoch=one.epoch,
            created_at=moment(one.created_at),
            size_bytes=one.size_bytes,
            metrics=FrozenMap(values.get(one.pk, {})),
            tags=tuple(tagged.get(one.pk, ())),
            aliases=tuple(aliased.get(one.pk, ())),
        )
        for one in rows
    )
    return Prunable((row.metric, row.mode), found)


def _metrics(
    connection: Connection, scope: Sequence[ColumnElement[bool]], names: Collection[str]
) -> dict[int, dict[str, float]]:
    """Return the metrics of some names, by checkpoint.

    Raises:
        DamagedError: a value isn't what was written: it could make a bad checkpoint look good, and
            a good one go.
    """
    found: dict[int, dict[str, float]] = defaultdict(dict)
    m = metrics.c
    rows = connection.execute(
        select(
            m.checkpoint_pk, m.name, m.value, m.author, m.recorded_at, m.seal,
            checkpoints.c.id, checkpoints.c.version,
        )
        .join(checkpoints, checkpoints.c.pk == m.checkpoint_pk)
        .where(*scope, m.name.in_(names))
    )  # fmt: skip
    for row in rows:
        if metric_seal(row.id, row.name, row.value, row.author, row.recorded_at) != row.seal:
            raise DamagedError(
                f"the metric {row.name!r} of checkpoint {row.id!r} (version {row.version}) is not "
                "what was written. Nothing was removed",
                hint="see: ckreg verify",
            )
        found[row.checkpoint_pk][row.name] = row.value
    return found


def _labels(
    connection: Connection, table: Any, scope: Sequence[ColumnElement[bool]]
) -> dict[int, list[str]]:
    """Return the tags, or the aliases, by checkpoint, each in order."""
    found: dict[int, list[str]] = defaultdict(list)
    for row in connection.execute(
        select(table.c.checkpoint_pk, table.c.name)
        .join(checkpoints, checkpoints.c.pk == table.c.checkpoint_pk)
        .where(*scope)
        .order_by(table.c.name)
    ):
        found[row.checkpoint_pk].append(row.name)
    return found


def _leaders(
    connection: Connection, row: Row[Any], of: Iterable[str | None], run_pk: int | None
) -> dict[int, str]:
    """Return the keys of the best and the latest of some datasets, of a model or of a run of it."""
    found: dict[int, str] = {}
    whose: ColumnElement[bool] = metrics.c.model_pk == row.pk
    of_run: ColumnElement[bool] = checkpoints.c.model_pk == row.pk
    if run_pk is not None:
        whose, of_run = metrics.c.run_pk == run_pk, checkpoints.c.run_pk == run_pk
    for dataset in of:
        scope = [whose, metrics.c.name == row.metric, metrics.c.live == true(),
                 of_dataset(metrics.c.dataset, dataset)]  # fmt: skip
        best = connection.scalar(best_of(scope, row.mode))
        scope = [of_run, checkpoints.c.removed_at.is_(None),
                 of_dataset(checkpoints.c.dataset, dataset)]  # fmt: skip
        latest = latest_key(connection, scope)
        for pk, why in ((latest, "latest"), (best, "best")):
            if pk is not None:
                found[pk] = f"best, {found[pk]}" if pk in found else why
    return found


def freed(connection: Connection, ids: Collection[CheckpointId]) -> int:
    """Return the bytes that no live checkpoint needs but these, each counted once."""
    theirs: set[str] = set()
    gone = set(ids)
    for some in portions(gone, _MANY):
        for row in connection.execute(
            select(files.c.digest, files.c.index_digest)
            .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
            .where(checkpoints.c.id.in_(some))
        ):
            theirs |= {row.digest, row.index_digest} - {None}
    total = 0
    for part in portions(theirs, _MANY):
        needed: set[str] = set()
        for column in (files.c.digest, files.c.index_digest):
            needed |= {
                row[0]
                for row in connection.execute(
                    select(column, checkpoints.c.id)
                    .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
                    .where(column.in_(part), checkpoints.c.removed_at.is_(None))
                )
                if row[1] not in gone
            }
        alone = [digest for digest in part if digest not in needed]
        total += sum(
            connection.scalars(select(blobs.c.size_bytes).where(blobs.c.digest.in_(alone)))
        )
    return total


def prune(
    connection: Connection,
    model: str,
    surplus: Sequence[Candidate],
    *,
    run: str | None,
    author: str | None,
) -> Pruned:
    """Remove the checkpoints that a policy let go, as far as they are as it saw them."""
    row = the_model(connection, model)
    # The model's best and latest are among a run's own, where they are of that run.
    run_pk = None if run is None else run_key(connection, run, row)
    leaders = _leaders(connection, row, {one.dataset for one in surplus}, run_pk)
    judged = {one.id: one for one in surplus}
    c = checkpoints.c
    live = (c.id.in_(judged), c.model_pk == row.pk, c.removed_at.is_(None))
    pks = connection.scalars(select(c.pk).where(*live).order_by(c.pk)).all()
    spared: dict[CheckpointId, str] = {}
    going: dict[int, CheckpointId] = {}
    for pk, one in zip(pks, fetch(connection, pks), strict=True):
        why = leaders.get(pk) or _labelled(judged[one.id], one)
        if why:
            spared[one.id] = f"since the plan: {why}"
        else:
            going[pk] = one.id
    for id in judged.keys() - spared.keys() - set(going.values()):
        spared[id] = "removed by somebody else"
    if going:
        set_live(connection, list(going), row.pk, removed_at=time_text(now()),
                 removed_by=storable(author))  # fmt: skip
    return Pruned(tuple(going.values()), spared)


def _labelled(before: Candidate, now_: Checkpoint) -> str | None:
    """Return the labels that a checkpoint got since it was judged; its facts never change."""
    if now_.aliases:
        return f"alias {', '.join(now_.aliases)}"
    new = [tag for tag in now_.tags if tag not in before.tags]
    return f"tag {', '.join(new)}" if new else None
