"""Catalog: the table of contents of what the database can be asked and told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from ..errors import NotFoundError
from ..records import Checkpoint, Mode, Model, RunRecord
from ..refs import Ref
from ..schema import Transactions
from ..signature import Signature
from ..tables import blobs, checkpoints, files, models, runs, settings, signatures
from ..values import Digest
from ..where import Expression
from . import finding, kin, lookup, naming, ranking
from .finding import Alone, Page, Query
from .rows import fetch, moment, run_of
from .scopes import ANY, Dataset, datasets
from .stores import STORE, check_same

if TYPE_CHECKING:
    from ..blobs import Blob
    from .adding import Added, Draft
    from .changing import AliasMove, Recorded
    from .surveying import Choices, Course, Freeable, Holding, Standing

_PAGE = 200
_MOST = 2**31  # rows of a page: more than there are, and no more than a database can count


class Catalog:
    """The records of a registry. Every method is one transaction, and holds nothing afterwards.

    Raises, from any method:
        BusyError: the database is locked for too long.
        DamagedError: a row isn't what was written.
        SchemaVersionError: the schema is ahead of this ckreg, or behind and not upgraded here.
        NotWritableError: a write, where the registry is read-only.
    """

    def __init__(self, database: Transactions) -> None:
        self._database = database

    @property
    def location(self) -> str:
        """Where the database is, as `-r` takes it; without a password."""
        return self._database.location

    def check_writable(self) -> None:
        """Find out now whether a write could succeed.

        Raises:
            NotWritableError: it couldn't; the message says why.
        """
        self._database.check_writable()

    # --- one checkpoint ----------------------------------------------------------------------

    def get(self, ref: Ref, *, dataset: Dataset = ANY, include_removed: bool = False) -> Checkpoint:
        """Return the checkpoint that a ref means.

        Args:
            dataset: where the ref leaves it open, which is meant; else it must agree.

        Raises:
            NotFoundError: none, or it was removed; the hint has near names, or the way back.
            AmbiguousError: several; `candidates` has their refs.
        """
        with self._database.read() as connection:
            return lookup.get(connection, ref, dataset=dataset, include_removed=include_removed)

    def by_id(self, prefix: str, *, include_removed: bool = False) -> Checkpoint:
        """Return the checkpoint whose id begins with 6 or more hex digits.

        Raises:
            NotFoundError: none, or it was removed.
            AmbiguousError: several.
            ValueError: it can't be the beginning of an id.
        """
        with self._database.read() as connection:
            return lookup.by_id(connection, prefix, include_removed=include_removed)

    def best(
        self,
        model: str,
        *,
        dataset: Dataset = ANY,
        metric: str | None = None,
        mode: Mode | None = None,
        run: str | None = None,
    ) -> Checkpoint:
        """Return the checkpoint with the best value of a metric; of equals the newest version.

        Args:
            metric, mode: by default the model's monitor.
            run: an id.

        Raises:
            NotFoundError: no such model or run, or none has the metric; the message lists those.
            AmbiguousError: checkpoints of several datasets have the metric, and none is named.
            ValueError: a metric that isn't the monitor, without a mode.
        """
        with self._database.read() as connection:
            return ranking.best(
                connection, model, dataset=dataset, metric=metric, mode=mode, run=run
            )

    def latest(self, model: str, *, dataset: Dataset = ANY, run: str | None = None) -> Checkpoint:
        """Return the checkpoint with the highest version of one dataset.

        Raises:
            NotFoundError: no such model or run, or it has no checkpoint.
            AmbiguousError: there are several datasets, and none is named.
        """
        with self._database.read() as connection:
            return ranking.latest(connection, model, dataset=dataset, run=run)

    def ancestors(self, id: str, *, limit: int) -> list[Checkpoint]:
        """Return what a checkpoint continues, its parent first, as far as it is here; removed ones
        too.
        """
        with self._database.read() as connection:
            return kin.ancestors(connection, id, limit)

    def children(self, id: str, *, limit: int) -> list[Checkpoint]:
        """Return what continues a checkpoint, the oldest first; removed ones too."""
        with self._database.read() as connection:
            return kin.children(connection, id, limit)

    # --- many --------------------------------------------------------------------------------

    def find(
        self,
        model: str | None = None,
        *,
        dataset: Dataset = ANY,
        run: str | None = None,
        where: Expression | None = None,
        tags: Sequence[str] = (),
        sort: str = "-created_at",
        limit: int | None = None,
        include_removed: bool = False,
        memory_bytes: int | None = None,
        signature: Digest | None = None,
    ) -> Iterator[Checkpoint]:
        """Iterate over the checkpoints that match, each page in a transaction of its own.

        Args:
            run: an id.
            tags: all of these.
            sort: a field of the where-language or a metric; `-` in front for descending.
            memory_bytes, signature: see Query.

        Raises:
            NotFoundError: no such model. At the first step, as all errors of an iterator.
            ValueError: the sort names neither a field nor a metric.
        """
        query = Query(
            model, dataset, run, where, tuple(tags), sort, include_removed, memory_bytes, signature
        )
        if limit is not None and limit < 0:
            raise ValueError(f"limit is how many at most, 0 or more, not {limit}")
        left, after = limit, None
        while left is None or left > 0:
            found = self.page(query, size=_PAGE if left is None else min(left, _PAGE), after=after)
            yield from found.checkpoints
            after = found.next
            if after is None:
                return
            left = None if left is None else left - len(found.checkpoints)

    def page(self, query: Query, *, size: int, after: str | None = None) -> Page:
        """Return a part of a list: the first, or the one after the place that `Page.next` named.

        Raises:
            NotFoundError, ValueError: as find; a ValueError also for a place that is none.
        """
        if size < 1:
            raise ValueError(f"a page has one row at least, not {size}")
        size = min(size, _MOST)
        with self._database.read() as connection:
            return finding.page(connection, query, size=size, after=after)

    def count(
        self,
        model: str | None = None,
        *,
        dataset: Dataset = ANY,
        run: str | None = None,
        where: Expression | None = None,
        tags: Sequence[str] = (),
        include_removed: bool = False,
        memory_bytes: int | None = None,
        signature: Digest | None = None,
    ) -> int:
        """Return how many checkpoints `find` with the same words would give.

        Raises:
            NotFoundError: no such model.
        """
        query = Query(
            model, dataset, run, where, tuple(tags), include_removed=include_removed,
            memory_bytes=memory_bytes, signature=signature,
        )  # fmt: skip
        with self._database.read() as connection:
            return finding.count(connection, query)

    def fits(self, *digests: Digest) -> list[Checkpoint]:
        """Return the checkpoints with one of these signatures, canonical or raw, newest first."""
        with self._database.read() as connection:
            return finding.fits(connection, digests)

    # --- at a glance -------------------------------------------------------------------------

    def standings(self, names: Sequence[str], *, most: int = 8) -> dict[str, Standing]:
        """Return how some models stand: the best on each of the first datasets, and the newest.

        Args:
            most: how many datasets of each.
        """
        from . import surveying

        with self._database.read() as connection:
            return surveying.standings(connection, names, most=most)

    def course(self, query: Query, metric: str, *, most: int) -> Course:
        """Return a metric over a model's checkpoints that match, thinned evenly to about `most`.

        Raises:
            NotFoundError: no such model.
        """
        from . import surveying

        with self._database.read() as connection:
            return surveying.course(connection, query, metric, most=most)

    def choices(self, model: str | None, *, most: int = 200) -> Choices:
        """Return the metrics of a model, and the runs and tags that a list can be narrowed to.

        Raises:
            NotFoundError: no such model.
        """
        from . import surveying

        with self._database.read() as connection:
            return surveying.choices(connection, model, most=most)

    def holdings(self) -> list[Holding]:
        """Return the bytes of each model, the largest first."""
        from . import surveying

        with self._database.read() as connection:
            return surveying.holdings(connection)

    def freeable(self, before: datetime, *, most: int) -> Freeable:
        """Return what goes with the checkpoints that were removed before a time."""
        from . import surveying

        with self._database.read() as connection:
            return surveying.freeable(connection, before, most=most)

    # --- models and runs ---------------------------------------------------------------------

    def models(self, names: Collection[str] | None = None) -> list[Model]:
        """Return every model, or those of some names, by name."""
        wanted = select(models).order_by(models.c.name)
        if names is not None:
            wanted = wanted.where(models.c.name.in_(names))
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
            return [
                Model(
                    name=row.name,
                    versions=row.versions,
                    checkpoints=row.live,
                    datasets=tuple(
                        datasets(
                            connection,
                            checkpoints,
                            [checkpoints.c.model_pk == row.pk, checkpoints.c.removed_at.is_(None)],
                        )
                    ),
                    metric=row.metric,
                    mode=row.mode,
                    created_at=moment(row.created_at),
                )
                for row in rows
            ]

    def sizes(self) -> dict[str, int]:
        """Return how many live checkpoints each model has, by name: a look at the models alone."""
        with self._database.read() as connection:
            rows = connection.execute(select(models.c.name, models.c.live).order_by(models.c.name))
            return {row.name: row.live for row in rows}

    def near_names(self, text: str) -> list[str]:
        """Return up to three models' names that are close to a text."""
        with self._database.read() as connection:
            return naming.near_names(connection, text)

    def run(self, id: str) -> RunRecord:
        """Return a run.

        Raises:
            NotFoundError: there is none with that id.
        """
        with self._database.read() as connection:
            row = connection.execute(
                select(runs, models.c.name.label("model"))
                .join(models, models.c.pk == runs.c.model_pk)
                .where(runs.c.id == id)
            ).one_or_none()
            if row is None:
                raise NotFoundError(f"no run has the id {id!r}")
            return run_of(row)

    def find_run(self, model: str, dataset: str | None, name: str) -> RunRecord | None:
        """Return the run of a name, or None. A name is one run's within its model and dataset."""
        from . import adding

        with self._database.read() as connection:
            of = naming.find_model(connection, model)
            row = None if of is None else adding.find_run(connection, of.pk, dataset, name)
            return None if row is None else run_of(row)

    def run_named(self, model: str | None, name: str, *, dataset: Dataset = ANY) -> RunRecord:
        """Return the one run of a name, of a model or of all.

        Raises:
            NotFoundError: there is none; the hint has near names.
            AmbiguousError: several models or datasets have one.
        """
        with self._database.read() as connection:
            return naming.run_named(connection, model, name, dataset)

    def start_run(self, run: RunRecord) -> RunRecord:
        """Record a run before its first save; if one of its name exists, return that one.

        Processes that begin a run of one name at the same moment all get the same.
        """
        from . import adding

        return self._database.writing(lambda c: adding.start_run(c, run), alongside=True)

    # --- writes ------------------------------------------------------------------------------

    def add(self, draft: Draft, holds: Callable[[Blob], bool]) -> Added:
        """Make a checkpoint of a draft; a twin, or one with its id, is returned instead.

        Args:
            holds: says whether a blob's file is in the store; called inside the transaction.

        Raises:
            ConflictError: a blob went away meanwhile, or a run of the same name was begun.
        """
        from . import adding

        return self._database.writing(lambda c: adding.add(c, draft, holds), alongside=True)

    def record(self, id: str, metrics: Mapping[str, float], author: str | None = None) -> Recorded:
        """Add metrics to a checkpoint; the same value once more is no error.

        Raises:
            NotFoundError: no such checkpoint, or it was removed.
            ConflictError: a metric is set to another value.
        """
        from . import changing

        return self._database.writing(lambda c: changing.record(c, id, metrics, author))

    def monitor(self, model: str, metric: str, mode: Mode, *, create: bool = False) -> Model:
        """Set what best means for a model, and return the model.

        Args:
            create: make the model if there is none of that name.

        Raises:
            NotFoundError: there is none of that name.
        """
        from . import changing

        self._database.writing(lambda c: changing.monitor(c, model, metric, mode, create=create))
        return next(m for m in self.models() if m.name == model)

    def tag(self, id: str, names: Sequence[str], author: str | None = None) -> Checkpoint:
        """Add tags.

        Raises:
            NotFoundError: no such checkpoint, or it was removed.
        """
        from . import changing

        return self._database.writing(lambda c: changing.tag(c, id, names, author))

    def untag(self, id: str, names: Sequence[str]) -> Checkpoint:
        """Take tags away.

        Raises:
            NotFoundError: no such checkpoint, or it has no such tag.
        """
        from . import changing

        return self._database.writing(lambda c: changing.untag(c, id, names))

    def alias(self, id: str, name: str, author: str | None = None) -> Checkpoint | None:
        """Point an alias at a checkpoint, and return the one it pointed at before, as it is now.

        Raises:
            NotFoundError: no such checkpoint, or it was removed.
        """
        from . import changing

        return self._database.writing(lambda c: changing.alias(c, id, name, author))

    def unalias(self, model: str, name: str, author: str | None = None) -> Checkpoint:
        """Remove an alias, and return the checkpoint that it pointed at, as it is now.

        Raises:
            NotFoundError: no such model or alias.
        """
        from . import changing

        return self._database.writing(lambda c: changing.unalias(c, model, name, author))

    def alias_history(self, model: str, name: str | None = None) -> list[AliasMove]:
        """Return where an alias of a model (or all of them) pointed, the newest move first.

        Raises:
            NotFoundError: no such model.
        """
        from . import changing

        with self._database.read() as connection:
            return changing.alias_history(connection, model, name)

    def remove(self, id: str, *, force: bool = False, author: str | None = None) -> Checkpoint:
        """Remove a checkpoint from every answer, until it is restored.

        Raises:
            NotFoundError: no such checkpoint, or it was removed already.
            ConflictError: an alias points at it (unless `force`, which takes that away too).
        """
        from . import changing

        return self._database.writing(lambda c: changing.remove(c, id, force=force, author=author))

    def restore(self, id: str) -> Checkpoint:
        """Bring a removed checkpoint back, under its version; one that is there stays as it is.

        Raises:
            NotFoundError: no such checkpoint, or gc took its files.
            ConflictError: its twin was pushed meanwhile.
        """
        from . import changing

        return self._database.writing(lambda c: changing.restore(c, id))

    # --- files, signatures, settings ---------------------------------------------------------

    def blob(self, digest: Digest) -> Blob | None:
        """Return the blob that holds the bytes of a digest, or None."""
        from . import settling

        with self._database.read() as connection:
            row = connection.execute(select(blobs).where(blobs.c.digest == digest)).one_or_none()
            return None if row is None else settling.blob_of(row)

    def whole(self, id: str) -> dict[str, Any]:
        """Return a checkpoint's whole record, as records/ keeps it.

        Raises:
            NotFoundError: there is no such checkpoint.
        """
        from . import wholes

        with self._database.read() as connection:
            return wholes.whole(connection, id)

    def blobs_of(self, id: str) -> tuple[tuple[str, Blob, Blob | None], ...]:
        """Return a checkpoint's files by name, each with its blob and the blob of its index."""
        from ..blobs import Blob
        from . import settling

        whole, index = blobs.alias("whole"), blobs.alias("index")
        with self._database.read() as connection:
            rows = connection.execute(
                select(
                    files.c.name.label("file"),
                    whole.c.digest, whole.c.size_bytes, whole.c.name,
                    index.c.digest.label("index_digest"),
                    index.c.size_bytes.label("index_size_bytes"),
                    index.c.name.label("index_name"),
                )
                .join(checkpoints, checkpoints.c.pk == files.c.checkpoint_pk)
                .join(whole, whole.c.digest == files.c.digest)
                .outerjoin(index, index.c.digest == files.c.index_digest)
                .where(checkpoints.c.id == id)
                .order_by(files.c.name)
            ).all()  # fmt: skip
        return tuple(
            (
                row.file,
                settling.blob_of(row),
                None
                if row.index_digest is None
                else Blob(row.index_digest, row.index_size_bytes, row.index_name),
            )
            for row in rows
        )

    def stored(self) -> tuple[int, int]:
        """Return how many blobs there are, and the bytes of all of them together."""
        with self._database.read() as connection:
            amount, size_bytes = connection.execute(
                select(func.count(), func.coalesce(func.sum(blobs.c.size_bytes), 0))
            ).one()
            return int(amount), int(size_bytes)

    def names_of(self, found: Sequence[Blob]) -> set[str]:
        """Return the names among these blobs' that a row refers to."""
        with self._database.read() as connection:
            names = [blob.name for blob in found]
            return set(connection.scalars(select(blobs.c.name).where(blobs.c.name.in_(names))))

    def index_of(self, digest: Digest) -> Blob | None:
        """Return the blob of the index of a file's bytes, or None where none was made."""
        from . import settling

        with self._database.read() as connection:
            row = connection.execute(
                select(blobs)
                .join(files, files.c.index_digest == blobs.c.digest)
                .where(files.c.digest == digest)
                .limit(1)
            ).one_or_none()
            return None if row is None else settling.blob_of(row)

    def holding(self, digests: Collection[Digest]) -> list[Checkpoint]:
        """Return the live checkpoints that consist of just these bytes, newest first."""
        with self._database.read() as connection:
            return finding.holding(connection, digests)

    def holding_alone(self, digests: Collection[str]) -> list[tuple[str, Alone]]:
        """Return the live checkpoints that are one file with one of these digests, newest first."""
        with self._database.read() as connection:
            return finding.holding_alone(connection, digests)

    def by_keys(self, pks: Sequence[int]) -> list[Checkpoint]:
        """Return checkpoints by their keys, removed ones too."""
        with self._database.read() as connection:
            return [
                c for at in range(0, len(pks), 500) for c in fetch(connection, pks[at : at + 500])
            ]

    def has_probe(self, probe: str) -> bool:
        """Return whether a blob's size, head and tail have this digest: perhaps the same bytes."""
        with self._database.read() as connection:
            same = select(blobs.c.digest).where(blobs.c.probe == probe, blobs.c.probe.is_not(None))
            return connection.scalar(same.limit(1)) is not None

    def signature(self, digest: Digest) -> Signature | None:
        """Return the signature of a digest, or None."""
        with self._database.read() as connection:
            text = connection.scalar(
                select(signatures.c.tensors).where(signatures.c.digest == digest)
            )
            return None if text is None else Signature.from_json(text)

    def setting(self, name: str) -> str | None:
        """Return a setting, or None."""
        with self._database.read() as connection:
            value: str | None = connection.scalar(
                select(settings.c.value).where(settings.c.name == name)
            )
            return value

    def check_store(self, id: str) -> None:
        """See that the blobs are in the store of an id, as far as it is recorded.

        Raises:
            ConflictError: they are in another one.
        """
        check_same(self.setting(STORE), id)

    def set_setting(self, name: str, value: str | None) -> None:
        """Set a setting; None takes it away."""
        from . import changing

        self._database.writing(lambda c: changing.set_setting(c, name, value))
