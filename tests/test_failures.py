"""Calls that fail and full disks: an error that helps, or a success that is one.

Thin: python -m tests.sweeps failures lets every call fail in every way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import failures
from sweeps.ledger import Ledger
from sweeps.nursery import Nursery, why_no_strace

needs_strace = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))
needs_mounts = pytest.mark.skipif(
    failures.why_no_mounts() is not None, reason=str(failures.why_no_mounts())
)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(tmp_path) as process:
        yield process


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EROFS"])
@pytest.mark.parametrize("name", ["push", "pull"])
def test_a_call_that_fails_is_an_error_that_helps(name: str, error: str, tmp_path: Path) -> None:
    syscalls = ["fsync", "pwrite64", "renameat", "linkat"]
    met, broken = failures.calls(name, syscalls, [error], tmp_path, most=2)
    assert met["failed calls"] >= 3
    assert broken == []


@needs_strace
def test_a_commit_whose_last_sync_failed_is_never_a_success(
    nursery: Nursery, tmp_path: Path
) -> None:
    ledger = Ledger.new(tmp_path / "work")
    ledger.goes_on(nursery)
    last = failures.count_calls("push", "fdatasync", ledger, nursery, tmp_path)
    outcome, faults = failures.fail_at("push", "fdatasync", "EIO", last, ledger, nursery)
    assert outcome.code == 1
    assert "a power cut may undo it" in outcome.err
    assert faults == []


@needs_mounts
def test_a_full_disk_is_said_with_what_is_needed_and_free(tmp_path: Path) -> None:
    met, broken = failures.full(tmp_path, pages=10)
    assert met["bytes: exit 11"]
    assert met["inodes: exit 11"]
    assert broken == []


@needs_mounts
def test_what_may_not_be_written_is_read_all_the_same() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are closed to other users
        met, broken = failures.closed(Path(place))
    whom = ("another user", "read-only mount")
    assert met == {f"{who}: exit {code}": 2 for who in whom for code in (0, 13)}
    assert broken == []
