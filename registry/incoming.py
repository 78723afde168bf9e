"""What is to be taken in: a file, or a folder's files by their names in it, open for reading.

Law: every file is opened once and read through that descriptor. A link leads to a file of the same
folder (or of the download cache that keeps its files beside it), or is refused; nothing is left out
but hidden folders, and those are named.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .blobs import SourceFile
from .containers import Contents, recognise
from .errors import CkregError, ConflictError, ContainerError, warn
from .records import FOLDERS

_MAX_FILES: Final = 100_000


def sources_of(path: Path, stack: ExitStack) -> dict[str, SourceFile]:
    """Open the file, or every file of the folder by its relative POSIX path in it.

    Raises:
        NotFoundError, NotWritableError: it isn't there, or can't be read.
        ContainerError: a folder is empty, or holds what can't be taken in.
    """
    if not path.is_dir():
        return {_name(path.name): stack.enter_context(SourceFile.open(path))}
    found: dict[str, SourceFile] = {}
    for name in sorted(_files_below(path)):
        if len(found) == _MAX_FILES:
            raise ContainerError(f"{str(path)!r} holds more than {_MAX_FILES} files")
        _room_for_files(2 * len(found) + 64)
        found[_name(name)] = stack.enter_context(SourceFile.open(path / name))
    if not found:
        raise ContainerError(f"{str(path)!r} is an empty folder, and no checkpoint")
    return found


def hidden_folders(path: Path) -> list[str]:
    """Return the hidden folders in a folder (`.git`, `.cache`), which are not taken in."""
    found: list[str] = []
    for place, folders, _ in os.walk(path):
        hidden = [name for name in folders if name.startswith(".")]
        found += [Path(place, name).relative_to(path).as_posix() for name in hidden]
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the files of a folder by relative POSIX path, links that may be followed among them."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":  # huggingface_hub's cache: snapshots/REV -> blobs/
        inside.append(inside[0].parent.parent / "blobs")
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted([*files, *(f for f in folders if Path(place, f).is_symlink())]):
            path = Path(place, name)
            if path.is_symlink():
                target = Path(os.path.realpath(path))  # Path.resolve fails on a link to itself
                if not target.exists():
                    raise ContainerError(
                        f"{str(path)!r} is a link to {str(target)!r}, where nothing is",
                        hint="put the file in its place, or take the link away",
                    )
                if target.is_dir() or not any(target.is_relative_to(at) for at in inside):
                    where = "to a folder" if target.is_dir() else "out of the folder"
                    raise ContainerError(
                        f"{str(path)!r} is a link that leads {where}",
                        hint="put what it points at in its place, or take it away",
                    )
            yield path.relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise CkregError(f"can't read {error.filename!r}: {error.strerror}") from error


def _name(name: str) -> str:
    """Return a name that the record may keep: the file's own, odd characters replaced."""
    text = "".join(c if c.isprintable() else "_" for c in name).strip()[:255]
    return text or "checkpoint"


def _room_for_files(wanted: int) -> None:
    """Raise this process's soft limit on open files: a sharded checkpoint may have hundreds."""
    try:
        import resource
    except ImportError:  # Windows, where there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * wanted), hard))


def belonging(names: Collection[str], contents: Contents) -> frozenset[str]:
    """Return which of a folder's files are the checkpoint's: all that lie with those it needs.

    Folders inside that are checkpoints of their own (`checkpoint-500/` beside the final model) are
    not part of it; where it is a lone file, nothing else is.
    """
    if not contents.used_files:
        return frozenset(names)
    if contents.container not in FOLDERS:
        return frozenset(contents.used_files)
    return without_inner(names, contents.used_files)


def without_inner(names: Collection[str], used: Collection[str]) -> frozenset[str]:
    """Return a folder's files without those of folders inside that are checkpoints of their own.

    Args:
        used: files that belong to it, wherever they lie.
    """
    needed = {place for file in used for place in _places(file)}
    inside: dict[str, set[str]] = {}
    for name in names:
        for place in _places(name):
            inside.setdefault(place, set()).add(name[len(place) + 1 :])
    others = {p for p, below in inside.items() if p not in needed and recognise(below)}
    return frozenset(name for name in names if others.isdisjoint(_places(name)))


def _places(name: str) -> list[str]:
    """Return the folders that a file of a folder lies in."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def unlink(path: Path, sources: Mapping[str, SourceFile]) -> None:
    """Unlink what was taken in, unless a path means something else by now."""
    try:
        for source in sources.values():
            source.check_unchanged()
            if not os.path.samestat(os.lstat(source.path), os.fstat(source.fd)):
                raise ConflictError("it was replaced meanwhile, or is a link")
        for source in sources.values():
            os.unlink(source.path)
        if path.is_dir():
            for place, _, _ in os.walk(path, topdown=False):
                if not os.listdir(place):
                    os.rmdir(place)
    except (OSError, CkregError) as error:
        why = error.message if isinstance(error, CkregError) else error.strerror
        warn(f"{str(path)!r} is recorded, and was left where it is: {why}")
