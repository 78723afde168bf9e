"""Sparse and quantised tensors from their parts, by torch's public constructors.

Law: every invariant is checked, on bytes that were verified: what torch would take and compute
wrongly with, or crash on, is refused as damage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

from ..containers import Quantised, Sparse, Storage, Tensor
from ..errors import DamagedError

INTEGERS_OF: Final = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
"""The dtypes of quantised tensors, and those of the integers that they hold."""

Build = Callable[[Tensor], torch.Tensor]
Place = Callable[[Storage, str], torch.UntypedStorage]


def sparse(found: Sparse, build: Build) -> torch.Tensor:
    """Return a sparse tensor on its parts' own memory.

    Args:
        build: makes its parts.

    Raises:
        DamagedError: its indices lie outside of it, or are not in order where they say so.
    """
    indices = [build(part).detach() for part in found.indices]
    values = build(found.values).detach()
    with _quiet():
        try:
            if found.layout == "sparse_coo":
                return torch.sparse_coo_tensor(
                    indices[0],
                    values,
                    found.shape,
                    is_coalesced=found.coalesced,
                    check_invariants=True,
                )
            compressed, plain = indices
            return torch.sparse_compressed_tensor(
                compressed,
                plain,
                values,
                found.shape,
                layout=getattr(torch, found.layout),
                check_invariants=True,
            )
        except RuntimeError as error:
            raise DamagedError(
                f"a {found.layout} tensor of shape {found.shape} contradicts itself: "
                f"{str(error).splitlines()[0]}"
            ) from error


def quantised(found: Quantised, build: Build, place: Place) -> torch.Tensor:
    """Return a quantised tensor on the file's own integers.

    Args:
        build: makes scales and zero points.
        place: makes the storage of the integers.

    Raises:
        DamagedError: a scale is not above zero, or a zero point is no such integer.
    """
    with _quiet():
        empty = _empty(found, build)
    integers = found.integers
    storage = place(integers.storage, integers.dtype)
    made: torch.Tensor = empty.set_(storage, integers.offset, integers.shape, integers.stride)
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch 2.13 warns of: compressed layouts in beta, quantisation deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _empty(found: Quantised, build: Build) -> torch.Tensor:
    """Return a tensor with the right quantiser, whose storage is to be set."""
    dtype = getattr(torch, found.dtype)
    scale, zero_point = found.scale, found.zero_point
    if isinstance(scale, Tensor) or isinstance(zero_point, Tensor):
        assert isinstance(scale, Tensor)  # both or neither
        assert isinstance(zero_point, Tensor)
        assert found.axis is not None
        scales, zero_points = build(scale).detach(), build(zero_point).detach()
        _check(found, scales, zero_points)
        # No elements but along the axis: the shape comes with the storage.
        shape = [size if i == found.axis else 0 for i, size in enumerate(found.shape)]
        return torch.quantize_per_channel(
            torch.zeros(shape), scales, zero_points, found.axis, dtype
        )
    return torch.quantize_per_tensor(torch.zeros(0), scale, zero_point, dtype)


def _check(found: Quantised, scales: torch.Tensor, zero_points: torch.Tensor) -> None:
    limits = torch.iinfo(getattr(torch, INTEGERS_OF[found.dtype]))
    sound = scales.isfinite() & (scales > 0)
    sound &= (zero_points >= limits.min) & (zero_points <= limits.max)
    if not bool(sound.all()):
        at = int((~sound).nonzero()[0])
        raise DamagedError(
            f"a {found.dtype} tensor of shape {found.shape} has the scale {float(scales[at])} and "
            f"the zero point {int(zero_points[at])} at {at}"
        )
