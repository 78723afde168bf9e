"""torch.save's files before torch 1.6 (and on request after it): pickles, then storages.

Law: each storage is named with one dtype and one device, and all of them are there.

    magic, protocol 1001, sys_info   three small pickles
    the tree                         storages by persistent id, perhaps as views of others
    the storages' keys               a list; then for each its number of elements (int64), its bytes
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import DamagedError, UntrustedError
from .contents import Contents
from .limits import check_nesting
from .opcodes import OutOfBytesError
from .pickles import MAX_BYTES, read_pickle
from .recording import Recorder
from .source import ByteSource
from .torch_values import StorageId, storage_id
from .tree import DTYPES, Global, Storage, StorageView, settle
from .zips import END

MAGIC: Final = 0x1950A86A20F9469CFC6C
MAGIC_BYTES: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The magic number as pickle's protocols 2 and later write it."""

_FIRST_READ: Final = 1 << 20
_ZIP_TAIL: Final = 22 + 0xFFFF  # where the end of a zip lies, and its comment after it


@dataclass(slots=True)
class _Pickles:
    """The pickles at the start of a file, read."""

    root: Any
    keys: list[str]
    storages: dict[str, Storage]
    unsafe_globals: tuple[str, ...]
    end: int


@dataclass(slots=True)
class _Storages:
    """The storages that a pickle names. Where they lie is known only after it."""

    name: str
    found: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, pid: Any) -> Storage | StorageView | Global:
        if (
            isinstance(pid, tuple)
            and len(pid) == 4
            and pid[0] == "module"
            and isinstance(pid[1], Global)
        ):
            return pid[1]  # a class with its source beside it, which was for people to compare
        named = storage_id(pid)
        root = self._root(named)
        if named.view is None:
            return root
        _, offset, elements = named.view
        if (offset + elements) * DTYPES[root.dtype] > root.size_bytes:
            raise DamagedError(
                f"{self.name!r} has a view that reaches beyond its storage {named.key!r}"
            )
        return StorageView(root, offset, elements)

    def _root(self, named: StorageId) -> Storage:
        known = self.found.get(named.key)
        if known is None:
            known = Storage(named.key, named.dtype, named.tag, 0, named.size_bytes)
            self.found[named.key] = known
        elif (known.dtype, known.tag, known.size_bytes) != (
            named.dtype,
            named.tag,
            named.size_bytes,
        ):
            raise DamagedError(
                f"the storage {named.key!r} of {self.name!r} is named as {known.dtype} on "
                f"{known.tag} and as {named.dtype} on {named.tag}"
            )
        return known


def read_torch_legacy(source: ByteSource, name: str) -> Contents:
    """Index a legacy torch file.

    Args:
        name: how to call the file in errors.

    Raises:
        DamagedError, UntrustedError: the file is cut short, or breaks a rule of pickles.py or
            limits.py.
    """
    # How long the pickles are is known only once they are read: take more until they end.
    size = min(source.size, _FIRST_READ)
    while True:
        data = source.pread(0, size)
        try:
            pickles = _read_pickles(data, name)
            break
        except OutOfBytesError:
            if size == source.size:
                raise DamagedError(f"{name!r} is cut short within its pickles") from None
            if size >= MAX_BYTES:
                raise UntrustedError(
                    f"the pickles of {name!r} have more than {size} bytes"
                ) from None
            size = min(source.size, size * 4, MAX_BYTES)
    end = _place(source, name, pickles, data)
    _check_tail(source, name, end)
    check_nesting(pickles.root)
    return Contents(
        container="torch-legacy",
        root=pickles.root,
        storages=tuple(sorted(pickles.storages.values(), key=lambda s: s.offset)),
        byteorder="little",  # whatever the machine: torch's writer converts
        unsafe_globals=pickles.unsafe_globals,
        size_bytes=source.size,
        warnings=()
        if end == source.size
        else (f"{source.size - end} bytes follow the last storage",),
    )


def _read_pickles(data: bytes, name: str) -> _Pickles:
    recorder, storages = Recorder(), _Storages(name)
    magic, at = read_pickle(data, Recorder())
    protocol, at = read_pickle(data, Recorder(), at=at)
    if magic != MAGIC or protocol != 1001:
        raise DamagedError(f"{name!r} has the magic number {magic!r} and protocol {protocol!r}")
    _, at = read_pickle(data, Recorder(), at=at)  # sys_info: nothing in the layout depends on it
    root, at = read_pickle(data, recorder, at=at, persistent=storages)
    keys, at = read_pickle(data, Recorder(), at=at)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise DamagedError(f"{name!r} has no list of its storages' keys")
    if len(set(keys)) != len(keys) or set(keys) != storages.found.keys():
        raise DamagedError(f"{name!r} lists other storages than its pickle names")
    return _Pickles(root, keys, storages.found, recorder.unsafe_globals, at)


def _check_tail(source: ByteSource, name: str, end: int) -> None:
    """Refuse a zip after the last storage: others would read that instead."""
    start = max(end, source.size - _ZIP_TAIL)
    if END in source.pread(start, source.size - start):
        raise UntrustedError(
            f"{name!r} is a legacy torch file and a zip file in one, which readers read differently"
        )


def _place(source: ByteSource, name: str, pickles: _Pickles, data: bytes) -> int:
    """Find where each storage lies, and return where the last one ends."""
    at = pickles.end
    for key in pickles.keys:
        storage = pickles.storages[key]
        if at + 8 + storage.size_bytes > source.size:
            raise DamagedError(
                f"{name!r} is cut short: its storage {key!r} needs bytes up to "
                f"{at + 8 + storage.size_bytes}, and it has {source.size}"
            )
        count = data[at : at + 8] if at + 8 <= len(data) else source.pread(at, 8)
        elements = int.from_bytes(count, "little", signed=True)
        if elements * DTYPES[storage.dtype] != storage.size_bytes:
            raise DamagedError(
                f"the storage {key!r} of {name!r} has {elements} elements of {storage.dtype}, and "
                f"its pickle says {storage.size_bytes} bytes"
            )
        settle(storage, offset=at + 8)
        at += 8 + storage.size_bytes
    return at
