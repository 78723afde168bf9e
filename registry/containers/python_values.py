"""The standard library's plain types, as pickles spell them: made here, from checked arguments.

Law: each maker takes exactly what Python's own pickler writes, and gives `NotImplemented` for
anything else.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError
from .limits import add_elements, put_items
from .tree import Global, TaggedDict

if TYPE_CHECKING:
    from .recording import Recorder


def _ordered_dict(_: Recorder, args: tuple[Any, ...]) -> Any:
    """OrderedDict(), OrderedDict([[key, value], …]) as Python 2 wrote it, or OrderedDict({…})."""
    made = TaggedDict()
    if not args:
        return made
    if len(args) == 1 and isinstance(args[0], dict):
        made.update(args[0])
        return made
    if len(args) != 1 or not isinstance(args[0], list | tuple):
        return NotImplemented
    pairs = args[0]
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
        return NotImplemented
    put_items(made, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return made


def _counter(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) > 1 or (args and not isinstance(args[0], dict)):
        return NotImplemented
    return TaggedDict(args[0] if args else (), cls="collections.Counter")


def _default_dict(_: Recorder, args: tuple[Any, ...]) -> Any:
    # The factory is left out: what a missing key would give is code.
    if len(args) > 1 or (args and args[0] is not None and type(args[0]) is not Global):
        return NotImplemented
    return TaggedDict(cls="collections.defaultdict")


def _namespace(cls: str) -> Callable[[Recorder, tuple[Any, ...]], Any]:
    def make(_: Recorder, args: tuple[Any, ...]) -> Any:
        return NotImplemented if args not in ((), ((),)) else TaggedDict(cls=cls)

    return make


def set_attributes(target: TaggedDict, state: Any) -> None:
    """Give a dict the attributes that BUILD sets; a Namespace's attributes are its items.

    Raises:
        DamagedError: the state is no dict.
    """
    if isinstance(state, tuple) and len(state) == 2 and state[1] is None:
        state = state[0]
    if state is None:
        return
    if not isinstance(state, dict):
        raise DamagedError(f"the pickle gives a {target.cls} a state that is no dict")
    if target.cls.endswith("Namespace"):
        put_items(target, list(state), list(state.values()))
    elif target.attributes is None:
        target.attributes = dict(state)
    else:
        put_items(target.attributes, list(state), list(state.values()))


def _set(_: Recorder, args: tuple[Any, ...]) -> Any:
    made: set[Any] = set()
    if args:
        if len(args) != 1 or not isinstance(args[0], list | tuple):
            return NotImplemented
        add_elements(made, args[0])
    return made


def _frozenset(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    made = _set(recorder, args)
    return made if made is NotImplemented else frozenset(made)


def _encode(_: Recorder, args: tuple[Any, ...]) -> Any:
    """_codecs.encode(text, 'latin1'): how protocol 2 spells bytes."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
        try:
            return args[0].encode("latin-1")
        except UnicodeEncodeError:
            raise DamagedError(
                "bytes in the pickle are spelled with characters beyond 255"
            ) from None
    return NotImplemented


def _bytes(_: Recorder, args: tuple[Any, ...]) -> Any:
    return b"" if not args else NotImplemented


def _bytearray(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    if not args:
        return bytearray()
    if len(args) == 1 and isinstance(args[0], bytes):
        return bytearray(args[0])
    made = _encode(recorder, args)
    return made if made is NotImplemented else bytearray(made)


def _complex(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) == 2 and all(type(part) is float for part in args):
        return complex(args[0], args[1])
    return NotImplemented


def _moment(cls: type[Any], size: int) -> Callable[[Recorder, tuple[Any, ...]], Any]:
    """Make a maker for datetime's types, which pickle as `size` bytes and perhaps a time zone."""

    def make(_: Recorder, args: tuple[Any, ...]) -> Any:
        if not args or len(args) > 2 or not isinstance(args[0], bytes) or len(args[0]) != size:
            return NotImplemented
        if len(args) == 2 and not isinstance(args[1], dt.timezone):
            return NotImplemented
        try:
            return cls(*args)
        except (ValueError, TypeError):
            raise DamagedError(f"a {cls.__name__} in the pickle is out of range") from None

    return make


def _timedelta(_: Recorder, args: tuple[Any, ...]) -> Any:
    if len(args) > 3 or any(type(part) is not int for part in args):
        return NotImplemented
    try:
        return dt.timedelta(*args)
    except OverflowError:
        raise DamagedError("a timedelta in the pickle is out of range") from None


def _timezone(_: Recorder, args: tuple[Any, ...]) -> Any:
    if not args or len(args) > 2 or not isinstance(args[0], dt.timedelta):
        return NotImplemented
    if len(args) == 2 and not isinstance(args[1], str):
        return NotImplemented
    try:
        return dt.timezone(*args)
    except ValueError:
        raise DamagedError("a timezone in the pickle is out of range") from None


def _path(cls: type[PurePath]) -> Callable[[Recorder, tuple[Any, ...]], Any]:
    def make(_: Recorder, args: tuple[Any, ...]) -> Any:
        return cls(*args) if all(isinstance(part, str) for part in args) else NotImplemented

    return make


MAKERS: Final[dict[tuple[str, str], Callable[[Recorder, tuple[Any, ...]], Any]]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "Counter"): _counter,
    ("collections", "defaultdict"): _default_dict,
    ("argparse", "Namespace"): _namespace("argparse.Namespace"),
    ("types", "SimpleNamespace"): _namespace("types.SimpleNamespace"),
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _frozenset,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): _complex,
    ("_codecs", "encode"): _encode,
    ("datetime", "datetime"): _moment(dt.datetime, 10),
    ("datetime", "date"): _moment(dt.date, 4),
    ("datetime", "time"): _moment(dt.time, 6),
    ("datetime", "timedelta"): _timedelta,
    ("datetime", "timezone"): _timezone,
    **{
        (module, kind + "Path"): _path(cls)
        for module in ("pathlib", "pathlib._local")  # the latter is 3.13's
        for kind, cls in (
            ("Posix", PurePosixPath), ("PurePosix", PurePosixPath),
            ("Windows", PureWindowsPath), ("PureWindows", PureWindowsPath),
        )
    },
}  # fmt: skip
