"""The blob store in a folder.

    store.json                    the marker: id, format (marker.py)
    blobs/ab/cdef….1f2e3d4c       mode 0444, never written after its rename, only unlinked
    records/ab/<id>.json          a checkpoint's whole record, replaced atomically
    quarantine/                   what repair set aside; nothing ever looks there
    kept/<uuid>/                  what ranks saved and could not commit in time; nor here
    tmp/<uuid>                    being written, locked by the writer; kept-<uuid> is never swept

Law: what has its final name is whole and on the medium. Must not know who refers to a blob.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shlex
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from ..errors import (
    CkregError,
    ConflictError,
    DamagedError,
    NotFoundError,
)
from ..values import CheckpointId, checkpoint_id
from . import listing, marker, pulling, staging
from .blob import Blob, fresh
from .disk import (
    NOFOLLOW,
    NONBLOCK,
    check_space,
    folder,
    is_shared,
    kind_of,
    make_folder,
    open_folder,
    read_small,
    sync_folder,
    translate,
    translated,
    unlink_quietly,
)
from .ends import Ends
from .listing import StoredFile
from .marker import MARKER, SHARDS
from .reading import BlobFile, damaged
from .staging import Staged

_MAX_RECORD: Final = 64 << 20
_RECORD: Final = re.compile(r"([0-9a-f]{32})\.json")
_EFFECTIVE: Final = os.access in os.supports_effective_ids
_BESIDE_US: Final = "registry."  # how the database's files in a registry's folder are named


class LocalStore(Ends):
    """Blobs and records below one folder; see BlobStore for the laws.

    Attributes:
        root: the folder.
        id: the marker's, the same in a copy.
        shared: the folder's group may write: then all that is made is the group's too.
    """

    def __init__(self, root: Path, id: str) -> None:
        self.root = root
        self.id = id
        self.shared = is_shared(root)
        self._swept = False

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    # --- create and open ----------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path, *, shared: bool = False, id: str | None = None) -> Self:
        """Make a store in a folder, or open the one that is there. Any number may do so at once.

        Args:
            shared: let the folder's group write to it, whatever the umask.
            id: the store's id, chosen by the registry that it is for; by default a new one.

        Raises:
            ConflictError: the path is a file, or another registry's store is there.
            DamagedError: blobs or records are there, and the marker is lost.
            NotWritableError, NoSpaceError: it can't be made there.
        """
        root = root.absolute()
        if not os.path.lexists(root / MARKER):
            marker.make(root, shared=shared, id=id)
        made = cls.open(root)
        if id is not None:
            marker.check_own(made.id, id, made.location)
        return made

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open the store in a folder.

        Raises:
            NotFoundError: there is no folder, or no marker in it.
            ConflictError: the path is a file.
            DamagedError: the marker can't be understood.
            SchemaVersionError: a newer ckreg made it.
        """
        root = root.absolute()
        return cls(root, marker.read(root))

    def check_writable(self) -> None:
        """See that a checkpoint could be stored now: not after the first epoch.

        Raises:
            NotWritableError, NoSpaceError: it could not.
        """
        for below in (("blobs", SHARDS[0]), ("records",)):
            place = self.root.joinpath(*below)
            with folder(self.root, *below) as dir_fd:
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=dir_fd, effective_ids=_EFFECTIVE):
                    raise translate(PermissionError(errno.EACCES, ""), "write in", place)
        with self.stage(expect_bytes=0):
            pass

    @property
    def location(self) -> str:
        """The folder, for messages."""
        return str(self.root)

    def owns(self, path: Path) -> bool:
        """Say whether a path leads to a file of the store's own, or to a folder around them."""
        here, own = path.resolve(), self._own()
        return pulling.lies_in(here, own) or any(pulling.lies_in(o.resolve(), [here]) for o in own)

    # --- blobs in -----------------------------------------------------------------------------

    def stage(self, *, expect_bytes: int | None = None) -> Staged:
        """Return a new file to write, to be used in a `with` block.

        Args:
            expect_bytes: about how many will be written; refused at once if they can't fit.

        Raises:
            NoSpaceError, NotWritableError: it can't be written.
        """
        place = self.root / "tmp"
        if not self._swept:
            self._swept = True
            with suppress(CkregError):  # what stops the sweep will stop the writer, with its reason
                self.sweep()
        if expect_bytes is not None:
            check_space(place, expect_bytes)
        return self._staged(0o600, 0o660)

    def _staged(self, mode: int, group_mode: int) -> Staged:
        return Staged(self.root, "tmp", mode=group_mode if self.shared else mode, exact=self.shared)

    def publish(self, staged: Staged) -> Blob:
        """Give a staged file its final name, once its bytes are hashed and on the medium.

        When this raises, no file of it is left.

        Raises:
            CkregError: the bytes or the name could not be put on the medium. That is final.
        """
        if staged.path.parent != self.root / "tmp":
            raise ValueError(f"{str(staged.path)!r} isn't staged in {self!r}")
        try:
            return self._publish(staged)
        except BaseException:
            staged.discard()
            raise

    def _publish(self, staged: Staged) -> Blob:
        blob = fresh(staged.finish(), staged.size)
        place = self.root / "blobs" / blob.folder
        with translated("protect", staged.path):
            os.fchmod(staged.fd, 0o444)
        staged.sync()
        with folder(self.root, "blobs", blob.folder) as shard:
            try:
                staged.rename(place, blob.file, dir_fd=shard)
                with translated("put on the disk", place):
                    sync_folder(shard)
            except BaseException:
                unlink_quietly(blob.file, shard)  # nobody knows this name yet
                raise
        return blob

    def sweep(self) -> int:
        """Remove what killed writers left in tmp/, and return how many files that was."""
        return staging.sweep(self.root, "tmp")

    # --- blobs out ----------------------------------------------------------------------------

    def path_of(self, blob: Blob) -> Path:
        """Return where a blob is, for messages: never to be opened, written or handed out."""
        return self.root / "blobs" / blob.name

    def holds(self, blob: Blob) -> bool:
        """Say whether a blob's file is there, with its size.

        Raises:
            CkregError: the disk won't tell.
        """
        try:
            found = self._stat(blob)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise translate(error, "look at", self.path_of(blob)) from error
        return stat.S_ISREG(found.st_mode) and found.st_size == blob.size_bytes

    def _stat(self, blob: Blob) -> os.stat_result:
        shard = open_folder(self.root, "blobs", blob.folder)
        try:
            return os.stat(blob.file, dir_fd=shard, follow_symlinks=False)
        finally:
            os.close(shard)

    def open_blob(self, blob: Blob, *, cached: bool = True) -> BlobFile:
        """Open a blob, to be read in a `with` block; its own bytes, whatever `cached` says.

        Raises:
            NotFoundError: its file is gone.
            DamagedError: its file has another size, or is no file.
        """
        path = self.path_of(blob)
        try:
            shard = open_folder(self.root, "blobs", blob.folder)
            try:
                fd = os.open(blob.file, os.O_RDONLY | NOFOLLOW | NONBLOCK, dir_fd=shard)
            finally:
                os.close(shard)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"the file of blob {blob.digest} is gone: {str(path)!r}",
                hint=f"bring it back from a backup: cp BACKUP {shlex.quote(str(path))}",
            ) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise damaged(blob, str(path), "it is a symlink") from error
            raise translate(error, "read", path) from error
        try:
            with translated("look at", path):
                found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise damaged(blob, str(path), f"it is {kind_of(found.st_mode)}")
            if found.st_size != blob.size_bytes:
                what = f"it has {found.st_size} bytes, and {blob.size_bytes} were stored"
                raise damaged(blob, str(path), what)
            return BlobFile(fd, path, blob)
        except BaseException:
            os.close(fd)
            raise

    def _own(self) -> list[Path]:
        return [self.root / name for name in ("blobs", "records", "tmp")]

    def _check_dest(self, dest: Path) -> None:
        name = dest.name.casefold()  # as some file systems do
        ours = name == MARKER or name.startswith(_BESIDE_US)
        if ours and dest.parent.resolve() == self.root.resolve():
            raise ConflictError(
                f"{str(dest)!r} is the registry's own file",
                hint="pull to a place of your own: -o PATH",
            )

    def drop(self, blob: Blob) -> None:
        """Remove a blob that no row refers to and none can begin to; one that is gone is no error.

        Raises:
            NotWritableError: it can't be removed.
        """
        path = self.path_of(blob)
        try:
            shard = open_folder(self.root, "blobs", blob.folder)
            try:
                os.unlink(blob.file, dir_fd=shard)
            finally:
                os.close(shard)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise translate(error, "remove", path) from error

    def keep_folder(self, blobs: Mapping[str, Blob]) -> Path:
        """Move blobs that no row refers to into a folder of kept/, and return it.

        Args:
            blobs: by the names of the files, which are not in folders of their own.

        Raises:
            NotWritableError, NoSpaceError: it can't be made; those not moved yet stay.
        """
        name = str(uuid.uuid4())
        place = self.root / "kept" / name
        with folder(self.root) as top, translated("move what was saved to", place):
            make_folder("kept", top, shared=self.shared)
            sync_folder(top)
            with folder(self.root, "kept") as all_kept:
                make_folder(name, all_kept, shared=self.shared)
                sync_folder(all_kept)
            with folder(self.root, "kept", name) as kept:
                for file, blob in blobs.items():
                    with folder(self.root, "blobs", blob.folder) as shard:
                        os.rename(blob.file, file, src_dir_fd=shard, dst_dir_fd=kept)
                        sync_folder(kept)  # the new name before the old one is gone for good
                        sync_folder(shard)
        return place

    # --- what lies there ----------------------------------------------------------------------

    def check_marker(self) -> None:
        """See that this is still the store that was opened: a mount may have gone.

        Raises:
            NotFoundError, DamagedError: the marker is missing, or can't be understood.
            ConflictError: it is another store's.
        """
        found = marker.read(self.root)
        if found != self.id:
            raise ConflictError(
                f"the store at {str(self.root)!r} was {self.id} when it was opened, and is {found}",
                hint="see whether the right folder is mounted there",
            )

    def clock(self) -> float:
        """Return the present as the store's file system has it, in seconds."""
        return listing.clock(self.root)

    def files(self, shard: str) -> list[StoredFile]:
        """Return what lies in one of the folders of blobs/, by name."""
        return listing.shard(self.root, shard)

    def walk(self) -> Iterator[tuple[str, list[StoredFile]]]:
        """Yield each of those folders with what lies in it when its turn comes."""
        return ((shard, self.files(shard)) for shard in SHARDS)

    def strays(self) -> list[StoredFile]:
        """Return what lies in blobs/ itself beside its 256 folders."""
        return listing.strays(self.root)

    def lacking(self) -> list[str]:
        """Return which of the 256 folders aren't there."""
        return listing.lacking(self.root)

    def protect(self, name: str) -> None:
        """Take a blob's write permissions away."""
        shard, _, file = name.partition("/")
        with folder(self.root, "blobs", shard) as dir_fd, translated("protect", self.root / name):
            os.chmod(file, 0o444, dir_fd=dir_fd)

    def set_aside(self, *below: str) -> str:
        """Move what lies in the store to quarantine/, under a name that was never used.

        Args:
            below: its names below the store's folder: `blobs`, `ab`, `cdef…`.

        Raises:
            NotFoundError: it isn't there.
            NotWritableError: it can't be moved.
        """
        *above, name = below
        place = self.root / "quarantine"
        with translated("make the folder", place):
            place.mkdir(mode=0o700, exist_ok=True)
        kept = f"{'-'.join(below)}-{secrets.token_hex(4)}"
        with (
            folder(self.root, *above) as source,
            folder(self.root, "quarantine") as target,
            translated("set aside", self.root.joinpath(*below)),
        ):
            os.rename(name, kept, src_dir_fd=source, dst_dir_fd=target)
            sync_folder(target)
            sync_folder(source)
        return str(place / kept)

    def kept(self) -> list[Path]:
        """Return the files and folders of saves that couldn't be committed, to be pushed."""
        return [*sorted(self.root.glob("tmp/kept-*")), *sorted(self.root.glob("kept/*"))]

    def leftovers(self) -> list[StoredFile]:
        """Return what the next `sweep` takes."""
        return listing.leftovers(self.root)

    # --- records ------------------------------------------------------------------------------

    def put_record(self, id: str, text: str) -> None:
        """Write a checkpoint's record, in place of the one before if there is one.

        Raises:
            NoSpaceError, NotWritableError: it can't be written; the one before is as it was.
        """
        shard, name = _record_name(id)
        place = self.root / "records" / shard
        with (
            folder(self.root, "records") as records,
            translated("make the folder", place),
        ):
            if make_folder(shard, records, shared=self.shared):
                sync_folder(records)
        self._put_text(text, name, "records", shard)

    def put_beside(self, name: str, text: str) -> None:
        """Write a small file beside the marker, in place of the one before if there is one.

        Raises:
            NoSpaceError, NotWritableError: it can't be written; the one before is as it was.
        """
        self._put_text(text, name)

    def _put_text(self, text: str, name: str, *below: str) -> None:
        place = self.root.joinpath(*below)
        with self._staged(0o666, 0o664) as staged, folder(self.root, *below) as dir_fd:
            staged.write(text.encode())
            staged.sync()
            staged.rename(place, name, dir_fd=dir_fd)
            with translated("put on the disk", place):
                sync_folder(dir_fd)

    def read_record(self, id: str) -> str:
        """Return a checkpoint's record.

        Raises:
            NotFoundError: there is none.
            DamagedError: it is no text file of a record's size.
        """
        shard, name = _record_name(id)
        path = self.root / "records" / shard / name
        try:
            dir_fd = open_folder(self.root, "records", shard)
            try:
                return read_small(name, dir_fd, _MAX_RECORD).decode()
            finally:
                os.close(dir_fd)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no record {str(path)!r}") from error
        except UnicodeDecodeError as error:
            raise DamagedError(f"the record {str(path)!r} is no text: {error}") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.EFBIG):
                raise DamagedError(
                    f"the record {str(path)!r} is no record: {error.strerror}"
                ) from error
            raise translate(error, "read", path) from error

    def record_time(self, id: str) -> float | None:
        """Return when a checkpoint's record was last written, by the store's clock, or None."""
        shard, name = _record_name(id)
        path = self.root / "records" / shard / name
        try:
            with translated("look at", path):
                return os.stat(path, follow_symlinks=False).st_mtime
        except NotFoundError:
            return None

    def records(self) -> Iterator[CheckpointId]:
        """Yield the ids of all records, sorted; files that are no records are passed over."""
        for shard in _names(self.root, "records"):
            if shard in SHARDS:
                for name in _names(self.root, "records", shard):
                    match = _RECORD.fullmatch(name)
                    if match and name[:2] == shard:
                        yield checkpoint_id(match[1])


def _record_name(id: str) -> tuple[str, str]:
    checked = checkpoint_id(id)
    return checked[:2], f"{checked}.json"


def _names(root: Path, *below: str) -> list[str]:
    with folder(root, *below) as dir_fd, translated("list", root.joinpath(*below)):
        return sorted(os.listdir(dir_fd))
