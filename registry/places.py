"""What a location means: which database, and which blob store belongs to it.

Law: a folder holds both, unless its database says that the bytes are elsewhere; a server's database
always says where they are. What is said is checked by the store's own id, so that neither a wrong
mount nor CKREG_BLOBS can give one registry another's bytes.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .blobs import BlobStore, marker
from .blobs.disk import open_folder, read_small, translate
from .blobs.local import LocalStore
from .catalog import Catalog
from .errors import CkregError, ConflictError, DamagedError, NotFoundError, NotWritableError
from .location import BLOBS_AT, DATABASE, Location
from .schema import Database, Transactions
from .urls import DatabaseUrl, is_url
from .values import digest_of

if TYPE_CHECKING:
    from .server import ServerDatabase

Place = Location | DatabaseUrl

BLOBS: Final = "blobs"
"""The setting that says where the bytes are, where that isn't the registry's own folder."""


def database(place: Place) -> Database | ServerDatabase:
    """Name a location's database, without a look at it."""
    if isinstance(place, DatabaseUrl):
        from .server import ServerDatabase

        return ServerDatabase(place)
    return Database(place.folder / DATABASE)


def sightings(place: Place) -> Path:
    """Return the folder that keeps what imports saw of their trees: a server's is in the cache."""
    if isinstance(place, DatabaseUrl):
        from .blobs import cache

        with suppress(CkregError):
            cache.Cache.find()  # made, and for its user alone
        return cache.place() / "imports" / digest_of(str(place)).removeprefix("blake3:")[:32]
    return place.folder / "imports"


def open_parts(place: Place) -> tuple[BlobStore | None, Catalog]:
    """Open a registry that is there.

    Returns:
        The store, or None for one at a URL: `open_remote` asks its server, which no question needs.

    Raises:
        NotFoundError: the database or the store isn't there, or the database is empty.
        ConflictError: the store is another registry's.
        CkregError: as the opening of either.
    """
    opened: Transactions
    if isinstance(place, DatabaseUrl):
        from .server import ServerDatabase

        opened = ServerDatabase.open(place)
    else:
        folder_store = None if os.environ.get("CKREG_BLOBS") else LocalStore.open(place.folder)
        opened = Database.open(place.folder / DATABASE)
    catalog = Catalog(opened)
    where = _recorded(catalog)
    if where is None:
        if isinstance(place, DatabaseUrl):
            raise NotFoundError(
                f"the registry {str(place)!r} is unfinished: it doesn't say where its blobs are",
                hint=f"finish it: ckreg init {shlex.quote(str(place))} --blobs FOLDER",
            )
        assert folder_store is not None
        return folder_store, catalog
    if is_url(where):
        return None, catalog
    return _checked(catalog, where), catalog


def open_remote(catalog: Catalog) -> BlobStore:
    """Open the store of a registry that `open_parts` opened without it.

    Raises:
        CkregError: as `open_parts`.
    """
    where = _recorded(catalog)
    assert where is not None
    return _checked(catalog, where)


def _checked(catalog: Catalog, where: str) -> BlobStore:
    store = open_store(where)
    catalog.check_store(store.id)
    return store


def _recorded(catalog: Catalog) -> str | None:
    """Return where the bytes are, if that is said: the variable goes before the database."""
    return os.environ.get("CKREG_BLOBS") or catalog.setting(BLOBS)


def create_parts(place: Place, blobs: str | os.PathLike[str] | None, *, shared: bool) -> None:
    """Make a registry's store and its database, or complete what is there.

    The store gets the registry's own id. That is there first, so that a store which is there and of
    another id is another registry's: two that share one would collect each other's bytes.

    Raises:
        ValueError: a server's database, and no place for the blobs, or `shared` of a bucket.
        ConflictError: the database holds something else, or its blobs are elsewhere, or the place
            is another registry's or holds something else.
        DamagedError: the blobs of this registry are there, and its database is lost.
        NotWritableError: it can't be made there.
    """
    where = None if blobs is None else absolute(blobs)
    if isinstance(place, DatabaseUrl):
        made = _create_on_server(place, where, shared=shared)
    else:
        made = _create_in_folder(place.folder, where, shared=shared)
    catalog = Catalog(made)
    if where is not None and catalog.setting(BLOBS) is None:
        catalog.set_setting(BLOBS, where)
    if isinstance(place, Location):
        point(place.folder, catalog)


def _create_on_server(place: DatabaseUrl, where: str | None, *, shared: bool) -> Transactions:
    from .catalog import Upkeep
    from .server import ServerDatabase

    known = ServerDatabase(place)
    if where is None and known.revision() is not None:
        where = Catalog(known).setting(BLOBS)
    if where is None:
        at = shlex.quote(str(place))
        raise ValueError(f"where shall the blobs be? ckreg init {at} --blobs FOLDER")
    if shared and is_url(where):
        raise ValueError(f"a bucket has no group: leave --shared out for {where!r}")
    there = _look(where)
    if there is not None:
        id = None if known.revision() is None else Upkeep(known).store()
        marker.check_own(there, id, where)
    made = ServerDatabase.create(place)
    create_store(where, id=Upkeep(made).identify(), shared=shared)
    return made


def _create_in_folder(folder: Path, where: str | None, *, shared: bool) -> Transactions:
    from .catalog import Upkeep

    path = folder / DATABASE
    there = None if where is None else _look(where)
    if there is not None and where is not None:
        own = marker.read(folder) if (folder / marker.MARKER).exists() else None
        marker.check_own(there, own, where)
        if not path.exists() and next(open_store(where).records(), None) is not None:
            at = shlex.quote(str(folder))
            raise DamagedError(
                f"the blobs of the registry {str(folder)!r} are at {where!r}, and its database "
                f"{DATABASE} is lost",
                hint=f"bring it back from a backup: cp BACKUP {at}; or make it anew from the "
                f"records: CKREG_BLOBS={shlex.quote(where)} ckreg -r {at} verify --rebuild",
            )
    store = LocalStore.create(folder, shared=shared)
    if where is not None:
        create_store(where, id=store.id, shared=shared)
    made = Database.create(path)
    Upkeep(made).adopt(store.id)
    return made


