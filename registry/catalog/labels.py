"""Tags and aliases. Every move of an alias is kept: who, when, from, to."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from ..tables import alias_moves, aliases, tags
from .rows import storable


def add_tags(
    connection: Connection, pk: int, names: Sequence[str], author: str | None, at: str
) -> None:
    """Give a checkpoint tags; those that it has already stay as they are."""
    if not names:
        return
    there = set(
        connection.scalars(
            select(tags.c.name).where(tags.c.checkpoint_pk == pk, tags.c.name.in_(names))
        )
    )
    new = [name for name in dict.fromkeys(names) if name not in there]
    if new:
        connection.execute(
            insert(tags),
            [
                {"checkpoint_pk": pk, "name": name, "author": storable(author), "tagged_at": at}
                for name in new
            ],
        )


def point_alias(
    connection: Connection, model_pk: int, name: str, pk: int | None, author: str | None, at: str
) -> int | None:
    """Point an alias at a checkpoint, or at none, and return the one that it pointed at."""
    this = (aliases.c.model_pk == model_pk, aliases.c.name == name)
    before = connection.scalar(select(aliases.c.checkpoint_pk).where(*this))
    if before == pk:
        return before
    values = {"checkpoint_pk": pk, "author": storable(author), "moved_at": at}
    if before is None:
        connection.execute(insert(aliases).values(model_pk=model_pk, name=name, **values))
    elif pk is None:
        connection.execute(delete(aliases).where(*this))
    else:
        connection.execute(update(aliases).where(*this).values(values))
    connection.execute(
        insert(alias_moves).values(
            model_pk=model_pk,
            name=name,
            from_pk=before,
            to_pk=pk,
            author=storable(author),
            moved_at=at,
        )
    )
    return before


def left_by(connection: Connection, pk: int) -> list[int]:
    """Return the keys of the checkpoints that an alias left for this one."""
    found = connection.scalars(
        select(alias_moves.c.from_pk)
        .where(alias_moves.c.to_pk == pk, alias_moves.c.from_pk.is_not(None))
        .distinct()
    )
    return sorted(int(key) for key in found if key is not None)
