"""Sparse and quantised tensors, as pickles spell them: made of dense ones.

Law: every argument is honoured or the maker says NotImplemented; sizes that contradict each other
are damage. What only the bytes say (indices, scales per channel) is checked when it is built.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError
from .strided import dense, is_count, sizes_of
from .tree import Constant, Quantised, Sparse, Storage, Tensor

if TYPE_CHECKING:
    from .recording import Recorder

COMPRESSED: Final = frozenset({"sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"})

INTEGERS: Final = {
    "qint8": (-(2**7), 2**7 - 1), "quint8": (0, 2**8 - 1), "qint32": (-(2**31), 2**31 - 1),
}  # fmt: skip
"""The quantised dtypes of whole bytes, and the range of each one's integers."""


def sparse_tensor(_: Recorder, args: tuple[Any, ...]) -> Any:
    """Make what `_rebuild_sparse_tensor(layout, data)` makes (torch 2.13; 3 parts before 2.1)."""
    if len(args) != 2 or not isinstance(args[0], Constant) or args[0].kind != "layout":
        return NotImplemented
    layout, data = args[0].name, args[1]
    coalesced = None
    if layout == "sparse_coo" and isinstance(data, tuple) and len(data) == 4:
        coalesced, data = data[3], data[:3]
        if coalesced is not None and type(coalesced) is not bool:
            return NotImplemented
    many = 1 if layout == "sparse_coo" else 2 if layout in COMPRESSED else 0
    if not many or not isinstance(data, tuple) or len(data) != many + 2:
        return NotImplemented
    indices, values, shape = data[:many], data[many], sizes_of(data[many + 1])
    if shape is None or any(type(part) is not Tensor for part in (*indices, values)):
        return NotImplemented
    if any(part.conj or part.neg for part in indices):
        return NotImplemented
    made = Sparse(layout, values.dtype, shape, indices, values, coalesced)
    if math.prod(shape) >= 2**63 or not (_coo_fits if many == 1 else _compressed_fits)(made):
        raise DamagedError(
            f"a {layout} tensor of shape {shape} has indices of "
            f"{' and '.join(f'{i.dtype} {i.shape}' for i in indices)}, values of {values.shape}"
        )
    return made


def _coo_fits(made: Sparse) -> bool:
    (indices,), values = made.indices, made.values
    if indices.dtype != "int64" or len(indices.shape) != 2 or not values.shape:
        return False
    depth, count = indices.shape
    return (
        depth <= len(made.shape)
        and values.shape[0] == count
        and values.shape[1:] == made.shape[depth:]
    )


def _compressed_fits(made: Sparse) -> bool:
    compressed, plain = made.indices
    batch = compressed.shape[:-1]
    blocks = 2 if made.layout in ("sparse_bsr", "sparse_bsc") else 0
    at = len(batch)
    return (
        compressed.dtype == plain.dtype
        and plain.dtype in ("int32", "int64")
        and bool(compressed.shape)
        and len(plain.shape) == len(compressed.shape)
        and plain.shape[:-1] == batch == made.values.shape[:at] == made.shape[:at]
        and made.values.shape[: at + 1] == plain.shape
        and len(made.values.shape) == len(made.shape) - 1 + blocks
        and made.values.shape[at + 1 + blocks :] == made.shape[at + 2 :]
    )


def quantised_tensor(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    """Make what `_rebuild_qtensor` makes of an affine scheme (torch 2.13)."""
    if len(args) != 7 or args[5] is not False or not isinstance(args[4], tuple) or not args[4]:
        return NotImplemented
    scheme, *parameters = args[4]
    if not isinstance(scheme, Constant) or scheme.kind != "qscheme":
        return NotImplemented
    if not isinstance(args[0], Storage) or args[0].dtype not in INTEGERS:
        return NotImplemented
    integers = dense(
        recorder, args[0], place=args[1:4], dtype=None, requires_grad=False, hooks=args[6],
        metadata=None,
    )  # fmt: skip
    if integers is NotImplemented:
        return NotImplemented
    if scheme.name == "per_tensor_affine" and len(parameters) == 2:
        return _per_tensor(integers, *parameters)
    if scheme.name == "per_channel_affine" and len(parameters) == 3:
        return _per_channel(integers, *parameters)
    return NotImplemented


def _per_tensor(integers: Tensor, scale: Any, zero_point: Any) -> Any:
    if type(scale) is not float or type(zero_point) is not int:
        return NotImplemented
    low, high = INTEGERS[integers.dtype]
    if not (0 < scale < math.inf and low <= zero_point <= high):
        raise DamagedError(
            f"a {integers.dtype} tensor of shape {integers.shape} has the scale {scale} and the "
            f"zero point {zero_point}"
        )
    return Quantised(integers, "per_tensor_affine", scale, zero_point)


def _per_channel(integers: Tensor, scales: Any, zero_points: Any, axis: Any) -> Any:
    if type(scales) is not Tensor or type(zero_points) is not Tensor or not is_count(axis):
        return NotImplemented
    if scales.conj or scales.neg or zero_points.conj or zero_points.neg:
        return NotImplemented
    if (scales.dtype, zero_points.dtype) != ("float64", "int64"):
        return NotImplemented
    if axis >= len(integers.shape) or not (
        scales.shape == zero_points.shape == (integers.shape[axis],)
    ):
        raise DamagedError(
            f"a {integers.dtype} tensor of shape {integers.shape} has {scales.shape} scales and "
            f"{zero_points.shape} zero points along its dimension {axis}"
        )
    return Quantised(integers, "per_channel_affine", scales, zero_points, axis)
