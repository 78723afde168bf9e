"""How a list is found: along its order, or from the few rows that one of its conditions leaves.

Law: only the way differs, never the list. Neither database knows how many rows a condition leaves
(SQLite has no statistics of ours, and PostgreSQL doesn't know what goes with what), so the index of
each condition is asked, up to `FEW`: few rows are read and sorted; many are met soon by whoever
walks in order. Either way costs the square root of the number of rows where the condition doesn't
go with the order. What isn't to choose an index is said as `(…) IS true`, which none serves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    func,
    select,
    true,
    union_all,
)

from ..tables import aliases, checkpoints, metrics, models, tags
from ..where import And, Column, Compare, Expression, In, Labels, Metric, Or
from . import filters
from .scopes import ANY, Dataset, of_dataset

FEW: Final = 2_000
"""How many rows are read and sorted rather than looked for in order; times the square of the number
of conditions with an index (up to 3), since the more there are, the fewer rows of the walk fulfil
them all.
"""

_OF_MODEL: Final = frozenset({"version", "dataset", "epoch", "acc", "created_at"})
"""The columns with an index of each model's live checkpoints."""

_OF_ALL: Final = frozenset({"id", "model", "run", "run_id", "signature", "parent"})

Rows = Select[Any] | CompoundSelect[Any]


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the conditions that all hold for a list.

    Attributes:
        column: the one column that it is on, where it is.
        reach: the keys of all rows for which it holds, and perhaps some more, by an index alone.
    """

    sql: ColumnElement[bool]
    column: str | None = None
    reach: Rows | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an index is entered: the model, which most begin with, and the dataset of metrics."""

    model_pk: int | None
    dataset: Dataset

    @property
    def models(self) -> ColumnElement[bool]:
        """The condition on checkpoints that lets an index by model serve all of them too."""
        return self.of(checkpoints.c.model_pk)

    def of(self, column: ColumnElement[int]) -> ColumnElement[bool]:
        """Return the condition that a row's model is in scope."""
        return column.in_(select(models.c.pk)) if self.model_pk is None else column == self.model_pk

    def live(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        """Return the keys of the live checkpoints for which conditions hold."""
        found = select(checkpoints.c.pk).where(*conditions, checkpoints.c.removed_at.is_(None))
        return found.correlate(None)


def dataset_of(expression: Expression) -> Dataset:
    """Return the dataset that an expression asks for beside other things, or ANY."""
    match expression:
        case And(operands):
            found = map(dataset_of, operands)
            return next((dataset for dataset in found if dataset is not ANY), ANY)
        case Compare(Column("dataset"), "==", str(name)):
            return name
    return ANY


def expressed(expression: Expression, scope: Scope) -> list[Condition]:
    """Return the conditions that an expression is the conjunction of."""
    match expression:
        case And(operands):
            return [condition for operand in operands for condition in expressed(operand, scope)]
        case _:
            parts, column = _reach(expression, scope), None
            match expression:
                # A range of datasets would come in the order of datasets.
                case Compare(Column("dataset"), "=="):
                    column = "dataset"
                case Compare(Column(name) | Metric("acc" as name)) if name != "dataset":
                    column = name
            reach = None if not parts else parts[0] if len(parts) == 1 else union_all(*parts)
            return [Condition(filters.compile(expression), column, reach)]


def _reach(expression: Expression, scope: Scope) -> list[Select[Any]]:
    """Return selects that together reach the rows of an expression, or none where no index does."""
    match expression:
        case Or(operands):
            each = [_reach(operand, scope) for operand in operands]
            return [part for parts in each for part in parts] if all(each) else []
        case And(operands):
            return next((parts for o in operands if (parts := _reach(o, scope))), [])
        case Compare(_, "!=", _) | Compare(_, _, None) | In(_, _, True):
            return []
        case Compare(field) | In(field):
            condition = filters.compile(expression)
            match field:
                case Labels("tags"):
                    return [_labelled(expression, tags.c.name, tags.c.checkpoint_pk)]
                case Labels("aliases"):
                    found = _labelled(expression, aliases.c.name, aliases.c.checkpoint_pk)
                    return [found.where(scope.of(aliases.c.model_pk))]
                case Column("acc") | Metric("acc") if scope.model_pk is not None:
                    # SQLite 3.40 reads each row of a partial index to see that it isn't removed;
                    # the index of the metrics has all that is asked.
                    return _measured(expression, "acc", scope)
                case Column(name) | Metric("acc" as name) if name in _OF_MODEL:
                    return [scope.live(scope.models, condition)]
                case Column(name) if name in _OF_ALL:
                    return [scope.live(condition)]
                case Metric(name):
                    return _measured(expression, name, scope)
    return []


def _labelled(
    expression: Compare | In, name: ColumnElement[str], pk: ColumnElement[int]
) -> Select[Any]:
    values = expression.values if isinstance(expression, In) else (expression.value,)
    return select(pk).where(name.in_(values)).correlate(None)


def _measured(expression: Compare | In, name: str, scope: Scope) -> list[Select[Any]]:
    """Return the rows with a metric, by a range of the index for each dataset of the model."""
    value, dataset = metrics.c.value, metrics.c.dataset
    entered = (scope.of(metrics.c.model_pk), metrics.c.name == name, metrics.c.live == true())
    found = select(metrics.c.checkpoint_pk).where(
        *entered,
        value.in_(expression.values)
        if isinstance(expression, In)
        else filters.OPERATORS[expression.op](value, expression.value),
    )
    found = found.correlate(None)  # a list that is sorted by a metric reads that table too
    if scope.dataset is not ANY:
        return [found.where(of_dataset(dataset, scope.dataset))]
    if scope.model_pk is None:
        return [found]
    lowest = select(func.min(dataset).label("name")).where(*entered)
    first = lowest.correlate(None).cte(recursive=True)
    after = select(func.min(dataset)).where(*entered, dataset > first.c.name).correlate(first)
    following = select(after.scalar_subquery()).where(first.c.name.is_not(None))
    named = first.union_all(following.correlate(None))
    return [found.where(dataset.in_(select(named.c.name))), found.where(dataset.is_(None))]


@dataclass(frozen=True, slots=True)
class Way:
    """The conditions as the database is told them; `few`: it reads few rows, and sorts them."""

    conditions: tuple[ColumnElement[bool], ...]
    few: bool = False


def cheapest(
    connection: Connection,
    conditions: Sequence[Condition],
    walked: Collection[str] | None,
    few: int | None = None,
) -> Way:
    """Return the cheap way to a page.

    Args:
        walked: the columns of the index that has the order of the list; None: no index has it.
        few: how many rows are few; by default `FEW`.
    """
    reaches = [
        condition.reach
        for condition in conditions
        if condition.reach is not None and condition.column not in (walked or ())
    ]
    most = (FEW if few is None else few) * min(len(reaches), 3) ** 2
    counts = [(_count(connection, reach, most), reach) for reach in reaches]
    if counts:
        count, reach = min(counts, key=lambda found: found[0])
        if count <= most:
            return Way((checkpoints.c.pk.in_(reach), *map(_unindexed, conditions)), few=True)
    if walked is None:
        return Way(tuple(condition.sql for condition in conditions))
    return Way(tuple(c.sql if c.column in walked else _unindexed(c) for c in conditions))


def counted(connection: Connection, conditions: Sequence[Condition]) -> Way:
    """Return the cheap way to count all rows of a list.

    A condition on a column is counted in that column's index; one on another table (a metric, a
    label, a run) would be looked up for each row of the list, unless it leads to its rows.
    """
    leading = [c if c.column is None else replace(c, reach=None) for c in conditions]
    return cheapest(connection, leading, None, few=50 * FEW)


def _count(connection: Connection, reach: Rows, most: int) -> int:
    """Return how many rows are reached, or one more than `most`."""
    capped = reach.limit(most + 1).subquery()
    return int(connection.scalar(select(func.count()).select_from(capped)) or 0)


def _unindexed(condition: Condition) -> ColumnElement[bool]:
    return condition.sql.is_(true())
