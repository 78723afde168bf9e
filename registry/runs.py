"""Runs: the saves of one training job, what they have in common, and which came from which.

Law: every save belongs to a run and knows the checkpoint before it; a forked worker begins runs of
its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from .catalog import ANY, Catalog, Dataset
from .errors import ConflictError, NotFoundError
from .records import Checkpoint, Mode, RunRecord, small
from .values import CheckpointId, FrozenMap, now, one_of, plain_json, printable

if TYPE_CHECKING:
    import torch

    from .drafting import Given
    from .pending import PendingSave
    from .registry import Registry
    from .retention import Policy
    from .saves import Optimizers, RandomStates, RunSaveWords, Stateful


class Run:
    """A training job; made by `Registry.run`. A context manager, for the look of it: a save is
    never pending.

    Attributes:
        record: what the registry keeps of it.
        keep: which of its checkpoints stay after each save; None: all.
    """

    def __init__(
        self, registry: Registry, record: RunRecord, *, keep: Policy | None = None
    ) -> None:
        self._registry = registry
        self.record = record
        self.keep = keep

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.record.id

    @property
    def name(self) -> str | None:
        """As given; the same name continues the run."""
        return self.record.name

    @property
    def config(self) -> FrozenMap[Any]:
        """As given when the run began."""
        return self.record.config

    @overload
    def save(
        self, net: torch.nn.Module, *, wait: Literal[True] = True, **words: Unpack[RunSaveWords]
    ) -> Checkpoint: ...
    @overload
    def save(
        self, net: torch.nn.Module, *, wait: Literal[False], **words: Unpack[RunSaveWords]
    ) -> PendingSave: ...
    def save(
        self,
        net: torch.nn.Module,
        *,
        wait: bool = True,
        epoch: int | None = None,
        step: int | None = None,
        acc: object = None,
        metrics: Mapping[str, object] | None = None,
        optimizer: Optimizers | None = None,
        scheduler: Stateful | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        rng: RandomStates = False,
        extra: Mapping[str, object] | None = None,
        tags: Iterable[str] = (),
        aliases: Iterable[str] = (),
        note: str | None = None,
    ) -> Checkpoint | PendingSave:
        """Save as `Registry.save` does, with the run's model, dataset, config and batch size."""
        save: Any = self._registry.save  # one call for both of its overloads
        made: Checkpoint | PendingSave = save(
            net,
            wait=wait,
            model=self.record.model,
            dataset=self.record.dataset,
            run=self,
            epoch=epoch,
            step=step,
            acc=acc,
            metrics=metrics,
            config=self.record.config,
            optimizer=optimizer,
            scheduler=scheduler,
            stateful=stateful,
            rng=rng,
            batch_size=self.record.batch_size,
            extra=extra,
            tags=tags,
            aliases=aliases,
            note=note,
        )
        return made

    def best(self, *, metric: str | None = None, mode: Any = None) -> Checkpoint:
        """Return the run's best checkpoint; see `Registry.best`."""
        return self._registry.best(
            self.record.model, dataset=self.record.dataset, metric=metric, mode=mode, run=self
        )

    def latest(self) -> Checkpoint:
        """Return the run's newest checkpoint."""
        return self._registry.latest(self.record.model, dataset=self.record.dataset, run=self)

    def follow(self, checkpoint: Checkpoint) -> None:
        """Be the run that a save was counted to: on a rank that doesn't write, another's."""
        if checkpoint.run is not None:
            self.record = replace(self.record, id=checkpoint.run.id, name=checkpoint.run.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def __repr__(self) -> str:
        r = self.record
        return f"<Run {r.name or r.id[:8]} model={r.model!r} dataset={r.dataset!r}>"


def new_run(
    model: str,
    dataset: str | None,
    name: str | None,
    *,
    config: Mapping[str, object] | None = None,
    batch_size: int | None = None,
) -> RunRecord:
    """Return a run of this process; it is in the database from its first save on."""
    from . import surroundings

    return RunRecord(
        id=secrets.token_hex(16),
        model=model,
        name=name,
        dataset=dataset,
        config=FrozenMap(small(plain_json(dict(config or {}), "config"), "config")),
        batch_size=batch_size,
        hostname=surroundings.hostname(),
        command=surroundings.command(),
        git=surroundings.git(),
        author=surroundings.author(),
        created_at=now(),
    )


def continued(run: RunRecord, asked: RunRecord) -> RunRecord:
    """Return a run that was asked for by its name, if it is as asked for.

    Raises:
        ConflictError: it was begun with another config or batch size.
    """
    for what, theirs, ours in (
        ("config", run.config, asked.config or run.config),
        (
            "batch_size",
            run.batch_size,
            run.batch_size if asked.batch_size is None else asked.batch_size,
        ),
    ):
        if theirs != ours:
            raise ConflictError(
                f"the run {run.name!r} of {run.model!r} was begun with {what}={theirs!r}, and is "
                f"continued with {what}={ours!r}",
                hint=f"leave {what}= out to continue it, or begin another: name='…'",
            )
    return run


def monitored(metric: object, mode: Mode | None) -> tuple[str, Mode]:
    """Return what best is to mean, checked: acc is better the more, of others that must be said.

    Raises:
        TypeError, ValueError: the metric can't be one, or the mode is none or isn't said.
    """
    name = printable(metric, "metric")
    if mode is None and name != "acc":
        raise ValueError(
            f"whether more or less of {name!r} is better isn't known: say mode='max' or mode='min' "
            "(--mode)"
        )
    best: Mode = one_of("max" if mode is None else mode, ("max", "min"), "mode")
    return name, best


def named_run(catalog: Catalog, model: str, dataset: str | None, name: str) -> RunRecord:
    """Return the run of a name, to be continued, or a new one for files from elsewhere.

    Of a new one no more is known than who names it: it wasn't this process that trained.
    """
    found = catalog.find_run(model, dataset, name)
    if found is not None:
        return found
    from . import surroundings

    return RunRecord(
        id=secrets.token_hex(16),
        model=model,
        name=name,
        dataset=dataset,
        author=surroundings.author(),
    )


def same_job(run: RunRecord, model: str, dataset: str | None) -> RunRecord:
    """Return a run that a checkpoint is to be counted to, if it is of its model and dataset.

    Raises:
        ConflictError: it isn't.
    """
    if (run.model, run.dataset) != (model, dataset):
        raise ConflictError(
            f"the run is of model={run.model!r}, dataset={run.dataset!r}, and not of "
            f"model={model!r}, dataset={dataset!r}",
            hint="begin another: reg.run(model, dataset=…)",
        )
    return run


def of_dataset(dataset: str | None) -> Dataset:
    """Return which dataset a query means: None any, "" those that have none."""
    return ANY if dataset is None else dataset or None


def run_id(
    catalog: Catalog, model: str | None, dataset: str | None, run: Run | str | None
) -> str | None:
    """Return the id of the run that a query names.

    Raises:
        NotFoundError, AmbiguousError: none, or several have the name.
    """
    if run is None or isinstance(run, Run):
        return None if run is None else run.id
    return catalog.run_named(model, run, dataset=of_dataset(dataset)).id


class Lineage:
    """What this process saved and resumed from, for the saves that follow."""

    def __init__(self) -> None:
        # Keyed by process: what a fork inherits isn't its own. Threads share it without a lock,
        # which a fork could inherit taken: every change is one operation on a dict.
        self._runs: dict[tuple[int, str, str | None], RunRecord] = {}
        self._saved: dict[tuple[int, str], CheckpointId] = {}
        self._resumed: dict[tuple[int, str], CheckpointId] = {}

    def run_of(self, catalog: Catalog, given: Given, run: Run | str | None) -> RunRecord:
        """Return the run that a save belongs to; without one, this process's for model and dataset.

        Raises:
            ConflictError: the run is of another model or dataset.
        """
        assert given.model is not None
        if isinstance(run, Run):
            return same_job(run.record, given.model, given.dataset)
        if run is not None:
            name = printable(run, "run")
            found = catalog.find_run(given.model, given.dataset, name)
            return found or new_run(given.model, given.dataset, name)
        key = (os.getpid(), given.model, given.dataset)
        own = self._runs.get(key)
        return own or self._runs.setdefault(key, new_run(given.model, given.dataset, None))

    def parent_of(self, catalog: Catalog, run: RunRecord) -> CheckpointId | None:
        """Return the checkpoint that the next save comes from: the one resumed, or the run's
        last.
        """
        here = os.getpid()
        found = self._resumed.get((here, run.model)) or self._saved.get((here, run.id))
        if found is None and run.name is not None:
            with suppress(NotFoundError):
                return catalog.latest(run.model, dataset=run.dataset, run=run.id).id
        return found

    def saved(self, run: RunRecord, checkpoint: Checkpoint) -> None:
        """Note a save: the run's next one continues it, and no longer what was resumed from."""
        here = os.getpid()
        self._saved[here, run.id] = checkpoint.id
        self._resumed.pop((here, run.model), None)

    def resumed(self, checkpoint: Checkpoint) -> None:
        """Note a load with optimizer: the model's next save continues it."""
        self._resumed[os.getpid(), checkpoint.model] = checkpoint.id
