"""Repair and rebuild: made only of what proves itself, and nothing is thrown away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backends import blobs_at, reopened
from drafts import by_hand
from test_verifying import (
    ROWS,
    blob_path,
    database,
    file_of,
    file_of_database,
    full,
    overwrite,
    record_path,
    snapshot,
    template,
)
from ttys import counted

from registry import ConflictError, Registry
from registry.cli import run

__all__ = ["full", "template"]


def facts(reg: Registry) -> list[object]:
    """Return all that a registry knows of its checkpoints, in the order of their versions."""
    catalog = reopened(database(reg))
    return [
        [catalog.whole(c.id) for c in reg.find(sort="version", include_removed=True)],
        reg.models(),
        [catalog.alias_history(m.name) for m in reg.models()],
        [reg.signature(c) for c in reg.find(sort="version", include_removed=True)],
    ]


def quarantined(reg: Registry) -> list[str]:
    return sorted(p.name for p in blobs_at(reg).glob("quarantine/*"))


# --- repair ---------------------------------------------------------------------------------------


def test_a_whole_registry_is_left_as_it_is(full: Registry) -> None:
    before = {n: v for n, v in snapshot(full).items() if not n.startswith("tmp")}
    done = full.repair(full.verify())
    assert (done.done, done.left, done.ok) == ((), (), True)
    assert {n: v for n, v in snapshot(full).items() if not n.startswith("tmp")} == before


def test_a_damaged_blob_is_set_aside_and_a_push_heals_it(full: Registry, tmp_path: Path) -> None:
    path = blob_path(full, "net@v2")
    overwrite(path, lambda data: data.__setitem__(5, data[5] ^ 1))
    bad = path.read_bytes()
    done = full.repair(full.verify())
    assert ([f.kind for f, _ in done.done], done.ok) == (["damaged"], False)
    (kept,) = quarantined(full)
    assert (blobs_at(full) / "quarantine" / kept).read_bytes() == bad
    assert [f.kind for f in full.verify().findings] == ["missing"]
    assert full.push(file_of(tmp_path, 2), keys="").ref == "net@v2"
    assert full.verify().ok


def test_a_blob_that_is_whole_again_stays(full: Registry) -> None:
    path = blob_path(full, "net@v2")
    good = path.read_bytes()
    overwrite(path, lambda data: data.__setitem__(5, data[5] ^ 1))
    found = full.verify()
    overwrite(path, lambda data: data.__setitem__(slice(None), good))
    full.repair(found)
    assert (quarantined(full), full.verify().findings) == ([], ())


def test_foreign_files_are_set_aside_and_writable_ones_closed(full: Registry) -> None:
    root = blobs_at(full)
    (root / "blobs" / "ab" / "notes.txt").write_text("mine")
    (root / "blobs" / "stray").mkdir()
    blob_path(full, "saved@v1").chmod(0o664)
    assert full.repair(full.verify()).ok
    assert full.verify().findings == ()
    names = [name.rsplit("-", 1)[0] for name in quarantined(full)]
    assert names == ["blobs-ab-notes.txt", "blobs-stray"]


@pytest.mark.parametrize("damage", ["missing", "cut", "stale"])
def test_records_are_written_of_rows_and_the_old_ones_kept(full: Registry, damage: str) -> None:
    full.tag("saved@v1", "again")  # so that its record tells the monitor of now
    path = record_path(full, "saved@v1")
    good = path.read_text()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(good[:100])
    else:
        stale = path.read_bytes()
        full.tag("saved@v1", "later")
        good = path.read_text()
        path.write_bytes(stale)
    done = full.repair(full.verify())
    assert [f.kind for f, _ in done.done] == ["record"]
    assert (path.read_text(), full.verify().findings) == (good, ())
    assert len(quarantined(full)) == (damage != "missing")


PROVED = (
    "epoch", "acc", "version", "facts digest", "record", "no record", "metric",
    "metric's repeated version", "metric's repeated life", "file's name", "no file",
    "all rows of one",
)  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_wrong_rows_are_made_of_the_record(full: Registry, name: str) -> None:
    before = facts(full)
    with by_hand(database(full)) as db:
        db.executescript(ROWS[name])
    full.repair(full.verify())
    assert full.verify().findings == ()
    assert facts(full) == before


def test_rows_are_made_of_no_record_that_does_not_prove_itself(full: Registry) -> None:
    path = record_path(full, "saved@v1")
    path.write_text(path.read_text().replace('"acc":0.5', '"acc":0.6'))
    with by_hand(database(full)) as db:
        db.execute("UPDATE checkpoints SET epoch = 9 WHERE pk = 1")
    done = full.repair(full.verify())
    assert {f.kind for f in done.left} == {"row", "record"}
    assert not full.verify().ok


@pytest.mark.sqlite_only("it puts an older file in the database's place")
def test_an_older_copy_of_the_database_gets_back_what_it_lacks(
    full: Registry, tmp_path: Path
) -> None:
    shutil.copy(file_of_database(full), tmp_path / "older.db")
    full.push(file_of(tmp_path, 9), tags=["new"], aliases=["prod"])
    full.alias("saved@v2", "prod")
    full.push(file_of(tmp_path, 8), model="another", aliases=["prod"])
    shutil.copy(tmp_path / "older.db", file_of_database(full))
    full.repair(full.verify())
    assert full.get("another@prod").epoch == 8
    assert full.get("saved@prod").ref == "saved@v2"
    assert full.get("net@prod").tags == ("new",)
    assert full.verify().findings == ()


# --- rebuild --------------------------------------------------------------------------------------


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_a_database_made_of_the_records_knows_all_that_the_lost_one_did(full: Registry) -> None:
    full.gc(grace="0")
    before = facts(full)
    file_of_database(full).unlink()
    done = Registry.rebuild(full.location, replace=True)
    assert (done.checkpoints, done.unusable, done.remarks, done.replaced) == (5, (), (), True)
    with Registry.open(full.location) as again:
        assert facts(again) == before
        assert again.verify().findings == ()
        assert again.push(blob_path(again, "saved@v1"), model="net").version == 3


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_a_rebuild_leaves_the_database_in_use_alone_unless_it_is_told_to(full: Registry) -> None:
    before = file_of_database(full).read_bytes()
    done = Registry.rebuild(full.location)
    assert (done.path.name, done.replaced, done.kept) == ("registry.db.rebuilt", False, None)
    assert file_of_database(full).read_bytes() == before
    with pytest.raises(ConflictError, match="there already"):
        Registry.rebuild(full.location)


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
@pytest.mark.parametrize("replace", [False, True])
def test_a_rebuild_says_how_far_it_is(full: Registry, replace: bool) -> None:
    said: list[tuple[int, int]] = []
    Registry.rebuild(full.location, replace=replace, progress=lambda *far: said.append(far))
    assert {total for _, total in said} == {5}
    assert said == sorted(said)
    assert {0, 1, 3, 5} <= {done for done, _ in said}
    assert said.index((5, 5)) == len(said) - 1  # and not before it is done


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_the_replaced_database_is_kept(full: Registry) -> None:
    before = file_of_database(full).read_bytes()
    data = bytearray(before)
    data[:100] = bytes(100)
    file_of_database(full).write_bytes(data)
    done = Registry.rebuild(full.location, replace=True)
    assert done.kept is not None
    assert done.kept.read_bytes() == data
    assert full.verify().findings == ()


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_a_rebuild_never_replaces_a_database_that_knows_more(full: Registry) -> None:
    record_path(full, "saved@v2").unlink()
    with pytest.raises(ConflictError, match="1 checkpoints that no whole record"):
        Registry.rebuild(full.location, replace=True)
    assert full.get("saved@v2").version == 2


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_a_rebuild_says_what_is_no_use(full: Registry) -> None:
    path = record_path(full, "saved@v1")
    path.write_text("{")
    done = Registry.rebuild(full.location)
    assert (done.checkpoints, done.unusable) == (4, (path.stem,))
    assert any("2 versions were counted, 1 are there" in text for text in done.remarks)


# --- the command ----------------------------------------------------------------------------------


def test_repair_asks_and_with_yes_mends(full: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    blob_path(full, "saved@v1").chmod(0o664)
    at = ["-r", full.location]
    assert run(["verify", "--repair", *at], terminal=True) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["verify", "--repair", "--yes", *at], terminal=True) == 0
    assert "1 finding mended, 0 left" in capsys.readouterr().out
    assert full.verify().findings == ()


@pytest.mark.sqlite_only("of a server's database its own backup is the way back")
def test_the_command_rebuilds(
    full: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["-r", full.location]
    assert run(["verify", "saved@v1", "--rebuild", *at]) == 2
    file_of_database(full).unlink()
    units = counted(monkeypatch)
    assert run(["verify", "--rebuild", "--yes", *at], terminal=True) == 0
    assert units == [("record", 5)]
    assert "5 checkpoints · in use" in capsys.readouterr().out
    assert run(["verify", *at]) == 0
