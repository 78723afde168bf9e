"""A remote blob behind a descriptor: ranges are fetched into the cache as they are asked for.

Law: what is handed out of the cache was verified when it came, by the file's index or whole; a
range that differs is fetched once more, and then is damage. Bytes between the wanted ones are
fetched only within a budget: a weights-only read stays one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Final

from ..values import Digest
from .blob import Blob
from .cache import Cache, Span
from .disk import translated, write_all
from .hashing import digest_in, hasher
from .ranges import Index
from .reading import BlobFile, FileBytes, Progress, damaged

Read = Callable[[int, int], memoryview]
"""Returns exactly the bytes from an offset on, so many."""

PIECE: Final = 8 << 20
"""Bytes of one request."""

_AT_ONCE: Final = 8
_AHEAD: Final = 3  # requests of a read in order that are under way
_STRIDE: Final = 4  # pieces in each of them
_SMALL: Final = 1 << 20  # a file of this size comes whole: one request
_BUDGET: Final = 128  # a file's bytes by this may come unasked, to save requests
_NEAR: Final = 64 << 10  # a read may bring this much more, to be verified and kept


class CachedBlob(BlobFile):
    """An open blob whose bytes lie in the cache, or come there when they are asked for.

    Args:
        place: what to call it: the object's URL.
        read: reads the object.
    """

    def __init__(self, cache: Cache, blob: Blob, place: str, read: Read) -> None:
        self._entry = cache.open(blob.digest, blob.size_bytes)
        super().__init__(self._entry.fd, self._entry.path, blob)
        self._place = place
        self._read = read
        self._find: Callable[[], Index | None] | None = None
        self._index: Index | None = None
        self._unasked = blob.size_bytes // _BUDGET
        self._turn = threading.Lock()

    @property
    def shown(self) -> str:
        """The object's URL."""
        return self._place

    @property
    def lies_elsewhere(self) -> bool:
        """Whether bytes would have to come."""
        return not self._entry.has((0, self.size))

    def use(self, find: Callable[[], Index | None]) -> None:
        """Say how the file's index is found, so that its ranges come one by one."""
        self._find = find

    def fetch(self, parts: Sequence[Span]) -> None:
        """Bring in the ranges that some bytes lie in, verified.

        Raises:
            DamagedError: what the store has differs from what was stored.
            RemoteError, NotFoundError, NoSpaceError: they can't be brought.
        """
        with self._turn:
            self._begin()
            wanted = self._units(parts)
            if all(map(self._entry.has, wanted)):
                return
            self._entry.fill(self._near(wanted), self._bring)

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly so many bytes.

        What would bring in much more than it asks for is read past the cache: it is as little
        verified as a plain read of a local file.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self._short(offset, size, max(0, self.size - offset))
        with self._turn:
            self._begin()
        units = [unit for unit in self._units([(offset, size)]) if not self._entry.has(unit)]
        if sum(n for _, n in units) > size + _NEAR and self._index is not None:
            return bytes(self._read(offset, size))
        self.fetch([(offset, size)])
        return super().pread(offset, size)

    def hash(
        self,
        offset: int = 0,
        size: int | None = None,
        *,
        mapping: object = None,
        progress: Progress | None = None,
    ) -> Digest:
        """Return the digest of a range, by default of the whole file, once it is there."""
        self.fetch([(offset, self.size - offset if size is None else size)])
        return super().hash(offset, size, mapping=mapping, progress=progress)  # type: ignore[arg-type]

    def is_whole(self) -> bool:
        """Say yes: the size was compared when this was opened, the bytes when the server got
        them.
        """
        return True

    def forget(self) -> None:
        """Let go of the cached bytes; the next one who opens the blob fetches them anew."""
        self._entry.forget()

    def close(self) -> None:
        """Close; mappings made before stay valid."""
        self._entry.close()
        super().close()

    # --- what to fetch ------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take the index, and bring in all that is no tensor's: every reader wants that."""
        find, self._find = self._find, None
        if find is not None and self.lies_elsewhere and self.size > _SMALL:
            self._index = find()
        if self._index is not None and find is not None:
            structure = [(r.offset, r.size) for r in self._index.ranges if not r.storage]
            self._entry.fill(self._near(structure), self._bring)

    def _units(self, parts: Sequence[Span]) -> list[Span]:
        """Return the least that can be verified by itself around some bytes."""
        if self.size == 0:
            return []
        if self._index is None or self.size <= _SMALL:
            return [(0, self.size)] if any(size for _, size in parts) else []
        found = {(r.offset, r.size) for at, n in parts for r in self._index.covering(at, n)}
        return sorted(found)

    def _near(self, wanted: list[Span]) -> list[Span]:
        """Add the ranges in the smallest gaps, as far as the budget goes, to save requests."""
        lack = [unit for unit in wanted if not self._entry.has(unit)]
        gaps = sorted(
            (right[0] - sum(left), sum(left))
            for left, right in pairwise(lack)
            if right[0] > sum(left)
        )
        for size, at in gaps:
            if size > self._unasked:
                break
            self._unasked -= size
            lack += self._units([(at, size)])
        return sorted(lack)

    # --- bringing it --------------------------------------------------------------------------

    def _bring(self, units: Sequence[Span]) -> None:
        wrong = self._brought(units)
        if wrong:  # a server or a proxy that cut or mixed an answer: ask once more
            wrong = self._brought(wrong)
        if wrong:
            offset, size = wrong[0]
            raise damaged(
                self.blob,
                self.shown,
                f"bytes {offset} to {offset + size - 1} that the store sent are not those that "
                "were stored",
            )

    def _brought(self, units: Sequence[Span]) -> list[Span]:
        """Write units at their places, and return those that aren't as they were stored."""
        requests = [
            (start, min(PIECE, sum(run) - start))
            for run in _runs(units)
            for start in range(run[0], sum(run), PIECE)
        ]

        def one(request: Span) -> None:
            data = self._read(*request)
            with translated("write in the cache", self._entry.path, need=len(data)):
                write_all(self.fd, data, request[0])

        if len(requests) == 1:
            one(requests[0])
        else:
            with ThreadPoolExecutor(_AT_ONCE, "ckreg-fetch") as pool:
                for _ in pool.map(one, requests):
                    pass
        known = {} if self._index is None else {(r.offset, r.size): r for r in self._index.ranges}
        stored = FileBytes(self.fd, self._entry.path, self.size)
        return [
            unit
            for unit in units
            if stored.hash(*unit)
            != (self.blob.digest if unit == (0, self.size) else known[unit].digest)
        ]


