"""Which registry is meant, and that one which has lost a part is never taken for none."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from users import as_nobody

from registry import Registry, cli, location
from registry.errors import ConflictError, DamagedError, NotFoundError, NotWritableError
from registry.location import Location
from registry.schema import Database


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def home() -> Path:
    return Path(os.environ["HOME"]) / ".ckreg"


def used(folder: Path) -> Path:
    """Make a registry that holds something, in the database, in blobs/ and in records/."""
    with Registry.create(folder) as reg:
        store, _ = reg._parts()
        reg.monitor("net", "acc", create=True)
        store.put_bytes(b"kept")
        store.put_record("ab" * 16, "{}")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path / "work"


# --- a lost part ----------------------------------------------------------------------------------

PARTS = (["registry.db"], ["store.json"], ["registry.db", "store.json"])


@pytest.mark.parametrize("lost", PARTS)
def test_a_registry_that_lost_a_part_is_damaged_and_stays_as_it_is(
    tmp_path: Path, lost: list[str]
) -> None:
    folder = used(tmp_path / "reg")
    for name in lost:
        (folder / name).unlink()
    before = tree(folder)
    for opening in (Registry.open, Registry.create, location.find):
        with pytest.raises(DamagedError) as caught:
            opening(folder)
        assert all(f"{name} is missing" in caught.value.message for name in lost)
        assert "backup" in (caught.value.hint or "")
    assert tree(folder) == before


@pytest.mark.parametrize("lost", PARTS)
def test_a_default_registry_that_lost_a_part_is_neither_empty_nor_made_anew(
    workdir: Path, lost: list[str]
) -> None:
    used(home())
    reg = Registry.open()
    for name in lost:
        (home() / name).unlink()
    before = tree(home())
    for registry in (reg, Registry(Location(home(), default=True))):
        for call in (
            registry.models,
            registry.count,
            lambda r=registry: r.exists,
            lambda r=registry: r.monitor("net", "acc", create=True),
        ):
            with pytest.raises(DamagedError, match=lost[0]):
                call()
    with pytest.raises(DamagedError):
        Registry.open()
    assert tree(home()) == before


# --- a folder that says where its bytes are -------------------------------------------------------


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, Path]:
    """Make a registry whose bytes are in another folder, and return both."""
    with Registry.create(tmp_path / "reg", blobs=tmp_path / "bytes") as reg:
        saved(reg)
    return tmp_path / "reg", tmp_path / "bytes"


def saved(reg: Registry) -> str:
    return reg.save(torch.nn.Linear(1, 1), model="net").id


def test_a_lost_database_is_damage_where_the_bytes_are_elsewhere(
    split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = split
    for losing in (lambda: os.truncate(folder / "registry.db", 0), (folder / "registry.db").unlink):
        losing()
        for words in (["list"], ["push", str(folder / "store.json")], ["init"]):
            assert cli.run([*words, "-r", str(folder)]) == 6
            assert f"ckreg -r {folder} verify --rebuild" in capsys.readouterr().err
        folder.rename(folder.with_name(".ckreg"))
        monkeypatch.chdir(folder.parent)
        assert cli.run(["list"]) == 6
        assert "verify --rebuild" in capsys.readouterr().err
        folder.with_name(".ckreg").rename(folder)
    assert cli.run(["verify", "--rebuild", "--yes", "-r", str(folder)]) == 0
    with Registry.open(folder) as reg:
        assert reg.latest("net").version == 1


def test_a_lost_database_of_nothing_can_be_made_anew_as_the_rebuild_says(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "reg", tmp_path / "bytes"
    Registry.create(folder, blobs=elsewhere).close()
    (folder / "registry.db").unlink()
    with pytest.raises(DamagedError):
        Registry.create(folder, blobs=elsewhere)
    with pytest.raises(NotFoundError, match="no records") as caught:
        Registry.rebuild(folder, replace=True)
    remove, init = str(caught.value.hint).split("anew: ")[1].split(" && ")
    subprocess.run(remove, shell=True, check=True)
    assert cli.run(init.split()[1:]) == 0
    with Registry.open(folder) as reg:
        saved(reg)
    assert [*elsewhere.glob("records/*/*")]


@pytest.mark.parametrize("text", [None, "", "s3:", "bytes", "/elsewhere"])
def test_a_write_lets_an_older_folder_say_where_its_bytes_are(
    split: tuple[Path, Path], text: str | None
) -> None:
    folder, elsewhere = split
    pointer = folder / "blobs.at"
    pointer.unlink()
    if text is not None:
        pointer.write_text(text)
    with Registry.open(folder) as reg:
        reg.models()
        assert pointer.exists() == (text is not None)  # a question writes nothing
        saved(reg)
    assert pointer.read_text() == f"{elsewhere}\n"
    assert [*(folder / "tmp").iterdir()] == []


def test_a_rebuild_lets_the_folder_say_where_its_bytes_are(
    split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = split
    (folder / "blobs.at").unlink()
    (folder / "registry.db").unlink()
    monkeypatch.setenv("CKREG_BLOBS", str(elsewhere))
    Registry.rebuild(folder, replace=True)
    assert (folder / "blobs.at").read_text() == f"{elsewhere}\n"


def test_a_registry_whose_bytes_are_its_own_has_no_word_of_it(tmp_path: Path) -> None:
    with Registry.create(tmp_path / "reg") as reg:
        saved(reg)
    Registry.rebuild(tmp_path / "reg", replace=True)
    assert not (tmp_path / "reg" / "blobs.at").exists()


@pytest.mark.parametrize("damage", ["", "\n", "s3:", "bytes", "ftp://x/y", "\xff", "x" * 70_000])
def test_a_damaged_word_of_where_the_bytes_are_is_no_missing_one(
    split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder, elsewhere = split
    (folder / "registry.db").unlink()
    (folder / "blobs.at").write_bytes(damage.encode("latin1"))
    before = tree(folder)
    with pytest.raises(DamagedError, match=r"blobs\.at', which says where .* can't be") as caught:
        Registry.rebuild(folder, replace=True)
    assert f"CKREG_BLOBS=PLACE ckreg -r {folder} verify --rebuild" in str(caught.value.hint)
    assert tree(folder) == before
    monkeypatch.setenv("CKREG_BLOBS", str(elsewhere))
    assert cli.run(["verify", "--rebuild", "--yes", "-r", str(folder)]) == 0
    assert (folder / "blobs.at").read_text() == f"{elsewhere}\n"


def test_a_folder_says_where_its_bytes_are_whole_or_not_at_all(
    split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = split
    pointer = folder / "blobs.at"
    pointer.write_text("/old")
    steps: list[str] = []

    def rename(*args: object, **options: object) -> None:
        steps.append(pointer.read_text())
        real(*args, **options)  # type: ignore[arg-type]

    real = os.rename
    monkeypatch.setattr(os, "rename", rename)
    with Registry.open(folder) as reg:
        reg.monitor("net", "acc")
    assert steps[0] == "/old"  # what came after had its final name only when it was whole
    assert pointer.read_text() == f"{elsewhere}\n"


@pytest.mark.parametrize("part", ["blobs", "records"])
def test_one_file_in_any_shard_is_enough_to_be_damaged(tmp_path: Path, part: str) -> None:
    (tmp_path / part / "c3").mkdir(parents=True)
    assert not Location(tmp_path).exists
    (tmp_path / part / "c3" / "x").touch()
    with pytest.raises(DamagedError, match=r"registry\.db is missing and .* store\.json"):
        Registry.create(tmp_path)


def test_a_database_that_became_empty_is_lost(tmp_path: Path) -> None:
    folder = used(tmp_path / "reg")
    os.truncate(folder / "registry.db", 0)
    with pytest.raises(DamagedError, match=r"registry\.db is empty"):
        Registry.open(folder)
    assert (folder / "registry.db").stat().st_size == 0


def test_a_database_without_a_marker_is_damage_even_when_its_blobs_are_elsewhere(
    tmp_path: Path,
) -> None:
    folder = used(tmp_path / "reg")
    for name in ("blobs", "records"):
        shutil.rmtree(folder / name)
    (folder / "store.json").unlink()
    with pytest.raises(DamagedError, match=r"store\.json is missing"):
        Registry.create(folder)
    assert not (folder / "blobs").exists()


def test_what_comes_back_from_a_backup_is_whole_again(tmp_path: Path) -> None:
    folder = used(tmp_path / "reg")
    for name in ("registry.db", "store.json"):
        (folder / name).rename(tmp_path / name)
        with pytest.raises(DamagedError):
            Registry.open(folder)
        (tmp_path / name).rename(folder / name)
    assert [m.name for m in Registry.open(folder).models()] == ["net"]


@pytest.mark.parametrize("lost", ["registry.db", "store.json"])
def test_the_upward_search_does_not_pass_over_a_registry_that_lost_a_part(
    workdir: Path, lost: str
) -> None:
    used(workdir / ".ckreg")
    (workdir / ".ckreg" / lost).unlink()
    with pytest.raises(DamagedError, match=lost):
        Registry.open()
    assert not home().exists()


@pytest.mark.parametrize("parts", [["blobs/00"], ["blobs/00", "store.json"], ["registry.lock"]])
def test_the_upward_search_does_not_pass_over_an_unfinished_registry(
    workdir: Path, parts: list[str]
) -> None:
    for part in parts:
        path = workdir / ".ckreg" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if part.startswith("blobs") else path.touch()
    with pytest.raises(DamagedError, match="unfinished") as caught:
        Registry.open()
    assert f"ckreg -r {workdir / '.ckreg'} init" in (caught.value.hint or "")
    assert not home().exists()


def test_the_upward_search_finishes_what_the_hint_names(workdir: Path) -> None:
    (workdir / ".ckreg" / "blobs").mkdir(parents=True)
    Registry.create(workdir / ".ckreg")
    assert location.find() == Location(workdir / ".ckreg")


def test_the_upward_search_passes_over_what_is_no_registry(workdir: Path) -> None:
    (workdir / ".ckreg").mkdir()
    assert location.find() == Location(home(), default=True)
    (workdir / ".ckreg" / "notes.txt").touch()
    assert location.find() == Location(home(), default=True)
    (workdir / "deep" / ".ckreg").write_text("a file")
    assert location.find() == Location(home(), default=True)


def test_an_unfinished_default_registry_is_finished_by_a_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home() / "blobs" / "00").mkdir(parents=True)
    monkeypatch.chdir(home().parent)
    reg = Registry.open()
    assert reg.models() == []
    reg.monitor("net", "acc", create=True)
    assert [m.name for m in reg.models()] == ["net"]


def test_many_first_writers_at_once_make_one_default_registry() -> None:
    code = (
        "import sys; from registry import Registry; reg = Registry.open(); sys.stdin.read();"
        "reg.monitor(sys.argv[1], 'acc', create=True); store, _ = reg._parts();"
        "store.put_bytes(b'x'); print(store.id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"net{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home().parent,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        for n in range(8)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    ids = {child.communicate(timeout=120)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 8
    assert len(ids) == 1
    assert [m.name for m in Registry.open(home()).models()] == [f"net{n}" for n in range(8)]


# --- whose folder it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "registry_notes.txt",
        "registry/setup.py",
        "registry.db/x",
        "registry.txt",
        "records/patients.csv",
        "blobs/azure.txt",
        "tmp/notes.txt",
        "STORE.json.old",
    ],
)
def test_a_folder_of_other_things_is_refused_however_they_are_named(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConflictError, match="is not empty") as caught:
        Registry.create(tmp_path)
    assert name.removesuffix("/setup.py").removesuffix("/x") in caught.value.message
    assert tree(tmp_path) == {name: b"mine"}


def test_a_registrys_own_names_are_free(tmp_path: Path) -> None:
    for name in ("blobs/00", "records/ff", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "registry.db",
        "registry.db-journal",
        "registry.lock",
        "tmp/0f9d1b0e-1111-4222-8333-444455556666",
        "tmp/kept-0f9d1b0e-1111-4222-8333-444455556666",
    ):
        (tmp_path / name).touch()
    location.check_free(tmp_path)
    location.check_free(tmp_path / "nothing")


def test_a_file_in_the_place_of_the_default_registry_is_a_conflict(workdir: Path) -> None:
    home().write_text("mine")
    with pytest.raises(ConflictError, match="is a file"):
        Registry.open()
    with pytest.raises(ConflictError, match="is a file"):
        Registry(Location(home(), default=True)).monitor("net", "acc", create=True)
    assert home().read_text() == "mine"


def test_nothing_is_nothing_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no registry"):
        location.find(tmp_path / "reg")
    assert not (tmp_path / "reg").exists()


# --- permissions ----------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_registry_is_closed_to_others_and_its_parents_are_as_usual(tmp_path: Path) -> None:
    with umask(0o022):
        Registry.create(tmp_path / "above" / "reg")
        Database.create(tmp_path / "above" / "alone" / "registry.db")
    assert [mode(tmp_path / "above" / name) for name in (".", "reg", "alone")] == [
        0o755,
        0o700,
        0o700,
    ]


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg").chmod(0o2775)
    Registry.create(tmp_path / "reg")
    assert mode(tmp_path / "reg") == 0o2775


def test_a_registry_that_may_not_be_looked_into_is_not_taken_for_none() -> None:
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        folder = used(Path(public) / "reg")
        folder.chmod(0)
        try:
            with as_nobody():
                for call in (location.find, Registry.create):
                    with pytest.raises(NotWritableError, match="permission denied"):
                        call(folder)
                with pytest.raises(NotWritableError, match="permission denied"):
                    location.check_free(folder)
        finally:
            folder.chmod(0o700)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who may not look there")
def test_a_working_folder_that_may_not_be_seen_leads_to_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0o700)
    monkeypatch.chdir(closed / "below")
    with as_nobody():
        assert location.find().default


@pytest.mark.parametrize(
    ("named", "meant"), [("postgresql:/db.lab/ckreg", "postgresql://"), ("s3:bucket", "s3://")]
)
def test_a_url_that_lacks_a_slash_becomes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"begins with {meant}"):
        Registry.create(named)
    with pytest.raises(ValueError, match="begins with gs://"):
        Registry.create("reg", blobs="gs:/bucket/ckreg")
    assert list(tmp_path.iterdir()) == []
