"""Which registry is meant: the one given, $CKREG_REGISTRY, ./.ckreg upward, or ~/.ckreg.

Law: a typo never makes a registry, and one that has lost a part is never taken for none. Only the
default location is made by the first write; every other has to be there, or be made by `ckreg
init`. Sees which files are there, and opens neither database nor blobs.

    <location>/
      registry.db      the records (SQLite)         schema.py
      registry.lock    writers queue here           schema.py
      store.json       the blob store's marker      blobs/local.py
      blobs.at         where the bytes are, if not in this folder: what has it has a database
      blobs/ records/ tmp/                          blobs/local.py
      imports/         what trees held (a cache)    sightings.py
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import urls
from .errors import CkregError, ConflictError, DamagedError, NotFoundError, NotWritableError
from .urls import DatabaseUrl

FOLDER: Final = ".ckreg"
DATABASE: Final = "registry.db"
MARKER: Final = "store.json"
BLOBS_AT: Final = "blobs.at"
"""Says where a registry's bytes are, if not in its folder; written when its database is there, so
that without one that is lost."""

_FILES: Final = frozenset({DATABASE, f"{DATABASE}-journal", "registry.lock", MARKER, BLOBS_AT})
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_FOLDERS: Final = {
    "blobs": _SHARD,
    "records": _SHARD,
    "imports": re.compile(r"[0-9a-f]{32}\.json(\.part)?"),
    "tmp": re.compile(r"(kept-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
}
"""A registry's own folders, and how the names in them look."""


@dataclass(frozen=True, slots=True)
class Location:
    """A registry's folder.

    Attributes:
        folder: absolute.
        default: it is ~/.ckreg, found because nothing else was named; the first write may make it.
    """

    folder: Path
    default: bool = False

    @property
    def exists(self) -> bool:
        """Whether a registry is there. One that is just being made is not: it holds nothing yet.

        Raises:
            DamagedError: one was there, and its database or its marker is lost.
            NotWritableError: the folder may not be looked into.
        """
        if self.default and not os.path.lexists(self.folder):
            return False  # or the home is closed to us, which the first write will say
        lacking = self._lacking()
        if self._has_lost(lacking):
            # What we saw was put there after both parts; if they came only between our two looks,
            # they are there now.
            lacking = self._lacking()
            if self._has_lost(lacking):
                raise _lost(self.folder, lacking)
        return "missing" not in lacking.values()

    def _lacking(self) -> dict[str, str]:
        """Return what is wrong with the database and the marker, as far as names and sizes say.

        The database is looked at first: a creator places the marker before it.
        """
        found: dict[str, str] = {}
        for name in (DATABASE, MARKER):
            size = _size(self.folder / name)
            if size is None:
                found[name] = "missing"
            elif size == 0 and name == DATABASE:  # so it is while its creator is at work, too
                found[name] = "empty"
        return found

    def _has_lost(self, lacking: dict[str, str]) -> bool:
        """Say whether what is lacking was there once: a registry never used may lack it."""
        if not lacking:
            return False
        return (
            DATABASE not in lacking
            or os.path.lexists(self.folder / BLOBS_AT)
            or any(_contents(self.folder))
        )

    def __str__(self) -> str:
        return str(self.folder)


def find(given: str | os.PathLike[str] | None = None) -> Location | DatabaseUrl:
    """Return the registry that is meant.

    Raises:
        ValueError: it is a URL of a kind that isn't served, or can't be read.
        ConflictError: it is a file.
        NotFoundError: it was named, and nothing is there.
        DamagedError: it has lost its database or its marker.
        NotWritableError: its folder may not be looked into.
    """
    named = given if given is not None else os.environ.get("CKREG_REGISTRY") or None
    if named is not None:
        location = place(named)
        if isinstance(location, DatabaseUrl):
            return location
        if not location.exists:
            raise NotFoundError(
                f"there is no registry at {str(location)!r}"
                + ("" if given is not None else " (named by CKREG_REGISTRY)"),
                hint=f"make one: ckreg -r {location} init",
            )
        return location
    found = _upward(Path.cwd())
    return Location(found) if found is not None else Location(home(), default=True)


def place(named: str | os.PathLike[str]) -> Location | DatabaseUrl:
    """Return what a location names: a folder, or a database.

    Raises:
        ValueError: it is a URL that isn't served, or can't be read.
        ConflictError: it is a file.
    """
    text = os.fspath(named)
    return urls.parse(text) if urls.is_url(text) else Location(absolute(named))


def absolute(named: str | os.PathLike[str]) -> Path:
    """Return the folder that a location names.

    Raises:
        ConflictError: it is a file.
    """
    text = os.fspath(named)
    folder = Path(os.path.abspath(os.path.expanduser(text)))
    _check_no_file(folder)
    return folder


def home() -> Path:
    """Return the default location, ~/.ckreg.

    Raises:
        ConflictError: it is a file.
    """
    return absolute(Path("~", FOLDER))


