"""Comparing tensors by their bits, and seeing whether values survive a cast.

Law: nothing is changed; memory for one tensor at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .views import form_of, parts_of, quantizer_of


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one dtype, shape and bits: NaN is NaN, 0.0 is not -0.0.

    Sparse ones are compared part by part, as they stand: an order of indices counts.
    """
    if a.dtype != b.dtype or a.shape != b.shape or form_of(a) != form_of(b):
        return False
    parts = list(zip(_dense(a), _dense(b), strict=True))
    if any(x.dtype != y.dtype or x.shape != y.shape for x, y in parts):
        return False
    return all(torch.equal(_bytes(x), _bytes(y)) for x, y in parts)


def _dense(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors whose bits are a tensor's."""
    if tensor.is_quantized:
        return (tensor.int_repr(), *quantizer_of(tensor))
    return parts_of(tensor)


def _bytes(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if not plain.numel():
        return torch.empty(0, dtype=torch.uint8)
    # One element may have any stride and is contiguous all the same, but its bytes can't be viewed.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def check_cast(tensor: Tensor, to: torch.dtype) -> str | None:
    """Return what a cast would lose that must not be lost, in words, or None.

    Floats and complex: what is finite must stay finite. Integers: every value must be in range.
    """
    if tensor.numel() == 0 or tensor.dtype == to:
        return None
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        lost = torch.isfinite(_wide(tensor)) & ~torch.isfinite(_wide(tensor.to(to)))
        if tensor.dtype.is_floating_point and to.itemsize == 1:
            # Casts to the float8 types end at the largest value in place of infinity (torch 2.13).
            wide = _wide(tensor).abs()
            lost |= torch.isfinite(wide) & (wide >= _ceiling(to))
        many = int(lost.sum())
        return f"{many} finite values are beyond its range" if many else None
    if tensor.dtype == torch.bool or to.is_floating_point or to.is_complex:
        return None
    low, high = _range(tensor)
    limits = torch.iinfo(to)
    if limits.min <= low and high <= limits.max:
        return None
    return f"its values go from {low} to {high}, and {to} holds {limits.min} to {limits.max}"


def _ceiling(dtype: torch.dtype) -> float:
    """Return where a float type's rounding ends: its greatest value and half a step more."""
    limits = torch.finfo(dtype)
    step: float = 2.0 ** math.floor(math.log2(limits.max)) * limits.eps
    return limits.max + step / 2


def _wide(tensor: Tensor) -> Tensor:
    """Return the values in a type that torch.isfinite knows: it lacks the float8 types (2.13)."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _range(tensor: Tensor) -> tuple[int, int]:
    """Return the extremes; torch has no min() and max() for the wider unsigned types (2.13)."""
    if tensor.dtype != torch.uint64:
        wide = tensor.to(torch.int64)
        return int(wide.min()), int(wide.max())
    flipped = tensor.contiguous().view(torch.int64) ^ torch.iinfo(torch.int64).min
    return int(flipped.min()) + 2**63, int(flipped.max()) + 2**63
