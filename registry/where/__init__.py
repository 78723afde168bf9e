"""The language of `where`: `acc > 0.9 and (dataset == "cifar10" or tags == "good")`.

`expressions` is the syntax tree and its meaning in words, `parsing` makes it from text,
`evaluating` is the meaning in plain Python, `gates` a condition on two checkpoints. The catalog
compiles the same tree to SQL; a test holds the two equal. Knows records, and nothing of SQL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from .expressions import (
    COLUMNS,
    And,
    Column,
    ColumnType,
    Compare,
    Config,
    Expression,
    Field,
    In,
    Labels,
    Like,
    Literal,
    Metric,
    Not,
    Operator,
    Or,
)

if TYPE_CHECKING:
    from .evaluating import evaluate
    from .gates import gate
    from .parsing import parse

__all__ = [
    "parse",
    "evaluate",
    "gate",
    "Expression",
    "And",
    "Or",
    "Not",
    "Compare",
    "In",
    "Like",
    "Field",
    "Column",
    "Metric",
    "Config",
    "Labels",
    "COLUMNS",
    "ColumnType",
    "Literal",
    "Operator",
]

_HOMES: Final = {"evaluate": "evaluating", "gate": "gates", "parse": "parsing"}


def __getattr__(name: str) -> Any:
    """Import the reader at its first use (PEP 562): most lists have no expression."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
