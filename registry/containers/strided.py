"""Dense strided tensors, as pickles spell them: a view into a storage, by a rebuild function.

Law: every argument is honoured or the maker says NotImplemented, and bounds are checked, in exact
integers, before there is a tensor. What a file's tensors take beyond its bytes is capped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import UntrustedError
from .limits import check_bounds
from .tree import DTYPES, Constant, Storage, StorageView, Tensor

if TYPE_CHECKING:
    from .recording import Recorder

MAX_EXPANDED_BYTES: Final = 4 << 30
"""How much a file's tensors may take beyond their storages, where strides overlap."""


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def sizes_of(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, tuple | list) and len(value) <= 64 and all(map(is_count, value)):
        return tuple(value)
    return None


def dense(
    recorder: Recorder,
    storage: Any,
    *,
    place: tuple[Any, ...],
    dtype: str | None,
    requires_grad: Any,
    hooks: Any,
    metadata: Any,
) -> Any:
    """Return the dense tensor, bounds checked; NotImplemented for an argument not understood."""
    first, shape, stride = place[0], sizes_of(place[1]), sizes_of(place[2])
    view = storage if isinstance(storage, StorageView) else None
    root = view.root if view else storage
    if not isinstance(root, Storage) or not is_count(first) or shape is None or stride is None:
        return NotImplemented
    if type(requires_grad) is not bool or hooks:
        return NotImplemented
    if metadata is not None and not _is_metadata(metadata):
        return NotImplemented
    dtype = dtype or root.dtype
    size_bytes = root.size_bytes
    if view is not None:
        if dtype != root.dtype:
            return NotImplemented
        first += view.offset
        size_bytes = (view.offset + view.elements) * DTYPES[dtype]
    check_bounds(
        shape=shape, stride=stride, offset=first, dtype=dtype, size_bytes=size_bytes, name=root.key
    )
    metadata = metadata or {}
    made = Tensor(
        root, dtype, shape, stride, first, "tensor", requires_grad,
        metadata.get("conj", False), metadata.get("neg", False),
    )  # fmt: skip
    if made.size_bytes > root.size_bytes:
        recorder.expanded_bytes += made.size_bytes - root.size_bytes
        if recorder.expanded_bytes > MAX_EXPANDED_BYTES:
            raise UntrustedError(
                f"the file's tensors would take more than {MAX_EXPANDED_BYTES >> 30} GiB beyond "
                "the bytes that it holds"
            )
    return made


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"conj", "neg"}
        and all(type(bit) is bool for bit in value.values())
    )


def tensor_v1(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) != 4:
        return NotImplemented
    return dense(
        recorder,
        args[0],
        place=args[1:4],
        dtype=None,
        requires_grad=False,
        hooks=None,
        metadata=None,
    )


def tensor_v2(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    if not 6 <= len(args) <= 7:
        return NotImplemented
    metadata = args[6] if len(args) == 7 else None
    return dense(
        recorder,
        args[0],
        place=args[1:4],
        dtype=None,
        requires_grad=args[4],
        hooks=args[5],
        metadata=metadata,
    )


def tensor_v3(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    if not 7 <= len(args) <= 8:
        return NotImplemented
    dtype = args[6]
    if not isinstance(dtype, Constant) or dtype.kind != "dtype":
        return NotImplemented
    metadata = args[7] if len(args) == 8 else None
    return dense(
        recorder, args[0], place=args[1:4], dtype=dtype.name,
        requires_grad=args[4], hooks=args[5], metadata=metadata,
    )  # fmt: skip
