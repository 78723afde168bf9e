"""Folders on their way out of a store: several files, which appear together or not at all.

Law: every file is on the medium before the folder has its name; what was there before is replaced
only when it is all our own kind's, and goes only after the new one is in its place. On any way out
of a failure the destination is as it was, and nothing is left beside it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..errors import ConflictError
from .disk import check_space, folder, kind_of, sync_folder, translate, translated
from .pulling import check_parent
from .staging import Staged, folder_beside

Place = Callable[[str, Callable[[Staged], None]], None]
"""Writes a file into the new folder: its relative POSIX path, and what fills it."""


def produce_folder(
    dest: Path,
    fill: Callable[[Place], None],
    *,
    replaceable: Callable[[str], bool] | None,
    keep_out: Iterable[Path],
    expect_bytes: int,
) -> None:
    """Write a folder of files to a path that is free, or an empty folder.

    Args:
        fill: writes the files, one after another.
        replaceable: says of a file in a folder that is there, by its relative path, whether it
            may be replaced; None replaces nothing.
        keep_out: folders that no destination may lie in.
        expect_bytes: about how many will be written; refused at once if they can't fit.

    Raises:
        ConflictError: something else is there, or the path lies in a folder of `keep_out`.
        NotFoundError: the folder to write in doesn't exist.
        NoSpaceError, NotWritableError: it can't be written there.
    """
    check_parent(dest, keep_out)
    before = _check_free(dest, replaceable)
    check_space(dest.parent, expect_bytes)
    with folder_beside(dest.parent) as made:

        def place(name: str, write: Callable[[Staged], None]) -> None:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name:
                raise ConflictError(f"{name!r} is no file's path inside a folder")
            inner = made.joinpath(*parts[:-1])
            with translated("write in", inner):
                inner.mkdir(parents=True, exist_ok=True)
            with Staged(inner, name=f".{secrets.token_hex(8)}.part", mode=0o666) as staged:
                write(staged)
                staged.finish()
                staged.sync()
                staged.rename(inner, parts[-1], dir_fd=staged.folder)

        fill(place)
        for inner, _, _ in os.walk(made, topdown=False):
            with folder(Path(inner)) as dir_fd, translated("put on the disk", Path(inner)):
                sync_folder(dir_fd)
        _check_free(dest, replaceable)  # hours may have passed
        _move_in(made, dest, aside=before)
    with folder(dest.parent) as dir_fd, translated("put on the disk", dest.parent):
        sync_folder(dir_fd)


def _check_free(dest: Path, replaceable: Callable[[str], bool] | None) -> bool:
    """Refuse a destination that holds anything; say whether there is something to replace.

    Raises:
        ConflictError: it is no folder, or holds what may not be replaced.
    """
    with translated("look at", dest):
        try:
            found = os.lstat(dest)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            raise ConflictError(f"{str(dest)!r} is {kind_of(found.st_mode)}, not a folder")
        names = sorted(os.listdir(dest))
    if names and replaceable is None:
        raise ConflictError(
            f"{str(dest)!r} is there already, and not empty: it holds {names[0]!r}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            hint="--force replaces an earlier one, -o DIR writes elsewhere",
        )
    for name in _inside(dest) if replaceable is not None else ():
        if not (replaceable is not None and replaceable(name)):
            raise ConflictError(
                f"{str(dest)!r} holds {name!r}, which was not written by ckreg: it isn't replaced",
                hint=f"write elsewhere: -o DIR, or move it away: mv {shlex.quote(str(dest / name))}"
                " …",
            )
    return bool(names)


def _inside(dest: Path) -> Iterator[str]:
    """Yield the relative paths of all files in a folder; what is none (a link, an empty folder) has
    `./` before it, and is nobody's to replace.
    """
    for place, folders, files in os.walk(dest):
        inner = Path(place).relative_to(dest)
        if not folders and not files and inner.parts:
            yield f"./{inner.as_posix()}"
        for name in sorted([*folders, *files]):
            mode = os.lstat(Path(place, name)).st_mode
            if stat.S_ISREG(mode):
                yield (inner / name).as_posix()
            elif not stat.S_ISDIR(mode):
                yield f"./{(inner / name).as_posix()}"


def _move_in(made: Path, dest: Path, *, aside: bool) -> None:
    """Give the new folder its name; rename takes the place of an empty folder, never of a full."""
    old = made.with_name(made.name.replace(".part", ".old"))
    with translated("rename a folder to", dest):
        if aside:
            os.rename(dest, old)
        try:
            os.rename(made, dest)
        except OSError as error:
            if aside:
                with suppress(OSError):
                    os.rename(old, dest)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ConflictError(
                    f"{str(dest)!r} was filled meanwhile", hint="write elsewhere: -o DIR"
                ) from error
            raise translate(error, "rename a folder to", dest) from error
    shutil.rmtree(old, ignore_errors=True)
