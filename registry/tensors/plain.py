"""Plain Python values: what a file may hold besides tensors, and how the rest becomes so.

Law: numpy scalars become numbers, arrays and parameters plain tensors, a Namespace a dict, a path
text; anything else is refused by its path. Equal values give equal pickles in any process: text and
bytes are one object per value, and so are tuples of plain values. Never changes what it was given.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import types
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..containers.tree import DTYPES
from .spread import Spread, is_spread, parts_to_write
from .views import FORMS, dtype_name, form_of, size_bytes, storages_of, view_key
from .wrappers import class_name

_DEEPEST: Final = 100
_PACKED: Final = ("quint4x2", "quint2x4")
_KEYS: Final = (str, int, float, bytes, types.NoneType)

# A storage may be this much larger than what is saved of it: cuDNN pads the weights of an RNN, say.
_SLACK: Final = 1.25


class Plainer:
    """Turns values into plain ones, and keeps the tensors met for `compact`."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._done: dict[
            int, tuple[object, object]
        ] = {}  # id -> (value, kept alive; its plain form)
        self._open: dict[int, str] = {}  # containers being turned: id -> path
        self._constants: dict[object, Any] = {}

    def __call__(self, value: object, path: str) -> Any:
        """Return the plain form of a value.

        Raises:
            TypeError: something in it has no plain form; the message gives its path.
            ValueError: it holds itself, or is nested too deeply.
        """
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return sys.intern(str.__str__(value))
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, complex):
            return complex(value)
        if isinstance(value, bytes):
            return self._constant(bytes(value))
        if isinstance(value, Tensor):
            return self._spread(value, path) if is_spread(value) else self._tensor(value, path)
        if isinstance(value, Mapping | list | tuple | argparse.Namespace | types.SimpleNamespace):
            return self._container(value, path)
        if isinstance(value, os.PathLike):
            return self(os.fspath(value), path)
        if isinstance(value, torch.device | torch.dtype):
            return value  # torch.load(weights_only=True) knows both
        return self._numpy(value, path)

    # --- containers ---

    def _container(self, value: object, path: str) -> Any:
        if id(value) in self._open:
            raise ValueError(f"{path} holds {self._open[id(value)]} again: it contains itself")
        if len(self._open) >= _DEEPEST:
            raise ValueError(f"{path}: nested more than {_DEEPEST} deep")
        done = self._done.get(id(value))
        if done is not None:
            return done[1]
        self._open[id(value)] = path
        try:
            if isinstance(value, list):
                plain: Any = [self(v, f"{path}[{i}]") for i, v in enumerate(value)]
            elif isinstance(value, tuple):
                plain = self._constant(tuple(self(v, f"{path}[{i}]") for i, v in enumerate(value)))
            else:
                plain = self._mapping(value, path)
        finally:
            del self._open[id(value)]
        self._done[id(value)] = (value, plain)
        return plain

    def _mapping(self, value: object, path: str) -> Any:
        items = value if isinstance(value, Mapping) else vars(value)
        plain: dict[Any, Any] = {}
        for key, item in items.items():
            plain[self._key(key, path)] = self(item, _below(path, key))
        if isinstance(value, Counter):  # what MultiStepLR keeps, and needs back
            return collections.Counter(plain)
        if isinstance(value, OrderedDict):
            ordered = OrderedDict(plain)
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:  # a module's state_dict
                below = self(metadata, f"{path}._metadata")
                ordered._metadata = below  # type: ignore[attr-defined]
            return ordered
        return plain

    def _key(self, key: object, path: str) -> Any:
        plain = key.item() if _is_numpy(key, "generic") else key  # type: ignore[attr-defined]
        parts = plain if isinstance(plain, tuple) and len(plain) <= 8 else (plain,)
        for part in parts:
            if not isinstance(part, _KEYS) or (isinstance(part, int) and abs(part) >= 2**63):
                raise TypeError(
                    f"{path}: the key {_short(key)} is {_a(key)}, which can't be a key in a file"
                )
        return self(plain, f"{path}[{_short(key)}]")

    def _constant(self, value: bytes | tuple[Any, ...]) -> Any:
        """Return the one object for an immutable value, so that the pickler's memo finds it."""
        key = _constant_key(value)
        return value if key is None else self._constants.setdefault(key, value)

    # --- tensors and numpy ---

    def _spread(self, value: Tensor, path: str) -> Spread:
        parts = parts_to_write(value, path)
        return Spread(
            value.dtype,
            tuple(value.shape),
            tuple((box, self._tensor(part, path)) for box, part in parts),
        )

    def _tensor(self, value: Tensor, path: str) -> Tensor:
        plain = value.detach()
        if type(plain) is not Tensor and type(plain) is not nn.Parameter:
            raise TypeError(
                f"{path}: {_a(plain)} ({class_name(plain)}) is no plain tensor; "
                "save what it stands for, e.g. .full_tensor() or .dequantize()"
            )
        if plain.is_meta:
            raise TypeError(f"{path}: a tensor on the meta device has no values to save")
        form = "nested" if plain.is_nested else form_of(plain)
        if form != "strided" and form not in FORMS:
            raise TypeError(
                f"{path}: a {form} tensor has no plain form; save it dense, e.g. .to_dense() or "
                ".dequantize()"
            )
        if dtype_name(plain) not in DTYPES or dtype_name(plain) in _PACKED:
            raise TypeError(f"{path}: a tensor of {plain.dtype} has no form in a file")
        if form != "strided":
            wasteful = sum(storages_of(plain).values()) > size_bytes(plain) * _SLACK + 64
            return plain.clone() if plain.is_inference() or wasteful else plain
        plain = plain.resolve_conj().resolve_neg()
        if plain.is_inference():
            plain = plain.clone()
        # A fresh tensor object for every place, so that one object in two places and two equal ones
        # read alike.
        plain = plain.view_as(plain) if plain is value else plain
        self._tensors.append(plain)
        return plain

    def _numpy(self, value: object, path: str) -> Any:
        if _is_numpy(value, "generic"):
            number = value.item()  # type: ignore[attr-defined]
            if isinstance(number, bool | int | float | str | bytes):
                return self(number, path)
        if _is_numpy(value, "ndarray"):
            numpy = sys.modules["numpy"]
            try:  # native byte order, own memory: arrays may be read-only, reversed or big-endian
                array = numpy.array(value, dtype=value.dtype.newbyteorder("="), order="C")  # type: ignore[attr-defined]
                return self._tensor(torch.from_numpy(array), path)
            except TypeError:
                raise TypeError(
                    f"{path}: a numpy array of {value.dtype} has no tensor form"  # type: ignore[attr-defined]
                ) from None
        raise TypeError(
            f"{path}: {_a(value)} has no plain form (take numbers, text, tensors, arrays, lists "
            "and dicts)"
        )

    # --- memory ---

    def compact(self) -> None:
        """Give tensors that are small views into large storages storages of their own size.

        torch saves whole storages: a row of a big table would bring the table along. Views that are
            one tensor stay
        one; where views overlap otherwise, or use most of their storage, it stays as it is. One
        storage seen as several dtypes, which torch.save refuses, is split too.
        """
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in self._tensors:
            by_storage.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        with torch.no_grad():
            for tensors in by_storage.values():
                views = {view_key(t): t for t in tensors}
                needed = sum(_bytes_needed(t) for t in views.values())
                wasteful = tensors[0].untyped_storage().nbytes() > needed * _SLACK + 64
                if not wasteful and len({t.dtype for t in tensors}) == 1:
                    continue
                own = {key: t.clone() for key, t in views.items()}
                for t in tensors:
                    t.set_(own[view_key(t)])  # type: ignore[call-overload]


def _bytes_needed(tensor: Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    span = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return min(tensor.numel(), span) * tensor.element_size()


def _is_numpy(value: object, kind: str) -> bool:
    cls = getattr(sys.modules.get("numpy"), kind, None)
    return isinstance(cls, type) and isinstance(value, cls)


def _constant_key(value: object) -> object:
    """Return what tells constants apart by type and value (1, 1.0 and True are equal), or None."""
    if isinstance(value, tuple):
        parts = tuple(_constant_key(v) for v in value)
        return None if any(p is None for p in parts) else (tuple, parts)
    if isinstance(value, float):
        return (float, value.hex())  # tells 0.0 from -0.0, and finds NaN again
    if value is None or isinstance(value, bool | int | str | bytes):
        return (type(value), value)
    return None


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if isinstance(key, str) and _simple(key) else f"{path}[{_short(key)}]"


def _simple(key: str) -> bool:
    return all(part.isidentifier() or part.isdecimal() for part in key.split("."))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NAMES: Final[Mapping[type, str]] = {types.BuiltinFunctionType: "function", type: "class"}


def _a(value: object) -> str:
    """Name the kind of a value: `a function`, `an Adam`."""
    name = _NAMES.get(type(value), type(value).__name__)
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
