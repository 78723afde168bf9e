"""numpy's scalars and arrays, as pickles spell them: Python numbers, and `Array`.

Law: an array's bytes are exactly what its shape and dtype need. numpy itself is not imported.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError
from .tree import Array, Global, NumpyDtype, settle

if TYPE_CHECKING:
    from .recording import Recorder

_SCALARS: Final = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
    "c8": "ff", "c16": "dd",
}  # fmt: skip


def _dtype(_: Recorder, args: tuple[Any, ...]) -> Any:
    """numpy.dtype('f4', False, True); its byte order follows as state."""
    if not args or not isinstance(args[0], str):
        return NotImplemented
    if not re.fullmatch(r"[biufcSUVOMm]\d{0,9}", args[0]):
        return NotImplemented
    return NumpyDtype("|" + args[0])


def _scalar(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) != 2 or not isinstance(args[0], NumpyDtype):
        return NotImplemented
    data = args[1].encode() if isinstance(args[1], str) else args[1]
    order, code = args[0].typestr[0], args[0].typestr[1:]
    if not isinstance(data, bytes):
        return NotImplemented
    if code[0] == "S" and len(data) == int(code[1:] or 0):
        return data.rstrip(b"\0")
    if code[0] == "U" and len(data) == 4 * int(code[1:] or 0):
        return data.decode("utf-32-be" if order == ">" else "utf-32-le", "replace").rstrip("\0")
    form = _SCALARS.get(code)
    if form is None:
        return NotImplemented
    form = (">" if order == ">" else "<") + form
    if struct.calcsize(form) != len(data):
        raise DamagedError(f"a numpy scalar of dtype {code} in the pickle has {len(data)} bytes")
    parts = struct.unpack(form, data)
    return complex(*parts) if code[0] == "c" else parts[0]


def _reconstruct(_: Recorder, args: tuple[Any, ...]) -> Any:
    """multiarray._reconstruct(numpy.ndarray, (0,), b'b'): all that matters follows as state."""
    if len(args) != 3 or type(args[0]) is not Global:
        return NotImplemented
    if (args[0].module, args[0].name) != ("numpy", "ndarray"):
        return NotImplemented  # a matrix, a masked array, somebody's own
    return Array("|u1", (0,), b"")


def _from_buffer(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    """numeric._frombuffer(buffer, dtype, shape, order): how protocol 5 spells an array."""
    if len(args) != 4 or not isinstance(args[0], bytes | bytearray):
        return NotImplemented
    if not isinstance(args[1], NumpyDtype) or args[3] not in ("C", "F"):
        return NotImplemented
    array = Array("|u1", (0,), b"")
    _fill(recorder, array, args[2], args[1], args[3] == "F", args[0])
    return array


def set_numpy_state(recorder: Recorder, target: Array | NumpyDtype, state: Any) -> None:
    """Give a dtype its byte order, or an array its shape, dtype and elements, as BUILD says.

    Raises:
        DamagedError: the state is not what numpy writes.
    """
    if not isinstance(state, tuple) or len(state) < 5:
        raise DamagedError("a numpy value in the pickle has a state that numpy doesn't write")
    if isinstance(target, Array):
        _, shape, dtype, fortran, data = state[:5]
        if not isinstance(dtype, NumpyDtype):
            raise DamagedError("a numpy array in the pickle has no dtype")
        _fill(recorder, target, shape, dtype, fortran is True, data)
        return
    order = state[1]
    if order in ("<", ">", "|", "="):
        settle(target, typestr=("<" if order == "=" else order) + target.typestr[1:])


def _fill(
    recorder: Recorder, array: Array, shape: Any, dtype: NumpyDtype, fortran: bool, data: Any
) -> None:
    if (
        not isinstance(shape, tuple)
        or len(shape) > 64
        or any(type(n) is not int or not 0 <= n < 2**63 for n in shape)
    ):
        raise DamagedError("a numpy array in the pickle has a shape that is no tuple of sizes")
    place = recorder.place_of(data)
    if isinstance(data, str):
        data = data.encode()  # a Python 2 str that happened to read as UTF-8
    count, code = math.prod(shape), dtype.typestr[1:]
    if isinstance(data, list):
        if len(data) != count:
            raise DamagedError(f"a numpy array of shape {shape} has {len(data)} objects")
        settle(array, dtype="|O", shape=shape, fortran_order=fortran, items=data)
        return
    size = int(code[1:] or 0) * (4 if code[0] == "U" else 1)
    if not isinstance(data, bytes | bytearray) or len(data) != count * size or code[0] == "O":
        raise DamagedError(
            f"a numpy array of dtype {code} and shape {shape} has other bytes than that"
        )
    settle(
        array, dtype=dtype.typestr, shape=shape, data=bytes(data), fortran_order=fortran, at=place
    )


MAKERS: Final[dict[tuple[str, str], Callable[[Recorder, tuple[Any, ...]], Any]]] = {
    ("numpy", "dtype"): _dtype,
    **{
        (f"numpy.{core}.{module}", name): maker
        for core in ("core", "_core")  # numpy 1, numpy 2
        for module, name, maker in (
            ("multiarray", "scalar", _scalar),
            ("multiarray", "_reconstruct", _reconstruct),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
