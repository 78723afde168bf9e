"""Lists of checkpoints: filtered, sorted by any fact or metric, a page at a time.

Law: pages are cut by key, not by count, so that a page costs the same wherever it is and rows that
come or go meanwhile neither repeat nor hide others. Each page is one short read. Whoever lacks the
value that is sorted by comes last; of equals the highest version comes first.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    true,
)

from .. import dialects
from ..records import Checkpoint
from ..tables import checkpoints, files, metrics, models, runs, signatures
from ..values import Digest, canonical_json
from ..where import COLUMNS, Compare, Expression, Labels
from . import filters
from .naming import listed, metric_names, the_model
from .narrowing import Condition, Scope, Way, cheapest, counted, dataset_of, expressed
from .rows import fetch
from .scopes import ANY, Dataset, datasets, of_dataset

Alone = tuple[int, str, str | None]
"""A checkpoint of one file: its key, model and dataset."""

_ALWAYS_THERE: Final = frozenset(
    {"id", "model", "version", "key_style", "file_keys", "weights", "container", "signature",
     "tensors", "size_bytes", "origin", "created_at", "provenance.topology",
     "provenance.key_style"}
)  # fmt: skip

_APART: Final = 50
"""From how many datasets a list that is sorted by a metric is put together."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which checkpoints, in which order.

    Attributes:
        memory_bytes: only those whose weights, as recorded, take no more than this.
        signature: only those with this signature, canonical or raw.
    """

    model: str | None = None
    dataset: Dataset = ANY
    run: str | None = None
    where: Expression | None = None
    tags: tuple[str, ...] = ()
    sort: str = "-created_at"
    include_removed: bool = False
    memory_bytes: int | None = None
    signature: Digest | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list.

    Attributes:
        next: what to ask for the page after it with, or None at the end.
    """

    checkpoints: tuple[Checkpoint, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page ended: what it was sorted by, and the row; `rest`: among those without it."""

    rest: bool
    value: Any = None
    version: int | None = None
    id: str | None = None

    def text(self) -> str:
        return canonical_json([self.rest, self.value, self.version, self.id])

    @classmethod
    def parse(cls, text: str) -> _Place:
        try:
            rest, value, version, id = json.loads(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{text!r} is no place in a list") from error
        if not isinstance(rest, bool) or isinstance(value, dict | list):
            raise ValueError(f"{text!r} is no place in a list")
        return cls(rest, value, version, id)


@dataclass(frozen=True, slots=True)
class _Sort:
    """What a sort key means: an expression, and whether rows may lack it."""

    value: ColumnElement[Any]
    descending: bool
    optional: bool
    metric: str | None = None


def page(connection: Connection, query: Query, *, size: int, after: str | None) -> Page:
    """Return the part of a list that follows a place."""
    model_pk = None if query.model is None else int(the_model(connection, query.model).pk)
    order = _sort(connection, query, model_pk)
    if query.dataset is ANY and query.where is not None:
        query = replace(query, dataset=dataset_of(query.where))
    way = cheapest(connection, conditions_of(query, model_pk), _walked(query, order, model_pk))
    place = _Place(rest=False) if after is None else _Place.parse(after)
    rows: list[Any] = []
    if not place.rest:
        rows = _rows(connection, query, order, way, place, model_pk, size + 1)
        if len(rows) <= size and order.optional:
            place = _Place(rest=True)
    if place.rest:
        without = _without(connection, order, way, place, size + 1 - len(rows))
        rows = [*rows, *without]
    kept = rows[:size]
    following = None
    if len(rows) > size:
        last = kept[-1]
        following = _Place(last.rest, last.value, last.version, last.id).text()
    return Page(tuple(fetch(connection, [row.pk for row in kept])), following)


def count(connection: Connection, query: Query) -> int:
    """Return how many checkpoints a list has; without conditions, from the models' counters."""
    row = None if query.model is None else the_model(connection, query.model)
    plain = query.dataset is ANY and not query.tags
    narrow = (query.run, query.where, query.memory_bytes, query.signature)
    if plain and all(condition is None for condition in narrow):
        counter = models.c.versions if query.include_removed else models.c.live
        if row is not None:
            return int(row._mapping[counter.name])
        return int(connection.scalar(select(func.coalesce(func.sum(counter), 0))) or 0)
    way = counted(connection, conditions_of(query, None if row is None else int(row.pk)))
    found = select(func.count()).select_from(checkpoints).where(*way.conditions)
    return int(connection.scalar(found) or 0)


def fits(connection: Connection, digests: Sequence[Digest]) -> list[Checkpoint]:
    """Return the live checkpoints of a signature (canonical or raw), newest first."""
    found: dict[int, tuple[str, int, int]] = {}
    for column in (checkpoints.c.signature, checkpoints.c.raw_signature):
        for row in connection.execute(
            select(checkpoints.c.pk, checkpoints.c.created_at, checkpoints.c.version).where(
                column.in_(digests), column.is_not(None), checkpoints.c.removed_at.is_(None)
            )
        ):
            found[row.pk] = (row.created_at, row.version, row.pk)
    pks = sorted(found, key=found.__getitem__, reverse=True)
    return [c for at in range(0, len(pks), 500) for c in fetch(connection, pks[at : at + 500])]


def holding(connection: Connection, digests: Collection[Digest]) -> list[Checkpoint]:
    """Return the live checkpoints whose files have just these digests, newest first."""
    wanted = set(digests)
    pks = connection.scalars(
        select(files.c.checkpoint_pk)
        .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
        .where(files.c.digest == min(wanted), checkpoints.c.removed_at.is_(None))
        .distinct()
    ).all()
    found = [c for c in fetch(connection, list(pks)) if {f.digest for f in c.files} == wanted]
    return sorted(found, key=lambda c: (c.created_at, c.version), reverse=True)


def holding_alone(connection: Connection, digests: Collection[str]) -> list[tuple[str, Alone]]:
    """Return the live checkpoints that are one file with one of these digests, newest first."""
    other = files.alias("other")
    rows = connection.execute(
        select(
            files.c.digest, checkpoints.c.pk, models.c.name.label("model"), checkpoints.c.dataset,
            checkpoints.c.created_at, checkpoints.c.version,
        )
        .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
        .join(models, models.c.pk == checkpoints.c.model_pk)
        .where(
            dialects.among(files.c.digest, digests),
            checkpoints.c.removed_at.is_(None),
            ~exists().where(
                other.c.checkpoint_pk == files.c.checkpoint_pk, other.c.digest != files.c.digest
            ),
        )
    ).all()  # fmt: skip
    return [
        (digest, (pk, model, dataset))
        for digest, pk, model, dataset, *_ in sorted(rows, key=lambda r: r[4:], reverse=True)
    ]


# --- conditions -----------------------------------------------------------------------------------


def conditions_of(query: Query, model_pk: int | None) -> list[Condition]:
    """Return the conditions of a list, with their ways through an index if removed ones stay out:
    no index has those.
    """
    scope = Scope(model_pk, query.dataset)
    found: list[Condition] = []
    if model_pk is not None:
        found.append(Condition(checkpoints.c.model_pk == model_pk, "model_pk"))
    if not query.include_removed:
        found.append(Condition(checkpoints.c.removed_at.is_(None), "removed_at"))
    if query.run is not None:
        run = select(runs.c.pk).where(runs.c.id == query.run).scalar_subquery()
        condition = checkpoints.c.run_pk == run
        found.append(Condition(condition, None, scope.live(condition)))
    for tag in query.tags:
        found += expressed(Compare(Labels("tags"), "==", tag), scope)
    if query.where is not None:
        found += expressed(query.where, scope)
    if query.dataset is not ANY:
        condition = of_dataset(checkpoints.c.dataset, query.dataset)
        found.append(Condition(condition, "dataset", scope.live(scope.models, condition)))
    if query.memory_bytes is not None:
        sized = select(signatures.c.digest).where(signatures.c.size_bytes <= query.memory_bytes)
        condition = checkpoints.c.signature.in_(sized)
        found.append(Condition(checkpoints.c.tensors > 0))
        found.append(Condition(condition, None, scope.live(condition)))
    if query.signature is not None:
        raw, wanted = checkpoints.c.raw_signature, query.signature
        condition = or_(checkpoints.c.signature == wanted, and_(raw.is_not(None), raw == wanted))
        found.append(Condition(condition, None, scope.live(condition)))
    if query.include_removed:
        return [replace(condition, reach=None) for condition in found]
    return found


def _walked(query: Query, order: _Sort, model_pk: int | None) -> tuple[str, ...] | None:
    """Return the columns by which checkpoints are found in the order of a list; None: by none."""
    name = query.sort.removeprefix("-").removeprefix("metrics.")
    of_model = model_pk is not None
    if query.include_removed:
        return None
    if order.metric is not None:  # an index of the metrics has it
        if query.dataset is not ANY:
            return ("dataset",) if of_model else None
        return () if of_model else None
    if name == "created_at":
        return ("model_pk", "removed_at", name, *(("dataset",) if of_model else ()))
    if name == "version" and of_model:
        return ("model_pk", "removed_at", name, "dataset")
    return ("model_pk", "removed_at", name) if name in ("acc", "epoch") and of_model else None


def _sort(connection: Connection, query: Query, model_pk: int | None) -> _Sort:
    name = query.sort.removeprefix("-")
    descending = query.sort.startswith("-")
    if name in COLUMNS:
        return _Sort(filters.column(name), descending, name not in _ALWAYS_THERE)
    metric = name.removeprefix("metrics.")
    if len(metric) > 2 and metric[0] == metric[-1] == '"':
        metric = metric[1:-1]
    if metric == "acc":
        return _Sort(checkpoints.c.acc, descending, optional=True)
    scope = models.c.pk == metrics.c.model_pk
    there = exists().where(scope, metrics.c.name == metric, metrics.c.live == true())
    known = select(models.c.pk).where(there)
    if model_pk is not None:
        known = known.where(models.c.pk == model_pk)
    if connection.scalar(known.limit(1)) is None:
        its = [] if model_pk is None else metric_names(connection, model_pk)
        has = "" if model_pk is None else f"; metrics: {listed(its)}"
        near = get_close_matches(name, [*COLUMNS, *its], 1)
        hint = f"\nhint: did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"can't sort by {name!r}: it is neither a field nor a metric of these checkpoints "
            f"(fields: {', '.join(sorted(COLUMNS))}{has}){hint}"
        )
    return _Sort(metrics.c.value, descending, optional=True, metric=metric)


