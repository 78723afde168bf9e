"""The blob store: immutable files named by their digests, and the records beside them.

Owns the contract of every store, `BlobStore`, the one in a folder, `LocalStore`, and the one in a
bucket, `ObjectStore`. Must not know the database, nor what the bytes mean.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..values import CheckpointId

if TYPE_CHECKING:
    from .blob import Blob
    from .folders import Place
    from .listing import StoredFile
    from .local import LocalStore
    from .marker import SHARDS
    from .objects import ObjectStore
    from .ranges import Index, Range, read_through
    from .reading import BlobFile, FileBytes, Progress, SourceFile, Total, probe_of
    from .staging import Staged

__all__ = [
    "BlobStore",
    "LocalStore",
    "ObjectStore",
    "Blob",
    "BlobFile",
    "FileBytes",
    "SourceFile",
    "Staged",
    "StoredFile",
    "SHARDS",
    "Place",
    "Index",
    "Range",
    "read_through",
    "probe_of",
    "Progress",
    "Total",
]


_HOMES: Final = {
    "Blob": "blob",
    "Place": "folders",
    "StoredFile": "listing",
    "LocalStore": "local",
    "SHARDS": "marker",
    "ObjectStore": "objects",
    **dict.fromkeys(("Index", "Range", "read_through"), "ranges"),
    **dict.fromkeys(
        ("BlobFile", "FileBytes", "Progress", "SourceFile", "Total", "probe_of"), "reading"
    ),
    "Staged": "staging",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use (PEP 562): the catalog names blobs, and opens none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


class BlobStore(Protocol):
    """What keeps the bytes.

    Laws, for every store:
    1. What `publish`, `put_bytes` or `put_record` returned from is whole and on the medium: it
       outlives a power cut that comes the next instant. A failed sync is final: never retried,
       never success.
    2. A blob's digest is of the bytes that were stored, read back, never of those meant to be.
    3. A name is given once. After that a blob's bytes never change; they are only removed, whole,
       and a mapping made before stays valid.
    4. Two that publish the same bytes get two blobs; the database decides which a row refers to.
    5. On any way out of a failure, an interrupt too, no temporary file is left. Those of a killed
       writer go with the next `sweep`; those of a living one never do.
    6. A byte that differs from what was stored is reported, never handed out as good.
    7. Every error is a CkregError that names the place; a ValueError is a wrong call.
    """

    @property
    def id(self) -> str:
        """The store's id, the same in a copy of it."""
        ...

    def check_writable(self) -> None:
        """See that a checkpoint could be stored now."""
        ...

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        ...

    def owns(self, path: Path) -> bool:
        """Say whether a path leads to a file of the store's own, or to a folder around them."""
        ...

    def stage(self, *, expect_bytes: int | None = None) -> Staged:
        """Return a new file to write, to be used in a `with` block."""
        ...

    def stage_file(
        self,
        source: Path | SourceFile,
        *,
        storages: Iterable[tuple[int, int]] = (),
        progress: Progress | None = None,
    ) -> Staged:
        """Return a staged copy of a file that didn't change meanwhile."""
        ...

    def publish(self, staged: Staged) -> Blob:
        """Make a staged file a blob."""
        ...

    def put_bytes(self, data: bytes) -> Blob:
        """Store a small blob."""
        ...

    def holds(self, blob: Blob) -> bool:
        """Say whether a blob's file is there, with its size."""
        ...

    def drop(self, blob: Blob) -> None:
        """Remove a blob that no row refers to and none can begin to."""
        ...

    def keep_folder(self, blobs: Mapping[str, Blob]) -> Path | None:
        """Move blobs that no row refers to into a folder that can be pushed, and return it; None
        where the store can't, and they stay.
        """
        ...

    def open_blob(self, blob: Blob, *, cached: bool = True) -> BlobFile:
        """Open a blob, to be read in a `with` block.

        Args:
            cached: False reads the store's own bytes, whatever a cache holds of them.
        """
        ...

    def pull(
        self, blob: Blob, dest: Path, *, force: bool = False, progress: Progress | None = None
    ) -> None:
        """Write a blob's bytes to a path outside the store, verified on the way."""
        ...

    def pull_folder(
        self,
        blobs: Mapping[str, Blob],
        dest: Path,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write blobs as the files of a folder, verified on the way, all or none."""
        ...

    def produce(
        self, dest: Path, fill: Callable[[Staged], None], *, force: bool = False, expect_bytes: int
    ) -> None:
        """Write a file that isn't a blob's to a path outside the store, as `pull` would."""
        ...

    def produce_folder(
        self,
        dest: Path,
        fill: Callable[[Place], None],
        *,
        replaceable: Callable[[str], bool] | None = None,
        expect_bytes: int,
    ) -> None:
        """Write a folder of files to a path outside the store, all of them or none."""
        ...

    def put_record(self, id: str, text: str) -> None:
        """Write a checkpoint's record, in place of the one before."""
        ...

    def read_record(self, id: str) -> str:
        """Return a checkpoint's record."""
        ...

    def records(self) -> Iterator[CheckpointId]:
        """Yield the ids of all records."""
        ...

    def record_time(self, id: str) -> float | None:
        """Return when a checkpoint's record was last written, by the store's clock, or None."""
        ...

    def check_marker(self) -> None:
        """See that this is still the store that was opened."""
        ...

    def clock(self) -> float:
        """Return the present as the store has it, in seconds: never this machine's."""
        ...

    def files(self, shard: str) -> list[StoredFile]:
        """Return what lies in one of the folders of blobs/, by name."""
        ...

    def walk(self) -> Iterator[tuple[str, list[StoredFile]]]:
        """Yield each of those folders with what lay in it at some time since the call, in order."""
        ...

    def strays(self) -> list[StoredFile]:
        """Return what lies beside those folders."""
        ...

    def lacking(self) -> list[str]:
        """Return which of those folders aren't there."""
        ...

    def protect(self, name: str) -> None:
        """Take a blob's write permissions away."""
        ...

    def set_aside(self, *below: str) -> str:
        """Move what lies in the store to where nothing looks, and return its new place."""
        ...

    def kept(self) -> list[Path]:
        """Return the files and folders of saves that couldn't be committed, to be pushed."""
        ...

    def leftovers(self) -> list[StoredFile]:
        """Return what the next `sweep` takes."""
        ...

    def sweep(self) -> int:
        """Remove what killed writers left, and return how many files that was."""
        ...


if TYPE_CHECKING:

    def _keeps_the_contract(store: LocalStore | ObjectStore) -> BlobStore:
        return store
