"""verify: whatever isn't as it was written is found, and looking changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import clusters
import pytest
import torch
from backends import blobs_at, postgres_folder, records_at, reopened
from drafts import by_hand
from nets import seeded

from registry import Registry, Verification
from registry.blobs.local import LocalStore
from registry.catalog import Catalog


def file_of(folder: Path, seed: int) -> Path:
    path = folder / f"w{seed}.pt"
    torch.save({"model": "net", "epoch": seed, "state_dict": seeded(seed).state_dict()}, path)
    return path


Templates = Callable[[str], tuple[Path, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Templates]:
    """Return what gives the folder and the location of a registry with a bit of everything."""
    made: dict[str, tuple[Path, str]] = {}
    with ExitStack() as stack:

        def give(backend: str) -> tuple[Path, str]:
            if backend not in made:
                folder = tmp_path_factory.mktemp("template")
                if backend == "sqlite+folder":
                    reg = stack.enter_context(Registry.create(folder / "reg"))
                else:
                    reg = stack.enter_context(postgres_folder(folder))
                fill(reg, folder)
                reg.close()
                made[backend] = folder / "reg", reg.location
            return made[backend]

        yield give


@pytest.fixture
def full(
    template: Templates, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """Return a copy of it."""
    folder, location = template(backend)
    shutil.copytree(folder, tmp_path / "reg")
    if backend == "sqlite+folder":
        with Registry.open(tmp_path / "reg") as reg:
            yield reg
        return
    url = clusters.cluster().database(clusters.name_of(location))
    monkeypatch.setenv("CKREG_BLOBS", str(tmp_path / "reg"))
    try:
        with Registry.open(url) as reg:
            yield reg
    finally:
        clusters.cluster().drop(url)


def fill(reg: Registry, folder: Path) -> None:
    reg.save(seeded(3), model="saved", dataset="digits", epoch=1, acc=0.5, tags=["good"])
    reg.save(seeded(4), model="saved", dataset="digits", epoch=2, acc=0.75, aliases=["prod"])
    reg.record("saved@v1", {"test/loss": 0.25})
    reg.alias("saved@v1", "prod")
    reg.monitor("saved", "test/loss", "min")
    with reg.run("named", name="try", config={"lr": 0.1}, dataset=None) as run:
        run.save(seeded(5), epoch=0, metrics={"loss": 1.5})
    reg.push(file_of(folder, 1))
    reg.push(file_of(folder, 2), keys="")
    reg.remove("net@v1")


def test_a_save_that_tells_parameters_from_buffers_makes_no_record_wrong(
    reg: Registry, tmp_path: Path
) -> None:
    pushed = reg.push(file_of(tmp_path, 1))
    assert reg.save(seeded(2), model="net").signature == pushed.signature
    assert reg.verify().findings == ()


def snapshot(reg: Registry) -> dict[str, tuple[int, int, int, bytes]]:
    root = blobs_at(reg)
    return {
        str(p.relative_to(root)): (
            (status := p.stat()).st_mode,
            status.st_mtime_ns,
            status.st_nlink,
            p.read_bytes() if p.is_file() else b"",
        )
        for p in sorted(root.rglob("*"))
    }


def database(reg: Registry) -> Path | str:
    """Return the file, or of a server the URL."""
    return records_at(reg)


def file_of_database(reg: Registry) -> Path:
    """Return SQLite's file."""
    return Path(reg.location) / "registry.db"


def catalog(reg: Registry) -> Catalog:
    return reopened(database(reg))


def blob_path(reg: Registry, ref: str, *, index: bool = False) -> Path:
    ((_, blob, its_index),) = catalog(reg).blobs_of(reg.get(ref).id)
    found = its_index if index else blob
    assert found is not None
    return blobs_at(reg) / "blobs" / found.name


def record_path(reg: Registry, ref: str) -> Path:
    id = reg.get(ref).id
    return blobs_at(reg) / "records" / id[:2] / f"{id}.json"


def overwrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def kinds(found: Verification) -> list[str]:
    return [f.kind for f in found.findings]


# --- what is whole --------------------------------------------------------------------------------


def test_a_whole_registry_has_no_findings_and_every_byte_is_read(full: Registry) -> None:
    found = full.verify()
    assert found.findings == ()
    assert found.ok
    sizes = [p.stat().st_size for p in blobs_at(full).glob("blobs/*/*")]
    assert (found.checked, found.files, found.bytes_read) == (5, len(sizes), sum(sizes))


def test_verify_changes_nothing_even_where_all_is_wrong(full: Registry) -> None:
    overwrite(blob_path(full, "net@v2"), lambda data: data.__setitem__(5, data[5] ^ 1))
    blob_path(full, "saved@v1").unlink()
    record_path(full, "saved@v2").unlink()
    (blobs_at(full) / "blobs" / "ab" / "foreign").write_bytes(b"x")
    (blobs_at(full) / "tmp" / "01234567-89ab-cdef-0123-456789abcdef").write_bytes(b"half")
    full.gc(dry_run=True)
    before = snapshot(full)
    with Registry.open(full.location) as again:
        assert not again.verify().ok
        again.verify("net@v2")
    assert snapshot(full) == before


def test_progress_ends_at_all_bytes(full: Registry) -> None:
    seen: list[tuple[int, int]] = []
    found = full.verify(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.bytes_read, found.bytes_read)
    assert seen == sorted(seen)


def test_one_ref_reads_its_own_bytes_and_finds_its_own_damage(full: Registry) -> None:
    overwrite(blob_path(full, "net@v2"), lambda data: data.__setitem__(5, data[5] ^ 1))
    good, bad = full.verify("saved@v1"), full.verify("net@v2")
    assert (good.findings, good.checked, good.files) == ((), 1, 2)
    assert (kinds(bad), bad.ok) == (["damaged"], False)


def test_a_removed_checkpoint_is_verified_too_and_a_collected_one_lacks_nothing(
    full: Registry,
) -> None:
    gone = next(c for c in full.find(include_removed=True) if c.removed_at)
    assert full.verify(gone.ref).files == 2
    full.gc(grace="0")
    assert full.verify().findings == ()
    assert full.verify(gone.ref).files == 0


def test_pushes_and_removals_meanwhile_are_no_damage(full: Registry, tmp_path: Path) -> None:
    paths = [file_of(tmp_path, seed) for seed in range(10, 14)]
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with Registry.open(full.location) as mine:
                for turn in range(3):
                    for path in paths:
                        made = mine.push(path, dataset=f"d{turn}", tags=["t"])
                        mine.record(made, {f"m{turn}": turn})
                        mine.remove(made)
                    mine.gc(grace="0")
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    found = []
    while writer.is_alive():
        found += [f for f in full.verify().findings if f.kind not in ("orphan", "leftover")]
    writer.join()
    assert (failed, found) == ([], [])
    assert full.verify().findings == ()


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1000, -1])
def test_a_flipped_bit_of_a_blob_is_found(full: Registry, at: int) -> None:
    overwrite(blob_path(full, "net@v2"), lambda data: data.__setitem__(at, data[at] ^ 4))
    (found,) = full.verify().findings
    assert (found.kind, "net@v2" in found.what) == ("damaged", True)


def test_a_cut_blob_is_found(full: Registry) -> None:
    overwrite(blob_path(full, "net@v2"), lambda data: data.__delitem__(slice(-1, None)))
    assert kinds(full.verify()) == ["damaged"]


def test_a_missing_blob_is_found_and_whose_it_is(full: Registry) -> None:
    blob_path(full, "saved@v2").unlink()
    (found,) = full.verify().findings
    assert (found.kind, "saved@v2" in found.what) == ("missing", True)


def test_a_damaged_index_is_found(full: Registry) -> None:
    overwrite(
        blob_path(full, "net@v2", index=True), lambda data: data.__setitem__(50, data[50] ^ 1)
    )
    assert kinds(full.verify()) == ["damaged"]


