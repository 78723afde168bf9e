"""torch's own values, as pickles spell them: constants, storages' ids, tensors.

Law: every argument of a rebuild function is honoured or the tensor becomes an `Opaque` that says
`is_tensor`, never a dense tensor that differs from torch's. Bounds are checked when a tensor is
made. torch is not imported; torch/_utils.py of 2.13 and torch/_weights_only_unpickler.py are the
model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError
from ..signature import Kind
from .limits import put_items
from .sparse_quantised import quantised_tensor, sparse_tensor
from .strided import is_count, sizes_of, tensor_v1, tensor_v2, tensor_v3
from .tree import (
    DTYPES,
    Constant,
    Global,
    Opaque,
    Quantised,
    Sparse,
    Tensor,
    settle,
)

if TYPE_CHECKING:
    from .recording import Recorder

_STORAGES: Final = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexDouble": "complex128", "ComplexFloat": "complex64",
    "QInt8": "qint8", "QInt32": "qint32", "QUInt8": "quint8", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "untyped", "_Untyped": "untyped",
}  # fmt: skip
_ALIASES: Final = {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32",
    "long": "int64", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip
_LAYOUTS: Final = frozenset(
    {
        "strided",
        "sparse_coo",
        "sparse_csr",
        "sparse_csc",
        "sparse_bsr",
        "sparse_bsc",
        "jagged",
        "_mkldnn",
    }
)
_MEMORY_FORMATS: Final = frozenset(
    {"contiguous_format", "channels_last", "channels_last_3d", "preserve_format"}
)
_QSCHEMES: Final = frozenset(
    {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
     "per_channel_affine_float_qparams"}
)  # fmt: skip


def constant(module: str, name: str) -> Constant | None:
    """Return the constant of torch's that a name means, or None."""
    if module not in ("torch", "torch.storage", "torch.cuda"):
        return None
    if name.endswith("Storage") and name[:-7] in _STORAGES:
        return Constant("storage", _STORAGES[name[:-7]])
    if module != "torch":
        return None
    if name in DTYPES or name in _ALIASES:
        return Constant("dtype", _ALIASES.get(name, name))
    if name in _LAYOUTS:
        return Constant("layout", name)
    if name in _MEMORY_FORMATS:
        return Constant("memory_format", name)
    return Constant("qscheme", name) if name in _QSCHEMES else None


# --- what torch.load(weights_only=True) takes
# -------------------------------------------------------

_SAFE: Final = frozenset(
    {
        "collections.OrderedDict", "collections.Counter", "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout", "torch.Size", "torch.Tensor", "torch.device",
        "_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex",
        "torch._tensor._rebuild_from_type_v2",
        *(
            f"torch._utils._rebuild_{what}"
            for what in (
                "parameter", "parameter_with_state", "qtensor", "tensor", "tensor_v2", "tensor_v3",
                "sparse_tensor", "meta_tensor_no_storage", "nested_tensor", "wrapper_subclass",
                "device_tensor_from_numpy", "device_tensor_from_cpu_tensor",
            )
        ),
    }
)  # fmt: skip
_SAFE_TYPE: Final = re.compile(
    r"torch\.((cuda\.)?(sparse\.)?[A-Z][A-Za-z0-9]*Tensor|(cuda\.)?[A-Z][A-Za-z0-9]*Storage"
    r"|storage\.(Untyped|Typed)Storage|u?int[1-7])"
)


def is_safe(module: str, name: str) -> bool:
    """Say whether `torch.load(weights_only=True)` takes a name, unasked (torch 2.13)."""
    dotted = f"{module}.{name}"
    if dotted in _SAFE or _SAFE_TYPE.fullmatch(dotted):
        return True
    known = constant(module, name)
    return known is not None and known.kind in ("dtype", "storage", "qscheme")


