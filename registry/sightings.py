"""Sightings: what the files of a tree were when an import last looked at them.

Law: a file is taken for the one seen before only if device, inode, size, both times of change and
the probe are the same, and both times lay well before that look: what changes within one tick of
the clock leaves no trace in them (git's "racily clean"). It is a cache: losing it loses time.
Knows nothing of what is live in the registry.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .blobs import probe_of
from .values import canonical_json, digest_of
from .walking import Scan, Stamp, stamp_of

MARGIN_NS: Final = 2_000_000_000
"""How old a change must be: FAT counts in two seconds, ext4 and XFS in a tick of the kernel."""

_FORMAT: Final = 1
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file or a folder was found to be.

    Attributes:
        digests: of the files of the checkpoint that it is; empty: it is none.
        members: of a folder, all files in it and below, by their paths inside the tree.
        covered: of those, the files that belong to the checkpoint.
    """

    digests: Sequence[str] = ()
    members: Sequence[str] = ()
    covered: Sequence[str] = ()


@dataclass(slots=True)
class Sightings:
    """What is remembered of one tree.

    Attributes:
        path: the file that keeps it.
        key: whose tree it is, where, and what was asked of it.
        order: the candidates of the tree, in the order in which they are taken in.
        names: the files from which that order was made.
        files: of each file that may be known again, its stamp and its probe.
    """

    path: Path
    key: list[object]
    order: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    files: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, root: Path, asked: Iterable[object]) -> Sightings:
        """Return what is remembered of a tree: nothing, where it can't be read or isn't whole.

        Args:
            folder: where such files are kept.
            asked: all else on which a verdict depends.
        """
        who = os.getuid() if hasattr(os, "getuid") else None
        host = os.uname().nodename if hasattr(os, "uname") else None
        key = [_FORMAT, host, who, os.path.realpath(root), *asked]
        self = cls(folder / f"{digest_of(key).removeprefix('blake3:')[:32]}.json", key)
        try:
            seal, _, text = self.path.read_text("ascii").partition("\n")
            if seal == digest_of(text):
                self._read(json.loads(text))
        except (OSError, ValueError):
            pass  # none yet, or somebody else's, or cut short: all is looked at again
        return self

    def _read(self, plain: Mapping[str, Any]) -> None:
        if plain["key"] != self.key:
            return
        self.order, self.names = plain["order"], set(plain["names"])
        self.files = {name: (tuple(stamp), probe) for name, stamp, probe in plain["files"]}
        self.verdicts = {name: Verdict(*verdict) for name, *verdict in plain["verdicts"]}

    def orders(self, scan: Scan) -> bool:
        """Say whether the order of then is that of what lies there now."""
        return self.names == scan.files.keys() and bool(self.order)

    def is_known(self, scan: Scan, name: str) -> bool:
        """Say whether a file is the one seen before; its probe is read."""
        seen = self.files.get(name)
        if seen is None or seen[0] != scan.files.get(name):
            return False
        try:
            fd = os.open(scan.base + name, _FLAGS)
            try:
                return _probe(fd, seen[0][2]) == seen[1]
            finally:
                os.close(fd)
        except OSError:
            return False  # whoever looks again says why

    def see(self, scan: Scan, name: str, before_ns: int) -> bool:
        """Remember a file that was read since a scan, if it could be told from a changed one.

        Args:
            before_ns: the clock before the scan.
        """
        stamp = scan.files[name]
        if max(stamp[3:]) >= before_ns - MARGIN_NS:
            return False
        try:
            fd = os.open(scan.base + name, _FLAGS)
            try:
                probe = _probe(fd, stamp[2])
                if stamp_of(os.fstat(fd)) != stamp:
                    return False  # it changed since
            finally:
                os.close(fd)
        except OSError:
            return False
        self.files[name] = (stamp, probe)
        return True

    def write(self) -> None:
        """Keep it; where that can't be, the next import looks at all again."""
        text = canonical_json(
            {
                "key": self.key, "order": self.order, "names": sorted(self.names),
                "files": [[name, *entry] for name, entry in self.files.items()],
                "verdicts": [
                    [name, v.digests, v.members, v.covered] for name, v in self.verdicts.items()
                ],
            }
        )  # fmt: skip
        part = self.path.with_name(f"{self.path.name}.part")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Names of a user's own files: nobody else's, though the registry be shared.
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(f"{digest_of(text)}\n{text}".encode("ascii"))
            part.replace(self.path)


def _probe(fd: int, size: int) -> str:
    return probe_of(size, lambda offset, length: os.pread(fd, length, offset))
