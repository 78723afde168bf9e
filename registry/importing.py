"""Import: every checkpoint of a tree becomes the registry's, with the facts that it carries.

Law: a second run adds nothing and copies nothing; one bad file stops no other, and is named with
its reason. The dry run looks as the real run does, and writes nothing. No torch, and no code of the
files runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from . import incoming, pushes
from .blobs import BlobStore, Progress, SourceFile, Total
from .catalog import Catalog
from .containers import read
from .containers.weights import find
from .drafting import Given
from .errors import CkregError
from .filenames import suggested
from .records import Checkpoint
from .values import FORMAT, CheckpointId, Digest, digest_of
from .walking import Candidate, is_candidate, walk

Outcome = Literal["added", "present", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFile:
    """What became of one checkpoint file.

    Attributes:
        path: inside the tree, with `/`.
        outcome: `added` (or to be added, in a dry run), `present` with these bytes already, or
            `failed`.
        checkpoint: what it is in the registry; None where it isn't there (yet).
        known: what is known of it, of those to be added.
        from_name: the facts that its name says and nothing else does.
        copy_of: the file before it in the tree with the same bytes, in a dry run.
        reason, hint: why it failed, and the cure.
    """

    path: str
    outcome: Outcome
    size_bytes: int
    checkpoint: Checkpoint | None = None
    known: Given | None = None
    from_name: tuple[str, ...] = ()
    copy_of: str | None = None
    reason: str | None = None
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        known, ckpt = self.known, self.checkpoint
        facts = known if ckpt is None else ckpt
        return {
            "path": self.path,
            "outcome": self.outcome,
            "ref": None if ckpt is None else ckpt.ref,
            "id": None if ckpt is None else ckpt.id,
            "model": None if facts is None else facts.model,
            "dataset": None if facts is None else facts.dataset,
            "epoch": None if facts is None else facts.epoch,
            "step": None if facts is None else facts.step,
            "metrics": {} if facts is None else facts.metrics.to_dict(),
            "tags": [] if facts is None else list(facts.tags),
            "from_name": list(self.from_name),
            "copy_of": self.copy_of,
            "size_bytes": self.size_bytes,
            "reason": self.reason,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import did, or would do.

    Attributes:
        folder: the tree.
        dry_run: nothing was written.
        files: the checkpoint files of the tree, in the order taken.
        passed_over: how many files are no checkpoints.
    """

    folder: str
    dry_run: bool
    files: tuple[ImportedFile, ...] = ()
    passed_over: int = 0

    @property
    def added(self) -> tuple[ImportedFile, ...]:
        """Those that are new."""
        return tuple(f for f in self.files if f.outcome == "added")

    @property
    def present(self) -> tuple[ImportedFile, ...]:
        """Those whose bytes were there already."""
        return tuple(f for f in self.files if f.outcome == "present")

    @property
    def failed(self) -> tuple[ImportedFile, ...]:
        """Those that didn't go in."""
        return tuple(f for f in self.files if f.outcome == "failed")

    def __repr__(self) -> str:
        many = Counter(f.outcome for f in self.files)
        counts = ", ".join(
            f"{many[outcome]} {outcome}" for outcome in ("added", "present", "failed")
        )
        return f"<ImportResult {self.folder!r}: {counts}{', dry run' if self.dry_run else ''}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "folder": self.folder,
            "dry_run": self.dry_run,
            "files": [f.to_dict() for f in self.files],
            "added": len(self.added),
            "present": len(self.present),
            "failed": len(self.failed),
            "passed_over": self.passed_over,
        }


@dataclass(frozen=True, slots=True)
class Writer:
    """How an import writes: what opens the registry for it, and what tags a checkpoint."""

    open: Callable[[], tuple[BlobStore, Catalog]]
    tag: Callable[..., Checkpoint]


def import_tree(
    root: Path,
    given: Given,
    run: str | None,
    *,
    catalog: Catalog | None,
    writer: Writer | None,
    progress: Progress | None,
) -> ImportResult:
    """Take a tree's checkpoints in; see `Registry.import_`.

    Args:
        catalog: of the registry as it is; None where there is none yet.
        writer: None is the dry run.
    """
    files: list[ImportedFile] = []

    def unreadable(path: Path, error: OSError) -> None:
        name = path.relative_to(root).as_posix()
        why = f"it can't be read: {error.strerror}"
        files.append(ImportedFile(path=name, outcome="failed", size_bytes=0, reason=why))

    candidates = walk(root, unreadable)
    job = _Job(root, given, run, catalog, writer)
    passed, done = 0, 0
    total = sum(c.size_bytes for c in candidates if c.files is None)
    for candidate in candidates:
        if job.covered.issuperset(candidate.paths()):
            continue  # a part of a folder that was taken, or not, as a whole
        result = job.take(candidate, _part(progress, done, total))
        done += candidate.size_bytes
        if progress is not None:
            progress(done, total)
        if result is None:
            passed += 1
        else:
            files.append(result)
    return ImportResult(
        folder=str(root), dry_run=writer is None, files=tuple(files), passed_over=passed
    )


def _part(progress: Progress | None, done: int, total: int) -> Progress | None:
    return None if progress is None else lambda at, _: progress(done + at, total)


