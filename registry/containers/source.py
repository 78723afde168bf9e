"""Where a container's bytes come from: positions in one open file, in the store or anywhere else.

Law: a read gives exactly the bytes asked for, or says that the file is shorter; it moves no file
position, so that one descriptor can be hashed and read at once. Knows nothing of formats.
"""

from __future__ import annotations

import os
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
