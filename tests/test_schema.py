"""The database file: created, locked, read where it can't be written, refused when foreign."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from drafts import by_hand
from sqlalchemy import insert, select
from sqlalchemy.exc import OperationalError
from users import as_nobody

from registry import sqlite as sqlite_side
from registry.errors import (
    BusyError,
    ConflictError,
    DamagedError,
    NotFoundError,
    NotWritableError,
    SchemaVersionError,
    UntrustedError,
)
from registry.schema import HEAD, Database
from registry.tables import settings


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database.create(tmp_path / "reg" / "registry.db")


def put(db: Database, name: str, value: str = "x") -> None:
    with db.write() as connection:
        connection.execute(insert(settings).values(name=name, value=value))


def fail_after(db: Database, sql: str) -> None:
    with db.write() as connection:
        connection.exec_driver_sql(sql)
        raise ZeroDivisionError


def names(db: Database) -> list[str]:
    with db.read() as connection:
        return list(connection.scalars(select(settings.c.name).order_by(settings.c.name)))


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# --- opening --------------------------------------------------------------------------------------


def test_opening_never_creates(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"registry\.db is missing") as caught:
        Database.open(tmp_path / "registry.db")
    assert "init" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_never_creates_the_file_even_when_it_vanished_a_moment_ago(
    tmp_path: Path,
) -> None:
    with pytest.raises(OperationalError, match="unable to open"):
        sqlite_side.engine(tmp_path / "registry.db", "rw").connect()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_vanished_is_not_made_again_by_a_read_or_a_write(db: Database) -> None:
    db.path.unlink()
    with pytest.raises(NotFoundError), db.read():
        pass
    with pytest.raises(NotFoundError), db.write():
        pass
    assert not db.path.exists()


def test_creating_twice_opens_and_keeps_what_is_there(db: Database) -> None:
    put(db, "kept")
    assert names(Database.create(db.path)) == ["kept"]


def test_a_path_with_characters_that_uris_use(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=memory#c%41&é" / "registry.db"
    put(Database.create(path), "here")
    assert path.exists()
    assert names(Database.open(path)) == ["here"]


def test_a_folder_in_its_place_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "registry.db").mkdir()
    with pytest.raises(ConflictError):
        Database.open(tmp_path / "registry.db")


def test_a_file_of_something_else_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"%PDF-1.7 " * 1000)
    with pytest.raises(DamagedError, match="not a database"):
        Database.open(path)
    assert path.read_bytes() == b"%PDF-1.7 " * 1000


@pytest.mark.parametrize("table", ["users", "alembic_version"])
def test_a_database_of_something_else_is_a_conflict(tmp_path: Path, table: str) -> None:
    path = tmp_path / "registry.db"
    with by_hand(path) as other:
        other.execute(f"CREATE TABLE {table} (version_num TEXT)")
    before = path.read_bytes()
    for opened in (Database.open, Database.create):
        with pytest.raises(ConflictError, match="database of something else"):
            opened(path)
    assert path.read_bytes() == before


def test_a_registry_of_a_newer_ckreg_is_refused_by_reads_and_writes(db: Database) -> None:
    with by_hand(db.path) as other:
        other.execute("UPDATE ckreg_version SET version_num = '9999'")
    with pytest.raises(SchemaVersionError) as caught:
        Database.open(db.path)
    assert "9999" in caught.value.message
    assert HEAD in caught.value.message
    assert caught.value.hint == "pip install -U ckreg"
    with pytest.raises(SchemaVersionError), db.read():
        pass
    with pytest.raises(SchemaVersionError), db.write():
        pass
    with pytest.raises(SchemaVersionError):
        Database.create(db.path)


def test_an_empty_file_left_by_a_creator_that_died_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.touch()
    put(Database.open(path), "works")


def test_an_overwritten_page_is_damage_and_no_traceback(db: Database) -> None:
    put(db, "name", "x" * 200)
    with db.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(db.path.stat().st_size - 4096))
    with pytest.raises(DamagedError):
        names(db)


# --- connections ----------------------------------------------------------------------------------


def test_a_schema_whose_text_is_no_text_is_damage_and_no_traceback(db: Database) -> None:
    data = db.path.read_bytes()
    db.path.write_bytes(data.replace(b"CREATE TABLE models", b"CREATE \xf4ABLE models", 1))
    with pytest.raises(DamagedError, match=r"registry\.db' is damaged"), db.read():
        pass


def test_every_connection_is_set_up_to_lose_nothing(db: Database) -> None:
    expected = {
        "journal_mode": "truncate",
        "synchronous": 2,
        "foreign_keys": 1,
        "cell_size_check": 1,
        "trusted_schema": 0,
        "busy_timeout": 15_000,
    }
    for lend in (db.read, db.write):
        with lend() as connection:
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected
            }
        assert found == expected


def test_no_connection_stays_open_after_a_call(db: Database) -> None:
    put(db, "one")
    names(db)
    held = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)
    ]
    assert not [path for path in held if str(db.path.parent) in path]


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_wal_is_switched_back(db: Database) -> None:
    with by_hand(db.path) as other:
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    put(db, "written")
    with by_hand(db.path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_wal_that_another_program_holds_is_refused(tmp_path: Path) -> None:
    path = Database.create(tmp_path / "registry.db").path
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("SELECT * FROM settings").fetchall()
    with pytest.raises(BusyError):
        names(Database(path, lock_timeout_s=0.2))
    other.close()


def test_neither_orm_nor_alembic_is_imported_for_a_current_database(db: Database) -> None:
    code = f"""
