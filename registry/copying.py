"""Copying a registry to another place: what is there already is passed over, so that a copy that
was cut off goes on, and one that is done again brings what is new.

Law: ids, versions and all that is recorded stay the same, and nothing at the source is touched. A
blob's bytes are hashed as they are stored, and on the medium before a row names them; a checkpoint
whose bytes are damaged is named and left out, and the rest goes on. Of two states the source's
wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from .blobs import Blob, BlobStore
from .catalog import (
    Arrival,
    Arrivals,
    Catalog,
    Gone,
    Inventory,
    Listed,
    ModelFacts,
    Upkeep,
    Whole,
    parse_whole,
)
from .commits import write_record
from .errors import CkregError, ConflictError, DamagedError, NotFoundError
from .postgres import Lost
from .schema import Transactions
from .values import FORMAT, CheckpointId, Digest, canonical_json

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class End:
    """One of the two registries."""

    store: BlobStore
    catalog: Catalog
    database: Transactions


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that wasn't copied.

    Attributes:
        what: a checkpoint's ref, `MODEL@ALIAS`, or a run.
    """

    what: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    Attributes:
        source, destination: the two places.
        checkpoints: how many came to the destination now.
        present: how many were there already, just so.
        updated: refs of those that were there, and are now as at the source.
        runs: how many runs came, those without checkpoints too.
        blobs, size_bytes: the files that were copied, indexes among them.
        left_out: what wasn't copied, and why.
    """

    source: str
    destination: str
    checkpoints: int
    present: int
    updated: tuple[str, ...]
    models: int
    runs: int
    blobs: int
    size_bytes: int
    left_out: tuple[LeftOut, ...]

    @property
    def ok(self) -> bool:
        """Whether all is at the destination now."""
        return not self.left_out

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "source": self.source,
            "destination": self.destination,
            "checkpoints": self.checkpoints,
            "present": self.present,
            "updated": list(self.updated),
            "models": self.models,
            "runs": self.runs,
            "blobs": self.blobs,
            "size_bytes": self.size_bytes,
            "left_out": [
                {"what": one.what, "reason": one.reason, "hint": one.hint} for one in self.left_out
            ],
        }


def copy(source: End, target: End, *, progress: Progress | None = None) -> Copied:
    """Copy all that a registry holds to another one, which may be empty, or an earlier copy of it.

    Args:
        progress: called with the bytes that are at the target, and those in all.

    Raises:
        ConflictError: both are one registry; or the target has other checkpoints or runs in the
            place of some of the source's. Nothing was copied.
        CkregError: the target failed. What is there stays, and the next copy goes on.
    """
    source.store.check_marker()
    Upkeep(source.database).check(source.store.id)
    if source.store.id == target.store.id:
        raise ConflictError(
            f"{source.catalog.location!r} and {target.catalog.location!r} are one registry: their "
            f"stores have one id, {target.store.id[:8]}",
            hint="name a place that holds nothing yet, or an earlier copy made by ckreg copy",
        )
    held = Inventory(source.database)
    there = Arrivals(target.database)
    known = held.models()
    _check(held, there, known)
    work = _Work(source, target, held, there, source.catalog.stored()[1], progress)
    for facts in known:
        work.model(facts)
    return work.copied(len(known))


def _check(held: Inventory, there: Arrivals, known: Sequence[ModelFacts]) -> None:
    """Refuse a target that holds something else.

    Raises:
        ConflictError: it does.
    """
    for facts in known:
        clashes = [text for page in _pages(held, facts.name) for text in there.clashes(facts, page)]
        clashes += there.run_clashes(held.runs(facts.name)[0])
        if clashes:
            more = f" (and {len(clashes) - 1} more)" if len(clashes) > 1 else ""
            raise ConflictError(
                f"the destination holds something else: {clashes[0]}{more}. Nothing was copied",
                hint="copy to a place of its own; checkpoints are added one by one with: "
                "ckreg pull, ckreg push",
            )


def _pages(held: Inventory, model: str, *, removed: bool = False) -> Iterator[list[Listed]]:
    after = 0
    while page := held.page(model, after=after, removed=removed):
        yield page
        after = page[-1].version


@dataclass(slots=True)
class _Work:
    """A copy under way, and the counts of what is done."""

    source: End
    target: End
    held: Inventory
    there: Arrivals
    total: int
    progress: Progress | None
    checkpoints: int = 0
    present: int = 0
    updated: list[str] = field(default_factory=list)
    runs: int = 0
    blobs: int = 0
    size_bytes: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    seen: set[Digest] = field(default_factory=set)
    done: int = 0

    def copied(self, models: int) -> Copied:
        """Return what was done."""
        return Copied(
            self.source.catalog.location,
            self.target.catalog.location,
            self.checkpoints,
            self.present,
            tuple(self.updated),
            models,
            self.runs,
            self.blobs,
            self.size_bytes,
            tuple(self.left_out),
        )

    def model(self, facts: ModelFacts) -> None:
        """Copy a model: its counter and monitor, runs, checkpoints by version, aliases."""
        runs, damaged = self.held.runs(facts.name)
        for id, reason in damaged.items():
            self.left_out.append(LeftOut(f"run {id}", reason))
        self.runs += self.there.put_model(facts, runs)
        upkeep = Upkeep(self.target.database)
        # What was removed goes first: its twin, restored or pushed since, may be live only then.
        done: set[CheckpointId] = set()
        for page in _pages(self.held, facts.name, removed=True):
            new = upkeep.unknown(one.id for one in page)
            for one in page:
                if one.id not in new:
                    self._one(one, new=False)
                    done.add(one.id)
        for page in _pages(self.held, facts.name):
            new = upkeep.unknown(one.id for one in page)
            for one in page:
                if one.id not in done:
                    self._one(one, new=one.id in new)
        changed, left = self.there.put_moves(facts.name, self.held.moves(facts.name))
        for id in changed:
            write_record(self.target.store, self.target.catalog, id)
        for name in left:
            reason = "a checkpoint that it pointed at isn't there"
            self.left_out.append(LeftOut(f"{facts.name}@{name}", reason))

    # --- one checkpoint ------------------------------------------------------------------------

    def _one(self, one: Listed, *, new: bool) -> None:
        """Copy a checkpoint, or bring the one that is there up to date."""
        try:
            whole = self._read(one.id)
            if not new and self._is_there(whole):
                self.present += 1
                return
            try:
                self._put(whole)
            except (_AtSourceError, Gone) as error:
                # Other files of the same bytes may have taken the place of these, on either side
                again = self._read(one.id)
                if again.files == whole.files and isinstance(error, _AtSourceError):
                    raise
                self._put(again)
        except _AtSourceError as error:
            self.left_out.append(LeftOut(one.ref, error.known.message, error.known.hint))
        else:
            if new:
                self.checkpoints += 1
            else:
                self.updated.append(one.ref)

    def _read(self, id: CheckpointId) -> Whole:
        with _reading():
            return parse_whole(canonical_json(self.source.catalog.whole(id)))

    def _is_there(self, whole: Whole) -> bool:
        """Say whether a checkpoint is there as it is here; then its record is too."""
        store, catalog, id = self.target.store, self.target.catalog, whole.checkpoint.id
        now = catalog.whole(id)
        if _facts(now) != _facts(whole.plain):
            return False
        for _, blob, index, _ in whole.files:
            self._show(blob, index)
        text = None
        with suppress(NotFoundError, DamagedError):
            text = store.read_record(id)
        if text != canonical_json(now):  # killed between the two
            write_record(store, catalog, id)
        return True

    def _put(self, whole: Whole) -> None:
        """Copy the bytes that aren't there, then make the rows, then write the record."""
        store, catalog, id = self.target.store, self.target.catalog, whole.checkpoint.id
        found: dict[Digest, Blob] = {}
        ours: list[Blob] = []
        try:
            needed = {b.digest: b for _, *both, _ in whole.files for b in both if b is not None}
            known = self.there.blobs(list(needed))
            for digest, blob in needed.items():
                there = known.get(digest)
                if there is None or not store.holds(there):
                    there = self._copy(blob, self.done + sum(b.size_bytes for b in ours))
                    ours.append(there)
                found[digest] = there
            files = tuple(
                (name, found[blob.digest], None if index is None else found[index.digest], probe)
                for name, blob, index, probe in whole.files
            )
            borrowed = frozenset(b.name for b in found.values()) - {b.name for b in ours}
            arrival = Arrival(whole=replace(whole, files=files), borrowed=borrowed)
            unused = self.there.put(arrival, store.holds)
        except Lost:  # the rows may be there: what they don't name, gc takes
            raise
        except BaseException:
            self._drop(ours)
            raise
        self.blobs += len(ours)
        self.size_bytes += sum(blob.size_bytes for blob in ours)
        self._show(*found.values())
        self._drop(unused)
        if _facts(catalog.whole(id)) != _facts(whole.plain):
            raise DamagedError(
                f"{whole.checkpoint.ref} reads back as another checkpoint from {catalog.location!r}"
            )
        write_record(store, catalog, id)

    def _copy(self, blob: Blob, before: int) -> Blob:
        """Copy a blob's bytes, and see that what was stored has their digest.

        Args:
            before: the bytes that are there already.
        """
        target = self.target.store
        with _reading():
            file = self.source.store.open_blob(blob, cached=False)
        with file, target.stage(expect_bytes=blob.size_bytes) as staged:

            def show(done: int, total: int) -> None:
                if self.progress is not None:
                    self.progress(min(before + done, self.total), self.total)

            with _reading():
                staged.copy(file, progress=show)
            if staged.finish() != blob.digest:
                with _reading():
                    file.verify()
                raise DamagedError(
                    f"what was stored at {target.location!r} isn't what was read: the bytes of "
                    f"{blob.digest} have the digest {staged.finish()} there"
                )
            return target.publish(staged)

    def _show(self, *blobs: Blob | None) -> None:
        """Count bytes that are there now, each digest once."""
        for blob in blobs:
            if blob is not None and blob.digest not in self.seen:
                self.seen.add(blob.digest)
                self.done += blob.size_bytes
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def _drop(self, blobs: Sequence[Blob]) -> None:
        """Drop blobs that no row names; where the database won't say, they stay for gc."""
        with suppress(CkregError):
            named = self.target.catalog.names_of(blobs) if blobs else set()
            for blob in blobs:
                if blob.name not in named:
                    self.target.store.drop(blob)


class _AtSourceError(Exception):
    """Something at the source is damaged or gone: one checkpoint is left out, the rest goes on."""

    def __init__(self, known: CkregError) -> None:
        super().__init__(str(known))
        self.known = known


@contextmanager
def _reading() -> Iterator[None]:
    """Tell the damage at the source from all that the target may say."""
    try:
        yield
    except (DamagedError, NotFoundError) as error:
        raise _AtSourceError(error) from error


def _facts(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a copy has in common with its source: all but the names of files in the store.

    And but for aliases, whose moves are compared one by one; a signature is known by its digest.
    """
    facts = {name: plain[name] for name in plain if name not in ("seal", "moves")}
    facts["checkpoint"] = {k: v for k, v in plain["checkpoint"].items() if k != "aliases"}
    facts["signatures"] = [one["digest"] for one in plain["signatures"]]
    facts["blobs"] = [
        (one["file"], one["blob"]["digest"], one["index"] and one["index"]["digest"])
        for one in plain["blobs"]
    ]
    return facts
