"""A database server's URL, with its password kept from every text.

Law: what is printed, recorded or raised never has a password; only `libpq` hands the whole URL out,
to the driver. Knows no driver: what the words of a URL mean is libpq's to say (PostgreSQL 18,
section 32.1.1.2), so that sockets, several hosts and sslmode= work as everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode

SCHEMES: Final = ("postgresql+psycopg", "postgresql", "postgres")

_SECRETS: Final = frozenset({"password", "sslpassword", "oauth_client_secret"})
_PARTS: Final = re.compile(
    r"(?P<scheme>[^:]+)://(?:(?P<user>[^@/?#:]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<hosts>[^@/?#]*)(?:/(?P<name>[^@/?#]*))?(?:\?(?P<query>[^#]*))?"
)


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where a database is.

    Attributes:
        libpq: the whole URL, for the driver alone.
        secrets: its passwords, to be masked in what others say.
    """

    shown: str
    libpq: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.shown

    def mask(self, text: str) -> str:
        """Return a text without this URL's passwords."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    @property
    def exists(self) -> bool:
        """Always true: whether a registry is there is the server's to say."""
        return True

    @property
    def default(self) -> bool:
        """Always false: no server is ever taken unless it is named."""
        return False


def is_url(text: str) -> bool:
    """Say whether a location is a URL, not a folder.

    Raises:
        ValueError: it begins as one and lacks a slash: it would become a folder called `s3:`.
    """
    if half := re.match(r"(s3|gs|az|postgres(?:ql)?(?:\+psycopg)?):(?!//)", text):
        raise ValueError(
            f"a {half[1]} URL begins with {half[1]}://: {half[0]} alone would be a folder"
        )
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse(text: str) -> DatabaseUrl:
    """Return the database that a URL names.

    Raises:
        ValueError: it is a URL of another kind, or can't be read, or names no database. The message
            never quotes what may be a password.

    Example:
        >>> print(parse("postgres://ann:secret@db.example/ckreg?sslmode=require"))
        postgresql+psycopg://ann@db.example/ckreg?sslmode=require
    """
    scheme = text.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"a registry at a {scheme}:// URL is not supported; name a folder, or a database as "
            "postgresql+psycopg://USER@HOST/NAME"
        )
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError(
            f"the {scheme}:// URL of the database can't be read; its form is "
            "postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME, with %40 for @, %2F for /, %3A for "
            ": and %23 for # in the password (or no password, and PGPASSWORD or ~/.pgpass)"
        )
    given = parse_qsl(match["query"] or "", keep_blank_values=True)
    if not match["name"] and not {"dbname", "service"} & {name for name, _ in given}:
        raise ValueError(
            f"the {scheme}:// URL names no database: postgresql+psycopg://USER@HOST/NAME"
        )
    secrets = {value for name, value in given if name in _SECRETS}
    if match["password"]:
        secrets |= {match["password"], unquote(match["password"])}
    rest = [(name, value) for name, value in given if name not in _SECRETS]
    shown = "postgresql+psycopg://"
    shown += f"{match['user']}@" if match["user"] else ""
    shown += f"{match['hosts']}/{match['name'] or ''}"
    shown += f"?{urlencode(rest, safe='/')}" if rest else ""
    return DatabaseUrl(
        shown,
        f"postgresql://{text.split('://', 1)[1]}",
        tuple(sorted((s for s in secrets if s), key=len, reverse=True)),
    )