@dataclass(slots=True)
class _Job:
    """One import: what it was asked, and what it has taken so far.

    Attributes:
        seen: in a dry run, names and files by their probes: only those of one probe may be copies.
        ours: the ids that it added.
        covered: the files that belong to folders taken, or not taken, as a whole.
    """

    root: Path
    given: Given
    run: str | None
    catalog: Catalog | None
    writer: Writer | None
    seen: dict[Digest, list[tuple[str, list[Path]]]] = field(default_factory=dict)
    ours: set[CheckpointId] = field(default_factory=set)
    covered: set[Path] = field(default_factory=set)

    def take(self, candidate: Candidate, progress: Progress | None) -> ImportedFile | None:
        """Take one file or folder in, or say what would become of it; None for what is no
        checkpoint.
        """
        path, named = candidate.path, self._named(candidate)
        with ExitStack() as stack:
            try:
                sources = incoming.sources_of(path, stack)
                if candidate.files is None and not self._holds_weights(candidate, sources):
                    return None
                found = pushes.examine(sources, path, self.given, named)
                mine = incoming.belonging(sources, found.contents)
                self.covered.update(path / name for name in mine if candidate.files)
                sources = {name: sources[name] for name in sorted(mine)}
                present = self._present(sources, progress)
                copy_of = None if present or self.writer else self._copy_of(candidate, sources)
            except (CkregError, ValueError) as error:
                if candidate.files is not None:  # its parts are no checkpoints either
                    parts = incoming.without_inner(candidate.files, ())
                    self.covered.update(path / name for name in parts)
                return _failed(candidate, error)
        if present is not None:
            return self._known(candidate, present, named)
        if self.writer is None:
            return ImportedFile(
                path=candidate.name,
                outcome="present" if copy_of else "added",
                size_bytes=candidate.size_bytes,
                known=found.known,
                from_name=found.from_name,
                copy_of=copy_of,
            )
        self.catalog = self.writer.open()[1]  # a registry that takes nothing ends the import
        try:
            checkpoint = pushes.push(
                path, self.given, self.run, self.writer.open,
                move=False, progress=progress, named=named,
            )  # fmt: skip
        except (CkregError, ValueError) as error:
            return _failed(candidate, error)
        self.ours.add(checkpoint.id)
        return _taken(candidate, "added", checkpoint)

    def _named(self, candidate: Candidate) -> Given:
        """Return what a file's path says, the imported folder's own name included."""
        top = self.root.resolve().name or "model"
        return suggested([top, *PurePosixPath(candidate.name).parts])

    def _holds_weights(self, candidate: Candidate, sources: Mapping[str, SourceFile]) -> bool:
        """Say whether a file is a checkpoint; an optimizer's file or a random state is none."""
        (source,) = sources.values()
        if not is_candidate(source, candidate.name):
            return False
        contents = read(source, str(candidate.path))
        return not contents.loadable or bool(find(contents.root))

    def _present(
        self, sources: Mapping[str, SourceFile], progress: Progress | None
    ) -> Checkpoint | None:
        """Return the checkpoint that has these bytes, and the model and dataset that are said."""
        catalog, files = self.catalog, sources.values()
        if catalog is None or not all(catalog.has_probe(source.probe()) for source in files):
            return None
        shown = Total(sum(source.size for source in files), progress)
        digests = [source.hash(progress=shown.next(source.size)) for source in files]
        for checkpoint in catalog.holding(digests):
            if self.given.model in (None, checkpoint.model) and self.given.dataset in (
                None,
                checkpoint.dataset,
            ):
                return checkpoint
        return None

    def _known(self, candidate: Candidate, present: Checkpoint, named: Given) -> ImportedFile:
        """Return a file whose bytes are there, with the tags that it brings."""
        tags = [*self.given.tags, *(named.tags if present.id in self.ours else ())]
        new = [tag for tag in tags if tag not in present.tags]
        if new and self.writer is not None:
            present = self.writer.tag(present, *new)
        return _taken(candidate, "present", present)

    def _copy_of(self, candidate: Candidate, sources: Mapping[str, SourceFile]) -> str | None:
        """Return what came before this in the tree and has the same bytes under the same names."""
        files = sorted(sources.items())
        alone = len(files) == 1
        probe = digest_of([["" if alone else name, file.probe()] for name, file in files])
        alike = self.seen.setdefault(probe, [])
        if alike:
            digests = [file.hash() for _, file in files]
            for other, names in alike:
                with ExitStack() as stack:
                    before = [stack.enter_context(SourceFile.open(path)) for path in names]
                    if [file.hash() for file in before] == digests:
                        return other
        alike.append((candidate.name, [file.path for _, file in files]))
        return None


def _taken(candidate: Candidate, outcome: Outcome, checkpoint: Checkpoint) -> ImportedFile:
    return ImportedFile(
        path=candidate.name,
        outcome=outcome,
        size_bytes=candidate.size_bytes,
        checkpoint=checkpoint,
        from_name=checkpoint.provenance.from_name,
    )


def _failed(candidate: Candidate, error: CkregError | ValueError) -> ImportedFile:
    """Return a file that didn't go in; the reason needs no path, which stands beside it."""
    message, hint = (
        (error.message, error.hint) if isinstance(error, CkregError) else (str(error), None)
    )
    return ImportedFile(
        path=candidate.name,
        outcome="failed",
        size_bytes=candidate.size_bytes,
        reason=message.removeprefix(repr(str(candidate.path))).lstrip(": "),
        hint=hint,
    )
