"""A crowd of writers on one model, readers meanwhile, and writers that are stopped at every step.

Law: no version is missing or twice, nobody fails, and nobody waits for the lock for 5 seconds.
While one is stopped the others get in, or leave with exit 9 where it holds the lock; let go, it
finishes. Python's start-up isn't counted: the children are forked, and let go at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .ledger import Ledger, digest_of
from .nursery import Nursery, Strace, why_no_strace

MAX_WAIT_S: Final = 5.0
STOPS: Final = (
    "openat",
    "pwrite64",
    "fdatasync",
    "fsync",
    "renameat",
    "unlinkat",
    "flock",
    "fcntl",
)
"""The calls at which a writer is stopped."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What became of a crowd.

    Attributes:
        longest_wait_s, longest_hold_s, longest_push_s: of one push.
        reads: rounds of the readers.
    """

    pushes: int
    seconds: float
    longest_wait_s: float
    longest_hold_s: float
    longest_push_s: float
    reads: int
    broken: list[str]


def crowd(folder: Path, *, writers: int, each: int, readers: int = 2) -> Crowd:
    """Let writers push at once into one model, each its own facts."""
    ledger = Ledger.new(folder / "crowd")
    file, stop = ledger.file(), ledger.folder / "stop"
    digest = digest_of(file)
    reg = str(ledger.reg)
    with Nursery(folder, lock_timeout_s=60.0) as nursery:
        looking = [nursery.fork("read_many", [reg, str(stop)]) for _ in range(readers)]
        writing = [
            nursery.fork("push_many", [reg, str(file), str(1 + n * each), str(each)])
            for n in range(writers)
        ]
        for child in (*looking, *writing):
            os.kill(child.pid, signal.SIGCONT)
        began = time.monotonic()
        outcomes = [nursery.end(child, limit_s=3600) for child in writing]
        took = time.monotonic() - began
        stop.touch()
        seen = [nursery.end(child) for child in looking]
    broken = [
        f"a writer ended with {o.ended_by}: {o.err.strip()}" for o in outcomes if o.code or o.signal
    ]
    broken += [f"a reader: {o.out} {o.err}" for o in seen if o.code or o.signal]
    lines = [line.split() for o in outcomes for line in o.out.splitlines()]
    for version, *_ in lines:
        ref = f"net@v{version}"
        if ref in ledger.promised:
            broken.append(f"{ref} was acknowledged twice")
        ledger.promised[ref] = digest
    if sorted(int(version) for version, *_ in lines) != list(range(1, writers * each + 1)):
        broken.append(f"{len(lines)} versions were acknowledged, of {writers * each}, or with gaps")
    broken += ledger.faults()
    broken += [f"{left} is left over" for left in ledger.left_over()]
    broken += [f"{left} is no row's" for left in ledger.orphans()]
    waits = [float(wait) for _, wait, *_ in lines]
    if max(waits, default=0) >= MAX_WAIT_S:
        broken.append(f"somebody waited {max(waits):.1f} s for the lock")
    holds, whole = [float(line[2]) for line in lines], [float(line[3]) for line in lines]
    return Crowd(
        pushes=len(lines),
        seconds=took,
        longest_wait_s=max(waits, default=0),
        longest_hold_s=max(holds, default=0),
        longest_push_s=max(whole, default=0),
        reads=sum(int(o.out) for o in seen if not o.code),
        broken=broken,
    )


# --- stopped writers ------------------------------------------------------------------------------


def stop_at(syscall: str, which: int, ledger: Ledger, nursery: Nursery) -> tuple[str, list[str]]:
    """Stop a push inside a call while another pushes; return what the other met, and the faults.

    Returns:
        "undisturbed" where the call was never made, else "in" or "busy".
    """
    path = ledger.file()
    child = nursery.fork("command", ["-r", str(ledger.reg), "push", str(path), "-q"])
    inject = f"inject={syscall}:signal=STOP:when={which}"
    faults = []
    with Strace(child.pid, ["-e", f"trace={syscall}", "-e", inject]):
        os.kill(child.pid, signal.SIGCONT)
        stopped = _stops(child.pid)
        met = "undisturbed"
        if stopped:
            ref, other = ledger.push(nursery)
            met = "in" if ref else "busy"
            if other.code not in (0, 9) or "Traceback" in other.err:
                faults.append(f"the other one ended with {other.ended_by}: {other.err}")
        with _going(child.pid):
            outcome = nursery.end(child)
    ledger.note(path, outcome)
    if outcome.code != 0 or not outcome.out.strip():
        faults.append(f"let go, it ended with {outcome.ended_by}: {outcome.err}")
    faults += ledger.faults()
    faults += ledger.goes_on(nursery)
    faults += [f"{left} is left over" for left in ledger.left_over()]
    faults += [f"{left} is no row's" for left in ledger.orphans()]
    return met, faults


@contextmanager
def _going(pid: int) -> Iterator[None]:
    """Let a process go, again and again: each of its threads counts its calls, and stops it."""
    done = threading.Event()

    def go() -> None:
        while not done.wait(0.1):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _stops(pid: int) -> bool:
    """Wait until a process is stopped, and return True; False once it has ended."""
    time.sleep(0.02)  # until it was let go
    while True:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
            stopped = any(_state(pid, task) in "Tt" for task in os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
        if stopped:
            time.sleep(0.01)
            if all(_state(pid, task) in "Tt" for task in os.listdir(f"/proc/{pid}/task")):
                return True
        time.sleep(0.002)


def _state(pid: int, task: str) -> str:
    try:
        with open(f"/proc/{pid}/task/{task}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def stops(folder: Path, syscalls: Sequence[str], *, most: int) -> tuple[dict[str, int], list[str]]:
    """Stop a push at every call of some names; return what others met, and what was broken."""
    met = {"in": 0, "busy": 0}
    broken = []
    with Nursery(folder, lock_timeout_s=1.0) as nursery:
        for syscall in syscalls:
            ledger = Ledger.new(folder / f"stop-{syscall}")
            for which in range(1, most + 1):
                how, faults = stop_at(syscall, which, ledger, nursery)
                broken += [f"stopped at {syscall}:{which}: {fault}" for fault in faults]
                if how == "undisturbed":
                    break
                met[how] += 1
            shutil.rmtree(ledger.folder)
    return met, broken


def sweep(writers: int, each: int, most: int) -> int:
    """Run the crowd, then the stopped writers; print the counts; 1 if a law was broken."""
    with tempfile.TemporaryDirectory(prefix="ckreg-crowd-") as place:
        found = crowd(Path(place), writers=writers, each=each)
        print(
            f"crowd: {writers} writers x {each}: {found.pushes} versions in {found.seconds:.0f} s, "
            f"{found.reads} reads; longest wait for the lock {found.longest_wait_s:.2f} s, "
            f"longest hold {found.longest_hold_s:.2f} s, "
            f"longest push {found.longest_push_s:.2f} s; {len(found.broken)} laws broken"
        )
        broken = found.broken
        for line in broken[:20]:
            print(f"  {line}")
        sys.stdout.flush()
        reason = why_no_strace()
        if reason or not most:
            print(f"stopped writers: not done: {reason or '--stops 0'}")
            return int(bool(broken))
        met, faults = stops(Path(place), STOPS, most=most)
        print(
            f"stopped writers: {sum(met.values())} stops; others got in at {met['in']} and were "
            f"told that it is busy at {met['busy']}; {len(faults)} laws broken"
        )
        for line in faults[:20]:
            print(f"  {line}")
        return int(bool(broken or faults))
