"""Walking a tree for what may be checkpoints: files, told by their content and never by a suffix,
and folders that are one checkpoint, told by their files' names.

Law: no symlink is followed: what one points at inside the tree is found there itself, and what lies
outside stays outside. A registry in the tree, and git's own store, are not looked into.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from .containers import ByteSource, recognise, sniff
from .errors import NotFoundError
from .filenames import SUFFIXES, suggested

_PRIVATE: Final = frozenset({".git"})
_STORE: Final = frozenset({"store.json", "registry.db"})  # a registry's own folder holds both

_NO_CHECKPOINT: Final = frozenset({"json", "text", "npz", "npy", "zip", "unknown"})
"""Kinds of file that are something else, whatever their name."""

_LOST: Final = frozenset(
    {"empty", "zeros", "html", "git-lfs-pointer", "tar", "gzip", "bzip2", "xz", "zstd", "7z",
     "hdf5", "pickle"}
)  # fmt: skip
"""Kinds of file that are a checkpoint gone wrong, or packed, if they are named like one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file or a folder to look into.

    Attributes:
        path: where it is.
        name: its path inside the tree, with `/`; "." is the tree itself.
        size_bytes: as the folder says.
        files: of a folder, all files in it and below, by relative path; None for a file.
    """

    path: Path
    name: str
    size_bytes: int
    files: frozenset[str] | None = None

    def members(self) -> frozenset[str]:
        """Return the file, or the folder's files, by their paths inside the tree."""
        if self.files is None:
            return frozenset({self.name})
        place = "" if self.name == "." else f"{self.name}/"
        return frozenset(place + name for name in self.files)


Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of bytes and of the inode, in ns."""


def stamp_of(found: os.stat_result) -> Stamp:
    """Return what tells a file from another, and from itself when it has changed."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(slots=True)
class Scan:
    """What lies in a tree.

    Attributes:
        base: the tree, with a `/` at its end.
        files: the stamp of each regular file, by its path inside the tree.
        odd: what is neither such a file nor a folder that was looked into.
    """

    base: str
    files: dict[str, Stamp] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)


def scan(root: Path, unreadable: Callable[[str, OSError], None]) -> Scan:
    """Return the regular files of a tree.

    Args:
        unreadable: told of each folder or file that the system doesn't let us see.

    Raises:
        NotFoundError: the root is no folder.
    """
    if not root.is_dir():
        what = "a file: take it in with ckreg push" if root.exists() else "not there"
        raise NotFoundError(f"{str(root)!r} is no folder to import: it is {what}")
    found = Scan(os.path.join(root, ""))
    files = found.files
    pending = [""]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(found.base + place) as entries:
                here = list(entries)
        except OSError as error:
            unreadable(place[:-1] or ".", error)
            found.odd.add(place[:-1] or ".")
            continue
        if {entry.name for entry in here} >= _STORE:
            found.odd.add(place[:-1] or ".")
            continue
        for entry in here:
            name = place + entry.name
            try:
                if entry.is_file(follow_symlinks=False):
                    files[name] = stamp_of(entry.stat(follow_symlinks=False))
                elif not entry.is_dir(follow_symlinks=False):
                    found.odd.add(name)
                elif entry.name not in _PRIVATE:
                    pending.append(f"{name}/")
            except OSError as error:
                unreadable(name, error)
                found.odd.add(name)
    return found


def candidates(root: Path, files: Mapping[str, Stamp]) -> list[Candidate]:
    """Return the files of a tree, and its folders that may be one checkpoint, in the order in which
    they are to be taken in, which their names alone decide.

    What lies in one folder goes by epoch and step, as far as names say, so that versions do; those
    whose names say neither (`best.pt`, which often is a copy) come last. A folder comes before what
    lies in it.
    """
    found = [Candidate(root / name, name, stamp[2]) for name, stamp in files.items()]
    return sorted([*found, *_folders(root, found)], key=_order)


def _folders(root: Path, files: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield the folders that their files' names say to be one checkpoint."""
    below: dict[str, dict[str, int]] = {}
    for file in files:
        parts = file.name.split("/")
        for depth in range(len(parts)):
            place = "/".join(parts[:depth]) or "."
            below.setdefault(place, {})["/".join(parts[depth:])] = file.size_bytes
    for place, names in below.items():
        kind = recognise(names.keys())
        # DeepSpeed's saves lie in folders of their own; without `latest` each stands for itself.
        if kind == "deepspeed-zero" and "latest" not in names:
            kind = kind if any("/" not in n and n.endswith("_states.pt") for n in names) else None
        if kind is not None:
            yield Candidate(root / place, place, sum(names.values()), frozenset(names))


def _order(candidate: Candidate) -> tuple[object, ...]:
    path = PurePosixPath(candidate.name)
    said = suggested([path.name])
    return (
        candidate.name != ".",
        _natural(path.parent.as_posix()),
        said.epoch is None and said.step is None,
        -1 if said.epoch is None else said.epoch,
        -1 if said.step is None else said.step,
        _natural(path.name),
    )


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Return what sorts numbers in a text as numbers: `v9` before `v10`."""
    parts: Sequence[str] = re.split(r"(\d+)", text)
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts if p]


def is_candidate(source: ByteSource, name: str) -> bool:
    """Say whether a file is a checkpoint, or one gone wrong: cut short, or of a kind not read.

    Raises:
        CkregError: it can't be read, or its zip breaks a rule.
    """
    kind = sniff(source)
    if kind in _LOST:
        return any(s in SUFFIXES for s in _suffixes(name))
    return kind not in _NO_CHECKPOINT


def _suffixes(name: str) -> Iterator[str]:
    """Yield the last two suffixes: `.pth.tar.gz` is named like a checkpoint."""
    yield from (s.lower() for s in PurePosixPath(name).suffixes[-2:])
