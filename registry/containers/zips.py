"""The central directory of a zip file, read strictly: what readers could disagree on is refused.

Law: the file starts with an entry at 0; sizes come from the directory, places of data from the
local headers; no name twice or out of its folder, no two ranges overlap, counts and sizes are
capped. Nothing is decompressed. After APPNOTE 6.3.10, ZIP64 included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..errors import DamagedError, UntrustedError
from .source import ByteSource

MAX_ENTRIES: Final = 1_000_000
MAX_DIRECTORY_BYTES: Final = 256 << 20

LOCAL: Final = b"PK\x03\x04"
END: Final = b"PK\x05\x06"
_END: Final = Struct("<4s4H2LH")  # 22 bytes at the end of the file
_END64: Final = Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = Struct("<4sLQL")
_CENTRAL: Final = Struct("<4s4B4HL2L5H2L")
_LOCAL: Final = Struct("<4s2B4HL2L2H")
_TAIL: Final = 128 << 10  # holds the end records and, for most files, the whole directory: one read
_ENCRYPTED: Final = 0x2041  # bits 0, 6 and 13
_FOLDER: Final = 0x10  # MS-DOS's attribute, as central directories keep it
_FULL16: Final = 0xFFFF
_FULL32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a zip, as the central directory tells.

    Attributes:
        header: where its local header lies.
        size: its bytes as they are stored.
        method: 0 is stored as it is.
    """

    name: str
    header: int
    size: int
    method: int
    crc: int


@dataclass(frozen=True, slots=True)
class Directory:
    """A zip's central directory: its entries by name, in its order, and where it starts."""

    entries: dict[str, Entry]
    start: int


class NotWholeError(Exception):
    """A file that begins like a zip and has no readable directory, or not its own.

    Attributes:
        joined: whether a directory is there, for the last of several zips that were joined.
    """

    def __init__(self, reason: str, *, joined: bool = False) -> None:
        super().__init__(reason)
        self.joined = joined


def read_directory(source: ByteSource, tail_bytes: int = _TAIL) -> Directory:
    """Return the central directory of a zip.

    Args:
        tail_bytes: how much of the end is read first; the end records must lie in it.

    Raises:
        NotWholeError: the end of the file is no zip's end.
        UntrustedError: entries are too many, have names that lead elsewhere, come twice or are
            encrypted.
    """
    base = max(0, source.size - tail_bytes)
    tail = source.pread(base, source.size - base)
    count, size, start, end = _find_directory(source, tail, base)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise UntrustedError(f"the zip's directory claims {count} entries in {size} bytes")
    if start + size != end:
        raise NotWholeError(
            f"its directory should end at byte {start + size} and ends at {end}",
            joined=start + size < end,
        )
    data = tail[start - base : start - base + size] if start >= base else source.pread(start, size)
    return Directory(_entries(data, count, start), start)


def _find_directory(source: ByteSource, tail: bytes, base: int) -> tuple[int, int, int, int]:
    """Return the directory's number of entries, size and start, and where it should end."""
    at = tail.rfind(END, max(0, len(tail) - _END.size - _FULL16))
    if at < 0 or at + _END.size > len(tail):
        raise NotWholeError("its end is missing")
    _, disk, first, here, count, size, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise NotWholeError("other bytes follow its end")
    end = base + at
    locator = at - _LOCATOR64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        _, _, place, _ = _LOCATOR64.unpack_from(tail, locator)
        narrow = (count, size, start)
        if place + _END64.size > base + locator:
            raise NotWholeError("its 64-bit end is out of place", joined=True)
        inside = place >= base
        record = tail[place - base :] if inside else source.pread(place, _END64.size)
        signature, length, _, _, disk, first, here, count, size, start = _END64.unpack_from(record)
        if signature != b"PK\x06\x06" or place + 12 + length != base + locator:
            raise NotWholeError("its 64-bit end is out of place", joined=True)
        for wide, old, full in zip(
            (count, size, start), narrow, (_FULL16, _FULL32, _FULL32), strict=True
        ):
            if old not in (wide, full):
                raise UntrustedError("the zip's two ends disagree")
        end = place
    if disk or first or here != count:
        raise UntrustedError("the zip claims to span several disks")
    return count, size, start, end


