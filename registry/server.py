"""A registry's database on a PostgreSQL server: lent out for one transaction at a time.

Law: of writers that add, those of one model wait for each other at the model's row, and of others
only for what they share; whoever changes or takes anything away is alone. Both stand in one fair
queue of the server (an advisory lock), for a bounded time. A transaction that lost to another, or
whose connection broke, is done again; where the answer of a COMMIT was lost, its transaction's
number is looked up, and it is done again only if it is known to have been undone.
"""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine, text

from . import postgres
from .errors import (
    BusyError,
    CkregError,
    ConflictError,
    DamagedError,
    NotFoundError,
    NotWritableError,
    RemoteError,
    SchemaVersionError,
    UntrustedError,
    warn,
)
from .postgres import Again, Lost, Unreachable
from .schema import SHIPPED, VERSION_TABLE, Lineage, Upgrade
from .tables import metadata
from .urls import DatabaseUrl

R = TypeVar("R")

TIMEOUT_S: Final = 60.0
"""How long a write waits for other writers."""

GONE_S: Final = 20.0
"""How long a write that began goes on trying to reach a server that went away: a restart."""

SKEW_S: Final = 60.0
"""How far this machine's clock may be from the server's before it is said."""

_KEY: Final = 0x636B726567  # "ckreg"; with the schema's oid: registries beside each other


