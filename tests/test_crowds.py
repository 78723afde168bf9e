"""Many writers at once: each has a version of its own. Thin: python -m tests.sweeps crowds."""

from __future__ import annotations

from pathlib import Path

import backends
import pytest
from sweeps import crowds, server_crowds
from sweeps.nursery import why_no_strace

needs_strace = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))


@pytest.mark.parametrize("engine", server_crowds.ENGINES)
def test_a_crowd_on_a_server_leaves_no_gap_no_twin_and_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    why = backends.why_not(engine)
    if why is not None:
        pytest.skip(why)
    for name, value in server_crowds.environment(engine, tmp_path).items():
        monkeypatch.setenv(name, value)
    found = server_crowds.crowd(tmp_path, engine, writers=8, each=4)
    assert found.broken == []


@needs_strace
def test_a_crowd_gets_versions_without_gap_or_duplicate_and_nobody_starves(tmp_path: Path) -> None:
    found = crowds.crowd(tmp_path, writers=12, each=5)
    assert found.broken == []
    assert found.pushes == 60
    assert found.reads > 0


@needs_strace
@pytest.mark.parametrize("syscall", ["renameat", "ftruncate", "flock"])
def test_a_writer_that_is_stopped_loses_nothing_and_stops_only_those_behind_it(
    tmp_path: Path, syscall: str
) -> None:
    met, broken = crowds.stops(tmp_path, [syscall], most=5)
    assert sum(met.values()) >= 1
    assert broken == []
