"""The laws of delivery: verified, whole or not at all, nothing lost, nothing left behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import fail_at, open_descriptors

from registry.blobs import Blob, LocalStore, following, staging
from registry.errors import CkregError, ConflictError, DamagedError, NotFoundError

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 5)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "registry")


@pytest.fixture
def blob(store: LocalStore) -> Blob:
    return store.put_bytes(DATA)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    place.mkdir()
    return place


@pytest.mark.parametrize("force", [False, True])
def test_a_pulled_file_is_its_owners_and_honours_the_umask(
    store: LocalStore, blob: Blob, out: Path, force: bool
) -> None:
    before = os.umask(0o027)
    try:
        store.pull(blob, out / "model.pt", force=force)
    finally:
        os.umask(before)
    found = (out / "model.pt").stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_nlink == 1
    assert found.st_ino != store.path_of(blob).stat().st_ino


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_pulled_into_the_store(
    store: LocalStore, blob: Blob, out: Path, force: bool
) -> None:
    (out / "way-in").symlink_to(store.root / "blobs")
    own = store.path_of(blob)
    for dest in (
        store.root / "blobs" / "model.pt",
        store.root / "tmp" / "model.pt",
        store.root / "records" / "model.pt",
        store.root / "store.json",
        store.root / "registry.db",
        store.root / "registry.db-journal",
        store.root / "registry.lock",
        store.root / "registry.db.0001-20260101T000000.000000Z.backup",
        store.root / "Registry.DB",
        store.root / ".." / store.root.name / "registry.db-journal",
        own,
        own.parent / "model.pt",
        out / "way-in" / "model.pt",
        out / "way-in" / own.parent.name / "model.pt",
    ):
        with pytest.raises(ConflictError, match="registry's own"):
            store.pull(blob, dest, force=force)
    assert own.read_bytes() == DATA


@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_blob_is_never_delivered(
    store: LocalStore, blob: Blob, out: Path, force: bool
) -> None:
    dest = out / "model.pt"
    if force:
        dest.write_bytes(b"mine")
    path = store.path_of(blob)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"rotten")
    with pytest.raises(DamagedError, match=blob.digest) as caught:
        store.pull(blob, dest, force=force)
    assert caught.value.exit_code == 6
    path.write_bytes(DATA[:1000])
    with pytest.raises(DamagedError, match="1000 bytes"):
        store.pull(blob, dest, force=force)
    path.unlink()
    with pytest.raises(NotFoundError):
        store.pull(blob, dest, force=force)
    assert [p.read_bytes() for p in out.iterdir()] == ([b"mine"] if force else [])


def test_a_blob_that_gets_shorter_on_the_way_is_never_delivered(
    store: LocalStore, blob: Blob, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "STEP", MIB)
    with pytest.raises(DamagedError, match="ended after"):
        store.pull(
            blob,
            out / "model.pt",
            progress=lambda done, total: os.truncate(store.path_of(blob), 2 * MIB),
        )
    assert os.listdir(out) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_links_the_name_is_reserved_and_replaced(
    store: LocalStore, blob: Blob, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_link(*args: object, **keywords: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", no_link)
    store.pull(blob, out / "model.pt")
    assert (out / "model.pt").read_bytes() == DATA
    assert os.listdir(out) == ["model.pt"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_appears_on_the_way_is_not_lost(
    store: LocalStore,
    blob: Blob,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    same: bool,
    links: bool,
) -> None:
    def no_link(*args: object, **keywords: object) -> None:
        raise OSError(errno.EPERM, "no links")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    dest = out / "model.pt"
    theirs = DATA if same else b"theirs"

    def appear(done: int, total: int) -> None:
        dest.write_bytes(theirs)

    if same:
        store.pull(blob, dest, progress=appear)
    else:
        with pytest.raises(ConflictError):
            store.pull(blob, dest, progress=appear)
    assert dest.read_bytes() == theirs
    assert os.listdir(out) == ["model.pt"]


def test_a_name_as_long_as_names_can_be_is_pulled_and_a_longer_one_said(
    store: LocalStore, blob: Blob, out: Path
) -> None:
    store.pull(blob, out / ("m" * 255))
    with pytest.raises(CkregError, match="too long"):
        store.pull(blob, out / ("m" * 256))
    assert os.listdir(out) == ["m" * 255]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(lambda: OSError(errno.EIO, "broken"), CkregError), (KeyboardInterrupt, KeyboardInterrupt)],
    ids=["EIO", "interrupt"],
)
def test_a_failure_at_any_step_of_a_pull_leaves_what_was_there_or_the_whole_file(
    store: LocalStore,
    blob: Blob,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], BaseException],
    expected: type[BaseException],
    force: bool,
    links: bool,
) -> None:
    monkeypatch.setattr(staging, "STEP", MIB)
    monkeypatch.setattr(following, "WRITEBACK", MIB)
    dest = out / "model.pt"
    descriptors = open_descriptors()
    for which in range(10_000):
        dest.unlink(missing_ok=True)
        if force:
            dest.write_bytes(b"mine")
        with pytest.MonkeyPatch.context() as patch:
            if not links:

                def no_link(*args: object, **keywords: object) -> None:
                    raise OSError(errno.EPERM, "no links")

                patch.setattr(os, "link", no_link)
            made = fail_at(patch, which, error)
            try:
                store.pull(blob, dest, force=force)
                done = True
            except expected:
                done = False
        left = {p.name: p.read_bytes() for p in out.iterdir()}
        before = {"model.pt": b"mine"} if force else {}
        whole = {"model.pt": DATA}
        assert left == whole if done else left in (before, whole), made
        assert open_descriptors() == descriptors
        if len(made) <= which:
            break
    assert which > 10


def test_what_a_killed_pull_left_goes_with_the_next_and_a_living_ones_stays(
    store: LocalStore, blob: Blob, out: Path
) -> None:
    (out / ".ckreg-0123456789abcdef.part").write_bytes(b"left by a killed pull")
    (out / ".ckreg-0123456789abcde0.part" / "inner").mkdir(parents=True)
    (out / ".ckreg-mine.part").write_bytes(b"no pull's name")
    with (
        staging.Staged(out, name=".ckreg-fedcba9876543210.part"),
        staging.folder_beside(out) as ours,
    ):
        assert sorted(os.listdir(out)) == sorted(
            [".ckreg-fedcba9876543210.part", ".ckreg-mine.part", ours.name]
        )
        store.pull(blob, out / "model.pt")
        store.pull_folder({"a/b.pt": blob}, out / "folder")
        assert ".ckreg-fedcba9876543210.part" in os.listdir(out)
        assert ours.name in os.listdir(out)
    assert sorted(os.listdir(out)) == [".ckreg-mine.part", "folder", "model.pt"]
