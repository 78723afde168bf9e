"""Checkpoint folders in tests: their files as sources, and torch's view of what was read."""

from __future__ import annotations

import io
import math
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from reading import as_torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from registry import DamagedError
from registry.containers import Assembled, Contents, Description, Tensor, describe, read_folder


class Whole:
    """A file's bytes, all in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise DamagedError(f"bytes {offset} to {offset + size} of {len(self.data)}")
        return self.data[offset : offset + size]


def files_of(folder: Path) -> dict[str, Whole]:
    """Return a folder's files by relative path."""
    return {
        path.relative_to(folder).as_posix(): Whole(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents_of(folder: Path) -> Contents:
    """Read a folder."""
    return read_folder(files_of(folder), folder.name)


def described(folder: Path) -> Description:
    """Read and describe a folder."""
    files = files_of(folder)
    return describe(read_folder(files, folder.name), files)


def built(found: Tensor | Assembled, folder: Path) -> torch.Tensor:
    """Build a tensor from the folder's bytes and what the index says, and nothing else."""
    if isinstance(found, Tensor):
        return as_torch(found, folder / found.storage.file)
    whole = torch.full(found.shape, 77).to(getattr(torch, found.dtype))
    for chunk in found.chunks:
        place = tuple(
            slice(o, o + n) for o, n in zip(chunk.offsets, chunk.tensor.shape, strict=True)
        )
        whole[place] = as_torch(chunk.tensor, folder / chunk.tensor.storage.file)
    return whole


def assert_same(
    found: Mapping[str, Tensor | Assembled], expected: Mapping[str, torch.Tensor], folder: Path
) -> None:
    """Compare all tensors bit for bit."""
    assert found.keys() == expected.keys()
    assert found
    for key, tensor in expected.items():
        made = built(found[key], folder)
        assert made.dtype == tensor.dtype, key
        assert torch.equal(made, tensor), key


def torch_saved(value: object) -> bytes:
    """Return what torch.save makes of a value."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files by relative path."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder, to change the copy."""
    shutil.copytree(folder, to)
    return to


Pieces = list[tuple[tuple[int, ...], torch.Tensor]]


def write_dcp(
    folder: Path,
    values: Mapping[str, Any],
    *,
    paths: Mapping[str, tuple[str | int, ...]] | None = None,
    change: Callable[[Metadata], None] | None = None,
    **fields: Any,
) -> Path:
    """Write a DCP folder by hand: each piece goes to a rank's file of its own, in turn.

    Args:
        values: by flat name: a list of (offsets, tensor), or anything else as one value.
        paths: the planner's paths.
        change: what to change in the metadata before it is written.
        fields: given to every storage info.
    """
    streams: dict[str, bytes] = {}
    described: dict[str, Any] = {}
    placed: dict[MetadataIndex, _StorageInfo] = {}

    def put(rank: int, data: bytes) -> _StorageInfo:
        name = f"__{rank}_0.distcp"
        start = len(streams.get(name, b""))
        streams[name] = streams.get(name, b"") + data
        return _StorageInfo(name, start, len(data), **fields)

    for name, value in values.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], tuple):
            described[name] = BytesStorageMetadata()
            placed[MetadataIndex(name)] = put(0, torch_saved(value))
            continue
        ends = [[o + n for o, n in zip(at, t.shape, strict=True)] for at, t in value]
        shape = [max(end) for end in zip(*ends, strict=True)]
        chunks = [ChunkStorageMetadata(torch.Size(at), t.shape) for at, t in value]
        properties = TensorProperties(dtype=value[0][1].dtype)
        described[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
        for rank, (at, tensor) in enumerate(value):
            index = MetadataIndex(name, at, rank)
            placed[index] = put(rank, torch_saved(tensor.clone()))
    metadata = Metadata(described, dict(paths) if paths is not None else None, placed)
    if change is not None:
        change(metadata)
    return write(folder, {**streams, ".metadata": pickle.dumps(metadata)})


def in_rows(tensor: torch.Tensor, ranks: int = 2) -> Pieces:
    """Split a tensor by rows over ranks, as FSDP2 does."""
    step = math.ceil(tensor.shape[0] / ranks)
    starts = range(0, tensor.shape[0], step)
    rest = (0,) * (tensor.dim() - 1)
    return [((start, *rest), tensor[start : start + step]) for start in starts]