def _entries(data: bytes, count: int, limit: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(data):
            raise NotWholeError("its directory is cut short")
        (
            signature, _, _, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size,
            comment_size, disk, _, attributes, header,
        ) = _CENTRAL.unpack_from(data, at)  # fmt: skip
        at += _CENTRAL.size
        stop = at + name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or stop > len(data):
            raise NotWholeError("its directory is cut short")
        name = _name(data[at : at + name_size])
        if _FULL32 in (packed, size, header):
            extra = data[at + name_size : at + name_size + extra_size]
            packed, size, header = _wide(extra, packed, size, header)
        if flags & _ENCRYPTED:
            raise UntrustedError(f"the zip's entry {name!r} is encrypted")
        # torch takes an entry that is marked as a folder for one without bytes, and leaves the
        # tensor's memory as it was (2.13, miniz)
        folder = attributes & _FOLDER and packed
        if disk not in (0, _FULL16) or (method == 0 and packed != size) or folder:
            raise UntrustedError(f"the zip's entry {name!r} contradicts itself")
        if name in entries:
            raise UntrustedError(f"the zip has two entries named {name!r}")
        if header + _LOCAL.size + name_size + packed > limit:
            raise DamagedError(f"the zip's entry {name!r} would reach beyond the directory")
        entries[name] = Entry(name, header, packed, method, crc)
        at = stop
    if at != len(data):
        raise UntrustedError("the zip's directory holds more than it counts")
    return entries


def _name(raw: bytes) -> str:
    name = raw.decode("utf-8", "surrogateescape")
    if (
        "\0" in name
        or "\\" in name
        or any(part in ("", ".", "..") for part in name.rstrip("/").split("/"))
    ):
        raise UntrustedError(f"the zip has an entry whose name leads elsewhere: {name[:80]!r}")
    return name


def _raw(entry: Entry) -> bytes:
    return entry.name.encode("utf-8", "surrogateescape")


def _wide(extra: bytes, *fields: int) -> list[int]:
    """Return the sizes and place with the 64-bit ones of the extra field 0x0001 filled in."""
    at = 0
    while at + 4 <= len(extra):
        kind = int.from_bytes(extra[at : at + 2], "little")
        size = int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            # The field holds, in this order, uncompressed size, compressed size, place: those that
            # are full.
            packed, plain, header = fields
            wide = []
            for value in (plain, packed, header):
                if value == _FULL32:
                    if len(body) < 8:
                        raise DamagedError("a 64-bit field of the zip is cut short")
                    value, body = int.from_bytes(body[:8], "little"), body[8:]
                wide.append(value)
            return [wide[1], wide[0], wide[2]]
        at += 4 + size
    return list(fields)  # 4 GiB less one byte, exactly


def locate(source: ByteSource, directory: Directory) -> dict[str, int]:
    """Return where each entry's data starts, from the local headers; no two then overlap.

    Raises:
        DamagedError: a local header is missing or names another entry.
        UntrustedError: two entries overlap.
    """
    ordered = sorted(directory.entries.values(), key=lambda entry: entry.header)
    places: dict[str, int] = {}
    end = 0
    for group in _groups(ordered):
        start = group[0].header
        stop = min(source.size, group[-1].header + _LOCAL.size + len(_raw(group[-1])))
        data = source.pread(start, stop - start)
        for entry in group:
            if entry.header < end:
                raise UntrustedError(f"the zip's entry {entry.name!r} overlaps the one before it")
            place = entry.header + _local_size(data, entry.header - start, entry)
            places[entry.name] = place
            end = place + entry.size
            if end > directory.start:
                raise UntrustedError(f"the zip's entry {entry.name!r} overlaps the directory")
    if ordered and ordered[0].header != 0:
        raise UntrustedError("the zip has bytes before its first entry")
    return places


def _groups(ordered: Sequence[Entry]) -> list[list[Entry]]:
    """Group entries whose headers lie close together, so that one read serves them all."""
    groups: list[list[Entry]] = []
    for entry in ordered:
        if groups:
            last, first = groups[-1][-1], groups[-1][0]
            if entry.header - last.header <= 8 << 10 and entry.header - first.header <= 1 << 20:
                groups[-1].append(entry)
                continue
        groups.append([entry])
    return groups


def _local_size(data: bytes, at: int, entry: Entry) -> int:
    """Return the size of a local header with its name and padding."""
    if at + _LOCAL.size > len(data):
        raise DamagedError(f"the zip's entry {entry.name!r} has no local header")
    signature, _, _, flags, method, _, _, _, packed, _, name_size, extra_size = _LOCAL.unpack_from(
        data, at
    )
    name = data[at + _LOCAL.size : at + _LOCAL.size + name_size]
    if signature != LOCAL or name != _raw(entry) or method != entry.method:
        raise DamagedError(f"the zip's entry {entry.name!r} has another local header than its own")
    streamed = flags & 8  # sizes follow the data, and are 0 here
    if packed not in (entry.size, _FULL32) and not (streamed and packed == 0):
        raise UntrustedError(
            f"the zip's entry {entry.name!r} has two sizes: {packed} and {entry.size}"
        )
    return int(_LOCAL.size + name_size + extra_size)
