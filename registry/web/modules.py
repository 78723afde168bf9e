"""The tensors of a checkpoint as a tree of modules, a level at a time.

Law: the cost of a level is one pass over the tensors, however deep or wide the tree is: a hostile
file may name ten thousand nested modules. What is left out is counted. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from ..signature import TensorSpec

PAGE: Final = 100
"""How many modules, and how many tensors, of a level are shown at once."""

WHOLE: Final = 150
"""A model of no more tensors than this is shown whole."""

_DEEPEST: Final = 5  # levels that are written at once, one inside the other


@dataclass(frozen=True, slots=True)
class Module:
    """A module with all below it.

    Attributes:
        path: its canonical path.
        name: the end of it that its level shows: several segments, where each holds but the next.
        tensors, elements: how many.
        size_bytes: of the tensors; None where a dtype's width is unknown.
        dtypes: of the tensors, the most elements first.
        inside: the level below, where it is written at once.
    """

    path: str
    name: str
    tensors: int
    elements: int
    size_bytes: int | None
    dtypes: tuple[str, ...]
    inside: Level | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """What lies directly below a path: modules, then the tensors that are its own.

    Attributes:
        first: where this part begins; `next`: where the next does, or None.
    """

    path: str
    modules: tuple[Module, ...]
    tensors: tuple[TensorSpec, ...]
    first: int = 0
    next: int | None = None
    total: int = 0


def level(tensors: Sequence[TensorSpec], path: str = "", first: int = 0) -> Level:
    """Return a part of what lies below a module; of a small model, all that is in it.

    Args:
        tensors: all of the model, sorted by key.
    """
    whole = _DEEPEST if len(tensors) <= WHOLE else 1
    prefix = f"{path}." if path else ""
    return _level([t for t in tensors if t.key.startswith(prefix)], path, first, whole)


def _level(tensors: Sequence[TensorSpec], path: str, first: int, depth: int) -> Level:
    start = len(path) + 1 if path else 0
    groups: dict[str, list[TensorSpec]] = {}
    own: list[TensorSpec] = []
    for tensor in tensors:
        name, dot, _ = tensor.key[start:].partition(".")
        if dot:
            groups.setdefault(name, []).append(tensor)
        else:
            own.append(tensor)
    names = sorted(groups, key=natural)
    own.sort(key=lambda t: natural(t.key))
    items: list[list[TensorSpec] | TensorSpec] = [*(groups[name] for name in names), *own]
    shown = items[first : first + PAGE]
    end = first + len(shown)
    return Level(
        path,
        tuple(_module(item, start, depth) for item in shown if isinstance(item, list)),
        tuple(item for item in shown if not isinstance(item, list)),
        first,
        end if end < len(items) else None,
        len(items),
    )


def _module(tensors: Sequence[TensorSpec], start: int, depth: int) -> Module:
    # What the first and the last in order share, all between them share.
    keys = [t.key for t in tensors]
    ends = zip(min(keys).split(".")[:-1], max(keys).split(".")[:-1], strict=False)
    path = ".".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    return Module(
        path,
        path[start:],
        len(tensors),
        sum(elements.values()),
        bytes_of(tensors),
        tuple(sorted(elements, key=lambda dtype: (-elements[dtype], dtype))),
        _level(tensors, path, 0, depth - 1) if depth > 1 else None,
    )


def bytes_of(tensors: Iterable[TensorSpec]) -> int | None:
    """Return how many bytes tensors take; None where a dtype's width is unknown."""
    total = 0
    for tensor in tensors:
        size = tensor.size_bytes
        if size is None:
            return None
        total += size
    return total


_DIGITS: Final = re.compile(r"(\d{1,18})", re.ASCII)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names as people count: layer2 before layer10.

    Example:
        >>> sorted(["10", "9", "a"], key=natural)
        ['9', '10', 'a']
    """
    return [
        (0, int(part), "") if at % 2 else (1, 0, part)
        for at, part in enumerate(_DIGITS.split(name))
        if part
    ]
