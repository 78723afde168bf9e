"""Push: a file that exists already becomes a checkpoint, with the facts that it carries.

Law: the facts are read from the stored bytes, never from a path that may change meanwhile; the
source is only read, and with move=True unlinked after the commit if it is still what was read. No
torch, and no code of the file runs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from . import surroundings
from .blobs import Blob, BlobFile, BlobStore, FileBytes, Progress, SourceFile
from .catalog import Catalog, Gone
from .commits import Part, commit
from .containers import Contents, Description, describe, read
from .drafting import Given, Recorded, draft, dropped, keyed, merge, recorded
from .errors import CkregError, ConflictError, DamagedError, warn
from .records import Checkpoint
from .runs import named_run
from .values import Digest


@dataclass(frozen=True, slots=True)
class _Examined:
    """What a file holds, and what is known once the caller's words are laid over it."""

    contents: Contents
    description: Description
    record: Recorded | None
    known: Given
    remarks: tuple[str, ...]


def push(
    path: Path,
    given: Given,
    run: str | None,
    open_registry: Callable[[], tuple[BlobStore, Catalog]],
    *,
    move: bool,
    progress: Progress | None,
) -> Checkpoint:
    """Take a file in; see `Registry.push`.

    Args:
        run: the name of the run that it belongs to.
        open_registry: opens it for writing. All that is wrong with the file is said before.
    """
    with SourceFile.open(path) as source:
        _examine(source, path, given)
        store, catalog = open_registry()
        if move and store.owns(path):
            raise ConflictError(
                f"{str(path)!r} is the registry's own file: to move it would lose it",
                hint="leave --move out",
            )
        try:
            checkpoint = _push(store, catalog, source, path, given, run, True, progress)
        except Gone:
            checkpoint = _push(store, catalog, source, path, given, run, False, progress)
        if move:
            _unlink(path, source)
    return checkpoint


def _push(
    store: BlobStore,
    catalog: Catalog,
    source: SourceFile,
    path: Path,
    given: Given,
    run: str | None,
    share: bool,
    progress: Progress | None,
) -> Checkpoint:
    with _taken_in(store, catalog, source, _file_name(path), share, progress) as part:
        found = _examine(part.stored, path, given)
        known, actor = found.known, surroundings.author()
        if run is not None:
            of = named_run(catalog, str(known.model), known.dataset, run)
            known = replace(known, run=of)
        checkpoint, signatures = draft(
            known,
            found.contents,
            found.description,
            origin="push",
            record=found.record,
            files=(part.file,),
            author=actor,
        )
        checkpoint = commit(
            store,
            catalog,
            [part],
            checkpoint=checkpoint,
            signatures=signatures,
            contents=found.contents,
            run=known.run,
            twin=True,
            actor=actor,
        )
    for remark in found.remarks:
        warn(remark)
    return checkpoint


def _examine(file: FileBytes, path: Path, given: Given) -> _Examined:
    contents = read(file, str(path))
    description = describe(contents, file)
    remarks = [
        f"{str(path)!r}: {text}" for text in (*contents.warnings, *dropped(description, given))
    ]
    record = None
    try:
        record = recorded(description.record)
    except ValueError as error:
        remarks.append(f"{str(path)!r}: {error}; it is taken as a file without a record")
    known = merge(given, description, record)
    if known.model is None:
        said = [t for t in dropped(description, given) if t.startswith("the file names its model")]
        why = "".join(f"; {text}" for text in said)
        raise ValueError(
            f"{str(path)!r} doesn't say what model it holds{why}; name it: "
            f"ckreg push {shlex.quote(str(path))} --model NAME"
        )
    keyed(description, known, record)  # stated keys that don't fit are said before any copy
    return _Examined(contents, description, record, known, tuple(remarks))


# --- the bytes ------------------------------------------------------------------------------------


@contextmanager
def _taken_in(
    store: BlobStore,
    catalog: Catalog,
    source: SourceFile,
    name: str,
    share: bool,
    progress: Progress | None,
) -> Iterator[Part]:
    """Stage a copy, or find that the store holds the same bytes already, and undamaged.

    A file is hashed before it is copied only when a blob of the same size, head and tail is there.
    """
    probe = source.probe()
    damaged: frozenset[Digest] = frozenset()
    if share and catalog.has_probe(probe):
        digest = source.hash(progress=progress)
        source.check_unchanged()
        blob = catalog.blob(digest)
        if blob is not None and store.holds(blob):
            with store.open_blob(blob) as stored:
                if _is_whole(stored):
                    index, bad = _index(store, catalog, digest)
                    yield Part(
                        name, digest, stored, blob=blob, index=index, probe=probe, damaged=bad
                    )
                    return
            damaged = frozenset({digest})
    with store.stage_file(source, progress=progress) as staged:
        yield Part(name, staged.finish(), staged.source(), staged, probe=probe, damaged=damaged)


def _is_whole(file: BlobFile) -> bool:
    try:
        file.verify()
    except DamagedError:
        return False
    return True


def _index(
    store: BlobStore, catalog: Catalog, digest: Digest
) -> tuple[Blob | None, frozenset[Digest]]:
    """Return the blob of a file's index, or None and what is damaged where it must be made anew."""
    blob = catalog.index_of(digest)
    if blob is None:
        return None, frozenset()
    try:
        with store.open_blob(blob) as stored:
            stored.verify()
    except CkregError:
        return None, frozenset({blob.digest})
    return blob, frozenset()


def _unlink(path: Path, source: SourceFile) -> None:
    """Unlink what was taken in, unless the path means something else by now."""
    try:
        source.check_unchanged()
        if not os.path.samestat(os.lstat(path), os.fstat(source.fd)):
            raise ConflictError("it was replaced meanwhile, or is a link")
        os.unlink(path)
    except (OSError, CkregError) as error:
        why = error.message if isinstance(error, CkregError) else error.strerror
        warn(f"{str(path)!r} is recorded, and was left where it is: {why}")


def _file_name(path: Path) -> str:
    """Return a name that the record may keep: the file's own, odd characters replaced."""
    name = "".join(c if c.isprintable() else "_" for c in path.name).strip()[:255]
    return name or "checkpoint"
