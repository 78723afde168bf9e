"""A power cut at every sync and rename: what was acknowledged is on the medium.

Law: the registry lies on a loop-mounted file system; at each kill the backing file is copied, as it
is at that moment, and the copy is mounted, so that what was in memory only is lost. What had been
acknowledged by then is there, hash-equal, nothing is torn, and the next push gets in. With `apart`
the database lies on a file system of its own, whose copy is taken at the same moment.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from registry.blobs.local import LocalStore
from registry.schema import Database

from .failures import mounted
from .ledger import Ledger, digest_of
from .nursery import Nursery, why_no_strace

SYSCALLS: Final = (
    "pwrite64", "copy_file_range", "fchmod", "fsync", "renameat", "fdatasync", "ftruncate",
    "unlinkat", "mkdirat", "flock", "close", "write",
)  # fmt: skip
_MKFS: Final = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
KINDS: Final = tuple(_MKFS)
_SIZE: Final = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}


def why_no_loops(kind: str = "ext4") -> str | None:
    """Return why no file can be mounted as a file system here, or None where it can."""
    if shutil.which(_MKFS[kind][0]) is None:
        return f"{_MKFS[kind][0]} is not installed"
    with tempfile.TemporaryDirectory() as place:
        try:
            with _disk(Path(place, "image"), Path(place, "mount"), kind):
                return None
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            said = getattr(error, "stderr", b"") or b""
            return f"a {kind} image can't be mounted: {said.decode().strip() or error}"


@contextmanager
def _disk(image: Path, place: Path, kind: str) -> Iterator[Path]:
    with image.open("wb") as file:
        file.truncate(_SIZE[kind])
    subprocess.run([*_MKFS[kind], str(image)], check=True, capture_output=True)
    with mounted(place, "-o", "loop", str(image)):
        yield place


@contextmanager
def _cut(images: Sequence[Path], folder: Path) -> Iterator[list[Path]]:
    """Copy images as they are, and mount the copies."""
    with ExitStack() as stack:
        places = []
        for number, image in enumerate(images):
            copy = folder / f"cut{number}"
            subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
            stack.callback(copy.unlink)
            # XFS refuses a second mount of one id; a number of mounts must not share one either
            words = ["-o", "loop,nouuid" if _is_xfs(copy) else "loop", str(copy)]
            places.append(stack.enter_context(mounted(folder / f"cut{number}.mount", *words)))
        yield places


def _is_xfs(image: Path) -> bool:
    with image.open("rb") as file:
        return file.read(4) == b"XFSB"


def cuts(
    folder: Path, kind: str, *, apart: bool, syscalls: Sequence[str], most: int
) -> tuple[int, list[str]]:
    """Cut the power inside a push at every call of some names; return how often, and what broke."""
    points, broken = 0, []
    with ExitStack() as stack:
        nursery = stack.enter_context(Nursery(folder))
        images = [folder / "image0", *([folder / "image1"] if apart else [])]
        places = [
            stack.enter_context(_disk(image, folder / f"disk{n}", kind))
            for n, image in enumerate(images)
        ]
        ledger = Ledger(folder, places[0] / "reg", places[-1] / "reg/registry.db")
        LocalStore.create(ledger.store)
        Database.create(ledger.database)
        _push(ledger, nursery, [])
        for syscall in syscalls:
            for which in range(1, most + 1):
                # Sync nothing here: what push leaves unsynced is what this is about.
                inject = f"inject={syscall}:signal=KILL:when={which}"
                died = _push(ledger, nursery, ["-e", f"trace={syscall}", "-e", inject])
                with _cut(images, folder) as copies:
                    after = ledger.elsewhere(copies[0] / "reg", copies[-1] / "reg/registry.db")
                    faults = after.faults()
                    if _push(after, nursery, []) is None or after.faults():
                        faults.append("the next push after the cut failed")
                broken += [f"{kind} {syscall}:{which}: {fault}" for fault in faults]
                points += 1
                if not died:
                    break
    return points, broken


def _push(ledger: Ledger, nursery: Nursery, options: Sequence[str]) -> bool | None:
    """Push a new file; return whether the push was killed, or None if it failed."""
    path = ledger.file()
    words = [str(ledger.store), str(ledger.database), str(path)]
    if options:
        outcome = nursery.traced("push_apart", words, options)
    else:
        outcome = nursery.run("push_apart", *words)
    if outcome.out.strip():
        ledger.promised[outcome.out.strip()] = digest_of(path)
    path.unlink()
    if outcome.signal == signal.SIGKILL:
        return True
    return False if outcome.code == 0 else None


def sweep(kinds: Sequence[str], count: int) -> int:
    """Cut the power on each kind of file system; print what became of it; 1 if a law was broken."""
    failed = False
    for kind in kinds:
        reason = why_no_strace() or why_no_loops(kind)
        if reason:
            print(f"{kind}: not done: {reason}")
            failed = True
            continue
        for apart in (False, True):
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="ckreg-power-") as place:
                points, broken = cuts(Path(place), kind, apart=apart, syscalls=SYSCALLS, most=count)
            where = "database on another" if apart else "database on the same"
            print(
                f"{kind}, {where}: {points} cuts, {time.monotonic() - began:.0f} s, "
                f"{len(broken)} promises broken"
            )
            for line in broken[:20]:
                print(f"  {line}")
            sys.stdout.flush()
            failed |= bool(broken)
    return int(failed)
