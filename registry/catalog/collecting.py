"""What gc asks of the database, and the rows that it takes.

Law: a blob's row goes only while no file of any checkpoint refers to it, and that is seen inside
the transaction that deletes it; a checkpoint's own row never goes, it is marked as collected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, select, update

from ..blobs import Blob
from ..tables import blobs, checkpoints, files, models
from ..values import CheckpointId, Digest, now, time_text
from .rows import moment
from .settling import blob_of

_MANY = 500
_Item = TypeVar("_Item")


def portions(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield items in lists of so many, the last one perhaps shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


@dataclass(frozen=True, slots=True)
class Removed:
    """A checkpoint with a tombstone, whose files gc hasn't taken."""

    id: CheckpointId
    ref: str
    removed_at: datetime
    size_bytes: int


def removed(connection: Connection) -> list[Removed]:
    """Return the removed checkpoints whose files are still there, the longest removed first."""
    rows = connection.execute(
        select(
            checkpoints.c.id,
            checkpoints.c.version,
            checkpoints.c.removed_at,
            checkpoints.c.size_bytes,
            models.c.name,
        )
        .join(models, models.c.pk == checkpoints.c.model_pk)
        .where(checkpoints.c.removed_at.is_not(None), checkpoints.c.collected_at.is_(None))
        .order_by(checkpoints.c.removed_at, checkpoints.c.pk)
    )
    return [
        Removed(
            CheckpointId(row.id),
            f"{row.name}@v{row.version}",
            moment(row.removed_at),
            row.size_bytes,
        )
        for row in rows
    ]


def blobs_in(connection: Connection, shard: str) -> dict[str, Blob]:
    """Return the blobs of one folder of the store, by name."""
    # A range and no LIKE, as for ids: '0' is the character after '/'.
    rows = connection.execute(
        select(blobs).where(blobs.c.name >= f"{shard}/", blobs.c.name < f"{shard}0")
    )
    return {row.name: blob_of(row) for row in rows}


def unneeded(connection: Connection, without: Collection[CheckpointId]) -> list[Blob]:
    """Return the blobs that no file refers to but those of some checkpoints."""
    pks = {
        pk
        for ids in portions(without, _MANY)
        for pk in connection.scalars(select(checkpoints.c.pk).where(checkpoints.c.id.in_(ids)))
    }
    theirs: set[str] = set()
    for part in portions(pks, _MANY):
        for row in connection.execute(
            select(files.c.digest, files.c.index_digest).where(files.c.checkpoint_pk.in_(part))
        ):
            theirs |= {row.digest, row.index_digest} - {None}
    needed: set[str] = set()
    for part in portions(theirs, _MANY):
        for column in (files.c.digest, files.c.index_digest):
            needed |= {
                row[0]
                for row in connection.execute(
                    select(column, files.c.checkpoint_pk).where(column.in_(part))
                )
                if row[1] not in pks
            }
    found = [blob_of(row) for row in connection.execute(select(blobs).where(_unreferenced()))]
    for part in portions(sorted(theirs - needed), _MANY):
        rows = connection.execute(select(blobs).where(blobs.c.digest.in_(part)))
        found += [blob_of(row) for row in rows]
    return sorted(found, key=lambda blob: blob.name)


def _unreferenced() -> ColumnElement[bool]:
    return and_(
        ~exists().where(files.c.digest == blobs.c.digest),
        ~exists().where(files.c.index_digest.is_not(None), files.c.index_digest == blobs.c.digest),
    )


def unknown(connection: Connection, ids: Iterable[CheckpointId]) -> list[CheckpointId]:
    """Return which of some ids no checkpoint has."""
    lost: list[CheckpointId] = []
    for part in portions(ids, _MANY):
        there = set(connection.scalars(select(checkpoints.c.id).where(checkpoints.c.id.in_(part))))
        lost += [id for id in part if id not in there]
    return lost


# --- what goes ------------------------------------------------------------------------------------


def retire(connection: Connection, found: Sequence[Removed]) -> list[Removed]:
    """Let go of the files of checkpoints that are still removed, since then; return those.

    From here on `restore` refuses them.
    """
    expected = {one.id: time_text(one.removed_at) for one in found}
    rows = connection.execute(
        select(checkpoints.c.pk, checkpoints.c.id, checkpoints.c.removed_at)
        .where(
            checkpoints.c.id.in_(expected),
            checkpoints.c.removed_at.is_not(None),
            checkpoints.c.collected_at.is_(None),
        )
        .with_for_update()
    ).all()
    mine = {row.id: row.pk for row in rows if row.removed_at == expected[row.id]}
    connection.execute(
        update(checkpoints)
        .where(checkpoints.c.pk.in_(mine.values()))
        .values(collected_at=time_text(now()))
    )
    connection.execute(delete(files).where(files.c.checkpoint_pk.in_(mine.values())))
    return [one for one in found if one.id in mine]


def forget(connection: Connection, digests: Collection[Digest]) -> list[Blob]:
    """Delete the rows of blobs that no file refers to, and return these blobs."""
    mine = and_(blobs.c.digest.in_(digests), _unreferenced())
    found = [
        blob_of(row) for row in connection.execute(select(blobs).where(mine).with_for_update())
    ]
    connection.execute(delete(blobs).where(blobs.c.digest.in_([blob.digest for blob in found])))
    return found


def drop_orphans(
    connection: Connection, found: Sequence[Blob], drop: Callable[[Blob], None]
) -> list[Blob]:
    """Drop the files that no row names, and return them.

    Inside the transaction, which keeps every commit out: whoever published such a file and hasn't
    committed yet will look for it in a transaction of his own, and find it gone.
    """
    named = set(
        connection.scalars(select(blobs.c.name).where(blobs.c.name.in_([b.name for b in found])))
    )
    orphans = [blob for blob in found if blob.name not in named]
    for blob in orphans:
        drop(blob)
    return orphans
