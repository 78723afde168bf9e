"""Migrations: one line of them, whole or not at all, the same schema as that of tables.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from drafts import by_hand, draft, held
from sqlalchemy import Connection, create_engine, insert, inspect, select

from registry.catalog import Catalog
from registry.errors import CkregError, DamagedError, SchemaVersionError
from registry.schema import HEAD, SHIPPED, VERSION_TABLE, Database, Lineage
from registry.tables import metadata, settings

ROOT = Path(__file__).parent.parent


def config_for(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SHIPPED.scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def with_revision(tmp_path: Path, body: str, *, revision: str = "0002") -> Lineage:
    """Return our migrations and one more after them."""
    folder = tmp_path / "migrations"
    shutil.copytree(SHIPPED.scripts, folder, ignore=shutil.ignore_patterns("__pycache__"))
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / "versions" / f"{revision}_next.py").write_text(
        f'"""Next."""\nimport sqlalchemy as sa\nfrom alembic import op\n'
        f"revision = {revision!r}\ndown_revision = {HEAD!r}\nbranch_labels = depends_on = None\n\n"
        f"def upgrade():\n{lines}\n\ndef downgrade():\n    pass\n"
    )
    return Lineage(folder, head=revision)


ADD_COLUMN = 'op.add_column("models", sa.Column("described", sa.Text()))'


def tables_of(path: Path) -> set[str]:
    with by_hand(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in rows}


def columns_of(path: Path, table: str) -> list[str]:
    with by_hand(path) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


# --- one line -------------------------------------------------------------------------------------


def test_there_is_one_head_and_it_is_the_one_that_the_code_expects() -> None:
    assert ScriptDirectory.from_config(config_for()).get_heads() == [HEAD]


def test_revisions_are_numbered_and_their_files_named_after_them() -> None:
    for script in ScriptDirectory.from_config(config_for()).walk_revisions():
        assert Path(script.path).name.startswith(f"{script.revision}_")
        assert script.revision.isdigit()
        assert len(script.revision) == 4


def test_each_revision_goes_up_down_and_up_again(tmp_path: Path) -> None:
    db = Database(tmp_path / "registry.db")
    revisions = [s.revision for s in ScriptDirectory.from_config(config_for()).walk_revisions()]
    for revision in reversed(revisions):
        for target in (revision, "-1", revision):
            with db.migrating() as connection:
                if target == "-1":
                    command.downgrade(config_for(connection), target)
                else:
                    command.upgrade(config_for(connection), target)
    with db.migrating() as connection:
        command.downgrade(config_for(connection), "base")
    assert tables_of(db.path) <= {VERSION_TABLE, "sqlite_sequence"}
    with db.migrating() as connection:
        command.upgrade(config_for(connection), "head")
    assert Catalog(Database.open(db.path)).models() == []


# --- the same schema ------------------------------------------------------------------------------


def reflected(connection: Connection) -> dict[str, Any]:
    """Return all that a schema promises, table by table."""
    found: dict[str, Any] = {}
    inspector = inspect(connection)
    for table in inspector.get_table_names():
        if table == VERSION_TABLE:
            continue
        found[table] = {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"], c["default"])
                for c in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "checks": sorted(
                (str(c["name"]), c["sqltext"]) for c in inspector.get_check_constraints(table)
            ),
            "foreign keys": sorted(
                (
                    str(f["name"]),
                    f["constrained_columns"],
                    f["referred_table"],
                    f["referred_columns"],
                    f["options"],
                )
                for f in inspector.get_foreign_keys(table)
            ),
            "uniques": sorted(
                (str(u["name"]), u["column_names"]) for u in inspector.get_unique_constraints(table)
            ),
            "indexes": sorted(
                (
                    str(i["name"]),
                    i["column_names"],
                    bool(i["unique"]),
                    str(i.get("dialect_options", {}).get("sqlite_where")),
                )
                for i in inspector.get_indexes(table)
            ),
        }
    return found


def test_tables_and_migrations_agree_in_every_column_check_index_and_key(tmp_path: Path) -> None:
    db = Database.create(tmp_path / "registry.db")
    with db.read() as connection:
        migrated = reflected(connection)
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        declared = reflected(connection)
    engine.dispose()
    assert migrated.keys() == declared.keys()
    for table, promises in declared.items():
        for what, expected in promises.items():
            assert migrated[table][what] == expected, f"{what} of {table}"


def test_alembic_finds_no_difference_either(tmp_path: Path) -> None:
    with Database.create(tmp_path / "registry.db").read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_every_constraint_has_a_name(tmp_path: Path) -> None:
    with Database.create(tmp_path / "registry.db").read() as connection:
        for table, promises in reflected(connection).items():
            names = [
                name
                for part in ("checks", "foreign keys", "uniques")
                for name, *_ in promises[part]
            ]
            assert "None" not in names, table
            assert promises["primary key"]["name"], table
            assert promises["checks"] or table in ("settings", "records", "files", "alias_moves")


# --- whole or not at all --------------------------------------------------------------------------


def test_a_broken_first_migration_leaves_no_database(tmp_path: Path) -> None:
    lineage = with_revision(tmp_path, f"{ADD_COLUMN}\nraise RuntimeError('broken')")
    path = tmp_path / "reg" / "registry.db"
    with pytest.raises(RuntimeError, match="broken"):
        Database.create(path, lineage=lineage)
    assert {p.name for p in path.parent.iterdir()} <= {"registry.lock"}


def test_a_broken_migration_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    added = Catalog(Database.create(path)).add(draft(acc=0.5), held).checkpoint
    lineage = with_revision(tmp_path, f"{ADD_COLUMN}\nop.execute('SELECT * FROM absent')")
    with pytest.raises(CkregError, match="no such table: absent"):
        Database(path, lineage=lineage).upgrade()
    assert Database.open(path).revision() == HEAD
    assert "described" not in columns_of(path, "models")
    assert Catalog(Database.open(path)).by_id(added.id) == added


def test_a_migration_that_would_orphan_rows_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    Catalog(Database.create(path)).add(draft(), held)
    lineage = with_revision(tmp_path, "op.execute('DELETE FROM models')")
    with pytest.raises(DamagedError, match="refer to nothing"):
        Database(path, lineage=lineage).upgrade()
    assert len(Catalog(Database.open(path)).models()) == 1


def test_rebuilding_a_parent_table_keeps_its_children(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    added = Catalog(Database.create(path)).add(draft(acc=0.5, tags=("good",)), held).checkpoint
    lineage = with_revision(
        tmp_path,
        "with op.batch_alter_table('checkpoints') as table:\n"
        "    table.alter_column('author', new_column_name='author', nullable=True)\n"
        "    table.add_column(sa.Column('extra', sa.Text()))",
    )
    db = Database(path, lineage=lineage)
    db.upgrade()
    assert "extra" in columns_of(path, "checkpoints")
    catalog = Catalog(db)
    assert catalog.by_id(added.id) == added
    assert catalog.best("net") == added
    with by_hand(path) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


# --- behind and ahead -----------------------------------------------------------------------------


def test_a_read_never_migrates(tmp_path: Path) -> None:
    path = Database.create(tmp_path / "reg" / "registry.db").path
    before = path.read_bytes()
    later = Database(path, lineage=with_revision(tmp_path, ADD_COLUMN))
    with pytest.raises(SchemaVersionError, match=r"0001.*0002") as caught, later.read():
        pass
    assert "ckreg migrate" in str(caught.value.hint)
    assert path.read_bytes() == before


def test_a_write_copies_the_database_aside_and_upgrades_it(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    added = Catalog(Database.create(path)).add(draft(acc=0.5), held).checkpoint
    later = Catalog(Database(path, lineage=with_revision(tmp_path, ADD_COLUMN)))
    newer = later.add(draft(acc=0.6), held).checkpoint
    assert newer.version == 2
    assert later.best("net") == newer
    assert "described" in columns_of(path, "models")
    (backup,) = path.parent.glob("registry.db.0001-*.backup")
    restored = path.parent / "restored" / "registry.db"
    restored.parent.mkdir()
    shutil.copy(backup, restored)
    assert list(Catalog(Database.open(restored)).find()) == [added]


def test_upgrading_twice_does_it_once(tmp_path: Path) -> None:
    path = Database.create(tmp_path / "reg" / "registry.db").path
    db = Database(path, lineage=with_revision(tmp_path, ADD_COLUMN))
    first, second = db.upgrade(), db.upgrade()
    assert (first.before, first.after) == ("0001", "0002")
    assert first.backup is not None
    assert first.backup.exists()
    assert (second.before, second.after, second.backup) == ("0002", "0002", None)


def test_a_shared_registry_is_upgraded_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    with Database.create(path).write() as connection:
        connection.execute(insert(settings).values(name="shared", value="group"))
    db = Database(path, lineage=with_revision(tmp_path, ADD_COLUMN))
    with pytest.raises(SchemaVersionError, match="shared") as caught, db.write():
        pass
    assert "migrate" in str(caught.value.hint)
    assert "described" not in columns_of(path, "models")
    assert db.upgrade().after == "0002"
    with db.write() as connection:
        assert connection.scalar(select(settings.c.value)) == "group"


def test_a_registry_of_a_later_revision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    Database.create(path, lineage=with_revision(tmp_path, ADD_COLUMN))
    with pytest.raises(SchemaVersionError, match=r"0002.*0001"):
        Database.open(path)
    with pytest.raises(SchemaVersionError):
        Database(path).upgrade()


def test_migrations_that_lack_the_expected_head_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    with pytest.raises(CkregError, match="end at 0001"):
        Database.create(path, lineage=Lineage(SHIPPED.scripts, head="0007"))
    assert not path.exists()


# --- many at once, and by hand --------------------------------------------------------------------


def test_eight_processes_create_one_registry_together(tmp_path: Path) -> None:
    path = tmp_path / "reg" / "registry.db"
    code = f"""
