"""Upkeep: what verify, prune, gc and repair ask of the database, and tell it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence

from sqlalchemy import Connection, insert, select

from ..blobs import Blob
from ..retention import Candidate, Monitor
from ..schema import Transactions
from ..tables import checkpoints, settings
from ..values import CheckpointId, Digest
from . import checking, collecting, pruning, ranking, wholes
from .checking import Checked, Wrong
from .collecting import Removed
from .pruning import Prunable, Pruned
from .scopes import ANY, Dataset
from .stores import STORE, check_same
from .wholes import Whole


class Upkeep:
    """A registry's database from below. Every method is one transaction, as in Catalog.

    Raises, from any method: as Catalog.
    """

    def __init__(self, database: Transactions) -> None:
        self._database = database

    # --- which store -------------------------------------------------------------------------

    def store(self) -> str | None:
        """Return the id of the store that the blobs are in, or None where it isn't recorded."""
        with self._database.read() as connection:
            found: str | None = connection.scalar(
                select(settings.c.value).where(settings.c.name == STORE)
            )
            return found

    def check(self, store: str) -> None:
        """See that the blobs are in a store, as far as it is recorded.

        Raises:
            ConflictError: they are in another one.
        """
        check_same(self.store(), store)

    def adopt(self, store: str) -> None:
        """Record which store the blobs are in, if it isn't known.

        Raises:
            ConflictError: they are in another one.
        """
        if self.store() is None:
            self._database.writing(lambda c: _adopt(c, store))
        self.check(store)

    def identify(self) -> str:
        """Return the id of the store that the blobs are in, or are to be; chosen now if none is."""
        found = self.store()
        if found is None:
            chosen = uuid.uuid4().hex
            found = self._database.writing(lambda c: _adopt(c, chosen))
        return found

    # --- verify ------------------------------------------------------------------------------

    def integrity(self) -> list[str]:
        """Return what the database itself finds wrong with it, in words."""
        with self._database.read() as connection:
            return checking.integrity(connection)

    def page(self, *, after: int = 0, size: int = 50) -> list[Checked]:
        """Return the next checkpoints by key, removed ones too, their rows checked."""
        with self._database.read() as connection:
            return checking.page(connection, after, size)

    def one(self, id: CheckpointId) -> Checked:
        """Return a checkpoint that is there, its rows checked."""
        with self._database.read() as connection:
            return checking.one(connection, id)

    def rest(self) -> list[Wrong]:
        """Return what is wrong with models, runs, signatures, blobs and aliases."""
        with self._database.read() as connection:
            return list(checking.rest(connection))

    def named_in(self, shards: Sequence[str]) -> list[tuple[dict[str, Blob], dict[Digest, Blob]]]:
        """Return the blobs of some of the store's folders, by name, and of their indexes, by the
        digest of the file that each is of.
        """
        with self._database.read() as connection:
            return [
                (collecting.blobs_in(connection, one), checking.indexes_in(connection, one))
                for one in shards
            ]

    def refs_of(self, digest: Digest) -> list[str]:
        """Return the checkpoints that need some bytes, removed ones too."""
        with self._database.read() as connection:
            return checking.refs_of(connection, digest)

    def ids(self) -> list[CheckpointId]:
        """Return the ids of all checkpoints, removed ones too."""
        with self._database.read() as connection:
            return [CheckpointId(id) for id in connection.scalars(select(checkpoints.c.id))]

    def older(
        self,
        model: str,
        *,
        dataset: Dataset = ANY,
        run: str | None = None,
        than: int | None = None,
    ) -> tuple[CheckpointId, int] | None:
        """Return the id and version of the newest checkpoint, or of the one below a version.

        Raises:
            NotFoundError: no such model or run, or it has no checkpoint.
            AmbiguousError: there are several datasets, and none is named.
        """
        with self._database.read() as connection:
            return ranking.older(connection, model, dataset=dataset, run=run, than=than)

    # --- prune -------------------------------------------------------------------------------

    def monitor_of(self, model: str) -> Monitor:
        """Return what best means for a model; what it will mean for one that isn't there yet."""
        with self._database.read() as connection:
            return pruning.monitor_of(connection, model)

    def prunable(
        self, model: str, *, dataset: Dataset, run: str | None, named: Collection[str]
    ) -> Prunable:
        """Return the live checkpoints of a model, dataset or run, as a policy sees them.

        Args:
            run: an id.
            named: the metrics that are asked for beside the monitor.

        Raises:
            NotFoundError: no such model or run.
            DamagedError: a metric isn't what was written.
        """
        with self._database.read() as connection:
            return pruning.prunable(connection, model, dataset=dataset, run=run, named=named)

    def freed(self, ids: Collection[CheckpointId]) -> int:
        """Return the bytes that no live checkpoint needs but these, each counted once."""
        with self._database.read() as connection:
            return pruning.freed(connection, ids)

    def prune(
        self, model: str, surplus: Sequence[Candidate], *, run: str | None, author: str | None
    ) -> Pruned:
        """Remove what a policy let go, as far as it may still go; say what was spared, and why."""
        return self._database.writing(
            lambda c: pruning.prune(c, model, surplus, run=run, author=author)
        )

    # --- gc ----------------------------------------------------------------------------------

    def removed(self) -> list[Removed]:
        """Return the removed checkpoints whose files are still there, the longest removed
        first.
        """
        with self._database.read() as connection:
            return collecting.removed(connection)

    def blobs_in(self, shards: Sequence[str]) -> list[dict[str, Blob]]:
        """Return the blobs of some of the store's folders, by name."""
        with self._database.read() as connection:
            return [collecting.blobs_in(connection, shard) for shard in shards]

    def unneeded(self, without: Collection[CheckpointId]) -> list[Blob]:
        """Return the blobs that no file refers to but those of some checkpoints."""
        with self._database.read() as connection:
            return collecting.unneeded(connection, without)

    def unknown(self, ids: Iterable[CheckpointId]) -> list[CheckpointId]:
        """Return which of some ids no checkpoint has."""
        with self._database.read() as connection:
            return collecting.unknown(connection, ids)

    def retire(self, found: Sequence[Removed]) -> list[Removed]:
        """Let go of the files of checkpoints that are still removed; return those."""
        return self._database.writing(lambda c: collecting.retire(c, found))

    def forget(self, digests: Collection[Digest]) -> list[Blob]:
        """Delete the rows of blobs that no file refers to; return these blobs, to be dropped."""
        return self._database.writing(lambda c: collecting.forget(c, digests))

    def drop_orphans(self, found: Sequence[Blob], drop: Callable[[Blob], None]) -> list[Blob]:
        """Drop the files that no row names while nobody can commit one; return them."""
        return self._database.writing(lambda c: collecting.drop_orphans(c, found, drop))

    # --- repair ------------------------------------------------------------------------------

    def put_back(self, found: Sequence[Whole]) -> None:
        """Make the rows of checkpoints of their records: new ones, or wrong ones anew.

        Raises:
            ConflictError: a run of a record's name is another one here.
        """

        def work(connection: Connection) -> None:
            for one in found:
                wholes.put_back(connection, one)

        self._database.writing(work)

    def put_moves(self, found: Sequence[Whole], *, models: bool = False) -> None:
        """Make the moves of aliases that records tell of, once all their checkpoints are there.

        Args:
            models: and let best mean what each model's newest record says.
        """
        newest: dict[str, Whole] = {}
        for one in found:
            other = newest.get(one.checkpoint.model)
            if other is None or other.checkpoint.version < one.checkpoint.version:
                newest[one.checkpoint.model] = one
        moves = [(one.checkpoint.model, move) for one in found for move in one.plain["moves"]]

        def work(connection: Connection) -> None:
            for one in newest.values() if models else ():
                wholes.put_model(connection, one)
            wholes.put_moves(connection, moves)

        self._database.writing(work)


def _adopt(connection: Connection, store: str) -> str:
    """Record the store's id unless one is, and return the one that is then."""
    there: str | None = connection.scalar(select(settings.c.value).where(settings.c.name == STORE))
    if there is None:
        connection.execute(insert(settings).values(name=STORE, value=store))
    return store if there is None else there
