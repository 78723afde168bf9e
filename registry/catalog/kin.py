"""What a checkpoint continues, and what continues it.

Law: parents are ids, which may lie in another registry: a chain ends where the next isn't here.
Each answer is bounded: a chain may be as long as a training, or, in records from outside, a ring.
"""

from __future__ import annotations

from sqlalchemy import Connection, literal, select

from ..records import Checkpoint
from ..tables import checkpoints
from .rows import fetch


def ancestors(connection: Connection, id: str, limit: int) -> list[Checkpoint]:
    """Return what a checkpoint continues, its parent first; removed ones too."""
    here, above = checkpoints.alias("here"), checkpoints.alias("above")
    steps = (
        select(above.c.pk, above.c.parent, literal(1).label("step"))
        .join(here, above.c.id == here.c.parent)
        .where(here.c.id == id)
        .cte("steps", recursive=True)
    )
    steps = steps.union_all(
        select(above.c.pk, above.c.parent, steps.c.step + 1)
        .join(steps, above.c.id == steps.c.parent)
        .where(steps.c.step < limit)
    )
    found = sorted((step, pk) for step, pk in connection.execute(select(steps.c.step, steps.c.pk)))
    return fetch(connection, list(dict.fromkeys(pk for _, pk in found)))


def children(connection: Connection, id: str, limit: int) -> list[Checkpoint]:
    """Return what continues a checkpoint, in the order in which it was recorded; removed ones
    too.
    """
    pks = connection.scalars(
        select(checkpoints.c.pk)
        .where(checkpoints.c.parent == id)
        .order_by(checkpoints.c.pk)
        .limit(limit)
    ).all()
    return fetch(connection, pks)
