"""A training job as a callback sees it: where its checkpoints go, which run they belong to, which
are kept.

Law: all that is wrong with the caller's words is said when the callback is made, not after the
first epoch. Every checkpoint carries its own record, so that no fact is lost where its file goes.
Knows no framework.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import drafting, saves
from ..errors import ConflictError, NotFoundError, RemoteError, warn
from ..records import Checkpoint, Mode
from ..registry import Registry
from ..retention import Policy, policy_of
from ..runs import Run, monitored
from ..signature import KeyStyle
from ..values import optional_text, plain_json

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

Place = Registry | str | os.PathLike[str] | None
"""A registry, or where it is; None: $CKREG_REGISTRY, ./.ckreg upward, ~/.ckreg."""


class Training:
    """One training job's checkpoints; only the process that writes them opens the registry for it.

    Args:
        run: the run's name; the same name continues it.
        acc: which metric is the accuracy: it is recorded as acc besides.
        keep: which of the run's checkpoints stay after each save; None: all.

    Raises:
        ValueError, TypeError: a word breaks its rule.
    """

    def __init__(
        self,
        place: Place,
        model: str,
        *,
        dataset: str | None = None,
        run: str | None = None,
        config: Mapping[str, object] | None = None,
        batch_size: int | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        acc: str | None = None,
        keep: Policy | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self._given_open = isinstance(place, Registry)
        self._registry = place if isinstance(place, Registry) else None
        self._location = None if isinstance(place, Registry) else place
        self._given = drafting.check(
            model=model, dataset=dataset, config=config, batch_size=batch_size, tags=tags
        )
        self._name = optional_text(run, "run")
        if monitor is None and mode is not None:
            raise ValueError("mode= says how to read monitor=; name the metric as well")
        self.monitor = None if monitor is None else monitored(monitor, mode)
        self._acc = optional_text(acc, "acc")
        self._keep = None if keep is None else policy_of(keep, "keep")
        self._run: Run | None = None
        self._resumed: Checkpoint | None = None
        self._pulled: weakref.finalize[..., Training] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, which opens the registry for itself."""
        mine = {"_pulled": None, "_run": None}
        return {**self.__dict__, **mine, **({} if self._given_open else {"_registry": None})}

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self._given.model)

    @property
    def registry(self) -> Registry:
        """The registry, opened by the first who asks."""
        if self._registry is None:
            self._registry = Registry.open(self._location)
        return self._registry

    def begin(self, config: Mapping[str, object] | None = None) -> Run:
        """Begin the run, or go on with it; what would make a save fail later fails now.

        Args:
            config: the settings, where the caller gave none.
        """
        if self._run is None:
            said = self._given.config
            try:
                self._run = self._begun(said or config)
            except ConflictError:
                if said or not config:
                    raise
                self._run = self._begun(None)  # a run that goes on keeps the settings it began with
        return self._run

    def _begun(self, config: Mapping[str, object] | None) -> Run:
        metric, mode = self.monitor or (None, None)
        return self.registry.run(
            self.model, dataset=self._given.dataset, name=self._name, config=config,
            batch_size=self._given.batch_size, monitor=metric, mode=mode, keep=self._keep,
        )  # fmt: skip

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint of the run of this name, None if there is none yet.

        Raises:
            ValueError: the run has no name to be found by.
        """
        if self._name is None:
            raise ValueError(
                "a run without a name can't be continued: name it, run='try-1', or say what to "
                f"resume from: '{self.model}@latest'"
            )
        with suppress(NotFoundError):
            return self.registry.latest(self.model, dataset=self._given.dataset, run=self._name)
        return None

    def resume(self, ref: Checkpoint | str | None) -> str | None:
        """Return the path of the checkpoint to resume from, pulled into a folder of its own.

        Args:
            ref: None means the newest of the run of this name; None comes back if there is none.

        Raises:
            NotFoundError, AmbiguousError: a ref names none, or several.
            ValueError: no ref is given, and the run has no name.
            DamagedError: the stored bytes are damaged.
        """
        found = self.newest() if ref is None else self.registry.get(ref)
        if found is None:
            return None
        self._resumed = found
        return self.pull(found)

    def pull(self, checkpoint: Checkpoint | str) -> str:
        """Return the path of a checkpoint, which stays until another is pulled, or `release`."""
        self.release()
        folder = tempfile.mkdtemp(prefix=".ckreg-")
        self._pulled = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return os.fspath(self.registry.pull(checkpoint, folder))

    def release(self) -> None:
        """Remove what was pulled: it has been read."""
        if self._pulled is not None:
            self._pulled()
            self._pulled = None

    def best(self) -> Checkpoint | None:
        """Return the run's best checkpoint, None if none has the metric."""
        with suppress(NotFoundError):
            return self.begin().best()
        return None

    def finite(self, metrics: Mapping[str, object], *, evaluated: bool = True) -> dict[str, float]:
        """Return the metrics that are finite numbers, the accuracy under its own name as well.

        What a monitor is when it isn't finite is said: that checkpoint is never best.

        Args:
            evaluated: the metrics are an evaluation's: the accuracy and the monitor are among them.

        Raises:
            ValueError: one isn't.
        """
        found: dict[str, float] = {}
        for name, value in metrics.items():
            number = _number(value)
            if number is not None and math.isfinite(number):
                found[name] = number
            elif number is not None and self.monitor is not None and name == self.monitor[0]:
                warn(f"{name} is {number}, and is not recorded: this checkpoint is never best")
        expected = {"acc": self._acc, "monitor": self.monitor[0] if self.monitor else None}
        for word, wanted in expected.items():
            if evaluated and wanted is not None and wanted not in metrics:
                raise ValueError(
                    f"{word}={wanted!r} names a metric that isn't there: {_names(found)}"
                )
        if self._acc in found:
            found["acc"] = found[self._acc]
        return found

    def record(
        self,
        net: torch.nn.Module,
        *,
        epoch: int | None,
        step: int | None,
        metrics: Mapping[str, float],
        file_keys: KeyStyle | None = None,
        optimizers: Mapping[str, Any] | None = None,
        scheduler: object = None,
    ) -> dict[str, Any]:
        """Return the record that the checkpoint of a live net carries; see `record_of`."""
        return record_of(
            self.begin(), net, epoch=epoch, step=step, metrics=metrics, file_keys=file_keys,
            optimizers=optimizers, scheduler=scheduler, parent=self._resumed,
        )  # fmt: skip

    def take(self, path: Path) -> Checkpoint:
        """Take a checkpoint in that carries its record; then remove what isn't to be kept."""
        made = self.registry.push(path, run=self.begin(), tags=self._given.tags)
        self._resumed = None
        return made


