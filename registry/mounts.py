"""What a registry's folder lies on: a disk of this machine, or a share whose locks must be proved.

Law: a share is written to only when its locks keep a second process out, by experiment and not by
its name; the user hears of it once. SQLite's own words: sqlite.org/lockingv3.html, section 6.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Final

from .errors import NotWritableError, warn

MOUNTS: Final = Path("/proc/self/mountinfo")

_SHARES: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs",
        "glusterfs", "gfs2", "ocfs2", "orangefs", "pvfs2", "panfs", "wekafs", "virtiofs", "vboxsf",
        "davfs", "sshfs",
    }
)  # fmt: skip
"""Filesystem types whose bytes lie elsewhere; every `fuse` too, whose daemon decides on locks."""

_TIMEOUT_S: Final = 20.0

# flock is what writers queue on, POSIX record locks are what SQLite takes.
_TRY: Final = """
import fcntl, os, sys
def tried():
    fd = os.open(sys.argv[1], os.O_RDWR)
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield "free"
        except BlockingIOError:
            yield "held"
        except PermissionError:
            yield "held"
print(*tried(), flush=True)
sys.stdin.readline()
print(*tried(), flush=True)
"""


def filesystem(path: Path) -> str | None:
    """Return the type of the filesystem that a path lies on: `ext4`; None where it isn't known."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None  # not Linux
    here = os.path.realpath(path)
    found: tuple[int, str] | None = None
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        point = fields[4].encode().decode("unicode_escape")  # blanks are written as \040
        inside = here == point or here.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= found[0]):
            found = (len(point), kind[0])
    return None if found is None else found[1]


def is_share(kind: str | None) -> bool:
    """Say whether a filesystem of this type has its bytes, and its clock, elsewhere."""
    return kind is not None and (kind in _SHARES or kind.split(".")[0] in ("fuse", "fuseblk"))


def check_share(folder: Path, place: Path) -> None:
    """On a network or FUSE filesystem: prove that locks work, and say once where one is.

    Args:
        folder: the registry's.
        place: a folder in it where a file may be made for a moment.

    Raises:
        NotWritableError: its locks keep nobody out.
    """
    kind = filesystem(folder)
    if not is_share(kind):
        return
    why = _why_no_locks(place)
    if why is not None:
        raise NotWritableError(
            f"the registry {str(folder)!r} lies on {kind}, whose locks don't work: {why}; two "
            "writers at once would destroy it",
            hint="keep it on a disk of this machine: ckreg -r LOCATION …, or mount with locks",
        )
    warn(
        f"the registry {str(folder)!r} lies on {kind}: its locks passed a test between two "
        "processes here. SQLite is not made to be written from several machines at once: write "
        "from one, or keep the registry in PostgreSQL"
    )


def _why_no_locks(place: Path) -> str | None:
    """Return why locks in a folder can't be trusted, or None: two processes try them."""
    import fcntl

    path = place / str(uuid.uuid4())  # a name that a sweep takes away if we die
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"they can't be taken ({error.strerror})"
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TRY, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            held = other.stdout.readline().split()
            fcntl.lockf(fd, fcntl.LOCK_UN)
            fcntl.flock(fd, fcntl.LOCK_UN)
            freed = other.communicate("\n", timeout=_TIMEOUT_S)[0].split()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the test failed ({error})"
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
    if held != ["held", "held"]:
        return "a second process got a lock that this one held"
    return None if freed == ["free", "free"] else "a lock that was given back stayed held"
