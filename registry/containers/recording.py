"""What names and calls in a pickle become: known ones plain values, all others records.

Law: a name is never imported and a call never made. What is known is a table of our own functions
that make plain data from plain data; whatever they don't fully understand becomes an `Opaque`. One
recorder a file, so that no file can change what another reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..errors import DamagedError, UntrustedError
from . import numpy_values, python_values, torch_values
from .tree import Array, Global, NumpyDtype, Opaque, TaggedDict, Tensor

MAX_GLOBALS: Final = 10_000

_MIN_PLACED: Final = 1_024
"""Bytes that a value must have for its place to be kept: smaller ones may as well be copied."""

Maker = Callable[["Recorder", tuple[Any, ...]], Any]
"""Makes a value from a call's arguments; `NotImplemented` where they are not as expected."""

_MAKERS: Final[dict[tuple[str, str], Maker]] = {
    **python_values.MAKERS,
    **numpy_values.MAKERS,
    **torch_values.MAKERS,
}

_MOVED: Final = {"torch.tensor": "torch._tensor"}  # pytorch/pytorch#51633


class Recorder:
    """What one file's names and calls become.

    Args:
        nested: reads a torch.save stream that the pickle holds as bytes, given these and their
            place; it returns NotImplemented for what it doesn't read. With it, places are kept.

    Attributes:
        expanded_bytes: how much the tensors so far take beyond the bytes that their storages have.
    """

    __slots__ = ("_globals", "_nested", "_places", "expanded_bytes")

    def __init__(self, nested: Callable[[bytes, int | None], Any] | None = None) -> None:
        self._globals: dict[tuple[str, str], Any] = {}
        self._nested = nested
        self._places: dict[int, tuple[object, int]] = {}
        self.expanded_bytes = 0

    def keep_place(self, value: bytes | bytearray | str, at: int) -> None:
        """Remember that the pickle holds these bytes as they are, at this place."""
        if self._nested is not None and len(value) >= _MIN_PLACED:
            self._places[id(value)] = value, at  # held, so that its id stays its own

    def place_of(self, value: object) -> int | None:
        """Return where the pickle holds the bytes of a value as they are, if that was kept."""
        known = self._places.get(id(value))
        return None if known is None else known[1]

    @property
    def unsafe_globals(self) -> tuple[str, ...]:
        """The names in the file that `torch.load(weights_only=True)` would refuse, sorted."""
        return tuple(
            sorted({f"{m}.{n}" for m, n in self._globals if not torch_values.is_safe(m, n)})
        )

    def find(self, module: str, name: str) -> Any:
        """Return the value that a name means: one of torch's constants, or the name itself."""
        module = _MOVED.get(module, module)
        known = self._globals.get((module, name))
        if known is None:
            if len(self._globals) >= MAX_GLOBALS:
                raise UntrustedError(
                    f"the file names more than {MAX_GLOBALS} classes and functions"
                )
            known = torch_values.constant(module, name) or Global(module, name)
            self._globals[module, name] = known
        return known

    def call(
        self, callee: Any, args: Any, kwargs: dict[Any, Any] | None = None, *, new: bool = False
    ) -> Any:
        """Return what a call stands for (REDUCE, NEWOBJ and their kin), without making it.

        Args:
            new: it is `callee.__new__` that would be called.
        """
        if type(args) is not tuple:
            raise DamagedError("the pickle calls something with arguments that are no tuple")
        if type(callee) is Global:
            if callee.module == "copyreg":
                inner = _unwrap(callee, args, kwargs)
                new = new or (inner[0] is not callee and callee.name.startswith("__newobj"))
                callee, args, kwargs = inner
            if self._nested is not None and _is_nested(callee, args):
                value = self._nested(args[0], self.place_of(args[0]))
                if value is not NotImplemented:
                    return value
            maker = _MAKERS.get((callee.module, callee.name))
            if maker is not None and not kwargs:
                value = maker(self, args)
                if value is not NotImplemented:
                    return value
            return Opaque(
                callee.dotted,
                args,
                kwargs or {},
                is_tensor=torch_values.makes_tensor(callee.module, callee.name),
                new=new,
            )
        if isinstance(callee, Opaque):
            return Opaque(f"{callee.name}()", (callee, *args), kwargs or {})
        raise UntrustedError(f"the pickle calls a {type(callee).__name__}, which is no function")

    def set_state(self, target: Any, state: Any) -> None:
        """Record the state that BUILD would set on an object.

        Raises:
            DamagedError, UntrustedError: the object takes no state, or not such.
        """
        if isinstance(target, Opaque):
            if target.state is not None:
                raise DamagedError(f"the pickle sets the state of a {target.name} twice")
            target.state = state
        elif isinstance(target, TaggedDict):
            python_values.set_attributes(target, state)
        elif isinstance(target, Tensor):
            torch_values.set_tensor_state(target, state)
        elif isinstance(target, Array | NumpyDtype):
            numpy_values.set_numpy_state(self, target, state)
        else:
            what = target.dotted if isinstance(target, Global) else type(target).__name__
            raise UntrustedError(
                f"the pickle sets attributes of {what!r}, which would change the process"
            )


def _is_nested(callee: Global, args: tuple[Any, ...]) -> bool:
    """Say whether a call is how a storage is pickled by plain pickle: its torch.save as bytes."""
    return (
        (callee.module, callee.name) == ("torch.storage", "_load_from_bytes")
        and len(args) == 1
        and isinstance(args[0], bytes)
    )


def _unwrap(
    callee: Global, args: tuple[Any, ...], kwargs: dict[Any, Any] | None
) -> tuple[Global, tuple[Any, ...], dict[Any, Any] | None]:
    """Return the class and the arguments inside one of copyreg's helpers."""
    if args and type(args[0]) is Global and not kwargs:
        if callee.name == "__newobj__":
            return args[0], args[1:], None
        if callee.name == "__newobj_ex__" and len(args) == 3:
            inner, keywords = args[1], args[2]
            if type(inner) is tuple and type(keywords) is dict:
                return args[0], inner, keywords
        if callee.name == "_reconstructor" and len(args) == 3:
            base, state = args[1], args[2]
            if type(base) is Global and (base.module, base.name) == ("builtins", "object"):
                return args[0], (), None
            return args[0], (state,), None
    return callee, args, kwargs
