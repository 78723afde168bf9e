"""A file's index: a digest for each storage's range and each range between.

With it a partial read is verified as a whole one is.

Law: the ranges cover the file from its first byte to its last, without a hole; an index that says
otherwise can't be made or parsed. Must not know what a storage means.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from ..errors import DamagedError
from ..values import FORMAT, Digest, canonical_json, count, digest
from .hashing import WORTH_THREADS, digest_in, hasher
from .reading import STEP, FileBytes, Progress

MAX_INDEX_BYTES: Final = 64 << 20
"""The longest index that is parsed: some 700,000 ranges."""

_TOGETHER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes from `offset` on, `size` of them, and their digest; `storage`: tensors' bytes, not
    structure.
    """

    offset: int
    size: int
    digest: Digest
    storage: bool = False

    @property
    def end(self) -> int:
        """The first offset after it."""
        return self.offset + self.size


@dataclass(frozen=True)
class Index:
    """The ranges of one file, in order.

    Attributes:
        digest: of the whole file.
        size_bytes: of the whole file.
        ranges: each begins where the one before ends.
    """

    digest: Digest
    size_bytes: int
    ranges: tuple[Range, ...]

    def __post_init__(self) -> None:
        digest(self.digest)
        at = 0
        for part in self.ranges:
            digest(part.digest)
            if part.offset != at or part.size <= 0:
                raise ValueError(f"a range of {part.size} bytes at {part.offset}, and not at {at}")
            at = part.end
        if at != self.size_bytes:
            raise ValueError(f"the ranges cover {at} bytes of a file of {self.size_bytes}")

    def to_bytes(self) -> bytes:
        """Return the index as canonical JSON, without the offsets, which follow from the sizes."""
        return canonical_json(
            {
                "format": FORMAT,
                "digest": self.digest,
                "size_bytes": self.size_bytes,
                "ranges": [
                    [r.size, r.digest.removeprefix("blake3:"), int(r.storage)] for r in self.ranges
                ],
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Return the index that `to_bytes` wrote.

        Raises:
            DamagedError: the bytes are no such index.
        """
        if len(data) > MAX_INDEX_BYTES:
            raise DamagedError(f"an index of {len(data)} bytes: {MAX_INDEX_BYTES} is the limit")
        try:
            plain = json.loads(data)
            if plain["format"] != FORMAT:
                raise ValueError(
                    f"its format is {plain['format']!r}, and this ckreg reads {FORMAT}"
                )
            found = cls(
                digest(plain["digest"]),
                count(plain["size_bytes"], "size_bytes"),
                tuple(_ranges(plain["ranges"])),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(f"a file's index is damaged: {error}") from error
        if found.to_bytes() != data:
            raise DamagedError("a file's index is damaged: it isn't as ckreg writes it")
        return found

    def covering(self, offset: int, size: int) -> tuple[Range, ...]:
        """Return the ranges that some bytes lie in. Raises ValueError when they leave the file."""
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise ValueError(f"{size} bytes at {offset} lie outside a file of {self.size_bytes}")
        if size == 0:
            return ()
        first = bisect_right(self._starts, offset) - 1
        last = bisect_right(self._starts, offset + size - 1)
        return self.ranges[first:last]

    @cached_property
    def _starts(self) -> list[int]:
        return [r.offset for r in self.ranges]


def _ranges(plain: object) -> Iterator[Range]:
    if not isinstance(plain, list):
        raise TypeError("its ranges are no list")
    at = 0
    for size, digits, storage in plain:
        if type(storage) is not int or storage not in (0, 1):
            raise ValueError(f"a range is structure, 0, or a storage, 1, and not {storage!r}")
        yield Range(at, count(size, "a range"), digest(f"blake3:{digits}"), bool(storage))
        at += size


def build(
    file: FileBytes,
    storages: Sequence[tuple[int, int]],
    whole: Digest,
    known: Mapping[tuple[int, int], Digest] = MappingProxyType({}),
) -> Index:
    """Return the index of a file.

    Args:
        file: its bytes; those that aren't known are read.
        storages: (offset, size) of each storage, in any order. Overlapping ones share a range.
        whole: the digest of the whole file.
        known: digests of some of its ranges, by (offset, size).

    Raises:
        ValueError: a storage lies outside the file.
        DamagedError: the file is shorter than it was.
    """
    places = list(_cover(storages, file.size))
    digests = dict(known)
    digests.update(_read(file, [p[:2] for p in places if p[:2] not in known]))
    return Index(
        whole,
        file.size,
        tuple(
            Range(offset, size, digests[offset, size], storage) for offset, size, storage in places
        ),
    )


def _read(
    file: FileBytes, places: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Digest]]:
    """Yield each place with its digest, by plain reads: a mapping would count as memory. Small
    neighbours are read together.
    """
    found, turn = hasher(0), 0
    while turn < len(places):
        first, size = places[turn]
        if size > _TOGETHER:
            yield places[turn], file.hash(first, size)
            turn += 1
            continue
        end, after = first + size, turn + 1
        while after < len(places) and places[after][0] == end:
            if (end := end + places[after][1]) > first + _TOGETHER:
                end -= places[after][1]
                break
            after += 1
        data = memoryview(file.pread(first, end - first))
        for offset, size in places[turn:after]:
            found.reset()
            found.update(data[offset - first : offset - first + size])
            yield (offset, size), digest_in(found)
        turn = after


def _digests(mapping: mmap.mmap, places: Sequence[tuple[int, int]]) -> list[Digest]:
    """Return the digest of each (offset, size); the threads are started once for all of them."""
    digests = []
    few, many = hasher(0), hasher(sum(size for _, size in places))
    with memoryview(mapping) as view:
        for offset, size in places:
            found = many if size >= WORTH_THREADS else few
            found.reset()
            for start in range(offset, offset + size, STEP):  # so that an interrupt is heard
                with view[start : min(start + STEP, offset + size)] as piece:
                    found.update(piece)
            digests.append(digest_in(found))
    return digests


def _cover(storages: Sequence[tuple[int, int]], total: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the storages' ranges and those between, in order, from 0 to the end; True for
    storages.
    """
    at = 0
    for offset, size in merged(storages):
        if offset < 0 or size < 0 or offset + size > total:
            raise ValueError(f"a storage of {size} bytes at {offset} in a file of {total}")
        if offset > at:
            yield at, offset - at, False
        yield offset, size, True
        at = offset + size
    if at < total:
        yield at, total - at, False


def merged(storages: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges of storages, given as (offset, size), in order; those that overlap are one,
    and empty ones none.
    """
    found: list[tuple[int, int]] = []
    for offset, size in sorted(s for s in storages if s[1] != 0):
        if found and offset < sum(found[-1]):
            before = found.pop()
            offset, size = before[0], max(sum(before), offset + size) - before[0]
        found.append((offset, size))
    return found


def verify_structure(index: Index, file: FileBytes, storages: Sequence[tuple[int, int]]) -> None:
    """See that all bytes of a file that are no tensors' are as they were stored, without reading
    those.

    Args:
        storages: where the file's reader found them: there they must be.

    Raises:
        DamagedError: a range differs, or the storages lie elsewhere.
    """
    structure = [(r.offset, r.size) for r in index.ranges if not r.storage]
    verify(index, file, structure)
    if merged(storages) != [(r.offset, r.size) for r in index.ranges if r.storage]:
        raise DamagedError(f"{file.shown!r} and its index disagree on where the tensors' bytes lie")


def verify(
    index: Index,
    file: FileBytes,
    wanted: Sequence[tuple[int, int]],
    *,
    mapping: mmap.mmap | None = None,
) -> int:
    """See that the ranges that some bytes lie in are as they were stored; return the bytes hashed.

    Args:
        wanted: (offset, size) of what is to be used. Each range is hashed once.
        mapping: a mapping of the file, if there is one: then what is hashed is what is used.

    Raises:
        DamagedError: a range differs, or the file's size does.
        ValueError: something wanted lies outside the file.
    """
    if file.size != index.size_bytes:
        raise DamagedError(
            f"{file.shown!r} has {file.size} bytes, and its index is of a file of "
            f"{index.size_bytes}"
        )
    parts = sorted(
        {part for offset, size in wanted for part in index.covering(offset, size)},
        key=lambda part: part.offset,
    )
    if not parts:
        return 0
    places = [(part.offset, part.size) for part in parts]
    with nullcontext(mapping) if mapping is not None else file.map(places) as bytes_:
        digests = _digests(bytes_, places)
    for part, found in zip(parts, digests, strict=True):
        if found != part.digest:
            file.forget()
            raise DamagedError(
                f"{file.shown!r} is damaged: bytes {part.offset} to {part.end - 1} have the "
                f"digest {found}, and were stored with {part.digest}"
            )
    return sum(part.size for part in parts)


def read_through(
    index: Index | None, file: FileBytes, *, progress: Progress | None = None
) -> tuple[Digest, tuple[Range, ...]]:
    """Return the digest of a whole file, and the ranges of its index that differ; read once.

    By plain reads and not a mapping, where a failing disk would end the process.

    Raises:
        DamagedError: the file is shorter than it was.
    """
    parts = () if index is None else index.ranges
    whole, few, many = hasher(file.size), hasher(0), hasher(file.size)
    wrong: list[Range] = []
    at = turn = 0
    part = few
    while at < file.size:
        data = memoryview(file.pread(at, min(STEP, file.size - at)))
        whole.update(data)
        end = at + len(data)
        while turn < len(parts):
            this = parts[turn]
            if this.offset >= at:
                part = many if this.size >= WORTH_THREADS else few
                part.reset()
            part.update(data[max(this.offset, at) - at : min(this.end, end) - at])
            if this.end > end:
                break
            if digest_in(part) != this.digest:
                wrong.append(this)
            turn += 1
        at = end
        if progress is not None:
            progress(at, file.size)
    return digest_in(whole), tuple(wrong)