def test_an_index_of_another_file_is_found(full: Registry) -> None:
    with by_hand(database(full)) as db:
        db.execute(
            "UPDATE files SET index_digest = (SELECT index_digest FROM files WHERE checkpoint_pk "
            "= 1) WHERE checkpoint_pk = 2"
        )
    assert "index" in kinds(full.verify())


def test_an_index_with_another_digest_for_a_range_is_found(full: Registry) -> None:
    """A whole index blob, whose row and record agree, of the right file: and yet it lies."""
    store = LocalStore.open(blobs_at(full))
    path = blob_path(full, "net@v2", index=True)
    plain = json.loads(path.read_bytes())
    size, digits, storage = plain["ranges"][1]
    plain["ranges"][1] = [size, digits[::-1], storage]
    lie = store.put_bytes(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    with by_hand(database(full)) as db:
        pk = db.execute("SELECT pk FROM checkpoints WHERE origin = 'push' AND version = 2")
        db.execute(
            "INSERT INTO blobs (digest, name, size_bytes, created_at) VALUES (?, ?, ?, ?)",
            (lie.digest, lie.name, lie.size_bytes, "2026-01-01T00:00:00.000000Z"),
        )
        db.execute(
            "UPDATE files SET index_digest = ? WHERE checkpoint_pk = ?",
            (lie.digest, pk.fetchone()[0]),
        )
    assert "index" in kinds(full.verify("net@v2"))


def test_hard_linked_writable_orphaned_and_foreign_files_are_remarks(
    full: Registry, tmp_path: Path
) -> None:
    root = blobs_at(full)
    os.link(blob_path(full, "net@v2"), tmp_path / "another name")
    blob_path(full, "saved@v1").chmod(0o644)
    LocalStore.open(root).put_bytes(b"nobody's")
    (root / "blobs" / "ab" / "notes.txt").write_text("mine")
    (root / "blobs" / "stray").write_text("mine")
    (root / "blobs" / "cd" / f"{'0' * 62}.12345678").symlink_to("/etc/passwd")
    (root / "tmp" / "01234567-89ab-cdef-0123-456789abcdef").write_bytes(b"half")
    found = full.verify()
    assert sorted(kinds(found)) == [
        "foreign", "foreign", "foreign", "hard link", "leftover", "orphan", "writable",
    ]  # fmt: skip
    assert found.ok


def test_a_missing_folder_of_blobs_is_found(full: Registry) -> None:
    empty = next(p for p in blobs_at(full).glob("blobs/*") if not any(p.iterdir()))
    empty.rmdir()
    assert kinds(full.verify()) == ["store"]


# --- rows -----------------------------------------------------------------------------------------

ROWS = {
    "epoch": "UPDATE checkpoints SET epoch = 9 WHERE version = 1",
    "acc": "UPDATE checkpoints SET acc = 0.99 WHERE acc IS NOT NULL",
    "version": "UPDATE checkpoints SET version = 7 WHERE version = 2",
    "facts digest": "UPDATE checkpoints SET facts_digest = replace(facts_digest, 'a', 'b')",
    "record": "UPDATE records SET record = replace(record, 'digits', 'digitz')",
    "no record": "DELETE FROM records WHERE checkpoint_pk = 1",
    "metric": "UPDATE metrics SET value = value + 1 WHERE name = 'test/loss'",
    "metric's repeated version": "UPDATE metrics SET version = version + 1 WHERE name = 'acc'",
    "metric's repeated life": "UPDATE metrics SET live = NOT live WHERE name = 'acc'",
    "file's name": "UPDATE files SET name = 'other.pt' WHERE checkpoint_pk = 1",
    "no file": "DELETE FROM files WHERE checkpoint_pk = 1",
    "blob's size": "UPDATE blobs SET size_bytes = size_bytes + 1 WHERE probe IS NOT NULL",
    "run": "UPDATE runs SET config = '{}' WHERE name = 'try'",
    "run's model": "UPDATE runs SET model_pk = 1 WHERE name = 'try'",
    "signature": "UPDATE signatures SET tensors = replace(tensors, 'float32', 'float64')",
    "counter": "UPDATE models SET versions = versions + 1",
    "live counter": "UPDATE models SET live = 1 WHERE live = 2",
    "alias to another model": "UPDATE aliases SET checkpoint_pk = 3",
    "alias unlike its last move": "UPDATE aliases SET checkpoint_pk = 2",
    "no alias": "DELETE FROM aliases",
    "tag": "UPDATE tags SET name = 'bad'",
    "removed": "UPDATE checkpoints SET removed_at = created_at WHERE pk = 1",
    "restored": "UPDATE checkpoints SET removed_at = NULL",
    "monitor": "UPDATE models SET mode = 'max'",
    "row": "PRAGMA foreign_keys = OFF; DELETE FROM checkpoints WHERE pk = 1",
    "all rows of one": "PRAGMA foreign_keys = OFF; "
    + "; ".join(
        f"DELETE FROM {t} WHERE checkpoint_pk = 5" for t in ("records", "files", "metrics", "tags")
    )
    + "; DELETE FROM checkpoints WHERE pk = 5",
}


@pytest.mark.parametrize("statement", ROWS.values(), ids=ROWS)
def test_a_changed_row_is_found(full: Registry, statement: str) -> None:
    with by_hand(database(full)) as db:
        db.executescript(statement)
    found = full.verify()
    assert not found.ok, found
    assert {f.kind for f in found.findings} <= {
        "row", "record", "lost row", "database", "damaged", "index",
    }  # fmt: skip


@pytest.mark.sqlite_only("it flips a bit of SQLite's file")
def test_an_index_of_the_database_that_lies_is_found(full: Registry) -> None:
    with by_hand(database(full)) as db:
        page = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_files_digest'"
        ).fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(file_of_database(full).read_bytes())
    at = data.index(b"blake3:", (page - 1) * size)
    data[at + 10] ^= 1
    file_of_database(full).write_bytes(data)
    assert "database" in kinds(full.verify())


