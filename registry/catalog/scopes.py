"""Which dataset is meant: any of them, one by name, or none, which is a dataset of its own.

Law: checkpoints of different datasets are never compared unless somebody says which; "any" is
allowed to mean one only where there is one.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum
from typing import Final

from sqlalchemy import Column, ColumnElement, Connection, Table, exists, func, select

from ..errors import AmbiguousError


class AnyDataset(Enum):
    """The type of `ANY`."""

    ANY = "any dataset"

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = AnyDataset.ANY
"""No dataset was named; None is the dataset of those that have none."""

Dataset = str | None | AnyDataset


def of_dataset(column: Column[str], dataset: str | None) -> ColumnElement[bool]:
    """Return the condition that a row is of a dataset."""
    return column.is_(None) if dataset is None else column == dataset


def shown(dataset: str | None) -> str:
    """Return a dataset for a message."""
    return "no dataset" if dataset is None else repr(dataset)


def datasets(
    connection: Connection,
    table: Table,
    scope: Sequence[ColumnElement[bool]],
    *,
    most: int | None = None,
) -> list[str | None]:
    """Return the datasets of the rows in a scope, by steps through an index.

    Args:
        most: where there are more, one or two more than this come.
    """
    column = table.c.dataset
    found: list[str | None] = []
    after: tuple[ColumnElement[bool], ...] = ()
    while most is None or len(found) <= most:
        name = connection.scalar(select(func.min(column)).where(*scope, *after))
        if name is None:
            break
        found.append(name)
        after = (column > name,)
    if connection.scalar(select(exists().where(*scope, column.is_(None)))):
        found.append(None)
    return found


def the_dataset(
    connection: Connection,
    table: Table,
    scope: Sequence[ColumnElement[bool]],
    *,
    model: str,
    verb: str,
) -> AnyDataset | str | None:
    """Return the only dataset of the rows in a scope, or ANY where there is no row.

    Args:
        verb: what was asked for, for the message: best or latest.

    Raises:
        AmbiguousError: there are several.
    """
    column = table.c.dataset
    low, high, none = connection.execute(
        select(
            select(func.min(column)).where(*scope).scalar_subquery(),
            select(func.max(column)).where(*scope).scalar_subquery(),
            exists().where(*scope, column.is_(None)),
        )
    ).one()
    if low is None:
        return None if none else ANY
    if low == high and not none:
        return str(low)
    found = datasets(connection, table, scope)
    names = ", ".join(shown(d) for d in found[:8]) + (", …" if len(found) > 8 else "")
    raise AmbiguousError(
        f"{model!r} was trained on {len(found)} datasets, which don't compare: {names}",
        hint=f"name one: ckreg show {model}@{verb} --dataset {shlex.quote(str(found[0]))}; "
        f"in Python: dataset={found[0]!r}",
        candidates=["" if d is None else d for d in found],
    )
