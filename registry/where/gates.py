"""A condition on two checkpoints: `acc < base.acc - 0.005`, for a pipeline that must stop.

Law: `base.FIELD`, with one `+`, `-` or `*` and a number behind it, is a value, that of the base;
what is left is an expression of `where` on the new checkpoint. A gate never passes for lack of a
number: a field that either side hasn't got is an error, unless it is asked for by `null`; so is one
that can't be compared with what it stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from ..errors import NotFoundError
from ..records import Checkpoint
from .evaluating import comparable, evaluate, value_of
from .expressions import (
    And,
    Compare,
    Expression,
    Field,
    In,
    Labels,
    Like,
    Literal,
    Metric,
    Not,
    Or,
    literal_text,
)
from .fields import field_of
from .lexing import Source, Token
from .parsing import parsed

_BASE: Final = "base"
_SIGNS: Final = ("+", "-", "*")


def gate(text: str, new: Checkpoint, base: Checkpoint) -> tuple[bool, Expression]:
    """Return whether a condition holds for a new checkpoint beside its base, and how it reads with
    the base's values in it.

    Raises:
        TypeError: it is no string.
        ValueError: it can't be read; the message shows it with the place marked. Or a field's value
            doesn't compare with what it stands beside, a text with a number.
        NotFoundError: one of the two lacks a field that it names.
    """
    if not isinstance(text, str):
        raise TypeError(f"a condition is text, not {type(text).__name__}: {text!r}")
    source = Source(text, called="condition", sums=True)
    expression = parsed(source, list(_with_values(source, source.tokens(), base)))
    for field, beside in _needed(expression):
        found = value_of(field, new)
        if found is None:
            raise _absent(new, field)
        if not comparable(found, beside):
            raise ValueError(
                f"{new.ref} has {field} {found!r}, which doesn't compare with "
                f"{literal_text(beside)}, so that the condition can't be judged"
            )
    return evaluate(expression, new), expression


def _with_values(source: Source, tokens: list[Token], base: Checkpoint) -> Iterator[Token]:
    """Give the tokens with each `base.FIELD`, and the sum that it begins, as a value."""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.kind == "symbol" and token.value in _SIGNS:
            source.fail(
                f"{token.value!r} can't stand here", token.at,
                hint="a number is added to the base's value: acc < base.acc - 0.005",
            )  # fmt: skip
        if token.kind != "name" or token.path[0] != _BASE:
            yield token
            continue
        value = _value(source, token, base)
        sign, number = tokens[at], tokens[min(at + 1, len(tokens) - 1)]
        if sign.kind == "symbol" and sign.value in _SIGNS:
            if number.kind != "number":
                source.fail(
                    f"after {sign.value!r} comes a number", number.at, max(1, number.length)
                )
            value = _sum(source, token, value, str(sign.value), number)
            at += 2
        elif sign.kind == "number" and source.text[sign.at] in "+-":  # base.acc -0.005
            value = _sum(source, token, value, "+", sign)
            at += 1
        yield _literal(token, value)


def _value(source: Source, token: Token, base: Checkpoint) -> bool | int | float | str:
    if len(token.path) == 1:
        source.fail("base is a checkpoint", token.at, token.length, hint="name a fact: base.acc")
    field = field_of(source, Token("name", token.at, token.length, path=token.path[1:]))
    if isinstance(field, Labels):
        source.fail(
            f"base.{field} is a set of labels, and no value", token.at, token.length,
            hint=f'ask for one of the new checkpoint: {field} == "good"',
        )  # fmt: skip
    value = value_of(field, base)
    if value is None:
        raise _absent(base, field)
    if not isinstance(value, bool | int | float | str):
        source.fail(f"base.{field} is a list or a table, and no value", token.at, token.length)
    return value


def _sum(
    source: Source, token: Token, value: bool | float | str, sign: str, number: Token
) -> float:
    end = number.at + number.length - token.at
    if isinstance(value, bool | str):
        source.fail(f"{value!r} is no number", token.at, end)
    # as it is written: 0.93 - 0.03 is 0.9, which in binary floats is not so of all such sums
    left, right = Decimal(repr(value)), Decimal(repr(number.value))
    result = float(left * right if sign == "*" else left - right if sign == "-" else left + right)
    if not math.isfinite(result):
        source.fail("this is too large for a float", token.at, end)
    return result


def _literal(token: Token, value: bool | int | float | str) -> Token:
    if isinstance(value, bool):
        return Token("keyword", token.at, token.length, "true" if value else "false")
    if isinstance(value, str):
        return Token("text", token.at, token.length, value)
    return Token("number", token.at, token.length, value)


def _needed(expression: Expression) -> Iterator[tuple[Field, Literal]]:
    """Give the fields that must be there for the condition to mean something, each with a value
    that it must compare with.
    """
    match expression:
        case And(operands) | Or(operands):
            for operand in operands:
                yield from _needed(operand)
        case Not(operand):
            yield from _needed(operand)
        case Compare(Labels()) | In(Labels()) | Like(Labels()) | Compare(_, _, None):
            return
        case Compare(field, _, value):
            yield field, value
        case In(field, values):
            yield field, values[0]
        case Like(field):
            yield field, ""


def _absent(checkpoint: Checkpoint, field: Field) -> NotFoundError:
    name = field.name if isinstance(field, Metric) else str(field)
    metric = isinstance(field, Metric) or name == "acc"
    return NotFoundError(
        f"{checkpoint.ref} has no {field}, so that the condition can't be judged",
        hint=f"measure it, then: ckreg record {checkpoint.ref} {name}=…" if metric else None,
    )
