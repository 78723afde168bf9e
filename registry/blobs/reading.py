"""Open files: a blob, a file that is being staged, a file that is to be pushed.

Law: all that is read, hashed and mapped comes through one descriptor, so that what was verified is
what is used, whatever happens to the path. Knows nothing of containers.
"""

from __future__ import annotations

import mmap
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ..errors import ConflictError, ContainerError, DamagedError, NotFoundError, NotWritableError
from ..values import Digest
from .blob import Blob
from .disk import NONBLOCK, kind_of, read_into, translate, translated
from .hashing import digest_at_once, digest_in, hasher

if TYPE_CHECKING:
    from .ranges import Index

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Total:
    """Progress over several files or parts, shown as one.

    Args:
        total: the bytes in all.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._before = 0

    def next(self, size: int) -> Progress | None:
        """Return the progress of the next part, of so many bytes."""
        shown, before = self._progress, self._before
        self._before += size
        if shown is None:
            return None
        return lambda done, _: shown(before + done, self._total)


STEP: Final = 16 << 20
"""Bytes between two calls of a Progress."""

_PROBE: Final = 64 << 10


def probe_of(size: int, pread: Callable[[int, int], bytes]) -> Digest:
    """Return the digest of size, first and last 64 KiB: unequal ones prove unequal files.

    Args:
        pread: reads at an offset so many bytes; what it raises is raised.
    """
    edge = min(_PROBE, size)
    head = pread(0, edge)
    tail = head if edge == size else pread(size - edge, edge)
    # At once: small updates leave BLAKE3's lanes empty, and take twice as long.
    return digest_at_once(size.to_bytes(8, "little") + head + tail)


class FileBytes:
    """The bytes behind one descriptor, which belongs to whoever opened it.

    Attributes:
        fd: the descriptor.
        path: what to call it in messages; it is never opened again.
        size: its bytes when it was opened.
    """

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self.fd = fd
        self.path = path
        self.size = size

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            DamagedError: the file ends before them.
        """
        try:
            data = os.pread(self.fd, size, offset)
            if len(data) == size:
                return data
            whole = bytearray(size)  # past 2 GiB, or cut short by a signal
            got = read_into(self.fd, memoryview(whole), offset)
        except OSError as error:
            raise translate(error, "read", self.path) from error
        if got < size:
            raise self._short(offset, size, got)
        return bytes(whole)

    @property
    def shown(self) -> str:
        """What to call it in messages."""
        return str(self.path)

    @property
    def lies_elsewhere(self) -> bool:
        """Whether its bytes are brought in as they are asked for."""
        return False

    def fetch(self, parts: Sequence[tuple[int, int]]) -> None:
        """Say that some (offset, size) will be read: what lies elsewhere is brought in at once."""

    def forget(self) -> None:
        """Let go of a copy of bytes that lie elsewhere, since it proved wrong."""

    def pieces(self) -> Iterator[memoryview] | None:
        """Return all bytes in order where that is the only way to them; None for a file that the
        kernel reads.
        """
        return None

    def map(self, parts: Sequence[tuple[int, int]] | None = None) -> mmap.mmap:
        """Return a private mapping of the whole file: what is written to it never reaches the file.

        Args:
            parts: the (offset, size) that will be read of it, by default all: the rest is not
                there where the bytes lie elsewhere.

        Raises:
            DamagedError: the file is empty, or shorter than it was.
        """
        if self.size == 0:
            raise DamagedError(f"{self.shown!r} is empty")
        self.fetch([(0, self.size)] if parts is None else parts)
        try:
            return mmap.mmap(self.fd, self.size, access=mmap.ACCESS_COPY)
        except ValueError as error:
            raise self._short(0, self.size, os.fstat(self.fd).st_size) from error
        except OSError as error:
            raise translate(error, "map", self.path) from error

    def hash(
        self,
        offset: int = 0,
        size: int | None = None,
        *,
        mapping: mmap.mmap | None = None,
        progress: Progress | None = None,
    ) -> Digest:
        """Return the digest of a range, by default of the whole file.

        Args:
            mapping: a mapping of this file: hashed instead of the file, so that what is hashed is
                what is used next, with its pages already there.

        Raises:
            DamagedError: the file ends before the range does.
        """
        size = self.size - offset if size is None else size
        found = hasher(size)
        done = 0
        buffer = memoryview(b"" if mapping is not None else bytearray(min(STEP, size)))
        while done < size:
            step = min(STEP, size - done)
            if mapping is not None:
                with (
                    memoryview(mapping) as view,
                    view[offset + done : offset + done + step] as part,
                ):
                    got = len(part)
                    found.update(part)
            else:
                with translated("read", self.path):
                    got = read_into(self.fd, buffer[:step], offset + done)
                found.update(buffer[:got])
            if got < step:
                raise self._short(offset, size, done + got)
            done += step
            if progress is not None:
                progress(done, size)
        return digest_in(found)

    def probe(self) -> Digest:
        """Return the digest of size, first and last 64 KiB; see `probe_of`."""
        return probe_of(self.size, self.pread)

    def close(self) -> None:
        """Close the descriptor; mappings made before stay valid."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _short(self, offset: int, size: int, got: int) -> DamagedError:
        return DamagedError(
            f"{self.shown!r} is cut short: {size} bytes from {offset} on were wanted, "
            f"{got} are there"
        )


class BlobFile(FileBytes):
    """An open blob."""

    def __init__(self, fd: int, path: Path, blob: Blob) -> None:
        super().__init__(fd, path, blob.size_bytes)
        self.blob = blob

    def use(self, find: Callable[[], Index | None]) -> None:
        """Say how the file's index is found: a file on this machine needs none to be read."""

    def is_whole(self) -> bool:
        """Say whether the store's bytes are those that were stored, as far as it can't lie: a
        folder's are read, a server's were compared with their digests when it took them.
        """
        try:
            self.verify()
        except DamagedError:
            return False
        return True

    def verify(self, *, mapping: mmap.mmap | None = None, progress: Progress | None = None) -> None:
        """See that the bytes are those that were stored.

        Args:
            mapping: a mapping of this blob, to be hashed in place of the file.

        Raises:
            DamagedError: they are not.
        """
        found = self.hash(mapping=mapping, progress=progress)
        if found != self.blob.digest:
            self.forget()
            raise damaged(self.blob, self.shown, f"its bytes have the digest {found}")