# --- records and the marker -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text(path.read_text().replace("digits", "digitz")),
        lambda path: path.write_text(path.read_text().replace('"epoch":1', '"epoch":2')),
        lambda path: path.write_text(path.read_text() + " "),
        lambda path: shutil.copy(path.parent.parent / "other", path),
    ],
    ids=["missing", "cut", "no text", "another fact", "another epoch", "a blank", "another's"],
)
def test_a_record_that_is_not_what_was_written_is_found(
    full: Registry, change: Callable[[Path], object]
) -> None:
    path = record_path(full, "saved@v1")
    shutil.copy(record_path(full, "saved@v2"), path.parent.parent / "other")
    change(path)
    (found,) = full.verify().findings
    assert (found.kind, "saved@v1" in found.what) == ("record", True)


def test_a_record_of_an_older_ckreg_is_a_remark(full: Registry) -> None:
    path = record_path(full, "saved@v1")
    plain = json.loads(path.read_text())
    older = {name: plain[name] for name in ("format", "checkpoint", "run", "blobs")}
    for file in older["blobs"]:
        del file["probe"]
    del older["checkpoint"]["provenance"]["from_name"]  # came later
    older["checkpoint"]["metrics"].pop("test/loss")  # or its facts couldn't be proved
    with by_hand(database(full)) as db:
        db.execute("DELETE FROM metrics WHERE name = 'test/loss'")
    path.write_text(json.dumps(older))
    found = full.verify()
    assert (kinds(found), found.ok) == (["old record"], True)


@pytest.mark.sqlite_only(
    "what CKREG_BLOBS names, as on a server here, is refused when it is opened"
)
def test_a_marker_of_another_store_is_found(full: Registry) -> None:
    marker = blobs_at(full) / "store.json"
    marker.write_text(json.dumps({"format": 1, "id": "0" * 32}))
    with Registry.open(full.location) as again:
        assert kinds(again.verify()) == ["store"]
