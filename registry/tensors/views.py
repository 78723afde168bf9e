"""What a strided tensor is of its storage, and which names are one tensor.

Law: identity is by storage, place and dtype, never by value; it works on meta too, where no memory
is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def dtype_name(tensor: Tensor) -> str:
    """Return a dtype as the records write it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def tie_groups(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that are one tensor: same storage, place and dtype."""
    groups: dict[object, list[str]] = {}
    for name, t in tensors.items():
        if t.layout is torch.strided:
            groups.setdefault(view_key(t), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def view_key(tensor: Tensor) -> tuple[object, ...]:
    """Return what the names of one strided tensor have in common, and no others."""
    storage = tensor.untyped_storage()
    place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return (storage._cdata, tensor.dtype, *place)
