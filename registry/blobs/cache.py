"""The read-through cache: bytes of remote blobs on this machine's disk, whole or in part.

    $CKREG_CACHE                  default ~/.cache/ckreg; 0700
      ab/cdef…                    a blob by its digest: a sparse file with the ranges that came
      ab/cdef….have               those ranges, one a line: offset and size
      tmp/<uuid>                  being written on its way to a store, or out of one
      imports/…                   what trees held, of registries on a server (sightings.py)

Law: a range is named in `.have` only after it was verified, and written while its file is locked,
so that of many readers one downloads. Room is made by unlink alone, the least recently used first:
whoever has a file open or mapped keeps it. Must not know where the bytes come from.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ..values import Digest
from . import staging
from .disk import (
    NOFOLLOW,
    check_space,
    folder,
    make_folder,
    translated,
    try_lock,
    unlock,
    wait_for_lock,
)
from .marker import SHARDS

_PART_OF_DISK: Final = 5  # the cache takes up to a fifth of its disk

Span = tuple[int, int]
"""An offset, and how many bytes from there on."""


def place() -> Path:
    """Return where the environment says that the cache is; it may not be there yet."""
    named = os.environ.get("CKREG_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache")
    found = Path(named) if named else Path(base, "ckreg")
    return Path(os.path.abspath(found.expanduser()))


class Cache:
    """A folder of cached bytes, shared by all registries of one user.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with translated("make the cache's folder", root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder(root) as top, translated("make the cache's folder", root / "tmp"):
            make_folder("tmp", top, shared=False)

    @classmethod
    def find(cls) -> Cache:
        """Return the cache that the environment names, made if it isn't there.

        Raises:
            CkregError: it can't be made.
        """
        return cls(place())

    def open(self, digest: Digest, size: int) -> Entry:
        """Return a blob's file, made if it isn't there: sparse, and nothing in it yet.

        Raises:
            NotWritableError, NoSpaceError: the cache can't be written.
        """
        digits = digest.removeprefix("blake3:")
        shard = digits[:2]
        with folder(self.root) as top, translated("make the folder", self.root / shard):
            make_folder(shard, top, shared=False)
        return Entry(self, self.root / shard / digits[2:], size)

    def make_room(self, need: int) -> None:
        """Unlink what was used longest ago until the cache is within its share with `need` more.

        Raises:
            NoSpaceError: the disk is too full all the same.
        """
        found = os.statvfs(self.root)
        limit = self.limit()
        free = found.f_bavail * found.f_frsize
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if used + need <= limit and free >= need:
                break
            if _evict(path):
                used, free = used - size, free + size
        check_space(self.root / "tmp", need)

    def limit(self) -> int:
        """Return how many bytes the cache may take."""
        found = os.statvfs(self.root)
        return found.f_blocks * found.f_frsize // _PART_OF_DISK

    def sweep(self) -> int:
        """Remove what killed writers left, and return how many files that was."""
        return staging.sweep(self.root, "tmp")

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each file was used last, what it takes of the disk, and its path."""
        for shard in SHARDS:
            with suppress(OSError), os.scandir(self.root / shard) as names:
                for one in names:
                    if not one.name.endswith(_HAVE):
                        found = one.stat(follow_symlinks=False)
                        yield found.st_mtime, found.st_blocks * 512, Path(one.path)


_HAVE: Final = ".have"


def _evict(path: Path) -> bool:
    """Unlink a file and its list, unless somebody is at work on it; say whether it went."""
    try:
        fd = os.open(path, os.O_RDWR | NOFOLLOW)
    except OSError:
        return False
    try:
        if not try_lock(fd):
            return False
        _unlink(path)
        return True
    finally:
        os.close(fd)


def _unlink(path: Path) -> None:
    for name in (path.with_name(path.name + _HAVE), path):  # in this order: a list needs its file
        with suppress(OSError):
            os.unlink(name)


class Entry:
    """One blob's file in the cache, open.

    Attributes:
        fd: of the bytes; whoever opened the entry closes it.
        path: what to call it.
    """

    def __init__(self, cache: Cache, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._cache = cache
        self._spans: list[Span] = []
        with translated("write in the cache", path):
            self.fd, self._have = self._open()

    def _open(self) -> tuple[int, int]:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o600)
            try:
                wait_for_lock(fd)
                ours = os.fstat(fd)
                if ours.st_nlink:  # else it was evicted between the open and the lock
                    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | NOFOLLOW
                    have = os.open(self.path.with_name(self.path.name + _HAVE), flags, 0o600)
                    if ours.st_size != self.size:
                        os.ftruncate(have, 0)
                        os.ftruncate(fd, self.size)
                    os.utime(fd)
                    self._read(have)
                    unlock(fd)
                    return fd, have
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def has(self, span: Span) -> bool:
        """Say whether all bytes of a span are there, as far as was looked."""
        offset, size = span
        at = bisect_right(self._spans, (offset, self.size)) - 1
        return size == 0 or (at >= 0 and offset + size <= sum(self._spans[at]))

    def fill(self, spans: Sequence[Span], bring: Callable[[Sequence[Span]], None]) -> None:
        """See that some spans are there: those that lack are brought while the file is locked.

        Args:
            bring: writes the bytes of spans at their places, and verifies them.
        """
        if all(map(self.has, spans)):
            return
        with self._locked():
            self._read(self._have)  # somebody else may have brought them meanwhile
            lack = [span for span in spans if not self.has(span)]
            if not lack:
                return
            self._cache.make_room(sum(size for _, size in lack))
            bring(lack)
            with translated("write in the cache", self.path):
                os.write(self._have, "".join(f"{o} {n}\n" for o, n in lack).encode())
            self._spans = _merged([*self._spans, *lack])

    def forget(self) -> None:
        """Unlink the file: its bytes proved wrong. Who has it open keeps it."""
        _unlink(self.path)

    def close(self) -> None:
        """Close the list; the bytes' descriptor belongs to whoever took it."""
        if self._have >= 0:
            os.close(self._have)
            self._have = -1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with translated("lock in the cache", self.path):
            wait_for_lock(self.fd)
        try:
            yield
        finally:
            unlock(self.fd)

    def _read(self, have: int) -> None:
        text = os.pread(have, os.fstat(have).st_size, 0).decode("ascii", "replace")
        spans = []
        for line in text.splitlines(keepends=True):
            numbers = line.split()
            if line.endswith("\n") and len(numbers) == 2 and all(map(str.isdigit, numbers)):
                spans.append((int(numbers[0]), int(numbers[1])))
        self._spans = _merged(spans)


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for offset, size in sorted(spans):
        if merged and offset <= sum(merged[-1]):
            before = merged.pop()
            offset, size = before[0], max(sum(before), offset + size) - before[0]
        merged.append((offset, size))
    return merged
