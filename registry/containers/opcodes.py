"""The opcodes of a pickle that are not in the inner loop, as methods of one stream's machine.

Law: as pickles.py's. A method makes plain data, or hands names, calls and state to the `Recorder`;
it takes bytes only after it saw that they are there.
"""

from __future__ import annotations

import codecs
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from ..errors import DamagedError, UntrustedError
from .limits import add_elements, put_items
from .recording import Recorder
from .tree import Opaque

MAX_INT_BYTES: Final = 1_024
MAX_NAME: Final = 4_096

_U16: Final = Struct("<H").unpack_from
_I32: Final = Struct("<i").unpack_from
_U32: Final = Struct("<I").unpack_from
_U64: Final = Struct("<Q").unpack_from
_F64: Final = Struct(">d").unpack_from


class OutOfBytesError(Exception):
    """The stream goes on beyond the bytes that were given: a cut file, or more has to be read."""


class Machine:
    """The stack, the marks and the memo of one stream. Opcodes are described in pickletools."""

    __slots__ = ("at", "data", "marks", "memo", "persistent", "proto", "recorder", "stack")

    def __init__(
        self, data: bytes, at: int, recorder: Recorder, persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data = data
        self.at = at
        self.recorder = recorder
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.proto = 0

    # --- taking bytes -----------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        stop = self.at + size
        if stop > len(self.data):
            raise OutOfBytesError
        piece = self.data[self.at : stop]
        self.at = stop
        return piece

    def number(self, unpack: Callable[[bytes, int], tuple[Any, ...]], size: int) -> Any:
        (value,) = unpack(self.data, self.at)
        self.at += size
        return value

    def line(self, limit: int | None = MAX_NAME) -> bytes:
        stop = self.data.find(b"\n", self.at, None if limit is None else self.at + limit)
        if stop < 0:
            if limit is None or self.at + limit > len(self.data):
                raise OutOfBytesError
            raise DamagedError(f"a name or number in the pickle is longer than {limit} bytes")
        piece = self.data[self.at : stop]
        self.at = stop + 1
        return piece

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise DamagedError(
                f"the pickle closes a mark that it never opened, near byte {self.at}"
            )
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # --- plain values -----------------------------------------------------------------------------

    def op_proto(self) -> None:
        self.proto = self.number(_byte, 1)
        if self.proto > 5:
            raise UntrustedError(f"the pickle is of protocol {self.proto}; 5 is the highest known")

    def op_frame(self) -> None:
        self.take(8)  # a frame only helps those who read ahead

    def op_int(self) -> None:
        text = self.line()
        flag = {b"00": False, b"01": True}.get(text)
        self.stack.append(_number(int, text) if flag is None else flag)

    def op_long(self) -> None:
        self.stack.append(_number(int, self.line().removesuffix(b"L")))

    def op_float(self) -> None:
        self.stack.append(_number(float, self.line()))

    def push_long(self, size: int) -> None:
        if not 0 <= size <= MAX_INT_BYTES:
            raise UntrustedError(f"a number in the pickle claims {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def push_text(self, size: int) -> None:
        self.stack.append(str(self.take(size), "utf-8", "surrogatepass"))

    def push_bytes(self, size: int) -> None:
        piece = self.take(size)
        self.recorder.keep_place(piece, self.at - size)
        self.stack.append(piece)

    def push_bytearray(self, size: int) -> None:
        piece = bytearray(self.take(size))
        self.recorder.keep_place(piece, self.at - size)
        self.stack.append(piece)

    def push_old_text(self, piece: bytes) -> None:
        """Push a Python 2 `str`: text if it is UTF-8, as torch.load takes it, else bytes."""
        try:
            self.stack.append(piece.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(piece)

    def op_binstring(self) -> None:
        size = self.number(_I32, 4)
        if size < 0:
            raise DamagedError(f"a text in the pickle claims {size} bytes")
        self.push_old_text(self.take(size))
        self.recorder.keep_place(self.stack[-1], self.at - size)

    def op_string(self) -> None:
        text = self.line(None)
        if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
            raise DamagedError("a text in the pickle is not quoted")
        try:
            piece, _ = codecs.escape_decode(text[1:-1])
        except ValueError:
            raise DamagedError("a text in the pickle has a broken escape") from None
        self.push_old_text(piece)

    def op_unicode(self) -> None:
        self.stack.append(str(self.line(None), "raw-unicode-escape"))

    # --- containers -------------------------------------------------------------------------------

    def op_tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise DamagedError(f"the pickle takes from an empty stack near byte {self.at}")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def op_list(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def op_dict(self) -> None:
        items = self.pop_mark()
        target: dict[Any, Any] = {}
        put_items(target, *_pairs(items))
        self.stack.append(target)

    def op_frozenset(self) -> None:
        items = self.pop_mark()
        target: set[Any] = set()
        add_elements(target, items)
        self.stack.append(frozenset(target))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Opaque):
            target.appended.extend(items)
        else:
            raise DamagedError(f"the pickle appends to a {type(target).__name__}")

    def set_items(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target = target.items
        if not isinstance(target, dict):
            raise DamagedError(f"the pickle sets keys in a {type(target).__name__}")
        put_items(target, keys, values)

    def op_append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def op_appends(self) -> None:
        self.extend(self.pop_mark())

    def op_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key], [value])

    def op_setitems(self) -> None:
        self.set_items(*_pairs(self.pop_mark()))

    def op_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if isinstance(target, set):
            add_elements(target, items)
        elif isinstance(target, Opaque):
            target.appended.extend(items)
        else:
            raise DamagedError(f"the pickle adds elements to a {type(target).__name__}")

    # --- the stack and the memo -------------------------------------------------------------------

    def op_pop(self) -> None:
        if self.stack:
            keep_effect(self.stack.pop())
        else:
            self.pop_mark()

    def keep(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def op_put(self) -> None:
        self.keep(_index(self.line()))

    def op_get(self) -> None:
        self.stack.append(self.memo[_index(self.line())])

    # --- names, calls, state: recorded ------------------------------------------------------------

    def push_global(self, module: str, name: str) -> None:
        if self.proto < 3:  # as pickle's fix_imports
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[(module, name)]
            else:
                module = IMPORT_MAPPING.get(module, module)
        self.stack.append(self.recorder.find(module, name))

    def op_global(self) -> None:
        module, name = self.line(), self.line()
        self.push_global(str(module, "utf-8"), str(name, "utf-8"))

    def op_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str or len(name) + len(module) > MAX_NAME:
            raise UntrustedError("the pickle computes a name from something that is no short text")
        self.push_global(module, name)

    def op_inst(self) -> None:
        self.op_global()
        cls = self.stack.pop()
        args = self.pop_mark()
        self.stack.append(self.recorder.call(cls, tuple(args), new=not args))

    def op_obj(self) -> None:
        args = self.pop_mark()
        if not args:
            raise DamagedError("the pickle makes an object of no class")
        self.stack.append(self.recorder.call(args[0], tuple(args[1:]), new=len(args) == 1))

    def op_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.recorder.call(self.stack[-1], args, new=True)

    def op_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        if type(kwargs) is not dict:
            raise DamagedError("the pickle makes an object with keywords that are no dict")
        self.stack[-1] = self.recorder.call(self.stack[-1], args, kwargs, new=True)

    def op_build(self) -> None:
        state = self.stack.pop()
        self.recorder.set_state(self.stack[-1], state)

    def op_binpersid(self) -> None:
        if self.persistent is None:
            raise DamagedError("the pickle names a storage where it can't have one")
        self.stack[-1] = self.persistent(self.stack[-1])


def keep_effect(dropped: Any) -> None:
    """Keep a call whose result is dropped, in the objects that it may change.

    So pickle sets a state by a function (`__reduce__` of six items); without it the object would
    seem to be whole.
    """
    for changed in dropped.args if isinstance(dropped, Opaque) else ():
        if isinstance(changed, Opaque) and changed.state is None:
            changed.state = dropped


def _byte(data: bytes, at: int) -> tuple[int]:
    return (data[at],)


def _number(kind: type[int] | type[float], text: bytes) -> Any:
    if not re.fullmatch(rb"\s*[-+]?(\d[\d.]*([eE][-+]?\d+)?|inf|nan)\s*", text):
        raise DamagedError(f"{text[:40]!r} in the pickle is no number")
    try:
        return kind(text)
    except ValueError:
        raise DamagedError(f"{text[:40]!r} in the pickle is no number") from None


def _index(text: bytes) -> int:
    if not re.fullmatch(rb"\d{1,10}", text):
        raise DamagedError(f"the pickle's memo has no place {text[:20]!r}")
    return int(text)


def _pairs(items: list[Any]) -> tuple[list[Any], list[Any]]:
    if len(items) % 2:
        raise DamagedError("the pickle sets a key without a value")
    return items[::2], items[1::2]


def refusal(op: int) -> str:
    if op in (0x82, 0x83, 0x84):
        return "the pickle asks for a registered extension (EXT), which would run code"
    if op in (0x97, 0x98):
        return "the pickle refers to a buffer outside itself"
    if op == 0x50:
        return "the pickle names a storage by text; torch names them by tuples"
    return f"the pickle has the unknown opcode 0x{op:02x}"


def _push(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value)


HANDLERS: Final[dict[int, Callable[[Machine], None]]] = {
    # numbers and constants
    ord("N"): _push(None), 0x88: _push(True), 0x89: _push(False),
    ord("I"): Machine.op_int, ord("L"): Machine.op_long, ord("F"): Machine.op_float,
    ord("J"): lambda m: m.stack.append(m.number(_I32, 4)),
    ord("M"): lambda m: m.stack.append(m.number(_U16, 2)),
    ord("G"): lambda m: m.stack.append(m.number(_F64, 8)),
    0x8A: lambda m: m.push_long(m.number(_byte, 1)),
    0x8B: lambda m: m.push_long(m.number(_I32, 4)),
    # text and bytes
    0x8C: lambda m: m.push_text(m.number(_byte, 1)),
    0x8D: lambda m: m.push_text(m.number(_U64, 8)),
    ord("V"): Machine.op_unicode, ord("S"): Machine.op_string, ord("T"): Machine.op_binstring,
    ord("U"): lambda m: m.push_old_text(m.take(m.number(_byte, 1))),
    ord("C"): lambda m: m.stack.append(m.take(m.number(_byte, 1))),
    ord("B"): lambda m: m.push_bytes(m.number(_U32, 4)),
    0x8E: lambda m: m.push_bytes(m.number(_U64, 8)),
    0x96: lambda m: m.push_bytearray(m.number(_U64, 8)),
    # containers
    ord("]"): lambda m: m.stack.append([]), ord("}"): lambda m: m.stack.append({}),
    ord(")"): _push(()), 0x8F: lambda m: m.stack.append(set()), 0x91: Machine.op_frozenset,
    0x85: lambda m: m.op_tuple_of(1), 0x86: lambda m: m.op_tuple_of(2),
    0x87: lambda m: m.op_tuple_of(3),
    ord("l"): Machine.op_list, ord("d"): Machine.op_dict,
    ord("a"): Machine.op_append, ord("e"): Machine.op_appends,
    ord("s"): Machine.op_setitem, ord("u"): Machine.op_setitems, 0x90: Machine.op_additems,
    # stack and memo
    ord("0"): Machine.op_pop, ord("1"): lambda m: (m.pop_mark(), None)[1],
    ord("2"): lambda m: m.stack.append(m.stack[-1]),
    ord("p"): Machine.op_put, ord("g"): Machine.op_get,
    ord("j"): lambda m: m.stack.append(m.memo[m.number(_U32, 4)]),
    # names, calls, state
    ord("c"): Machine.op_global, 0x93: Machine.op_stack_global,
    ord("i"): Machine.op_inst, ord("o"): Machine.op_obj,
    0x81: Machine.op_newobj, 0x92: Machine.op_newobj_ex,
    ord("b"): Machine.op_build, ord("Q"): Machine.op_binpersid,
    # the stream itself
    0x80: Machine.op_proto, 0x95: Machine.op_frame,
}  # fmt: skip