def _upward(start: Path) -> Path | None:
    """Look for a .ckreg from a folder upward, within one filesystem, one owner and below $HOME.

    A registry that somebody else put above the working folder must be named to be used: git refuses
    such repositories for the same reason (CVE-2022-24765).

    Raises:
        DamagedError: the nearest one is unfinished, or has lost a part. What is meant for it must
            not go to another registry.
    """
    top = Path(os.path.expanduser("~")).resolve()
    here = start.resolve()
    device: int | None = None
    user = os.getuid() if hasattr(os, "getuid") else None
    while True:
        try:
            status = here.stat()
        except OSError:  # a folder that this user may not see holds no registry of this user's
            return None
        device = status.st_dev if device is None else device
        if status.st_dev != device or (user is not None and status.st_uid != user):
            return None
        folder = here / FOLDER
        if _is_folder_of(folder, user):
            if Location(folder).exists:
                return folder
            if here != top:  # there it is the default, which the first write makes or finishes
                _check_not_begun(folder)
        if here == top or here == here.parent:
            return None
        here = here.parent


def _check_not_begun(folder: Path) -> None:
    """Refuse to pass over a registry that `ckreg init` has begun.

    Raises:
        DamagedError: some of its parts are there, and not all.
    """
    if {*_FILES, *_FOLDERS}.isdisjoint(_names(folder)):
        return
    raise DamagedError(
        f"the registry at {str(folder)!r} is unfinished: "
        + (_and(Location(folder)._lacking()) or "it is being made right now"),
        hint=f"finish it: ckreg -r {shlex.quote(str(folder))} init",
    )


def _is_folder_of(path: Path, user: int | None) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and user in (None, status.st_uid)


def check_free(folder: Path) -> None:
    """Refuse to make a registry among other things.

    A folder that holds only parts of a registry is one that another process is making right now.

    Raises:
        ConflictError: it holds something else, or is a file.
        NotWritableError: it may not be looked into.
    """
    _check_no_file(folder)
    others = sorted(_foreign(folder))
    if others:
        raise ConflictError(
            f"{str(folder)!r} is not empty: it holds {', '.join(map(repr, others[:3]))}"
            + (f" and {len(others) - 3} more" if len(others) > 3 else ""),
            hint=f"take a folder of its own: ckreg init {folder / FOLDER}",
        )


def _foreign(folder: Path) -> Iterator[str]:
    """Yield what a folder holds that is no part of a registry."""
    for name in _names(folder):
        if name in _FOLDERS:
            inner = _names(folder / name)
            yield from (f"{name}/{n}" for n in inner if not _FOLDERS[name].fullmatch(n))
        elif name not in _FILES or os.path.isdir(folder / name):
            yield name


def _contents(folder: Path) -> Iterator[str]:
    """Yield the names of a registry's blobs and records."""
    for part in ("blobs", "records"):
        for shard in _names(folder / part):
            if _SHARD.fullmatch(shard):
                yield from _names(folder / part / shard)


# --- the file system ------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none where it is missing, or is no folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _size(path: Path) -> int | None:
    """Return a file's size in bytes, or None where no file is."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    return None if stat.S_ISDIR(status.st_mode) else status.st_size


# --- errors ---------------------------------------------------------------------------------------


def _lost(folder: Path, lacking: dict[str, str]) -> DamagedError:
    if len(lacking) == 1:
        what, source = "it", "BACKUP"
        target = folder / next(iter(lacking))
    else:
        what, source = "them", " ".join(f"BACKUP/{name}" for name in lacking)
        target = folder
    return DamagedError(
        f"the registry at {str(folder)!r} is damaged: {_and(lacking)}",
        hint=f"see whether the right disk is mounted there; else bring {what} back from a backup: "
        f"cp {source} {shlex.quote(str(target))}"
        + (
            "; or make it anew from the records: "
            f"ckreg -r {shlex.quote(str(folder))} verify --rebuild"
            if list(lacking) == [DATABASE]
            else ""
        ),
    )


def _and(lacking: dict[str, str]) -> str:
    words = {DATABASE: "its database", MARKER: "its marker"}
    return " and ".join(f"{words[name]} {name} is {how}" for name, how in lacking.items())


def _check_no_file(folder: Path) -> None:
    try:
        mode = os.stat(folder).st_mode  # once: of two looks the second might fail
    except OSError:
        return  # whoever opens it will say why it can't be reached
    if not stat.S_ISDIR(mode):
        raise ConflictError(
            f"{str(folder)!r} is a file; a registry is a folder",
            hint="name a folder, or a path where one can be made",
        )


def _unreadable(folder: Path, error: OSError) -> CkregError:
    message = f"the registry at {str(folder)!r} can't be read: {(error.strerror or '').lower()}"
    if isinstance(error, PermissionError):
        return NotWritableError(message, hint=f"see who may: ls -ld {shlex.quote(str(folder))}")
    return CkregError(message)
