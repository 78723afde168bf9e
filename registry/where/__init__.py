"""The language of `where`: `acc > 0.9 and (dataset == "cifar10" or tags == "good")`.

`expressions` is the syntax tree and its meaning in words, `parsing` makes it from text,
`evaluating` is the meaning in plain Python. The catalog compiles the same tree to SQL; a test holds
the two equal. Knows records, and nothing of SQL.
"""

from .evaluating import evaluate
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
from .parsing import parse

__all__ = [
    "parse",
    "evaluate",
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