def damaged(blob: Blob, place: str, what: str) -> DamagedError:
    """Return the error for a blob whose file isn't what was stored."""
    return DamagedError(
        f"the blob {blob.digest} is damaged: {what} ({place!r})",
        hint=f"put a good copy in its place from a backup: {copy_back(place)}",
    )


_COPIERS: Final = {"s3": "aws s3 cp", "gs": "gcloud storage cp", "az": "azcopy copy"}


def copy_back(place: str) -> str:
    """Return the command that brings a store's file back from a backup."""
    return f"{_COPIERS.get(place.partition('://')[0], 'cp')} BACKUP {shlex.quote(place)}"


class SourceFile(FileBytes):
    """A file of the user's that is to be read once, and must not change meanwhile."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a regular file, once for all that follows.

        Raises:
            NotFoundError: there is none.
            ContainerError: it is a folder, a FIFO, a device, …
            NotWritableError: it can't be read.
        """
        try:
            fd = os.open(path, os.O_RDONLY | NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"there is no file {str(path)!r}") from error
        except PermissionError as error:
            raise NotWritableError(
                f"{str(path)!r} can't be read: permission denied",
                hint=f"see who may: ls -l {shlex.quote(str(path))}",
            ) from error
        except OSError as error:
            raise translate(error, "read", path) from error
        try:
            with translated("look at", path):
                found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise ContainerError(
                    f"{str(path)!r} is a folder, not a file",
                    hint=f"look what is in it: ls {shlex.quote(str(path))}",
                )
            if not stat.S_ISREG(found.st_mode):
                raise ContainerError(f"{str(path)!r} is {kind_of(found.st_mode)}, not a file")
            return cls(fd, path, found)
        except BaseException:
            os.close(fd)
            raise

    def __init__(self, fd: int, path: Path, found: os.stat_result) -> None:
        super().__init__(fd, path, found.st_size)
        self._stamp = _stamp(found)

    def check_unchanged(self) -> None:
        """Refuse bytes that were read while somebody wrote.

        Raises:
            ConflictError: size or time of change are not those of the opening.
        """
        with translated("look at", self.path):
            found = os.fstat(self.fd)
        if _stamp(found) != self._stamp:
            raise ConflictError(
                f"{str(self.path)!r} changed while it was being read: its writer isn't done",
                hint="do it again when the file is complete",
            )


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
