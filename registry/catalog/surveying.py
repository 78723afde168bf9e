"""Many checkpoints at a glance: the best of each model, a metric's course, the bytes of each model.

Law: what is shown of many rows comes from the columns that lists are searched and sorted by, as it
must come at once; whoever goes on to one checkpoint gets its record, which is checked. Points that
are left out are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, and_, exists, func, not_, select, true, union

from ..records import RunRef
from ..tables import blobs, checkpoints, files, metrics, models, runs, tags
from ..values import CheckpointId, time_text
from .collecting import Removed
from .finding import Query, conditions_of
from .naming import metric_names, the_model
from .narrowing import counted
from .ranking import best_of
from .rows import moment
from .scopes import ANY, datasets, of_dataset

_PRIME: Final = 10_007
_RUNS: Final = 12
"""Of so many runs, the newest, no point is left out of a chart: lines with gaps would tell lies."""

_STEP: Final = 6_189  # near the prime divided by the golden ratio: multiples spread evenly


@dataclass(frozen=True, slots=True)
class Leader:
    """The best checkpoint of a model on one dataset."""

    dataset: str | None
    id: CheckpointId
    version: int
    value: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's best by its monitor on each dataset, and its newest checkpoint.

    Attributes:
        leaders: of the first datasets by name; one where no checkpoint has the metric has none.
    """

    leaders: tuple[Leader, ...]
    newest: CheckpointId | None
    newest_version: int | None
    newest_at: datetime | None


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint with a value of the metric."""

    id: CheckpointId
    version: int
    dataset: str | None
    epoch: int | None
    step: int | None
    created_at: datetime
    value: float
    run: RunRef | None


@dataclass(frozen=True, slots=True)
class Course:
    """A metric over the checkpoints of a model, by version.

    Attributes:
        total: how many have the metric; where they are too many, `points` are spread evenly.
        whole: where they are too many, the ids of the runs of which none was left out.
    """

    points: tuple[Point, ...]
    total: int
    whole: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What a list can be narrowed to: names in use, the first or newest of many."""

    metrics: tuple[str, ...]
    runs: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """The bytes of a model: each blob counts once, and in each model that has it.

    Attributes:
        removed, removed_bytes: the removed checkpoints whose files gc hasn't taken.
    """

    model: str
    size_bytes: int
    checkpoints: int
    removed: int
    removed_bytes: int


@dataclass(frozen=True, slots=True)
class Freeable:
    """What gc would take with the checkpoints that were removed before a time.

    Attributes:
        first: of these, the longest removed ones.
        blobs, size_bytes: that no other checkpoint needs.
        waiting: how many were removed later.
    """

    checkpoints: int
    first: tuple[Removed, ...]
    blobs: int
    size_bytes: int
    waiting: int


def standings(connection: Connection, names: Sequence[str], *, most: int) -> dict[str, Standing]:
    """Return how some models stand, each by a few steps in an index.

    Args:
        most: how many datasets of each.
    """
    found: dict[str, Standing] = {}
    for row in connection.execute(select(models).where(models.c.name.in_(names))).all():
        scope = [
            metrics.c.model_pk == row.pk, metrics.c.name == row.metric, metrics.c.live == true(),
        ]  # fmt: skip
        leaders: list[Leader] = []
        for dataset in datasets(connection, metrics, scope, most=most)[:most]:
            pk = connection.scalar(
                best_of([*scope, of_dataset(metrics.c.dataset, dataset)], row.mode)
            )
            best = connection.execute(
                select(checkpoints.c.id, checkpoints.c.version, metrics.c.value)
                .join(metrics, metrics.c.checkpoint_pk == checkpoints.c.pk)
                .where(checkpoints.c.pk == pk, metrics.c.name == row.metric)
            ).one()
            leaders.append(Leader(dataset, CheckpointId(best.id), best.version, best.value))
        newest = connection.execute(
            select(checkpoints.c.id, checkpoints.c.version, checkpoints.c.created_at)
            .where(checkpoints.c.model_pk == row.pk, checkpoints.c.removed_at.is_(None))
            .order_by(checkpoints.c.created_at.desc(), checkpoints.c.version.desc())
            .limit(1)
        ).one_or_none()
        found[row.name] = Standing(
            tuple(leaders),
            None if newest is None else CheckpointId(newest.id),
            None if newest is None else newest.version,
            None if newest is None else moment(newest.created_at),
        )
    return found