def point(folder: Path, catalog: Catalog) -> None:
    """Let a folder say where its registry's bytes are, if elsewhere: its database may be lost.

    That comes after the database: a folder that says it and has none has lost it.
    """
    where = catalog.setting(BLOBS)
    if where is None:
        return
    with suppress(DamagedError):
        if _pointed(folder) == where:
            return
    LocalStore.open(folder).put_beside(BLOBS_AT, f"{where}\n")


def _pointed(folder: Path) -> str | None:
    """Return where the bytes of a folder's registry are as the folder itself says: elsewhere.

    Raises:
        DamagedError: what it says is no place.
        CkregError: it can't be read.
    """
    path = folder / BLOBS_AT
    try:
        top = open_folder(folder)
        try:
            where = read_small(BLOBS_AT, top, _MAX_PLACE).decode().strip()
        finally:
            os.close(top)
        if os.path.isabs(where) or is_url(where):
            return absolute(where)
        why = f"{where!r} is neither a URL nor a folder's whole path"
    except FileNotFoundError:
        return None
    except ValueError as error:  # no text, or no URL that is served
        why = str(error)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.EISDIR):
            raise translate(error, "read", path) from error
        why = str(error.strerror)
    raise DamagedError(
        f"{str(path)!r}, which says where the registry's bytes are, can't be understood: {why}",
        hint=f"say it: CKREG_BLOBS=PLACE ckreg -r {shlex.quote(str(folder))} verify --rebuild; "
        "where the database is whole, the next save or push writes the file anew",
    )


_MAX_PLACE: Final = 64 << 10


def check_blobs(catalog: Catalog, store: BlobStore, blobs: str | os.PathLike[str]) -> None:
    """See that a registry's blobs are where somebody says.

    Raises:
        ConflictError: they are elsewhere.
    """
    known = catalog.setting(BLOBS) or store.location
    if absolute(blobs) != known:
        raise ConflictError(
            f"the registry is there already, and its blobs are at {known!r}",
            hint=f"on a machine that has them elsewhere: CKREG_BLOBS={absolute(blobs)}",
        )


def rebuilt_from(folder: Path) -> tuple[BlobStore, str | None]:
    """Open the store whose records a folder's database can be made of, though that may be lost.

    Returns:
        And where it is, if not in the folder: as CKREG_BLOBS, the database or the folder says.

    Raises:
        ConflictError: it is another registry's.
        CkregError: as the opening of it.
    """
    own = LocalStore.open(folder)
    where = os.environ.get("CKREG_BLOBS")
    if not where:
        with suppress(CkregError):
            where = Catalog(Database.open(folder / DATABASE)).setting(BLOBS)
    where = where or _pointed(folder)
    if not where:
        return own, None
    store = open_store(where)
    marker.check_own(store.id, own.id, where)
    return store, absolute(where)


def absolute(blobs: str | os.PathLike[str]) -> str:
    """Return a store's place as it is recorded: a URL, or a folder's whole path.

    Raises:
        ValueError: it is a URL of a kind that is not served, or holds a password.
    """
    text = os.fspath(blobs)
    if is_url(text):
        from .blobs.remote import check_url

        return check_url(text)
    return os.path.abspath(os.path.expanduser(text))


def open_store(where: str) -> BlobStore:
    """Open the store in a folder or at a URL.

    Raises:
        NotFoundError: there is none.
        CkregError: it can't be opened.
    """
    where = absolute(where)
    if is_url(where):
        from .blobs import ObjectStore

        return ObjectStore.open(where)
    try:
        return LocalStore.open(Path(where))
    except NotFoundError as error:
        raise NotFoundError(
            error.message,
            hint="see whether it is mounted there; where it is elsewhere: CKREG_BLOBS=FOLDER",
        ) from error


def create_store(where: str, *, id: str, shared: bool) -> BlobStore:
    """Make a registry's store in a folder or at a URL, or open the one that is there.

    Raises:
        ConflictError: another registry's is there.
        NotWritableError: it can't be made there.
    """
    if is_url(where):
        from .blobs import ObjectStore

        return ObjectStore.create(where, id=id)
    return LocalStore.create(Path(where), shared=shared, id=id)


def _look(where: str) -> str | None:
    """Return the id of the store that is at a place, or None where one can be made.

    Raises:
        ConflictError: something else is there.
        CkregError: it can't be looked at.
    """
    if is_url(where):
        from .blobs import ObjectStore

        return ObjectStore.look(where)
    folder = Path(where)
    if (folder / DATABASE).exists():
        raise ConflictError(
            f"{where!r} is a registry of its own, with a database beside its blobs",
            hint="name another folder: --blobs FOLDER",
        )
    try:
        there = set(os.listdir(folder))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConflictError(f"{where!r} is a file, not a folder for blobs") from error
    except OSError as error:
        raise NotWritableError(f"{where!r} can't be looked into: {error.strerror}") from error
    if marker.MARKER in there:
        return marker.read(folder)
    if others := sorted(there - _OWN):
        raise ConflictError(
            f"{where!r} is not empty: it holds {', '.join(map(repr, others[:3]))}",
            hint="name a folder of its own: --blobs FOLDER",
        )
    return None


_OWN: Final = frozenset({"blobs", "records", "tmp"})
"""What a store that is just being made holds."""
