"""The laws of a blob store, on real files: what is named is whole, what fails leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import pytest
from faults import fail_at, open_descriptors
from users import as_nobody

from registry.blobs import Blob, LocalStore, SourceFile, StoredFile, following, listing, staging
from registry.errors import (
    CkregError,
    ConflictError,
    DamagedError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
    SchemaVersionError,
)

MIB = 1 << 20


def digest_of(data: bytes) -> str:
    return "blake3:" + blake3.blake3(data).hexdigest()


def files_in(*places: Path) -> list[str]:
    return sorted(str(p) for place in places for p in place.rglob("*") if not p.is_dir())


@contextmanager
def as_nobody_in(place: Path) -> Iterator[None]:
    """Run a block without root's rights, in a folder that is then nobody's."""
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    with as_nobody():
        yield


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "registry")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STEP", MIB)
    monkeypatch.setattr(following, "WRITEBACK", MIB)


# --- the store's marker ---------------------------------------------------------------------------


def test_create_makes_every_folder_and_places_the_marker(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "deep" / "registry")
    assert len(os.listdir(store.root / "blobs")) == 256
    assert json.loads((store.root / "store.json").read_text()) == {"format": 1, "id": store.id}
    assert os.listdir(store.root / "tmp") == []


def test_create_again_opens_the_same_store(store: LocalStore) -> None:
    blob = store.put_bytes(b"kept")
    again = LocalStore.create(store.root)
    assert again.id == store.id
    assert again.holds(blob)


def test_a_create_that_was_cut_short_is_completed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "00").mkdir(parents=True)
    store = LocalStore.create(tmp_path)
    assert store.holds(store.put_bytes(b"x"))


@pytest.mark.parametrize("used", ["blobs/ab/x", "records/ab/x.json"])
def test_a_marker_that_is_missing_from_a_used_store_is_never_made_anew(
    tmp_path: Path, used: str
) -> None:
    (tmp_path / used).parent.mkdir(parents=True)
    (tmp_path / used).touch()
    with pytest.raises(DamagedError, match=r"store\.json is missing") as caught:
        LocalStore.create(tmp_path)
    assert "backup" in (caught.value.hint or "")
    assert files_in(tmp_path) == [str(tmp_path / used)]


def test_a_new_store_is_closed_to_others_and_a_folder_that_was_there_keeps_its_mode(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o2775)
    before = os.umask(0o022)
    try:
        made = [LocalStore.create(tmp_path / name) for name in ("above/new", "mine")]
    finally:
        os.umask(before)
    places = (tmp_path / "above", *(store.root for store in made))
    assert [stat.S_IMODE(p.stat().st_mode) for p in places] == [0o755, 0o700, 0o2775]


def test_many_creators_at_once_agree_on_one_store(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from registry.blobs import LocalStore; sys.stdin.read(); "
        "print(LocalStore.create(pathlib.Path(sys.argv[1])).id)"
    )
    root = str(tmp_path / "registry")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    ids = {child.communicate()[0].strip() for child in children}
    assert all(child.returncode == 0 for child in children)
    assert ids == {LocalStore.open(tmp_path / "registry").id}


def test_open_refuses_a_folder_that_is_missing_or_has_no_marker(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        LocalStore.open(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"store\.json is missing"):
        LocalStore.open(tmp_path)


def test_a_path_that_is_a_file_is_a_conflict(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for call in (LocalStore.create, LocalStore.open):
        with pytest.raises(ConflictError, match="file"):
            call(file)
    with pytest.raises(ConflictError, match="in the way"):
        LocalStore.create(file / "below")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format":1}', '{"format":1,"id":"short"}', '{"format":"1"}']
)
def test_a_marker_that_cant_be_understood_is_damage(store: LocalStore, text: str) -> None:
    (store.root / "store.json").write_text(text)
    with pytest.raises(DamagedError, match=r"store\.json"):
        LocalStore.open(store.root)
    with pytest.raises(DamagedError):
        LocalStore.create(store.root)


def test_a_marker_that_is_a_symlink_or_huge_or_a_fifo_is_damage(store: LocalStore) -> None:
    marker = store.root / "store.json"
    elsewhere = store.root / "elsewhere"
    marker.rename(elsewhere)
    marker.symlink_to(elsewhere)
    with pytest.raises(DamagedError):
        LocalStore.open(store.root)
    marker.unlink()
    os.mkfifo(marker)
    with pytest.raises(DamagedError):
        LocalStore.open(store.root)
    marker.unlink()
    marker.write_bytes(b" " * (MIB))
    with pytest.raises(DamagedError):
        LocalStore.open(store.root)


def test_a_store_of_a_newer_ckreg_is_refused(store: LocalStore) -> None:
    (store.root / "store.json").write_text(json.dumps({"format": 2, "id": "0" * 32}))
    with pytest.raises(SchemaVersionError, match="format 2"):
        LocalStore.open(store.root)


# --- staging and publishing -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 12345])
def test_what_is_published_is_what_was_written(store: LocalStore, size: int) -> None:
    data = os.urandom(size)
    with store.stage(expect_bytes=size) as staged:
        half = size // 3
        assert staged.write(data[:half]) == half
        staged.write(memoryview(data)[half:])
        assert staged.finish() == digest_of(data)
        assert staged.source().pread(0, size) == data
        blob = store.publish(staged)
    assert blob.digest == digest_of(data)
    assert blob.size_bytes == size
    path = store.path_of(blob)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert os.listdir(store.root / "tmp") == []
    with store.open_blob(blob) as file:
        file.verify()


def test_nothing_is_written_after_finish_or_published_twice(store: LocalStore) -> None:
    with store.stage() as staged:
        staged.write(b"x")
        staged.finish()
        with pytest.raises(ValueError, match="after finish"):
            staged.write(b"y")
        store.publish(staged)
        with pytest.raises(ValueError, match="isn't staged"):
            store.publish(staged)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_no_file_thread_or_descriptor(
    store: LocalStore, error: type[BaseException]
) -> None:
    def fail() -> None:
        with store.stage() as staged:
            staged.write(b"x" * 3 * MIB)
            raise error

    before = open_descriptors()
    with pytest.raises(error):
        fail()
    assert files_in(store.root / "tmp", store.root / "blobs") == []
    assert open_descriptors() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("ckreg-")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.ENOSPC, "full"), NoSpaceError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_error_that_the_serialiser_buries_comes_back(
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    expected: type[BaseException],
) -> None:
    def fail(fd: int, data: object, at: int) -> int:
        raise error

    def bury() -> None:
        with store.stage() as staged:
            try:
                staged.write(b"x" * MIB)
            except expected as real:
                raise RuntimeError("unexpected pos 64 vs 0") from real

    def swallow() -> None:
        with store.stage() as staged:
            with pytest.raises(expected):
                staged.write(b"x" * MIB)
            store.publish(staged)

    monkeypatch.setattr(os, "pwrite", fail)
    for serialise in (bury, swallow):
        with pytest.raises(expected):
            serialise()
    assert files_in(store.root / "tmp", store.root / "blobs") == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EROFS, NotWritableError),
        (errno.EACCES, NotWritableError),
        (errno.EPERM, NotWritableError),
        (errno.EIO, CkregError),
        (errno.ENAMETOOLONG, CkregError),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "preadv"])
def test_an_os_error_is_translated_and_names_the_place(
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: type[CkregError],
) -> None:
    def fail(*args: object, **keywords: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CkregError) as caught:
        store.put_bytes(b"x" * 2 * MIB)
    assert type(caught.value) is kind
    assert str(store.root) in caught.value.message
    monkeypatch.undo()
    assert files_in(store.root / "tmp", store.root / "blobs") == []


def test_a_failed_fsync_is_never_tried_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "lost")

    with store.stage() as staged:
        staged.write(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(CkregError):
                staged.sync()
        for again in (staged.sync, staged.finish, lambda: store.publish(staged), staged.keep):
            with pytest.raises(CkregError):
                again()
    assert len(calls) == 1
    assert files_in(store.root / "tmp", store.root / "blobs") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: OSError(errno.EIO, "broken"), CkregError),
        (lambda: OSError(errno.ENOSPC, "full"), CkregError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
    ids=["EIO", "ENOSPC", "interrupt"],
)
def test_a_failure_at_any_step_of_a_push_leaves_nothing(
    store: LocalStore,
    tmp_path: Path,
    small_steps: None,
    error: Callable[[], BaseException],
    expected: type[BaseException],
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * MIB + 5))
    store.sweep()
    store.put_bytes(b"warm")  # the first stage sweeps
    before = files_in(store.root)
    descriptors = open_descriptors()
    survived = 0
    for which in range(10_000):
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, which, error)
            try:
                with store.stage_file(source) as staged:
                    blob = store.publish(staged)
            except expected:
                blob = None
        assert open_descriptors() == descriptors, made
        if blob is not None:
            # An error that has a way around it: the kernel's copy, the space check, a lock.
            survived += 1
            with store.open_blob(blob) as file:
                file.verify()
            store.drop(blob)
        assert files_in(store.root) == before, made
        if len(made) <= which:
            break
    assert which > 10
    assert survived < which / 2


def test_a_failure_at_any_step_of_a_record_leaves_the_one_before(store: LocalStore) -> None:
    id = "ab" * 16
    for which in range(1000):
        store.put_record(id, "before")
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, which, lambda: OSError(errno.ENOSPC, "full"))
            try:
                store.put_record(id, "after")
                expected = {"after"}
            except NoSpaceError:
                # After the rename only its durability is in doubt.
                expected = {"before", "after"} if made[which] == "fsync" else {"before"}
        assert store.read_record(id) in expected
        assert os.listdir(store.root / "tmp") == []
        if len(made) <= which:
            break
    assert which > 5


def test_an_error_of_the_early_writeback_is_as_final_as_one_of_fsync(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, small_steps: None
) -> None:
    # Linux reports a write error once for each descriptor: the fsync at the end wouldn't see it.
    def fail(fd: int) -> None:
        time.sleep(0.2)  # it is still under way when the writer is done
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    with pytest.raises(CkregError, match="put on the disk"):
        store.put_bytes(b"x" * MIB)
    assert files_in(store.root / "tmp", store.root / "blobs") == []


def test_a_store_that_can_be_written_says_so(store: LocalStore) -> None:
    store.check_writable()
    assert os.listdir(store.root / "tmp") == []


@pytest.mark.parametrize("place", ["tmp", "records", "blobs/00"])
def test_a_closed_folder_is_said_before_the_first_epoch(place: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        store = LocalStore.create(Path(folder) / "registry")
        os.chmod(folder, 0o755)
        for each in (store.root, *store.root.rglob("*")):
            each.chmod(0o777)
        (store.root / place).chmod(0o555)
        with as_nobody(), pytest.raises(NotWritableError, match=place):
            store.check_writable()
        (store.root / place).chmod(0o777)


def test_a_name_is_given_after_the_bytes_and_before_the_folder_are_synced(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def synced(fd: int) -> None:
        order.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    def renamed(*args: object, **keywords: object) -> None:
        order.append("name")
        rename(*args, **keywords)  # type: ignore[arg-type]

    def linked(*args: object, **keywords: object) -> None:
        order.append("name")
        link(*args, **keywords)  # type: ignore[arg-type]

    store.put_record("ab" * 16, "the folder is there")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    blob = store.put_bytes(b"x")
    assert order == ["sync file", "name", "sync folder"]
    order.clear()
    store.put_record("ab" * 16, "text")
    assert order == ["sync file", "name", "sync folder"]
    order.clear()
    store.pull(blob, tmp_path / "plain")
    (tmp_path / "forced").write_bytes(b"other")
    store.pull(blob, tmp_path / "forced", force=True)
    assert order == ["sync file", "name", "sync folder"] * 2
    order.clear()
    LocalStore.create(tmp_path / "new")
    assert order[-3:] == ["sync file", "name", "sync folder"]


def test_two_processes_publish_the_same_bytes_as_two_blobs(store: LocalStore) -> None:
    code = (
        "import sys, pathlib; from registry.blobs import LocalStore; "
        "s = LocalStore.open(pathlib.Path(sys.argv[1])); "
        "print(s.put_bytes(b'same' * 1_000_000).name)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    names = [child.communicate()[0].strip() for child in children]
    assert len(set(names)) == 2
    digest = digest_of(b"same" * 1_000_000)
    for name in names:
        blob = Blob(digest, 4_000_000, name)  # type: ignore[arg-type]
        assert store.holds(blob)
    store.drop(Blob(digest, 4_000_000, names[0]))  # type: ignore[arg-type]
    with store.open_blob(Blob(digest, 4_000_000, names[1])) as file:  # type: ignore[arg-type]
        file.verify()


# --- sweeping and keeping -------------------------------------------------------------------------


def test_a_killed_writers_file_is_swept_and_a_living_ones_is_not(store: LocalStore) -> None:
    code = (
        "import sys, pathlib; from registry.blobs import LocalStore; "
        "s = LocalStore.open(pathlib.Path(sys.argv[1])).stage(); s.write(b'x' * 3_000_000); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with store.stage() as ours:
            assert store.sweep() == 0
            assert len(os.listdir(store.root / "tmp")) == 2
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert store.sweep() == 1
            assert os.listdir(store.root / "tmp") == [ours.name]


def test_what_was_protected_and_then_killed_is_swept_by_its_owner_too() -> None:
    with tempfile.TemporaryDirectory() as place, as_nobody_in(Path(place)):
        store = LocalStore.create(Path(place, "registry"))
        left = store.root / "tmp" / "0b9a7c1e-7f0e-4c3f-8a53-0f4a35f0a2b1"
        left.write_bytes(b"killed between fchmod and rename")
        left.chmod(0o444)
        assert store.sweep() == 1
        assert not left.exists()


def test_a_published_file_that_is_kept_stays_where_a_row_may_point(store: LocalStore) -> None:
    with store.stage() as staged:
        staged.write(b"precious")
        blob = store.publish(staged)
        assert staged.keep() == store.path_of(blob)
    assert store.holds(blob)


# --- copying a file in ----------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, 0])
@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="no copy_file_range here")
def test_where_the_kernel_cant_copy_we_do(
    store: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_steps: None,
    number: int,
    after: int,
) -> None:
    data = os.urandom(3 * MIB + 5)
    source = tmp_path / "source"
    source.write_bytes(data)
    real, calls = os.copy_file_range, []

    def sometimes(*args: int) -> int:
        calls.append(args)
        if len(calls) <= after:
            return real(*args)
        if number:
            raise OSError(number, "no")
        return 0

    monkeypatch.setattr(os, "copy_file_range", sometimes)
    with store.stage_file(source) as staged:
        assert staged.finish() == digest_of(data)
    assert len(calls) == after + 1


def test_a_file_on_another_file_system_is_staged(store: LocalStore, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    source = shm / f"ckreg-test-{os.getpid()}"
    source.write_bytes(b"x" * 3 * MIB)
    try:
        with store.stage_file(source) as staged:
            assert staged.finish() == digest_of(b"x" * 3 * MIB)
    finally:
        source.unlink()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 100)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [grow, shrink, overwrite])
def test_a_file_that_changes_while_it_is_read_is_refused(
    store: LocalStore, tmp_path: Path, small_steps: None, change: Callable[[Path], None]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * MIB))
    changed: list[int] = []

    def once(done: int, total: int) -> None:
        if not changed:
            change(source)
            changed.append(done)

    with pytest.raises(ConflictError, match="changed while"):
        store.stage_file(source, progress=once)
    assert os.listdir(store.root / "tmp") == []


# --- space and permission -------------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "full"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(mount)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        store = LocalStore.create(mount)
        with pytest.raises(NoSpaceError, match="no space to write"), store.stage() as staged:
            staged.write(b"x" * 20 * MIB)
        assert os.listdir(store.root / "tmp") == []
        source = tmp_path / "source"
        source.write_bytes(b"x" * 20 * MIB)
        with pytest.raises(NoSpaceError, match="bytes are needed"):
            store.stage_file(source)
        blob = store.put_bytes(b"x" * 3 * MIB)
        with pytest.raises(NoSpaceError):
            store.pull(blob, mount / "copy")
        assert not (mount / "copy").exists()
        with store.open_blob(blob) as file:
            file.verify()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_store_without_permission_is_read_but_not_written(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder) / "registry"
        store = LocalStore.create(root)
        blob = store.put_bytes(b"x" * 3 * MIB)
        store.put_record("ab" * 16, "text")
        secret = Path(folder) / "secret"
        secret.write_bytes(b"x")
        secret.chmod(0)
        os.chmod(folder, 0o755)
        for place in (root, *root.rglob("*")):
            if place.is_dir():
                place.chmod(0o555)
        try:
            with as_nobody():
                again = LocalStore.create(root)
                assert again.holds(blob)
                with again.open_blob(blob) as file:
                    file.verify()
                assert again.read_record("ab" * 16) == "text"
                calls: list[Callable[[], object]] = [
                    again.check_writable,
                    again.stage,
                    lambda: again.put_bytes(b"y"),
                    lambda: again.put_record("ab" * 16, "y"),
                    lambda: again.put_record("cd" * 16, "y"),
                    lambda: again.drop(blob),
                    lambda: again.pull(blob, root / "copy"),
                    lambda: LocalStore.create(root / "below"),
                ]
                for call in calls:
                    with pytest.raises(NotWritableError, match="Permission denied"):
                        call()
                with pytest.raises(NotWritableError, match="can't be read"):
                    SourceFile.open(secret)
        finally:
            for place in (root, *root.rglob("*")):
                if place.is_dir():
                    place.chmod(0o755)


# --- reading blobs --------------------------------------------------------------------------------


def damage(store: LocalStore, blob: Blob, data: bytes) -> None:
    path = store.path_of(blob)
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_blob_that_gets_shorter_while_it_is_open_is_damage(store: LocalStore) -> None:
    blob = store.put_bytes(b"x" * 100)
    with store.open_blob(blob) as file:
        os.truncate(store.path_of(blob), 50)
        with pytest.raises(DamagedError, match="cut short"):
            file.pread(40, 20)
        with pytest.raises(DamagedError, match="cut short"):
            file.verify()
        with pytest.raises(DamagedError, match="cut short"):
            file.map()


def test_a_symlink_in_a_blobs_place_is_never_followed(store: LocalStore, tmp_path: Path) -> None:
    blob = store.put_bytes(b"x" * 100)
    path = store.path_of(blob)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not store.holds(blob)
    with pytest.raises(DamagedError, match="symlink"):
        store.open_blob(blob)
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    folder = path.parent
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(CkregError):
        store.open_blob(blob)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "ab/../x",
        f"ab/{'c' * 62}",
        f"ab/{'c' * 62}.1f2e3d4",
        f"AB/{'c' * 62}.1f2e3d4c",
        f"ab/{'d' * 62}.1f2e3d4c",
        f"ab/{'c' * 62}.1f2e3d4c\n",
    ],
)
def test_a_blob_with_a_name_that_isnt_its_digests_cant_be_made(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a blob"):
        Blob(f"blake3:ab{'c' * 62}", 1, name)  # type: ignore[arg-type]


# --- records --------------------------------------------------------------------------------------


def test_a_record_that_is_no_text_or_no_file_is_damage(store: LocalStore) -> None:
    id = "ab" * 16
    store.put_record(id, "x")
    path = store.root / "records" / "ab" / f"{id}.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedError, match="no text"):
        store.read_record(id)
    path.unlink()
    path.symlink_to(store.root / "store.json")
    with pytest.raises(DamagedError, match="no record"):
        store.read_record(id)


def test_the_store_imports_neither_torch_nor_sqlalchemy() -> None:
    code = (
        "import sys, registry.blobs; "
        "print(sorted({'torch', 'sqlalchemy', 'blake3', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_folders_are_joined_until_they_hold_enough_and_none_is_lost() -> None:
    one = StoredFile("ab/x", 1, 0.0)
    walk = [("00", []), ("01", [one, one]), ("02", [one]), ("03", []), ("04", [])]
    found = list(listing.joined(walk, 2))
    assert [[shard for shard, _ in part] for part in found] == [["00", "01"], ["02", "03", "04"]]
    assert [one for part in found for one in part] == walk
    assert list(listing.joined([], 2)) == []
