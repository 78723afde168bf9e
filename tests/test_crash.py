"""kill -9 and the order of writes: what is acknowledged is on the medium, and stays.

Thin: the calls that an acknowledgement stands on. All of them: python -m tests.sweeps kills.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import kills
from sweeps.ledger import Ledger
from sweeps.nursery import Nursery, why_no_strace

pytestmark = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as process:
        yield process


@pytest.mark.parametrize(
    ("name", "syscalls"),
    [
        ("push", ["fsync", "fdatasync", "renameat", "write"]),
        ("push-move", ["unlinkat"]),
        ("pull", ["fsync", "linkat", "unlinkat"]),
        ("pull-force", ["renameat"]),
        ("rm", ["fsync", "fdatasync"]),
    ],
)
def test_a_kill_at_any_call_loses_tears_and_wedges_nothing(
    name: str, syscalls: list[str], nursery: Nursery, tmp_path: Path
) -> None:
    tally = kills.sweep_one(name, syscalls, tmp_path / "work", nursery)
    assert tally.calls.keys() == set(syscalls)
    assert tally.broken == []


@pytest.mark.parametrize("name", ["push", "rm"])
def test_a_kill_inside_the_transaction_rolls_it_back(
    name: str, nursery: Nursery, tmp_path: Path
) -> None:
    tally = kills.sweep_one(name, ["ftruncate", "flock"], tmp_path / "work", nursery)
    assert tally.points >= 3
    assert tally.broken == []


def test_a_kill_of_an_upgrade_leaves_the_old_schema_or_the_new_one(
    nursery: Nursery, tmp_path: Path
) -> None:
    tally = kills.sweep_one("migrate", ["fsync", "rename", "ftruncate"], tmp_path / "work", nursery)
    assert tally.points >= 4
    assert tally.broken == []


def test_a_kill_of_a_save_loses_tears_and_wedges_nothing(tmp_path: Path) -> None:
    with Nursery(tmp_path, torch=True) as nursery:
        tally = kills.sweep_one("save", ["fsync", "renameat"], tmp_path / "work", nursery)
    assert tally.points >= 8
    assert tally.broken == []


# --- the order of what is written -----------------------------------------------------------------
# A kill can't show that a sync is missing, since the kernel lives on; the trace can.


def trace(ledger: Ledger, nursery: Nursery, *words: str) -> list[str]:
    """Return the calls of a command in their order, as `fsync blobs/ab/cdef…`."""
    log = ledger.folder / "trace"
    calls = "trace=fsync,fdatasync,renameat,linkat,ftruncate,fchmod,flock,write"
    outcome = nursery.traced("command", words, ["-y", "-s", "500", "-e", calls], log=str(log))
    assert outcome.code == 0, outcome.err
    made = []
    for line in log.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += \d+", line)
        if match:
            paths = re.findall(r"<(/[^>]*)>|\"([^\"]*)\"", match[2])
            inside = [(a or b).replace(f"{ledger.folder}/", "") for a, b in paths]
            made.append(f"{match[1]} {' '.join(inside)}")
    return made


def at(made: list[str], pattern: str, *, after: int = -1) -> int:
    """Return the place of the first call like this after a place, and fail where there is none."""
    for place, call in enumerate(made):
        if place > after and re.fullmatch(pattern, call):
            return place
    raise AssertionError(f"no {pattern!r} after {after} in:\n" + "\n".join(made))


def test_a_push_syncs_file_folder_database_and_then_acknowledges(
    nursery: Nursery, tmp_path: Path
) -> None:
    ledger = Ledger.new(tmp_path / "work")
    ledger.goes_on(nursery)
    made = trace(ledger, nursery, "-r", str(ledger.reg), "push", str(ledger.file()), "-q")
    place = -1
    for _ in ("the blob", "its index"):
        place = at(made, r"fchmod reg/tmp/[0-9a-f-]+", after=place)
        place = at(made, r"fsync reg/tmp/[0-9a-f-]+", after=place)
        place = at(made, r"renameat reg/tmp \S+ reg/blobs/\w\w \S+", after=place)
        place = at(made, r"fsync reg/blobs/\w\w", after=place)
    place = at(made, r"flock reg/registry\.lock", after=place)
    place = at(made, r"fdatasync reg/registry\.db-journal", after=place)
    place = at(made, r"fdatasync reg/registry\.db", after=place)
    place = at(made, r"ftruncate reg/registry\.db-journal", after=place)
    place = at(made, r"fdatasync reg/registry\.db-journal", after=place)
    place = at(made, r"flock reg/registry\.lock", after=place)
    place = at(made, r"fsync reg/tmp/[0-9a-f-]+", after=place)
    place = at(made, r"renameat reg/tmp \S+ reg/records/\w\w \S+", after=place)
    place = at(made, r"fsync reg/records/\w\w", after=place)
    place = at(made, r"write \S*\.out net@v\d+.*", after=place)


@pytest.mark.parametrize("force", [False, True])
def test_a_pull_syncs_the_file_before_its_name_and_the_folder_before_the_answer(
    nursery: Nursery, tmp_path: Path, force: bool
) -> None:
    ledger = Ledger.new(tmp_path / "work")
    ref, _ = ledger.push(nursery)
    words = ["-r", str(ledger.reg), "pull", ref, "-o", str(ledger.folder / "out.pt")]
    made = trace(ledger, nursery, *words, *(["--force"] if force else []))
    place = at(made, r"fsync \.ckreg-\w+\.part")
    name = r"renameat" if force else r"linkat"
    place = at(made, rf"{name} \S+ \.ckreg-\w+\.part \S+ out\.pt", after=place)
    place = at(made, rf"fsync {re.escape(str(ledger.folder))}", after=place)
    at(made, r"write \S*\.out .*out\.pt.*", after=place)
