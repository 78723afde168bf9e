"""Import from a tracking server: the checkpoints among its artifacts, with what it says of them.

Law: as importing.py's: a second run adds nothing, one bad artifact stops no other, the dry run
looks as the real one does. What the caller says overrides what the file says, and that overrides
what the server says; a registered model's name is what the caller would have said. An artifact that
isn't on this machine is brought to a scratch folder, one at a time. No code of the files runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final, Literal

from .. import incoming, pushes
from ..blobs import Progress, SourceFile
from ..catalog import Catalog
from ..drafting import Given
from ..errors import CkregError, NotFoundError
from ..filenames import SUFFIXES, suggested
from ..formatting import count, listed
from ..importing import ImportedFile, ImportResult, Writer, failed, holds_weights, part
from ..records import Checkpoint
from ..values import Digest, FrozenMap, model_name
from ..walking import Candidate, candidates
from . import facts
from .mlflow import MlflowStore, local_path
from .told import Registered, Tree

_MODEL_FILE: Final = "MLmodel"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What may be a checkpoint: a file or a folder of a tree, as one registered model or as none.

    Attributes:
        one_model: it is, or lies in, a folder that MLflow logged as a model.
    """

    tree: Tree
    candidate: Candidate
    model: str | None
    versions: tuple[Registered, ...]
    one_model: bool

    @property
    def label(self) -> str:
        """How a person tells it."""
        inner = "" if self.candidate.name == "." else f"/{self.candidate.name}"
        return f"{self.tree.title}{inner}"


def import_store(
    store: MlflowStore,
    given: Given,
    *,
    experiments: Collection[str],
    acc_from: str | None,
    catalog: Catalog | None,
    writer: Writer | None,
    scratch: Path,
    progress: Progress | None,
) -> ImportResult:
    """Take a store's checkpoints in; see `Registry.import_mlflow`."""
    chosen = _chosen(store.experiments(), experiments)
    trees = list(store.trees(chosen))
    artifacts = [artifact for tree in trees for artifact in _artifacts(tree)]
    job = _Job(store, given, acc_from, catalog, writer, scratch, Counter(map(_kind, artifacts)))
    done = 0
    total = sum(artifact.candidate.size_bytes for artifact in artifacts)
    files = [
        ImportedFile(path=tree.title, outcome="failed", size_bytes=0, reason=tree.missing)
        for tree in trees
        if tree.missing is not None
    ]
    remarks = _nowhere(trees)
    passed = sum(len(tree.files) for tree in trees) - len(
        {(id(a.tree), name) for a in artifacts for name in a.candidate.members()}
    )
    for artifact in artifacts:
        taken = job.covered.get((id(artifact.tree), artifact.model), set())
        if taken.issuperset(artifact.candidate.members()):
            continue  # a part of a folder that was taken, or not, as a whole
        result = job.take(artifact, part(progress, done, total))
        done += artifact.candidate.size_bytes
        if progress is not None:
            progress(done, total)
        if result is None:
            passed += 1
        else:
            files.append(result)
    return ImportResult(
        folder=store.shown,
        dry_run=writer is None,
        files=tuple(files),
        passed_over=passed,
        remarks=tuple(dict.fromkeys([*remarks, *job.remarks])),
    )


def _nowhere(trees: Sequence[Tree]) -> list[str]:
    """Say, of a store whose files were moved, where it thinks that they are."""
    runs = [tree for tree in trees if tree.run is not None and not tree.one_model]
    if not runs or any(tree.files for tree in trees):
        return []
    text = (
        f"none of {count(len(runs), 'run')} has a file where the store says, e.g. "
        f"{runs[0].uri!r}: if they were moved, put them, or a link to them, there again"
    )
    return [text]


def _chosen(there: Mapping[str, str], wanted: Collection[str]) -> dict[str, str]:
    """Return the experiments that are wanted, by id; all where none is named.

    Raises:
        NotFoundError: one isn't there.
    """
    for word in wanted:
        if word not in there and word not in there.values():
            raise NotFoundError(
                f"the store has no experiment {word!r}: it has {listed(sorted(there.values()))}",
                near=get_close_matches(word, list(there.values())),
            )
    return {id: name for id, name in there.items() if not wanted or id in wanted or name in wanted}


