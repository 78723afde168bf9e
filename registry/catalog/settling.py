"""Which of several blobs with the same bytes a digest's row names.

Law: the one that is there already, if its file is in the store; else ours, seen there too. Whatever
is not named is reported, to be dropped after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, insert, select, update

from ..blobs import Blob
from ..errors import ConflictError, DamagedError
from ..tables import blobs
from ..values import Digest

NewFile = tuple[str, Blob, Blob | None, str | None]
"""A file's name in the checkpoint, its blob, the blob of its index, its probe."""


class Gone(ConflictError):
    """Bytes that were to be shared are not the store's any more: stage them after all."""


class Incoming(Protocol):
    """What a draft says of its files."""

    @property
    def files(self) -> Sequence[NewFile]:
        """All of its files."""
        ...

    @property
    def borrowed(self) -> frozenset[str]:
        """Names of blobs that are not its own."""
        ...

    @property
    def damaged(self) -> frozenset[Digest]:
        """Digests whose stored bytes were found damaged."""
        ...


def settle(
    connection: Connection,
    incoming: Incoming,
    holds: Callable[[Blob], bool],
    *,
    create: bool,
    at: str,
) -> tuple[Blob, ...]:
    """Let each digest have one blob whose file is there, and return ours that are not it.

    Args:
        create: insert digests that are new; else they are not needed.

    Raises:
        Gone: a borrowed blob is no longer the one that its row names.
    """
    ours: dict[Digest, tuple[Blob, str | None]] = {}
    unused: list[Blob] = []
    for _, whole, index, probe in incoming.files:
        for blob, its_probe in ((whole, probe), (index, None)):
            if blob is None:
                continue
            first, _ = ours.setdefault(blob.digest, (blob, its_probe))
            if first.name != blob.name and blob.name not in incoming.borrowed:
                unused.append(blob)  # two files of one draft with the same bytes
    # In order: two that want the same rows wait for each other, and neither for both.
    known_rows = select(blobs).where(blobs.c.digest.in_(ours)).order_by(blobs.c.digest)
    rows = connection.execute(known_rows.with_for_update()).all()
    known = {Digest(row.digest): blob_of(row) for row in rows}
    fresh: list[dict[str, object]] = []
    for digest, (blob, probe) in ours.items():
        theirs = known.get(digest)
        if theirs is not None and theirs.size_bytes != blob.size_bytes:
            raise DamagedError(
                f"the blob {digest} is recorded with {theirs.size_bytes} bytes, and has "
                f"{blob.size_bytes}"
            )
        if blob.name in incoming.borrowed:
            # A name without its row is gc's to unlink, whether the file is still there or not
            if theirs is None or theirs.name != blob.name or not holds(theirs):
                raise Gone(f"the stored bytes of {digest} went away meanwhile")
            continue
        keeps = theirs is not None and digest not in incoming.damaged and holds(theirs)
        if keeps or (theirs is None and not create):
            if theirs is None or theirs.name != blob.name:  # a repeated add finds its own
                unused.append(blob)
            continue
        if not holds(blob):
            raise ConflictError(
                f"the stored bytes of {digest} went away meanwhile", hint="run the command again"
            )
        if theirs is not None:
            connection.execute(update(blobs).where(blobs.c.digest == digest).values(name=blob.name))
        else:
            fresh.append(
                {
                    "digest": digest,
                    "name": blob.name,
                    "size_bytes": blob.size_bytes,
                    "probe": probe,
                    "created_at": at,
                }
            )
    if fresh:
        connection.execute(insert(blobs), fresh)
    return tuple(unused)


def blob_of(row: Any) -> Blob:
    """Return the blob that a row (digest, size_bytes, name) names.

    Raises:
        DamagedError: it names none.
    """
    try:
        return Blob(row.digest, row.size_bytes, row.name)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"the row of blob {row.digest!r} is damaged: {error}") from error
