"""What lies in a store, as the file system tells of it: for verify, which reads it, and for gc.

Law: looking changes nothing, follows no symlink and takes a vanished file for one that was never
there; time is the store's own, never this machine's. Must not know who refers to a blob.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import NotFoundError
from ..values import Digest
from .blob import Blob
from .disk import NOFOLLOW, folder, translated, try_lock
from .marker import SHARDS
from .staging import TEMPORARY, Staged

_BLOB = re.compile(r"[0-9a-f]{62}\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One name in a store's folder.

    Attributes:
        name: below the store's `blobs/` or `tmp/`.
        modified_at: seconds, by the store's clock.
        links: how many names the file has.
        regular: whether it is a file, not a folder, a symlink, a device.
        writable: whether its mode lets anybody write.
    """

    name: str
    size_bytes: int
    modified_at: float
    links: int = 1
    regular: bool = True
    writable: bool = False

    @property
    def blob(self) -> Blob | None:
        """The blob that it is by its name; None for one that no store wrote."""
        shard, _, file = self.name.partition("/")
        if not self.regular or shard not in SHARDS or not _BLOB.fullmatch(file):
            return None
        return Blob(Digest(f"blake3:{shard}{file[:62]}"), self.size_bytes, self.name)


def shard(root: Path, name: str) -> list[StoredFile]:
    """Return what lies in one of the 256 folders of blobs/, sorted; none where the folder isn't."""
    try:
        return list(_in(root, "blobs", name, prefix=f"{name}/"))
    except NotFoundError:
        return []


def joined(
    walk: Iterable[tuple[str, list[StoredFile]]], least: int
) -> Iterator[list[tuple[str, list[StoredFile]]]]:
    """Yield the folders of a walk, as many at once as hold so many files: a small store is one."""
    found: list[tuple[str, list[StoredFile]]] = []
    for one in walk:
        found.append(one)
        if sum(len(files) for _, files in found) >= least:
            yield found
            found = []
    if found:
        yield found


def strays(root: Path) -> list[StoredFile]:
    """Return what lies in blobs/ itself beside the 256 folders."""
    return [f for f in _in(root, "blobs") if f.name not in SHARDS]


def lacking(root: Path) -> list[str]:
    """Return which of the 256 folders aren't there."""
    there = {f.name for f in _in(root, "blobs") if not f.regular}
    return [name for name in SHARDS if name not in there]


def leftovers(root: Path) -> list[StoredFile]:
    """Return the temporary files whose writers are gone; the next sweep takes them."""
    found = [f for f in _in(root, "tmp") if f.regular and TEMPORARY.fullmatch(f.name)]
    with folder(root, "tmp") as dir_fd:
        return [f for f in found if _is_free(f.name, dir_fd)]


def clock(root: Path) -> float:
    """Return the present, in seconds, as the store's file system has it: of a file made now."""
    with Staged(root, "tmp") as staged, translated("look at", staged.path):
        staged.write(b"\0")
        staged.finish()
        return os.fstat(staged.fd).st_mtime


def _in(root: Path, *below: str, prefix: str = "") -> Iterator[StoredFile]:
    with folder(root, *below) as dir_fd:
        with translated("list", root.joinpath(*below)):
            names = sorted(os.listdir(dir_fd))
        for name in names:
            try:
                with translated("look at", root.joinpath(*below, name)):
                    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except NotFoundError:
                continue
            yield StoredFile(
                prefix + name,
                found.st_size,
                found.st_mtime,
                found.st_nlink,
                stat.S_ISREG(found.st_mode),
                bool(found.st_mode & 0o222),
            )


def _is_free(name: str, dir_fd: int) -> bool:
    """Say whether no writer holds a temporary file. One that begins just now takes another name."""
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | NOFOLLOW, dir_fd=dir_fd)
        try:
            return try_lock(fd)
        finally:
            os.close(fd)
    return False
