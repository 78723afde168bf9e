"""SQL that SQLite and PostgreSQL say differently, said once: globs, and what is in a JSON text.

Law: both give the same answer. A value of JSON is asked for by its kind, and is NULL where it is of
another, so that a cast never meets a text that it can't read.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, Literal

from sqlalchemy import Boolean, ColumnElement, Connection, Double, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from . import sqlite
from .where import Like

Kind = Literal["number", "text", "bool"]

_TYPES: Final = {"number": Double(), "text": Text(), "bool": Boolean()}
_CAST: Final = {"number": "double precision", "text": "text", "bool": "boolean"}
_SQLITE_KIND: Final = {
    "number": "'integer', 'real'",
    "text": "'text'",
    "bool": "'true', 'false'",
}
_POSTGRES_KIND: Final = {"number": "number", "text": "string", "bool": "boolean"}


class _Glob(GenericFunction[bool]):
    """`value GLOB pattern`; a LIKE where GLOB is unknown."""

    type = Boolean()
    inherit_cache = True
    name = "ckreg_glob"


class _JsonValue(GenericFunction[Any]):
    """What is at a path of a JSON text, or NULL where it is of another kind."""

    inherit_cache = False  # the kind and the path are in the SQL
    name = "ckreg_json_value"

    def __init__(self, document: ColumnElement[Any], keys: tuple[str, ...], kind: Kind) -> None:
        self.kind = kind
        super().__init__(document, literal(_path(keys)), *map(literal, keys), type_=_TYPES[kind])


class _JsonThere(GenericFunction[bool]):
    """Whether something is at a path of a JSON text, and it isn't null."""

    inherit_cache = False
    type = Boolean()
    name = "ckreg_json_there"

    def __init__(self, document: ColumnElement[Any], keys: tuple[str, ...]) -> None:
        super().__init__(document, literal(_path(keys)), *map(literal, keys))


class _Among(GenericFunction[bool]):
    """Whether a value is one of the texts of a JSON list."""

    type = Boolean()
    inherit_cache = True
    name = "ckreg_among"


def among(value: ColumnElement[Any], texts: Collection[str]) -> ColumnElement[bool]:
    """Return that a value is one of any number of texts, which go in as one parameter."""
    return _Among(value, literal(json.dumps(list(texts))))


def matches(value: ColumnElement[Any], pattern: Like) -> ColumnElement[bool]:
    """Return a case-sensitive match; SQLite's LIKE isn't, its GLOB is."""
    plain = "".join(
        f"\\{text}" if kind == "text" and text in "%_\\" else text for kind, text in pattern.parts()
    )
    return _Glob(value, literal(pattern.glob()), literal(plain))


def json_value(
    document: ColumnElement[Any], keys: tuple[str, ...], kind: Kind
) -> ColumnElement[Any]:
    """Return what is at a path of a JSON text: a number, a text or a boolean, else NULL."""
    return _JsonValue(document, keys, kind)


def json_there(document: ColumnElement[Any], keys: tuple[str, ...]) -> ColumnElement[bool]:
    """Return that something is at a path of a JSON text, and it isn't null."""
    return _JsonThere(document, keys)


def integrity(connection: Connection) -> list[str]:
    """Return what the database itself finds wrong; PostgreSQL keeps its constraints, and its pages
    are `pg_amcheck`'s to look at.
    """
    return sqlite.integrity(connection) if connection.dialect.name == "sqlite" else []


def _path(keys: tuple[str, ...]) -> str:
    # Keys as the record's JSON spells them, in ASCII: older SQLite compares without unescaping.
    return "$." + ".".join(json.dumps(key) for key in keys)


@compiles(_Glob, "sqlite")
def _glob_sqlite(element: _Glob, compiler: Any, **how: Any) -> str:
    value, glob, _ = (compiler.process(part, **how) for part in element.clauses)
    return f"({value} GLOB {glob})"


@compiles(_Glob, "postgresql")
def _glob_postgresql(element: _Glob, compiler: Any, **how: Any) -> str:
    value, _, like = list(element.clauses)
    return f"({compiler.process(value, **how)} LIKE {compiler.process(like, **how)})"


@compiles(_JsonValue, "sqlite")
def _json_value_sqlite(element: _JsonValue, compiler: Any, **how: Any) -> str:
    document, path = (compiler.process(part, **how) for part in list(element.clauses)[:2])
    kinds = _SQLITE_KIND[element.kind]
    return (
        f"(CASE WHEN json_type({document}, {path}) IN ({kinds}) "
        f"THEN json_extract({document}, {path}) END)"
    )


@compiles(_JsonThere, "sqlite")
def _json_there_sqlite(element: _JsonThere, compiler: Any, **how: Any) -> str:
    document, path = (compiler.process(part, **how) for part in list(element.clauses)[:2])
    return f"(coalesce(json_type({document}, {path}), 'null') <> 'null')"


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: Any, **how: Any) -> str:
    value, texts = (compiler.process(part, **how) for part in element.clauses)
    return f"({value} IN (SELECT value FROM json_each({texts})))"


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: Any, **how: Any) -> str:
    value, texts = (compiler.process(part, **how) for part in element.clauses)
    return f"({value} IN (SELECT json_array_elements_text({texts}::json)))"


def _at(element: _JsonValue | _JsonThere, compiler: Any, how: Any) -> str:
    """Return the JSON at a path. `json`, not `jsonb`: that one refuses what JSON may hold."""
    document, _, *keys = (compiler.process(part, **how) for part in element.clauses)
    return f"({document}::json #> ARRAY[{', '.join(keys)}]::text[])"


@compiles(_JsonValue, "postgresql")
def _json_value_postgresql(element: _JsonValue, compiler: Any, **how: Any) -> str:
    at = _at(element, compiler, how)
    return (
        f"(CASE WHEN json_typeof({at}) = '{_POSTGRES_KIND[element.kind]}' "
        f"THEN ({at} #>> '{{}}')::{_CAST[element.kind]} END)"
    )


@compiles(_JsonThere, "postgresql")
def _json_there_postgresql(element: _JsonThere, compiler: Any, **how: Any) -> str:
    return f"(coalesce(json_typeof({_at(element, compiler, how)}), 'null') <> 'null')"
