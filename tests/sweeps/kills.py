"""kill -9 at every call of each system call: nothing acknowledged is lost, nothing torn or wedged.

Law: the process dies by signal 9 inside the n-th call of one name, for n from 1 until a run ends
undisturbed. After each death: the registry opens; what was acknowledged, by the dead one too, is
there with its bytes; every row's files are whole; versions have neither gap nor duplicate; the next
push gets in, and sweeps what the dead one left.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from registry.schema import Lineage

from .ledger import Ledger, digest_of
from .nursery import WEDGED, Nursery, Outcome, why_no_strace
from .operations import NEXT, next_lineage

SYSCALLS: Final = (
    "openat", "write", "pwrite64", "copy_file_range", "fsync", "fdatasync", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "fchmod", "fchown", "flock", "fcntl",
    "ftruncate", "close", "mkdir", "mkdirat", "pread64", "preadv2", "lseek", "mmap", "munmap",
    "newfstatat", "fstat", "faccessat2", "getdents64", "futex",
)  # fmt: skip
"""Calls that change something, then those between two of them. A name that is never called costs
one run."""

FEW: Final = ("fsync", "fdatasync", "renameat", "rename", "linkat", "pwrite64", "flock", "write")
"""Those that an acknowledgement stands on."""

_MOST: Final = 400
"""No operation makes so many calls of one name; one that does is reported, not cut short."""


Run = Callable[[str, Sequence[str]], Outcome]
"""Runs an operation's words in a child under whatever disturbs it."""

Step = Callable[[Ledger, Nursery, Run], tuple[Outcome, list[str]]]
"""Does one operation, disturbed; returns its outcome and the faults that only it can see."""