def _runs(units: Sequence[Span]) -> list[Span]:
    """Join spans that touch."""
    runs: list[Span] = []
    for offset, size in units:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((offset, size))
    return runs


class DirectBlob(BlobFile):
    """An open blob read from the store itself, past the cache: to deliver or to verify it."""

    def __init__(self, blob: Blob, place: str, read: Read) -> None:
        super().__init__(-1, Path(place), blob)
        self._place = place
        self._read = read

    @property
    def shown(self) -> str:
        """The object's URL."""
        return self._place

    @property
    def lies_elsewhere(self) -> bool:
        """Yes."""
        return True

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly so many bytes."""
        return b"".join(self._in_order(offset, size))

    def pieces(self) -> Iterator[memoryview]:
        """Return all bytes in order; the next ones are under way meanwhile."""
        return self._in_order(0, self.size)

    def hash(
        self,
        offset: int = 0,
        size: int | None = None,
        *,
        mapping: object = None,
        progress: Progress | None = None,
    ) -> Digest:
        """Return the digest of a range, by default of the whole file."""
        size = self.size - offset if size is None else size
        found, done = hasher(size), 0
        for piece in self._in_order(offset, size):
            found.update(piece)
            done += len(piece)
            if progress is not None:
                progress(done, size)
        return digest_in(found)

    def map(self, parts: Sequence[Span] | None = None) -> object:  # type: ignore[override]
        """Refuse: what is mapped is opened through the cache."""
        raise ValueError(f"{self.shown!r} is read from the store: it can't be mapped")

    def _in_order(self, offset: int, size: int) -> Iterator[memoryview]:
        end = offset + size
        if size <= PIECE:
            if size:
                yield self._read(offset, size)
            return
        with ThreadPoolExecutor(_AHEAD, "ckreg-read") as pool:
            under_way: deque[Future[memoryview]] = deque()
            try:
                at = offset
                while at < end or under_way:
                    while at < end and len(under_way) < _AHEAD:
                        step = min(_STRIDE * PIECE, end - at)
                        under_way.append(pool.submit(self._read, at, step))
                        at += step
                    yield under_way.popleft().result()
            finally:
                for one in under_way:
                    one.cancel()
