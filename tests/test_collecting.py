"""gc: what nothing needs goes, after the grace, and never what a row needs or is about to."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from backends import blobs_at, records_at
from conftest import left_behind
from drafts import by_hand
from nets import equal, seeded
from ttys import counted

from registry import ConflictError, DamagedError, NotFoundError, Registry, cli
from registry.blobs.local import LocalStore
from registry.catalog import Catalog, Upkeep
from registry.collecting import GRACE, collect
from registry.values import duration, now

ROOT = Path(__file__).parent.parent


def file_of(folder: Path, seed: int) -> Path:
    path = folder / f"w{seed}.pt"
    torch.save({"model": "net", "epoch": seed, "state_dict": seeded(seed).state_dict()}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return file_of(tmp_path, 1)


def age(path: Path, **span: float) -> None:
    """Let a file look as old as that, by the store's clock."""
    at = time.time() - timedelta(**span).total_seconds()
    os.utime(path, (at, at))


def removed_long_ago(reg: Registry, ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove a checkpoint, fifteen days ago by everybody's clock."""
    with monkeypatch.context() as patch:
        patch.setattr("registry.catalog.changing.now", lambda: now() - timedelta(days=15))
        gone = reg.remove(ref)
    age(record_of(reg, gone.id), days=15)


def record_of(reg: Registry, id: str) -> Path:
    return blobs_at(reg) / "records" / id[:2] / f"{id}.json"


def blobs(reg: Registry) -> list[Path]:
    return sorted(blobs_at(reg).glob("blobs/*/*"))


def orphan(reg: Registry) -> Path:
    """Leave a blob without a row, as a writer does that dies before its commit."""
    store = LocalStore.open(blobs_at(reg))
    return store.path_of(store.put_bytes(os.urandom(100)))


def check_all_there(reg: Registry) -> int:
    """See that every live checkpoint's bytes are those that were recorded; return how many."""
    store = LocalStore.open(blobs_at(reg))
    catalog = Catalog(reg._database())
    found = list(reg.find())
    for checkpoint in found:
        files = catalog.blobs_of(checkpoint.id)
        assert len(files) == len(checkpoint.files)
        for _, blob, index in files:
            for one in (blob, index):
                assert one is not None
                with store.open_blob(one) as stored:
                    stored.verify()
    return len(found)


# --- what goes, and when --------------------------------------------------------------------------


def test_the_grace_that_gc_says_is_the_grace_that_is_kept() -> None:
    said = inspect.signature(Registry.gc).parameters["grace"].default
    assert duration(said) == GRACE


def test_removed_bytes_go_after_the_grace_and_restore_says_so(
    reg: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = reg.push(file)
    kept = reg.push(file_of(tmp_path, 2))
    removed_long_ago(reg, gone.ref, monkeypatch)
    done = reg.gc()
    assert ([one.ref for one in done.checkpoints], len(done.blobs)) == ([gone.ref], 2)
    assert done.done
    assert done.size_bytes > gone.size_bytes
    assert len(blobs(reg)) == 2
    assert check_all_there(reg) == 1
    with pytest.raises(NotFoundError, match=r"gc took them on 20"):
        reg.restore(gone.ref)
    assert [c.ref for c in reg.find(include_removed=True)] == [kept.ref, gone.ref]
    assert reg.push(file).ref == "net@v3"
    assert not reg.gc()


def test_removed_bytes_stay_for_the_grace(reg: Registry, file: Path) -> None:
    checkpoint = reg.push(file)
    reg.remove(checkpoint)
    found = reg.gc()
    assert (bool(found), found.spared) == (False, 1)
    reg.restore(checkpoint)
    assert check_all_there(reg) == 1


def test_grace_nought_takes_what_was_removed_just_now(reg: Registry, file: Path) -> None:
    reg.remove(reg.push(file))
    assert len(reg.gc(grace="0").checkpoints) == 1
    assert left_behind(reg) == []


def test_bytes_that_a_live_checkpoint_shares_stay(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = reg.push(file), reg.push(file, dataset="other")
    assert gone.digest == kept.digest
    removed_long_ago(reg, gone.ref, monkeypatch)
    done = reg.gc()
    assert ([one.ref for one in done.checkpoints], done.blobs) == ([gone.ref], ())
    assert check_all_there(reg) == 1


def test_bytes_that_a_checkpoint_removed_just_now_shares_stay(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = reg.push(file), reg.push(file, dataset="other")
    removed_long_ago(reg, old.ref, monkeypatch)
    reg.remove(new)
    assert reg.gc().blobs == ()
    reg.restore(new)
    assert check_all_there(reg) == 1


@pytest.mark.parametrize("years", [-2, 2])
def test_a_clock_two_years_off_takes_nothing_early(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    with monkeypatch.context() as patch:
        for module in ("catalog.changing", "catalog.adding", "catalog.collecting", "drafting"):
            patch.setattr(f"registry.{module}.now", lambda: now() + timedelta(days=365 * years))
        checkpoint = reg.push(file)
        orphan(reg)
        reg.remove(checkpoint)
        assert not reg.gc()
    assert not reg.gc()
    reg.restore(checkpoint)
    assert check_all_there(reg) == 1


def test_a_file_without_a_row_goes_after_the_grace_and_not_before(reg: Registry) -> None:
    young, old = orphan(reg), orphan(reg)
    age(old, days=14.1)
    found = reg.gc()
    assert ([b.name for b in found.orphans], found.spared) == (
        [f"{old.parent.name}/{old.name}"],
        1,
    )
    assert (young.exists(), old.exists()) == (True, False)


def test_a_file_without_a_row_stays_an_hour_whatever_the_grace(reg: Registry) -> None:
    young, old = orphan(reg), orphan(reg)
    age(young, minutes=50)
    age(old, minutes=70)
    assert len(reg.gc(grace="0").orphans) == 1
    assert (young.exists(), old.exists()) == (True, False)


def test_what_killed_writers_left_goes_at_once_and_what_living_ones_write_never(
    reg: Registry,
) -> None:
    store = LocalStore.open(blobs_at(reg))
    left = blobs_at(reg) / "tmp" / "01234567-89ab-cdef-0123-456789abcdef"
    with store.stage() as living:
        left.write_bytes(b"half")
        done = reg.gc()
        assert [f.name for f in done.leftovers] == [left.name]
        assert (left.exists(), living.path.exists()) == (False, True)


def test_a_foreign_file_among_the_blobs_is_left_alone(reg: Registry) -> None:
    foreign = blobs_at(reg) / "blobs" / "ab" / "notes.txt"
    foreign.write_text("mine")
    age(foreign, days=100)
    assert not reg.gc()
    assert foreign.exists()


# --- the plan -------------------------------------------------------------------------------------


def test_a_dry_run_takes_nothing_and_names_what_the_real_run_takes(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed_long_ago(reg, reg.push(file).ref, monkeypatch)
    age(orphan(reg), days=15)
    (blobs_at(reg) / "tmp" / "01234567-89ab-cdef-0123-456789abcdef").write_bytes(b"half")
    before = left_behind(reg)
    plan = reg.gc(dry_run=True)
    assert left_behind(reg) == before
    assert [len(plan.checkpoints), len(plan.blobs), len(plan.orphans), len(plan.leftovers)] == [
        1, 2, 1, 1,
    ]  # fmt: skip
    done = reg.gc(plan=plan)
    assert {**done.to_dict(), "done": False} == plan.to_dict()
    assert left_behind(reg) == []


def test_gc_says_how_far_it_is(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.remove(reg.push(file_of(tmp_path, 1)))
    reg.remove(reg.push(file_of(tmp_path, 2)))
    age(orphan(reg), days=15)
    said: list[tuple[int, int]] = []
    plan = reg.gc(dry_run=True, grace="0", progress=lambda *far: said.append(far))
    assert said == [(n, 258) for n in range(1, 259)]  # 256 folders, and two that were removed
    said.clear()
    reg.gc(plan=plan, progress=lambda *far: said.append(far))
    assert said == [(n, 7) for n in range(1, 8)]  # with a file and its index each, and the orphan

    reg.remove(reg.push(file_of(tmp_path, 3)))
    units = counted(monkeypatch)
    assert cli.run(["gc", "--grace", "0", "--yes", "-r", reg.location]) == 0
    assert units == [("step", 257), ("step", 3)]


def test_a_plan_takes_nothing_that_is_needed_again(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = reg.push(file)
    removed_long_ago(reg, checkpoint.ref, monkeypatch)
    plan = reg.gc(dry_run=True)
    reg.restore(checkpoint)
    done = reg.gc(plan=plan)
    assert (done.checkpoints, done.blobs) == ((), ())
    assert check_all_there(reg) == 1


def test_more_than_a_batch_goes(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(230):
        age(orphan(reg), days=15)
    assert len(reg.gc().orphans) == 230
    assert left_behind(reg) == []


# --- refusals -------------------------------------------------------------------------------------


def test_nothing_goes_where_the_marker_is_missing(reg: Registry) -> None:
    age(orphan(reg), days=15)
    (blobs_at(reg) / "store.json").unlink()
    with pytest.raises(NotFoundError, match=r"store\.json is missing"):
        reg.gc()
    assert len(blobs(reg)) == 1


@pytest.mark.parametrize("marker", ["", '{"format":1,"id":"0123456789abcdef0123456789abcdef"}'])
def test_nothing_goes_where_the_marker_changed_after_the_plan(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    removed_long_ago(reg, reg.push(file).ref, monkeypatch)
    age(orphan(reg), days=15)
    store = LocalStore.open(blobs_at(reg))
    database = reg._database()
    plan = reg.gc(dry_run=True)
    (blobs_at(reg) / "store.json").unlink()
    if marker:
        (blobs_at(reg) / "store.json").write_text(marker)
    parts = (replace(plan, **{name: ()}) for name in ("checkpoints", "blobs", "orphans"))
    for part in parts:
        with pytest.raises(ConflictError if marker else NotFoundError, match="store"):
            collect(store, Catalog(database), Upkeep(database), part)
    assert len(blobs(reg)) == 3


def test_nothing_goes_of_another_store(reg: Registry, tmp_path: Path) -> None:
    age(orphan(reg), days=15)
    with Registry.create(tmp_path / "other") as other:
        marker = (Path(other.location) / "store.json").read_text()
    (blobs_at(reg) / "store.json").write_text(marker)
    with pytest.raises(ConflictError, match="store"):
        reg.gc()
    with (
        pytest.raises(ConflictError, match="store"),  # a server's registry says so when it's opened
        Registry.open(reg.location) as again,
    ):
        again.gc()
    assert len(blobs(reg)) == 1


def test_nothing_goes_where_many_blobs_are_missing(reg: Registry, tmp_path: Path) -> None:
    for seed in range(6):
        reg.push(file_of(tmp_path, seed))
    age(orphan(reg), days=15)
    for path in sorted(blobs_at(reg).glob("blobs/*/*"), key=lambda p: p.stat().st_size)[1:]:
        path.unlink()
    with pytest.raises(DamagedError, match="12 of 12 blobs are missing"):
        reg.gc()
    assert len(blobs(reg)) == 1


@pytest.mark.sqlite_only("it puts an older file in the database's place")
def test_nothing_goes_where_the_database_is_older_than_the_records(
    reg: Registry, file: Path, tmp_path: Path
) -> None:
    database = Path(reg.location) / "registry.db"
    older = database.read_bytes()
    reg.push(file)
    for path in blobs(reg):
        age(path, days=15)
    database.write_bytes(older)
    with pytest.raises(DamagedError, match="the database doesn't know"):
        reg.gc()
    assert len(blobs(reg)) == 2


def test_a_tombstone_that_the_record_does_not_know_takes_nothing(reg: Registry, file: Path) -> None:
    checkpoint = reg.push(file)
    age(record_of(reg, checkpoint.id), days=100)
    with by_hand(records_at(reg)) as database:
        long_ago = f"{datetime(2020, 1, 1, tzinfo=UTC):%Y-%m-%dT%H:%M:%S.000000Z}"
        database.execute("UPDATE checkpoints SET removed_at = ?", (long_ago,))
    assert not reg.gc()
    assert len(blobs(reg)) == 2


# --- crashes and crowds ---------------------------------------------------------------------------


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """Start a process that runs some code with a registry's tools at hand."""
    begin = (
        "import os, signal, sys, warnings\n"
        "from registry import Registry\n"
        "reg = Registry.open(sys.argv[1])\n"
        "def stop(): os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", begin + code, *map(str, args)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until_stopped(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), (process.stderr and process.stderr.read(), status)


def goes_on(process: subprocess.Popen[str]) -> tuple[str, str]:
    os.kill(process.pid, signal.SIGCONT)
    try:
        return process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()


IN_BLOBS = """
real = os.unlink
def unlink(name, *, dir_fd=None):
    if dir_fd is not None and "/blobs/" in os.readlink(f"/proc/self/fd/{dir_fd}"):
        at_unlink(name, dir_fd)
    real(name, dir_fd=dir_fd)
os.unlink = unlink
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc/self/fd")
@pytest.mark.parametrize("which", ["before", "after"])
def test_a_kill_at_a_file_leaves_no_row_without_bytes(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    removed_long_ago(reg, reg.push(file).ref, monkeypatch)
    code = (
        "def at_unlink(name, dir_fd):\n"
        f"    {'real(name, dir_fd=dir_fd); ' if which == 'after' else ''}os._exit(9)\n"
        f"{IN_BLOBS}reg.gc()"
    )
    process = child(code, reg.location)
    process.communicate(timeout=60)
    assert process.returncode == 9
    with by_hand(records_at(reg)) as database:
        assert database.execute("SELECT count(*) FROM blobs").fetchone() == (0,)
    for path in blobs(reg):
        age(path, days=15)
    left = len(blobs(reg))
    assert left == (1 if which == "after" else 2)
    assert len(reg.gc().orphans) == left
    assert left_behind(reg) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc/self/fd")
def test_a_gc_stopped_before_a_file_goes_takes_nothing_of_a_push_meanwhile(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed_long_ago(reg, reg.push(file).ref, monkeypatch)
    code = "stopped = []\ndef at_unlink(name, dir_fd): stopped or stopped.append(stop())\n"
    collector = child(f"{code}{IN_BLOBS}reg.gc(); print('done')", reg.location)
    until_stopped(collector)
    again = reg.push(file)
    out, err = goes_on(collector)
    assert (again.ref, out, err) == ("net@v2", "done\n", "")
    assert check_all_there(reg) == 1
    reg.load(again, into=(into := seeded(2)))
    assert equal(into, seeded(1))


def test_a_push_that_borrows_bytes_which_gc_takes_stores_its_own(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed_long_ago(reg, reg.push(file).ref, monkeypatch)
    pusher = child(
        "from registry.catalog import Catalog\n"
        "real, stopped = Catalog.add, []\n"
        "def add(self, draft, holds):\n"
        "    if not stopped:\n"
        "        assert draft.borrowed\n"
        "        stopped.append(stop())\n"
        "    return real(self, draft, holds)\n"
        "Catalog.add = add\n"
        "print(reg.push(sys.argv[2]).ref)",
        reg.location, file,
    )  # fmt: skip
    until_stopped(pusher)
    assert len(reg.gc().blobs) == 2
    out, err = goes_on(pusher)
    assert (out.strip(), err) == ("net@v2", "")
    assert check_all_there(reg) == 1


def test_a_push_that_slept_past_the_grace_is_refused_and_records_nothing(
    reg: Registry, file: Path
) -> None:
    pusher = child(
        "from registry.catalog import Catalog\n"
        "real = Catalog.add\n"
        "def add(self, draft, holds):\n"
        "    stop()\n"
        "    return real(self, draft, holds)\n"
        "Catalog.add = add\n"
        "try:\n"
        "    reg.push(sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__)",
        reg.location, file,
    )  # fmt: skip
    until_stopped(pusher)
    for path in blobs(reg):
        age(path, days=15)
    assert len(reg.gc().orphans) == 2
    out, _ = goes_on(pusher)
    assert out.strip() == "ConflictError"
    assert list(reg.find()) == []
    assert left_behind(reg) == []


def test_pushes_removals_and_gc_at_once_lose_nothing(reg: Registry, tmp_path: Path) -> None:
    paths = [file_of(tmp_path, seed) for seed in range(3)]
    failed: list[BaseException] = []
    until = time.monotonic() + 4

    def keep(work: object) -> None:
        with Registry.open(reg.location) as mine:
            while time.monotonic() < until:
                try:
                    work(mine)  # type: ignore[operator]
                except NotFoundError:
                    continue  # another thread removed it first
                except BaseException as error:
                    failed.append(error)
                    return

    def push(mine: Registry) -> None:
        for path in paths:
            mine.push(path, dataset=threading.current_thread().name)

    def remove(mine: Registry) -> None:
        for checkpoint in list(mine.find(limit=4)):
            mine.remove(checkpoint)

    works = [push, push, remove, lambda mine: mine.gc(grace="0")]
    threads = [threading.Thread(target=keep, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for path in paths:
        reg.push(path, dataset="last")
    assert check_all_there(reg) >= 3
    with by_hand(records_at(reg)) as database:
        assert database.execute(
            "SELECT count(*) FROM checkpoints WHERE collected_at IS NOT NULL"
        ).fetchone() > (0,)
