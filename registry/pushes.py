"""Push: a file or a folder that exists already becomes a checkpoint, with the facts it carries.

Law: the facts are read from the stored bytes, never from a path that may change meanwhile; the
source is only read, and with move=True unlinked after the commit if it is still what was read. No
torch, and no code of the file runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from . import incoming
from .blobs import Blob, BlobStore, FileBytes, Progress, SourceFile, Total
from .catalog import Catalog, Gone
from .commits import Part, commit
from .containers import Contents, Description, describe, read, read_folder
from .drafting import (
    UNSAID,
    Given,
    Recorded,
    completed,
    dropped,
    keyed,
    merge,
    recorded,
    still_inferred,
)
from .errors import CkregError, ConflictError, warn
from .records import Checkpoint, RunRecord
from .runs import named_run, same_job
from .values import Digest


@dataclass(frozen=True, slots=True)
class Examined:
    """What a file or folder holds, and what is known once the caller's words are laid over it.

    Attributes:
        from_name: the facts of `known` that only its name says.
        remarks: what is odd, or said and not recorded.
    """

    contents: Contents
    description: Description
    record: Recorded | None
    known: Given
    from_name: tuple[str, ...]
    remarks: tuple[str, ...]


def push(
    path: Path,
    given: Given,
    run: RunRecord | str | None,
    open_registry: Callable[[], tuple[BlobStore, Catalog]],
    *,
    move: bool,
    progress: Progress | None,
    named: Given = UNSAID,
) -> Checkpoint:
    """Take a file or folder in; see `Registry.push`.

    Args:
        run: the run that it belongs to, or its name.
        open_registry: opens it for writing. All that is wrong with the file is said before.
        named: what its name suggests, for facts that neither the caller nor the file says.
    """
    with ExitStack() as stack:
        there = incoming.sources_of(path, stack)
        contents = examine(there, path, given, named).contents
        mine = incoming.belonging(there, contents)
        sources = {name: source for name, source in there.items() if name in mine}
        store, catalog = open_registry()
        if store.owns(path) and path.is_dir():
            raise ConflictError(f"{str(path)!r} holds the registry itself")
        if move and store.owns(path):
            raise ConflictError(
                f"{str(path)!r} is the registry's own file: to move it would lose it",
                hint="leave --move out",
            )
        push = _Push(store, catalog, path, given, run, named, progress)
        try:
            checkpoint = push.commit(sources, contents, share=True)
        except Gone:
            checkpoint = push.commit(sources, contents, share=False)
        if given.keys is not None and checkpoint.provenance.key_style == "inferred":
            raise ConflictError(
                f"{checkpoint.ref} is this file already, and how its keys are wrapped was inferred "
                "then; what is recorded never changes",
                hint=f"ckreg rm {checkpoint.ref} --yes, then push it again",
            )
        if move:
            incoming.unlink(path, sources)
        left = sorted(there.keys() - mine)
    if left:
        what = f"{left[0]!r}" + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        warn(f"{str(path)!r}: {what} are not part of the checkpoint, and were not taken in")
    return checkpoint


@dataclass(frozen=True, slots=True)
class _Push:
    """One push: where to, what was asked, and who watches."""

    store: BlobStore
    catalog: Catalog
    path: Path
    given: Given
    run: RunRecord | str | None
    named: Given
    progress: Progress | None

    def commit(
        self, sources: Mapping[str, SourceFile], seen: Contents, *, share: bool
    ) -> Checkpoint:
        """Take the bytes in and commit them.

        Args:
            seen: what the sources held: where in them storages are likely to be.
            share: use the blobs that the store holds already.

        Raises:
            Gone: one of those isn't there any more.
        """
        shown = Total(sum(s.size for s in sources.values()), self.progress)
        with ExitStack() as stack:
            parts = [
                stack.enter_context(
                    self._taken_in(
                        name, source, seen.places_in(name), share, shown.next(source.size)
                    )
                )
                for name, source in sources.items()
            ]
            stored = {part.name: part.stored for part in parts}
            found = examine(stored, self.path, self.given, self.named)
            known = found.known
            if self.run is not None:
                model = str(known.model)
                of = (
                    same_job(self.run, model, known.dataset)
                    if isinstance(self.run, RunRecord)
                    else named_run(self.catalog, model, known.dataset, self.run)
                )
                known = replace(known, run=of)
            checkpoint = commit(
                self.store,
                self.catalog,
                parts,
                known=known,
                contents=found.contents,
                description=found.description,
                origin="push",
                record=found.record,
                from_name=found.from_name,
            )
        for remark in found.remarks:
            warn(remark)
        return checkpoint

    @contextmanager
    def _taken_in(
        self,
        name: str,
        source: SourceFile,
        storages: Sequence[tuple[int, int]],
        share: bool,
        progress: Progress | None,
    ) -> Iterator[Part]:
        """Stage a copy, or find that the store holds the same bytes already, and undamaged.

        A file is hashed before it is copied only when a blob of the same size, head and tail is
        there.
        """
        store, catalog = self.store, self.catalog
        probe = source.probe()
        damaged: frozenset[Digest] = frozenset()
        if share and catalog.has_probe(probe):
            digest = source.hash(progress=progress)
            source.check_unchanged()
            blob = catalog.blob(digest)
            if blob is not None and store.holds(blob):
                with store.open_blob(blob) as stored:
                    if stored.is_whole():
                        index, bad = _index(store, catalog, digest)
                        # The source has the digest: what lies elsewhere needn't be brought in
                        bytes_ = source if stored.lies_elsewhere else stored
                        yield Part(
                            name, digest, bytes_, blob=blob, index=index, probe=probe, damaged=bad
                        )
                        return
                damaged = frozenset({digest})
        with store.stage_file(source, storages=storages, progress=progress) as staged:
            yield Part(name, staged.finish(), staged.source(), staged, probe=probe, damaged=damaged)


def examine(
    files: Mapping[str, FileBytes], path: Path, given: Given, named: Given = UNSAID
) -> Examined:
    """Return what a file or folder holds, and what is known of it.

    Args:
        path: what to call it; a folder where its files are one's.

    Raises:
        ValueError: nobody says what model it is.
        CkregError: it can't be read as a checkpoint, or its keys aren't as stated.
    """
    if path.is_dir():
        contents = read_folder(files, str(path))
        description = describe(contents, files)
    else:
        (file,) = files.values()
        contents = read(file, str(path))
        description = describe(contents, file)
    said = [*contents.warnings, *dropped(description, given)]
    hidden = incoming.hidden_folders(path)
    if hidden:
        said.append(f"hidden folders are not taken in: {', '.join(hidden)}")
    remarks = [f"{str(path)!r}: {text}" for text in said]
    record = None
    try:
        record = recorded(description.record)
    except ValueError as error:
        remarks.append(f"{str(path)!r}: {error}; it is taken as a file without a record")
    known, from_name = completed(merge(given, description, record), named)
    from_name = (*still_inferred(record, given), *from_name)
    if known.model is None:
        names = [t for t in dropped(description, given) if t.startswith("the file names its model")]
        why = "".join(f"; {text}" for text in names)
        raise ValueError(
            f"{str(path)!r} doesn't say what model it holds{why}; name it: "
            f"ckreg push {shlex.quote(str(path))} --model NAME"
        )
    keyed(description, known, record)  # stated keys that don't fit are said before any copy
    return Examined(contents, description, record, known, from_name, tuple(remarks))


# --- the bytes ------------------------------------------------------------------------------------


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
