"""A where-expression as SQL.

Law: means what registry/where says, in two-valued logic: no condition is ever NULL, so that `not`
is the opposite. Values are bound, columns come from a list; nothing of a text reaches SQL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Text,
    and_,
    exists,
    literal,
    not_,
    or_,
    select,
)

from .. import dialects
from ..tables import aliases, checkpoints, metrics, models, records, runs, tags
from ..where import (
    COLUMNS,
    And,
    Column,
    Compare,
    Config,
    Expression,
    In,
    Labels,
    Like,
    Literal,
    Metric,
    Not,
    Or,
)

OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_ELSEWHERE: Final = frozenset({"model", "run", "run_id"})
_RENAMED: Final = {
    "provenance.topology": "topology_provenance",
    "provenance.key_style": "key_style_provenance",
}

Test = Callable[[ColumnElement[Any]], ColumnElement[bool]]


def compile(expression: Expression) -> ColumnElement[bool]:
    """Return the condition on checkpoints that an expression means."""
    match expression:
        case And(operands):
            return and_(*map(compile, operands))
        case Or(operands):
            return or_(*map(compile, operands))
        case Not(operand):
            return not_(compile(operand))
        case Compare(Labels() as field, op, value):
            some = _labels(field, None if value is None else lambda name: name == value)
            return some if (op == "==") is (value is not None) else not_(some)
        case In(Labels() as field, values, negated):
            some = _labels(field, lambda name: name.in_(values))
            return not_(some) if negated else some
        case Like(Labels() as field, _, negated):
            some = _labels(field, lambda name: dialects.matches(name, expression))
            return not_(some) if negated else some
        case Compare(field, op, None):
            there = _there(field)
            return there if op == "!=" else not_(there)
        case Compare(field, op, value):
            return _value(field, _kind(value), lambda found: OPERATORS[op](found, _bound(value)))
        case In(field, values, negated):
            bound = [_bound(value) for value in values]
            return _value(
                field,
                _kind(values[0]),
                lambda found: found.not_in(bound) if negated else found.in_(bound),
            )
        case Like(field, _, negated):

            def like(found: ColumnElement[Any]) -> ColumnElement[bool]:
                matched = dialects.matches(found, expression)
                return not_(matched) if negated else matched

            return _value(field, "text", like)


def column(name: str) -> ColumnElement[Any]:
    """Return a column of the where-language as SQL, for a sort."""
    if name == "model":
        return select(models.c.name).where(models.c.pk == checkpoints.c.model_pk).scalar_subquery()
    if name in _ELSEWHERE:
        found = runs.c.name if name == "run" else runs.c.id
        return select(found).where(runs.c.pk == checkpoints.c.run_pk).scalar_subquery()
    return checkpoints.c[_RENAMED.get(name, name)]


def _bound(value: Literal) -> ColumnElement[Any]:
    """Return a value of its own type: bound as the column's, 1.5 would be 2 beside a count."""
    if isinstance(value, bool):
        return literal(value, Boolean())
    if isinstance(value, int):
        return literal(value, BigInteger())
    return literal(value, Double() if isinstance(value, float) else Text())


def _kind(value: Literal) -> dialects.Kind:
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "number"


def _value(
    field: Column | Metric | Config | Labels, kind: dialects.Kind, test: Test
) -> ColumnElement[bool]:
    """Return that a field is there, is of the kind, and passes a test."""
    match field:
        case Column("model"):
            return checkpoints.c.model_pk.in_(select(models.c.pk).where(test(models.c.name)))
        case Column("run" | "run_id" as name):
            found = runs.c.name if name == "run" else runs.c.id
            return _has_run(and_(found.is_not(None), test(found)))
        case Column(name):
            if name not in COLUMNS:
                raise ValueError(f"{name!r} is no field")
            at = column(name)
            return and_(at.is_not(None), test(at))
        case Metric(name):
            return _metric(name, test)
        case Config(path):
            at_path = dialects.json_value(records.c.record, ("config", *path), kind)
            return _record(at_path.is_not(None), test(at_path))
        case Labels():
            raise TypeError(f"{field} is a set")


def _there(field: Column | Metric | Config | Labels) -> ColumnElement[bool]:
    match field:
        case Column("model"):
            return checkpoints.c.pk.is_not(None)
        case Column("run" | "run_id" as name):
            return _has_run((runs.c.name if name == "run" else runs.c.id).is_not(None))
        case Column(name):
            return column(name).is_not(None)
        case Metric(name):
            return _metric(name, None)
        case Config(path):
            return _record(dialects.json_there(records.c.record, ("config", *path)))
        case Labels():
            raise TypeError(f"{field} is a set")


def _has_run(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    run = checkpoints.c.run_pk
    return and_(run.is_not(None), run.in_(select(runs.c.pk).where(condition)))


def _metric(name: str, test: Test | None) -> ColumnElement[bool]:
    if name == "acc":  # a column too, and that one has an index by model
        return and_(
            checkpoints.c.acc.is_not(None), *([] if test is None else [test(checkpoints.c.acc)])
        )
    # Only the checkpoint is the list's: one that is sorted by a metric reads that table too.
    return (
        exists()
        .where(
            metrics.c.checkpoint_pk == checkpoints.c.pk,
            metrics.c.name == name,
            *([] if test is None else [test(metrics.c.value)]),
        )
        .correlate(checkpoints)
    )


def _labels(field: Labels, test: Test | None) -> ColumnElement[bool]:
    table = tags if field.name == "tags" else aliases
    return exists().where(
        table.c.checkpoint_pk == checkpoints.c.pk, *([] if test is None else [test(table.c.name)])
    )


def _record(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(records.c.checkpoint_pk == checkpoints.c.pk, *conditions)
