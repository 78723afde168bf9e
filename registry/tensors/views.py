"""What a strided tensor is of its storage, and which names are one tensor.

Law: identity is by storage, place and dtype, never by value; it works on meta too, where no memory
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from .spread import is_spread, local_of


def dtype_name(tensor: Tensor) -> str:
    """Return a dtype as the records write it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


FORMS: Final = {
    "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc",
    "per_tensor_affine", "per_channel_affine",
}  # fmt: skip
"""The sorts of tensor that a file may hold beside dense ones."""


def form_of(tensor: Tensor) -> str:
    """Return a tensor's sort: `strided`, `sparse_coo`, `per_tensor_affine`."""
    if is_spread(tensor):  # FSDP1's doesn't answer what follows
        return "strided"
    if tensor.is_quantized:
        return str(tensor.qscheme()).removeprefix("torch.")
    return str(tensor.layout).removeprefix("torch.")


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors with storages of their own that one is made of; of a dense one, itself."""
    layout = tensor.layout
    if layout == torch.sparse_coo:
        return (tensor._indices(), tensor._values())
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    if layout in (torch.sparse_csc, torch.sparse_bsc):
        return (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    if tensor.is_quantized and tensor.qscheme() == torch.per_channel_affine:
        return (tensor, tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    return (tensor,)


def storages_of(tensor: Tensor) -> dict[int, int]:
    """Return the storages under a tensor, each one's bytes by its identity."""
    found = [part.untyped_storage() for part in parts_of(local_of(tensor))]
    return {storage._cdata: storage.nbytes() for storage in found}


def size_bytes(tensor: Tensor) -> int:
    """Return a tensor's bytes, those of a sparse one's parts."""
    return sum(part.nbytes for part in parts_of(tensor))


def quantizer_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return scale and zero point of a quantised tensor, as tensors whatever its scheme."""
    if tensor.qscheme() == torch.per_tensor_affine:
        return (
            torch.tensor(tensor.q_scale(), dtype=torch.float64),
            torch.tensor(tensor.q_zero_point()),
        )
    axis = torch.tensor(tensor.q_per_channel_axis())
    return (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis)


def tie_groups(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that are one tensor: same storage, place and dtype."""
    groups: dict[object, list[str]] = {}
    for name, t in tensors.items():
        if form_of(t) == "strided" or t.layout is torch.strided:
            groups.setdefault(view_key(t), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def view_key(tensor: Tensor) -> tuple[object, ...]:
    """Return what the names of one strided tensor have in common, and no others."""
    tensor = local_of(tensor)
    storage = tensor.untyped_storage()
    place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    scale = tuple(map(str, quantizer_of(tensor))) if tensor.is_quantized else ()
    return (storage._cdata, tensor.dtype, *place, *scale)