def _artifacts(tree: Tree) -> Iterator[Artifact]:
    """Yield what may be a checkpoint in a tree, in the order in which it is to be taken in."""
    local = local_path(tree.uri)
    stamps = {name: (0, 0, size, 0, 0) for name, size in tree.files.items()}
    models = {p.rpartition("/")[0] for p in tree.files if p.rpartition("/")[2] == _MODEL_FILE}
    for candidate in candidates(local or Path(), stamps):
        if candidate.files is None and not _may_be(candidate.name, local):
            continue
        places = {"", *_places(candidate.name)}
        by_model: dict[str | None, list[Registered]] = {}
        for place, version in tree.versions:
            if place in places:
                by_model.setdefault(version.model, []).append(version)
        for model, versions in (by_model or {None: []}).items():
            one = tree.one_model or not models.isdisjoint(places)
            yield Artifact(tree, candidate, model, tuple(versions), one)


def _places(name: str) -> list[str]:
    path = PurePosixPath(name)
    return [name, *(parent.as_posix() for parent in path.parents)]


def _may_be(name: str, local: Path | None) -> bool:
    """Say whether to look into a file: into all that is here, and else into what is named so."""
    path = PurePosixPath(name)
    if path.name == _MODEL_FILE:
        return False
    return local is not None or not path.suffix or path.suffix.lower() in SUFFIXES


def _kind(artifact: Artifact) -> tuple[str | None, bool]:
    """Return what is counted to tell the only checkpoint of a run."""
    run = artifact.tree.run
    path = PurePosixPath(artifact.candidate.name)
    named = artifact.candidate.files is not None or path.suffix.lower() in SUFFIXES
    return (None if run is None else run.id, artifact.one_model) if named else (None, False)


