"""Walking a tree for what may be checkpoints: files, told by their content and never by a suffix,
and folders that are one checkpoint, told by their files' names.

Law: no symlink is followed: what one points at inside the tree is found there itself, and what lies
outside stays outside. A registry in the tree, and git's own store, are not looked into.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

    def paths(self) -> set[Path]:
        """Return the file, or the folder's files."""
        return {self.path} if self.files is None else {self.path / name for name in self.files}


def walk(root: Path, unreadable: Callable[[Path, OSError], None]) -> list[Candidate]:
    """Return the regular files of a tree, and its folders that may be one checkpoint, in the order
    in which they are to be taken in.

    What lies in one folder goes by epoch and step, as far as names say, so that versions do; those
    whose names say neither (`best.pt`, which often is a copy) come last. A folder comes before what
    lies in it.

    Args:
        unreadable: told of each folder or file that the system doesn't let us see.

    Raises:
        NotFoundError: the root is no folder.
    """
    if not root.is_dir():
        what = "a file: take it in with ckreg push" if root.exists() else "not there"
        raise NotFoundError(f"{str(root)!r} is no folder to import: it is {what}")
    found: list[Candidate] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                here = list(entries)
        except OSError as error:
            unreadable(folder, error)
            continue
        if {entry.name for entry in here} >= _STORE:
            continue
        for entry in here:
            path = folder / entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _PRIVATE:
                        pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    name = path.relative_to(root).as_posix()
                    size_bytes = entry.stat(follow_symlinks=False).st_size
                    found.append(Candidate(path, name, size_bytes))
            except OSError as error:
                unreadable(path, error)
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