def _rows(
    connection: Connection,
    query: Query,
    order: _Sort,
    way: Way,
    place: _Place,
    model_pk: int | None,
    limit: int,
) -> list[Any]:
    value, version, pk = order.value, checkpoints.c.version, checkpoints.c.pk
    apart = order.metric is not None and model_pk is not None and query.dataset is ANY
    if apart and not way.few and not query.include_removed:
        # The index has each dataset's values in order, but not those of all.
        scope = (
            metrics.c.model_pk == model_pk, metrics.c.name == order.metric,
            metrics.c.live == true(),
        )  # fmt: skip
        each = datasets(connection, metrics, scope, most=_APART)
        if len(each) <= _APART:
            found = [
                row
                for name in each
                for row in _rows(
                    connection, replace(query, dataset=name), order, way, place, model_pk, limit
                )
            ]
            found.sort(key=lambda row: (row.version, row.pk), reverse=True)
            found.sort(key=lambda row: row.value, reverse=order.descending)
            return found[:limit]
    statement = select(
        pk, checkpoints.c.id, version, value.label("value"), literal(False).label("rest")
    ).where(*way.conditions)
    if order.metric is not None:
        statement = statement.join(metrics, metrics.c.checkpoint_pk == pk).where(
            metrics.c.name == order.metric
        )
        # The same once more on the metrics' own columns, where the index on them can serve.
        if model_pk is not None and not way.few:
            statement = statement.where(metrics.c.model_pk == model_pk)
        if query.dataset is not ANY and not way.few:
            statement = statement.where(of_dataset(metrics.c.dataset, query.dataset))
        if not query.include_removed and not way.few:
            statement = statement.where(metrics.c.live == true())
    elif order.optional:
        statement = statement.where(value.is_not(None))
    if place.version is not None:
        # The first conjunct alone is a range of the index; the second cuts its first equals.
        at = place.value
        behind, beyond = (
            (value <= at, value < at) if order.descending else (value >= at, value > at)
        )
        statement = statement.where(behind, or_(beyond, _below(place)))
    statement = statement.order_by(
        value.desc() if order.descending else value.asc(), version.desc(), pk.desc()
    )
    return list(connection.execute(statement.limit(limit)))


def _without(
    connection: Connection,
    order: _Sort,
    way: Way,
    place: _Place,
    limit: int,
) -> list[Any]:
    """Return the rows that lack the value that is sorted by."""
    version, pk = checkpoints.c.version, checkpoints.c.pk
    lacking = (
        order.value.is_(None)
        if order.metric is None
        else ~exists().where(metrics.c.checkpoint_pk == pk, metrics.c.name == order.metric)
    )
    statement = select(
        pk, checkpoints.c.id, version, literal(True).label("rest"), null().label("value")
    ).where(*way.conditions, lacking)
    if place.version is not None:
        statement = statement.where(_below(place))
    return list(connection.execute(statement.order_by(version.desc(), pk.desc()).limit(limit)))


def _below(place: _Place) -> ColumnElement[bool]:
    """Return that a row comes after a place among equals: lower version, or an older row."""
    version, pk = checkpoints.c.version, checkpoints.c.pk
    row = select(pk).where(checkpoints.c.id == place.id)
    same = row.correlate(None).scalar_subquery()
    return or_(version < place.version, and_(version == place.version, pk < same))
