"""BLAKE3, as fast as the machine allows, with digests as ckreg writes them.

Must not use a thread pool of the whole process: a child made by fork would wait for it forever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ..values import Digest

if TYPE_CHECKING:
    from blake3 import blake3

WORTH_THREADS: Final = 512 << 10
"""From here on bytes are hashed faster by several threads, if these need not be started first."""

_WORTH_STARTING: Final = 4 << 20


def hasher(size: int) -> blake3:
    """Return a hasher fit for so many bytes; it owns its threads, if it has any."""
    from blake3 import blake3

    return blake3(max_threads=_cores() if size >= _WORTH_STARTING else 1)


def digest_at_once(data: bytes) -> Digest:
    """Return the digest of bytes that are all there."""
    from blake3 import blake3

    return Digest("blake3:" + blake3(data).hexdigest())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def digest_in(found: blake3) -> Digest:
    """Return a hasher's digest."""
    return Digest("blake3:" + found.hexdigest())