def record_of(
    run: Run,
    net: torch.nn.Module,
    *,
    epoch: int | None = None,
    step: int | None = None,
    metrics: Mapping[str, object] | None = None,
    file_keys: KeyStyle | None = None,
    optimizers: Mapping[str, Any] | None = None,
    scheduler: object = None,
    parent: Checkpoint | None = None,
) -> dict[str, Any]:
    """Return the record that the checkpoint of a live net carries: plain data.

    Args:
        net: as it trains, with its wrappers.
        file_keys: how the keys in the checkpoint are wrapped, where they are.
        optimizers: by the names that the reader gives them in such a checkpoint.
        parent: the checkpoint that it comes from; by default the run's newest.
    """
    from ..tensors import hardware, observe, writing

    live = observe.observe(net)
    given = replace(
        drafting.check(epoch=epoch, step=step, metrics=metrics, config=run.record.config),
        model=run.record.model,
        dataset=run.record.dataset,
        batch_size=run.record.batch_size,
        run=run.record,
    )
    facts = writing.facts_of(live, optimizers=optimizers or {}, scheduler=scheduler)
    if parent is None:
        with suppress(NotFoundError):
            parent = run.latest()
    return {
        **facts,
        **saves.record_of(given, hardware.topology(live).to_dict()),
        "file_keys": str(file_keys or KeyStyle()),
        "parent": None if parent is None else parent.id,
    }


def temporary(where: str | os.PathLike[str] | None = None) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when it is let go of.

    Args:
        where: a folder with room for a checkpoint.
    """
    return tempfile.TemporaryDirectory(prefix=".ckreg-", dir=where, ignore_cleanup_errors=True)


def settings(given: Mapping[str, object]) -> dict[str, object]:
    """Return what is plain data of a framework's settings, to be recorded as config."""
    found: dict[str, object] = {}
    for name, value in given.items():
        with suppress(TypeError, ValueError):
            found[str(name)] = plain_json(value, "config")
    return found


def on_rank_zero(rank: int, broadcast: Callable[[Any], Any], work: Callable[[], T]) -> T:
    """Do what one process does for all; every process gets what came of it, or an error.

    Args:
        broadcast: sends rank 0's object to all, and returns it; all call it.
        work: gives plain data.

    Raises:
        BaseException: what the work raised, on rank 0; on the others a RemoteError.
    """
    told: tuple[str, Any] = ("", None)
    failed: BaseException | None = None
    if rank == 0:
        try:
            told = ("", work())
        except BaseException as error:
            failed, told = error, (f"{type(error).__name__}: {error}", None)
    why, made = broadcast(told)
    if failed is not None:
        raise failed
    if why:
        raise RemoteError(f"rank 0 could not save: {why}")
    result: T = made
    return result


def _number(value: object) -> float | None:
    """Return what is a number, as such or as a tensor or array of one element."""
    if isinstance(value, bool | str):
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # what has no number raises
    except (TypeError, ValueError, RuntimeError):
        return None


def _names(found: Mapping[str, object]) -> str:
    return ", ".join(map(repr, sorted(found))) or "no metric was logged"
