"""From staged bytes to a committed checkpoint: blob, row, record, and then the acknowledgement.

Law: a committed row refers only to durable, hashed blobs; after a failure no blob of ours is left
but those that a row may name. Once the row is committed nothing that follows can undo or hide it.
Knows no torch, and nothing of how the bytes came to be staged.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import hooks, surroundings
from .blobs import Blob, BlobStore, FileBytes, Staged
from .blobs.ranges import build as build_index
from .catalog import Added, Catalog, Draft
from .containers import Contents, Description
from .drafting import Given, Recorded, draft
from .errors import BusyError, CkregError, warn_after
from .postgres import Lost, Unreachable
from .records import Checkpoint, File, Origin
from .sqlite import disk_failed
from .values import CheckpointId, Digest, canonical_json

_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """One file's bytes on their way in: staged and hashed, or a blob that the store holds.

    Attributes:
        name: the file's name in the checkpoint.
        stored: the bytes as they are stored.
        staged: the file that is to be published; None where the store holds the bytes.
        blob, index: what the store holds, verified.
        ours: the blobs were published for this checkpoint, and go if it can't be committed.
        damaged: digests whose bytes the store holds damaged: ours replace them.
    """

    name: str
    digest: Digest
    stored: FileBytes
    staged: Staged | None = None
    blob: Blob | None = None
    index: Blob | None = None
    probe: str | None = None
    damaged: frozenset[Digest] = frozenset()
    ours: bool = False

    @property
    def file(self) -> File:
        """The file as the record names it."""
        return File(self.name, self.digest, self.stored.size)


def commit(
    store: BlobStore,
    catalog: Catalog,
    parts: Sequence[Part],
    *,
    known: Given,
    contents: Contents,
    description: Description,
    origin: Origin,
    record: Recorded | None,
    from_name: tuple[str, ...] = (),
    patience_s: float = 0,
) -> Checkpoint:
    """Publish the bytes, commit the row, write the record; return the checkpoint as recorded.

    Of a push that is repeated the live twin is returned, not a new version; of a new one the hooks
    are told. The checkpoint's id
    decides whether a lost COMMIT went through.

    Args:
        parts: every file of the checkpoint.
        known, from_name: what is known of it; see `draft`.
        contents, description, record: what its files say.
        patience_s: for how long a commit that can't be had in time is asked for again.

    Raises:
        Gone: bytes that were to be shared are not there any more.
        BusyError, RemoteError: the commit could not be had in time, or the server is gone; what was
            saved is kept, and the hint finishes the work. Of many ranks' files in a bucket nothing
            is kept, and the hint says so.
        CkregError: anything else; nothing is left behind.
    """
    actor = surroundings.author()
    checkpoint, signatures = draft(
        known,
        contents,
        description,
        origin=origin,
        record=record,
        files=tuple(part.file for part in parts),
        author=actor,
        from_name=from_name,
    )
    ours = [b for p in parts if p.ours for b in (p.blob, p.index) if b]
    try:
        files = tuple(
            (part.name, *_published(store, part, contents, ours), part.probe) for part in parts
        )
        added = _added(
            store,
            catalog,
            Draft(
                checkpoint=checkpoint,
                run=known.run,
                signatures=signatures,
                files=files,
                twin=origin == "push",
                borrowed=frozenset(
                    b.name for p in parts if not p.ours for b in (p.blob, p.index) if b
                ),
                damaged=frozenset().union(*(p.damaged for p in parts)),
                actor=actor,
            ),
            patience_s,
        )
    except (BusyError, Unreachable) as error:
        staged = parts[0].staged if len(parts) == 1 else None
        if checkpoint.origin == "save" and ours and staged is not None:
            # Hours of training may stand behind these bytes: they stay, and carry their record.
            error.hint = (
                "the checkpoint is safe; finish with: "
                f"{_command(catalog, staged.keep(), checkpoint)}"
            )
            _drop(store, ours[1:])
        elif checkpoint.origin == "save" and ours:
            kept = store.keep_folder({name: blob for name, blob, *_ in files})
            if kept is None:
                error.hint = f"nothing of it was kept: save it again; {error.hint}"
            else:
                command = _command(catalog, kept, checkpoint)
                error.hint = f"the checkpoint is safe; finish with: {command} --move"
            _drop(store, ours)  # of a folder that was kept: what isn't in it
        else:
            _drop(store, ours)
        raise
    except BaseException as error:
        found = _committed(catalog, checkpoint.id)
        if found is None and isinstance(error, Lost):
            # The transaction may be there still: its row would name bytes that we dropped. What it
            # doesn't name, gc takes.
            staged = parts[0].staged if len(parts) == 1 else None
            error.hint = _look_first(catalog, staged, checkpoint)
            raise
        if found is None:
            drop_unnamed(store, catalog, ours)
            raise
        # The COMMIT went through and its answer was lost; or it is visible and not on the medium.
        if not isinstance(error, Exception) or disk_failed(error):
            write_record(store, catalog, found.id)
            if not isinstance(error, CkregError):
                raise
            raise CkregError(
                f"{found.ref} was recorded, but the disk failed at the last step of it, so that a "
                f"power cut may undo it: {error.message}",
                hint="see dmesg; then do it again: what is there will be found",
            ) from error
        added = Added(checkpoint=found)
    for changed in (added.checkpoint, *added.moved):
        write_record(store, catalog, changed.id)
    _drop(store, added.unused)
    for text in added.warnings:
        warn_after(text)
    if not added.existing:
        hooks.committed(added.checkpoint, catalog.location)
    return added.checkpoint


def _added(store: BlobStore, catalog: Catalog, draft: Draft, patience_s: float) -> Added:
    """Commit the row; while it can't be had, ask again."""
    deadline = time.monotonic() + patience_s
    said = False
    while True:
        try:
            return catalog.add(draft, holds=store.holds)
        except (BusyError, Unreachable) as error:  # nothing was committed
            if time.monotonic() >= deadline:
                raise
            if not said:
                warn_after(f"the save goes on for up to {patience_s:g} s: {error.message}")
                said = True
        time.sleep(_PAUSE_S)


