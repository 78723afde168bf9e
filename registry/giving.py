"""Giving: what a registry gives out: loads, files, folders, differences, a whole copy.

Law: what is given was verified on its way; here nothing is written. What needs torch imports
.tensors inside its own functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .asking import Asking
from .handle import Handle, Progress, Ref
from .records import Checkpoint
from .runs import Run, of_dataset, run_id
from .values import (
    model_name,
    one_of,
    size_bytes,
)

if TYPE_CHECKING:
    import torch

    from .copying import Copied
    from .diffing import Diff
    from .loads import LoadResult
    from .planning import LoadPlan
    from .saves import Optimizers, Stateful
    from .verifying import Verification


class Giving(Asking):
    """What comes out of the checkpoints."""

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
            allow: globs over canonical keys that may be missing, unexpected or of another shape:
                what `strict=False` lets pass unnamed.
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

        A file is never written under a name that says another format: where a file is adapted, its
        name chooses (`.safetensors`; `.pt`, `.pth`, `.ckpt`, `.bin`), and a plain pull is refused.

        Args:
            dest: a file, or a folder to put `NAME-vN.pt` in; default the working folder. For a
                checkpoint that is a folder: the new folder, or one to put `NAME-vN` in.
            device: the device tag to write, e.g. "cpu" or "cuda:0" (which need not exist here).
            keys: "plain" for canonical keys, "recorded" for those of the live model, or a style:
                "module.".
            only: "weights" writes the state dict alone.
            format: "safetensors" implies only="weights". Default: as dest is named, else as stored.
            force: replace what is there.

        Returns:
            The path written, or found there with the same bytes.

        Raises:
            ValueError: a word is none of those that are known, or format and dest's name differ.
            ContainerError: dest's name says a format that the file, as it is asked for, isn't in.
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
        public: bool = False,
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
            public: leave out who made it, on which hosts, and by which command.
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
            public=public,
            force=force,
            progress=progress,
        )

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
        with Handle.create(destination, blobs=blobs) as other:
            store, catalog = other._for_writing()
            target = copying.End(store, catalog, other._database())
            return copying.copy(source, target, progress=progress)
