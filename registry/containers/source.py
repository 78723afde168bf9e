"""Where a container's bytes come from: positions in one open file, in the store or anywhere else.

Law: a read gives exactly the bytes asked for, or says that the file is shorter; it moves no file
position, so that one descriptor can be hashed and read at once. Knows nothing of formats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from ..errors import CkregError, DamagedError


class ByteSource(Protocol):
    """Bytes that can be read by position; what `blobs/` and a plain file both are."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            DamagedError: the file ends before that.
        """
        ...


class FileSource:
    """The bytes behind a descriptor that the caller owns, and closes.

    Args:
        fd: a descriptor open for reading.
        name: how to call the file in errors.
    """

    __slots__ = ("_fd", "_name", "_size")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """The file's size when this was made."""
        return self._size

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            DamagedError: the file ends before that.
            CkregError: the system can't read it.
        """
        if offset < 0 or size < 0 or offset + size > self._size:
            raise DamagedError(
                f"{self._name!r} is cut short: bytes {offset} to {offset + size} are needed, "
                f"and it has {self._size}"
            )
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:  # the kernel gives at most 2 GiB a call
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise DamagedError(f"{self._name!r} became shorter while it was read")
                data += more
        except OSError as error:
            raise CkregError(f"can't read {self._name!r}: {error.strerror}") from error
        return data


class Slice:
    """A part of another source, as a source of its own.

    Args:
        whole: what it is a part of.
        offset, size: where the part lies; it must lie inside.
        name: how to call the part in errors.
    """

    __slots__ = ("_name", "_offset", "_size", "_whole")

    def __init__(self, whole: ByteSource, offset: int, size: int, name: str) -> None:
        if offset < 0 or size < 0 or offset + size > whole.size:
            raise ValueError(f"bytes {offset} to {offset + size} of {whole.size} are no part")
        self._whole, self._offset, self._size, self._name = whole, offset, size, name

    @property
    def size(self) -> int:
        """The part's size."""
        return self._size

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` of the part on.

        Raises:
            DamagedError: the part ends before that.
        """
        if offset < 0 or size < 0 or offset + size > self._size:
            raise DamagedError(
                f"{self._name!r} is cut short: bytes {offset} to {offset + size} are needed, "
                f"and it has {self._size}"
            )
        return self._whole.pread(self._offset + offset, size)


Sources = ByteSource | Mapping[str, ByteSource]
"""The bytes of a checkpoint: of its one file, or of its files by name."""


def source_of(sources: Sources, file: str) -> ByteSource:
    """Return the bytes of one of a checkpoint's files; of the only one, whatever its name."""
    return sources[file] if isinstance(sources, Mapping) else sources
