"""Import: every checkpoint of a tree becomes the registry's, with the facts that it carries.

Law: a second run adds nothing and copies nothing; one bad file stops no other, and is named with
its reason. The dry run looks as the real run does, and writes nothing. A file known from before
(sightings.py) is not parsed again, but what it was must still be live. No code of the files runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from . import __version__, incoming, pushes
from .blobs import BlobStore, Progress, SourceFile, Total
from .catalog import Catalog
from .containers import read
from .containers.weights import find
from .drafting import Given
from .errors import CkregError
from .filenames import suggested
from .mounts import filesystem, is_share
from .records import Checkpoint
from .sightings import Sightings, Verdict
from .values import FORMAT, CheckpointId, Digest, digest_of
from .walking import Candidate, Scan, candidates, is_candidate, scan

Outcome = Literal["added", "present", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFile:
    """What became of one checkpoint file.

    Attributes:
        path: inside the tree, with `/`.
        outcome: `added` (or to be added, in a dry run), `present` with these bytes already, or
            `failed`.
        read: gives what it is in the registry; None where it isn't there (yet).
        known: what is known of it, of those to be added.
        guessed: the facts that its name says and nothing else does, of those to be added.
        copy_of: the file before it in the tree with the same bytes, in a dry run.
        reason, hint: why it failed, and the cure.
    """

    path: str
    outcome: Outcome
    size_bytes: int
    read: Callable[[], Checkpoint] | None = field(default=None, repr=False, compare=False)
    known: Given | None = None
    guessed: tuple[str, ...] = ()
    copy_of: str | None = None
    reason: str | None = None
    hint: str | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What it is in the registry, read when it is first asked for; None where it isn't there.

        Raises:
            BusyError, DamagedError: the registry can't be read.
        """
        return None if self.read is None else self.read()

    @property
    def from_name(self) -> tuple[str, ...]:
        """The facts that its name says and nothing else does."""
        checkpoint = self.checkpoint
        return self.guessed if checkpoint is None else checkpoint.provenance.from_name

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
        remarks: what was told of them and isn't recorded, in sentences.
    """

    folder: str
    dry_run: bool
    files: tuple[ImportedFile, ...] = ()
    passed_over: int = 0
    remarks: tuple[str, ...] = ()

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
            "remarks": list(self.remarks),
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
    memory: Path,
    progress: Progress | None,
) -> ImportResult:
    """Take a tree's checkpoints in; see `Registry.import_`.

    Args:
        catalog: of the registry as it is; None where there is none yet.
        writer: None is the dry run.
        memory: where the registry keeps what it saw in trees.
    """
    files: list[ImportedFile] = []

    def unreadable(name: str, error: OSError) -> None:
        why = f"it can't be read: {error.strerror}"
        files.append(ImportedFile(path=name, outcome="failed", size_bytes=0, reason=why))

    began_ns = time.time_ns()
    there = scan(root, unreadable)
    seen = Sightings.of(memory, root, (__version__, given.model, given.dataset))
    found: dict[str, Candidate] = {}
    if not seen.orders(there):
        found = {candidate.name: candidate for candidate in candidates(root, there.files)}
    order = list(found) or seen.order
    known = _Known(seen, there, given, catalog)
    job = _Job(root, given, run, catalog, writer)
    passed, done = 0, 0
    total = sum(stamp[2] for stamp in there.files.values())
    for name in order:
        if name in job.covered:
            continue  # a part of a folder that was taken, or not, as a whole
        result: ImportedFile | None
        if known.holds(name, found.get(name), job.covered):
            job.covered.update(seen.verdicts[name].covered)
            size_bytes = known.size_of(name)
            result = known.file(name, size_bytes)
            if result is not None and given.tags:
                result = job.tagged(result)
        else:
            if name not in found:
                found = {c.name: c for c in candidates(root, there.files)}
            candidate = found[name]
            if job.covered.issuperset(candidate.members()):
                continue
            size_bytes = candidate.size_bytes
            result = job.take(candidate, part(progress, done, total))
        done += size_bytes
        if progress is not None:
            progress(done, total)
        if result is None:
            passed += 1
        else:
            files.append(result)
    news = bool(job.verdicts) or not seen.orders(there)
    # A registry that isn't there yet was asked to take nothing: what we saw must not begin it.
    if writer is not None and job.catalog is not None and news and not is_share(filesystem(root)):
        _remember(seen, there, order, job.verdicts, began_ns)
    return ImportResult(
        folder=str(root), dry_run=writer is None, files=tuple(files), passed_over=passed
    )


def _remember(
    seen: Sightings, there: Scan, order: list[str], new: Mapping[str, Verdict], before_ns: int
) -> None:
    """Keep what was found, of files that can be told from changed ones."""
    seen.order, seen.names = order, set(there.files)
    seen.verdicts = {n: v for n, v in seen.verdicts.items() if n in set(order)}
    seen.files = {n: v for n, v in seen.files.items() if n in seen.names}
    for name, verdict in new.items():
        if all(seen.see(there, member, before_ns) for member in verdict.members or (name,)):
            seen.verdicts[name] = verdict
        else:
            seen.verdicts.pop(name, None)
    seen.write()


class _Known:
    """What need not be looked into again: files known from before whose checkpoints are live."""

    def __init__(self, seen: Sightings, there: Scan, given: Given, catalog: Catalog | None) -> None:
        self._seen, self._there, self._given, self._catalog = seen, there, given, catalog
        self._keys: dict[str, int] = {}
        self._read: dict[int, Checkpoint] = {}
        self._folders: dict[str, Checkpoint] = {}
        digests = [v.digests[0] for v in seen.verdicts.values() if len(v.digests) == 1]
        if catalog is not None and digests:
            for digest, (key, model, dataset) in catalog.holding_alone(digests):
                if self._asked(model, dataset):
                    self._keys.setdefault(digest, key)

    def _asked(self, model: str, dataset: str | None) -> bool:
        given = self._given
        return given.model in (None, model) and given.dataset in (None, dataset)

    def holds(self, name: str, candidate: Candidate | None, covered: set[str]) -> bool:
        """Say whether a file or folder is the one seen before, and what it was is still there."""
        verdict = self._seen.verdicts.get(name)
        if verdict is None:
            return False
        digests = verdict.digests
        if not verdict.members:
            live = not digests or digests[0] in self._keys
            return live and self._seen.is_known(self._there, name)
        place = "" if name == "." else f"{name}/"
        if (
            (candidate is not None and candidate.members() != set(verdict.members))
            or any(odd.startswith(place) for odd in self._there.odd)
            or not covered.isdisjoint(verdict.members)
            or self._catalog is None
            or not all(self._seen.is_known(self._there, member) for member in verdict.members)
        ):
            return False
        for checkpoint in self._catalog.holding([Digest(digest) for digest in digests]):
            if self._asked(checkpoint.model, checkpoint.dataset):
                self._folders[name] = checkpoint
                return True
        return False

    def file(self, name: str, size_bytes: int) -> ImportedFile | None:
        """Return a file or folder that `holds` said yes to; None for what is no checkpoint."""
        verdict = self._seen.verdicts[name]
        if not verdict.digests:
            return None
        if verdict.members:
            read = partial(self._folders.__getitem__, name)
        else:
            read = partial(self._checkpoint, self._keys[verdict.digests[0]])
        return ImportedFile(path=name, outcome="present", size_bytes=size_bytes, read=read)

    def size_of(self, name: str) -> int:
        """Return the bytes of a file or folder."""
        files, members = self._there.files, self._seen.verdicts[name].members
        return sum(files[member][2] for member in members) if members else files[name][2]

    def _checkpoint(self, key: int) -> Checkpoint:
        """Return one of them; the first that is asked for brings all: a query, not one for each."""
        if key not in self._read:
            assert self._catalog is not None
            keys = list(dict.fromkeys([key, *self._keys.values()]))
            self._read = dict(zip(keys, self._catalog.by_keys(keys), strict=True))
        return self._read[key]


def part(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Return the progress of one file of several."""
    return None if progress is None else lambda at, _: progress(done + at, total)


