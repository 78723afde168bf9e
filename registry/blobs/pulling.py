"""Delivery of a blob to a place of the user's choice.

Law: the destination has its name only when all its bytes are on the medium and were verified on the
way; nothing that was there is lost unless `force` says so; on any failure no temporary file is
left, and what a killed one left goes with the next. Must never hand out a path into the store.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import ConflictError, NotFoundError
from ..values import Digest
from .blob import Blob
from .disk import (
    NO_LINK,
    NOFOLLOW,
    NONBLOCK,
    check_space,
    kind_of,
    sync_folder,
    translate,
    translated,
    unlink_quietly,
)
from .reading import BlobFile, FileBytes, Progress, damaged
from .staging import Staged, name_beside


def deliver(
    file: BlobFile,
    dest: Path,
    *,
    force: bool,
    keep_out: Iterable[Path],
    progress: Progress | None = None,
) -> None:
    """Write a blob's bytes to a path.

    A file that holds the same bytes already is left as it is, whatever `force` says.

    Args:
        keep_out: folders that no destination may lie in.

    Raises:
        ConflictError: another file is there and not `force`; or what is there is no regular file;
            or the path lies in a folder of `keep_out`.
        NotFoundError: the folder to write in doesn't exist.
        DamagedError: the blob's bytes aren't those that were stored.
        NoSpaceError, NotWritableError: it can't be written there.
    """
    check_parent(dest, keep_out)
    if _holds_already(dest, file.size, file.blob.digest, force=force):
        return

    _write(
        dest,
        lambda staged: copy_verified(file, staged, progress),
        force=force,
        expect_bytes=file.size,
    )


def copy_verified(file: BlobFile, staged: Staged, progress: Progress | None) -> None:
    """Copy a blob, and see that what was written is what was stored.

    Raises:
        DamagedError: it is not.
    """
    copied = staged.copy(file, progress=progress)
    found = staged.finish()
    if copied < file.size:
        raise damaged(file.blob, file.shown, f"it ended after {copied} bytes of {file.size}")
    if found != file.blob.digest:
        raise damaged(file.blob, file.shown, f"its bytes have the digest {found}")


def holds_blob(dest: Path, blob: Blob) -> bool:
    """Say whether a path is a regular file, and no link, with a blob's bytes."""
    try:
        fd = os.open(dest, os.O_RDONLY | NONBLOCK | NOFOLLOW)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        return (
            stat.S_ISREG(found.st_mode)
            and found.st_size == blob.size_bytes
            and FileBytes(fd, dest, found.st_size).hash() == blob.digest
        )
    finally:
        os.close(fd)


def produce(
    dest: Path,
    fill: Callable[[Staged], None],
    *,
    force: bool,
    keep_out: Iterable[Path],
    expect_bytes: int,
) -> None:
    """Write a new file to a path, under the same law as `deliver`.

    Args:
        fill: writes the bytes.

    Raises:
        ConflictError, NotFoundError, NoSpaceError, NotWritableError: as deliver.
    """
    check_parent(dest, keep_out)
    _write(dest, fill, force=force, expect_bytes=expect_bytes)


def _write(dest: Path, fill: Callable[[Staged], None], *, force: bool, expect_bytes: int) -> None:
    parent = dest.parent
    check_space(parent, expect_bytes)
    with Staged(parent, name=name_beside(parent), mode=0o666) as staged:
        fill(staged)
        found = staged.finish()
        if _holds_already(dest, staged.size, found, force=force):
            return
        staged.sync()
        if force:
            staged.rename(parent, dest.name, dir_fd=staged.folder)
        elif not _place_beside(staged, dest):
            if not _holds_already(dest, staged.size, found, force=False):
                raise _taken(dest)
            return
        with translated("put on the disk", parent):
            sync_folder(staged.folder)


def check_parent(dest: Path, keep_out: Iterable[Path]) -> None:
    """Refuse a destination whose folder isn't there, or is the store's.

    Raises:
        ConflictError, NotFoundError: as deliver.
    """
    parent = dest.parent
    try:
        found = os.stat(parent)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"can't write {str(dest)!r}: there is no folder {str(parent)!r}",
            hint=f"mkdir -p {shlex.quote(str(parent))}",
        ) from error
    except OSError as error:
        raise translate(error, "write in", parent) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConflictError(
            f"can't write {str(dest)!r}: {str(parent)!r} is {kind_of(found.st_mode)}, not a folder"
        )
    if lies_in(parent.resolve() / dest.name, keep_out):
        raise ConflictError(
            f"{str(dest)!r} lies inside the registry's own folders, where only the registry writes",
            hint="pull to a place of your own: -o PATH",
        )


def lies_in(path: Path, folders: Iterable[Path]) -> bool:
    """Say whether a resolved path lies in one of some folders.

    They are compared by identity, so that neither a symlink nor a bind mount hides it.
    """
    closed = [os.stat(folder) for folder in folders if folder.exists()]
    return any(
        os.path.samestat(os.stat(place), other) for place in path.parents for other in closed
    )


def _holds_already(dest: Path, size: int, digest: Digest, *, force: bool) -> bool:
    """Say whether the destination holds these bytes already; False where it may be written."""
    try:
        fd = os.open(dest, os.O_RDONLY | NONBLOCK)
    except FileNotFoundError as error:
        if force or not dest.is_symlink():
            return False
        raise _taken(dest, "a symlink to nothing") from error
    except PermissionError as error:
        if force:
            return False
        raise _taken(dest, "a file that can't be read") from error
    except OSError as error:
        raise translate(error, "write", dest) from error
    try:
        with translated("look at", dest):
            found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConflictError(f"{str(dest)!r} is {kind_of(found.st_mode)}: it isn't replaced")
        if found.st_size == size and FileBytes(fd, dest, size).hash() == digest:
            return True
    finally:
        os.close(fd)
    if not force:
        raise _taken(dest)
    return False


def _place_beside(staged: Staged, dest: Path) -> bool:
    """Give the file its name if that is free, and say whether it was."""
    try:
        staged.link(dest.name, dir_fd=staged.folder)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINK:
            raise translate(error, "write", dest) from error
    # No links here: reserve the name, then replace what we reserved.
    try:
        os.close(os.open(dest.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=staged.folder))
    except FileExistsError:
        return False
    except OSError as error:
        raise translate(error, "write", dest) from error
    try:
        staged.rename(dest.parent, dest.name, dir_fd=staged.folder)
    except BaseException:
        unlink_quietly(dest.name, staged.folder)
        raise
    return True


def _taken(dest: Path, what: str = "a file with other bytes") -> ConflictError:
    return ConflictError(
        f"{str(dest)!r} is there already: {what}",
        hint="--force replaces it, -o PATH writes elsewhere",
    )