@dataclass(slots=True)
class _Job:
    """One import: what it was asked, and what it has taken so far.

    Attributes:
        kinds: how many artifacts a run has, models and others apart.
        covered: of each tree and model, the files of folders that were taken, or not, as a whole.
        seen: in a dry run, what came before, by model, run and digests.
        ours: what it added.
    """

    store: MlflowStore
    given: Given
    acc_from: str | None
    catalog: Catalog | None
    writer: Writer | None
    scratch: Path
    kinds: Counter[tuple[str | None, bool]]
    covered: dict[tuple[int, str | None], set[str]] = field(default_factory=dict)
    seen: dict[tuple[object, ...], str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def take(self, artifact: Artifact, progress: Progress | None) -> ImportedFile | None:
        """Take one artifact in, or say what would become of it; None for what is no checkpoint."""
        with TemporaryDirectory(dir=self.scratch) as place:
            candidate = artifact.candidate
            try:
                path = self.store.fetch(artifact.tree, candidate.name, Path(place))
                candidate = replace(candidate, path=path)
                looked = self._look(artifact, candidate)
            except (CkregError, ValueError, OSError) as error:
                return failed(candidate, error, artifact.label)
            if not isinstance(looked, _Ready) or self.writer is None:
                return None if isinstance(looked, _Ready) else looked
            # a registry that takes nothing ends the import
            self.catalog = self.writer.open()[1]
            try:
                checkpoint = pushes.push(
                    path, looked.given, None, self.writer.open,
                    move=False, progress=progress, named=looked.named,
                )  # fmt: skip
            except (CkregError, ValueError, OSError) as error:
                return failed(candidate, error, artifact.label)
            self.remarks += looked.left_out
            return self._result(artifact, "added", checkpoint)

    def _look(self, artifact: Artifact, candidate: Candidate) -> ImportedFile | _Ready | None:
        """Return what is to be pushed; or, where nothing is, what became of it.

        Raises:
            CkregError, ValueError: it can't be taken in.
        """
        path = candidate.path
        covered = self.covered.setdefault((id(artifact.tree), artifact.model), set())
        with ExitStack() as stack:
            sources = incoming.sources_of(path, stack)
            if candidate.files is None and not holds_weights(candidate, sources):
                return None
            named = self._named(artifact)
            asked = replace(self.given, model=self.given.model or self._model(artifact))
            try:
                found = pushes.examine(sources, path, asked, named)
            except CkregError:
                if candidate.files is not None:  # its parts are no checkpoints either
                    covered.update(candidate.members())
                raise
            mine = incoming.belonging(sources, found.contents)
            if candidate.files is not None:
                inside = "" if candidate.name == "." else f"{candidate.name}/"
                covered.update(inside + name for name in mine)
            sources = {name: sources[name] for name in sorted(mine)}
            ready = self._said(artifact, asked, named, found)
            digests = self._digests(sources)
            present = self._present(ready, found.known.model, digests)
            if present is not None:
                return self._result(artifact, "present", present)
            if self.writer is not None:
                return ready
            found = pushes.examine(sources, path, ready.given, ready.named)
        run = found.known.run
        key = (found.known.model, found.known.dataset, run and run.id, *digests)
        before = self.seen.setdefault(key, artifact.label)
        copy_of = before if before != artifact.label else None
        if copy_of is None:
            self.remarks += ready.left_out
        return ImportedFile(
            path=artifact.label,
            outcome="present" if copy_of else "added",
            size_bytes=candidate.size_bytes,
            known=found.known,
            guessed=found.from_name,
            copy_of=copy_of,
        )

    def _model(self, artifact: Artifact) -> str | None:
        """Return a registered model's name as a name here."""
        if artifact.model is None:
            return None
        return _name(artifact.model)

    def _named(self, artifact: Artifact) -> Given:
        """Return what the names say, the experiment's being the model's last resort."""
        run = artifact.tree.run
        experiment = artifact.tree.title.split("/")[0] if run is None else run.experiment
        name = artifact.candidate.name
        parts = [] if name == "." else list(PurePosixPath(name).parts)
        said = suggested([experiment, *(parts or ["model"])], folder=not parts)
        return replace(said, model=_name(experiment))

    def _said(
        self, artifact: Artifact, asked: Given, named: Given, found: pushes.Examined
    ) -> _Ready:
        """Return what the server's word adds to what the caller and the file say."""
        tree, known = artifact.tree, found.known
        run = tree.run
        said = facts.metrics_of(
            replace(tree, one_model=artifact.one_model),
            epoch=known.epoch,
            step=known.step,
            only=self.kinds[_kind(artifact)] == 1,
            best="best" in PurePosixPath(artifact.candidate.name).name.lower(),
        )
        own = {k: v for k, v in known.metrics.items() if f"metrics.{k}" not in found.from_name}
        for name, value in said.metrics.items():
            if own.get(name, value) != value:
                said.left_out.append(
                    f"the metric {name!r} is {own[name]!r} in the file and {value!r} in the store: "
                    "the file's is taken"
                )
        for values in (said.metrics, said.inferred):
            if self.acc_from in values:
                values.setdefault("acc", values[self.acc_from])
        exact = {k: v for k, v in said.metrics.items() if k not in own}
        # what the file's own name says is as good as a guess, and nearer
        guessed = {**said.inferred, **named.metrics}
        inferred = {k: v for k, v in guessed.items() if k not in own and k not in exact}
        given, left = facts.marks(asked, artifact.versions, run)
        timeless = known.step is None and known.epoch is None
        given = replace(
            given,
            dataset=known.dataset or (None if run is None else run.dataset),
            metrics=FrozenMap(exact),
            step=tree.step if timeless else asked.step,
        )
        more: list[str] = []
        if known.run is None and run is not None:
            whose, more = facts.run_of(run, str(known.model), given.dataset)
            given = replace(given, run=whose, config=known.config or whose.config)
        elif known.run is not None:
            given = replace(given, run=known.run)
        texts = [f"{artifact.label}: {text}" for text in (*said.left_out, *left.left_out, *more)]
        return _Ready(given, replace(named, metrics=FrozenMap(inferred)), texts)

    def _digests(self, sources: Mapping[str, SourceFile]) -> tuple[Digest, ...]:
        """Return the digests of a checkpoint's files, where they may be told from others by them:
        in a dry run, and where all of them may be here already.
        """
        files, catalog = sources.values(), self.catalog
        if self.writer is not None and (
            catalog is None or not all(catalog.has_probe(file.probe()) for file in files)
        ):
            return ()
        return tuple(file.hash() for file in files)

    def _present(
        self, ready: _Ready, model: str | None, digests: Sequence[Digest]
    ) -> Checkpoint | None:
        """Return the checkpoint of that run, model and dataset that has these bytes."""
        if self.catalog is None or not digests:
            return None
        run, dataset = ready.given.run, ready.given.dataset
        ids = {None} if run is None else facts.run_ids(run)
        for there in self.catalog.holding(digests):
            id = None if there.run is None else there.run.id
            if (there.model, there.dataset) == (model, dataset) and id in ids:
                return there
        return None

    def _result(
        self, artifact: Artifact, outcome: Literal["added", "present"], is_: Checkpoint
    ) -> ImportedFile:
        if outcome == "present" and self.writer is not None:
            marked, _ = facts.marks(self.given, artifact.versions, artifact.tree.run)
            new = [tag for tag in marked.tags if tag not in is_.tags]
            is_ = self.writer.tag(is_, *new) if new else is_
        size_bytes = artifact.candidate.size_bytes
        return ImportedFile(
            path=artifact.label, outcome=outcome, size_bytes=size_bytes, read=lambda: is_
        )


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is to be pushed: what is said of it, what is inferred, and what is left out."""

    given: Given
    named: Given
    left_out: list[str]


def _name(name: str) -> str | None:
    """Return a name of the server's as one here, with what can't be in it replaced."""
    try:
        return model_name(name)
    except ValueError:
        return suggested([name], folder=True).model
