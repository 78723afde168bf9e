"""The blob store in a bucket: S3 and what speaks its language, GCS, Azure.

    PREFIX/store.json                    the marker: id, format
    PREFIX/blobs/ab/cdef….1f2e3d4c       never written again: its name was never used before
    PREFIX/records/ab/<id>.json          a checkpoint's whole record
    PREFIX/quarantine/…                  what repair set aside
    PREFIX/tmp/<uuid>                    what the store's clock was read of

Law: an object is there only whole, and its size was looked at before its blob is handed to anybody;
an ETag is no digest. Files are staged in the cache of this machine. Must not know who refers to a
blob.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

from ..errors import (
    CkregError,
    ConflictError,
    DamagedError,
    NotFoundError,
    RemoteError,
)
from ..values import CheckpointId, canonical_json, checkpoint_id
from . import listing, pulling
from .blob import Blob, fresh
from .cache import Cache
from .disk import check_space
from .ends import Ends
from .fetched import CachedBlob, DirectBlob
from .listing import StoredFile
from .marker import MARKER, MAX_MARKER, SHARDS, STORE_FORMAT, check_own, parse
from .reading import BlobFile, copy_back, damaged
from .remote import Client, Stored, check_url
from .staging import Staged

_MAX_RECORD: Final = 64 << 20
_RECORD: Final = re.compile(r"records/([0-9a-f]{2})/(\1[0-9a-f]{30})\.json")
_LEFT_S: Final = 3600  # what lies in tmp/ for longer, a killed process left


class ObjectStore(Ends):
    """Blobs and records below one prefix of a bucket; see BlobStore for the laws.

    Attributes:
        url: `s3://bucket/prefix`.
        id: the marker's, the same in a copy.
    """

    def __init__(self, client: Client, id: str) -> None:
        self.url = client.url
        self.id = id
        self._client = client
        self._cache = Cache.find()
        self._swept = self._written = False

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    # --- create and open ----------------------------------------------------------------------

    @classmethod
    def create(cls, url: str, *, id: str | None = None) -> Self:
        """Make a store below a prefix, or open the one that is there. Any number may do so at once.

        Args:
            id: the store's id, chosen by the registry that it is for; by default a new one.

        Raises:
            ValueError: it is no URL of an object store.
            ConflictError: another registry's store is there, or other things are.
            DamagedError: blobs or records are there, and the marker is lost.
            NotFoundError: there is no such bucket.
            RemoteError, NotWritableError: the server can't be reached, or refuses.
        """
        client = Client(url)
        if _look(client) is None:
            text = canonical_json({"format": STORE_FORMAT, "id": id or uuid.uuid4().hex})
            client.create(MARKER, text.encode() + b"\n")
        made = cls.open(url)
        if id is not None:
            check_own(made.id, id, made.url)
        return made

    @staticmethod
    def look(url: str) -> str | None:
        """Return the id of the store below a prefix, or None where one can be made.

        Raises:
            CkregError: as `create`.
        """
        return _look(Client(url))

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the store below a prefix.

        Raises:
            ValueError: it is no URL of an object store.
            NotFoundError: there is no such bucket, or no marker in it.
            DamagedError: the marker can't be understood.
            SchemaVersionError: a newer ckreg made it.
            RemoteError, NotWritableError: the server can't be reached, or refuses.
        """
        client = Client(check_url(url))
        return cls(client, _read_marker(client))

    def check_writable(self) -> None:
        """See that a checkpoint could be stored now: not after the first epoch.

        Raises:
            RemoteError, NotWritableError: it could not, or the server doesn't answer.
        """
        if not self._written:
            self.clock()  # it writes, looks, and removes
            self._written = True
        with self.stage(expect_bytes=0):
            pass

    @property
    def location(self) -> str:
        """The URL, for messages."""
        return self.url

    def owns(self, path: Path) -> bool:
        """Say whether a path leads to a file of the cache, or to a folder around it."""
        here, own = path.resolve(), self._cache.root
        return pulling.lies_in(here, [own]) or pulling.lies_in(own.resolve() / "tmp", [here])

    def _own(self) -> list[Path]:
        return [self._cache.root]

    def _check_dest(self, dest: Path) -> None:
        """Nothing of ours lies outside the cache."""

    # --- blobs in -----------------------------------------------------------------------------

    def stage(self, *, expect_bytes: int | None = None) -> Staged:
        """Return a new file to write in the cache, to be used in a `with` block.

        Args:
            expect_bytes: about how many will be written; refused at once if they can't fit.

        Raises:
            NoSpaceError, NotWritableError: it can't be written.
        """
        if not self._swept:
            self._swept = True
            with suppress(CkregError):
                self._cache.sweep()
        if expect_bytes is not None:
            check_space(self._cache.root / "tmp", expect_bytes)
        return Staged(self._cache.root, "tmp", hurry=False)

    def publish(self, staged: Staged) -> Blob:
        """Upload a staged file, once its bytes are hashed, and see that it is there, whole.

        When this raises, no object of it is left. The file stays until its block ends.

        Raises:
            RemoteError, NotWritableError: the server can't be reached, or refuses.
        """
        if staged.path.parent != self._cache.root / "tmp":
            raise ValueError(f"{str(staged.path)!r} isn't staged in {self!r}")
        try:
            blob = fresh(staged.finish(), staged.size)
            try:
                self._client.upload(_key(blob), staged.path, blob.size_bytes)
                self._check_arrived(blob)
            except BaseException:
                with suppress(CkregError):  # nobody knows this name yet
                    self._client.delete(_key(blob))
                raise
        except BaseException:
            staged.discard()
            raise
        return blob

    def _check_arrived(self, blob: Blob) -> None:
        found = self._client.head(_key(blob))
        if found is None or found.size_bytes != blob.size_bytes:
            there = "nothing" if found is None else f"{found.size_bytes} bytes"
            raise RemoteError(
                f"{self._client.at(_key(blob))!r} was uploaded with {blob.size_bytes} bytes, and "
                f"{there} arrived"
            )

    def sweep(self) -> int:
        """Remove what killed writers left: here in the cache, and of the clock in the store."""
        count = self._cache.sweep()
        for left in self._old_tmp():
            self._client.delete(left.key)
            count += 1
        return count

    # --- blobs out ----------------------------------------------------------------------------

    def holds(self, blob: Blob) -> bool:
        """Say whether a blob's object is there, with its size.

        Raises:
            RemoteError, NotWritableError: the server won't tell.
        """
        found = self._client.head(_key(blob))
        return found is not None and found.size_bytes == blob.size_bytes

    def open_blob(self, blob: Blob, *, cached: bool = True) -> BlobFile:
        """Open a blob, to be read in a `with` block: through the cache, or past it.

        Raises:
            NotFoundError: its object is gone.
            DamagedError: it has another size.
            RemoteError, NotWritableError: the server can't be reached, or refuses.
        """
        key = _key(blob)
        place = self._client.at(key)
        found = self._client.head(key)
        if found is None:
            raise NotFoundError(
                f"the object of blob {blob.digest} is gone: {place!r}",
                hint=f"bring it back from a backup: {copy_back(place)}",
            )
        if found.size_bytes != blob.size_bytes:
            what = f"it has {found.size_bytes} bytes, and {blob.size_bytes} were stored"
            raise damaged(blob, place, what)
        read = partial(self._client.read, key)
        return (
            CachedBlob(self._cache, blob, place, read) if cached else DirectBlob(blob, place, read)
        )

    def drop(self, blob: Blob) -> None:
        """Remove a blob that no row refers to and none can begin to; one that is gone is no error.

        Raises:
            RemoteError, NotWritableError: it can't be removed.
        """
        self._client.delete(_key(blob))

    def keep_folder(self, blobs: Mapping[str, Blob]) -> None:
        """Keep nothing: nobody could push a folder that is in the bucket."""

    # --- what lies there ----------------------------------------------------------------------

    def check_marker(self) -> None:
        """See that this is still the store that was opened.

        Raises:
            NotFoundError, DamagedError: the marker is missing, or can't be understood.
            ConflictError: it is another store's.
        """
        found = _read_marker(self._client)
        if found != self.id:
            raise ConflictError(
                f"the store at {self.url!r} was {self.id} when it was opened, and is {found}",
                hint="see which bucket and endpoint are meant: env | grep AWS_",
            )

    def clock(self) -> float:
        """Return the present as the server has it, in seconds: of an object made now."""
        key = f"tmp/{uuid.uuid4()}"
        self._client.put(key, b"\0")
        try:
            found = self._client.head(key)
        finally:
            self._client.delete(key)
        if found is None:
            raise RemoteError(f"{self._client.at(key)!r} was written, and isn't there")
        return found.modified_at

    def files(self, shard: str) -> list[StoredFile]:
        """Return what lies in one of the folders of blobs/, by name."""
        return [_file(one) for one in self._client.below(f"blobs/{shard}")]

    def walk(self) -> Iterator[tuple[str, list[StoredFile]]]:
        """Yield each of those folders with what lay in it at some time since the call, in order.

        One request for a thousand objects, and not for a folder.
        """
        found = (_file(one) for one in self._client.walk("blobs"))
        following = next(found, None)
        for shard in SHARDS:
            files = []
            while following is not None and following.name < f"{shard}0":  # "0" is next to "/"
                files.append(following)
                following = next(found, None)
            yield shard, [file for file in files if file.name.startswith(f"{shard}/")]

    def strays(self) -> list[StoredFile]:
        """Return what lies beside those folders."""
        folders, objects = self._client.folders("blobs")
        names = (folder.removeprefix("blobs/").strip("/") for folder in folders)
        others = [one for name in names if name not in SHARDS for one in self.files(name)]
        return sorted([*others, *map(_file, objects)], key=lambda one: one.name)

    def lacking(self) -> list[str]:
        """Return nothing: a bucket has no folders that could be missing."""
        return []

    def protect(self, name: str) -> None:
        """Do nothing: an object has no mode."""

    def set_aside(self, *below: str) -> str:
        """Move what lies in the store to quarantine/, under a name that was never used.

        Raises:
            NotFoundError: it isn't there.
            RemoteError, NotWritableError: it can't be moved.
        """
        key, kept = "/".join(below), f"quarantine/{'-'.join(below)}-{secrets.token_hex(4)}"
        self._client.copy(key, kept)
        self._client.delete(key)
        return self._client.at(kept)

    def kept(self) -> list[Path]:
        """Return none: what lies so in the cache may be another registry's."""
        return []

    def leftovers(self) -> list[StoredFile]:
        """Return what the next `sweep` takes."""
        far = [StoredFile(one.key, one.size_bytes, one.modified_at) for one in self._old_tmp()]
        return [*listing.leftovers(self._cache.root), *far]

    def _old_tmp(self) -> list[Stored]:
        found = list(self._client.below("tmp"))
        if not found:
            return []
        now = self.clock()
        return [one for one in found if one.modified_at < now - _LEFT_S]

    # --- records ------------------------------------------------------------------------------

    def put_record(self, id: str, text: str) -> None:
        """Write a checkpoint's record, in place of the one before if there is one.

        Raises:
            RemoteError, NotWritableError: it can't be written; the one before is as it was.
        """
        self._client.put(_record_key(id), text.encode())

    def read_record(self, id: str) -> str:
        """Return a checkpoint's record.

        Raises:
            NotFoundError: there is none.
            DamagedError: it is no text of a record's size.
        """
        key = _record_key(id)
        place = self._client.at(key)
        try:
            data = self._client.get(key, limit=_MAX_RECORD)
            if data is None:
                raise NotFoundError(f"there is no record {place!r}")
            return data.decode()
        except ValueError as error:  # too large, or no UTF-8
            raise DamagedError(f"the record {place!r} is no record: {error}") from error

    def record_time(self, id: str) -> float | None:
        """Return when a checkpoint's record was last written, by the server's clock, or None."""
        found = self._client.head(_record_key(id))
        return None if found is None else found.modified_at

    def records(self) -> Iterator[CheckpointId]:
        """Yield the ids of all records, sorted; objects that are no records are passed over."""
        for found in self._client.below("records"):
            match = _RECORD.fullmatch(found.key)
            if match:
                yield checkpoint_id(match[2])


