"""The writers' queue: in order, in bounded time, and nobody's by accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import BusyError
from registry.locks import exclusive


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "registry.lock"


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def is_free(lock: Path) -> bool:
    try:
        with exclusive(lock, timeout_s=0.05):
            return True
    except BusyError:
        return False


def waits(count: int) -> bool:
    """Wait until so many stand in the queue."""
    for _ in range(1000):
        if sum(t.name == "ckreg-lock" for t in threading.enumerate()) == count:
            return True
        time.sleep(0.005)
    return False


def test_writers_go_in_the_order_in_which_they_came(lock: Path) -> None:
    order: list[int] = []

    def write(number: int) -> None:
        with exclusive(lock):
            order.append(number)

    with exclusive(lock):
        threads = []
        for number in range(12):
            threads.append(in_thread(lambda n=number: write(n)))  # type: ignore[misc]
            assert waits(number + 1)
            time.sleep(0.01)  # from the start of the thread to its place in the queue
    for thread in threads:
        thread.join(10)
    assert order == list(range(12))


def test_who_gives_up_leaves_the_queue_and_holds_nothing_later(lock: Path) -> None:
    with exclusive(lock):
        with (
            pytest.raises(BusyError, match=r"for more than 0\.05 s"),
            exclusive(lock, timeout_s=0.05),
        ):
            pass
        assert waits(1)  # it stands there still, for nobody
    assert waits(0)
    assert is_free(lock)


def test_an_interrupt_ends_the_wait_and_holds_nothing_later(lock: Path) -> None:
    with exclusive(lock):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), exclusive(lock):
            pass
        timer.join()
    assert waits(0)
    assert is_free(lock)


FORKS_WHILE_IT_WAITS = """
import os, sys, threading, time
from pathlib import Path
from registry.locks import exclusive

def write():
    with exclusive(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)

threading.Thread(target=write, daemon=True).start()
time.sleep(1)
child = os.fork()
if child == 0:
    sys.stdout.close()
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_a_child_that_was_forked_during_the_wait_holds_nothing(lock: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", FORKS_WHILE_IT_WAITS, str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        with exclusive(lock):
            child = int(parent.stdout.readline())
        try:
            assert parent.stdout.readline() == "held\n"
            parent.kill()
            parent.wait()
            assert is_free(lock)
        finally:
            os.kill(child, signal.SIGKILL)
