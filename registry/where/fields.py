"""Which fields there are, and which literals each of them can be compared with.

Law: what can't mean anything is refused with the place and the right spelling, not answered with
nothing: an unknown field, text against a number, a strategy that does not exist.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Final, NoReturn

from ..records import SOURCES
from ..signature import KeyStyle
from ..topology import STRATEGIES
from ..values import parse_time, printable, time_text
from .expressions import COLUMNS, Column, Config, Field, Labels, Literal, Metric, literal_text
from .lexing import Source, Token

_SPELLINGS: Final[Mapping[str, str]] = {
    "host": "hostname",
    "run.name": "run",
    "run.id": "run_id",
    **{f"topology.{name}": name for name in (
        "strategy", "world_size", "device_type", "device_count", "hostname",
    )},
}  # fmt: skip
"""Names that the JSON form and habit suggest, and the one that they mean."""

_CLOSED: Final[Mapping[str, tuple[str, ...]]] = {
    "strategy": STRATEGIES,
    "weights": ("live", "ema", "both"),
    "origin": ("save", "push"),
    "provenance.topology": SOURCES,
    "provenance.key_style": SOURCES,
}

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def field_of(source: Source, token: Token) -> Field:
    """Return the field that a name means."""
    first, rest = token.path[0], token.path[1:]
    name = ".".join(token.path)
    name = _SPELLINGS.get(name, name)
    if not is_field(token):
        source.fail(f"no field {name!r}", token.at, token.length, hint=_suggestion(name))
    if first == "metrics":
        return Metric(_metric_name(source, token, rest))
    if first == "config":
        return Config(_config_path(source, token, rest))
    if name == "tags":
        return Labels("tags")
    if name == "aliases":
        return Labels("aliases")
    return Column(name)


def is_field(token: Token) -> bool:
    """Return whether a name means a field."""
    name = ".".join(token.path)
    return (
        token.path[0] in ("metrics", "config")
        or name in ("tags", "aliases")
        or name in COLUMNS
        or name in _SPELLINGS
    )


def checked(source: Source, field: Field, op: str, value: Literal, token: Token) -> Literal:
    """Return the literal as it is compared with the field: times normalised, names in NFC.

    Args:
        op: the operator, or `in`, `like`.
        token: the literal's, for the error.
    """

    def fail(message: str, hint: str = "") -> NoReturn:
        source.fail(message, token.at, token.length, hint=hint)

    shown = literal_text(value)
    if value is None:
        if op not in ("==", "!="):
            fail(f"{field} {op} null is never true", f"write {field} == null, or {field} != null")
        return None
    kind = _type_of(field)
    if isinstance(value, bool) and kind not in ("any", "set"):
        fail(f"{field} is a {kind}, and {shown} is none")
    if isinstance(value, bool) and op not in ("==", "!=", "in"):
        fail(f"{shown} has no order", f"write {field} == {shown}")
    if op == "like" and kind in ("number", "time"):
        fail(f"{field} is a {kind}, and like matches text", "write < or > for a range")
    if op in ("<", "<=", ">", ">=") and kind == "set":
        fail(f"{field} is a set of labels and has no order", f'write {field} == "good"')
    if kind == "number" and isinstance(value, str):
        fail(f"{field} is a number, and {shown} is text", _unquoted(field, op, value))
    if kind in ("text", "time", "set") and not isinstance(value, str):
        what = {"set": "a set of labels"}.get(kind, f"a {kind}" if kind == "time" else kind)
        fail(f"{field} is {what}, and {shown} is none", f'write it in quotes: "{shown}"')
    if op == "like":
        trailing = re.search(r"\\*$", str(value))
        if trailing and len(trailing[0]) % 2:
            fail("the pattern ends in a lone backslash", "a literal one is written as four")
    if isinstance(value, int) and abs(value) > 2**53 and _is_float(field):
        return float(value)  # engines differ in whether they round a literal to the column's type
    if isinstance(field, Column) and isinstance(value, str):
        try:
            return _column_value(field.name, op, value)
        except ValueError as error:
            fail(str(error))
    return value


def _type_of(field: Field) -> str:
    match field:
        case Column(name):
            return COLUMNS[name]
        case Metric():
            return "number"
        case Config():
            return "any"
        case Labels():
            return "set"


def _is_float(field: Field) -> bool:
    return isinstance(field, Metric) or field == Column("acc")


def _column_value(name: str, op: str, value: str) -> str:
    if name == "created_at":
        return _time(op, value)
    if op == "like":
        return unicodedata.normalize("NFC", value)
    if name in _CLOSED and value not in _CLOSED[name]:
        near = get_close_matches(value, _CLOSED[name], n=1)
        raise ValueError(
            f"{name} is one of {', '.join(_CLOSED[name])}, never {literal_text(value)}"
            + (f" (did you mean {literal_text(near[0])}?)" if near else "")
        )
    if name in ("key_style", "file_keys") and op in ("==", "!=", "in"):
        return "" if value == "plain" else str(KeyStyle.parse(value))
    # Names are kept in NFC; a note stands as it was written, so both its forms would be right.
    return value if name == "note" else unicodedata.normalize("NFC", value)


def _time(op: str, value: str) -> str:
    if re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        day = date.fromisoformat(value)
        if op in ("==", "!=", "in"):
            after = day + timedelta(days=1) if day < date.max else day
            raise ValueError(
                f'a day is a range: write "{day}" <= created_at < "{after}"'
            )  # a checkpoint is never saved at midnight to the microsecond
        return time_text(parse_time(f"{value}T00:00:00Z"))
    if not _RFC3339.fullmatch(value):
        hint = "" if _RFC3339.fullmatch(value + "Z") is None else " (add Z for UTC)"
        raise ValueError(
            f'{literal_text(value)} is no time{hint}: write "2026-11-01" or "2026-11-01T15:30:00Z"'
        )
    return time_text(parse_time(value.upper()))


def _metric_name(source: Source, token: Token, rest: tuple[str, ...]) -> str:
    if len(rest) != 1:
        whole = ".".join(rest) or "val/loss"
        source.fail(
            "a metric is metrics and one name", token.at, token.length,
            hint=f"write metrics.{literal_text(whole)}",
        )  # fmt: skip
    try:
        return printable(rest[0], "a metric's name")
    except ValueError as error:
        source.fail(str(error), token.at, token.length)


def _config_path(source: Source, token: Token, rest: tuple[str, ...]) -> tuple[str, ...]:
    if not rest:
        source.fail(
            "config is a table", token.at, token.length, hint="name a value in it: config.lr"
        )
    for key in rest:
        if not key or '"' in key or "\\" in key:
            source.fail(
                f"the key {key!r} can't be asked for: it is empty, or holds a quote or backslash",
                token.at,
                token.length,
            )
    return rest


def _suggestion(name: str) -> str:
    known = [*COLUMNS, *_SPELLINGS, "tags", "aliases"]
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    near += [k for k in known if name.lower() in k and k not in near][:3]
    if near:
        meant = dict.fromkeys(_SPELLINGS.get(n, n) for n in near)
        return f"did you mean {', '.join(meant)}?"
    return (
        f"a metric is metrics.{literal_text(name) if '.' in name else name}, a config value "
        f"config.{name}; facts: {', '.join(COLUMNS)}, tags, aliases"
    )


def _unquoted(field: Field, op: str, value: str) -> str:
    try:
        float(value)
    except ValueError:
        return ""
    return f"write {field} {op} {value}"
