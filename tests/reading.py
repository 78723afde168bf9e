"""Reading a file through registry.containers in tests, and torch's view of what was read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from registry.containers import Contents, FileSource, Tensor, describe, read


class CountingSource(FileSource):
    """A source that counts its reads."""

    reads = 0
    bytes_read = 0

    def pread(self, offset: int, size: int) -> bytes:
        self.reads += 1
        self.bytes_read += size
        return super().pread(offset, size)


@contextmanager
def opened(path: Path) -> Iterator[CountingSource]:
    """Give a file as a source."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield CountingSource(fd, path.name)
    finally:
        os.close(fd)


def contents_of(path: Path) -> Contents:
    """Read a file."""
    with opened(path) as source:
        return read(source, path.name)


def described(path: Path) -> Any:
    """Read and describe a file."""
    with opened(path) as source:
        return describe(read(source, path.name), source)


def saved(value: Any, path: Path, *, legacy: bool = False, protocol: int = 2) -> Path:
    """Save a value with torch.save."""
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def as_torch(tensor: Tensor, path: Path) -> torch.Tensor:
    """Build a tensor from the file's bytes and what the index says, and nothing else."""
    data = bytearray(path.read_bytes()[tensor.storage.offset :][: tensor.storage.size_bytes])
    dtype = getattr(torch, tensor.dtype)
    storage = torch.UntypedStorage(len(data))
    if data:
        torch.frombuffer(data, dtype=torch.uint8)
        torch.empty(0, dtype=torch.uint8).set_(storage, 0, (len(data),), (1,)).copy_(
            torch.frombuffer(data, dtype=torch.uint8)
        )
    made = torch.empty(0, dtype=dtype).set_(storage, tensor.offset, tensor.shape, tensor.stride)
    if tensor.conj:
        made = made.conj()
    if tensor.neg:
        made = torch._neg_view(made)
    return made


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's values, bits resolved, in logical order."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def torch_zip(pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """Return a zip as torch.save lays it out, around a pickle written by hand."""
    return zip_of(
        {"archive/data.pkl": pickle, "archive/byteorder": b"little"}
        | {f"archive/data/{key}": data for key, data in (storages or {}).items()}
    )


def zip_of(entries: dict[str, bytes] | list[tuple[str, bytes]], **changes: Any) -> bytes:
    """Return a zip of stored entries, written by hand so that its fields can be wrong.

    Args:
        changes: `crc` of all; `method`, `flags`, `local_name`, `size`, `header` of the last.
    """
    import zlib

    out, central = b"", b""
    pairs = list(entries.items() if isinstance(entries, dict) else entries)
    for i, (name, data) in enumerate(pairs):
        last = i == len(pairs) - 1
        raw = name.encode()
        crc = changes.get("crc", zlib.crc32(data))
        size = changes["size"] if last and "size" in changes else len(data)
        header = changes["header"] if last and "header" in changes else len(out)
        method = changes.get("method", 0) if last else 0
        flags = changes.get("flags", 0) if last else 0
        local = changes["local_name"].encode() if last and "local_name" in changes else raw
        out += (
            struct.pack(
                "<4s5H3L2H",
                b"PK\x03\x04",
                0,
                flags,
                method,
                0,
                0,
                crc,
                len(data),
                len(data),
                len(local),
                0,
            )
            + local
            + data
        )
        central += (
            struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                0,
                0,
                flags,
                method,
                0,
                0,
                crc,
                size,
                size,
                len(raw),
                0,
                0,
                0,
                0,
                0,
                header,
            )
            + raw
        )
    count = changes.get("count", len(pairs))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(central), len(out), 0)
    return out + central + end
