"""PostgreSQL's side of a registry: connections, its errors in our words.

Law: a connection lives for one transaction, is had within a bounded time or not at all, and notices
a server that is gone; nothing that is raised has a password in it, its causes included.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from .errors import (
    BusyError,
    CkregError,
    DamagedError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
    RemoteError,
)
from .urls import DatabaseUrl

CONNECT_S: Final = 10
"""How long one host is asked for a connection."""

OLDEST: Final = 14
"""The first major version that is served: older ones get no security updates any more."""

_LIVENESS: Final = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""So that a server or a network that is gone is an error in half a minute, not in two hours."""

_AGAIN: Final = frozenset({"40001", "40P01", "23505", "23503", "23001"})
"""Lost to another writer: a deadlock, a serialisation failure, a row that he made or took first."""

_BUSY: Final = frozenset({"55P03", "57014", "53300"})
_GONE: Final = ("08", "57P")
_REFUSED: Final = ("28P01", "28000")


class Unreachable(RemoteError):
    """The server can't be reached, or went away, before anything was committed: try again."""


class Lost(RemoteError):
    """The connection went away during a COMMIT: whether it happened isn't known."""


class Again(BusyError):
    """Another writer was faster, and everything was rolled back: do the same again."""


def engine(url: DatabaseUrl) -> Engine:
    """Return an engine on a database, which opens a connection for each transaction.

    Raises:
        CkregError: psycopg isn't installed.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise CkregError(
            f"{str(url)!r} needs psycopg, which isn't installed",
            hint="pip install 'ckreg[postgres]'",
        )

    def connect() -> Any:
        import psycopg

        try:
            return psycopg.connect(
                url.libpq,
                **_defaults(url),
                prepare_threshold=None,  # a connection doesn't live long enough to gain by it
            )
        except psycopg.Error as error:
            # From None: the driver's words, and the frames that they keep, may hold the password.
            raise _refused(url, url.mask(str(error)).strip()) from None

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def _defaults(url: DatabaseUrl) -> dict[str, Any]:
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(url.libpq)
    ours = _LIVENESS | {"application_name": "ckreg", "client_encoding": "utf8"}
    return {name: value for name, value in ours.items() if name not in given}


# --- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(url: DatabaseUrl, *, committing: bool = False) -> Iterator[None]:
    """Turn what the database raises inside into ckreg's errors, once and here.

    Args:
        committing: inside is a COMMIT: where the connection is lost, its answer is.
    """
    try:
        yield
    except DBAPIError as error:
        raise _translation(url, error, committing=committing) from error


def code_of(error: DBAPIError) -> str:
    """Return the SQLSTATE (PostgreSQL 18, appendix A), or "" where the driver itself complains."""
    return str(getattr(error.orig, "sqlstate", None) or "")


def _translation(url: DatabaseUrl, error: DBAPIError, *, committing: bool) -> CkregError:
    code, said = code_of(error), url.mask(str(error.orig).strip())
    first = said.partition("\n")[0]
    if error.connection_invalidated or code.startswith(_GONE):
        if committing:
            return Lost(
                f"the connection to {str(url)!r} was lost during a commit: {first}",
                hint="see whether it is there: ckreg list --limit 5",
            )
        return Unreachable(
            f"the connection to {str(url)!r} was lost: {first}",
            hint="nothing was changed; see whether the server runs, then do it again",
        )
    if code in _AGAIN:
        return Again(f"others change the same in {str(url)!r}: {first}", hint="run it again")
    if code in _BUSY:
        return BusyError(
            f"the database {str(url)!r} is busy: {first}",
            hint="see who holds it: SELECT pid, state, query FROM pg_stat_activity; then run the "
            "command again",
        )
    if code in ("42501", "25006"):
        return NotWritableError(
            f"the database {str(url)!r} doesn't let us: {first}", hint=_permission(url, code, first)
        )
    if code in ("53100", "53200"):
        return NoSpaceError(
            f"the server of {str(url)!r} has no room: {first}", hint="ask whoever runs it: df -h"
        )
    if code.startswith("XX") or code in ("42P01", "42703"):
        return DamagedError(
            f"the database {str(url)!r} is damaged: {first}",
            hint="every record is also in records/ of the blob store; see the server's log",
        )
    return CkregError(f"the database {str(url)!r} failed: {first}")


def _permission(url: DatabaseUrl, code: str, said: str) -> str:
    """Return how to get the permission that the server says is missing."""
    from psycopg.conninfo import conninfo_to_dict

    if code == "25006":
        return "see whether it is a standby: SELECT pg_is_in_recovery()"
    if "must be owner" in said:
        return "do it as the user who made the registry"
    who = conninfo_to_dict(url.libpq).get("user") or "USER"
    if "schema" in said:
        return f'as its owner: GRANT USAGE, CREATE ON SCHEMA public TO "{who}"'
    if "ckreg_version" in said:  # the first table that is read
        return f'to read, as its owner: GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{who}"'
    return f"reading may work; to write: {to_write(who)}"


def to_write(who: object) -> str:
    """Return the SQL that lets a user write to a registry that another user made."""
    return (
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public "
        f'TO "{who}"; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{who}"'
    )


def _refused(url: DatabaseUrl, said: str) -> CkregError:
    """Return the error that says why there is no connection; libpq gives words and no code."""
    lines = [line.strip() for line in said.splitlines()]
    reasons = [line for line in lines if line and not line.startswith("Is the server running")]
    low, last = said.lower(), reasons[-1] if reasons else "no reason given"
    where = f"no connection to {str(url)!r}"
    if "does not support ssl" in low:
        return RemoteError(
            f"{where}: {last}",
            hint="in the server's postgresql.conf: ssl = on; or, where the network is trusted, "
            "without sslmode= in the URL",
        )
    if "certificate" in low or "ssl" in low or "tls" in low:
        return RemoteError(
            f"{where}: {last}",
            hint="sslmode=verify-full&sslrootcert=FILE names the authority that the server's "
            "certificate must be from; sslmode=require only encrypts",
        )
    if "does not exist" in low and "database" in low:
        return NotFoundError(
            f"{where}: there is no such database",
            hint="as somebody who may: createdb -E UTF8 NAME, then ckreg init URL --blobs FOLDER",
        )
    if "password" in low or "authentication" in low or "role" in low or "pg_hba" in low:
        return RemoteError(
            f"{where}: the server refused the user or the password: {last}",
            hint="the password may be in the URL, in PGPASSWORD or in ~/.pgpass; try it: "
            f"psql {_plain(url)}",
        )
    if "too many clients" in low or "connection slots" in low or "too many connections" in low:
        return Unreachable(
            f"{where}: all of the server's connections are taken",
            hint="run it again; or raise max_connections, or put a pool (pgbouncer) before it",
        )
    if "invalid" in low and any(word in low for word in ("option", "value", "token", "uri")):
        return CkregError(
            f"{where}: the driver can't read the URL",
            hint="the form is postgresql+psycopg://USER@HOST:PORT/NAME?sslmode=…",
        )
    return Unreachable(
        f"{where}: {last}",
        hint=f"see whether the server runs there: pg_isready -d {_plain(url)}",
    )


def _plain(url: DatabaseUrl) -> str:
    """Return a URL as a word for the shell, for PostgreSQL's own commands."""
    return shlex.quote(str(url).replace("+psycopg", ""))