def _published(
    store: BlobStore, part: Part, contents: Contents, ours: list[Blob]
) -> tuple[Blob, Blob]:
    """Return a part's blob and its index's, published now unless the store holds them."""
    blob, index = part.blob, part.index
    data = b""
    if index is None:
        data = build_index(
            part.stored,
            contents.places_in(part.name),
            part.digest,
            {} if part.staged is None else part.staged.pieces,
        ).to_bytes()
    if blob is None:
        assert part.staged is not None
        blob = store.publish(part.staged)
        ours.append(blob)
    if index is None:
        index = store.put_bytes(data)
        ours.append(index)
    return blob, index


def _command(catalog: Catalog, kept: Path, checkpoint: Checkpoint) -> str:
    """Return the command that commits what was saved and kept; its own record says the rest."""
    words = ["ckreg", "-r", catalog.location, "push", str(kept)]
    for option, values in (("--tag", checkpoint.tags), ("--alias", checkpoint.aliases)):
        for value in values:
            words += [option, value]
    if checkpoint.note:
        words += ["--note", checkpoint.note]
    return shlex.join(words)


def _look_first(catalog: Catalog, staged: Staged | None, checkpoint: Checkpoint) -> str:
    """Return what to do when nobody knows whether a checkpoint was committed."""
    look = shlex.join(["ckreg", "-r", catalog.location, "show", checkpoint.id])
    if checkpoint.origin == "push":
        return f"push it again when the server is back: what is there is found; or see: {look}"
    if staged is None:
        return f"see whether it is there, when the server is back: {look}; if it isn't, save again"
    return (
        f"the checkpoint is safe; see whether it is there: {look}; if it isn't, finish with: "
        f"{_command(catalog, staged.keep(), checkpoint)}"
    )


def _committed(catalog: Catalog, id: CheckpointId) -> Checkpoint | None:
    with suppress(CkregError):
        return catalog.by_id(id, include_removed=True)
    return None


def drop_unnamed(store: BlobStore, catalog: Catalog, ours: Sequence[Blob]) -> None:
    """Drop the blobs that no row names; where the database won't say, they stay for gc."""
    with suppress(CkregError):
        named = catalog.names_of(ours)
        _drop(store, [blob for blob in ours if blob.name not in named])


def _drop(store: BlobStore, blobs: Sequence[Blob]) -> None:
    for blob in blobs:
        try:
            store.drop(blob)
        except CkregError as error:
            warn_after(f"a blob that nothing needs was left in the store: {error.message}")


def write_record(store: BlobStore, catalog: Catalog, id: CheckpointId) -> None:
    """Write a checkpoint's whole record: the database is never the only copy of the facts.

    Two writers may change one checkpoint at once: each reads again after it wrote, and writes again
    when the database has moved on, so that the last record written is the last state committed. A
    record that can't be written is a warning, since the facts are committed.
    """
    try:
        state = None
        for _ in range(100):
            latest = canonical_json(catalog.whole(id))
            if latest == state:
                return
            state = latest
            store.put_record(id, state)
    except CkregError as error:
        warn_after(
            f"the checkpoint {id[:8]} is committed, but its record file could not be written: "
            f"{error.message}"
        )