def push(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Push a new file."""
    path = ledger.file(tensors=3)
    outcome = run("command", ["-r", str(ledger.reg), "push", str(path), "-q"])
    ledger.note(path, outcome)
    return outcome, []


def push_move(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Push a file and let the registry have it: until the acknowledgement one of both has it."""
    path = ledger.file()
    digest = digest_of(path)
    outcome = run("command", ["-r", str(ledger.reg), "push", str(path), "--move", "-q"])
    faults = []
    if outcome.out.strip():
        ledger.promised[outcome.out.strip()] = digest
    store, catalog = ledger.parts()
    if not path.exists():
        blob = catalog.blob(digest)  # type: ignore[arg-type]
        if blob is None or not store.holds(blob):
            faults.append("the file is gone, and the registry hasn't it")
    elif digest_of(path) != digest:
        faults.append("the source was changed")
    path.unlink(missing_ok=True)
    return outcome, faults


def pull(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Pull to a new place: the file is not there, or it is whole."""
    ref, digest = next(iter(ledger.promised.items()))
    dest = ledger.folder / "pulled.pt"
    outcome = run("command", ["-r", str(ledger.reg), "pull", ref, "-o", str(dest)])
    faults = []
    if outcome.out.strip() and not dest.exists():
        faults.append("the pull was acknowledged, and no file is there")
    if dest.exists() and digest_of(dest) != digest:
        faults.append("the pulled file is torn")
    dest.unlink(missing_ok=True)
    again = nursery.run("command", "-r", str(ledger.reg), "pull", ref, "-o", str(dest))
    if again.code != 0 or digest_of(dest) != digest:
        faults.append(f"the next pull failed: {again.err}")
    dest.unlink(missing_ok=True)
    return outcome, faults


def pull_force(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Pull in place of a file: the old one is there, or the new one, whole."""
    ref, digest = next(iter(ledger.promised.items()))
    dest = ledger.folder / "pulled.pt"
    dest.write_bytes(b"old")
    words = ["-r", str(ledger.reg), "pull", ref, "-o", str(dest), "--force"]
    outcome = run("command", words)
    faults = []
    if not dest.exists() or (dest.read_bytes() != b"old" and digest_of(dest) != digest):
        faults.append("neither the old file nor the new one is there")
    elif outcome.out.strip() and digest_of(dest) != digest:
        faults.append("the pull was acknowledged, and the old file is there")
    again = nursery.run("command", *words)
    if again.code != 0 or digest_of(dest) != digest:
        faults.append(f"the next pull failed: {again.err}")
    dest.unlink(missing_ok=True)
    return outcome, faults


def remove(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Remove a checkpoint: once acknowledged it stays removed."""
    path = ledger.file()
    pushed = nursery.run("command", "-r", str(ledger.reg), "push", str(path), "-q")
    ledger.note(path, pushed)
    ref = pushed.out.strip()
    outcome = run("command", ["-r", str(ledger.reg), "rm", ref, "--yes", "-q"])
    (ledger.removed if outcome.out.strip() else ledger.unsure).add(ref)
    return outcome, []


def collect(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Collect a removed checkpoint's files: others keep theirs, and the next gc ends the work."""
    path = ledger.file()
    ledger.note(
        path, pushed := nursery.run("command", "-r", str(ledger.reg), "push", str(path), "-q")
    )
    ref = pushed.out.strip()
    nursery.run("command", "-r", str(ledger.reg), "rm", ref, "--yes", "-q")
    ledger.removed.add(ref)
    ledger.collected.add(ref)
    words = ["-r", str(ledger.reg), "gc", "--grace", "0d", "--yes"]
    outcome = run("command", words)
    again = nursery.run("command", *words)
    faults = [] if again.code == 0 else [f"the next gc ended with {again.ended_by}: {again.err}"]
    return outcome, faults


def save(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Save a live net."""
    ledger.made += 1
    outcome = run("save", [str(ledger.reg), str(ledger.made)])
    if outcome.out.strip():
        ledger.promised[outcome.out.strip()] = None
    return outcome, []


def migrate(ledger: Ledger, nursery: Nursery, run: Run) -> tuple[Outcome, list[str]]:
    """Upgrade: the old schema or the new one is there with all rows, and the backup is usable."""
    scripts = ledger.folder.parent / "next"
    newer = Lineage(scripts, head=NEXT) if scripts.exists() else next_lineage(scripts)
    with ledger.copied("migrated") as behind:
        words = [str(scripts), str(behind.database)]
        outcome = run("migrate", words)
        revision = behind.revision()
        faults = []
        if outcome.out.strip() and revision != NEXT:
            faults.append(f"the upgrade was acknowledged, and the schema is at {revision}")
        if revision == NEXT:
            behind.lineage = newer
        faults += [f"after the kill: {fault}" for fault in behind.faults()]
        again = nursery.run("migrate", *words)
        behind.lineage = newer
        if again.code != 0:
            faults.append(f"the next migrate ended with {again.ended_by}: {again.err}")
        faults += [f"after the next: {fault}" for fault in behind.faults()]
        for backup in behind.reg.glob("*.backup"):
            with ledger.copied("restored") as restored:
                shutil.copyfile(backup, restored.database)
                faults += [f"the backup: {fault}" for fault in restored.faults()]
    return outcome, faults


OPERATIONS: Final[dict[str, Step]] = {
    "push": push,
    "push-move": push_move,
    "pull": pull,
    "pull-force": pull_force,
    "rm": remove,
    "gc": collect,
    "save": save,
    "migrate": migrate,
}
"""What is killed."""

TORCH: Final = frozenset({"save"})


# --- one point ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What became of an operation's kills."""

    points: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def kill_at(
    name: str, syscall: str, which: int, ledger: Ledger, nursery: Nursery
) -> tuple[bool, list[str]]:
    """Kill an operation inside a call; return whether it was reached, and the faults."""

    def killed(operation: str, words: Sequence[str]) -> Outcome:
        inject = f"inject={syscall}:signal=KILL:when={which}"
        return nursery.traced(operation, words, ["-e", f"trace={syscall}", "-e", inject])

    outcome, faults = OPERATIONS[name](ledger, nursery, killed)
    reached = outcome.signal == signal.SIGKILL
    if outcome.err.endswith(WEDGED):
        faults.append("the operation itself never ended")
    elif not reached and outcome.code != 0:
        faults.append(f"it ended with {outcome.ended_by}: {outcome.err.strip()}")
    faults += ledger.faults()
    faults += ledger.goes_on(nursery)
    faults += [f"{left} is left over" for left in ledger.left_over()]
    return reached, faults


def sweep_one(
    name: str, syscalls: Sequence[str], folder: Path, nursery: Nursery, *, most: int = _MOST
) -> Tally:
    """Kill an operation at every call of some names."""
    tally = Tally()
    for syscall in syscalls:
        ledger = Ledger.new(folder / f"{name}-{syscall}")
        ledger.goes_on(nursery)
        for which in range(1, most + 1):
            reached, faults = kill_at(name, syscall, which, ledger, nursery)
            tally.broken += [f"{name} {syscall}:{which}: {fault}" for fault in faults]
            if not reached:
                break
            tally.points += 1
            tally.calls[syscall] = which
        shutil.rmtree(folder)
        folder.mkdir()
    return tally


def sweep(names: Sequence[str], syscalls: Sequence[str], count: int) -> int:
    """Kill each operation everywhere, and print what became of it; 1 if a promise was broken."""
    reason = why_no_strace()
    if reason:
        print(f"not done: {reason}")
        return 1
    failed = False
    for name in names:
        began = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="ckreg-kills-") as place,
            Nursery(Path(place), torch=name in TORCH) as nursery,
        ):
            tally = sweep_one(name, syscalls, Path(place, "work"), nursery, most=count)
        calls = " ".join(f"{call}:{most}" for call, most in tally.calls.items())
        print(
            f"{name}: {tally.points} kills, {len(tally.broken)} promises broken, "
            f"{time.monotonic() - began:.0f} s; the most calls of a name: {calls}"
        )
        for line in tally.broken[:20]:
            print(f"  {line}")
        sys.stdout.flush()
        failed |= bool(tally.broken)
    return int(failed)
