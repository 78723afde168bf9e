"""The checks of form: ruff's rules and format, and mypy's strict typing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "words", ["ruff check .", "ruff format --check .", "mypy"], ids=["lint", "format", "types"]
)
def test_the_form_is_right(words: str) -> None:
    tool, *rest = words.split()
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", tool, *rest], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
