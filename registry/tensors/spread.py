"""Tensors that are spread over processes: which part of one this process holds.

Law: a part is a box (offsets and sizes in the whole); the boxes of all processes that answer for
theirs cover the whole exactly. Makes no collective call. Knows DTensor (FSDP2, tensor parallel,
HSDP) and ShardedTensor (FSDP1), and imports neither: one can only be here if its module is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import RefusedLoadError
from .wrappers import is_a

_DTENSOR: Final = ("torch.distributed.tensor", "DTensor")
_SHARDED: Final = ("torch.distributed._shard.sharded_tensor", "ShardedTensor")

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor: where its first element lies in the whole, and how far it reaches."""

    offsets: Sizes
    sizes: Sizes

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    def common(self, other: Box) -> Box | None:
        """Return what two parts of one tensor have in common, or None."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        ends = tuple(
            min(a + m, b + n)
            for a, m, b, n in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )
        sizes = tuple(end - start for start, end in zip(offsets, ends, strict=True))
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Return where it lies in a larger part that holds it, as an index."""
        return tuple(
            slice(start - base, start - base + size)
            for start, base, size in zip(self.offsets, outer.offsets, self.sizes, strict=True)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A tensor that is spread over processes, as it is written.

    Attributes:
        dtype: torch's.
        shape: the whole's.
        parts: what this process answers for; where several hold the same, only one does.
    """

    dtype: torch.dtype
    shape: Sizes
    parts: tuple[tuple[Box, Tensor], ...]


def is_spread(value: object) -> bool:
    """Say whether a tensor is one of which processes hold parts."""
    return is_a(value, *_DTENSOR) or is_a(value, *_SHARDED)


def local_of(tensor: Tensor) -> Tensor:
    """Return the tensor that is here: of a spread one this process's part, of others itself."""
    if is_a(tensor, *_DTENSOR):
        return tensor._local_tensor  # type: ignore[attr-defined,no-any-return]
    if is_a(tensor, *_SHARDED):
        shards = tensor.local_shards()  # type: ignore[attr-defined]
        return shards[0].tensor if shards else torch.empty(0, dtype=tensor.dtype)
    return tensor


def box_of(tensor: Any, what: str) -> Box:
    """Return which part of a spread tensor this process holds; one without elements if none.

    Args:
        what: names it in errors.

    Raises:
        RefusedLoadError: it is of a sort that has no such part.
    """
    nothing = Box((0,) * tensor.dim(), (0,) * tensor.dim())
    if is_a(tensor, *_SHARDED):
        shards = tensor.local_shards()
        if len(shards) > 1:
            raise _odd(what, f"lies in {len(shards)} pieces on this rank")
        if not shards:
            return nothing
        found = shards[0].metadata
        return Box(tuple(found.shard_offsets), tuple(found.shard_sizes))
    if any(placement.is_partial() for placement in tensor.placements):
        raise _odd(what, "is a partial sum on each rank")
    if tensor.device_mesh.get_coordinate() is None:
        return nothing
    chunks = tensor.__create_chunk_list__()  # torch.distributed.checkpoint's own way to ask
    if len(chunks) != 1:
        raise _odd(what, f"lies in {len(chunks)} pieces on this rank")
    box = Box(tuple(chunks[0].offsets), tuple(chunks[0].sizes))
    if box.sizes != tuple(local_of(tensor).shape):
        raise _odd(what, f"holds {tuple(local_of(tensor).shape)} where {box.sizes} should be")
    return box


def _odd(what: str, why: str) -> RefusedLoadError:
    return RefusedLoadError(
        f"{what} is spread over the ranks in a way that isn't known: it {why}",
        hint="redistribute it: tensor.redistribute(placements=[Shard(0)])",
    )


def _answers(tensor: Any) -> bool:
    """Say whether this process answers for its part: of equal ones, the first on each axis does."""
    if is_a(tensor, *_SHARDED):
        return True
    place = tensor.device_mesh.get_coordinate()
    return place is not None and all(
        at == 0 or not placement.is_replicate()
        for at, placement in zip(place, tensor.placements, strict=True)
    )


def parts_to_write(tensor: Tensor, what: str) -> tuple[tuple[Box, Tensor], ...]:
    """Return what of a spread tensor this process has to write. Raises as `box_of`."""
    box = box_of(tensor, what)
    if not _answers(tensor) or (not box.elements and 0 not in tensor.shape):
        return ()
    return ((box, local_of(tensor).detach()),)


def like(target: Any, local: Tensor) -> Tensor:
    """Return a tensor spread as `target` is, whose part here is `local`.

    Raises:
        RefusedLoadError: FSDP1 keeps no tensor of that dtype there.
    """
    if is_a(target, *_SHARDED):
        if local.dtype != target.dtype:
            raise RefusedLoadError(
                f"FSDP1 spreads a tensor of {target.dtype}, and its state is of {local.dtype}",
                hint="use fully_shard (FSDP2), or leave optimizer= out: the weights load",
            )
        made = target.clone()
        for shard in made.local_shards():
            shard.tensor.copy_(local)
        return made  # type: ignore[no-any-return]
    cls = type(target) if is_a(target, *_DTENSOR) else None
    assert cls is not None
    return cls.from_local(  # type: ignore[no-any-return]  # no run_check: that would be a collective call
        local, target.device_mesh, target.placements, run_check=False,
        shape=target.shape, stride=target.stride(),
    )  # fmt: skip


def device_of(tensor: Any) -> str:
    """Return the device of this process that a spread tensor's part belongs on, on meta too."""
    local = local_of(tensor)
    if not local.is_meta or not is_a(tensor, *_DTENSOR):
        return str(local.device)
    kind = str(tensor.device_mesh.device_type)
    module = getattr(torch, kind, None)
    index = None if kind == "cpu" or module is None else module.current_device()
    return kind if index is None else f"{kind}:{index}"


def placements_of(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Return how many tensors are placed how: `{'Shard(dim=0)': 12}`."""
    return dict(Counter(map(_placed, tensors)))


def _placed(tensor: Any) -> str:
    if is_a(tensor, *_DTENSOR):
        return ", ".join(str(_named(placement)) for placement in tensor.placements)
    return "Shard(0)" if is_a(tensor, *_SHARDED) else "whole"


def _named(placement: Any) -> str:
    dim = getattr(placement, "dim", None)
    return type(placement).__name__.lstrip("_") + ("" if dim is None else f"({dim})")


def meshes_of(tensors: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the device meshes that tensors are spread over: their shapes and axes' names."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for tensor in tensors:
        if is_a(tensor, *_DTENSOR):
            mesh = tensor.device_mesh
            shape, names = tuple(mesh.shape), tuple(mesh.mesh_dim_names or ())
            found.setdefault((shape, names), {"shape": list(shape), "names": list(names)})
    return list(found.values())
