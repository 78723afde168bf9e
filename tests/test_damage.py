"""Damaged blobs and database pages: refused, never served. Thin: python -m tests.sweeps damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import damage


@pytest.mark.filterwarnings("ignore::registry.CkregWarning")  # of indexes that can't be used
def test_a_damaged_blob_is_refused_by_pull_and_by_every_load_that_reads_it(tmp_path: Path) -> None:
    met, broken = damage.blobs(tmp_path, 0, 40)
    assert broken == []
    assert met["pull refused"] == met["pull"] == 40
    assert met["resume refused"] == met["resume"] == 40
    assert met["weights refused"] >= 20


def test_a_damaged_database_serves_no_wrong_facts(tmp_path: Path) -> None:
    met, broken = damage.pages(tmp_path, 0, 15)
    assert broken == []
    assert met["databases: refused"] >= 1