class ServerDatabase:
    """One PostgreSQL database. Holds no connection between calls, so that none outlives a fork."""

    def __init__(
        self,
        url: DatabaseUrl,
        *,
        lineage: Lineage = SHIPPED,
        lock_timeout_s: float = TIMEOUT_S,
        gone_s: float = GONE_S,
    ) -> None:
        """Name a database; `open` and `create` look at it as well.

        Args:
            lock_timeout_s: how long a write waits for other writers.
            gone_s: how long it tries to reach a server that went away.
        """
        self.url = url
        self._lineage = lineage
        self._lock_timeout_s = lock_timeout_s
        self._gone_s = gone_s
        self._seen = False

    def __repr__(self) -> str:
        return f"<ServerDatabase {str(self.url)!r}>"

    @property
    def location(self) -> str:
        """The URL, without a password."""
        return str(self.url)

    @classmethod
    def open(cls, url: DatabaseUrl, *, lineage: Lineage = SHIPPED) -> ServerDatabase:
        """Open a registry that is there.

        Raises:
            NotFoundError: no such database, or it is empty.
            ConflictError: it is a database of something else.
            SchemaVersionError: it was made by a newer ckreg.
            RemoteError: the server can't be reached, or refuses us.
        """
        self = cls(url, lineage=lineage)
        if self.revision() is None:
            raise NotFoundError(
                f"the database {str(url)!r} is empty: there is no registry",
                hint=f"make one: ckreg init {shlex.quote(str(url))} --blobs FOLDER",
            )
        return self

    @classmethod
    def create(cls, url: DatabaseUrl, *, lineage: Lineage = SHIPPED) -> ServerDatabase:
        """Create the tables, or open those that are there; any number of processes may at once.

        Raises:
            ConflictError: a database of something else is there, or its encoding isn't UTF-8.
            NotFoundError: there is no such database.
            NotWritableError: we may not make tables in it.
            SchemaVersionError: one made by a newer ckreg is there.
            RemoteError: the server can't be reached, or refuses us.
        """
        self = cls(url, lineage=lineage)
        if self.revision() is None:
            self._migrate(lambda before: before is None)
        return self

    # --- transactions ------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Lend a connection inside one read transaction; fetch whole results before leaving it.

        Raises:
            SchemaVersionError: the schema is not the one that this ckreg reads.
            NotFoundError: the database is empty.
            RemoteError, BusyError, DamagedError, CkregError: it can't be read.
        """
        with self._reading() as connection:
            self._check(connection)
            yield connection

    def writing(self, work: Callable[[Connection], R], *, alongside: bool = False) -> R:
        """Do some work in one write transaction, again where another's came between.

        Raises:
            SchemaVersionError: the schema is behind or ahead.
            NotWritableError: the database is read-only for us.
            BusyError: others write for too long.
            RemoteError: the server is gone; nothing was changed, unless the message says that this
                isn't known.
        """
        now = time.monotonic()
        busy, gone, pause = now + self._lock_timeout_s, now + self._gone_s, 0.02
        while True:
            try:
                return self._once(work, alongside)
            except Again:
                if time.monotonic() > busy:
                    raise
            except Unreachable:
                if time.monotonic() > gone:
                    raise
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, 1.0)

    def _once(self, work: Callable[[Connection], R], alongside: bool) -> R:
        """Do the work in one transaction; look up what became of it where its answer was lost."""
        with postgres.translated(self.url), self._engine.connect() as connection:
            self._queue(connection, alone=not alongside)
            self._check(connection)
            result = work(connection)
            number = connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar_one()
            try:
                with postgres.translated(self.url, committing=True):
                    connection.commit()
            except Lost as error:
                if not self._happened(str(number), error):
                    raise Unreachable(error.message, hint="nothing was changed") from error
        return result

    def _happened(self, number: str, lost: Lost) -> bool:
        """Say whether a transaction was committed.

        Raises:
            Lost: that can't be found out.
        """
        until, pause = time.monotonic() + self._gone_s, 0.05
        while True:
            try:
                with postgres.translated(self.url), self._engine.connect() as connection:
                    query = text("SELECT pg_xact_status(CAST(:number AS xid8))")
                    status = connection.execute(query, {"number": number}).scalar()
            except Unreachable:
                status = None
            except CkregError:  # another server took over, and knows no such transaction
                raise lost from None
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            if time.monotonic() > until:
                raise lost
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with postgres.translated(self.url), self._engine.connect() as connection:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection

    def _queue(self, connection: Connection, *, alone: bool) -> None:
        """Wait for our turn; who stops in the middle is put out, so that none waits for ever."""
        milliseconds = round(1000 * self._lock_timeout_s)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        connection.exec_driver_sql(
            f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        )
        how = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        connection.exec_driver_sql(
            f"SELECT {how}({_KEY} # (current_schema()::regnamespace::oid::bigint << 32))"
        )

    @cached_property
    def _engine(self) -> Engine:
        return postgres.engine(self.url)

    # --- what is there -----------------------------------------------------------------------

    def revision(self) -> str | None:
        """Return the schema's revision, or None for an empty database.

        Raises:
            as open.
        """
        with self._reading() as connection:
            return self._revision_in(connection)

    def check_writable(self) -> None:
        """Find out before hours of work whether a write could succeed; say if clocks differ.

        Raises:
            NotWritableError: it couldn't; the message says why.
        """
        with self.read() as connection:
            before = datetime.now(UTC)
            row = connection.exec_driver_sql(
                "SELECT pg_is_in_recovery() AS standby, clock_timestamp() AS now, "
                "current_setting('default_transaction_read_only')::boolean AS read_only, "
                "has_table_privilege('checkpoints', 'INSERT') AND coalesce(has_sequence_privilege("
                "pg_get_serial_sequence('checkpoints', 'pk'), 'USAGE'), true) AS may, "
                "current_user AS who, current_database() AS name"
            ).one()
        why, cure = (
            ("it is a standby, which only reads", "name the primary's host in the URL")
            if row.standby
            else (
                "the server was told to only read (default_transaction_read_only)",
                f'ALTER DATABASE "{row.name}" RESET default_transaction_read_only',
            )
            if row.read_only
            else (f"the user {row.who!r} may only read", postgres.to_write(row.who))
            if not row.may
            else (None, None)
        )
        if why is not None:
            raise NotWritableError(
                f"the registry {self.location!r} can't be written: {why}",
                hint=f"reading works; to write: {cure}",
            )
        skew = (before - row.now).total_seconds()
        if abs(skew) > SKEW_S:
            warn(
                f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} "
                "the database server's: the times of what is saved here will be wrong, its "
                "versions not (see: timedatectl)"
            )

    def _check(self, connection: Connection) -> None:
        revision, head = self._revision_in(connection), self._lineage.head
        if revision is None:
            raise NotFoundError(
                f"the database {self.location!r} is empty: there is no registry",
                hint=f"make one: ckreg init {shlex.quote(str(self.url))} --blobs FOLDER",
            )
        if revision != head:
            raise SchemaVersionError(
                f"the registry's schema is at {revision}, and this ckreg needs {head}; an upgrade "
                "locks out whoever has an older ckreg: it is never done in passing",
                hint=f"when all are ready: ckreg -r {shlex.quote(str(self.url))} migrate",
            )
        self._check_objects(connection)

    def _revision_in(self, connection: Connection) -> str | None:
        there, others, schema, who = connection.exec_driver_sql(
            f"SELECT to_regclass('{VERSION_TABLE}') IS NOT NULL, {_OTHERS}, current_schema(), "
            "current_user"
        ).one()
        if schema is None:
            raise ConflictError(
                f"the database {self.location!r} has no schema that its search_path names and the "
                f"user {who!r} may use",
                hint=f'as its owner: GRANT USAGE ON SCHEMA public TO "{who}"; where there is none: '
                "CREATE SCHEMA public",
            )
        if not there:
            if others:
                raise ConflictError(
                    f"{self.location!r} is a database of something else: it has no "
                    f"{VERSION_TABLE}, and holds {others}",
                    hint="take a database of its own: createdb -E UTF8 NAME",
                )
            return None
        found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").all()
        if len(found) != 1:
            raise DamagedError(f"{self.location!r} has {len(found)} schema revisions, not one")
        revision = str(found[0][0])
        self._lineage.check_known(revision)
        return revision

    def _check_objects(self, connection: Connection) -> None:
        """See, once, that our tables are tables, and that nothing acts on writes to them.

        Raises:
            UntrustedError: a trigger or a rule is on one, or something else is under its name.
            DamagedError: one is missing.
        """
        if self._seen or self._lineage is not SHIPPED:
            return
        rows = connection.exec_driver_sql(
            "SELECT c.relname, c.relkind::text AS kind, c.relhasrules OR EXISTS (SELECT FROM "
            "pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) AS acts FROM pg_class c "
            "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN "
            "('r', 'v', 'm', 'f', 'p')"
        ).all()
        found = {row.relname: row for row in rows}
        for name in sorted(metadata.tables):
            row = found.get(name)
            if row is None:
                raise DamagedError(
                    f"the database {self.location!r} lacks the table {name!r}",
                    hint="every record is also in records/ of the blob store",
                )
            if row.kind != "r" or row.acts:
                raise UntrustedError(
                    f"the table {name!r} of {self.location!r} has a trigger or a rule, or is none, "
                    "which ckreg never makes: its SQL would run in ckreg's place",
                    hint=f"see it: psql … -c '\\d {name}'",
                )
        self._seen = True

    # --- migrations --------------------------------------------------------------------------

    def upgrade(self) -> Upgrade:
        """Bring the schema to the newest revision, in one transaction, while nobody writes.

        No copy is made: a server's backups are its owner's.

        Raises:
            SchemaVersionError: it is ahead of this ckreg.
            NotWritableError, BusyError, RemoteError: it can't be done; nothing has changed.
        """
        before = self._migrate(lambda before: before != self._lineage.head)
        return Upgrade(before, self._lineage.head, None)

    def _migrate(self, wanted: Callable[[str | None], bool]) -> str | None:
        """Migrate if that is wanted still when our turn has come; return what was there before."""
        with self.migrating() as connection:
            before = self._revision_in(connection)
            if wanted(before):
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
                if encoding != "UTF8":
                    raise ConflictError(
                        f"the database {self.location!r} has the encoding {encoding}, which can't "
                        "hold every name",
                        hint="take one with UTF8: createdb -E UTF8 -T template0 NAME",
                    )
                self._lineage.run(connection)
        return before

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Lend a connection for migrations, while nobody writes."""
        try:
            with postgres.translated(self.url), self._engine.connect() as connection:
                version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
                if version // 10_000 < postgres.OLDEST:
                    raise SchemaVersionError(
                        f"the server of {self.location!r} is PostgreSQL {version // 10_000}, and "
                        f"ckreg needs {postgres.OLDEST} or newer"
                    )
                self._queue(connection, alone=True)
                yield connection
                with postgres.translated(self.url, committing=True):
                    connection.commit()
        except BusyError:
            raise
        except Lost as error:
            raise RemoteError(error.message, hint="run it again: what is done is found") from error


_OTHERS: Final = (
    "(SELECT string_agg(name, ', ') FROM (SELECT c.relname AS name FROM pg_class c WHERE "
    "c.relnamespace = current_schema()::regnamespace AND c.relkind IN "
    "('r', 'v', 'm', 'S', 'f', 'p') AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid "
    "AND d.deptype = 'e') ORDER BY c.relname LIMIT 3) AS others)"
)
