r"""The syntax tree of a `where` expression, and what it means.

Two-valued logic, the same here and in SQL (which therefore must never let NULL through):

- A comparison with an absent value is false, `!=`, `not in` and `not like` too; `not` of it is
  true. So `acc != 0.9` leaves out checkpoints without acc, and `not acc == 0.9` keeps them.
- `x == null` holds where x is absent, `x != null` where it is there. Nothing else takes null.
- A config value of another type than the literal compares as if absent (but it is not null). The
  types are number, text and bool; `true` is no number. Lists and tables only answer to null.
- Labels (tags, aliases) are a set, never absent: `tags == "a"` is membership, `!=` its opposite,
  `in` any of, `not in` none of, `like` any matches, `not like` none; `== null` is the empty set.
- Text compares by code points, the order of UTF-8 bytes. `like` is case-sensitive: `%` is any run
  of characters, `_` one (a code point), and a backslash takes the next character literally.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from typing import Literal as OneOf

Literal = bool | int | float | str | None
"""A literal of the language. Ints fit 64 bits with sign, floats are finite."""

Operator = OneOf["==", "!=", "<", "<=", ">", ">="]

ColumnType = OneOf["number", "text", "time"]
"""A time's literals are text of `values.time_text` already, so that text order is time order."""

COLUMNS: Final[Mapping[str, ColumnType]] = MappingProxyType(
    {
        "id": "text",
        "model": "text",
        "version": "number",
        "run": "text",  # the run's name
        "run_id": "text",
        "dataset": "text",
        "epoch": "number",
        "step": "number",
        "acc": "number",
        "batch_size": "number",
        "key_style": "text",
        "file_keys": "text",
        "weights": "text",
        "container": "text",
        "strategy": "text",
        "world_size": "number",
        "device_type": "text",
        "device_count": "number",
        "hostname": "text",  # of the topology
        "provenance.topology": "text",
        "provenance.key_style": "text",
        "signature": "text",
        "tensors": "number",
        "parameters": "number",
        "size_bytes": "number",  # all files together
        "scheduler": "text",
        "parent": "text",
        "note": "text",
        "author": "text",
        "origin": "text",
        "created_at": "time",
    }
)
"""The facts that can be asked for by their bare name, each with its type."""


# --- fields ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A fact of the checkpoint; one of `COLUMNS`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, a number: `metrics."val/loss"`."""

    name: str

    def __str__(self) -> str:
        return f"metrics.{_segment(self.name)}"


@dataclass(frozen=True, slots=True)
class Config:
    r"""A value inside config, by the keys that lead to it: `config.optim."weight decay"`.

    Keys are not empty, and hold no `"` and no backslash, so that any SQL JSON path can quote them.
    """

    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(["config", *map(_segment, self.path)])


@dataclass(frozen=True, slots=True)
class Labels:
    """The set of a checkpoint's tags, or of its aliases."""

    name: OneOf["tags", "aliases"]

    def __str__(self) -> str:
        return self.name


Field = Column | Metric | Config | Labels


# --- expressions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compare:
    """`field op value`; null stands only with `==` and `!=`, labels and bools likewise."""

    field: Field
    op: Operator
    value: Literal

    def __str__(self) -> str:
        return f"{self.field} {self.op} {literal_text(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """`field in (…)`: `==` with any of them; `negated`: `!=` with all (so false where absent).

    The values are one or more, of one type: all numbers, all text or all bools; never null.
    """

    field: Field
    values: tuple[bool | int | float | str, ...]
    negated: bool = False

    def __str__(self) -> str:
        op = "not in" if self.negated else "in"
        return f"{self.field} {op} ({', '.join(map(literal_text, self.values))})"


_PATTERN: Final = re.compile(r"\\(?P<plain>.)|(?P<run>%)|(?P<one>_)|(?P<text>.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Like:
    """`field like "pattern"`; `negated`: the value is there, is text, and doesn't match."""

    field: Field
    pattern: str
    negated: bool = False

    def __str__(self) -> str:
        op = "not like" if self.negated else "like"
        return f"{self.field} {op} {literal_text(self.pattern)}"

    def parts(self) -> list[tuple[OneOf["run", "one", "text"], str]]:
        r"""Return the pattern as wildcards (`%` a run, `_` one) and literal characters.

        Example:
            >>> Like(Column("model"), r"re%\_").parts()
            [('text', 'r'), ('text', 'e'), ('run', '%'), ('text', '_')]
        """
        found: list[tuple[OneOf["run", "one", "text"], str]] = []
        for match in _PATTERN.finditer(self.pattern):
            if match["run"]:
                found.append(("run", "%"))
            elif match["one"]:
                found.append(("one", "_"))
            else:
                found.append(("text", match["plain"] or match["text"]))
        return found

    def glob(self) -> str:
        """Return the same pattern for SQLite's GLOB, which is case-sensitive as its LIKE is not.

        Example:
            >>> Like(Column("note"), "100%*_").glob()
            '100*[*]?'
        """
        wild = {"run": "*", "one": "?"}
        return "".join(
            wild[kind] if kind != "text" else f"[{c}]" if c in "*?[" else c
            for kind, c in self.parts()
        )


@dataclass(frozen=True, slots=True)
class Not:
    """`not operand`."""

    operand: Expression

    def __str__(self) -> str:
        return f"not {_operand(self.operand)}"


@dataclass(frozen=True, slots=True)
class And:
    """Two or more operands that all hold. An And directly inside is merged into this one."""

    operands: tuple[Expression, ...]

    def __post_init__(self) -> None:
        flat: list[Expression] = []
        for operand in self.operands:
            flat.extend(operand.operands if isinstance(operand, And) else [operand])
        object.__setattr__(self, "operands", _two_or_more(flat))

    def __str__(self) -> str:
        return " and ".join(map(_operand, self.operands))


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more operands of which one holds. An Or directly inside is merged into this one."""

    operands: tuple[Expression, ...]

    def __post_init__(self) -> None:
        flat: list[Expression] = []
        for operand in self.operands:
            flat.extend(operand.operands if isinstance(operand, Or) else [operand])
        object.__setattr__(self, "operands", _two_or_more(flat))

    def __str__(self) -> str:
        return " or ".join(map(_operand, self.operands))


Expression = And | Or | Not | Compare | In | Like


def _two_or_more(operands: list[Expression]) -> tuple[Expression, ...]:
    if len(operands) < 2:
        raise ValueError(f"and, or take two or more operands, not {len(operands)}")
    return tuple(operands)


# --- text -----------------------------------------------------------------------------------------

BARE_SEGMENT: Final = re.compile(r"[^\W\d]\w*")
"""What a part of a field's name looks like without quotes."""

_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def literal_text(value: Literal) -> str:
    """Return a literal as the language writes it.

    Example:
        >>> [literal_text(v) for v in (None, True, 1e-5, "a\\n")]
        ['null', 'true', '1e-05', '"a\\\\n"']
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    return repr(value)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _segment(name: str) -> str:
    return name if BARE_SEGMENT.fullmatch(name) else literal_text(name)


def _operand(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, And | Or) else str(expression)
