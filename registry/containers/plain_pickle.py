"""Files that plain pickle wrote: numpy arrays become tensors, and so do torch's own.

Law: the file is one pickle and nothing else. Elements stay in the file where the pickle holds their
bytes as they are; only those that it spells otherwise (protocol 2 as text, or big-endian) are kept
here. A torch.save stream inside is one storage, and is read one level deep.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ContainerError, DamagedError, UntrustedError
from .contents import Contents
from .limits import check_nesting
from .opcodes import OutOfBytesError
from .pickles import MAX_BYTES, read_pickle
from .recording import Recorder
from .source import ByteSource
from .torch_legacy import read_torch_legacy
from .tree import Array, Storage, Tensor, settle, walk

_DTYPES: Final = {
    "f8": "float64", "f4": "float32", "f2": "float16",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8", "b1": "bool",
    "c16": "complex128", "c8": "complex64",
}  # fmt: skip
"""numpy's dtypes that torch has too."""


def read_plain_pickle(source: ByteSource, name: str) -> Contents:
    """Index a plain pickle.

    Args:
        name: how to call the file in errors.

    Raises:
        ContainerError: more than one pickle is in it, or it is too large.
        DamagedError, UntrustedError: it breaks a rule of pickles.py or limits.py.
    """
    if source.size > MAX_BYTES:
        raise ContainerError(
            f"{name!r} is a pickle of {source.size} bytes; at most {MAX_BYTES} are read",
            hint='if you trust it, write it anew: python -c "import pickle, sys, torch; '
            f"torch.save(pickle.load(open(sys.argv[1], 'rb')), 'new.pt')\" {shlex.quote(name)}",
        )
    data = source.pread(0, source.size)
    streams = _Streams(name)
    recorder = Recorder(streams)
    try:
        root, end = read_pickle(data, recorder)
    except OutOfBytesError:
        raise DamagedError(f"{name!r} is cut short within its pickle") from None
    if end != len(data):
        raise ContainerError(
            f"{name!r} has {len(data) - end} bytes after its pickle ends",
            hint="a file of several pickles is no checkpoint: save one dict that holds them all",
        )
    check_nesting(root)
    storages = [*streams.storages, *_arrays(root)]
    return Contents(
        container="pickle",
        root=root,
        storages=_apart(name, [storage for storage in storages if storage.data is None]),
        byteorder="little",
        unsafe_globals=tuple(sorted({*recorder.unsafe_globals, *streams.unsafe_globals})),
        size_bytes=source.size,
    )


@dataclass(slots=True)
class _Streams:
    """The torch.save streams inside a pickle, each of one storage."""

    name: str
    storages: list[Storage] = field(default_factory=list)
    unsafe_globals: set[str] = field(default_factory=set)
    known: dict[int, Storage] = field(default_factory=dict)

    def __call__(self, data: bytes, at: int | None) -> Any:
        if at is not None and at in self.known:
            return self.known[at]
        inner = read_torch_legacy(_Bytes(data), f"{self.name}, a storage in it")
        self.unsafe_globals.update(inner.unsafe_globals)
        found = inner.root
        if not isinstance(found, Storage):
            return NotImplemented
        start, stop = found.offset, found.offset + found.size_bytes
        made = Storage(
            f"stream-{len(self.storages)}", found.dtype, found.tag,
            0 if at is None else at + start, found.size_bytes,
            data=data[start:stop] if at is None else None,
        )  # fmt: skip
        self.storages.append(made)
        if at is not None:
            self.known[at] = made
        return made


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Bytes as a source."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise DamagedError("a torch.save stream inside the pickle is cut short")
        return self.data[offset : offset + size]


def _arrays(root: Any) -> list[Storage]:
    """Give every numeric array its tensor, and return the storages; equal bytes are one storage."""
    made: dict[int, Storage] = {}
    storages: list[Storage] = []
    for node in walk(root):
        if not isinstance(node, Array) or node.dtype[1:] not in _DTYPES:
            continue
        width = int(node.dtype[2:]) // (2 if node.dtype[1] == "c" else 1)
        swapped = node.dtype[0] == ">" and width > 1
        at = None if swapped else node.at
        storage = None if at is None else made.get(at)
        if storage is None:
            storage = Storage(
                f"array-{len(storages)}", "uint8", "cpu", at or 0, len(node.data),
                data=None if at is not None else _swap(node.data, width) if swapped else node.data,
            )  # fmt: skip
            storages.append(storage)
            if at is not None:
                made[at] = storage
        stride = _strides(node.shape, first=node.fortran_order)
        tensor = Tensor(storage, _DTYPES[node.dtype[1:]], node.shape, stride)
        settle(node, tensor=tensor, data=b"")
    return storages


def _swap(data: bytes, width: int) -> bytes:
    swapped = bytearray(len(data))
    for i in range(width):
        swapped[i::width] = data[width - 1 - i :: width]
    return bytes(swapped)


def _strides(shape: tuple[int, ...], *, first: bool) -> tuple[int, ...]:
    """Return the strides of dense elements; with `first` the first index runs fastest."""
    strides: list[int] = []
    step = 1
    for size in shape if first else reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(strides if first else reversed(strides))


def _apart(name: str, storages: list[Storage]) -> tuple[Storage, ...]:
    """Return storages by their place; the bytes of one are no other's."""
    ordered = sorted(storages, key=lambda s: (s.offset, s.size_bytes))
    end = 0
    for storage in ordered:
        if storage.offset < end:
            raise UntrustedError(f"{name!r} takes the same bytes for two values")
        end = storage.offset + storage.size_bytes
    return tuple(ordered)
