"""The numbers of a diff: how the values of two tensors of one shape differ.

Law: memory for one piece at a time, however large the tensors; the bits decide what is equal where
the dtypes are, the values where they aren't. Nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..diffing import Numbers, together
from ..errors import ContainerError
from .checks import same_bits
from .views import form_of

PIECE: int = 1 << 20
"""How many elements are compared at once; each takes some 60 bytes meanwhile."""


def compare(a: Tensor, b: Tensor) -> Numbers:
    """Return how the values of two tensors differ, whatever their dtypes, layouts and strides.

    Raises:
        ContainerError: values of such a dtype can't be compared as numbers, and the bits differ.
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    forms = form_of(a), form_of(b)
    if forms != ("strided", "strided"):
        if same_bits(a, b):
            return Numbers(True)
        what = f"{forms[0]} and {forms[1]}" if forms[0] != forms[1] else f"two {forms[0]}"
        raise ContainerError(
            f"{what} tensors, whose parts differ: only dense ones are compared as numbers"
        )
    with torch.no_grad():
        return together(_numbers(x, y) for x, y in _pieces(a.detach(), b.detach()))


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two tensors in pieces; views, whatever the strides, and never a copy of the whole."""
    if a.numel() <= PIECE or a.dim() == 0:
        if a.numel():
            yield a, b
        return
    row = a.numel() // a.shape[0]
    step = max(1, PIECE // row)
    for start in range(0, a.shape[0], step):
        if step == 1:
            yield from _pieces(a[start], b[start])
        else:
            yield a[start : start + step], b[start : start + step]


def _numbers(a: Tensor, b: Tensor) -> Numbers:
    same = same_bits(a, b)
    try:
        wide_a, wide_b = _wide(a), _wide(b)
    except (RuntimeError, NotImplementedError) as error:
        if same:
            return Numbers(True)
        raise ContainerError(f"values of {a.dtype} and {b.dtype} can't be compared") from error
    # -0.0 equals 0.0 as a number and differs in its bits; NaN is the other way round
    alike = (wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())
    finite = wide_a.isfinite() & wide_b.isfinite()
    equal = same or (a.dtype != b.dtype and bool(alike.all()))
    wide_a, wide_b = wide_a[finite], wide_b[finite]
    difference = wide_b - wide_a
    return Numbers(
        equal,
        max_abs=_finite(difference.abs().max()) if difference.numel() else 0.0,
        nonfinite=int((~alike & ~finite).sum()),
        difference2=_finite(difference.dot(difference)),
        a2=_finite(wide_a.dot(wide_a)),
        b2=_finite(wide_b.dot(wide_b)),
        product=_finite(wide_a.dot(wide_b)),
    )


def _finite(value: Tensor) -> float:
    """Return a number that JSON has: squares of the largest doubles overflow."""
    number = float(value)
    limit = torch.finfo(torch.float64).max
    return number if math.isfinite(number) else math.copysign(limit, number)


def _wide(tensor: Tensor) -> Tensor:
    """Return the values as a row of float64; a complex one is two."""
    plain = tensor.resolve_conj().resolve_neg()
    if plain.is_complex():
        wide = plain.to(torch.complex64) if plain.dtype == torch.complex32 else plain
        plain = torch.view_as_real(wide)
    return plain.reshape(-1).to(torch.float64)
