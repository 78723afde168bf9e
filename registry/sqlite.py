"""SQLite's side of a registry: connections, its errors in our words.

Law: a connection lives for one transaction and is set up by one hook, whoever opens it; opening
never creates a file; nothing but SQLite opens registry.db, because closing any other descriptor of
it would drop SQLite's locks (sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from .blobs.disk import no_space
from .errors import BusyError, CkregError, DamagedError, NotWritableError

BUSY_S: Final = 15.0
"""How long SQLite itself waits: for readers to leave at a commit, for a writer to finish one."""

Mode = Literal["rwc", "rw", "immutable"]

NO_LOCKS: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}
)
"""What SQLite says where it can neither lock nor look at the journal: a medium for reading only."""


def engine(path: Path, mode: Mode, *, busy_s: float = BUSY_S) -> Engine:
    """Return an engine on a database file, which opens a connection for each transaction.

    Args:
        mode: `rwc` creates the file, `rw` never does (and reads where it can't write); `immutable`
            takes no locks and reads no journal.
    """
    query = "immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"file:{quote(str(path.absolute()))}?{query}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: BEGIN is ours to say, or DDL would end up outside of transactions.
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=busy_s, check_same_thread=False
        )
        try:
            _set_up(connection, path, busy_s, locks=mode != "immutable")
        except BaseException:
            connection.close()
            raise
        return connection

    return create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)


def _set_up(connection: sqlite3.Connection, path: Path, busy_s: float, *, locks: bool) -> None:
    run = connection.execute
    run(
        f"PRAGMA busy_timeout = {round(1000 * busy_s)}"
    )  # first: each of the others may meet a lock
    run("PRAGMA trusted_schema = OFF")
    run("PRAGMA cell_size_check = ON")
    run("PRAGMA foreign_keys = ON")
    if not locks:
        return
    # Not DELETE: its unlink of the journal isn't synced, so that after a power cut the journal is
    # back and rolls back a commit that was acknowledged. Not WAL: its reset bug in 3.7.0 to 3.51.2
    # (sqlite.org/wal.html), and shared memory that a network filesystem lacks.
    mode = run("PRAGMA journal_mode = TRUNCATE").fetchone()[0]
    if mode != "truncate":
        raise BusyError(
            f"{str(path)!r} is in the journal mode {mode!r}, and could not be set back to TRUNCATE",
            hint=f"close what uses it (fuser -v {path}), then run the command again",
        )
    run("PRAGMA synchronous = FULL")
    run("PRAGMA fullfsync = ON")  # macOS, where fsync alone stops at the drive's cache


# --- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the database raises inside into ckreg's errors, once and here."""
    try:
        yield
    except DBAPIError as error:
        raise _translation(error, path) from error
    except UnicodeDecodeError as error:  # the driver's, of SQLite's words about a damaged schema
        raise _damaged(path, str(error)) from error


def code_of(error: DBAPIError) -> int:
    """Return SQLite's primary result code, or -1 where the driver itself complains."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1


def disk_failed(error: BaseException) -> bool:
    """Say whether an error of ours means that the medium failed under the database.

    At a COMMIT that leaves the transaction visible and not durable, or not there at all.
    """
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and code_of(cause) == sqlite3.SQLITE_IOERR


def _translation(error: DBAPIError, path: Path) -> CkregError:
    code, said, where = code_of(error), str(error.orig), str(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return BusyError(
            f"{where!r} is locked by another program",
            hint=f"see who holds it: fuser -v {path}; then run the command again",
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return NotWritableError(
            f"{where!r} can't be opened for this: {why_not_writable(path) or said}",
            hint=f"see: ls -la {path.parent}",
        )
    if code == sqlite3.SQLITE_FULL:
        return no_space("write", path, None)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode" in said.lower():
        return _damaged(path, said)
    return CkregError(f"the database {where!r} failed: {said}")


def _damaged(path: Path, said: str) -> DamagedError:
    return DamagedError(
        f"the database {str(path)!r} is damaged: {said}",
        hint=f"keep a copy of {path.parent}; every record is also in {path.parent / 'records'}",
    )


def why_not_writable(path: Path) -> str | None:
    """Return in a few words why a database in this place can't be written, or None."""
    folder = path.parent
    try:
        if hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY:
            return "it lies on a read-only filesystem"
    except OSError as error:
        return str(error.strerror)
    effective = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        return "no permission to write to its folder"
    if path.exists() and not os.access(path, os.W_OK, effective_ids=effective):
        return "no permission to write to it"
    return None


def unfinished(path: Path) -> Path | None:
    """Return the journal of a transaction that is at work or died at it, or None.

    Whoever can't write can't roll it back, and reading past it would read half a transaction.
    """
    for suffix in ("-journal", "-wal"):
        journal = path.with_name(path.name + suffix)
        try:
            if journal.stat().st_size > 0:
                return journal
        except OSError:
            continue
    return None


def integrity(connection: Connection) -> list[str]:
    """Return what SQLite finds wrong with the whole database, a hundred things at most."""
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(100)")]
    said = [text for text in found if text != "ok"]
    for table, key, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(
        100 - len(said)
    ):
        said.append(f"the row {key} of {table} refers to a row of {parent} that isn't there")
    return said