# --- storages' ids
# ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StorageId:
    """What a persistent id says: ('storage', class, key, location, elements[, view])."""

    key: str
    dtype: str
    tag: str
    elements: int
    view: tuple[str, int, int] | None = None

    @property
    def size_bytes(self) -> int:
        """The bytes of the whole storage."""
        return self.elements * DTYPES[self.dtype]


def storage_id(pid: Any) -> StorageId:
    """Return what a persistent id says.

    Raises:
        DamagedError: it is none of torch's.
    """
    if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage":
        cls, key, tag, elements = pid[1:5]
        view = pid[5] if len(pid) == 6 else None
        if (
            isinstance(cls, Constant)
            and cls.kind == "storage"
            and isinstance(key, str)
            and isinstance(tag, str)
            and len(key) + len(tag) <= 512
            and is_count(elements)
            and (view is None or _is_view(view))
        ):
            dtype = "uint8" if cls.name == "untyped" else cls.name
            return StorageId(key, dtype, tag, elements, view)
    raise DamagedError("the pickle names a storage in a way that torch doesn't")


def _is_view(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and isinstance(value[0], str)
        and is_count(value[1])
        and is_count(value[2])
    )


# --- tensors
# ----------------------------------------------------------------------------------------


def _parameter(_: Recorder, args: tuple[Any, ...]) -> Any:
    """_rebuild_parameter(data, requires_grad, hooks), and torch 0.3's Parameter(data)."""
    if not 1 <= len(args) <= 3 or not isinstance(args[0], Tensor | Sparse | Quantised):
        return NotImplemented
    requires_grad = args[1] if len(args) > 1 else True
    if type(requires_grad) is not bool or (len(args) == 3 and args[2]):
        return NotImplemented
    if requires_grad and isinstance(args[0], Quantised):
        return NotImplemented
    return replace(args[0], kind="parameter", requires_grad=requires_grad)


def _variable(_: Recorder, args: tuple[Any, ...]) -> Any:
    return replace(args[0]) if len(args) == 1 and isinstance(args[0], Tensor) else NotImplemented


def _parameter_with_state(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) != 4:
        return NotImplemented
    return _with_state(_parameter(recorder, args[:3]), args[3])