import sys
from pathlib import Path
from registry.schema import Database
from registry.catalog import Catalog
catalog = Catalog(Database.open(Path({str(db.path)!r})))
catalog.set_setting("name", "value")
print(catalog.models(), catalog.count(), list(catalog.find()))
found = [m for m in ("sqlalchemy.orm", "alembic", "torch", "numpy", "click") if m in sys.modules]
sys.exit(f"imported: {{found}}" if found else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_creation_imports_no_orm(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from registry.schema import Database
Database.create(Path({str(tmp_path / "registry.db")!r}))
sys.exit("sqlalchemy.orm" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- writes ---------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_nothing(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(db, "INSERT INTO settings VALUES ('lost', 'x')")
    assert names(db) == []
    put(db, "next")


def test_tables_made_in_a_failed_transaction_are_gone(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(db, "CREATE TABLE extra (x)")
    with db.read() as connection:
        found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'extra'")
        assert found.all() == []


def test_a_read_is_one_snapshot(db: Database) -> None:
    put(db, "before")
    with db.read() as connection:
        assert connection.scalar(select(settings.c.name)) == "before"
        quick = Database(db.path, lock_timeout_s=0.2)
        with pytest.raises(BusyError):  # the commit can't pass the reader
            put(quick, "meanwhile")
        assert connection.scalars(select(settings.c.name)).all() == ["before"]


def test_a_writer_waits_for_the_lock_only_so_long(db: Database) -> None:
    impatient = Database(db.path, lock_timeout_s=0.3)
    with db.write():
        began = time.monotonic()
        with pytest.raises(BusyError, match="more than") as caught:
            put(impatient, "never")
        assert 0.2 < time.monotonic() - began < 3
    assert caught.value.exit_code == 9
    put(impatient, "now")


def test_waiting_for_the_lock_burns_no_processor(db: Database) -> None:
    impatient = Database(db.path, lock_timeout_s=1.5)
    with db.write():
        began = time.thread_time()
        with pytest.raises(BusyError):
            put(impatient, "never")
        assert time.thread_time() - began < 0.5


def test_a_write_keeps_out_programs_that_dont_know_our_lock_from_its_first_read_on(
    db: Database,
) -> None:
    other = sqlite3.connect(db.path, timeout=0, isolation_level=None)
    with db.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.close()


def test_another_program_that_holds_the_database_is_named_as_busy(db: Database) -> None:
    other = sqlite3.connect(db.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    impatient = Database(db.path, lock_timeout_s=0.2)
    with pytest.raises(BusyError, match="locked by another program"):
        put(impatient, "never")
    with pytest.raises(BusyError):
        names(impatient)
    other.close()


def test_a_killed_writer_lets_go_of_the_lock_and_of_its_changes(db: Database) -> None:
    code = f"""
import os, signal
from pathlib import Path
from sqlalchemy import insert
from registry.schema import Database
from registry.tables import settings
with Database(Path({str(db.path)!r})).write() as connection:
    connection.execute(insert(settings).values(name="lost", value="x"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert killed.returncode == -9
    put(Database(db.path, lock_timeout_s=5), "next")
    assert names(db) == ["next"]


def test_threads_write_one_after_the_other(db: Database) -> None:
    failed: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(10):
                put(db, f"{thread}-{number}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(names(db)) == 40


def test_a_fork_waits_until_another_threads_transaction_is_over(db: Database) -> None:
    inside, over = threading.Event(), threading.Event()

    def write() -> None:
        with db.write() as connection:
            connection.execute(insert(settings).values(name="whole", value="x"))
            inside.set()
            time.sleep(0.3)
            over.set()

    writer = threading.Thread(target=write)
    writer.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            put(Database(db.path, lock_timeout_s=10), "child")
            code = 0
        finally:
            os._exit(code)
    assert over.is_set()
    writer.join()
    assert os.waitpid(child, 0)[1] == 0
    assert names(db) == ["child", "whole"]


# --- read-only ------------------------------------------------------------------------------------


def test_a_read_only_registry_is_read_and_says_why_it_is_not_written(public: Path) -> None:
    db = Database.create(public / "reg" / "registry.db")
    put(db, "fact")
    names(db)
    db.path.parent.chmod(0o555)
    db.path.chmod(0o444)
    try:
        with as_nobody():
            assert names(db) == ["fact"]
            with pytest.raises(NotWritableError, match="no permission") as caught:
                put(db, "more")
            with pytest.raises(NotWritableError):
                db.check_writable()
    finally:
        db.path.parent.chmod(0o755)
    assert caught.value.exit_code == 13
    assert names(db) == ["fact"]


def test_a_read_only_registry_whose_journal_cant_be_opened_is_read_without_locks(
    public: Path,
) -> None:
    db = Database.create(public / "reg" / "registry.db")
    put(db, "fact")
    journal = db.path.with_name("registry.db-journal")
    journal.touch()
    journal.chmod(0o600)
    db.path.parent.chmod(0o555)
    try:
        with as_nobody():
            assert names(db) == ["fact"]
    finally:
        db.path.parent.chmod(0o755)


def test_a_crashed_transaction_is_not_read_past_on_a_read_only_registry(public: Path) -> None:
    db = Database.create(public / "reg" / "registry.db")
    put(db, "fact")
    names(db)
    journal = db.path.with_name("registry.db-journal")
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    journal.chmod(0o600)
    db.path.parent.chmod(0o555)
    try:
        with as_nobody(), pytest.raises(NotWritableError, match="unfinished transaction"):
            names(db)
    finally:
        db.path.parent.chmod(0o755)


def test_a_registry_that_cant_be_made_says_so(public: Path) -> None:
    Database.create(public / "warm" / "registry.db")
    public.chmod(0o555)
    try:
        with as_nobody(), pytest.raises(NotWritableError):
            Database.create(public / "reg" / "registry.db")
    finally:
        public.chmod(0o755)


# --- what a database from elsewhere may hold ------------------------------------------------------


def test_a_trigger_in_a_database_from_elsewhere_is_refused(tmp_path: Path) -> None:
    path = Database.create(tmp_path / "registry.db").path
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER spy AFTER INSERT ON models BEGIN DELETE FROM tags; END")
        connection.commit()
    for use in (Database.open(path).read, Database.open(path).write):
        with pytest.raises(UntrustedError, match="trigger 'spy'"), use():
            pytest.fail("used")


def test_a_view_in_a_tables_place_is_refused_and_one_beside_is_not(tmp_path: Path) -> None:
    path = Database.create(tmp_path / "registry.db").path
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW mine AS SELECT name FROM models")
        connection.commit()
        with Database.open(path).read():
            pass
        connection.execute("ALTER TABLE tags RENAME TO hidden")
        connection.execute("CREATE VIEW tags AS SELECT * FROM hidden")
        connection.commit()
    with pytest.raises(UntrustedError, match="view 'tags'"), Database.open(path).read():
        pytest.fail("read")


@pytest.mark.parametrize("gone", ["DROP TABLE tags", "DROP INDEX {index}"])
def test_a_database_that_lost_a_table_or_an_index_is_damaged(tmp_path: Path, gone: str) -> None:
    path = Database.create(tmp_path / "registry.db").path
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (index,) = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%'"
        ).fetchone()
        connection.execute(gone.format(index=index))
        connection.commit()
    with pytest.raises(DamagedError, match="lacks the"), Database.open(path).read():
        pytest.fail("read")
