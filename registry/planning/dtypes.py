"""Which casts lose nothing, and which may.

Law: exact unless the caller asked; no cast changes the kind of number (float, integer, complex).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ..errors import RefusedLoadError
from .inputs import Cast, SavedTensor, TargetTensor

_FLOATS: Final = frozenset({"float32", "float64"})
_WIDER_FLOATS: Final = {
    "float8_e4m3fn": _FLOATS | {"float16", "bfloat16"},
    "float8_e5m2": _FLOATS | {"float16", "bfloat16"},
    "float8_e4m3fnuz": _FLOATS | {"float16", "bfloat16"},
    "float8_e5m2fnuz": _FLOATS | {"float16", "bfloat16"},
    "float8_e8m0fnu": _FLOATS | {"bfloat16"},  # exponents to 2**127: beyond float16
    "float16": _FLOATS,
    "bfloat16": _FLOATS,
    "float32": frozenset({"float64"}),
    "float64": frozenset[str](),
}
"""Each float type with those that hold all its values; float16 and bfloat16 don't each other."""

_INTEGER = re.compile(r"(u?)int(8|16|32|64)")
_COMPLEX = re.compile(r"complex(32|64|128)")


def widens(dtype: str, to: str) -> bool:
    """Return whether every value of one type is a value of another, wider one of its kind.

    Example:
        >>> widens("bfloat16", "float32"), widens("bfloat16", "float16"), widens("uint8", "int8")
        (True, False, False)
    """
    if dtype in _WIDER_FLOATS:
        return to in _WIDER_FLOATS[dtype]
    if (small := _INTEGER.fullmatch(dtype)) and (big := _INTEGER.fullmatch(to)):
        return int(big[2]) > int(small[2]) and (bool(small[1]) or not big[1])
    if (small := _COMPLEX.fullmatch(dtype)) and (big := _COMPLEX.fullmatch(to)):
        return int(big[1]) > int(small[1])
    return False


def _one_kind(dtype: str, to: str) -> bool:
    return (
        (dtype in _WIDER_FLOATS and to in _WIDER_FLOATS)
        or bool(_INTEGER.fullmatch(dtype) and _INTEGER.fullmatch(to))
        or bool(_COMPLEX.fullmatch(dtype) and _COMPLEX.fullmatch(to))
    )


def check_casts(
    ref: str, pairs: Sequence[tuple[SavedTensor, TargetTensor]], cast: Cast | None
) -> None:
    """Refuse dtypes that differ, but for those that the caller's cast covers.

    Raises:
        RefusedLoadError: some aren't covered; the message gives the first few and a cast that would
            do.
    """
    refused = [
        (s, t)
        for s, t in pairs
        if s.dtype != t.dtype
        and not (cast is not None and widens(s.dtype, t.dtype))
        and not (cast == "narrow" and _one_kind(s.dtype, t.dtype))
    ]
    if not refused:
        return
    shown = "".join(
        f"\n  {t.canonical!r} is {s.dtype} in the file, {t.dtype} in the net"
        for s, t in refused[:5]
    )
    if all(widens(s.dtype, t.dtype) for s, t in refused):
        hint = "cast='widen' converts without loss"
    elif all(_one_kind(s.dtype, t.dtype) for s, t in refused):
        hint = "cast='narrow' converts, and refuses where a value is lost; or convert the net"
    else:
        hint = (
            "a cast never changes floats to integers or back: convert the net first, net.to(dtype)"
        )
    raise RefusedLoadError(
        f"{len(refused)} of {len(pairs)} tensors of {ref} have another dtype than the net"
        + (f", which cast={cast!r} doesn't cover" if cast else "")
        + shown
        + ("\n  …" if len(refused) > 5 else ""),
        hint=hint,
    )
