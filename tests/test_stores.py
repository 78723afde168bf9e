"""The laws of every blob store, in a folder and in a bucket alike."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import blake3
import pytest
from stores import Held

from registry.blobs import Blob, LocalStore, SourceFile, fetched, following, staging
from registry.errors import (
    ConflictError,
    ContainerError,
    DamagedError,
    NoSpaceError,
    NotFoundError,
    SchemaVersionError,
)

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 5)


def digest_of(data: bytes) -> str:
    return "blake3:" + blake3.blake3(data).hexdigest()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STEP", MIB)
    monkeypatch.setattr(following, "WRITEBACK", MIB)
    monkeypatch.setattr(fetched, "PIECE", MIB)
    monkeypatch.setattr(fetched, "_STRIDE", 1)


@pytest.fixture
def blob(held: Held) -> Blob:
    return held.store.put_bytes(DATA)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    place.mkdir()
    return place


def test_a_buffer_of_any_item_type_is_written_whole(held: Held) -> None:
    store = held.store
    numbers = memoryview(bytearray(range(16))).cast("I")
    with store.stage() as staged:
        assert staged.write(numbers) == 16
        assert staged.size == 16


def test_a_write_that_takes_fewer_bytes_is_continued(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = held.store
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    data = os.urandom(1000)
    assert store.put_bytes(data).digest == digest_of(data)


def test_the_digest_is_of_what_is_stored_not_of_what_was_given(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = held.store
    real = os.pwrite
    flipped = b"\0" * 100
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, flipped[: len(data)], at))
    assert store.put_bytes(b"x" * 100).digest == digest_of(flipped)


def test_a_file_staged_elsewhere_is_not_published_here(held: Held, tmp_path: Path) -> None:
    store = held.store
    other = LocalStore.create(tmp_path / "other")
    with other.stage() as staged, pytest.raises(ValueError, match="isn't staged"):
        store.publish(staged)


def test_the_first_stage_sweeps_by_itself(held: Held) -> None:
    store = held.store
    left = held.staging / "0b9a7c1e-7f0e-4c3f-8a53-0f4a35f0a2b1"
    left.write_bytes(b"left by a killed writer")
    store.put_bytes(b"x")
    assert not left.exists()


def test_a_sweep_takes_only_names_that_a_writer_makes(held: Held) -> None:
    store = held.store
    mine = held.staging / "notes.txt"
    mine.write_text("mine")
    assert store.sweep() == 0
    assert mine.exists()


def test_a_kept_file_outlives_the_block_and_the_sweep(held: Held) -> None:
    store = held.store
    with store.stage() as staged:
        staged.write(b"precious")
        staged.finish()
        kept = staged.keep()
    store.sweep()
    assert kept.read_bytes() == b"precious"
    with store.stage_file(kept) as again:
        assert again.finish() == digest_of(b"precious")


def test_a_file_is_staged_whole_with_progress(
    held: Held, tmp_path: Path, small_steps: None
) -> None:
    store = held.store
    data = os.urandom(3 * MIB + 5)
    source = tmp_path / "source"
    source.write_bytes(data)
    seen: list[tuple[int, int]] = []
    with store.stage_file(
        source, progress=lambda done, total: seen.append((done, total))
    ) as staged:
        blob = store.publish(staged)
    assert blob.digest == digest_of(data)
    assert [done for done, _ in seen] == [MIB, 2 * MIB, 3 * MIB, len(data)]
    assert {total for _, total in seen} == {len(data)}


def test_an_error_of_the_progress_callback_leaves_nothing(held: Held, tmp_path: Path) -> None:
    store = held.store
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3 * MIB)

    def broken(done: int, total: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        store.stage_file(source, progress=broken)
    assert held.staged() == []


def test_what_is_no_readable_file_is_refused_by_its_kind(held: Held, tmp_path: Path) -> None:
    store = held.store
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(NotFoundError, match="no file"):
        store.stage_file(tmp_path / "missing")
    with pytest.raises(NotFoundError, match="no file"):
        store.stage_file(tmp_path / "fifo" / "below")
    with pytest.raises(ContainerError, match=r"is a folder, not a file"):
        store.stage_file(tmp_path)
    with pytest.raises(ContainerError, match="is a FIFO"):
        store.stage_file(fifo)
    with pytest.raises(ContainerError, match="is a device"):
        store.stage_file(Path("/dev/null"))
    assert held.staged() == []


def test_a_source_opened_once_is_the_one_that_is_staged(held: Held, tmp_path: Path) -> None:
    store = held.store
    path = tmp_path / "source"
    path.write_bytes(b"first" * 100)
    with SourceFile.open(path) as source:
        path.unlink()
        path.write_bytes(b"second")
        assert source.hash() == digest_of(b"first" * 100)
        with store.stage_file(source) as staged:
            assert staged.finish() == digest_of(b"first" * 100)
            assert staged.source().probe() == source.probe()


def test_the_probe_tells_apart_sizes_beginnings_and_ends(held: Held) -> None:
    store = held.store
    base = bytearray(200_000)
    variants = [bytes(base), bytes(base[:-1])]
    for at in (0, 65_535, 200_000 - 65_536, 199_999):
        changed = bytearray(base)
        changed[at] = 1
        variants.append(bytes(changed))
    probes = set()
    for data in [*variants, b"", b"x"]:
        with store.open_blob(store.put_bytes(data)) as file:
            probes.add(file.probe())
    assert len(probes) == len(variants) + 2


def test_what_cant_fit_is_refused_before_the_first_byte(held: Held) -> None:
    store = held.store
    with pytest.raises(NoSpaceError, match=r"bytes are needed, .* bytes are free"):
        store.stage(expect_bytes=1 << 60)
    assert held.staged() == []


def test_a_damaged_blob_is_refused_by_verify_however_it_is_read(held: Held) -> None:
    store = held.store
    data = bytearray(os.urandom(9 * MIB))
    blob = store.put_bytes(bytes(data))
    data[5 * MIB] ^= 1
    held.damage(blob, bytes(data))
    for cached in (True, False):
        said = pytest.raises(DamagedError, match=blob.digest)
        with store.open_blob(blob, cached=cached) as file, said:
            file.verify()
    said = pytest.raises(DamagedError, match=blob.digest)
    with store.open_blob(blob) as file, said, file.map() as mapping:
        file.verify(mapping=mapping)


def test_a_whole_mapping_verifies_and_is_private(held: Held) -> None:
    store = held.store
    data = os.urandom(20 * MIB)
    blob = store.put_bytes(data)
    seen: list[int] = []
    with store.open_blob(blob) as file:
        with file.map() as mapping:
            file.verify(mapping=mapping, progress=lambda done, total: seen.append(done))
            mapping[0:4] = b"mine"
            assert mapping[:4] == b"mine"
        file.verify()
    assert seen == [16 * MIB, 20 * MIB]
    assert held.read(f"blobs/{blob.name}") == data


def test_a_mapping_outlives_the_file_and_its_name(held: Held) -> None:
    store = held.store
    blob = store.put_bytes(b"x" * MIB)
    with store.open_blob(blob) as file:
        mapping = file.map()
    store.drop(blob)
    assert mapping[:] == b"x" * MIB
    mapping.close()


def test_a_blob_of_another_size_or_gone_is_said(held: Held) -> None:
    store = held.store
    blob = store.put_bytes(b"x" * 100)
    held.damage(blob, b"x" * 99)
    assert not store.holds(blob)
    with pytest.raises(DamagedError, match="has 99 bytes, and 100 were stored") as caught:
        store.open_blob(blob)
    assert f"{store.location}/blobs/{blob.name}" in str(caught.value)
    store.drop(blob)
    assert not store.holds(blob)
    store.drop(blob)
    with pytest.raises(NotFoundError, match="is gone"):
        store.open_blob(blob)


def test_an_empty_blob_is_verified_and_not_mapped(held: Held) -> None:
    store = held.store
    with store.open_blob(store.put_bytes(b"")) as file:
        file.verify()
        assert file.pread(0, 0) == b""
        with pytest.raises(DamagedError, match="empty"):
            file.map()


def test_records_are_replaced_and_listed(held: Held) -> None:
    store = held.store
    ids = ["ab" * 16, "ab" + "00" * 15, "cd" * 16]
    for id in ids:
        store.put_record(id, f"first {id}")
    store.put_record(ids[0], "second …")
    assert store.read_record(ids[0]) == "second …"
    held.put("records/ab/notes.txt", b"not a record")
    assert list(store.records()) == sorted(ids)
    held.remove(f"records/ab/{ids[0]}.json")
    assert list(store.records()) == sorted(ids[1:])
    with pytest.raises(NotFoundError):
        store.read_record(ids[0])
    with pytest.raises(NotFoundError):
        store.read_record("ef" * 16)


@pytest.mark.parametrize("id", ["../../etc", "", "AB" * 16, "ab" * 15])
def test_a_record_needs_a_whole_id(held: Held, id: str) -> None:
    store = held.store
    for call in (store.read_record, lambda id: store.put_record(id, "x")):
        with pytest.raises(ValueError, match="no id"):
            call(id)


def test_a_pull_gives_the_stored_bytes_with_progress(
    held: Held, blob: Blob, out: Path, small_steps: None
) -> None:
    store = held.store
    seen: list[tuple[int, int]] = []
    store.pull(blob, out / "model.pt", progress=lambda done, total: seen.append((done, total)))
    assert (out / "model.pt").read_bytes() == DATA
    assert os.listdir(out) == ["model.pt"]
    assert seen[0] == (MIB, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("force", [False, True])
def test_the_same_bytes_already_there_are_left_as_they_are(
    held: Held, blob: Blob, out: Path, force: bool
) -> None:
    store = held.store
    dest = out / "model.pt"
    dest.write_bytes(DATA)
    before = dest.stat()
    store.pull(blob, dest, force=force)
    after = dest.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("other", [b"", DATA[:-1], DATA[:-1] + bytes([DATA[-1] ^ 1]), DATA + b"x"])
def test_other_bytes_are_a_conflict_unless_forced(
    held: Held, blob: Blob, out: Path, other: bytes
) -> None:
    store = held.store
    dest = out / "model.pt"
    dest.write_bytes(other)
    with pytest.raises(ConflictError, match="already") as caught:
        store.pull(blob, dest)
    assert "--force" in str(caught.value)
    assert caught.value.exit_code == 5
    assert dest.read_bytes() == other
    store.pull(blob, dest, force=True)
    assert dest.read_bytes() == DATA
    assert os.listdir(out) == ["model.pt"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_or_a_device_is_never_replaced(
    held: Held, blob: Blob, out: Path, force: bool
) -> None:
    store = held.store
    fifo = out / "fifo"
    os.mkfifo(fifo)
    for dest, kind in ((out, "a folder"), (fifo, "a FIFO"), (Path("/dev/null"), "a device")):
        with pytest.raises(ConflictError, match=kind):
            store.pull(blob, dest, force=force)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(out) == ["fifo"]


def test_a_missing_folder_is_said_with_the_command_that_makes_it(
    held: Held, blob: Blob, out: Path
) -> None:
    store = held.store
    with pytest.raises(NotFoundError) as caught:
        store.pull(blob, out / "my models" / "model.pt")
    assert caught.value.hint == f"mkdir -p '{out}/my models'"
    (out / "file").write_text("x")
    with pytest.raises(ConflictError, match="is a file, not a folder"):
        store.pull(blob, out / "file" / "model.pt")


def test_a_symlink_is_replaced_and_what_it_names_is_left(held: Held, blob: Blob, out: Path) -> None:
    store = held.store
    (out / "real").write_bytes(b"mine")
    (out / "link").symlink_to(out / "real")
    (out / "dangling").symlink_to(out / "nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(ConflictError):
            store.pull(blob, out / name)
        store.pull(blob, out / name, force=True)
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() == DATA
    assert (out / "real").read_bytes() == b"mine"
    assert not (out / "nowhere").exists()


# --- what lies there ------------------------------------------------------------------------------


def test_what_is_published_lies_there_under_its_name_and_nothing_else(held: Held) -> None:
    store = held.store
    for size in (0, 1, MIB, 9 * MIB + 5):
        data = os.urandom(size)
        with store.stage(expect_bytes=size) as staged:
            staged.write(data)
            blob = store.publish(staged)
        assert (blob.digest, blob.size_bytes) == (digest_of(data), size)
        assert store.holds(blob)
        assert held.read(f"blobs/{blob.name}") == data
        (found,) = [f for f in store.files(blob.folder) if f.name == blob.name]
        assert found.blob == blob
        assert abs(found.modified_at - store.clock()) < 60
        store.drop(blob)
        assert not store.holds(blob)
    assert held.keys("blobs") == []
    assert held.staged() == []


def test_two_that_publish_the_same_bytes_get_two_blobs(held: Held) -> None:
    first, second = held.store.put_bytes(b"same"), held.store.put_bytes(b"same")
    assert first.digest == second.digest
    assert held.keys("blobs") == sorted(f"blobs/{b.name}" for b in (first, second))


def test_what_is_set_aside_is_kept_and_no_longer_found(held: Held) -> None:
    store = held.store
    blob = store.put_bytes(b"rotten")
    kept = store.set_aside("blobs", blob.folder, blob.file)
    assert not store.holds(blob)
    (key,) = held.keys("quarantine")
    assert kept.endswith(key)
    assert held.read(key) == b"rotten"
    with pytest.raises(NotFoundError):
        store.set_aside("blobs", blob.folder, blob.file)


def test_what_lies_beside_the_folders_of_blobs_is_a_stray(held: Held) -> None:
    held.put("blobs/notes.txt", b"mine")
    assert [f.name for f in held.store.strays()] == ["notes.txt"]
    assert [f.blob for f in held.store.strays()] == [None]


def test_a_marker_that_changes_or_goes_is_said(held: Held) -> None:
    store = held.store
    store.check_marker()
    store.check_writable()
    held.put("store.json", b'{"format": 1, "id": "' + b"0" * 32 + b'"}')
    with pytest.raises(ConflictError, match="0" * 32):
        store.check_marker()
    held.put("store.json", b"{")
    with pytest.raises(DamagedError, match="can't be understood"):
        store.check_marker()
    held.put("store.json", b'{"format": 2, "id": "' + b"0" * 32 + b'"}')
    with pytest.raises(SchemaVersionError, match="format 2"):
        store.check_marker()


def test_folders_of_blobs_are_pulled_whole_or_not_at_all(held: Held, out: Path) -> None:
    store = held.store
    blobs = {"a/x": store.put_bytes(b"1" * 100), "y": store.put_bytes(b"2" * 100)}
    store.pull_folder(blobs, out / "all")
    assert (out / "all" / "a" / "x").read_bytes() == b"1" * 100
    held.damage(blobs["y"], b"3" * 100)
    with pytest.raises(DamagedError, match=blobs["y"].digest):
        store.pull_folder(blobs, out / "again")
    assert os.listdir(out) == ["all"]


def test_a_damaged_or_missing_blob_is_never_delivered(held: Held, blob: Blob, out: Path) -> None:
    store, dest = held.store, out / "model.pt"
    held.damage(blob, DATA[:-1] + b"x")
    with pytest.raises(DamagedError, match=blob.digest):
        store.pull(blob, dest)
    held.damage(blob, DATA[:1000])
    with pytest.raises(DamagedError, match="1000 bytes"):
        store.pull(blob, dest)
    store.drop(blob)
    with pytest.raises(NotFoundError, match="is gone"):
        store.pull(blob, dest)
    assert os.listdir(out) == []
