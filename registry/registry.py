"""Registry: one database plus one blob store, and every verb on them. The table of contents of
ckreg.

Law: each method checks its words, makes one plan or one commit through the modules beside it, and
returns a record. No SQL, no bytes and no torch here: what needs torch imports .tensors inside its
own functions, and what only some methods need they import themselves: a question asks the database
alone, and must not pay for the readers of files (a test in test_cli.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from . import location, places, refs
from .catalog import Catalog, Page, Query
from .errors import CkregError, ConflictError, NotFoundError, warn
from .pending import PendingSave, Queue
from .records import Checkpoint, Mode, Model
from .runs import Lineage, Run, monitored, new_run, of_dataset, run_id
from .schema import Database, Upgrade
from .values import (
    FORMAT,
    CheckpointId,
    duration,
    label,
    metrics_of,
    model_name,
    now,
    one_of,
    optional_count,
    optional_text,
    size_bytes,
)

if TYPE_CHECKING:
    import torch

    from .blobs import BlobStore
    from .catalog import Choices, Course, Freeable, Holding, Standing, Upkeep
    from .collecting import GcPlan
    from .copying import Copied
    from .diffing import Diff
    from .importing import ImportResult
    from .loads import LoadResult
    from .planning import LoadPlan
    from .pruning import PrunePlan
    from .repairing import Rebuilt, Repaired
    from .retention import Policy
    from .saves import Optimizers, SaveWords, Stateful
    from .server import ServerDatabase
    from .signature import Signature
    from .verifying import Verification

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

Ref = str | Checkpoint
"""`resnet50`, `resnet50@v3`, `resnet50@best`, `resnet50@prod`, an id or a prefix of one; or a
checkpoint.
"""


class Registry:
    """A registry of checkpoints.

    Example:
        >>> import tempfile
        >>> reg = Registry.create(tempfile.mkdtemp() + "/reg")
        >>> reg.models()
        []
    """

    def __init__(self, place: places.Place) -> None:
        """Use `Registry.open` or `Registry.create`."""
        self._location = place
        self._store: BlobStore | None = None
        self._opened: Catalog | None = None
        self._share_checked = False
        self._pending = Queue()
        self._lineage = Lineage()

    # --- opening -----------------------------------------------------------------------------

    @classmethod
    def open(cls, location_: str | os.PathLike[str] | None = None) -> Registry:
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
    ) -> Registry:
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

    # --- taking in ---------------------------------------------------------------------------

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
        rng: bool = False,
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
            optimizer: one optimizer, or a mapping of names to optimizers.
            stateful: name -> anything with state_dict() (a GradScaler, a sampler).
            rng: save the random states of this process too.
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
        from . import drafting, saves

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

        def begun() -> Callable[[], Checkpoint]:
            # Checked by the rank that writes: what it refuses is told to the others.
            given = drafting.check(
                model=model, dataset=dataset, epoch=epoch, step=step, acc=acc, metrics=metrics,
                config=config, batch_size=batch_size, tags=tags, aliases=aliases, note=note,
            )  # fmt: skip
            job = saves.Job(
                net=net, given=given, optimizer=optimizer, scheduler=scheduler,
                stateful=dict(stateful or {}), rng=rng, extra=dict(extra or {}),
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
        Nothing is written to the store.

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

    # --- giving out --------------------------------------------------------------------------

    def load(
        self,
        ref: Ref,
        *,
        into: torch.nn.Module | None = None,
        optimizer: Optimizers | None = None,
        scheduler: Stateful | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        device: str | torch.device | None = None,
        dataset: str | None = None,
        keys: str | None = None,
        weights: Literal["live", "ema"] | None = None,
        cast: Literal["widen", "narrow"] | None = None,
        allow: Sequence[str] = (),
        trust: Iterable[type] = (),
        rng: bool = False,
        broadcast: bool = False,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> LoadResult:
        """Load a checkpoint into a live model, wrapped or not, or as a state dict.

        Keys, devices and dtypes follow the plan made from the record (`plan` shows it). All is
        checked before the first byte of the target changes; a load that fails leaves the target as
        it was.

        Args:
            into: the model; each tensor goes to its parameter's device. None gives `.state_dict`.
            optimizer: state lands by parameter name; the class must be the recorded one.
            device: where to materialise a meta model, or a state dict (default "cpu"; "recorded",
                "auto").
            keys: how the file's keys are wrapped, e.g. "module.", for a file that has no record.
            weights: which, when the file holds live and averaged (ema) ones.
            cast: "widen" lets dtypes grow, "narrow" lets them shrink while finite values stay
                finite.
            allow: globs over canonical keys that may be missing, unexpected or of another shape.
            trust: exact classes whose objects come back in `.extra`, scheduler and stateful; their
                code runs. Functions are never called, and nothing is trusted unnamed; weights need
                no trust. What stays in the file for lack of it is in `.ignored`.
            rng: restore this process's random states.
            broadcast: rank 0 alone reads the files, and sends the tensors to all, who all call.
                By default each rank reads its own part.
            verify: False skips the digests, for speed on a disk that you trust.

        Raises:
            NotFoundError, AmbiguousError: the ref names none, or several.
            RefusedLoadError: the load would be wrong; the message says what differs and what to do.
            UntrustedError: the scheduler or a stateful object holds an object of a class that isn't
                in trust.
            DamagedError: the bytes are not those that were recorded.
            TypeError: something in trust is no class.
        """
        from . import loads
        from .opening import opened

        want = loads.wanted(
            device=None if device is None else str(device), keys=keys, weights=weights, cast=cast,
            allow=allow, trust=trust, rng=rng,
        )  # fmt: skip
        with loads.together(into, ref, broadcast=broadcast) as together:
            checkpoint = self._resolve(ref, dataset)
            if together is not None:  # a save may have come between two ranks' look-ups
                checkpoint = self._resolve(
                    together.round(lambda: checkpoint.id, lambda told: told[0])
                )
            store, catalog = self._parts()
            with opened(store, catalog, checkpoint, verify=verify) as file:
                result = loads.load(
                    file,
                    loads.Objects(into, optimizer, scheduler, dict(stateful or {})),
                    want,
                    verify=verify,
                    progress=progress,
                    together=together,
                    broadcast=broadcast,
                )
        if optimizer is not None:
            self._lineage.resumed(checkpoint)
        return result

    def plan(
        self,
        ref: Ref,
        *,
        into: torch.nn.Module | None = None,
        optimizer: Optimizers | None = None,
        scheduler: Stateful | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        device: str | torch.device | None = None,
        dataset: str | None = None,
        keys: str | None = None,
        wrapped: str | None = None,
        weights: Literal["live", "ema"] | None = None,
        cast: Literal["widen", "narrow"] | None = None,
        allow: Sequence[str] = (),
        trust: Iterable[type] = (),
        rng: bool = False,
    ) -> LoadPlan:
        """Return what `load` with the same words would do, and why; reads no tensor data.

        Without `into`, the device is taken as said: a login node may plan for a GPU that it lacks.

        Args:
            wrapped: without `into`: how the net is wrapped that the weights are for: "plain",
                "recorded", or a style: "module.".

        Raises:
            NotFoundError, AmbiguousError, RefusedLoadError, DamagedError: as load.
            ValueError: a word is none of those that are known.
        """
        from . import loads, pulls
        from .opening import opened

        if wrapped is not None and into is not None:
            raise ValueError(
                f"the net itself says how it is wrapped: leave wrapped={wrapped!r} out"
            )
        adapt = pulls.adaptation(keys=wrapped)
        checkpoint = self._resolve(ref, dataset)
        store, catalog = self._parts()
        want = loads.wanted(
            device=None if device is None else str(device), keys=keys, weights=weights, cast=cast,
            out_keys=pulls.out_keys(checkpoint, adapt), allow=allow, trust=trust, rng=rng,
        )  # fmt: skip
        with opened(store, catalog, checkpoint, verify=True) as file:
            return loads.plan(
                file, loads.Objects(into, optimizer, scheduler, dict(stateful or {})), want
            )

    def pull(
        self,
        ref: Ref,
        dest: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        keys: str | None = None,
        weights: Literal["live", "ema"] | None = None,
        only: Literal["weights"] | None = None,
        format: Literal["pt", "safetensors"] | None = None,
        dataset: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write a checkpoint's file or folder: the stored bytes, verified; or one file, adapted to
        a device, to keys, to a format.

        Args:
            dest: a file, or a folder to put `NAME-vN.pt` in; default the working folder. For a
                checkpoint that is a folder: the new folder, or one to put `NAME-vN` in.
            device: the device tag to write, e.g. "cpu" or "cuda:0" (which need not exist here).
            keys: "plain" for canonical keys, "recorded" for those of the live model, or a style:
                "module.".
            only: "weights" writes the state dict alone.
            format: "safetensors" implies only="weights".
            force: replace what is there.

        Returns:
            The path written, or found there with the same bytes.

        Raises:
            ConflictError: something else is there, or the path lies inside the registry's blobs.
            NotFoundError: there is no such checkpoint, or no such folder.
            DamagedError: the stored bytes are damaged; nothing is written.
        """
        from . import pulls

        adapt = pulls.adaptation(
            device=device, keys=keys, weights=weights, only=only, format=format
        )
        checkpoint = self._resolve(ref, dataset)
        store, catalog = self._parts()
        return pulls.pull(store, catalog, checkpoint, dest, adapt, force=force, progress=progress)

    def export(
        self,
        ref: Ref,
        dest: str | os.PathLike[str],
        *,
        format: Literal["safetensors", "pt"] = "safetensors",
        shard_size: int | str | None = None,
        keys: str | None = None,
        weights: Literal["live", "ema"] | None = None,
        dataset: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write a checkpoint's weights as a folder that transformers and safetensors read.

        Beside them lie `ckreg.json`, the checkpoint's record, and `README.md`, a model card that
        the Hugging Face Hub reads. The folder appears whole or not at all.

        Args:
            dest: a folder that is empty or not there yet.
            shard_size: the bytes of one file at most, e.g. "5GB"; by default there is one file.
            keys: "plain" for canonical keys, "recorded" for those of the live model, or a style:
                "module.".
            weights: which, when the file holds live and averaged (ema) ones.
            force: replace an earlier export; what no export wrote, and a card that somebody
                edited, is never replaced.

        Returns:
            The folder.

        Raises:
            ConflictError: something else is there, or the path lies inside the registry's blobs.
            NotFoundError: there is no such checkpoint, or no folder to write in.
            ContainerError: a tensor has no place in a file of that format.
            RefusedLoadError: the keys or weights asked for aren't known, or there are two.
            DamagedError: the stored bytes are damaged; nothing is written.
        """
        from . import exports, loads, pulls

        adapt = pulls.adaptation(
            device=None, keys=keys, weights=weights, only="weights",
            format=one_of(format, exports.FORMATS, "format"),
        )  # fmt: skip
        limit = None if shard_size is None else size_bytes(shard_size)
        checkpoint = self._resolve(ref, dataset)
        return exports.export(
            *self._parts(),
            checkpoint,
            Path(dest),
            loads.wanted(
                device=None, out_keys=pulls.out_keys(checkpoint, adapt), weights=adapt.weights
            ),
            format=format,
            shard_bytes=limit,
            force=force,
            progress=progress,
        )

    # --- asking ------------------------------------------------------------------------------

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

    def resume_point(
        self, model: str, *, dataset: str | None = None, run: Run | str | None = None
    ) -> Checkpoint:
        """Return the newest checkpoint whose every byte is as it was saved, to go on from.

        It reads them. One that is damaged is passed over, with a warning that names it.

        Raises:
            NotFoundError: no such model, none of its checkpoints matches, or all are damaged.
            AmbiguousError: the model was trained on several datasets and none is named.
            RemoteError: the bytes can't be reached, which says nothing of them.
        """
        from . import verifying

        name = model_name(model)
        run_ = run_id(self._catalog(), name, dataset, run)
        return verifying.newest_whole(
            *self._parts(), self._upkeep(), name, dataset=of_dataset(dataset), run=run_
        )

    def models(self, names: Collection[str] | None = None) -> list[Model]:
        """Return every model, or those of some names, by name."""
        return self._catalog().models(names) if self.exists else []

    def sizes(self) -> dict[str, int]:
        """Return how many live checkpoints each model has, by name; quick with many models."""
        return self._catalog().sizes() if self.exists else {}

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

    def diff(self, a: Ref, b: Ref, *, progress: Progress | None = None) -> Diff:
        """Return how checkpoint b differs from checkpoint a: facts, topology, keys, tensors.

        Keys are compared canonical: equal weights under different wrappers are equal. `str` of it
        is a page, `.modules` the tensors summed by module, `.equal_weights` the short answer.

        Raises:
            NotFoundError, AmbiguousError: a ref names none, or several.
            DamagedError: the bytes are not those that were recorded.
            RefusedLoadError: a file's keys aren't wrapped as recorded.
        """
        from . import diffs

        first, second = self._resolve(a), self._resolve(b)
        return diffs.diff(*self._parts(), first, second, progress=progress)

    # --- marking -----------------------------------------------------------------------------

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

    # --- the registry itself -----------------------------------------------------------------

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

    def migrate(self) -> Upgrade:
        """Bring the schema to this ckreg's; the database is copied aside first.

        Raises:
            SchemaVersionError: it was made by a newer ckreg.
            NotWritableError, NoSpaceError, BusyError: it can't be done; nothing has changed.
        """
        self._parts()
        return self._database().upgrade()

    def copy_to(
        self,
        destination: str | os.PathLike[str],
        *,
        blobs: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Copied:
        """Copy all of this registry to another place: checkpoints with ids, versions and bytes,
        removed ones too, metrics, tags, aliases and their moves, runs, models.

        Nothing changes here. A copy that was cut off goes on when it is called again, and later it
        brings what is new or has changed. Of two states of a checkpoint this registry's wins.
        What couldn't be copied, since it is damaged here, is in the result.

        Args:
            destination: as for `create`; made where nothing is there.
            blobs: where its bytes are to be, as for `create`.

        Raises:
            ValueError: CKREG_BLOBS is set, or a database is to be made without a place for blobs.
            ConflictError: other checkpoints or runs are there in the place of some of these, or it
                is this registry; nothing was copied.
            NotWritableError, NoSpaceError, BusyError, RemoteError: the destination failed; what is
                there stays, and the next call goes on.
        """
        from . import copying

        if os.environ.get("CKREG_BLOBS"):
            raise ValueError(
                "CKREG_BLOBS names one place for blobs, and a copy has two: unset CKREG_BLOBS"
            )
        store, catalog = self._parts()
        source = copying.End(store, catalog, self._database())
        with Registry.create(destination, blobs=blobs) as other:
            store, catalog = other._for_writing()
            target = copying.End(store, catalog, other._database())
            return copying.copy(source, target, progress=progress)

    # --- keeping -----------------------------------------------------------------------------

    def verify(self, ref: Ref | None = None, *, progress: Progress | None = None) -> Verification:
        """Read every byte, row and record of the registry, or of one checkpoint, and compare them.

        It changes nothing. What is wrong is in the result, each with the way to mend it.

        Raises:
            NotFoundError, AmbiguousError: the ref names none, or several.
            DamagedError: the database can't be opened at all.
        """
        from . import verifying

        one = None if ref is None else self._resolve(ref, include_removed=True)
        store, catalog = self._parts()
        return verifying.verify(store, catalog, self._upkeep(), one, progress=progress)

    def repair(self, found: Verification, *, progress: Progress | None = None) -> Repaired:
        """Mend what `verify` found, as far as something whole tells how. Nothing is deleted.

        Damaged and foreign files go to quarantine/, so that a push of the same file takes their
        place; records are written of rows that prove themselves, rows of records that do.

        Args:
            progress: called with findings seen to, and findings in all.

        Raises:
            NotFoundError, ConflictError: the store's marker is missing, or another store's.
            NotWritableError, BusyError: it can't be done.
        """
        from . import repairing

        store, catalog = self._for_writing()
        return repairing.repair(store, catalog, self._upkeep(), found, progress=progress)

    @classmethod
    def rebuild(
        cls, location_: str | os.PathLike[str] | None = None, *, replace: bool = False
    ) -> Rebuilt:
        """Make a database of the records alone, beside the one in use: registry.db.rebuilt.

        Versions, metrics, tags, aliases and their moves, runs and tombstones come back, and what
        best means for a model that has a checkpoint. It works where the database is lost.

        Args:
            replace: put it in the place of the one in use, which is kept beside it.

        Raises:
            ConflictError: one was made before; or the database in use has more than the records.
            DamagedError: the records contradict each other.
        """
        from . import repairing

        place = location.find() if location_ is None else location.place(location_)
        if not isinstance(place, location.Location):
            raise ValueError(
                f"a database is made anew of records in a folder, not on a server: {place}"
            )
        store, elsewhere = places.rebuilt_from(place.folder)
        database = Database(place.folder / location.DATABASE)
        return repairing.rebuild(store, database, replace=replace, elsewhere=elsewhere)

    def prune(
        self,
        model: str,
        policy: Policy,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        dry_run: bool = False,
        plan: PrunePlan | None = None,
    ) -> PrunePlan:
        """Remove the checkpoints of a model that a policy doesn't keep, e.g. `Best(3) | Last(2)`.

        Each dataset is judged by itself. Whatever the policy, its best and its latest stay, and so
        does what an alias points at, and what lacks the metric or epoch that the policy asks for.
        A removal is a tombstone: `restore` undoes it, and the bytes come back when `gc` runs after
        its grace.

        Args:
            dataset: judge those of one dataset alone.
            run: judge those of one run alone; its best and latest stay beside the model's.
            dry_run: return the plan, and remove nothing.
            plan: what a dry run returned: remove that, as far as it would still go, and nothing
                else.

        Raises:
            NotFoundError: no such model or run.
            TypeError, ValueError: the policy is none, or names a metric and not its mode; or the
                plan is of another model or policy.
            DamagedError: a row isn't what was written.
            NotWritableError, BusyError: it can't be done.
        """
        from . import pruning
        from .retention import policy_of

        name = model_name(model)
        keep = policy_of(policy, "policy")
        upkeep = self._upkeep()
        if plan is None:
            of = run_id(self._catalog(), name, dataset, run)
            found = pruning.plan(upkeep, pruning.Scope(name, of_dataset(dataset), of), keep)
        elif (plan.model, plan.policy) != (name, keep) or not (dataset is None and run is None):
            raise ValueError(
                f"the plan is of {plan.model!r} with {plan.policy!r}, and has its own dataset and "
                "run: reg.prune(plan.model, plan.policy, plan=plan)"
            )
        else:
            found = plan if dry_run else pruning.again(upkeep, plan)
        if dry_run or not found:
            return found if dry_run else replace(found, done=True)
        return pruning.prune(*self._for_writing(), upkeep, found)

    def _keep(self, policy: Policy, run: str, saved: Checkpoint) -> None:
        """Remove a run's surplus after a save, which is safe whatever happens here."""
        from . import pruning

        try:
            scope = pruning.Scope(saved.model, saved.dataset, run)
            upkeep = self._upkeep()
            found = pruning.plan(upkeep, scope, policy, guarded={saved.id: "just saved"})
            if found:
                pruning.prune(*self._parts(), upkeep, found)
        except Exception as error:  # the save is committed: nothing here may look as if it weren't
            what = error.message if isinstance(error, CkregError) else str(error)
            warn(
                f"{saved.ref} is saved, but what keep={policy!r} doesn't keep was not removed: "
                f"{what}"
            )

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace: timedelta | str = "14d",
        plan: GcPlan | None = None,
    ) -> GcPlan:
        """Take the bytes that nothing needs any more: those of checkpoints removed long ago, files
        that a crash left without a row, temporary files of killed writers.

        A removed checkpoint whose bytes went can't be restored; its record stays.

        Args:
            dry_run: return the plan, and take nothing.
            grace: how long after its removal a checkpoint keeps its bytes, and how long a file
                without a row stays (an hour at least): "14d", "36h", "0". Time is the store's.
            plan: what a dry run returned: take that, as far as it may still go, and nothing else.

        Raises:
            NotFoundError, ConflictError: the store's marker is missing, or another store's.
            DamagedError: many blobs are missing, or the database lacks checkpoints that records/
                has; nothing was taken.
            NotWritableError, BusyError: it can't be done.
        """
        from . import collecting

        span = duration(grace)
        store, catalog = self._parts()
        upkeep = self._upkeep()
        found = collecting.plan(store, upkeep, span) if plan is None else plan
        if dry_run:
            return found
        self._for_writing()  # not before: it sweeps what the plan counts
        return collecting.collect(store, catalog, upkeep, found)

    def freeable(self, *, grace: timedelta | str = "14d", most: int = 100) -> Freeable:
        """Return what `gc` would take of removed checkpoints, by the database and this machine's
        clock alone. What a crash left behind isn't in it: `gc(dry_run=True)` reads the store.

        Args:
            most: how many of the checkpoints are named.
        """
        span = duration(grace)
        return self._catalog().freeable(now() - span, most=most)

    def _database(self) -> Database | ServerDatabase:
        return places.database(self._location)

    def _upkeep(self) -> Upkeep:
        from .catalog import Upkeep

        self._catalog()  # which refuses a registry that isn't there
        return Upkeep(self._database())

    # --- inside ------------------------------------------------------------------------------

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
