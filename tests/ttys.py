"""Commands on a terminal of their own, and what they write there."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from registry import terminal

ROOT = Path(__file__).parent.parent


def on_terminal(
    words: Sequence[str],
    *,
    columns: int = 100,
    env: Mapping[str, str | None] | None = None,
    typed: str = "",
) -> tuple[int, str]:
    """Run a Python program on a terminal, and return its exit code and all that it wrote.

    Args:
        typed: what somebody types, which the terminal shows as well.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM")
    environment = {k: v for k, v in os.environ.items() if k not in plain}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    for name, value in (env or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    process = subprocess.Popen(
        [sys.executable, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    said = b""
    try:
        while more := os.read(ours, 65536):
            said += more
    except OSError:  # Linux says so when the last of the other side is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), said.decode().replace("\r\n", "\n")


def counted(patch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """Return where each piece of work that shows its progress adds its unit and its total, once it
    has been shown as done.
    """
    found: list[tuple[str | None, int]] = []
    leave = terminal.Progress.__exit__

    def left(bar: terminal.Progress, *error: Any) -> None:
        if bar._done == bar._total:
            found.append((bar._unit, bar._total))
        leave(bar, *error)

    patch.setattr(terminal.Progress, "__exit__", left)
    return found
