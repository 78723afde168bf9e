"""Registry: one database plus one blob store, and every verb on them. The table of contents of
ckreg. What takes checkpoints in is here; the other verbs stand on each other in this order:

    Handle  opened, found      Asking  answers       Giving   loads, files, folders
    Marking metrics, aliases   Keeping prune, gc     Registry run, save, push, import

Law: each method checks its words, makes one plan or one commit through the modules beside it, and
returns a record. No SQL, no bytes and no torch here: what only some need they import themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from . import places
from .handle import Progress
from .keeping import Keeping
from .pending import PendingSave
from .records import Checkpoint, Mode
from .runs import Run, monitored, new_run
from .values import (
    model_name,
    optional_count,
    optional_text,
)

if TYPE_CHECKING:
    import torch

    from .importing import ImportResult
    from .retention import Policy
    from .saves import Optimizers, RandomStates, SaveWords, Stateful


class Registry(Keeping):
    """A registry of checkpoints.

    Example:
        >>> import tempfile
        >>> reg = Registry.create(tempfile.mkdtemp() + "/reg")
        >>> reg.models()
        []
    """

    def run(
        self,
        model: str,
        *,
        dataset: str | None = None,
        name: str | None = None,
        config: Mapping[str, object] | None = None,
        batch_size: int | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        keep: Policy | None = None,
    ) -> Run:
        """Begin a training job's saves; the same name continues the run of that name.

        Args:
            monitor, mode: set what best means for the model (see `monitor`).
            batch_size: the global one, over all devices.
            keep: after each save of this run, remove those of its own that no policy keeps, e.g.
                `Best(3) | Last(2)`. As of `prune`, their bytes come back when `gc` runs after its
                grace, and `restore` brings one back until then. Other runs' stay, and so do the
                best and the latest of the run and of the model. If it fails, that is a warning.

        Raises:
            ConflictError: the run of that name was begun with another config or batch size.
            ValueError: a monitor other than acc without a mode, or a mode without a monitor; or
                `keep` names such a metric.
            TypeError: `keep` is no policy.
            NotWritableError, NoSpaceError: saves would fail, so better now than after an epoch.
        """
        from .runs import continued

        record = new_run(
            model_name(model), optional_text(dataset, "dataset"), optional_text(name, "run"),
            config=config, batch_size=optional_count(batch_size, "batch_size"),
        )  # fmt: skip
        if monitor is None and mode is not None:
            raise ValueError("mode= says how to read monitor=; name the metric as well")
        best = None if monitor is None else monitored(monitor, mode)
        _, catalog = self._for_writing()
        if keep is not None:
            from . import pruning

            pruning.check(keep, best or self._upkeep().monitor_of(record.model))
        if record.name is not None:
            record = continued(catalog.start_run(record), record)
        if best is not None:
            self.monitor(record.model, *best, create=True)
        return Run(self, record, keep=keep)

    @overload
    def save(
        self, net: torch.nn.Module, *, wait: Literal[True] = True, **words: Unpack[SaveWords]
    ) -> Checkpoint: ...
    @overload
    def save(
        self, net: torch.nn.Module, *, wait: Literal[False], **words: Unpack[SaveWords]
    ) -> PendingSave: ...
    def save(
        self,
        net: torch.nn.Module,
        *,
        model: str,
        dataset: str | None = None,
        run: Run | str | None = None,
        epoch: int | None = None,
        step: int | None = None,
        acc: object = None,
        metrics: Mapping[str, object] | None = None,
        config: Mapping[str, object] | None = None,
        optimizer: Optimizers | None = None,
        scheduler: Stateful | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        rng: RandomStates = False,
        batch_size: int | None = None,
        extra: Mapping[str, object] | None = None,
        tags: Iterable[str] = (),
        aliases: Iterable[str] = (),
        parent: Checkpoint | str | None = None,
        note: str | None = None,
        wait: bool = True,
    ) -> Checkpoint | PendingSave:
        """Save a live model, wrapped or not, and all that a resume needs, as the next version.

        The file is a plain torch file with canonical keys, readable by
        `torch.load(weights_only=True)`.
        On several ranks any of them may call it: rank 0 writes, the others get the same checkpoint.
        Calls are told apart by model, dataset, epoch and step: give an epoch or a step.

        Args:
            net: the module as it trains, with its wrappers.
            model: the model's name, e.g. "resnet50".
            run: a `Run`, or the name of one to continue; by default one is made per process.
            acc: a number (plain, numpy or tensor scalar) on any one scale.
            metrics: other numbers by name, e.g. {"val/loss": 0.21}; `monitor` says by which one
                best is decided.
            config: what the run was set to, e.g. {"lr": 0.1}; plain values.
            optimizer: one optimizer, or a mapping of names to optimizers.
            stateful: name -> anything with state_dict() (a GradScaler, a sampler).
            rng: True saves the random states of the process that writes too (of a sharded net
                every rank's); "each" those of every rank of a replicated net: then all have to
                call.
            extra: plain values, arrays and tensors of your own.
            parent: the checkpoint it came from; by default the run's previous one, or the one
                resumed from.
            wait: False copies the tensors once, returns a `PendingSave`, and writes in the
                background: training may go on and change the weights. Saves are committed in the
                order of the calls; one may wait while another is written, the next one waits here.
                Errors come from its `result()`, else from `close()`.

        Raises:
            TypeError: net is no module, model no name, or something in extra has no plain form.
            ValueError: a name breaks its grammar, or a number isn't finite.
            NotWritableError, NoSpaceError, BusyError: it can't be kept; nothing is left behind.
            RemoteError: another rank, which writes, failed or didn't come.
        """
        from . import drafting, hooks, saves

        if isinstance(net, type):
            raise TypeError(
                f"net must be a torch.nn.Module, not its class: reg.save({net.__name__}(…), "
                'model="resnet50", …)'
            )
        if not hasattr(net, "state_dict") or not hasattr(net, "named_parameters"):
            raise TypeError(
                f"net must be a torch.nn.Module, not {type(net).__name__}: "
                'reg.save(net, model="resnet50", …)'
            )
        facts = (
            model_name(model), optional_text(dataset, "dataset"), optional_count(epoch, "epoch"),
            optional_count(step, "step"),
        )  # fmt: skip

        turn = saves.turn(net, facts)
        states = saves.random_states(net, facts, rng)

        def begun() -> Callable[[], Checkpoint]:
            # Checked by the rank that writes: what it refuses is told to the others.
            given = drafting.check(
                model=model, dataset=dataset, epoch=epoch, step=step, acc=acc, metrics=metrics,
                config=config, batch_size=batch_size, tags=tags, aliases=aliases, note=note,
            )  # fmt: skip
            job = saves.Job(
                net=net, given=given, optimizer=optimizer, scheduler=scheduler,
                stateful=dict(stateful or {}), rng=states, extra=dict(extra or {}),
            )  # fmt: skip
            store, catalog = self._for_writing()
            record = self._lineage.run_of(catalog, given, run)
            before = None if parent is None else self._resolve(parent, include_removed=True).id
            prepared = saves.prepare(job, record, turn, snapshot=not wait)

            def write() -> Checkpoint:
                checkpoint = saves.write(
                    store, catalog, prepared,
                    parent=before or self._lineage.parent_of(catalog, record),
                )  # fmt: skip
                self._lineage.saved(record, checkpoint)
                return checkpoint

            return write

        def ended(make: Callable[[], Checkpoint]) -> Checkpoint:
            with hooks.held():
                checkpoint = turn.write(make) if turn.writes else turn.wait()
            if isinstance(run, Run):
                run.follow(checkpoint)
                if turn.commits and run.keep is not None:
                    self._keep(run.keep, run.id, checkpoint)
            return checkpoint

        if wait:
            return ended(lambda: begun()())
        make = turn.begin(begun) if turn.writes else turn.wait
        named = " · ".join(str(f) for f in facts if f is not None)
        return self._pending.submit(named, lambda: ended(make))

    def push(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        dataset: str | None = None,
        run: Run | str | None = None,
        epoch: int | None = None,
        step: int | None = None,
        acc: object = None,
        metrics: Mapping[str, object] | None = None,
        keys: str | None = None,
        strategy: str | None = None,
        world_size: int | None = None,
        tags: Iterable[str] = (),
        aliases: Iterable[str] = (),
        note: str | None = None,
        move: bool = False,
        progress: Progress | None = None,
    ) -> Checkpoint:
        """Take in a checkpoint that exists already; what isn't said is read from it.

        What was pushed before with the same facts gives the same checkpoint, with its tags and
        aliases added. A file saved by ckreg brings key style, topology, run and metrics along as
        recorded.

        Args:
            path: a file, or a folder that is one checkpoint (sharded, DCP, DeepSpeed, …), which
                keeps its files' names. Hidden folders, and folders inside that are checkpoints of
                their own, are left out, with a warning.
            keys: how the file's keys are wrapped, e.g. "module.", where the file can't say.
            run: a `Run`, or the name of one, to count it to; a `Run` gives model and dataset where
                nothing else does, and its `keep` applies as after a save.
            move: unlink what was taken in, once it is committed.

        Raises:
            NotFoundError: there is no such file or folder.
            ContainerError: it is no checkpoint, or of a kind that can't be read; the message names
                it.
            AmbiguousError: the folder holds several.
            DamagedError: it is empty or cut short, or a folder's file is missing.
            ValueError: the file names no model and none is given, or a fact breaks its rule.
            ConflictError: it changed while it was read, or the run is of another model or dataset.
            NotWritableError, NoSpaceError, BusyError: it can't be kept; nothing is left behind.
        """
        from . import drafting, pushes

        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"push takes a checkpoint's path, not {type(path).__name__}; a live net: "
                'reg.save(net, model="resnet50", …)'
            )
        of = run.record if isinstance(run, Run) else optional_text(run, "run")
        if isinstance(run, Run):
            model = model or run.record.model
            dataset = dataset or run.record.dataset
        given = drafting.check(
            model=model, dataset=dataset, epoch=epoch, step=step, acc=acc, metrics=metrics,
            tags=tags, aliases=aliases, note=note, keys=keys, strategy=strategy,
            world_size=world_size,
        )  # fmt: skip

        checkpoint = pushes.push(
            Path(path), given, of, self._for_writing, move=move, progress=progress
        )
        if isinstance(run, Run) and run.keep is not None:
            self._keep(run.keep, run.id, checkpoint)
        return checkpoint

    def import_(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        dataset: str | None = None,
        run: str | None = None,
        tags: Iterable[str] = (),
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Take in every checkpoint file below a folder; what isn't said is read from each.

        What neither the caller nor a file says is taken from its name and its folders' names
        (`epoch=12-val_acc=0.93.ckpt`), and marked so in `provenance.from_name`. A file whose bytes
        are there already adds nothing; one that is bad stops no other. Symlinks aren't followed.

        Args:
            model: of all of them; by default what each file says, else its name or its folder's.
            dry_run: say what would be done, and write nothing.

        Returns:
            Each file with what became of it; `.failed` has those that didn't go in, and why.

        Raises:
            NotFoundError: there is no such folder.
            ValueError: a name breaks its grammar.
            NotWritableError, NoSpaceError, BusyError: the registry takes nothing.
        """
        from . import drafting, importing

        given = drafting.check(model=model, dataset=dataset, tags=tags)
        return importing.import_tree(
            Path(folder),
            given,
            optional_text(run, "run"),
            catalog=self._catalog() if self.exists else None,
            writer=None if dry_run else importing.Writer(self._for_writing, self.tag),
            memory=places.sightings(self._location),
            progress=progress,
        )

    def import_mlflow(
        self,
        uri: str,
        *,
        model: str | None = None,
        dataset: str | None = None,
        experiments: Iterable[str] = (),
        acc_from: str | None = None,
        tags: Iterable[str] = (),
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Take in every checkpoint of an MLflow store, with what MLflow says of it: run,
        parameters, metrics, and of registered models name, aliases and tags.

        What the file itself says comes first. A metric whose step is the checkpoint's is recorded;
        one taken by the epoch alone, or the last of a run with one checkpoint, is marked in
        `provenance.from_name`. What is there already adds nothing; what is bad stops no other.
        Nothing is written to a database or a server; MLflow's client may add a folder `models` to a
        store that is a folder.

        Args:
            uri: as MLflow takes it: `sqlite:///mlflow.db`, `http://127.0.0.1:5000`, `./mlruns`.
            model: of all of them; by default the registered model's name, else what each file says,
                else the experiment's name.
            experiments: names or ids; by default all.
            acc_from: the metric that is the accuracy, e.g. "val_accuracy"; one called acc is.
            dry_run: say what would be done, and write nothing.

        Returns:
            Each artifact with what became of it; `.failed` has those that didn't go in, and why,
            `.remarks` what MLflow says and isn't recorded.

        Raises:
            CkregError: mlflow isn't installed.
            NotFoundError, ContainerError, RemoteError: there is no such store or experiment, or it
                isn't MLflow's, or doesn't answer.
            ValueError: a name breaks its grammar.
            NotWritableError, NoSpaceError, BusyError: the registry takes nothing.
        """
        from tempfile import TemporaryDirectory

        from . import drafting, importing
        from .tracking import mlflow, taking

        given = drafting.check(model=model, dataset=dataset, tags=tags)
        if isinstance(experiments, str):
            raise TypeError(f"experiments is a list of names: experiments=[{experiments!r}]")
        with TemporaryDirectory(prefix="ckreg-mlflow-") as scratch:
            return taking.import_store(
                mlflow.MlflowStore(uri.removeprefix(mlflow.PREFIX), Path(scratch)),
                given,
                experiments=tuple(experiments),
                acc_from=optional_text(acc_from, "acc_from"),
                catalog=self._catalog() if self.exists else None,
                writer=None if dry_run else importing.Writer(self._for_writing, self.tag),
                scratch=Path(scratch),
                progress=progress,
            )