def course(connection: Connection, query: Query, metric: str, *, most: int) -> Course:
    """Return a metric over the checkpoints of a model that match.

    Args:
        query: its order and its dataset of metrics aside, as a list's; the model is said.
        most: about how many points; of more, as many come spread evenly, and of the newest runs
            all, as far as those are no more again.
    """
    assert query.model is not None
    model_pk = int(the_model(connection, query.model).pk)
    scope: list[Any] = [
        metrics.c.model_pk == model_pk, metrics.c.name == metric, metrics.c.live == true(),
    ]  # fmt: skip
    if query.dataset is not ANY:
        scope.append(of_dataset(metrics.c.dataset, query.dataset))
    joined = checkpoints.c.pk == metrics.c.checkpoint_pk
    amount = select(func.count()).select_from(metrics)
    if query.where is None and not query.tags:
        if query.run is not None:  # which is the model's; its index has the metrics of each
            scope[0] = (
                metrics.c.run_pk
                == select(runs.c.pk)
                .where(runs.c.id == query.run, runs.c.model_pk == model_pk)
                .scalar_subquery()
            )
    else:
        scope += counted(connection, conditions_of(query, model_pk)).conditions
        amount = amount.join(checkpoints, joined)
    total = int(connection.scalar(amount.where(*scope)) or 0)
    columns = select(
        checkpoints.c.id, checkpoints.c.version, checkpoints.c.dataset, checkpoints.c.epoch,
        checkpoints.c.step, checkpoints.c.created_at, metrics.c.value,
        runs.c.id.label("run_id"), runs.c.name.label("run_name"),
    )  # fmt: skip
    columns = (
        columns.select_from(metrics)
        .join(checkpoints, joined)
        .outerjoin(runs, runs.c.pk == checkpoints.c.run_pk)
    )
    whole: list[int] = []
    if total <= most:
        rows = list(connection.execute(columns.where(*scope)))
    else:
        if query.run is None:
            whole = _newest_runs(connection, model_pk, query, metric, most)
        # By a multiple of the version, modulo a prime: what goes round in the versions, such as
        # runs that save by turns, is thinned alike.
        share = -(-_PRIME * most // total)
        thinned = columns.where(*scope, (metrics.c.version * _STEP) % _PRIME < share)
        found = {row.version: row for row in connection.execute(thinned)}
        if whole:
            # Without the model, whose index would be taken and has no runs.
            of_runs = columns.where(metrics.c.run_pk.in_(whole), *scope[1:])
            found |= {row.version: row for row in connection.execute(of_runs)}
        rows = list(found.values())
    points = [
        Point(
            CheckpointId(row.id), row.version, row.dataset, row.epoch, row.step,
            moment(row.created_at), row.value,
            None if row.run_id is None else RunRef(row.run_id, row.run_name),
        )
        for row in rows
    ]  # fmt: skip
    named = connection.scalars(select(runs.c.id).where(runs.c.pk.in_(whole))) if whole else ()
    points.sort(key=lambda point: point.version)
    return Course(tuple(points), total, frozenset(named) if total > most else None)


def _newest_runs(
    connection: Connection, model_pk: int, query: Query, metric: str, most: int
) -> list[int]:
    """Return the newest runs of a model that together have no more points than `most`."""
    of = [runs.c.model_pk == model_pk]
    if query.dataset is not ANY:
        of.append(of_dataset(runs.c.dataset, query.dataset))
    newest = connection.scalars(
        select(runs.c.pk)
        .where(*of)
        .order_by(runs.c.created_at.desc(), runs.c.pk.desc())
        .limit(_RUNS)
    ).all()
    amounts = select(metrics.c.run_pk, func.count().label("amount")).where(
        metrics.c.run_pk.in_(newest), metrics.c.name == metric, metrics.c.live == true()
    )
    found = {
        row.run_pk: row.amount for row in connection.execute(amounts.group_by(metrics.c.run_pk))
    }
    whole: list[int] = []
    left = most
    for pk in newest:
        left -= found.get(pk, 0)
        if left < 0:
            break
        whole.append(pk)
    return whole


def choices(connection: Connection, model: str | None, *, most: int) -> Choices:
    """Return what a list of a model, or of all, can be narrowed to."""
    model_pk = None if model is None else int(the_model(connection, model).pk)
    named = select(runs.c.name).where(runs.c.name.is_not(None))
    if model_pk is not None:
        named = named.where(runs.c.model_pk == model_pk)
    newest = connection.scalars(named.order_by(runs.c.created_at.desc()).limit(most)).all()
    tagged: list[str] = []
    while len(tagged) < most:
        after = (tags.c.name > tagged[-1],) if tagged else ()
        following = connection.scalar(select(func.min(tags.c.name)).where(*after))
        if following is None:
            break
        tagged.append(following)
    return Choices(
        () if model_pk is None else tuple(metric_names(connection, model_pk, limit=most)),
        tuple(dict.fromkeys(newest)),
        tuple(tagged),
    )


def holdings(connection: Connection) -> list[Holding]:
    """Return the bytes of each model that has files, the largest first."""
    gone = checkpoints.c.removed_at.is_not(None)
    sums = connection.execute(
        select(
            checkpoints.c.model_pk, gone.label("gone"), func.count().label("amount"),
            func.sum(checkpoints.c.size_bytes).label("size_bytes"),
        )
        .where(checkpoints.c.collected_at.is_(None))
        .group_by(checkpoints.c.model_pk, gone)
    ).all()  # fmt: skip
    # Most blobs are one checkpoint's: only those of several need a look at who shares them.
    shared = select(files.c.digest).group_by(files.c.digest).having(func.count() > 1).subquery()
    twice: dict[int, int] = {}
    rows = connection.execute(
        select(
            checkpoints.c.model_pk, files.c.digest, blobs.c.size_bytes,
            func.count().label("times"),
        )
        .select_from(shared)
        .join(files, files.c.digest == shared.c.digest)
        .join(blobs, blobs.c.digest == files.c.digest)
        .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
        .group_by(checkpoints.c.model_pk, files.c.digest, blobs.c.size_bytes)
    )  # fmt: skip
    for row in rows:
        twice[row.model_pk] = twice.get(row.model_pk, 0) + (row.times - 1) * row.size_bytes
    names = {row.pk: row.name for row in connection.execute(select(models.c.pk, models.c.name))}
    amounts: dict[int, dict[bool, tuple[int, int]]] = {}
    for row in sums:
        of = amounts.setdefault(row.model_pk, {False: (0, 0), True: (0, 0)})
        of[bool(row.gone)] = (int(row.amount), int(row.size_bytes))
    found = [
        Holding(
            names[pk],
            of[False][1] + of[True][1] - twice.get(pk, 0),
            of[False][0],
            *of[True],
        )
        for pk, of in amounts.items()
    ]
    return sorted(found, key=lambda one: (-one.size_bytes, one.model))


def freeable(connection: Connection, before: datetime, *, most: int) -> Freeable:
    """Return what goes with the checkpoints that were removed before a time."""
    at = time_text(before)
    removed = and_(checkpoints.c.removed_at.is_not(None), checkpoints.c.collected_at.is_(None))
    old = and_(removed, checkpoints.c.removed_at <= at)
    every, going = connection.execute(
        select(func.count(), func.count().filter(checkpoints.c.removed_at <= at)).where(removed)
    ).one()
    first = connection.execute(
        select(
            checkpoints.c.id, checkpoints.c.version, checkpoints.c.removed_at,
            checkpoints.c.size_bytes, models.c.name,
        )
        .join(models, models.c.pk == checkpoints.c.model_pk)
        .where(old)
        .order_by(checkpoints.c.removed_at, checkpoints.c.pk)
        .limit(most)
    ).all()  # fmt: skip
    other = checkpoints.alias("other")
    stays = not_(and_(other.c.removed_at.is_not(None), other.c.removed_at <= at))
    columns = (files.c.digest, files.c.index_digest)
    theirs = union(
        *(
            select(column.label("digest"))
            .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
            .where(old, column.is_not(None))
            for column in columns
        )
    ).subquery()
    needed = [
        exists().where(column == blobs.c.digest, other.c.pk == files.c.checkpoint_pk, stays)
        for column in columns
    ]
    amount, size_bytes = connection.execute(
        select(func.count(), func.coalesce(func.sum(blobs.c.size_bytes), 0)).where(
            blobs.c.digest.in_(select(theirs.c.digest)), *(~found for found in needed)
        )
    ).one()
    return Freeable(
        int(going),
        tuple(
            Removed(
                CheckpointId(row.id), f"{row.name}@v{row.version}", moment(row.removed_at),
                row.size_bytes,
            )
            for row in first
        ),
        int(amount),
        int(size_bytes),
        int(every - going),
    )  # fmt: skip