@dataclass(slots=True)
class _Job:
    """One import: what it was asked, and what it has taken so far.

    Attributes:
        seen: in a dry run, names and files by their probes: only those of one probe may be copies.
        ours: the ids that it added.
        covered: the files that belong to folders taken, or not taken, as a whole.
        verdicts: what was found to be which checkpoint, or none.
    """

    root: Path
    given: Given
    run: str | None
    catalog: Catalog | None
    writer: Writer | None
    seen: dict[Digest, list[tuple[str, list[Path]]]] = field(default_factory=dict)
    ours: set[CheckpointId] = field(default_factory=set)
    covered: set[str] = field(default_factory=set)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def take(self, candidate: Candidate, progress: Progress | None) -> ImportedFile | None:
        """Take one file or folder in, or say what would become of it; None for what is no
        checkpoint.
        """
        path, named = candidate.path, self._named(candidate)
        place = "" if candidate.name == "." else f"{candidate.name}/"
        covered: frozenset[str] = frozenset()
        with ExitStack() as stack:
            try:
                sources = incoming.sources_of(path, stack)
                if candidate.files is None and not holds_weights(candidate, sources):
                    self.verdicts[candidate.name] = Verdict()
                    return None
                found = pushes.examine(sources, path, self.given, named)
                mine = incoming.belonging(sources, found.contents)
                if candidate.files is not None:
                    covered = frozenset(place + name for name in mine)
                    self.covered.update(covered)
                sources = {name: sources[name] for name in sorted(mine)}
                present = self._present(sources, progress)
                copy_of = None if present or self.writer else self._copy_of(candidate, sources)
            except (CkregError, ValueError) as error:
                if candidate.files is not None:  # its parts are no checkpoints either
                    parts = incoming.without_inner(candidate.files, ())
                    self.covered.update(place + name for name in parts)
                return failed(candidate, error)
        if present is not None:
            self._judge(candidate, present, covered)
            tags = named.tags if present.id in self.ours else ()
            return _taken(candidate, "present", self._tagged(present, tags))
        if self.writer is None:
            return ImportedFile(
                path=candidate.name,
                outcome="present" if copy_of else "added",
                size_bytes=candidate.size_bytes,
                known=found.known,
                guessed=found.from_name,
                copy_of=copy_of,
            )
        self.catalog = self.writer.open()[1]  # a registry that takes nothing ends the import
        try:
            checkpoint = pushes.push(
                path, self.given, self.run, self.writer.open,
                move=False, progress=progress, named=named,
            )  # fmt: skip
        except (CkregError, ValueError) as error:
            return failed(candidate, error)
        self.ours.add(checkpoint.id)
        self._judge(candidate, checkpoint, covered)
        return _taken(candidate, "added", checkpoint)

    def _named(self, candidate: Candidate) -> Given:
        """Return what a file's path says, the imported folder's own name included."""
        top = self.root.resolve().name or "model"
        return suggested([top, *PurePosixPath(candidate.name).parts])

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

    def _judge(self, candidate: Candidate, is_: Checkpoint, covered: frozenset[str]) -> None:
        """Note what a file or folder was found to be."""
        digests = tuple(sorted({file.digest for file in is_.files}))
        members = () if candidate.files is None else tuple(sorted(candidate.members()))
        self.verdicts[candidate.name] = Verdict(digests, members, tuple(sorted(covered)))

    def tagged(self, file: ImportedFile) -> ImportedFile:
        """Return a file known from before, with the tags that it brings."""
        checkpoint = file.checkpoint
        assert checkpoint is not None
        tagged = self._tagged(checkpoint, ())
        return replace(file, read=lambda: tagged)

    def _tagged(self, present: Checkpoint, more: tuple[str, ...]) -> Checkpoint:
        new = [tag for tag in (*self.given.tags, *more) if tag not in present.tags]
        return self.writer.tag(present, *new) if new and self.writer is not None else present

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
        read=lambda: checkpoint,
    )


def holds_weights(candidate: Candidate, sources: Mapping[str, SourceFile]) -> bool:
    """Say whether a file is a checkpoint; an optimizer's file or a random state is none.

    Raises:
        CkregError: it can't be read.
    """
    (source,) = sources.values()
    if not is_candidate(source, candidate.name):
        return False
    contents = read(source, str(candidate.path))
    return not contents.loadable or bool(find(contents.root))


def failed(
    candidate: Candidate, error: CkregError | ValueError | OSError, name: str | None = None
) -> ImportedFile:
    """Return a file that didn't go in; the reason needs no path, which stands beside it.

    Args:
        name: how to call it; by default its path inside the tree.
    """
    message, hint = (
        (error.message, error.hint) if isinstance(error, CkregError) else (str(error), None)
    )
    return ImportedFile(
        path=candidate.name if name is None else name,
        outcome="failed",
        size_bytes=candidate.size_bytes,
        reason=message.removeprefix(repr(str(candidate.path))).lstrip(": "),
        hint=hint,
    )
