"""The value that names one stored file: its digest, its size and the fresh name it was given.

Law: a Blob that exists is well-formed, so its name can be joined to a folder without a second look.
Knows nothing of files.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from ..values import Digest, count, digest

_NAME: Final = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Blob:
    """One immutable file of a store.

    Attributes:
        digest: BLAKE3 of its bytes.
        size_bytes: how many there are.
        name: `ab/cdef….1f2e3d4c`: the digest's digits, and eight random ones chosen at upload.
    """

    digest: Digest
    size_bytes: int
    name: str

    def __post_init__(self) -> None:
        digest(self.digest)
        count(self.size_bytes, "size_bytes")
        match = _NAME.fullmatch(self.name)
        if match is None or match[1] + match[2] != self.digest.removeprefix("blake3:"):
            raise ValueError(f"{self.name!r} is no name of a blob with the digest {self.digest}")

    @property
    def folder(self) -> str:
        """The first two digits: the folder in blobs/."""
        return self.name[:2]

    @property
    def file(self) -> str:
        """The name in that folder."""
        return self.name[3:]


def fresh(found: Digest, size_bytes: int) -> Blob:
    """Return a blob with a name that was never used, so that there is nothing to clobber."""
    digits = found.removeprefix("blake3:")
    return Blob(found, size_bytes, f"{digits[:2]}/{digits[2:]}.{secrets.token_hex(4)}")
