"""Keys as the tree of modules that they came from.

Law: a wrapper is a module with one child and nothing of its own, but for AveragedModel's counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..signature import WRAPPER_TOKENS

Shapes = Mapping[str, tuple[int, ...] | None]
"""Keys with their shapes; None for an entry that is no tensor (`_extra_state`)."""

Path = tuple[str, ...]

AVERAGED: Final = "n_averaged"
"""AveragedModel's own buffer, beside its token `module`: wrapper state, no weight of the net."""


@dataclass(slots=True, eq=False)
class Node:
    """A module, or a tensor (`key` is set), or in an odd file both."""

    children: dict[str, Node] = field(default_factory=dict)
    key: str | None = None
    shape: tuple[int, ...] | None = None


def tree(keys: Shapes) -> Node:
    """Return the root module of keys."""
    root = Node()
    for key, shape in keys.items():
        node = root
        for segment in key.split("."):
            node = node.children.setdefault(segment, Node())
        node.key, node.shape = key, shape
    return root


def wrapped(node: Node) -> tuple[str, Node] | None:
    """Return the token and the inner module if a node has that one child only, else None."""
    if node.key is not None:
        return None
    names = list(node.children)
    if len(names) == 2 and AVERAGED in names and "module" in names:
        if node.children[AVERAGED].children:
            return None
        names = ["module"]
    if len(names) != 1 or names[0] not in WRAPPER_TOKENS:
        return None
    inner = node.children[names[0]]
    return (names[0], inner) if inner.children and inner.key is None else None
