"""Calls that fail, full disks, and places that can't be written: an error that helps, or success.

Law: a call that fails with EIO, ENOSPC, EDQUOT, EROFS or EACCES ends the command with its exit code
and a message that names a path, or is got over; nothing is acknowledged that isn't so, no traceback
is shown, what was there before is there still, and the next push gets in. A failed fsync is never
a success, but for a warning where the row was committed before. (SQLite's are fdatasyncs; one of
them it passes over: its folder's after making the journal, which ours has had since its creation.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .kills import OPERATIONS, TORCH
from .ledger import Ledger, digest_of
from .nursery import WEDGED, Nursery, Outcome, why_no_strace

ERRORS: Final = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES")
SYSCALLS: Final = (
    "openat", "pwrite64", "copy_file_range", "fsync", "fdatasync", "renameat", "linkat", "unlinkat",
    "fchmod", "flock", "fcntl", "ftruncate", "mkdirat", "pread64", "preadv2", "newfstatat",
)  # fmt: skip

_SHOWN: Final = 20


def judge(outcome: Outcome, *, error: str = "", syscall: str = "") -> list[str]:
    """Return what is wrong with how a command ended."""
    faults = []
    if outcome.err.endswith(WEDGED):
        return ["it never ended"]
    if outcome.signal is not None:
        faults.append(f"it ended with {outcome.ended_by}")
    if "Traceback" in outcome.err:
        faults.append(f"a traceback: {outcome.err.strip().splitlines()[-1]}")
    if outcome.code == 0:
        if syscall == "fsync" and "warning:" not in outcome.err:
            faults.append("a failed sync was passed over")
        return faults
    if outcome.out.strip():
        faults.append(f"it failed, and acknowledged {outcome.out.strip()!r}")
    said = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    if len(said) != 1:
        faults.append(f"{len(said)} errors are shown: {outcome.err.strip()!r}")
    elif "/" not in said[0]:
        faults.append(f"no path is named: {said[0]}")
    elif outcome.code == 11 and not re.search(r"[\d,]+ bytes are free", said[0]):
        faults.append(f"what is free isn't said: {said[0]}")
    if error in ("ENOSPC", "EDQUOT") and outcome.code not in (11, 1, 6, 9, 13):
        faults.append(f"{error} ended with code {outcome.code}: {outcome.err.strip()}")
    return faults


def fail_at(
    name: str, syscall: str, error: str, which: int, ledger: Ledger, nursery: Nursery
) -> tuple[Outcome, list[str]]:
    """Let a call of an operation fail."""

    def failing(operation: str, words: Sequence[str]) -> Outcome:
        inject = f"inject={syscall}:error={error}:when={which}"
        return nursery.traced(operation, words, ["-e", f"trace={syscall}", "-e", inject])

    outcome, faults = OPERATIONS[name](ledger, nursery, failing)
    faults += judge(outcome, error=error, syscall=syscall)
    faults += ledger.faults()
    return outcome, faults


def count_calls(name: str, syscall: str, ledger: Ledger, nursery: Nursery, folder: Path) -> int:
    """Return the most calls of a name that a thread of an operation makes."""
    log = folder / "calls"

    def counted(operation: str, words: Sequence[str]) -> Outcome:
        return nursery.traced(operation, words, ["-e", f"trace={syscall}"], log=str(log))

    outcome, _ = OPERATIONS[name](ledger, nursery, counted)
    if outcome.code != 0:
        raise RuntimeError(f"{name} fails undisturbed: {outcome.err}")
    lines = [line for line in log.read_text().splitlines() if f" {syscall}(" in line]
    return max(Counter(line.split()[0] for line in lines).values(), default=0)


def calls(
    name: str, syscalls: Sequence[str], errors: Sequence[str], folder: Path, *, most: int
) -> tuple[Counter[str], list[str]]:
    """Let every call of an operation fail in every way."""
    met: Counter[str] = Counter()
    broken: list[str] = []
    with Nursery(folder, torch=name in TORCH) as nursery:
        for syscall in syscalls:
            ledger = Ledger.new(folder / "work")
            ledger.goes_on(nursery)
            number = min(most, count_calls(name, syscall, ledger, nursery, folder))
            for error in errors:
                for which in range(1, number + 1):
                    outcome, faults = fail_at(name, syscall, error, which, ledger, nursery)
                    met["failed calls"] += 1
                    met["got over" if outcome.code == 0 else f"exit {outcome.code}"] += 1
                    broken += [f"{name} {syscall}:{error}:{which}: {f}" for f in faults]
                faults = ledger.goes_on(nursery)
                faults += [f"{left} is left over" for left in ledger.left_over()]
                broken += [f"{name} {syscall}:{error}: {fault}" for fault in faults]
            shutil.rmtree(ledger.folder)
    return met, broken


# --- full disks -----------------------------------------------------------------------------------


def why_no_mounts() -> str | None:
    """Return why nothing can be mounted here, or None where it can."""
    with tempfile.TemporaryDirectory() as place:
        words = ["mount", "-t", "tmpfs", "tmpfs", place]
        try:
            tried = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "there is no mount here"
        if tried.returncode:
            return f"no right to mount: {tried.stderr.strip()}"
        subprocess.run(["umount", place], check=True)
    return None


@contextmanager
def mounted(place: Path, *words: str) -> Iterator[Path]:
    """Mount something on a folder while the block lasts."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def full(folder: Path, *, pages: int) -> tuple[Counter[str], list[str]]:
    """Push with 0, 1, 2, … free pages, and with 0, 1, 2, … free inodes, on a small tmpfs."""
    met: Counter[str] = Counter()
    broken: list[str] = []
    options = "size=8m,nr_inodes=1000"
    with (
        mounted(folder / "small", "-t", "tmpfs", "-o", options, "tmpfs") as place,
        Nursery(folder, blind=True) as nursery,
    ):
        ledger = Ledger.new(place / "work")
        ledger.goes_on(nursery)
        for what in ("bytes", "inodes"):
            for free in range(pages):
                file = ledger.file(tensors=8)
                with _filled(place, what, free):
                    outcome = nursery.run("command", "-r", str(ledger.reg), "push", str(file), "-q")
                    faults = judge(outcome) + ledger.faults()
                if outcome.out.strip():
                    ledger.promised[outcome.out.strip()] = digest_of(file)
                file.unlink()
                if outcome.code not in (0, 11):
                    faults.append(f"ended with {outcome.ended_by}: {outcome.err.strip()}")
                faults += ledger.faults()
                met[f"{what}: {'done' if outcome.code == 0 else f'exit {outcome.code}'}"] += 1
                broken += [f"{free} {what} free: {fault}" for fault in faults]
        broken += ledger.goes_on(nursery)
        broken += [f"{left} is left over" for left in ledger.left_over()]
    return met, broken


