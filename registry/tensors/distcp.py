"""What a sharded save writes: a folder that torch.distributed.checkpoint (DCP) reads too.

Law: each rank writes one file of torch.save streams, and rank 0 the index of them all; equal state
gives equal streams. What has no tensors, or is no dict of text keys, is one stream as a whole, so
that it comes back as it was; `ckreg`, the record, is one of them, and so travels with the folder.

    .metadata       what there is, and where (torch's own classes, pickled: they can't be had plain)
    __0_0.distcp    rank 0's parts, and all that is no part of a spread tensor; the record among it
    __1_0.distcp    rank 1's parts, …
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from . import writing
from .spread import Box, Spread
from .views import form_of
from .writing import Writer

METADATA: Final = ".metadata"
_ALIGNMENT: Final = 64
_VERSIONS: Final = "_metadata"

Placed = list[Any]
"""A stream as ranks tell of it: the leaf's name, offsets or None, sizes, start, length."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A value that is written by itself.

    Attributes:
        name: its flat name, as DCP has it: the path with dots.
        value: a tensor, spread or whole; or anything plain.
        rank: the rank that writes it; None: all do their parts.
    """

    name: str
    path: tuple[str, ...]
    value: Any
    rank: int | None = 0


class SizedWriter(Writer, Protocol):
    """A writer that says how much it has taken."""

    size: int


def file_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"__{rank}_0.distcp"


def leaves(tree: Mapping[str, Any]) -> list[Leaf]:
    """Return what a tree of plain values is written as, in its order.

    What is each rank's own (`rng_states`) has its rank in its path.
    """
    found: list[Leaf] = []
    for leaf in _below((), tree):
        rank: int | None = None if isinstance(leaf.value, Spread) else 0
        if leaf.path[0] == "rng_states":
            rank = int(leaf.path[1])
        found.append(Leaf(leaf.name, leaf.path, leaf.value, rank))
    versions = getattr(tree.get("state_dict"), _VERSIONS, None)
    if versions is not None:
        found.append(Leaf(_VERSIONS, (_VERSIONS,), versions))
    return found


def _below(path: tuple[str, ...], value: Any) -> Iterator[Leaf]:
    one = Leaf(".".join(path), path, value)
    if isinstance(value, Mapping) and (not path or (_parted(value) and value)):
        of_rank = path == ("rng_states",)
        for key, inner in value.items():
            if of_rank:
                yield Leaf(f"rng_states.{key}", (*path, str(key)), inner)
            else:
                yield from _below((*path, key), inner)
    else:
        yield one


def _parted(value: Mapping[Any, Any]) -> bool:
    """Say whether a dict is taken apart: its keys are text, and there is a tensor below."""
    if not all(type(key) is str for key in value):
        return False
    return any(
        isinstance(inner, Tensor | Spread) or (isinstance(inner, Mapping) and _parted(inner))
        for inner in value.values()
    )


def shapes(all_: Sequence[Leaf]) -> list[list[Any]]:
    """Return what has to be equal on all ranks: the tensors' names, dtypes and shapes."""
    return [
        [leaf.name, str(leaf.value.dtype), list(leaf.value.shape)]
        for leaf in all_
        if isinstance(leaf.value, Tensor | Spread)
    ]


def write(
    all_: Sequence[Leaf], writer: SizedWriter, rank: int, tags: Mapping[int, str]
) -> list[Placed]:
    """Write this rank's streams, one after the other, and return where each is.

    Args:
        tags: as of `writing.write`.
    """
    placed: list[Placed] = []
    for leaf in all_:
        if isinstance(leaf.value, Spread):
            for box, part in leaf.value.parts:
                placed.append(_stream(leaf.name, box, part, writer, tags))
        elif leaf.rank == rank:
            whole = None
            if _dense(leaf):
                whole = Box((0,) * leaf.value.dim(), tuple(leaf.value.shape))
            placed.append(_stream(leaf.name, whole, leaf.value, writer, tags))
    return placed


def _dense(leaf: Leaf) -> bool:
    return isinstance(leaf.value, Tensor) and form_of(leaf.value) == "strided"


def _stream(
    name: str, box: Box | None, value: Any, writer: SizedWriter, tags: Mapping[int, str]
) -> Placed:
    writer.write(
        b"\0" * (-writer.size % _ALIGNMENT)
    )  # so that a mapping of it can be used as it is
    start = writer.size
    if isinstance(value, Tensor) and box is not None:
        value = value.contiguous()
        if value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()  # FSDP2's parts are views into padded memory
    writing.write(value, writer, tags=tags)
    where = [None, None] if box is None else [list(box.offsets), list(box.sizes)]
    return [name, *where, start, writer.size - start]


def index(all_: Sequence[Leaf], told: Sequence[Sequence[Placed]]) -> bytes:
    """Return the folder's `.metadata`.

    Args:
        all_: rank 0's leaves.
        told: what each rank's `write` returned.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks: dict[str, list[Any]] = {}
    places: dict[Any, Any] = {}
    for rank, streams in enumerate(told):
        for name, offsets, sizes, start, length in streams:
            at = None
            if offsets is not None:
                at = torch.Size(offsets)
                chunks.setdefault(name, []).append(ChunkStorageMetadata(at, torch.Size(sizes)))
            where = MetadataIndex(name, at)
            places[where] = _StorageInfo(file_name(rank), start, length)
    described: dict[str, Any] = {}
    for leaf in all_:
        if isinstance(leaf.value, Spread) or _dense(leaf):
            described[leaf.name] = TensorStorageMetadata(
                TensorProperties(dtype=leaf.value.dtype),
                torch.Size(leaf.value.shape),
                chunks.get(leaf.name, []),
            )
        else:
            described[leaf.name] = BytesStorageMetadata()
    paths = {sys.intern(leaf.name): leaf.path for leaf in all_}
    for where in places:  # what other ranks alone have
        if where.fqn not in described:
            described[where.fqn] = BytesStorageMetadata()
            paths[where.fqn] = tuple(where.fqn.split("."))
    return pickle.dumps(Metadata(described, planner_data=paths, storage_data=places))
