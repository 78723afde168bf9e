"""Handle: a registry opened: its database, its blob store, and what a ref means in it.

Law: a question opens the database alone; the store is asked for when bytes are, and what would fail
a write later fails it at the opening for it. The ground that Asking, Giving and Registry stand on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from . import location, places, refs
from .catalog import Catalog
from .errors import CkregError, ConflictError, NotFoundError
from .pending import Queue
from .records import Checkpoint
from .runs import Lineage, of_dataset
from .schema import Database
from .values import (
    one_of,
)

if TYPE_CHECKING:
    from .blobs import BlobStore
    from .catalog import Upkeep
    from .server import ServerDatabase


Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

Ref = str | Checkpoint
"""`resnet50`, `resnet50@v3`, `resnet50@best`, `resnet50@prod`, an id or a prefix of one; or a
checkpoint.
"""


class Handle:
    """A registry at a place, opened when it is first used."""

    def __init__(self, place: places.Place) -> None:
        """Use `Registry.open` or `Registry.create`."""
        self._location = place
        self._store: BlobStore | None = None
        self._opened: Catalog | None = None
        self._share_checked = False
        self._pending = Queue()
        self._lineage = Lineage()

    @classmethod
    def open(cls, location_: str | os.PathLike[str] | None = None) -> Self:
        """Open a registry: the one named, else $CKREG_REGISTRY, else ./.ckreg upward, else
        ~/.ckreg.

        The default, ~/.ckreg, need not exist: the first save or push makes it.

        Raises:
            NotFoundError: a location was named, and no registry is there.
            ConflictError: the location is a file.
            SchemaVersionError: the registry was made by a newer ckreg.
        """
        registry = cls(location.find(location_))
        if registry._location.exists:
            registry._catalog()
        return registry

    @classmethod
    def create(
        cls,
        location_: str | os.PathLike[str],
        *,
        blobs: str | os.PathLike[str] | None = None,
        shared: Literal["group"] | None = None,
    ) -> Self:
        """Make a registry in a folder that is empty or not there yet, or in a database; open it.

        One that is there already is opened: making it twice, or by many processes at once, is no
        error.

        Args:
            location_: a folder, or `postgresql+psycopg://USER@HOST/NAME` of an empty database.
            blobs: where the bytes are, if not in the folder: another one, or s3://BUCKET/PREFIX,
                gs://…, az://…, whose credentials and endpoint are read from the environment. It is
                recorded in the database, whose readers must have it too; `CKREG_BLOBS` says where
                it is on a machine that has it elsewhere.
            shared: "group" lets the folder's group write to it, whatever anybody's umask is:
                folders are 2775, blobs 0444. By default a new folder is its owner's alone (0700),
                and one that is there keeps its mode.

        Raises:
            ConflictError: the folder holds other things, or the location is a file; or a registry
                is there that isn't shared, or has its blobs elsewhere; or the place for the blobs
                is another registry's.
            NotWritableError: it can't be made there.
            NotFoundError, RemoteError: there is no such bucket or database, or no answer.
        """
        registry = cls(location.place(location_))
        registry._create(
            blobs,
            shared=shared is not None and one_of(shared, ("group",), "shared") == "group",
        )
        return registry

    def _create(self, blobs: str | os.PathLike[str] | None = None, *, shared: bool = False) -> None:
        import shlex

        from .blobs.disk import is_shared

        place = self._location
        on_server = not isinstance(place, location.Location)
        if on_server or not place.exists:
            if isinstance(place, location.Location):
                location.check_free(place.folder)
            places.create_parts(place, blobs, shared=shared)
            if shared:
                self._catalog().set_setting("shared", "group")
        store, catalog = self._parts()
        if blobs is not None:
            places.check_blobs(catalog, store, blobs)
        folder = place.folder if isinstance(place, location.Location) else Path(store.location)
        if shared and not is_shared(folder):
            at = shlex.quote(str(folder))
            raise ConflictError(
                f"the registry {str(folder)!r} is there already, and is not shared with its group",
                hint=f"as its owner: chmod -R g+rwX {at} && chmod -R a-w {at}/blobs/*/* && "
                f"find {at} -type d -exec chmod 2775 {{}} +",
            )

    def _parts(self) -> tuple[BlobStore, Catalog]:
        catalog = self._catalog()
        if self._store is None:
            self._store = places.open_remote(catalog)
        return self._store, catalog

    def _catalog(self) -> Catalog:
        """Return what answers questions; a bucket is not asked for that."""
        if self._opened is None:
            if not self._location.exists:
                raise NotFoundError(
                    f"there is no registry at {str(self._location)!r} yet",
                    hint="the first save or push makes it: ckreg push FILE",
                )
            self._store, self._opened = places.open_parts(self._location)
        return self._opened

    def _for_writing(self) -> tuple[BlobStore, Catalog]:
        """Open for a write: the default location is made, and what would fail later fails now."""
        from . import mounts

        if not self._location.exists and self._location.default:
            self._create()
        store, catalog = self._parts()
        catalog.check_writable()
        if not self._share_checked:
            if isinstance(self._location, location.Location):
                folder = self._location.folder
                mounts.check_share(folder, folder / "tmp")
                with suppress(CkregError):  # fails no save: the next one tries again
                    places.point(folder, catalog)
            self._share_checked = True
        store.check_writable()
        return store, catalog

    @property
    def location(self) -> str:
        """Where the registry is."""
        return str(self._location)

    @property
    def exists(self) -> bool:
        """Whether it is there already; the default location is made by the first write."""
        return self._location.exists

    def close(self) -> None:
        """Finish the saves that go on in the background, and let go of the registry.

        Raises:
            CkregError: one of them failed, and nobody asked for its result.
        """
        try:
            self._pending.flush()
        finally:
            self._store = self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            error.add_note(f"a save in the background failed too: {late}")

    def __repr__(self) -> str:
        return f"<Registry {self.location!r}>"

    def _database(self) -> Database | ServerDatabase:
        return places.database(self._location)

    def _upkeep(self) -> Upkeep:
        from .catalog import Upkeep

        self._catalog()  # which refuses a registry that isn't there
        return Upkeep(self._database())

    def _resolve(
        self, ref: Ref, dataset: str | None = None, *, include_removed: bool = False
    ) -> Checkpoint:
        catalog = self._catalog()
        if isinstance(ref, Checkpoint):
            return catalog.by_id(ref.id, include_removed=include_removed)
        if not isinstance(ref, str):
            raise TypeError(f"a ref is text such as 'resnet50@best', not {type(ref).__name__}")
        return catalog.get(
            refs.parse(ref),
            dataset=of_dataset(dataset),
            include_removed=include_removed,
        )
