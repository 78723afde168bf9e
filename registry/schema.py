"""The database of a registry: opened, created, upgraded, lent out for one transaction at a time.

Law: creating is migrating, and each happens whole or not at all, under the writers' lock. A read
never changes the schema; a write on a schema that is behind copies the database aside and upgrades
it first; a schema ahead of us is refused. Alembic is imported only to migrate.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from . import sqlite
from .errors import (
    BusyError,
    CkregError,
    ConflictError,
    DamagedError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
    SchemaVersionError,
    UntrustedError,
)
from .locks import TIMEOUT_S, exclusive
from .tables import metadata

R = TypeVar("R")

HEAD: Final = "0001"
"""The revision that this ckreg reads and writes; the newest in migrations/."""

VERSION_TABLE: Final = "ckreg_version"
"""Not Alembic's default name: a database of another project that uses Alembic is not ours."""

LOCK: Final = "registry.lock"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Migrations and the newest revision among them.

    Attributes:
        folder: with env.py and versions/; None is the one that ships with ckreg.
        head: its newest revision.
    """

    folder: Path | None = None
    head: str = HEAD

    @property
    def scripts(self) -> Path:
        """registry/migrations in a wheel, migrations/ beside registry/ in a checkout."""
        if self.folder is not None:
            return self.folder
        here = Path(__file__).parent
        inside = here / "migrations"
        return inside if inside.is_dir() else here.parent / "migrations"

    def check_known(self, revision: str) -> None:
        """Refuse a schema that a newer ckreg made.

        Raises:
            SchemaVersionError: it is ahead of this ckreg.
        """
        if revision > self.head:
            raise SchemaVersionError(
                f"the registry's schema is at revision {revision}, and this ckreg knows them up to "
                f"{self.head}: a newer one made it",
                hint="pip install -U ckreg",
            )

    def run(self, connection: Connection) -> None:
        """Run the migrations to the newest, in the transaction that is open."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(self.scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
        if found != self.head:
            raise CkregError(
                f"the migrations in {str(self.scripts)!r} end at {found}, and this ckreg needs "
                f"{self.head}",
                hint="pip install --force-reinstall ckreg",
            )


SHIPPED: Final = Lineage()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did.

    Attributes:
        before: the revision that was there; None: the database was empty.
        backup: the copy of the database as it was.
    """

    before: str | None
    after: str
    backup: Path | None


class Transactions(Protocol):
    """What the catalog needs of a database: SQLite's is `Database`, a server's in server.py.

    Laws: 1. A read sees one state. 2. A write happens whole or not at all, and what it returned
    from is durable. 3. It waits for others for a bounded time, and is an error after that. 4. The
    work of a write may be done several times, of which one is committed.
    """

    @property
    def location(self) -> str:
        """Where the registry is, as `-r` takes it; without a password."""
        ...

    def read(self) -> AbstractContextManager[Connection]:
        """Lend a connection inside one read transaction; fetch whole results before leaving it."""
        ...

    def writing(self, work: Callable[[Connection], R], *, alongside: bool = False) -> R:
        """Do some work in one write transaction, and return what it gave.

        Args:
            alongside: others that add may do so at once: what they both want is settled by rows
                and constraints. Else nobody else writes meanwhile.
        """
        ...

    def check_writable(self) -> None:
        """Find out before hours of work whether a write could succeed."""
        ...

    def revision(self) -> str | None:
        """Return the schema's revision, or None for an empty database."""
        ...

    def upgrade(self) -> Upgrade:
        """Bring the schema to the newest revision."""
        ...


