"""The meaning of a `where` expression in plain Python, the oracle that the catalog's SQL equals.

Law: the rules at the top of `expressions`, and nothing else. Pure; reads records, changes none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..records import Checkpoint
from ..values import time_text
from .expressions import (
    And,
    Column,
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
    Or,
)

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_COLUMNS: Final[Mapping[str, Callable[[Checkpoint], int | float | str | None]]] = {
    "id": lambda c: c.id,
    "model": lambda c: c.model,
    "version": lambda c: c.version,
    "run": lambda c: None if c.run is None else c.run.name,
    "run_id": lambda c: None if c.run is None else c.run.id,
    "dataset": lambda c: c.dataset,
    "epoch": lambda c: c.epoch,
    "step": lambda c: c.step,
    "acc": lambda c: c.acc,
    "batch_size": lambda c: c.batch_size,
    "key_style": lambda c: str(c.key_style),
    "file_keys": lambda c: str(c.file_keys),
    "weights": lambda c: c.weights,
    "container": lambda c: c.container,
    "strategy": lambda c: c.topology.strategy,
    "world_size": lambda c: c.topology.world_size,
    "device_type": lambda c: c.topology.device_type,
    "device_count": lambda c: c.topology.device_count,
    "hostname": lambda c: c.topology.hostname,
    "provenance.topology": lambda c: c.provenance.topology,
    "provenance.key_style": lambda c: c.provenance.key_style,
    "signature": lambda c: c.signature,
    "tensors": lambda c: c.tensors,
    "parameters": lambda c: c.parameters,
    "size_bytes": lambda c: c.size_bytes,
    "scheduler": lambda c: c.scheduler,
    "parent": lambda c: c.parent,
    "note": lambda c: c.note,
    "author": lambda c: c.author,
    "origin": lambda c: c.origin,
    "created_at": lambda c: time_text(c.created_at),
}


def evaluate(expression: Expression, checkpoint: Checkpoint) -> bool:
    """Return whether the expression holds for the checkpoint."""
    match expression:
        case And(operands):
            return all(evaluate(o, checkpoint) for o in operands)
        case Or(operands):
            return any(evaluate(o, checkpoint) for o in operands)
        case Not(operand):
            return not evaluate(operand, checkpoint)
        case Compare(Labels() as field, op, value):
            labels = _labels(field, checkpoint)
            return (not labels if value is None else value in labels) is (op == "==")
        case In(Labels() as field, values, negated):
            return bool(set(values) & set(_labels(field, checkpoint))) is not negated
        case Like(Labels() as field, _, negated):
            return any(matches(expression, s) for s in _labels(field, checkpoint)) is not negated
        case Compare(field, op, None):
            return (value_of(field, checkpoint) is None) is (op == "==")
        case Compare(field, op, value):
            found = value_of(field, checkpoint)
            return comparable(found, value) and _OPERATORS[op](found, value)
        case In(field, values, negated):
            found = value_of(field, checkpoint)
            return comparable(found, values[0]) and (found in values) is not negated
        case Like(field, _, negated):
            found = value_of(field, checkpoint)
            return isinstance(found, str) and matches(expression, found) is not negated


def matches(like: Like, text: str) -> bool:
    """Return whether the pattern matches the whole text, in time of pattern times text at most."""
    parts = like.parts()
    at = after_run = 0
    run: int | None = None  # the latest `%`: when the rest fails, it swallows one character more
    i = 0
    while at < len(text):
        kind, character = parts[i] if i < len(parts) else ("end", "")
        if kind == "run":
            run, after_run = i, at
            i += 1
        elif kind == "one" or (kind == "text" and character == text[at]):
            i += 1
            at += 1
        elif run is not None:
            after_run += 1
            i, at = run + 1, after_run
        else:
            return False
    return all(kind == "run" for kind, _ in parts[i:])


def _labels(field: Labels, checkpoint: Checkpoint) -> tuple[str, ...]:
    return checkpoint.tags if field.name == "tags" else checkpoint.aliases


def value_of(field: Field, checkpoint: Checkpoint) -> Any:
    """Return what a field that is no set holds, None where it is absent."""
    match field:
        case Column(name):
            return _COLUMNS[name](checkpoint)
        case Metric(name):
            return checkpoint.metrics.get(name)
        case Config(path):
            return _config(checkpoint.config, path)
        case Labels():
            raise TypeError(f"{field} is a set")


def _config(value: object, path: tuple[str, ...]) -> object:
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:  # as SQL engines read it
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def comparable(found: object, literal: Literal) -> bool:
    """Say whether a field's value is of a literal's type: no comparison of others holds."""
    return _type(found) == _type(literal) != "other"


def _type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"
