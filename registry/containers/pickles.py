"""A pickle, read by a loop of our own that imports nothing, calls nothing and sets nothing.

Law: an opcode makes plain data or hands a record to the `Recorder`. EXT opcodes, out-of-band
buffers and unknown opcodes are refused. No length or index in the file makes anything grow before
the bytes for it were seen; the memo is a dict; opcodes are capped. Not a subclass of
pickle.Unpickler, whose C loop runs EXT opcodes before find_class, lets BUILD write into classes,
and allocates what nine bytes ask for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from ..errors import DamagedError, UntrustedError
from .opcodes import HANDLERS, Machine, OutOfBytesError, refusal
from .recording import Recorder

MAX_OPCODES: Final = 50_000_000
"""About 45 a tensor: room for a million tensors."""

MAX_BYTES: Final = 1 << 30
"""Of one pickle stream, storages not counted."""

_u32: Final = struct.Struct("<I").unpack_from


def read_pickle(
    data: bytes, recorder: Recorder, *, at: int = 0, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """Read one pickle stream.

    Args:
        data: the bytes that hold it; more may follow.
        recorder: what names and calls in it become, for this file.
        at: where in `data` it starts.
        persistent: gives the value that a persistent id means; without it such an id is refused.

    Returns:
        The value, and the place after the stream's last byte.

    Raises:
        OutOfBytesError: it doesn't end within `data`.
        DamagedError: it is no pickle.
        UntrustedError: it holds what is refused, or passes a limit.
    """
    machine = Machine(data, at, recorder, persistent)
    try:
        return _run(machine), machine.at
    except struct.error:
        raise OutOfBytesError from None
    except UnicodeDecodeError as error:
        raise DamagedError(f"a text in the pickle is not {error.encoding}") from None
    except KeyError:
        raise DamagedError(
            f"the pickle recalls a value that it never kept, near byte {machine.at}"
        ) from None
    except IndexError:
        if machine.at >= len(data) - 8:
            # A truncated stream and an empty stack look alike; only near the end can it be the
            # former.
            raise OutOfBytesError from None
        raise DamagedError(f"the pickle takes from an empty stack near byte {machine.at}") from None


def _run(machine: Machine) -> Any:
    """Run until STOP and return the one value on the stack; the machine is then after it."""
    data, memo, marks = machine.data, machine.memo, machine.marks
    call, persistent, end = machine.recorder.call, machine.persistent, len(machine.data)
    stack, at = machine.stack, machine.at
    try:
        for _ in range(MAX_OPCODES):
            op = data[at]
            at += 1
            # The opcodes that make up nearly all of a torch file come first, inline: 3 times as
            # fast.
            if op == 0x71:  # BINPUT
                memo[data[at]] = stack[-1]
                at += 1
            elif op == 0x72:  # LONG_BINPUT
                memo[_u32(data, at)[0]] = stack[-1]
                at += 4
            elif op == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif op == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif op == 0x28:  # MARK
                marks.append(stack)
                machine.stack = stack = []
            elif op == 0x74:  # TUPLE
                items = stack
                machine.stack = stack = marks.pop()
                stack.append(tuple(items))
            elif op == 0x58:  # BINUNICODE
                stop = at + 4 + _u32(data, at)[0]
                if stop > end:
                    raise OutOfBytesError
                stack.append(str(data[at + 4 : stop], "utf-8", "surrogatepass"))
                at = stop
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = call(stack[-1], args)
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x86:  # TUPLE2
                last = stack.pop()
                stack[-1] = (stack[-1], last)
            elif op == 0x51 and persistent is not None:  # BINPERSID
                stack[-1] = persistent(stack[-1])
            elif op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x2E:  # STOP
                if marks or len(stack) != 1:
                    raise DamagedError("the pickle ends with values left over")
                return stack[0]
            else:
                handler = HANDLERS.get(op)
                if handler is None:
                    raise UntrustedError(refusal(op))
                machine.at = at
                handler(machine)
                at = machine.at
                stack = machine.stack
    finally:
        machine.at = max(machine.at, at)
    raise UntrustedError(f"the pickle has more than {MAX_OPCODES} opcodes")
