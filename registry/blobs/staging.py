"""Files that are being written: fresh, locked, hashed behind the writer, in nobody's sight yet.

Law: a staged file has its final name only when all its bytes are on the medium and hashed; on any
way out before that, an interrupt too, its temporary name is gone. A killed writer's file is
unlocked, and the next `sweep` takes it. Must not know what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..errors import CkregError
from ..values import Digest
from .disk import (
    NOFOLLOW,
    NONBLOCK,
    folder,
    open_folder,
    read_into,
    sync_file,
    translate,
    translated,
    try_lock,
    unlink_quietly,
    write_all,
)
from .following import Trail, Writeback
from .reading import STEP, FileBytes, Progress

TEMPORARY: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BESIDE: Final = re.compile(r"\.ckreg-[0-9a-f]{16}\.part")
_BUFFER: Final = 4 << 20
_SMALL: Final = 64 << 10
"""Writes below this are joined: a serialiser makes five small ones for every tensor."""

MARKED: Final = 4 << 10
"""Writes from this on get a digest of their own, since they may be a storage's bytes; what is
smaller is read again where it is one."""

_WORTH_A_THREAD: Final = 1 << 20

# What copy_file_range says where it can't: other file system, old kernel, special file, seccomp.
_NO_KERNEL_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
)


class Staged:
    """A file that is being written, a context manager.

    It is file-like enough for `torch.save`. A serialiser may bury the error of a failed `write`
    under one of its own (torch 2.13 raises `unexpected pos`): the first one is raised again by all
    that follows, and by the end of the `with` block.

    Attributes:
        path: where it is now.
        size: bytes written so far; the last of them may still wait to be joined by more.
        fd, folder: its descriptor and that of its folder, open until the block ends.
    """

    def __init__(
        self,
        place: Path,
        *below: str,
        name: str | None = None,
        mode: int = 0o600,
        exact: bool = False,
        hurry: bool = True,
    ) -> None:
        """Make the file.

        Args:
            place: the folder; or one above it, with the names `below`, none a symlink.
            name: its temporary name there; a fresh one that `sweep` knows, by default.
            mode: permissions, before the umask.
            exact: permissions whatever the umask.
            hurry: begin to put it on the medium while it is written; not what only passes through.

        Raises:
            NotWritableError, NoSpaceError, NotFoundError: it can't be made there.
        """
        self.size = 0
        self._digest: Digest | None = None
        self._failure: BaseException | None = None
        self._temporary = True
        self._waiting = bytearray()
        with translated("write in", place.joinpath(*below)):
            self.folder = open_folder(place, *below)
        place = place.joinpath(*below)
        try:
            self.name, self.fd = self._make(place, name, mode, exact)
        except BaseException:
            os.close(self.folder)
            raise
        self.path = place / self.name
        self._hurry = hurry and hasattr(os, "fdatasync")  # macOS has none
        self._trail = Trail(self.fd)
        self._writeback = Writeback(self.fd)

    def _make(self, place: Path, name: str | None, mode: int, exact: bool) -> tuple[str, int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW
        while True:
            chosen = name or str(uuid.uuid4())
            with translated("write in", place):
                fd = os.open(chosen, flags, mode, dir_fd=self.folder)
            try:
                # A sweep may come between the open and the lock: it has the file, take another.
                with translated("write in", place):
                    if exact:
                        os.fchmod(fd, mode)
                    ours = _lock_if_possible(fd) and os.fstat(fd).st_nlink > 0
                if ours:
                    return chosen, fd
                os.close(fd)
            except BaseException:
                unlink_quietly(chosen, self.folder)
                os.close(fd)
                raise

    # --- writing ------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append all of the data, and return how many bytes that was.

        Raises:
            NoSpaceError: the disk or the quota is full.
            CkregError: the disk failed. A file that failed once takes nothing more.
        """
        self._check_open()
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size >= MARKED:
            self._trail.mark(self.size, size)
        if size < _SMALL and len(self._waiting) < _BUFFER:
            self._waiting += data
            self.size += size
            return size
        with (
            self._final_failure(),
            memoryview(data) as given,
            given.cast("B") as view,
        ):
            self._drain()
            for start in range(0, size, _BUFFER):
                with view[start : start + _BUFFER] as piece:
                    self._append(piece)
        return size

    def flush(self) -> None:
        """Do nothing: `finish` and `sync` write what waits. Serialisers call it often."""

    def _drain(self) -> None:
        """Write what waits."""
        if self._waiting:
            waiting, self._waiting = self._waiting, bytearray()
            self.size -= len(waiting)
            with memoryview(waiting) as view:
                self._append(view)

    @contextmanager
    def _final_failure(self) -> Iterator[None]:
        """Keep an error of the block: nothing can be done with the file after it."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def copy(
        self,
        source: FileBytes,
        *,
        storages: Iterable[tuple[int, int]] = (),
        progress: Progress | None = None,
    ) -> int:
        """Append a whole file, and return its bytes: fewer than its size if it got shorter.

        The kernel copies where it can: on file systems that share blocks no byte moves at all.

        Args:
            storages: (offset, size) of what in it is to have a digest of its own; see `pieces`.

        Raises:
            NoSpaceError, CkregError: as `write`.
        """
        self._check_open()
        with self._final_failure():
            self._drain()
            for offset, size in storages:
                if size >= MARKED:
                    self._trail.mark(self.size + offset, size)
            return self._copy(source, progress)

    def _copy(self, source: FileBytes, progress: Progress | None) -> int:
        done, total = 0, source.size
        for piece in source.pieces() or ():
            self._append(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
        by_kernel = hasattr(os, "copy_file_range")
        buffer = memoryview(b"")
        while done < total:
            step = min(STEP, total - done)
            got = self._kernel_copy(source, done, step) if by_kernel else 0
            if not got:
                # It says nothing by error or by 0: at the end of the file, and for files that it
                # can't read (kernels before 5.19 and /proc). A plain read tells these apart.
                by_kernel = False
                buffer = buffer or memoryview(bytearray(min(_BUFFER, total)))
                step = min(len(buffer), step)
                with translated("read", source.path):
                    got = read_into(source.fd, buffer[:step], done)
                self._append(buffer[:got])
                if got < step:
                    return done + got
            done += got
            if progress is not None:
                progress(done, total)
        return done

    def _kernel_copy(self, source: FileBytes, offset: int, size: int) -> int:
        try:
            got = os.copy_file_range(source.fd, self.fd, size, offset, self.size)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                return 0
            raise translate(error, f"copy {str(source.path)!r} to", self.path, need=size) from error
        self._grown(got)
        return got

    def _append(self, data: memoryview) -> None:
        with translated("write", self.path, need=len(data)):
            write_all(self.fd, data, self.size)
        self._grown(len(data))

    def _grown(self, by: int) -> None:
        self.size += by
        with translated("read back", self.path):
            self._trail.advance(self.size)
        if self._hurry:
            with translated("put on the disk", self.path, need=self.size):
                self._writeback.advance(self.size)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.fd < 0 or self._digest is not None:
            raise ValueError("a staged file takes no bytes after finish()")

    # --- the end of writing -------------------------------------------------------------------

    def finish(self) -> Digest:
        """Wait for the hash, and return the digest of what is stored. Nothing can be written after.

        Raises:
            CkregError: the file can't be read back, or a write failed before.
        """
        if self._failure is not None:
            raise self._failure
        if self._digest is None:
            if self.fd < 0:
                raise ValueError("this staged file is closed")
            with self._final_failure():
                self._drain()
                if self._hurry and self.size >= _WORTH_A_THREAD:
                    # The medium works while others read the file back.
                    self._writeback.hurry()
            with translated("read back", self.path):
                self._digest = self._trail.digest()
        return self._digest

    @property
    def pieces(self) -> Mapping[tuple[int, int], Digest]:
        """The digests of large pieces that were written, by (offset, size), once it is finished."""
        return self._trail.pieces

    def source(self) -> FileBytes:
        """Return the bytes as they are stored, to be read while the `with` block lasts."""
        return FileBytes(self.fd, self.path, self.size)

    def sync(self) -> None:
        """Put the bytes on the medium. A failure is final: nothing more can be done with the file.

        Raises:
            CkregError, NoSpaceError: they could not be put there.
        """
        if self._failure is not None:
            raise self._failure
        with self._final_failure():
            self._drain()
            self._writeback.stop()
            with translated("put on the disk", self.path, need=self.size):
                self._writeback.check()
                sync_file(self.fd)

    def rename(self, place: Path, name: str, *, dir_fd: int) -> None:
        """Give the file its final name in the folder `place`, which is open as `dir_fd`."""
        if not self._temporary:
            raise ValueError(f"{str(self.path)!r} has its final name already")
        with translated("rename a file to", place / name):
            os.rename(self.name, name, src_dir_fd=self.folder, dst_dir_fd=dir_fd)
        self._temporary = False
        self.path = place / name

    def link(self, name: str, *, dir_fd: int) -> None:
        """Give the file another name in an open folder, unless that name is taken.

        Raises:
            FileExistsError: it is taken.
            OSError: there are no links here.
        """
        os.link(
            self.name,
            name,
            src_dir_fd=self.folder,
            dst_dir_fd=dir_fd,
            follow_symlinks=False,
        )

    def keep(self) -> Path:
        """Keep the file past the block, where no sweep takes it, and return its path.

        For bytes that are whole but whose row could not be had. A published file stays where it is:
        a commit whose answer was lost may refer to it.
        """
        if self._temporary:
            self.sync()
            kept = f"kept-{self.name}"
            self.rename(self.path.parent, kept, dir_fd=self.folder)
        return self.path

    def discard(self) -> None:
        """Close, and remove the temporary name if the file still has it."""
        if self.fd < 0:
            return
        self._trail.stop()  # before the close: the number could be another file's a moment later
        self._writeback.stop()
        if self._temporary:
            unlink_quietly(self.name, self.folder)
        fd, self.fd = self.fd, -1
        os.close(fd)
        os.close(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()
        buried = self._failure is not None and error is not None and error is not self._failure
        if buried and not isinstance(error, KeyboardInterrupt | CkregError):
            assert self._failure is not None
            raise self._failure from error


def _lock_if_possible(fd: int) -> bool:
    try:
        return try_lock(fd)
    except OSError:
        return True  # no locks here: then no sweep can lock the file either, and it leaves it alone


def sweep(place: Path, *below: str) -> int:
    """Remove the temporary files whose writers are gone, and return how many.

    A file is a writer's as long as it is locked. Names that no writer makes are left alone.
    """
    return _sweep(place.joinpath(*below), TEMPORARY, place, *below)


def _sweep(named: Path, pattern: re.Pattern[str], place: Path, *below: str) -> int:
    removed = 0
    with folder(place, *below) as dir_fd:
        with translated("list", named):
            names = [name for name in os.listdir(dir_fd) if pattern.fullmatch(name)]
        for name in names:
            with suppress(OSError):  # another sweep was faster, or it may not be ours to remove
                removed += _sweep_one(name, dir_fd)
    return removed


def _sweep_one(name: str, dir_fd: int) -> bool:
    try:
        fd = os.open(name, os.O_RDWR | NOFOLLOW | NONBLOCK, dir_fd=dir_fd)  # NFS locks only these
    except (IsADirectoryError, PermissionError):  # a folder; or protected already, then killed
        fd = os.open(name, os.O_RDONLY | NOFOLLOW | NONBLOCK, dir_fd=dir_fd)
    try:
        if not try_lock(fd):
            return False
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            shutil.rmtree(name, dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)
        return True
    finally:
        os.close(fd)


# --- beside a destination -------------------------------------------------------------------------


def name_beside(parent: Path) -> str:
    """Return a fresh temporary name for a destination's folder, once killed writers' are swept.

    It is short: the destination's own name may be as long as names can be.
    """
    with suppress(CkregError):  # a folder may be writable and not readable
        _sweep(parent, _BESIDE, parent)
    return f".ckreg-{secrets.token_hex(8)}.part"


@contextmanager
def folder_beside(parent: Path) -> Iterator[Path]:
    """Make a folder, locked as a staged file is; it is gone afterwards unless it was renamed."""
    made = parent / name_beside(parent)
    with translated("write in", parent):
        os.mkdir(made)
    try:
        with folder(made) as fd:
            _lock_if_possible(fd)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
