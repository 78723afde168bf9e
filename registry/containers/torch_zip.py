"""torch.save's zip files, from torch 1.6 on: one pickle, and an entry for every storage.

Law: each storage is named with one dtype and one device, and its entry holds all its bytes.

    archive/data.pkl    the tree, storages by persistent id
    archive/data/0      a storage, stored as it is; data/1, …
    archive/byteorder   little or big; beside it version, .format_version, …
"""

from __future__ import annotations

import shlex
import zlib
from typing import Any, Final

from ..errors import ContainerError, DamagedError, UntrustedError
from .contents import ByteOrder, Container, Contents
from .limits import check_nesting
from .opcodes import OutOfBytesError
from .pickles import MAX_BYTES, read_pickle
from .recording import Recorder
from .source import ByteSource
from .torch_values import storage_id
from .tree import Storage
from .zips import Directory, Entry, locate

MAX_SMALL_BYTES: Final = 64


def folder(entries: dict[str, Entry]) -> str:
    """Return the archive's folder: the first part of the first name, as torch takes it."""
    return next(iter(entries), "").partition("/")[0]


def read_torch_zip(
    source: ByteSource, name: str, directory: Directory, container: Container = "torch-zip"
) -> Contents:
    """Index a torch zip file.

    Args:
        name: how to call the file in errors.
        directory: its central directory.
        container: what it is; a TorchScript archive has the same layout, and code beside it.

    Raises:
        ContainerError: an entry is compressed, or the byte order is unknown.
        DamagedError, UntrustedError: the file breaks a rule of zips.py, pickles.py or limits.py.
    """
    entries, places = directory.entries, locate(source, directory)
    top = folder(entries)
    warnings: list[str] = []
    data = _entry(source, name, entries[f"{top}/data.pkl"], places, MAX_BYTES)
    warning = _check_crc(name, data, entries[f"{top}/data.pkl"].crc)
    if warning:
        warnings.append(warning)

    byteorder = _byteorder(source, name, entries.get(f"{top}/byteorder"), places)
    storages: dict[tuple[str, str], Storage] = {}
    dtypes: dict[str, Storage] = {}

    def storage(pid: Any) -> Storage:
        named = storage_id(pid)
        known = storages.get((named.key, named.dtype))
        if known is not None and known.tag == named.tag and known.size_bytes >= named.size_bytes:
            return known
        entry = entries.get(f"{top}/data/{named.key}")
        if entry is None:
            raise DamagedError(f"{name!r} lacks the storage {named.key!r} that its pickle names")
        if entry.method:
            raise _compressed(name, entry)
        if entry.size < named.size_bytes:
            raise DamagedError(
                f"the storage {named.key!r} of {name!r} has {entry.size} bytes, and its pickle "
                f"says {named.size_bytes}"
            )
        other = dtypes.get(named.key)
        if other is not None and named.size_bytes:  # an empty storage may be named with any dtype
            raise DamagedError(
                f"the storage {named.key!r} of {name!r} is named as {other.dtype} on "
                f"{other.tag} and as {named.dtype} on {named.tag}"
            )
        made = Storage(named.key, named.dtype, named.tag, places[entry.name], named.size_bytes)
        storages[named.key, named.dtype] = dtypes[named.key] = made
        return made

    recorder = Recorder()
    try:
        root, end = read_pickle(data, recorder, persistent=storage)
    except OutOfBytesError:
        raise DamagedError(f"the pickle in {name!r} is cut short") from None
    if end != len(data):
        raise UntrustedError(f"the pickle in {name!r} ends at byte {end} of {len(data)}")
    check_nesting(root)
    return Contents(
        container=container,
        root=root,
        storages=tuple(sorted(storages.values(), key=lambda s: s.offset)),
        byteorder=byteorder,
        unsafe_globals=recorder.unsafe_globals,
        size_bytes=source.size,
        warnings=tuple(warnings),
    )


def _entry(
    source: ByteSource, name: str, entry: Entry, places: dict[str, int], limit: int
) -> bytes:
    if entry.method:
        raise _compressed(name, entry)
    if entry.size > limit:
        raise UntrustedError(f"the entry {entry.name!r} of {name!r} has {entry.size} bytes")
    return source.pread(places[entry.name], entry.size)


def _compressed(name: str, entry: Entry) -> ContainerError:
    return ContainerError(
        f"{name!r} was zipped again: its entry {entry.name!r} is compressed, which "
        "torch.save never does",
        hint="store it without compression: "
        f"unzip {shlex.quote(name)} -d new && (cd new && zip -0 -r ../new.pt *)",
    )


def _check_crc(name: str, data: bytes, crc: int) -> str | None:
    """Check the pickle's checksum; a zip without any (set_crc32_options(False)) has zeros."""
    if zlib.crc32(data) == crc:
        return None
    if crc == 0:
        return "the file was written without checksums"
    raise DamagedError(f"the pickle in {name!r} is damaged: its checksum is not the recorded one")


def _byteorder(
    source: ByteSource, name: str, entry: Entry | None, places: dict[str, int]
) -> ByteOrder:
    if entry is None:
        return "little"  # as torch takes it; the entry came with torch 2.1
    match _entry(source, name, entry, places, MAX_SMALL_BYTES):
        case b"little":
            return "little"
        case b"big":
            return "big"
        case other:
            raise ContainerError(f"{name!r} has the unknown byte order {other!r}")
