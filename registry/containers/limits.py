"""What no tree of values may be: with keys of no fixed value, too deep, beyond its storages.

Law: checked in exact integers and without recursion, before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from ..errors import DamagedError, UntrustedError
from .tree import DTYPES, LEAVES, TaggedDict, children

MAX_NESTING: Final = 2_000
"""Levels of values inside values. Python's own pickler gives up near 1,000."""

_ATOMS: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})
_NO_KEYS: Final = frozenset({list, dict, set, frozenset, bytearray, TaggedDict})
_MAX_KEY_PARTS: Final = 8


def check_key(key: object) -> None:
    """Refuse a dict key or set element that has no place in plain data.

    Tuples are short and flat: hash() of a deeply nested tuple overflows the C stack.

    Raises:
        UntrustedError: it is a container, a number beyond 64 bits, or a long or nested tuple.
    """
    kind = type(key)
    if kind is str:
        return
    if kind is int:
        if not -(2**63) <= key < 2**63:  # type: ignore[operator]
            raise UntrustedError("a dict key is a number beyond 64 bits")
    elif isinstance(key, tuple):
        if len(key) > _MAX_KEY_PARTS or any(type(part) not in _ATOMS for part in key):
            raise UntrustedError("a dict key is a nested tuple, or one of more than 8 parts")
        for part in key:
            check_key(part)
    elif kind in _NO_KEYS:
        raise UntrustedError(f"a dict key is a {kind.__name__}, which has no fixed value")


def put_items(target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    """Set keys in a dict, each for the first time.

    Raises:
        UntrustedError: a key is already there (1, True and 1.0 are the same key), or is unfit.
    """
    for key in keys:
        if type(key) is not str:
            check_key(key)
    before = len(target)
    target.update(zip(keys, values, strict=True))
    if len(target) != before + len(keys):
        raise UntrustedError(
            "a dict in the file sets one key twice, so that readers could disagree about its value"
        )


def add_elements(target: set[Any], elements: Iterable[Any]) -> None:
    """Add elements to a set, each for the first time.

    Raises:
        UntrustedError: one is already there, or unfit.
    """
    for element in elements:
        check_key(element)
        before = len(target)
        target.add(element)
        if len(target) == before:
            raise UntrustedError("a set in the file holds one element twice")


# --- depth and bounds -----------------------------------------------------------------------------


def check_nesting(root: object, limit: int = MAX_NESTING) -> None:
    """Refuse a tree in which values nest deeper than `limit` on any path.

    Raises:
        UntrustedError: it does; others would overflow their stack on it.
    """
    heights: dict[int, int] = {}  # of finished nodes; -1 while a node is open, which a cycle meets
    stack: list[tuple[object, Iterator[Any], list[int]]] = [(root, iter(children(root)), [0])]
    heights[id(root)] = -1
    while stack:
        node, rest, highest = stack[-1]
        for child in rest:
            if type(child) in LEAVES:
                continue
            height = heights.get(id(child))
            if height is None:
                heights[id(child)] = -1
                stack.append((child, iter(children(child)), [0]))
                break
            highest[0] = max(highest[0], height)
        else:
            stack.pop()
            heights[id(node)] = highest[0] + 1
            if stack:
                stack[-1][2][0] = max(stack[-1][2][0], highest[0] + 1)
        if len(stack) + highest[0] > limit:
            raise UntrustedError(f"the file nests values more than {limit} deep")


def check_bounds(
    *,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    dtype: str,
    size_bytes: int,
    name: str,
) -> None:
    """Check that a strided tensor lies inside its storage, in exact integers.

    Args:
        size_bytes: the storage's.
        name: how to call the tensor's place in an error.

    Raises:
        DamagedError: it doesn't, or its sizes make no sense.
    """
    if len(shape) != len(stride) or len(shape) > 64 or offset < 0:
        raise DamagedError(
            f"a tensor on storage {name!r} has shape {shape}, stride {stride}, offset {offset}"
        )
    last = offset
    for size, step in zip(shape, stride, strict=True):
        if size < 0 or step < 0 or size >= 2**63 or step >= 2**63:
            raise DamagedError(f"a tensor on storage {name!r} has shape {shape}, stride {stride}")
        if size == 0:
            return
        last += (size - 1) * step
    if (last + 1) * DTYPES[dtype] > size_bytes:
        raise DamagedError(
            f"a {dtype} tensor of shape {shape}, stride {stride} and offset {offset} ends at byte "
            f"{(last + 1) * DTYPES[dtype]} of storage {name!r}, which has {size_bytes}"
        )
