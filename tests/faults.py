"""Faults put into system calls, one at a time, and what they may leak."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

STEPS = (
    "open",
    "pwrite",
    "preadv",
    "copy_file_range",
    "fstat",
    "fchmod",
    "fsync",
    "fdatasync",
    "rename",
    "link",
    "mkdir",
    "statvfs",
)
"""The system calls that may fail; those that clean up are left out."""


def fail_at(patch: pytest.MonkeyPatch, which: int, error: Callable[[], BaseException]) -> list[str]:
    """Let the call number `which` of STEPS fail; return the list of those made."""
    made: list[str] = []
    counting = threading.Lock()

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **keywords: object) -> object:
            with counting:
                made.append(name)
                now = len(made) - 1
            if now == which:
                raise error()
            return real(*args, **keywords)

        return call

    for name in STEPS:
        if hasattr(os, name):
            patch.setattr(os, name, wrap(name))
    return made


def open_descriptors() -> int:
    place = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return len(os.listdir(place))
