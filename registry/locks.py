"""The writers' queue: one flock on registry.lock, held for one transaction.

Law: a writer waits for a bounded time and without spinning, a crashed one lets go by itself, and no
fork happens between taking the lock and giving it back, so that no child ever holds either the lock
or a connection in the middle of a transaction. Knows nothing of SQL.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import BusyError, CkregError, NoSpaceError, NotWritableError

TIMEOUT_S: Final = 60.0

_no_fork = threading.RLock()
if hasattr(
    os, "register_at_fork"
):  # a fork waits for the transaction of another thread: milliseconds
    os.register_at_fork(
        before=_no_fork.acquire,
        after_in_parent=_no_fork.release,
        after_in_child=_no_fork.release,
    )


@contextmanager
def exclusive(path: Path, *, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file, making it when it isn't there.

    The file is opened anew each time: flock belongs to the open file, and one shared by threads or
    inherited by a fork would exclude nobody.

    Raises:
        BusyError: others hold it for longer than `timeout_s`.
        NotWritableError: it can't be opened for writing.
    """
    try:
        import fcntl
    except ImportError:
        raise NotWritableError(
            "writing to a registry needs flock, which this system lacks",
            hint="write from Linux or macOS; list, plan, pull and load work here",
        ) from None
    fd = _open(path)
    try:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                    raise _translated(error, path) from error
            waited = time.monotonic() - began
            if waited >= timeout_s:
                raise BusyError(
                    f"another process has been writing to {str(path.parent)!r} for more than "
                    f"{timeout_s:g} s",
                    hint=f"see who holds it: fuser -v {path}; then run the command again",
                )
            time.sleep(min(_pause(waited), timeout_s - waited))
        with _no_fork:
            try:
                yield
            finally:
                # Not left to close(): a child of a fork may hold a copy of the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _pause(waited: float) -> float:
    """Return how long to sleep before asking again.

    Whoever has waited longer asks more often, so that in a crowd nobody starves behind newcomers.
    After five seconds the holder is stuck or stopped, not busy: there is no queue to be fair in.
    """
    if waited > 5.0:
        return 0.05
    if waited < 0.005:  # most often there is no crowd, and a transaction takes milliseconds
        return 0.005
    return random.uniform(0.5, 1.5) * max(0.004, 0.040 - 0.072 * waited)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise _translated(error, path) from error


def _translated(error: OSError, path: Path) -> CkregError:
    if error.errno == errno.EROFS:
        return NotWritableError(
            f"the registry {str(path.parent)!r} lies on a read-only filesystem",
            hint="reading works; to write, mount it read-write, or: ckreg -r LOCATION …",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotWritableError(
            f"no permission to write to the registry {str(path.parent)!r}",
            hint=f"reading works; to write, ask its owner (ls -ld {path.parent})",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no space left for {str(path)!r}", hint=f"see: df -h {path.parent}")
    return CkregError(f"{str(path)!r} can't be locked: {error.strerror}")