def _key(blob: Blob) -> str:
    return f"blobs/{blob.name}"


def _record_key(id: str) -> str:
    checked = checkpoint_id(id)
    return f"records/{checked[:2]}/{checked}.json"


def _file(found: Stored) -> StoredFile:
    return StoredFile(found.key.removeprefix("blobs/"), found.size_bytes, found.modified_at)


def _read_marker(client: Client) -> str:
    found = _found_marker(client)
    if found is None:
        raise NotFoundError(
            f"{client.url!r} is no blob store: its marker {MARKER} is missing",
            hint="see which bucket, prefix and endpoint are meant: env | grep AWS_",
        )
    return found


def _look(client: Client) -> str | None:
    found = _found_marker(client)
    if found is None:
        _check_never_used(client)
    return found


def _found_marker(client: Client) -> str | None:
    place = client.at(MARKER)
    try:
        data = client.get(MARKER, limit=MAX_MARKER)
    except ValueError as error:
        raise DamagedError(f"{place!r} is no store's marker: {error}") from error
    return None if data is None else parse(data, place, copy_back(place))


def _check_never_used(client: Client) -> None:
    """Refuse a prefix that holds things: to give a used store a new id would lose it.

    Raises:
        DamagedError: blobs or records are there, and no marker.
        ConflictError: something else is.
    """
    folders, objects = client.folders()
    found = sorted([*(f"{name.strip('/')}/" for name in folders), *(one.key for one in objects)])
    if MARKER in found:
        return  # another creator was faster
    if {"blobs/", "records/"} & set(found):
        raise DamagedError(
            f"the store at {client.url!r} has blobs or records, and its marker {MARKER} is missing",
            hint=f"bring it back from a backup: {copy_back(client.at(MARKER))}",
        )
    if found:
        raise ConflictError(
            f"{client.url!r} holds something else: {', '.join(map(repr, found[:3]))}"
            + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
            hint=f"take a prefix of its own: --blobs {client.url}/ckreg",
        )
