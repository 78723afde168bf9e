"""gc: which bytes nothing needs any more, found and then taken.

Law: what goes was removed, or never had a row, for the whole grace time by the store's clock, and
that is seen again under the writers' lock before it goes. The row goes first and is committed, then
the file: a crash between leaves a file without a row, which a later gc takes. Where the store or
the database may be the wrong one, nothing goes.

    removed checkpoint  --retire-->  its rows in files go, it is marked collected
    blob without files  --forget-->  its row goes, then its file
    file without a row  ---------->  goes while the lock keeps commits out
    tmp/ file, unlocked ---------->  goes at once
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from .blobs import SHARDS, Blob, BlobStore, Progress, StoredFile, Total
from .blobs.listing import joined
from .catalog import Catalog, Removed, Upkeep, portions
from .commits import write_record
from .errors import CkregError, DamagedError
from .values import FORMAT, time_text

GRACE: Final = timedelta(days=14)
"""How long removed bytes, and files without a row, are kept."""

LEAST: Final = timedelta(hours=1)
"""How long a file without a row is kept at least: it may be a push's that is about to commit."""

BATCH: Final = 100
"""How many go in one transaction, so that no writer waits long."""

_AT_ONCE: Final = 1000  # files whose rows are looked up in one transaction
_MANY: Final = 10
_PART: Final = 0.1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What gc would take, or took.

    Attributes:
        checkpoints: removed ones; `restore` can't bring them back afterwards.
        blobs: what no other checkpoint needs; their rows go, then their files.
        orphans: files without a row, as a crash or a failed push leaves them.
        leftovers: temporary files of killed writers.
        spared: how many would go if they weren't so new.
        done: False for a dry run.
    """

    grace: timedelta
    checkpoints: tuple[Removed, ...]
    blobs: tuple[Blob, ...]
    orphans: tuple[Blob, ...]
    leftovers: tuple[StoredFile, ...]
    spared: int
    done: bool = False

    @property
    def size_bytes(self) -> int:
        """The bytes that are free afterwards."""
        blobs = sum(blob.size_bytes for blob in (*self.blobs, *self.orphans))
        return blobs + sum(file.size_bytes for file in self.leftovers)

    def __bool__(self) -> bool:
        return bool(self.checkpoints or self.blobs or self.orphans or self.leftovers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "done": self.done,
            "grace_s": self.grace.total_seconds(),
            "size_bytes": self.size_bytes,
            "checkpoints": [
                {
                    "id": one.id,
                    "ref": one.ref,
                    "removed_at": time_text(one.removed_at),
                    "size_bytes": one.size_bytes,
                }
                for one in self.checkpoints
            ],
            **{
                name: [{"name": b.name, "size_bytes": b.size_bytes} for b in found]
                for name, found in (
                    ("blobs", self.blobs), ("orphans", self.orphans),
                    ("leftovers", self.leftovers),
                )
            },
            "spared": self.spared,
        }  # fmt: skip


def _files(found: Sequence[Blob | StoredFile]) -> list[dict[str, object]]:
    return [{"name": file.name, "size_bytes": file.size_bytes} for file in found]


# --- the plan -------------------------------------------------------------------------------------


def plan(
    store: BlobStore, upkeep: Upkeep, grace: timedelta, *, progress: Progress | None = None
) -> GcPlan:
    """Return what may go now.

    Args:
        progress: told of steps: the store's folders, and the removed checkpoints.

    Raises:
        NotFoundError, ConflictError: the store's marker is missing, or another store's.
        DamagedError: many blobs are missing, or the database lacks checkpoints that records/ has:
            perhaps one of the two is not the right one.
    """
    store.check_marker()
    upkeep.check(store.id)
    _check_database(store, upkeep)
    at = datetime.fromtimestamp(store.clock(), UTC)
    removed = upkeep.removed()
    steps = Total(len(SHARDS) + len(removed), progress)
    orphans, young = _orphans(store, upkeep, at - max(grace, LEAST), steps)
    old = [one for one in _counted(removed, steps) if _since(store, one) <= at - grace]
    return GcPlan(
        grace,
        tuple(old),
        tuple(upkeep.unneeded([one.id for one in old])),
        tuple(orphans),
        tuple(store.leftovers()),
        young + len(removed) - len(old),
    )


def _check_database(store: BlobStore, upkeep: Upkeep) -> None:
    """Refuse a database that is damaged, or older than the records.

    What it doesn't know would look unneeded.

    Rows are asked for after the records were listed, and a row comes before its record.
    """
    wrong = upkeep.integrity()  # a damaged reference would make what is needed look unneeded
    if wrong:
        raise DamagedError(
            f"the database is damaged: {wrong[0]}. Nothing was removed", hint="see: ckreg verify"
        )
    lost = upkeep.unknown(store.records())
    if lost:
        raise DamagedError(
            f"records/ holds {len(lost)} checkpoints that the database doesn't know, one is "
            f"{lost[0]}: perhaps it is an older copy. Nothing was removed",
            hint="see: ckreg verify; to bring them back: ckreg verify --repair",
        )


def _orphans(
    store: BlobStore, upkeep: Upkeep, before: datetime, steps: Total
) -> tuple[list[Blob], int]:
    """Return the files without a row that are older than a time, and how many are younger.

    Raises:
        DamagedError: many blobs are missing.
    """
    found: list[Blob] = []
    rows = missing = young = 0
    for files, named in _with_rows(store, upkeep, steps):
        there = {file.name for file in files}
        rows += len(named)
        gone = {b.digest for n, b in named.items() if n not in there and not store.holds(b)}
        missing += len(gone)
        for file in files:
            blob = file.blob
            if blob is None or file.name in named:
                continue
            # Where a row's own file is missing, another one with its digest may be all there is
            if file.modified_at < before.timestamp() and blob.digest not in gone:
                found.append(blob)
            else:
                young += 1
    if missing > _MANY and missing > _PART * rows:
        raise DamagedError(
            f"{missing} of {rows} blobs are missing from {store.location!r}: perhaps the right "
            "disk isn't mounted there. Nothing was removed",
            hint="see: ckreg verify",
        )
    return found, young


def _counted(items: Iterable[_T], steps: Total) -> Iterator[_T]:
    """Yield items, and count each as a step once it is done with."""
    for item in items:
        yield item
        shown = steps.next(1)
        if shown is not None:
            shown(1, 1)


def _with_rows(
    store: BlobStore, upkeep: Upkeep, steps: Total
) -> Iterator[tuple[list[StoredFile], dict[str, Blob]]]:
    """Yield the files of each of the store's folders, and the rows that were there after these were
    listed: what is committed between is no orphan.
    """
    for part in joined(_counted(store.walk(), steps), _AT_ONCE):
        rows = upkeep.blobs_in([shard for shard, _ in part])
        for (_, files), named in zip(part, rows, strict=True):
            yield files, named


def _since(store: BlobStore, one: Removed) -> datetime:
    """Return when a checkpoint was removed, by the store's clock or the remover's: the later.

    A checkpoint whose record doesn't call it removed stays: the row may be damaged.
    """
    never = datetime.max.replace(tzinfo=UTC)
    try:
        written = store.record_time(one.id)
        said = json.loads(store.read_record(one.id))["checkpoint"]["removed_at"]
    except (CkregError, ValueError, KeyError, TypeError):
        return never
    if written is None or said != time_text(one.removed_at):
        return never
    return max(one.removed_at, datetime.fromtimestamp(written, UTC))


# --- taking ---------------------------------------------------------------------------------------


def collect(
    store: BlobStore,
    catalog: Catalog,
    upkeep: Upkeep,
    plan: GcPlan,
    *,
    progress: Progress | None = None,
) -> GcPlan:
    """Take what a plan names, as far as it may still go, and return what went.

    Args:
        progress: told of steps: the checkpoints, and the files.

    Raises:
        NotFoundError, ConflictError: the store's marker is missing, or another store's.
        NotWritableError: a file can't be removed; its row is gone, and a later gc takes it.
    """
    upkeep.adopt(store.id)
    steps = Total(len(plan.checkpoints) + len(plan.blobs) + len(plan.orphans), progress)
    retired: list[Removed] = []
    for some in portions(plan.checkpoints, BATCH):
        store.check_marker()
        gone = upkeep.retire(some)
        for one in _counted(gone, steps):
            write_record(store, catalog, one.id)
        retired += gone
    forgotten: list[Blob] = []
    for part in portions(plan.blobs, BATCH):
        store.check_marker()
        # Row first, committed, then the file: the other way round a crash would leave a row
        # without bytes. Nobody can take the name up again: it was random, and given once.
        for blob in _counted(upkeep.forget([blob.digest for blob in part]), steps):
            store.drop(blob)
            forgotten.append(blob)
    orphans: list[Blob] = []
    for part in portions(plan.orphans, BATCH):
        store.check_marker()
        orphans += _counted(upkeep.drop_orphans(part, store.drop), steps)
    store.sweep()
    return replace(
        plan,
        checkpoints=tuple(retired),
        blobs=tuple(forgotten),
        orphans=tuple(orphans),
        done=True,
    )