class Database:
    """One SQLite database. Holds no connection between calls, so that none outlives a fork."""

    def __init__(
        self, path: Path, *, lineage: Lineage = SHIPPED, lock_timeout_s: float = TIMEOUT_S
    ) -> None:
        """Name a database; `open` and `create` look at it as well.

        Args:
            path: its file, registry.db.
            lock_timeout_s: how long a write waits for other writers; a read for at most so long.
        """
        self.path = Path(path)
        self._lineage = lineage
        self._lock_timeout_s = lock_timeout_s
        self._seen = False

    def __repr__(self) -> str:
        return f"<Database {str(self.path)!r}>"

    @property
    def location(self) -> str:
        """The registry's folder."""
        return str(self.path.parent)

    @classmethod
    def open(cls, path: Path, *, lineage: Lineage = SHIPPED) -> Database:
        """Open a database that is there. An empty one, whose creator died or works, is completed.

        Raises:
            NotFoundError: nothing is there.
            ConflictError: it is a folder, or a database of something else.
            DamagedError: it is no database, or a damaged one.
            SchemaVersionError: it was made by a newer ckreg.
        """
        self = cls(path, lineage=lineage)
        return self if self.revision() is not None else cls.create(path, lineage=lineage)

    @classmethod
    def create(cls, path: Path, *, lineage: Lineage = SHIPPED) -> Database:
        """Create a database, or open the one that is there; any number of processes may at once.

        Raises:
            ConflictError: a database of something else is there.
            NotWritableError: it can't be made there.
            SchemaVersionError: one made by a newer ckreg is there.
        """
        self = cls(path, lineage=lineage)
        folder = self.path.parent
        try:
            # A new one is ours alone, whatever the umask; one that is there keeps its mode.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritableError(
                f"the folder {str(folder)!r} can't be made: {error.strerror}"
            ) from error
        with self._exclusive():
            fresh = not self.path.exists()
            if not fresh and self.revision() is not None:
                return self
            try:
                with self._migrating(self._creator) as connection:
                    self._lineage.run(connection)
                self._share(folder)
            except BaseException:
                if fresh:  # what we began and never committed, still under the lock
                    for suffix in ("", "-journal"):
                        self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
                raise
            _sync(folder)
        return self

    def _share(self, folder: Path) -> None:
        """Let the group write where the folder does; SQLite gives its journal the same mode."""
        if folder.stat().st_mode & stat.S_IWGRP:
            for path in (self.path, self.path.with_name(LOCK)):
                with suppress(PermissionError):  # made by another of the group, who did this
                    path.chmod(0o664)

    # --- transactions ------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Lend a connection inside one read transaction; fetch whole results before leaving it.

        Raises:
            SchemaVersionError: the schema is not the one that this ckreg reads.
            BusyError, DamagedError, CkregError: the database can't be read.
        """
        with self._reading() as (connection, revision):
            if revision != self._lineage.head:
                raise SchemaVersionError(
                    f"the registry's schema is at {revision or 'no revision'}, and this ckreg "
                    f"reads {self._lineage.head}; reading never changes it",
                    hint="upgrade it: ckreg migrate (the next write does so too)",
                )
            self._check_objects(connection)
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Lend a connection inside one write transaction, committed at the end.

        A schema that is behind is copied aside and upgraded first.

        Raises:
            NotWritableError: the registry is read-only for us; the message says why.
            BusyError: others write for too long.
            SchemaVersionError: the schema is ahead of this ckreg, or a shared registry is behind.
        """
        self.check_writable()
        with self._exclusive():
            with self._immediate() as connection:
                if self._revision_in(connection) == self._lineage.head:
                    self._check_objects(connection)
                    yield connection
                    connection.commit()
                    return
            self._upgrade(asked=False)
            with self._immediate() as connection:
                self._check_objects(connection)
                yield connection
                connection.commit()

    def writing(self, work: Callable[[Connection], R], *, alongside: bool = False) -> R:
        """Do some work in one write transaction; of SQLite's there is never more than one.

        Raises:
            as write.
        """
        with self.write() as connection:
            return work(connection)

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, str | None]]:
        self._require_file()
        with sqlite.translated(self.path):
            before = None
            try:
                connection, revision = self._begin_read(self._engine)
            except DBAPIError as error:
                if sqlite.code_of(error) not in sqlite.NO_LOCKS:
                    raise
                before = self._quiet()
                connection, revision = self._begin_read(self._immutable)
            with connection:
                yield connection, revision
            if before is not None and before != self._quiet():
                raise BusyError(
                    f"{str(self.path)!r} was written while it was read without locks",
                    hint="run the command again",
                )

    def _check_objects(self, connection: Connection) -> None:
        """See, once, that the tables and indexes are ckreg's own, and that nothing acts on writes.

        A trigger in a file from elsewhere would run its maker's SQL in our statements, and a view
        in a table's place would answer for it. Other tables and views harm nothing.

        Raises:
            UntrustedError: there is a trigger, or something else under a name of ours.
            DamagedError: a table or an index is missing.
        """
        if self._seen or self._lineage is not SHIPPED:
            return
        rows = connection.exec_driver_sql("SELECT name, type FROM sqlite_master").all()
        found = {str(name): str(kind) for name, kind in rows}
        own = {VERSION_TABLE: "table"}
        for table in metadata.tables.values():
            own |= {table.name: "table", **{str(index.name): "index" for index in table.indexes}}
        for name, kind in sorted(found.items()):
            if kind == "trigger" or own.get(name, kind) != kind:
                raise UntrustedError(
                    f"the database {str(self.path)!r} holds the {kind} {name!r}, which ckreg never "
                    "makes: its SQL would run in ckreg's place",
                    hint=f"sqlite3 {self.path} 'DROP {kind} \"{name}\"'",
                )
        for name in sorted(own.keys() - found.keys()):
            raise DamagedError(
                f"the database {str(self.path)!r} lacks the {own[name]} {name!r}",
                hint=f"every record is also in {self.path.parent / 'records'}",
            )
        self._seen = True

    def _begin_read(self, engine: Engine) -> tuple[Connection, str | None]:
        connection = engine.connect()
        try:
            connection.exec_driver_sql("BEGIN")
            return connection, self._revision_in(connection)
        except BaseException:
            connection.close()
            raise

    def _quiet(self) -> tuple[int, int]:
        """Return the file's state, for a read that can take no locks: nothing may be in flight.

        Raises:
            NotWritableError: a crash, or a writer at work, left pages to roll back.
        """
        journal = sqlite.unfinished(self.path)
        if journal is not None:
            raise NotWritableError(
                f"{str(journal)!r} holds an unfinished transaction, which only someone who may "
                "write to the registry can undo",
                hint=f"as its owner: ckreg -r {self.path.parent} models",
            )
        status = self.path.stat()
        return status.st_mtime_ns, status.st_size

    @contextmanager
    def _immediate(self) -> Iterator[Connection]:
        with sqlite.translated(self.path), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with exclusive(self.path.with_name(LOCK), timeout_s=self._lock_timeout_s):
            yield

    @cached_property
    def _engine(self) -> Engine:
        return self._make_engine("rw")

    @cached_property
    def _creator(self) -> Engine:
        return self._make_engine("rwc")

    @cached_property
    def _immutable(self) -> Engine:
        return self._make_engine("immutable")

    def _make_engine(self, mode: sqlite.Mode) -> Engine:
        return sqlite.engine(self.path, mode, busy_s=min(sqlite.BUSY_S, self._lock_timeout_s))

    # --- what is there -----------------------------------------------------------------------

    def revision(self) -> str | None:
        """Return the schema's revision, or None for an empty database.

        Raises:
            NotFoundError, ConflictError, DamagedError: as open.
            SchemaVersionError: it is ahead of this ckreg.
        """
        with self._reading() as (_, revision):
            return revision

    def check_writable(self) -> None:
        """Find out before hours of work whether a write could succeed.

        Raises:
            NotWritableError: it couldn't; the message says why.
        """
        self._require_file()
        why = sqlite.why_not_writable(self.path)
        if why is not None:
            raise NotWritableError(
                f"the registry {str(self.path.parent)!r} can't be written: {why}",
                hint="reading works; to write, use another registry: ckreg -r LOCATION …",
            )

    def _require_file(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no registry at {str(self.path.parent)!r}: {self.path.name} is missing",
                hint=f"make one: ckreg -r {self.path.parent} init",
            ) from None
        except OSError as error:
            raise NotWritableError(
                f"{str(self.path)!r} can't be reached: {error.strerror}"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise ConflictError(f"{str(self.path)!r} is no file, and so no database")

    def _revision_in(self, connection: Connection) -> str | None:
        try:
            found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").all()
        except OperationalError as error:
            if "no such table" not in str(error.orig):
                raise
            if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0:
                return None
            raise ConflictError(
                f"{str(self.path)!r} is a database of something else: it has no {VERSION_TABLE}",
                hint="name another place: ckreg -r LOCATION init",
            ) from None
        if len(found) != 1:
            raise DamagedError(f"{str(self.path)!r} has {len(found)} schema revisions, not one")
        revision = str(found[0][0])
        self._lineage.check_known(revision)
        return revision

    def replace(self, fresh: Path, unchanged: Callable[[], None]) -> Path | None:
        """Put another database in this one's place, and return where the old one is kept.

        Args:
            fresh: beside it, closed.
            unchanged: called while writers wait; what it raises leaves everything as it was.
        """
        with self._exclusive():
            unchanged()
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            kept = self.path.with_name(f"{self.path.name}.replaced-{stamp}")
            there = self.path.exists()
            if there:
                os.link(self.path, kept)
            # With the old one: beside another database it would be rolled back into that.
            journal = self.path.with_name(f"{self.path.name}-journal")
            if journal.exists():
                journal.rename(kept.with_name(f"{kept.name}-journal"))
            fresh.replace(self.path)
            fresh.with_name(f"{fresh.name}-journal").unlink(missing_ok=True)
            _sync(self.path.parent)
        return kept if there else None

    # --- migrations --------------------------------------------------------------------------

    def upgrade(self) -> Upgrade:
        """Bring the schema to the newest revision, after a copy of the database was put aside.

        Raises:
            SchemaVersionError: it is ahead of this ckreg.
            NotWritableError, NoSpaceError, BusyError: it can't be done; nothing has changed.
        """
        self.check_writable()
        with self._exclusive():
            return self._upgrade(asked=True)

    def _upgrade(self, *, asked: bool) -> Upgrade:
        head = self._lineage.head
        with self._migrating(self._engine) as connection:
            before = self._revision_in(connection)
            if before == head:
                return Upgrade(before, head, None)
            if before is not None and not asked and self._is_shared(connection):
                raise SchemaVersionError(
                    f"this shared registry's schema is at {before}, and ckreg writes {head}; an "
                    "upgrade locks out whoever has an older ckreg: it is never done in passing",
                    hint=f"when all are ready: ckreg -r {self.path.parent} migrate",
                )
            backup = None if before is None else self._back_up(before)
            self._lineage.run(connection)
        return Upgrade(before, head, backup)

    @staticmethod
    def _is_shared(connection: Connection) -> bool:
        found = connection.exec_driver_sql("SELECT value FROM settings WHERE name = 'shared'")
        return found.scalar() not in (None, "", "false")

    def _back_up(self, revision: str) -> Path:
        """Copy the database, from a second connection while the first one keeps writers out."""
        size, free = self.path.stat().st_size, shutil.disk_usage(self.path.parent).free
        if free < size + 2**20:
            raise NoSpaceError(
                f"an upgrade first copies the database aside: {size:,} bytes; {free:,} are free",
                hint=f"see: df -h {self.path.parent}",
            )
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        backup = self.path.with_name(f"{self.path.name}.{revision}-{stamp}.backup")
        partial = backup.with_name(backup.name + ".part")
        try:
            with self._engine.connect() as second:
                second.exec_driver_sql("VACUUM INTO ?", (str(partial),))
            _sync(partial)
            partial.rename(backup)
            _sync(backup.parent)
        finally:
            partial.unlink(missing_ok=True)
        return backup

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Lend a connection to Alembic's own command line, under the writers' lock."""
        with self._exclusive(), self._migrating(self._creator) as connection:
            yield connection

    @contextmanager
    def _migrating(self, engine: Engine) -> Iterator[Connection]:
        with sqlite.translated(self.path), engine.connect() as connection:
            # Before BEGIN, where alone it has an effect: tables that others refer to are rebuilt.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if broken:
                raise DamagedError(
                    f"{len(broken)} rows of {str(self.path)!r} would refer to nothing after the "
                    f"migration, first one of {broken[0][0]}; nothing was changed"
                )
            connection.commit()


def _sync(path: Path) -> None:
    """Make a finished file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
