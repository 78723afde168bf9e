"""Asking: the questions that a registry answers.

Law: the database alone is asked, so that no question pays for the readers of files, nor for a
bucket (a test in test_cli.py); nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .catalog import Catalog, Page, Query
from .handle import Handle, Ref
from .records import Checkpoint, Mode, Model
from .runs import Run, of_dataset, run_id
from .values import (
    FORMAT,
    duration,
    label,
    model_name,
    now,
)

if TYPE_CHECKING:
    import torch

    from .blobs import BlobStore
    from .catalog import Choices, Course, Freeable, Holding, Standing
    from .signature import Signature


class Asking(Handle):
    """What is known of the checkpoints."""

    # --- checkpoints ---------------------------------------------------------------------

    def get(
        self, ref: Ref, *, dataset: str | None = None, include_removed: bool = False
    ) -> Checkpoint:
        """Return the checkpoint that a ref names: `resnet50`, `resnet50@v3`, `resnet50@best`, an
        id.

        Args:
            include_removed: return a removed one too, where a version, an epoch or an id names it.

        Raises:
            NotFoundError: none; near names are in the hint.
            AmbiguousError: several; they are listed.
            ValueError: it is no ref.
        """
        return self._resolve(ref, dataset, include_removed=include_removed)

    def best(
        self,
        model: str,
        *,
        dataset: str | None = None,
        metric: str | None = None,
        mode: Mode | None = None,
        run: Run | str | None = None,
    ) -> Checkpoint:
        """Return the checkpoint with the best value; of equals the newest version. Missing is
        never best.

        Args:
            dataset: "" means those that have none.
            metric, mode: default to the model's monitor, which is acc and max until it is set.

        Raises:
            NotFoundError: no such model, or none of its checkpoints has the metric.
            AmbiguousError: the model was trained on several datasets and none is named.
            ValueError: a metric other than the monitor, without a mode.
        """
        catalog = self._catalog()
        return catalog.best(
            model_name(model),
            dataset=of_dataset(dataset),
            metric=metric,
            mode=mode,
            run=run_id(catalog, model, dataset, run),
        )

    def latest(
        self, model: str, *, dataset: str | None = None, run: Run | str | None = None
    ) -> Checkpoint:
        """Return the checkpoint with the highest version.

        Raises:
            NotFoundError: no such model, or none of its checkpoints matches.
            AmbiguousError: the model was trained on several datasets and none is named.
        """
        return self._catalog().latest(
            model_name(model), dataset=of_dataset(dataset),
            run=run_id(self._catalog(), model, dataset, run),
        )  # fmt: skip

    def models(self, names: Collection[str] | None = None) -> list[Model]:
        """Return every model, or those of some names, by name."""
        return self._catalog().models(names) if self.exists else []

    def find(
        self,
        model: str | None = None,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        where: str | None = None,
        tags: Iterable[str] = (),
        sort: str = "-created_at",
        limit: int | None = None,
        include_removed: bool = False,
        memory: int | None = None,
        fits: Ref | None = None,
    ) -> Iterator[Checkpoint]:
        """Iterate over the checkpoints that match, a page at a time.

        Args:
            dataset: "" means those that have none.
            where: an expression such as 'acc > 0.9 and strategy == "ddp"'; see registry.where.
            tags: all of these.
            sort: any column or metric, `-` in front for the highest first; nulls last, then newest
                version.
            memory: only those whose weights take no more bytes than this, by recorded shapes and
                dtypes; see `free_memory`.
            fits: only those with the tensors of this checkpoint, however either is wrapped.

        Raises:
            ValueError: an expression that can't be read, or an unknown field; the place is marked.
            NotFoundError: no such model.
        """
        if not self.exists:
            return iter(())
        catalog = self._catalog()
        query = _query(catalog, model, dataset, run, where, tags, sort, include_removed)
        query = self._narrowed(query, memory, fits)
        return catalog.find(
            query.model,
            dataset=query.dataset,
            run=query.run,
            where=query.where,
            tags=query.tags,
            sort=query.sort,
            limit=limit,
            include_removed=include_removed,
            memory_bytes=query.memory_bytes,
            signature=query.signature,
        )

    def page(
        self,
        model: str | None = None,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        where: str | None = None,
        tags: Iterable[str] = (),
        sort: str = "-created_at",
        size: int = 50,
        after: str | None = None,
        include_removed: bool = False,
        memory: int | None = None,
        fits: Ref | None = None,
    ) -> Page:
        """Return one page of what `find` finds: its checkpoints, and the place where the next
        begins.

        A page begins by key and not by count, so that what is saved meanwhile moves nothing.

        Args:
            size: how many, 1 or more.
            after: `next` of the page before.

        Raises:
            ValueError, NotFoundError: as find; also for a place that is none.
        """
        if not self.exists:
            return Page((), None)
        catalog = self._catalog()
        query = _query(catalog, model, dataset, run, where, tags, sort, include_removed)
        query = self._narrowed(query, memory, fits)
        return catalog.page(query, size=size, after=after)

    def count(
        self,
        model: str | None = None,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        where: str | None = None,
        tags: Iterable[str] = (),
        include_removed: bool = False,
        memory: int | None = None,
        fits: Ref | None = None,
    ) -> int:
        """Return how many checkpoints `find` with the same words would give.

        Raises:
            ValueError, NotFoundError: as find.
        """
        if not self.exists:
            return 0
        catalog = self._catalog()
        query = _query(catalog, model, dataset, run, where, tags, None, include_removed)
        query = self._narrowed(query, memory, fits)
        return catalog.count(
            query.model,
            dataset=query.dataset,
            run=query.run,
            where=query.where,
            tags=query.tags,
            include_removed=include_removed,
            memory_bytes=query.memory_bytes,
            signature=query.signature,
        )

    def _narrowed(self, query: Query, memory: int | None, fits: Ref | None) -> Query:
        if memory is not None and memory < 0:
            raise ValueError(f"memory is a number of bytes, not {memory}")
        signature = None if fits is None else self._resolve(fits, include_removed=True).signature
        return replace(query, memory_bytes=memory, signature=signature)

    # --- by their tensors ----------------------------------------------------------------

    def fits(self, net: torch.nn.Module) -> list[Checkpoint]:
        """Return the checkpoints whose tensors are those of a live net, however either is wrapped;
        newest first.

        Raises:
            RefusedLoadError: the net is sharded, or its keys can't be told apart.
        """
        from .tensors import observe

        if not self.exists:
            return []
        return self._catalog().fits(observe.observe(net).signature.digest)

    def free_memory(self, device: str) -> int:
        """Return the bytes that are free on a device of this machine; "cpu" is the host.

        Raises:
            RefusedLoadError: this machine lacks it, or can't say.
            ValueError: it is no device's name.
        """
        from .tensors import hardware

        return hardware.free_memory(device)

    def signature(self, ref: Ref) -> Signature:
        """Return the tensors of a checkpoint under their canonical keys: names, shapes, dtypes,
        kinds.

        Raises:
            NotFoundError, AmbiguousError: as get.
        """
        checkpoint = self._resolve(ref, include_removed=True)
        found = self._catalog().signature(checkpoint.signature)
        assert found is not None  # a foreign key holds it
        return found

    def ancestors(self, ref: Ref, *, limit: int = 10) -> list[Checkpoint]:
        """Return what a checkpoint continues, its parent first, as far as it is in this registry;
        removed ones too.

        Raises:
            NotFoundError, AmbiguousError: as get.
        """
        if not isinstance(ref, Checkpoint):
            ref = self._resolve(ref, include_removed=True)
        return self._catalog().ancestors(ref.id, limit=limit)

    def children(self, ref: Ref, *, limit: int = 10) -> list[Checkpoint]:
        """Return what continues a checkpoint, the oldest first; removed ones too.

        Raises:
            NotFoundError, AmbiguousError: as get.
        """
        if not isinstance(ref, Checkpoint):
            ref = self._resolve(ref, include_removed=True)
        return self._catalog().children(ref.id, limit=limit)

    # --- at a glance ---------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Return what this registry is and holds: location, store, schema, counts, bytes."""
        store, catalog = self._parts()
        models = catalog.models()
        live = sum(m.checkpoints for m in models)
        blobs, size_bytes = catalog.stored()
        return {
            "format": FORMAT,
            "location": self.location,
            "store": store.id,
            "schema": self._database().revision(),
            "models": len(models),
            "checkpoints": live,
            "removed": catalog.count(include_removed=True) - live,
            "blobs": blobs,
            "size_bytes": size_bytes,
            "blobs_at": store.location,
            "free_bytes": _free_bytes(store),
        }

    def sizes(self) -> dict[str, int]:
        """Return how many live checkpoints each model has, by name; quick with many models."""
        return self._catalog().sizes() if self.exists else {}

    def standings(self, names: Sequence[str]) -> dict[str, Standing]:
        """Return how models stand, by name: the best by the monitor on each dataset, the newest."""
        return self._catalog().standings(names) if self.exists else {}

    def course(
        self,
        model: str,
        metric: str,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        where: str | None = None,
        tags: Iterable[str] = (),
        most: int = 5_000,
    ) -> Course:
        """Return a metric over a model's checkpoints that match, as a chart shows it.

        Args:
            most: about how many points; of more, as many are taken, spread evenly.

        Raises:
            ValueError, NotFoundError: as find.
        """
        catalog = self._catalog()
        query = _query(catalog, model, dataset, run, where, tags, None, False)
        return catalog.course(query, metric, most=most)

    def choices(self, model: str | None = None) -> Choices:
        """Return what a list can be narrowed to: metrics of a model, the newest runs, tags.

        Raises:
            NotFoundError: no such model.
        """
        from .catalog import Choices

        return self._catalog().choices(model) if self.exists else Choices((), (), ())

    def holdings(self) -> list[Holding]:
        """Return how many bytes each model has, the most first; shared ones count in each."""
        return self._catalog().holdings() if self.exists else []

    def freeable(self, *, grace: timedelta | str = "14d", most: int = 100) -> Freeable:
        """Return what `gc` would take of removed checkpoints, by the database and this machine's
        clock alone. What a crash left behind isn't in it: `gc(dry_run=True)` reads the store.

        Args:
            most: how many of the checkpoints are named.
        """
        span = duration(grace)
        return self._catalog().freeable(now() - span, most=most)


def _free_bytes(store: BlobStore) -> int | None:
    """Return how much room a store in a folder has; others have no end that is known."""
    import shutil

    from .blobs import LocalStore

    if not isinstance(store, LocalStore):
        return None
    return shutil.disk_usage(store.location).free


def _query(
    catalog: Catalog,
    model: str | None,
    dataset: str | None,
    run: Run | str | None,
    where: str | None,
    tags: Iterable[str],
    sort: str | None,
    include_removed: bool,
) -> Query:
    """Return what a list asks for, every word checked."""
    from . import where as where_

    name = None if model is None else model_name(model)
    return Query(
        name,
        of_dataset(dataset),
        run_id(catalog, name, dataset, run),
        None if where is None else where_.parse(where),
        tuple(label(t, "tag") for t in tags),
        sort or "-created_at",
        include_removed,
    )