import sys
from pathlib import Path
from registry.catalog import Catalog
from registry.schema import Database
sys.stdin.read()  # all begin at once
catalog = Catalog(Database.create(Path({str(path)!r})))
catalog.set_setting(sys.argv[1], "here")
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, f"p{n}"], stdin=subprocess.PIPE, cwd=ROOT)
        for n in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=120) for process in processes] == [0] * 8
    with Database.open(path).read() as connection:
        found = connection.scalars(select(settings.c.name).order_by(settings.c.name)).all()
    assert found == [f"p{n}" for n in range(8)]


@pytest.mark.parametrize("by_option", [True, False])
def test_alembic_upgrades_a_registry_from_a_checkout(tmp_path: Path, by_option: bool) -> None:
    folder = tmp_path / "reg%41"
    option = ["-x", f"registry={folder}"] if by_option else []
    environment = dict(os.environ) | ({} if by_option else {"CKREG_REGISTRY": str(folder)})
    for words in (["upgrade", "head"], ["check"]):
        subprocess.run(
            [sys.executable, "-m", "alembic", *option, *words],
            cwd=ROOT, check=True, timeout=60, capture_output=True, env=environment,
        )  # fmt: skip
    assert Catalog(Database.open(folder / "registry.db")).models() == []


def test_alembic_without_a_registry_asks_for_one() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CKREG_REGISTRY"}
    asked = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT, timeout=60, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert asked.returncode == 1
    assert "which registry?" in asked.stderr
