"""What a location means: which database, and which blob store belongs to it.

Law: a folder holds both, unless its database says that the bytes are elsewhere; a server's database
always says where they are. What is said is checked by the store's own id, so that neither a wrong
mount nor CKREG_BLOBS can give one registry another's bytes.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .blobs import BlobStore
from .blobs.local import LocalStore
from .catalog import Catalog, Upkeep
from .errors import ConflictError, NotFoundError, NotWritableError
from .location import DATABASE, Location
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
    """Return the folder that keeps what imports saw of their trees; a server has none."""
    if isinstance(place, DatabaseUrl):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache").expanduser())
        return cache / "ckreg" / "imports" / digest_of(str(place)).removeprefix("blake3:")[:32]
    return place.folder / "imports"


def open_parts(place: Place) -> tuple[BlobStore, Catalog]:
    """Open a registry that is there.

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
    where = os.environ.get("CKREG_BLOBS") or catalog.setting(BLOBS)
    if where is None:
        if isinstance(place, DatabaseUrl):
            raise NotFoundError(
                f"the registry {str(place)!r} is unfinished: it doesn't say where its blobs are",
                hint=f"finish it: ckreg init {place} --blobs FOLDER",
            )
        assert folder_store is not None
        return folder_store, catalog
    store = open_store(where)
    Upkeep(opened).check(store.id)
    return store, catalog


def create_parts(place: Place, blobs: str | os.PathLike[str] | None, *, shared: bool) -> None:
    """Make a registry's store and its database, or complete what is there.

    Raises:
        ValueError: a server's database, and no place for the blobs.
        ConflictError: the database holds something else, or its blobs are elsewhere.
        NotWritableError: it can't be made there.
    """
    made: Transactions
    where = None if blobs is None else absolute(blobs)
    if isinstance(place, DatabaseUrl):
        from .server import ServerDatabase

        known = _known_blobs(place)
        if where is None:
            if known is None:
                raise ValueError(f"where shall the blobs be? ckreg init {place} --blobs FOLDER")
            where = known
        store = create_store(where, shared=shared)
        made = ServerDatabase.create(place)
    else:
        own: BlobStore = LocalStore.create(place.folder, shared=shared)
        store = own if where is None else create_store(where, shared=shared)
        made = Database.create(place.folder / DATABASE)
    Upkeep(made).adopt(store.id)
    catalog = Catalog(made)
    if where is not None and catalog.setting(BLOBS) is None:
        catalog.set_setting(BLOBS, where)


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


def _known_blobs(place: DatabaseUrl) -> str | None:
    """Return where a database says that its blobs are; it is looked at before a store is made."""
    from .server import ServerDatabase

    known = ServerDatabase(place)
    return None if known.revision() is None else Catalog(known).setting(BLOBS)


def absolute(blobs: str | os.PathLike[str]) -> str:
    """Return a store's place as it is recorded: a URL, or a folder's whole path.

    Raises:
        ValueError: it is a URL of a kind that is not served.
    """
    text = os.fspath(blobs)
    if is_url(text):
        if not text.startswith("s3://"):
            raise ValueError(f"blobs are kept in a folder or at s3://BUCKET/PREFIX, not {text!r}")
        return text
    return os.path.abspath(os.path.expanduser(text))


def open_store(where: str) -> BlobStore:
    """Open the store in a folder or at a URL.

    Raises:
        NotFoundError: there is none.
        CkregError: it can't be opened.
    """
    where = absolute(where)
    if is_url(where):
        return cast("BlobStore", _objects().open(where))
    try:
        return LocalStore.open(Path(where))
    except NotFoundError as error:
        raise NotFoundError(
            error.message,
            hint="see whether it is mounted there; where it is elsewhere: CKREG_BLOBS=FOLDER",
        ) from error


def create_store(where: str, *, shared: bool) -> BlobStore:
    """Make a store in a folder or at a URL, or open the one that is there.

    Raises:
        ConflictError: something else is there.
        NotWritableError: it can't be made there.
    """
    if is_url(where):
        return cast("BlobStore", _objects().create(where))
    folder = Path(where)
    if (folder / DATABASE).exists():
        raise ConflictError(
            f"{where!r} is a registry of its own, with a database beside its blobs",
            hint="name another folder: --blobs FOLDER",
        )
    try:
        others = sorted(set(os.listdir(folder)) - _OWN)
    except FileNotFoundError:
        others = []
    except NotADirectoryError as error:
        raise ConflictError(f"{where!r} is a file, not a folder for blobs") from error
    except OSError as error:
        raise NotWritableError(f"{where!r} can't be looked into: {error.strerror}") from error
    if others and "store.json" not in os.listdir(folder):
        raise ConflictError(
            f"{where!r} is not empty: it holds {', '.join(map(repr, others[:3]))}",
            hint="name a folder of its own: --blobs FOLDER",
        )
    return LocalStore.create(folder, shared=shared)


_OWN: Final = frozenset({"store.json", "blobs", "records", "tmp"})


def _objects() -> Any:
    """Return the store of an object service; what it needs is imported only for such a URL."""
    return import_module(".blobs.objects", __package__).ObjectStore
