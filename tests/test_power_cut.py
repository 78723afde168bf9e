"""A power cut loses nothing that was acknowledged. Thin: python -m tests.sweeps power."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import power
from sweeps.nursery import why_no_strace

REASON = why_no_strace() or power.why_no_loops()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.parametrize("apart", [False, True])
def test_a_power_cut_at_a_sync_or_rename_loses_nothing_acknowledged(
    tmp_path: Path, apart: bool
) -> None:
    syscalls = ["fsync", "renameat", "write"]
    points, broken = power.cuts(tmp_path, "ext4", apart=apart, syscalls=syscalls, most=2)
    assert points == 6
    assert broken == []
