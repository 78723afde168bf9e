"""The marker that makes a folder a blob store, and the folders that come before it.

Law: the marker is placed last and whole, so that a store that has one has its folders; of creators
at the same time one wins, and all agree. A missing marker is never mended where blobs or records
are: perhaps the right disk isn't mounted there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConflictError, DamagedError, NotFoundError, SchemaVersionError
from ..values import canonical_json
from .disk import (
    NO_LINK,
    SHARED_FOLDER,
    folder,
    is_shared,
    make_folder,
    open_folder,
    read_small,
    sync_folder,
    translate,
    translated,
)
from .staging import Staged

STORE_FORMAT: Final = 1
MARKER: Final = "store.json"
SHARDS: Final = tuple(f"{n:02x}" for n in range(256))
"""The names of the folders in blobs/ and records/."""

MAX_MARKER: Final = 64 << 10


def make(root: Path, *, shared: bool = False, id: str | None = None) -> None:
    """Make the folders and the marker of a store.

    Args:
        shared: let the group of the folder write to it; else a new one is its owner's alone.
        id: the store's, by default a new one.

    Raises:
        ConflictError: a file is in the way.
        DamagedError: blobs or records are there already, so the marker was lost.
        NotWritableError, NoSpaceError: they can't be made there.
    """
    _make_root(root)
    _check_never_used(root)
    with folder(root) as top, translated("create a store in", root):
        if shared:
            os.fchmod(top, SHARED_FOLDER)
        group = is_shared(root)
        for name in ("blobs", "records", "tmp"):
            make_folder(name, top, shared=group)
        blobs = open_folder(root, "blobs")
        try:
            for name in SHARDS:
                make_folder(name, blobs, shared=group)
            sync_folder(blobs)  # all 256 names at once: a publish syncs only the folder it uses
        finally:
            os.close(blobs)
    mode = 0o664 if group else 0o666
    with Staged(root, "tmp", mode=mode, exact=group) as staged, folder(root) as top:
        text = canonical_json({"format": STORE_FORMAT, "id": id or uuid.uuid4().hex})
        staged.write(text.encode() + b"\n")
        staged.sync()
        _place(staged, root, top)
        with translated("put on the disk", root):
            sync_folder(top)


def read(root: Path) -> str:
    """Return the id of the store in a folder.

    Raises:
        NotFoundError: there is no folder, or no marker in it.
        ConflictError: the path is a file.
        DamagedError: the marker can't be understood.
        SchemaVersionError: a newer ckreg made it.
    """
    try:
        top = open_folder(root)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no blob store at {str(root)!r}: no such folder") from error
    except NotADirectoryError as error:
        raise ConflictError(f"{str(root)!r} is a file, not the folder of a store") from error
    except OSError as error:
        raise translate(error, "open the store", root) from error
    try:
        return _read_in(root, top)
    finally:
        os.close(top)


def check_own(found: str, id: str | None, place: str) -> None:
    """See that a store is the one that a registry chose the id of.

    Args:
        found: the store's id.
        id: the registry's, or None where it has none yet.
        place: where the store is.

    Raises:
        ConflictError: it is another registry's.
    """
    if id != found:
        raise ConflictError(
            f"{place!r} is the store of another registry: its id is {found}",
            hint=f"take a place of its own: --blobs {shlex.quote(f'{place}-2')}",
        )


def _read_in(root: Path, top: int) -> str:
    path = root / MARKER
    try:
        data = read_small(MARKER, top, MAX_MARKER)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{str(root)!r} is no blob store: its marker {MARKER} is missing",
            hint="see whether the right folder is mounted there",
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.EFBIG):
            raise DamagedError(f"{str(path)!r} is no store's marker: {error.strerror}") from error
        raise translate(error, "read", path) from error
    return parse(data, str(path), f"cp BACKUP {shlex.quote(str(path))}")


def parse(data: bytes, place: str, cure: str) -> str:
    """Return the id that a marker's bytes name.

    Args:
        place: what to call the marker.
        cure: the command that brings one back from a backup.

    Raises:
        DamagedError: they can't be understood.
        SchemaVersionError: a newer ckreg wrote them.
    """
    try:
        plain = json.loads(data)
        format, id = plain["format"], plain["id"]
        if not isinstance(format, int) or not isinstance(id, str):
            raise TypeError("format must be a number, and id text")
        if not re.fullmatch(r"[0-9a-f]{32}", id):
            raise ValueError(f"the id {id!r} is not 32 hex digits")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(
            f"the store's marker {place!r} can't be understood: {error}",
            hint=f"bring it back from a backup: {cure}",
        ) from error
    if format != STORE_FORMAT:
        above = place.removesuffix(f"/{MARKER}")
        raise SchemaVersionError(
            f"the store at {above!r} has format {format}, and this ckreg knows {STORE_FORMAT}",
            hint="pip install --upgrade ckreg",
        )
    return id


def _make_root(root: Path) -> None:
    missing = [place for place in (root, *root.parents) if not os.path.lexists(place)]
    try:
        # Ours alone, whatever the umask: it closes all that is inside. A folder that is there
        # already keeps the mode that its owner chose, e.g. to share it with a group.
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConflictError(
            f"can't create a store in {str(root)!r}: a file is in the way"
        ) from error
    except OSError as error:
        raise translate(error, "create a store in", root) from error
    for place in missing:
        with folder(place.parent) as above, translated("put on the disk", place.parent):
            sync_folder(above)


def _check_never_used(root: Path) -> None:
    """Refuse to give a store that was used a new marker, and with it a new id.

    Raises:
        DamagedError: blobs or records are there, and no marker.
    """
    # In this order: whoever put something there since we found no marker had one.
    if any(_contents(root)) and not os.path.lexists(root / MARKER):
        path = shlex.quote(str(root / MARKER))
        raise DamagedError(
            f"the store at {str(root)!r} has blobs or records, and its marker {MARKER} is missing",
            hint=f"bring it back from a backup: cp BACKUP {path}",
        )


def _contents(root: Path) -> Iterator[str]:
    for part in ("blobs", "records"):
        for place in (root / part / shard for shard in SHARDS):
            try:
                yield from os.listdir(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise translate(error, "look into", place) from error


def _place(staged: Staged, root: Path, top: int) -> None:
    """Give the marker its name, unless another creator was faster: then theirs is the store's."""
    try:
        staged.link(MARKER, dir_fd=top)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in NO_LINK:
            raise translate(error, "create a store in", root) from error
        # Without links two creators at the same instant could both place a marker; `read` takes the
        # last one, and nothing was stored yet.
        if not os.path.lexists(root / MARKER):
            staged.rename(root, MARKER, dir_fd=top)
