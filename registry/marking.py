"""Marking: what is said of a checkpoint after its save: metrics, tags, aliases, its removal.

Law: a recorded fact never changes; each change is one transaction, then the checkpoint's record is
written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .catalog import Catalog
from .errors import warn
from .giving import Giving
from .handle import Ref
from .records import Checkpoint, Mode, Model
from .runs import monitored
from .values import (
    CheckpointId,
    label,
    metrics_of,
    model_name,
)


class Marking(Giving):
    """What people say of the checkpoints."""

    def record(self, ref: Ref, metrics: Mapping[str, object]) -> Checkpoint:
        """Add metrics to a checkpoint that exists, e.g. from a later evaluation.

        Raises:
            ConflictError: a metric of that name is set to another value; metrics are never
                overwritten.
            ValueError, TypeError: a value is no finite number.
        """
        from . import surroundings

        values = metrics_of(metrics)
        if not values:
            raise ValueError("no metric is given: reg.record(ref, {'acc': 0.93})")

        def change(catalog: Catalog, id: CheckpointId) -> None:
            for text in catalog.record(id, values, surroundings.author()).warnings:
                warn(text)

        return self._change(ref, change)

    def monitor(
        self, model: str, metric: str, mode: Mode | None = None, *, create: bool = False
    ) -> Model:
        """Set what best means for a model: a metric, and whether more or less of it is better.

        Raises:
            NotFoundError: no such model (unless `create`).
            ValueError: mode is neither "max" nor "min", or isn't said of a metric other than acc.
        """
        from . import commits

        name, best = model_name(model), monitored(metric, mode)
        store, catalog = self._for_writing()
        changed = catalog.monitor(name, *best, create=create)
        for newest in catalog.find(name, sort="-version", limit=1, include_removed=True):
            commits.write_record(store, catalog, newest.id)  # whose record tells the monitor
        return changed

    def tag(self, ref: Ref, *tags: str) -> Checkpoint:
        """Add tags to a checkpoint; one that it has already is no error.

        Raises:
            ValueError: a tag breaks its grammar.
        """
        from . import surroundings

        checked = [label(t, "tag") for t in tags]
        return self._change(
            ref, lambda catalog, id: catalog.tag(id, checked, surroundings.author())
        )

    def untag(self, ref: Ref, *tags: str) -> Checkpoint:
        """Take tags off a checkpoint.

        Raises:
            NotFoundError: it has no such tag.
        """
        checked = [label(t, "tag") for t in tags]
        return self._change(ref, lambda catalog, id: catalog.untag(id, checked))

    def alias(self, ref: Ref, name: str) -> Checkpoint | None:
        """Point an alias of the checkpoint's model at it, and return what it pointed at before.

        Raises:
            ValueError: the name breaks its grammar, or is a word that refs use.
        """
        from . import commits, surroundings

        checked = label(name, "alias")
        before: list[Checkpoint | None] = []
        self._change(
            ref,
            lambda catalog, id: before.append(catalog.alias(id, checked, surroundings.author())),
        )
        if before[0] is not None:
            commits.write_record(*self._parts(), before[0].id)
        return before[0]

    def unalias(self, model: str, name: str) -> Checkpoint:
        """Remove an alias, and return the checkpoint that it pointed at.

        Raises:
            NotFoundError: the model has no such alias.
        """
        from . import commits, surroundings

        store, catalog = self._for_writing()
        before = catalog.unalias(model_name(model), label(name, "alias"), surroundings.author())
        commits.write_record(store, catalog, before.id)
        return before

    def remove(self, ref: Ref, *, force: bool = False) -> Checkpoint:
        """Remove a checkpoint from every answer; its bytes stay until gc, and `restore` brings it
        back.

        Raises:
            ConflictError: an alias points at it (unless `force`, which takes the alias away).
        """
        from . import surroundings

        return self._change(
            ref, lambda catalog, id: catalog.remove(id, force=force, author=surroundings.author())
        )

    def restore(self, ref: Ref) -> Checkpoint:
        """Bring back a removed checkpoint, under its old version.

        Raises:
            NotFoundError: none of that version or id was removed.
            ConflictError: its twin was pushed anew meanwhile.
        """
        return self._change(ref, lambda catalog, id: catalog.restore(id), include_removed=True)

    def _change(
        self,
        ref: Ref,
        change: Callable[[Catalog, CheckpointId], object],
        *,
        include_removed: bool = False,
    ) -> Checkpoint:
        """Change one checkpoint, write its record anew, and return it as it is now."""
        from . import commits

        store, catalog = self._for_writing()
        id = self._resolve(ref, include_removed=include_removed).id
        change(catalog, id)
        commits.write_record(store, catalog, id)
        return catalog.by_id(id, include_removed=True)