def _from_type(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    """_rebuild_from_type_v2(func, type, args, state) of Tensor, Parameter and Buffer."""
    if len(args) != 4 or type(args[0]) is not Global or type(args[1]) is not Global:
        return NotImplemented
    func, cls, inner, state = args
    kind = _KINDS.get((cls.module, cls.name))
    # Only the functions of _REBUILDS: this one inside itself would nest without end.
    maker = _REBUILDS.get((func.module, func.name))
    if cls.dotted == _DTENSOR and isinstance(inner, tuple):
        whole = _replicated(inner, state)
        if whole is not None:
            return whole
    if kind is None or maker is None or not isinstance(inner, tuple):
        return Opaque(cls.dotted, (func, inner), state=state, is_tensor=True)
    made = maker(recorder, inner)
    if made is NotImplemented:
        return NotImplemented
    if kind != "tensor" and made.kind != kind:
        settle(made, kind=kind)
    return _with_state(made, state)


def _replicated(inner: tuple[Any, ...], state: Any) -> Tensor | None:
    """Return the whole tensor of a DTensor that every rank holds whole; None for any other.

    That it is whole is proved twice: all placements are Replicate, and the shape and dtype of the
    whole (_rebuild_wrapper_subclass's size, torch 2.13) are those of this rank's tensor.
    """
    if not isinstance(state, tuple) or len(state) != 2 or len(inner) != 8:
        return None
    attributes, fields = state
    if not isinstance(fields, dict) or fields.keys() != {"_local_tensor", "_spec"}:
        return None
    local, spec = fields["_local_tensor"], fields["_spec"]
    spec_fields = spec.state if isinstance(spec, Opaque) else None
    placements = spec_fields.get("placements") if isinstance(spec_fields, dict) else None
    if type(local) is not Tensor or not isinstance(placements, tuple) or not placements:
        return None
    if any(not isinstance(p, Opaque) or p.name != _REPLICATE for p in placements):
        return None
    _, dtype, size, _, _, layout, _, requires_grad = inner
    if dtype != Constant("dtype", local.dtype) or layout != Constant("layout", "strided"):
        return None
    if sizes_of(size) != local.shape or type(requires_grad) is not bool:
        return None
    if attributes not in (None, {}, {"_is_param": True}):
        return None
    return replace(local, kind="parameter" if attributes else "tensor", requires_grad=requires_grad)


def _with_state(made: Any, state: Any) -> Any:
    """Give a tensor the Python attributes that were saved with it."""
    if made is NotImplemented:
        return made
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if any(part is not None and not isinstance(part, dict) for part in parts):
        return NotImplemented
    attributes: dict[Any, Any] = {}
    for part in parts:
        put_items(attributes, list(part or ()), list((part or {}).values()))
    if attributes:
        settle(made, attributes=attributes)
        # nn.Buffer(x) is a plain Tensor marked so; a custom parameter is marked likewise.
        for mark, kind in (("_is_buffer", "buffer"), ("_is_param", "parameter")):
            if attributes.get(mark) is True:
                settle(made, kind=kind)
    return made


def set_tensor_state(target: Tensor, state: Any) -> None:
    """Take the state (requires_grad, volatile, hooks) that torch 0.3 and before set on a tensor.

    Raises:
        DamagedError: it is none of that.
    """
    if (
        isinstance(state, tuple)
        and len(state) == 3
        and type(state[0]) is bool
        and (state[2] is None or (isinstance(state[2], dict) and not state[2]))
    ):
        settle(target, requires_grad=state[0])
        return
    raise DamagedError("the pickle sets a state on a tensor that torch doesn't write")


def _size(_: Recorder, args: tuple[Any, ...]) -> Any:
    sizes = sizes_of(args[0]) if len(args) == 1 else ()
    return NotImplemented if sizes is None or len(args) > 1 else sizes


def _device(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and isinstance(args[0], str):
        return Constant("device", args[0])
    if len(args) == 2 and isinstance(args[0], str) and is_count(args[1]):
        return Constant("device", f"{args[0]}:{args[1]}")
    return NotImplemented


def _layout(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and isinstance(args[0], str):
        name = args[0].removeprefix("torch.")
        return Constant("layout", name) if name in _LAYOUTS else NotImplemented
    return NotImplemented


def makes_tensor(module: str, name: str) -> bool:
    """Say whether a function that wasn't understood would have made a tensor."""
    if (module, name) in MAKERS:
        return name.startswith("_rebuild") or name in ("Parameter", "Variable")
    return module.startswith("torch.") and (
        name.startswith("_rebuild") or name in ("UninitializedParameter", "UninitializedBuffer")
    )


_DTENSOR: Final = "torch.distributed.tensor.DTensor"
_REPLICATE: Final = "torch.distributed.tensor.placement_types.Replicate"

_Maker = Callable[["Recorder", tuple[Any, ...]], Any]

_KINDS: Final[dict[tuple[str, str], Kind]] = {
    ("torch", "Tensor"): "tensor",
    ("torch._tensor", "Tensor"): "tensor",
    ("torch.nn.parameter", "Parameter"): "parameter",
    ("torch.nn.parameter", "Buffer"): "buffer",
}

_REBUILDS: Final[dict[tuple[str, str], _Maker]] = {
    ("torch._utils", "_rebuild_tensor"): tensor_v1,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
    ("torch._utils", "_rebuild_sparse_tensor"): sparse_tensor,
    ("torch._utils", "_rebuild_qtensor"): quantised_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
}

MAKERS: Final[dict[tuple[str, str], _Maker]] = {
    **_REBUILDS,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.autograd.variable", "Variable"): _variable,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): _layout,
}
