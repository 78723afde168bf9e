"""The writers' queue: one flock on registry.lock, held for one transaction.

Law: writers go in the order in which they came, each waits for a bounded time and without
spinning, a crashed one lets go by itself, and no fork happens between taking the lock and giving it
back, so that no child ever holds either the lock or a connection in the middle of a transaction. A
child that is forked while its parent waits has no part in the wait. Knows nothing of SQL.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .blobs.disk import no_space
from .errors import BusyError, CkregError, NotWritableError

TIMEOUT_S: Final = 60.0

_no_fork = threading.RLock()
_counting = threading.Lock()  # held for moments: around what makes and ends a descriptor
_descriptors: set[int] = set()


def _before_fork() -> None:  # waits for the transaction of another thread: milliseconds
    _no_fork.acquire()
    _counting.acquire()


def _after_fork() -> None:
    _counting.release()
    _no_fork.release()


def _after_fork_in_child() -> None:
    # A copy of a descriptor that waits would hold the lock once the parent has it, and after it.
    for fd in _descriptors:
        os.close(fd)
    _descriptors.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
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
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            _close(fd)
            raise _translated(error, path) from error
        _Wait(fd, path).end(timeout_s)
    except BaseException:
        _close(fd)
        raise
    try:
        with _no_fork:
            try:
                yield
            finally:
                # Not left to close() alone: a child of a fork may hold a copy of the descriptor.
                with suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        _close(fd)


class _Wait:
    """A thread that stands in the kernel's queue.

    The kernel's, because it is first come, first served, and whoever asks again and again isn't: in
    a crowd of 64 somebody asked for 7 seconds in vain. A thread, because a signal alone could end
    the call, and signals are the program's. It owns the descriptor once the waiter has given up.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._ended = threading.Event()
        self._deciding = threading.Lock()
        self._given_up = False
        self._error: OSError | None = None
        threading.Thread(target=self._stand, name="ckreg-lock", daemon=True).start()

    def _stand(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._deciding:
            if self._given_up:
                _close(self._fd)
            self._ended.set()

    def end(self, timeout_s: float) -> None:
        """Return once the lock is held. When this raises, the descriptor is closed or will be.

        Raises:
            BusyError: it wasn't to be had in time.
            CkregError: it can't be locked.
        """
        try:
            in_time = self._ended.wait(timeout_s)
        except BaseException:
            self._give_up()
            raise
        if not in_time:
            self._give_up()
            raise BusyError(
                f"another process has been writing to {str(self._path.parent)!r} for more than "
                f"{timeout_s:g} s",
                hint=f"see who holds it: fuser -v {self._path}; then run the command again",
            )
        if self._error is not None:
            _close(self._fd)
            raise _translated(self._error, self._path) from self._error

    def _give_up(self) -> None:
        with self._deciding:
            self._given_up = True
            if self._ended.is_set():
                _close(self._fd)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with _counting:
            fd = os.open(path, flags, 0o666)
            _descriptors.add(fd)
    except OSError as error:
        raise _translated(error, path) from error
    return fd


def _close(fd: int) -> None:
    with _counting:
        _descriptors.discard(fd)
        os.close(fd)


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
        return no_space("open", path, None)
    return CkregError(f"{str(path)!r} can't be locked: {error.strerror}")