@contextmanager
def _filled(place: Path, what: str, free: int) -> Iterator[None]:
    """Fill a disk but for some pages or inodes."""
    filler = place / "filler"
    filler.mkdir()
    try:
        if what == "bytes":
            with open(filler / "x", "wb") as file:
                left = shutil.disk_usage(place).free - free * 4096
                file.write(b"\1" * max(0, left))
        else:
            for number in range(os.statvfs(place).f_favail - free):
                (filler / str(number)).touch()
        yield
    finally:
        shutil.rmtree(filler)


def closed(folder: Path) -> tuple[Counter[str], list[str]]:
    """Push, list and pull on a read-only mount, and as a user who may only read."""
    met: Counter[str] = Counter()
    broken: list[str] = []
    ledger = Ledger.new(folder / "work")
    with Nursery(folder) as nursery:
        ref, _ = ledger.push(nursery)
        subprocess.run(["chmod", "-R", "a+rX", str(ledger.folder), str(folder)], check=True)
        file = ledger.file()
        file.chmod(0o644)
        reg = str(ledger.reg)
        out = folder / "out"
        out.mkdir()
        out.chmod(0o777)

        def use(who: str, operation: str) -> None:
            (out / "p.pt").unlink(missing_ok=True)
            for words, code in (
                (["push", str(file), "-q"], 13), (["rm", ref, "--yes"], 13), (["list", "-q"], 0),
                (["pull", ref, "-o", str(out / "p.pt")], 0),
            ):  # fmt: skip
                outcome = nursery.run(operation, "-r", reg, *words)
                faults = judge(outcome)
                if outcome.code != code:
                    faults.append(f"ended with {outcome.ended_by}: {outcome.err.strip()}")
                met[f"{who}: exit {outcome.code}"] += 1
                broken.extend(f"{who}: {words[0]}: {fault}" for fault in faults)
            if (out / "p.pt").exists() and digest_of(out / "p.pt") != ledger.promised[ref]:
                broken.append(f"{who}: other bytes were pulled")

        use("another user", "as_nobody")
        with mounted(ledger.reg, "--bind", str(ledger.reg)):
            subprocess.run(["mount", "-o", "remount,ro,bind", reg], check=True)
            use("read-only mount", "command")
        broken += ledger.faults()
    return met, broken


def sweep(names: Sequence[str], errors: Sequence[str], count: int) -> int:
    """Let everything fail, and print what became of it; 1 if a law was broken."""
    failed = False
    no_strace, no_mounts = why_no_strace(), why_no_mounts()
    parts = dict.fromkeys(names, no_strace) | {"full disk": no_mounts, "closed": no_mounts}
    for name, reason in parts.items():
        if reason:
            print(f"{name}: not done: {reason}")
            failed = True
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ckreg-failures-") as place:
            if name == "full disk":
                met, broken = full(Path(place), pages=min(count, 80))
            elif name == "closed":
                met, broken = closed(Path(place))
            else:
                met, broken = calls(name, SYSCALLS, errors, Path(place), most=count)
        print(f"{name}: {time.monotonic() - began:.0f} s, {len(broken)} laws broken")
        for what, times in sorted(met.items()):
            print(f"  {times:6} {what}")
        for line in broken[:_SHOWN]:
            print(f"  {line}")
        sys.stdout.flush()
        failed |= bool(broken)
    return int(failed)
