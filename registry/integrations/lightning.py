"""Lightning: a callback that puts the Trainer's own checkpoints into a registry.

Law: what is stored is a whole Lightning checkpoint, written by the Trainer itself, so that
`trainer.fit(ckpt_path=…)` resumes from it as from any other; the record beside it says what the
live model was. It is saved where ModelCheckpoint saves: when the validation of these very weights
is over, so that its metrics are theirs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RefusedLoadError
from ..records import Checkpoint as Saved
from ..records import Mode
from ..retention import Best, Policy
from .training import Place, Training, on_rank_zero, settings, temporary

if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning.callbacks import Checkpoint
else:
    from lightning.pytorch.callbacks import Checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class CheckpointCallback(Checkpoint):
    """Save into a registry after each validation, and resume from there.

    It takes ModelCheckpoint's place: `Trainer(callbacks=[CheckpointCallback(…)])` adds no other.
    Without validation it saves when the training epoch is over. Every process has it, one writes.
    If a save fails, training stops with the error.

    Args:
        registry: a `Registry`, or where it is; None: $CKREG_REGISTRY, ./.ckreg upward, ~/.ckreg.
        model, dataset: as for `Registry.save`.
        run: the run's name; the same name continues it.
        config: settings to record; by default the module's `save_hyperparameters()`, what is plain
            of them.
        batch_size: the global one, over all devices.
        monitor, mode: the logged metric that best means for this model, and whether "max" or "min".
        acc: the logged metric that is the accuracy: it is recorded as acc besides.
        save_top_k: keep the k best by monitor, and remove the others of this run; -1 keeps all. The
            newest always stays.
        keep: the same said by a policy: `Best(3) | Every(epochs=10)`.
        every_n_epochs: how often to save.
        save_weights_only: leave out what a resume needs.

    Raises:
        ValueError, TypeError: a word breaks its rule; said at once.

    Attributes:
        last: the newest checkpoint that it saved; on every process.
    """

    def __init__(
        self,
        registry: Place,
        model: str,
        *,
        dataset: str | None = None,
        run: str | None = None,
        config: Mapping[str, object] | None = None,
        batch_size: int | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        acc: str | None = None,
        save_top_k: int = -1,
        keep: Policy | None = None,
        every_n_epochs: int = 1,
        save_weights_only: bool = False,
        tags: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if save_top_k != -1:
            if keep is not None:
                raise ValueError("save_top_k= and keep= say the same: give one of them")
            if save_top_k < 1:
                raise ValueError(f"save_top_k={save_top_k} is neither -1, for all, nor 1 or more")
            if monitor is None and acc is None:
                raise ValueError("save_top_k= needs to know what is best: name monitor= or acc=")
            keep = Best(save_top_k)
        self._training = Training(
            registry, model, dataset=dataset, run=run, config=config, batch_size=batch_size,
            monitor=monitor, mode=mode, acc=acc, keep=keep, tags=tags,
        )  # fmt: skip
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} is less than 1")
        self._every_n_epochs = every_n_epochs
        self._weights_only = save_weights_only
        self._saved_at = 0
        self._before: dict[str, Any] = {}
        self._validated_at: int | None = None
        self._validations: set[str] = set()
        self._record: dict[str, Any] | None = None
        self._best: str | None = None
        self.last: Saved | None = None

    def ckpt_path(self, ref: Saved | str | None = None) -> str | None:
        """Return the path of a checkpoint for `trainer.fit(net, ckpt_path=callback.ckpt_path())`.

        The file is removed when training has begun.

        Args:
            ref: what to resume from; None: the newest of the run of this name, and None comes back
                if there is none yet, so that the first start of a job needs no other line.

        Raises:
            NotFoundError, AmbiguousError: a ref names none, or several.
            ValueError: no ref is given, and the run has no name.
            DamagedError: the stored bytes are damaged.
        """
        return self._training.resume(ref)

    @property
    def best_model_path(self) -> str:
        """The path of the run's best checkpoint, pulled for who asks; "" if there is none.

        `trainer.test(ckpt_path="best")` asks for it. The file stays until the next is pulled.
        """
        return "" if self._best is None else self._training.pull(self._best)

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Take no notice: a launcher that spawns sets what its worker had."""

    # --- the Trainer's hooks ------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the run, so that what would make a save fail fails now, on every process."""
        if trainer.fast_dev_run:
            return

        def begin() -> None:
            self._refuse_parts(trainer)
            self._training.begin(settings(dict(pl_module.hparams)))

        on_rank_zero(trainer.global_rank, trainer.strategy.broadcast, begin)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what was pulled to resume from, which has been read; what it holds is saved."""
        self._saved_at = trainer.global_step
        self._training.release()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See which metrics are there before validation logs its own."""
        self._before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, where validation comes once, before this; or never."""
        if _saves_after_epoch(trainer):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, where validation comes several times in an epoch, or not in each."""
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step
            self._validations = {
                name
                for name, value in trainer.callback_metrics.items()
                if self._before.get(name) is not value
            }
        if not _saves_after_epoch(trainer):
            self._save(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lay the record beside what the Trainer writes, in the checkpoints that go to the
        registry.
        """
        if self._record is not None:
            checkpoint["ckreg"] = self._record

    # --- saving -------------------------------------------------------------------------------

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            trainer.fast_dev_run
            or trainer.sanity_checking
            or trainer.state.fn != "fit"
            or trainer.global_step == self._saved_at
            or (trainer.current_epoch + 1) % self._every_n_epochs
        ):
            return
        rank, broadcast = trainer.global_rank, trainer.strategy.broadcast
        with ExitStack() as stack:

            def begun() -> str:
                self._record = self._record_of(trainer, pl_module)
                folder = stack.enter_context(temporary(_room(trainer)))
                return os.path.join(folder, "lightning.ckpt")

            stack.callback(lambda: setattr(self, "_record", None))
            path = on_rank_zero(rank, broadcast, begun)  # what is wrong is known before all save
            trainer.save_checkpoint(path, self._weights_only)

            def take() -> tuple[dict[str, Any], str | None]:
                made, best = self._training.take(Path(path)), self._training.best()
                return made.to_dict(), None if best is None else best.id

            made, self._best = on_rank_zero(rank, broadcast, take)
        self.last = Saved.from_dict(made)
        self._saved_at = trainer.global_step

    def _refuse_parts(self, trainer: Trainer) -> None:
        """Refuse a net whose state only a call of all ranks gives; that of FSDP2 and of tensor
        parallelism any rank can describe.
        """
        from ..tensors.wrappers import DEEPSPEED, FSDP1, is_a, walk

        places = walk(trainer.strategy.model)
        if any(is_a(p.module, *FSDP1) or is_a(p.module, *DEEPSPEED) for p in places):
            raise RefusedLoadError(
                f"{type(trainer.strategy).__name__} spreads the net over its ranks, and what the "
                "Trainer writes of it is not taken in by this callback yet",
                hint="use ModelParallelStrategy (FSDP2), or keep ModelCheckpoint, and take its "
                f"folders in: ckreg push FOLDER --model {self._training.model}",
            )

    def _record_of(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        from ..tensors import observe

        net = trainer.strategy.model or pl_module
        metrics = dict(trainer.callback_metrics)
        # Training may end between two validations, and what the last one measured is still there
        measured = self._validated_at == trainer.global_step or not _validates(trainer)
        if not measured:
            metrics = {k: v for k, v in metrics.items() if k not in self._validations}
        alone = len(trainer.optimizers) == 1
        optimizers = {
            "optimizer" if alone else f"optimizer_states.{i}": _bare(optimizer)
            for i, optimizer in enumerate(trainer.optimizers)
        }
        schedulers = [c.scheduler for c in trainer.lr_scheduler_configs]
        return self._training.record(
            net,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            metrics=self._training.finite(metrics, evaluated=measured),
            file_keys=observe.observe(pl_module).key_style,
            optimizers={} if self._weights_only else optimizers,
            scheduler=schedulers[0] if len(schedulers) == 1 and not self._weights_only else None,
        )


def _saves_after_epoch(trainer: Trainer) -> bool:
    """Say whether to save when the training epoch is over, and not when validation is.

    ModelCheckpoint's own rule (Lightning 2.6, `_should_save_on_train_epoch_end`): what the loops
    have written by then is what a resume goes on from.
    """
    if trainer.check_val_every_n_epoch != 1:
        return False
    return not _validates(trainer) or bool(trainer.val_check_interval == 1.0)


def _validates(trainer: Trainer) -> bool:
    batches = trainer.num_val_batches
    return bool(sum(batches) if isinstance(batches, list) else batches)


def _room(trainer: Trainer) -> str | None:
    """Return the folder where the Trainer itself would write, None where that is no folder."""
    root = str(trainer.default_root_dir)
    if "://" in root:
        return None
    os.makedirs(root, exist_ok=True)
    return root


def _bare(optimizer: Any) -> Any:
    """Return the torch optimizer in a LightningOptimizer."""
    return getattr(optimizer, "optimizer", optimizer)
