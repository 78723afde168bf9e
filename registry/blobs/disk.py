"""The file system as the store needs it: folders by descriptor, full writes, durable syncs, locks.

Law: every error of the operating system is translated here, once; a name is opened below a folder's
descriptor and never through a symlink. Knows nothing of blobs, digests or records.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ..errors import CkregError, ConflictError, NoSpaceError, NotFoundError, NotWritableError

if sys.platform != "win32":
    import fcntl

SPARE_BYTES: Final = 16 << 20
"""What a space check leaves free for the database and the records."""

SHARED_FOLDER: Final = 0o2775
"""The mode of a folder that a group shares: what is made in it is the group's too."""

NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)  # so that opening a FIFO doesn't wait
_FOLDER: Final[int] = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

# What link says where the file system has none (FAT, some FUSE and network mounts).
NO_LINK: Final = _UNSUPPORTED | {errno.EPERM, errno.EMLINK}


# --- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(doing: str, path: Path, *, need: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into the CkregError that it means.

    Args:
        doing: the verb, as in `can't write '/data/x'`.
        path: what it was done to.
        need: bytes that were to be written, for the message about space.
    """
    try:
        yield
    except OSError as error:
        raise translate(error, doing, path, need=need) from error


def translate(error: OSError, doing: str, path: Path, *, need: int | None = None) -> CkregError:
    """Return the CkregError that an OSError means."""
    why = os.strerror(error.errno) if error.errno else str(error)
    message = f"can't {doing} {str(path)!r}: {why}"
    place = shlex.quote(str(path if os.path.isdir(path) else path.parent))
    if error.errno in _NO_SPACE:
        return no_space(doing, path, need)
    if error.errno == errno.EROFS:
        return NotWritableError(message, hint=f"see how it is mounted: findmnt -T {place}")
    if error.errno in _NO_PERMISSION:
        return NotWritableError(message, hint=f"see who may: ls -ld {place}")
    if error.errno == errno.ENOENT:
        return NotFoundError(message)
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):
        return ConflictError(message)
    if error.errno == errno.EIO:
        return CkregError(
            message, hint="the disk failed: see dmesg, and copy what still can be read"
        )
    return CkregError(message)


def no_space(doing: str, path: Path, need: int | None) -> NoSpaceError:
    """Return the error for a full disk or quota, with what is needed and what is free."""
    free = free_bytes(path)
    wanted = f"{need:,} bytes are needed, " if need is not None else ""
    left = f"{free:,} bytes are free there" if free is not None else "what is free is unknown"
    if no_files_left(path):
        left += ", and no files are: its inodes are used up"
    return NoSpaceError(
        f"no space to {doing} {str(path)!r}: {wanted}{left} (or the quota is used up)",
        hint=f"make room and do it again: df -h {shlex.quote(str(path.parent))}",
    )


# --- space ----------------------------------------------------------------------------------------


def free_bytes(path: Path) -> int | None:
    """Return what this user may still write beside a path, or None where that is unknown."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, AttributeError):
            return None
        # Some FUSE file systems report no blocks at all.
        return found.f_bavail * found.f_frsize if found.f_blocks else None
    return None


def no_files_left(path: Path) -> bool:
    """Say whether the file system takes no new file, however small."""
    try:
        found = os.statvfs(path if path.is_dir() else path.parent)
    except (OSError, AttributeError):
        return False
    return found.f_files > 0 and found.f_favail == 0  # some count no files at all


def check_space(path: Path, need: int) -> None:
    """Refuse before the first byte what can't fit.

    Raises:
        NoSpaceError: fewer than `need` and a margin are free.
    """
    free = free_bytes(path)
    if free is not None and free < need + SPARE_BYTES:
        raise no_space("write", path, need + SPARE_BYTES)


# --- folders --------------------------------------------------------------------------------------


def open_folder(path: Path, *below: str) -> int:
    """Return a descriptor of a folder; `path` may be a symlink, the names below it may not.

    Raises:
        OSError: it is missing, or no folder.
    """
    fd = os.open(path, _FOLDER)
    for name in below:
        try:
            inner = os.open(name, _FOLDER | NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


@contextmanager
def folder(path: Path, *below: str) -> Iterator[int]:
    """Hold a folder's descriptor. Errors of opening it are translated, not the block's."""
    with translated("open the folder", path.joinpath(*below)):
        fd = open_folder(path, *below)
    try:
        yield fd
    finally:
        os.close(fd)


def is_shared(root: Path) -> bool:
    """Say whether a registry's folder is shared with its group: its mode is what decides."""
    with translated("look at", root):
        return bool(os.stat(root).st_mode & stat.S_IWGRP)


def make_folder(name: str, dir_fd: int, *, shared: bool) -> bool:
    """Make a folder, a shared one 2775 whatever the umask, and say whether it was not there yet."""
    try:
        os.mkdir(name, dir_fd=dir_fd)
    except FileExistsError:
        return False
    if shared:
        os.chmod(name, SHARED_FOLDER, dir_fd=dir_fd)
    return True


def kind_of(mode: int) -> str:
    """Name what a mode says a file is: `a folder`, `a FIFO`, `a device`."""
    named = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symlink",
        stat.S_IFREG: "a file",
    }
    return named.get(stat.S_IFMT(mode), "a special file")


# --- bytes ----------------------------------------------------------------------------------------


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write every byte: a write may take fewer than it was given, and never more than 2 GiB."""
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from a place in a file, and return the bytes that came: fewer at its end."""
    filled = 0
    while filled < len(buffer):
        if hasattr(os, "preadv"):
            got = os.preadv(fd, [buffer[filled:]], offset + filled)
        else:  # macOS before 11
            piece = os.pread(fd, len(buffer) - filled, offset + filled)
            got = len(piece)
            buffer[filled : filled + got] = piece
        if got == 0:
            break
        filled += got
    return filled


def read_small(name: str, dir_fd: int, limit: int) -> bytes:
    """Return a small regular file whole.

    Raises:
        OSError: it is missing, a symlink, no regular file (EINVAL), or larger than `limit` (EFBIG).
    """
    fd = os.open(name, os.O_RDONLY | NOFOLLOW | NONBLOCK, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if found.st_size > limit:
            raise OSError(errno.EFBIG, "too large")
        data = bytearray(limit + 1)
        return bytes(data[: read_into(fd, memoryview(data), 0)])
    finally:
        os.close(fd)


# --- durability and locks -------------------------------------------------------------------------


def sync_file(fd: int) -> None:
    """Put a file's bytes on the medium. A failure is final: the kernel may have dropped the pages,
    and a second fsync would report a success that isn't one (fsyncgate, 2018)."""
    if sys.platform == "darwin":  # fsync there doesn't empty the drive's cache
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (*_UNSUPPORTED, errno.ENOTTY):
                raise
    os.fsync(fd)


def sync_folder(fd: int) -> None:
    """Put a folder's names on the medium, where its file system can."""
    try:
        sync_file(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some FUSE and CIFS mounts sync names by themselves
            raise


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file without waiting, and say whether it was free.

    Raises:
        OSError: this file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(fd: int) -> None:
    """Take the exclusive lock of an open file, once it is free; without locks here, at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def unlock(fd: int) -> None:
    """Let go of an open file's lock."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def unlink_quietly(name: str, dir_fd: int) -> None:
    """Remove a name on the way out of a failure, which must not be hidden by another one."""
    with suppress(OSError):
        os.unlink(name, dir_fd=dir_fd)
