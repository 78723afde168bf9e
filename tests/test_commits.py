"""The write protocol from above: what fails once the bytes are there loses and hides nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import blobs_at, records_at
from conftest import left_behind
from drafts import by_hand
from nets import equal, seeded

from registry import BusyError, CkregWarning, ConflictError, Registry
from registry.blobs.local import LocalStore
from registry.catalog import Catalog


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save({"model": "net", "state_dict": seeded(1).state_dict()}, path)
    return path


def blob_of(reg: Registry, digest: str) -> Path:
    (found,) = blobs_at(reg).glob(f"blobs/{digest[7:9]}/{digest[9:]}.*")
    return found


def loads(reg: Registry, ref: str) -> bool:
    reg.load(ref, into=(into := seeded(2)))
    return equal(into, seeded(1))


# --- move -----------------------------------------------------------------------------------------


def test_a_blob_of_the_registry_is_never_moved_away(reg: Registry, file: Path) -> None:
    blob = blob_of(reg, reg.push(file).digest)
    with pytest.raises(ConflictError, match="own file"):
        reg.push(blob, model="other", move=True)
    assert blob.exists()
    assert loads(reg, "net")


def test_a_file_that_was_replaced_during_the_push_is_not_unlinked(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Catalog.add

    def replaced(self: Catalog, *words: Any, **more: Any) -> Any:
        newer = file.with_suffix(".tmp")
        torch.save({"model": "net", "state_dict": seeded(9).state_dict()}, newer)
        os.replace(newer, file)
        return add(self, *words, **more)

    monkeypatch.setattr(Catalog, "add", replaced)
    with pytest.warns(CkregWarning, match="left where it is"):
        reg.push(file, move=True)
    assert file.exists()
    assert loads(reg, "net")


def test_a_link_is_not_unlinked_by_a_move(reg: Registry, file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(file)
    with pytest.warns(CkregWarning, match="left where it is"):
        reg.push(link, move=True)
    assert link.is_symlink()
    assert file.exists()


# --- blobs that are shared ------------------------------------------------------------------------


def test_a_damaged_blob_is_replaced_by_the_good_copy_that_comes(reg: Registry, file: Path) -> None:
    first = reg.push(file)
    blob = blob_of(reg, first.digest)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(blob, 0o644)
    blob.write_bytes(data)

    reg.push(file, epoch=1, move=True)

    assert not file.exists()
    assert loads(reg, "net@v1")
    assert loads(reg, "net@v2")


def test_a_blob_whose_row_went_meanwhile_is_staged_after_all(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reg.push(file)
    old = blob_of(reg, first.digest)
    add, done = Catalog.add, []

    def collected(self: Catalog, *words: Any, **more: Any) -> Any:
        if not done:  # what gc does, just before our transaction: the row first, then the file
            done.append(True)
            with by_hand(records_at(reg)) as db:
                for table in ("files", "blobs"):
                    db.execute(f"DELETE FROM {table}")
        return add(self, *words, **more)

    monkeypatch.setattr(Catalog, "add", collected)
    second = reg.push(file, epoch=1)

    assert blob_of_all(reg, first.digest) > {old}
    old.unlink()  # gc's second step
    assert loads(reg, second.ref)


def test_a_shared_blob_whose_file_went_meanwhile_is_staged_after_all(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = blob_of(reg, reg.push(file).digest)
    add = Catalog.add

    def lost(self: Catalog, *words: Any, **more: Any) -> Any:
        old.unlink(missing_ok=True)
        return add(self, *words, **more)

    monkeypatch.setattr(Catalog, "add", lost)
    second = reg.push(file, epoch=1)

    assert not old.exists()
    assert loads(reg, "net@v1")
    assert loads(reg, second.ref)


def test_a_new_blob_whose_file_went_before_the_commit_is_a_conflict_and_no_row(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Catalog.add

    def lost(self: Catalog, *words: Any, **more: Any) -> Any:
        for blob in blobs_at(reg).glob("blobs/*/*"):
            blob.unlink()
        return add(self, *words, **more)

    monkeypatch.setattr(Catalog, "add", lost)
    with pytest.raises(ConflictError, match="went away meanwhile"):
        reg.push(file)
    assert reg.models() == []


def blob_of_all(reg: Registry, digest: str) -> set[Path]:
    return set(blobs_at(reg).glob(f"blobs/{digest[7:9]}/{digest[9:]}.*"))


@pytest.mark.parametrize("spoil", ["gone", "damaged"])
def test_a_lost_index_blocks_no_good_bytes_and_is_made_anew(
    reg: Registry, file: Path, spoil: str
) -> None:
    first = reg.push(file)
    (index,) = [p for p in blobs_at(reg).glob("blobs/*/*") if p != blob_of(reg, first.digest)]
    os.chmod(index, 0o644)
    if spoil == "gone":
        index.unlink()
    else:
        index.write_bytes(index.read_bytes()[:-1] + b"!")

    with pytest.warns(CkregWarning, match="index"):
        assert loads(reg, "net")
    reg.push(file, epoch=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loads(reg, "net@v1")
        assert loads(reg, "net@v2")


# --- the commit -----------------------------------------------------------------------------------


class Lost(Exception):
    """The connection broke after the COMMIT and before its answer."""


def test_a_commit_whose_answer_was_lost_is_a_success(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Catalog.add

    def lost(self: Catalog, *words: Any, **more: Any) -> Any:
        add(self, *words, **more)
        raise Lost

    monkeypatch.setattr(Catalog, "add", lost)
    checkpoint = reg.save(seeded(1), model="net")
    monkeypatch.undo()

    assert checkpoint.ref == "net@v1"
    assert list(blobs_at(reg).glob(f"records/*/{checkpoint.id}.json"))
    assert loads(reg, "net")


def test_an_interrupt_after_the_commit_keeps_what_is_committed(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Catalog.add

    def interrupted(self: Catalog, *words: Any, **more: Any) -> Any:
        add(self, *words, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Catalog, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reg.save(seeded(1), model="net")
    monkeypatch.undo()
    assert loads(reg, "net")
    assert len(list(blobs_at(reg).glob("records/*/*.json"))) == 1


def test_a_failure_before_the_commit_leaves_no_blob(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Catalog, *words: Any, **more: Any) -> Any:
        raise Lost

    monkeypatch.setattr(Catalog, "add", failing)
    with pytest.raises(Lost):
        reg.save(seeded(1), model="net")
    assert left_behind(reg) == []


@pytest.mark.sqlite_only("a file is renamed; of a server, test_postgres.py stops it")
def test_a_database_out_of_reach_after_a_commit_costs_no_blob(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, database = Catalog.add, Path(reg.location, "registry.db")

    def gone(self: Catalog, *words: Any, **more: Any) -> Any:
        add(self, *words, **more)
        database.rename(database.with_suffix(".away"))
        raise Lost

    monkeypatch.setattr(Catalog, "add", gone)
    with pytest.raises(Lost):
        reg.save(seeded(1), model="net")
    monkeypatch.undo()
    database.with_suffix(".away").rename(database)
    assert loads(reg, "net")


def test_warnings_as_errors_do_not_make_a_commit_look_failed(
    reg: Registry, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reg.push(file, acc=93.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = reg.push(file, acc=0.93)
    assert made == reg.get("net")
    assert "warning: acc is on two scales" in capsys.readouterr().err
    assert len(list(blobs_at(reg).glob("records/*/*.json"))) == 2


def test_a_save_that_finds_the_registry_busy_is_kept_and_its_hint_finishes_it(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Catalog, *words: Any, **more: Any) -> Any:
        raise BusyError("the registry is busy")

    monkeypatch.setattr(Catalog, "add", busy)
    with pytest.raises(BusyError) as error:
        reg.save(seeded(1), model="net", epoch=3, tags=["good"], note="a note")
    monkeypatch.undo()
    assert error.value.hint is not None
    words = shlex.split(error.value.hint.partition("finish with: ")[2])
    assert words[0] == "ckreg"

    done = subprocess.run(
        [sys.executable, "-m", "registry", *words[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )

    assert done.returncode == 0, done.stderr
    checkpoint = reg.get("net")
    assert (checkpoint.epoch, checkpoint.tags, checkpoint.note) == (3, ("good",), "a note")
    assert loads(reg, "net")


def test_a_warning_points_at_the_line_that_called(reg: Registry, file: Path) -> None:
    reg.push(file, acc=93.1)
    for call in (
        lambda: reg.push(file, acc=0.93),
        lambda: reg.save(seeded(1), model="net", acc=0.94),
        lambda: reg.record("net@v1", {"loss": 1.0}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert all(w.filename == __file__ for w in caught), [str(w) for w in caught]


def test_a_blob_that_moved_meanwhile_is_looked_up_again(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reg.push(file)
    blob = blob_of(reg, first.digest)
    blobs_of, asked = Catalog.blobs_of, []

    def moved(self: Catalog, id: str) -> Any:
        found = blobs_of(self, id)
        if not asked:  # another copy takes the row right after we looked
            asked.append(True)
            store = LocalStore.open(blobs_at(reg))
            with store.stage_file(file) as staged:
                other = store.publish(staged)
            with by_hand(records_at(reg)) as db:
                db.execute("UPDATE blobs SET name=? WHERE digest=?", (other.name, other.digest))
            blob.unlink()
        return found

    monkeypatch.setattr(Catalog, "blobs_of", moved)
    assert loads(reg, "net")


def test_extra_that_is_no_data_is_left_and_said_and_the_load_goes_on(
    reg: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(
        {"model": "net", "state_dict": seeded(1).state_dict(), "cls": torch.optim.SGD, "n": [1, 2]},
        path,
    )
    reg.push(path)
    result = reg.load("net", into=(into := seeded(2)))
    assert equal(into, seeded(1))
    assert result.extra == {"n": [1, 2]}
    assert "SGD" in result.ignored["extra.cls"]


def test_an_adapted_pull_keeps_the_kind_of_file(reg: Registry, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    reg.push(tmp_path / "w.safetensors", model="net")
    path = reg.pull("net", tmp_path / "out.safetensors", device="cpu")
    assert torch.equal(load_file(path)["w"], torch.ones(2))


def test_a_pull_into_a_folder_that_is_not_there_says_how_to_make_it(
    reg: Registry, file: Path, tmp_path: Path
) -> None:
    from registry import NotFoundError

    reg.push(file)
    with pytest.raises(NotFoundError, match="no folder") as error:
        reg.pull("net", str(tmp_path / "new") + "/")
    assert "mkdir" in str(error.value.hint)
    assert not (tmp_path / "new").exists()
