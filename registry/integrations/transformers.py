"""transformers: a callback that takes the Trainer's checkpoint-N folders into a registry.

Law: the Trainer writes its folder as ever; ckreg lays the record beside it, as `ckreg.json`, and
takes the whole in. Metrics are those of the evaluation at this very step. What best means is what
the Trainer's arguments say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..errors import NotFoundError, RefusedLoadError
from ..exports import RECORD
from ..records import Checkpoint, Mode
from ..retention import Policy
from ..topology import Strategy
from .accelerate import broadcast
from .training import Place, Training, on_rank_zero, settings

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments


class CheckpointCallback(TrainerCallback):
    """Take every checkpoint that the Trainer saves into a registry, and resume from there.

    `Trainer(…, callbacks=[CheckpointCallback(…)])`; when and how often is said by the Trainer's own
    `save_strategy`, what best means by `metric_for_best_model` and `greater_is_better`. If a save
    fails, training stops with the error.

    Args:
        registry: a `Registry`, or where it is; None: $CKREG_REGISTRY, ./.ckreg upward, ~/.ckreg.
        model, dataset: as for `Registry.push`.
        run: the run's name; the same name continues it.
        config: settings to record; by default the TrainingArguments that aren't at their
            defaults.
        acc: the metric that is the accuracy, e.g. "eval_accuracy": it is recorded as acc besides.
        keep: which of the run's checkpoints stay after each save, e.g. `Best(3) | Last(2)`; None:
            all. The Trainer's own folders are its `save_total_limit`'s.

    Raises:
        ValueError, TypeError: a word breaks its rule; said at once.

    Attributes:
        last: the newest checkpoint that it took in; on every process.
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
        acc: str | None = None,
        keep: Policy | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self._training = Training(
            registry, model, dataset=dataset, run=run, config=config, batch_size=batch_size,
            acc=acc, keep=keep, tags=tags,
        )  # fmt: skip
        self._swapped = False
        self.last: Checkpoint | None = None

    def folder(self, ref: Checkpoint | str | None = None) -> str | None:
        """Return a folder for `trainer.train(resume_from_checkpoint=callback.folder())`.

        It is removed when training is over.

        Args:
            ref: what to resume from; None: the newest of the run of this name, and None comes back
                if there is none yet, so that the first start of a job needs no other line.

        Raises:
            NotFoundError, AmbiguousError: a ref names none, or several.
            ValueError: no ref is given, and the run has no name.
            DamagedError: the stored bytes are damaged.
        """
        return self._training.resume(ref)

    # --- the Trainer's hooks ------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the run, so that what would make a save fail fails now, on every process."""
        self._swapped = False
        if _strategy(args, kwargs["model"]) is None:
            raise RefusedLoadError(
                "the Trainer spreads the net over its ranks, and what it writes then is not taken "
                "in by this callback yet",
                hint=f"leave the callback out, then: ckreg push {args.output_dir}/checkpoint-N "
                f"--model {self._training.model}",
            )
        metric = args.metric_for_best_model
        if metric is not None:
            name = metric if metric.startswith("eval_") else f"eval_{metric}"
            better: bool | None = args.greater_is_better
            if better is None:
                better = not metric.endswith("loss")  # transformers' own rule
            mode: Mode = "max" if better else "min"
            self._training.monitor = (name, mode)

        def begin() -> None:
            self._training.begin(settings(_changed(args)))

        on_rank_zero(args.process_index, broadcast, begin)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take in the folder that the Trainer has just written."""
        if args.world_size > 1:
            args.distributed_state.wait_for_everyone()  # each rank writes its own random states
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")

        def take() -> dict[str, Any]:
            if not folder.is_dir():
                raise NotFoundError(
                    f"the Trainer saved no {str(folder)!r}: in a hyper-parameter search it saves "
                    "elsewhere, and that is not taken in",
                    hint=f"ckreg import {args.output_dir}",
                )
            record = self._record_of(folder, args, state, kwargs)
            text = json.dumps({"ckreg": record}, indent=2)
            (folder / RECORD).write_text(text, encoding="utf-8")
            return self._training.take(folder).to_dict()

        self.last = Checkpoint.from_dict(on_rank_zero(args.process_index, broadcast, take))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the metrics of weights that were saved before they were evaluated.

        The Trainer saves by steps before it evaluates by epochs. What is evaluated after it took
        the best weights back, at the end of training, is of no weights that were saved last.
        """
        if self._swapped or not state.is_world_process_zero:
            return
        if self.last is not None and self.last.step == state.global_step:
            # Of several sets some are still to come, and what is named by another prefix never does
            found = self._training.finite(_metrics(state), evaluated=False)
            new = {name: value for name, value in found.items() if name not in self.last.metrics}
            if new:
                self.last = self._training.registry.record(self.last, new)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove what was pulled to resume from."""
        self._swapped = args.load_best_model_at_end
        self._training.release()

    def _record_of(
        self, folder: Path, args: TrainingArguments, state: TrainerState, live: Mapping[str, Any]
    ) -> dict[str, Any]:
        # An adapter's folder holds the adapter alone, under names of its own
        adapter = any(folder.glob("adapter_model.*"))
        whole = not (adapter or args.save_only_model)
        optimizer = live["optimizer"]
        metrics = _metrics(state)
        record = self._training.record(
            live["model"],
            epoch=int(state.epoch) if state.epoch is not None and not state.epoch % 1 else None,
            step=state.global_step,
            metrics=self._training.finite(
                metrics, evaluated=any(name.startswith("eval_") for name in metrics)
            ),
            optimizers={"optimizer": getattr(optimizer, "optimizer", optimizer)} if whole else {},
            scheduler=live["lr_scheduler"] if whole else None,
        )
        record["topology"]["strategy"] = _strategy(args, live["model"])
        return record


def _changed(args: TrainingArguments) -> dict[str, object]:
    """Return the arguments that differ from their defaults, and the learning rate; no paths."""
    return {
        field.name: value
        for field in fields(args)
        if (value := getattr(args, field.name)) != field.default or field.name == "learning_rate"
        if not field.name.endswith(_PATHS)
    }


_PATHS = ("_dir", "run_name", "_token")


def _metrics(state: TrainerState) -> dict[str, float]:
    """Return what was logged at this very step: the evaluation's metrics, and the loss."""
    return {
        name: value
        for entry in state.log_history
        if entry.get("step") == state.global_step
        for name, value in entry.items()
        if name == "loss" or (name.startswith("eval_") and not name.endswith(_TIMES))
    }


_TIMES = ("_runtime", "_per_second", "_preparation_time", "_jit_compilation_time")


def _strategy(args: TrainingArguments, net: torch.nn.Module) -> Strategy | None:
    """Return how the Trainer trains, None where ranks hold parts of the net."""
    from ..tensors import wrappers

    # `accelerate launch` may say so as well as the arguments
    by_accelerate = str(args.distributed_state.distributed_type.value)
    if args.fsdp or args.deepspeed or by_accelerate in _IN_PARTS or wrappers.is_sharded(net):
        return None
    if args.world_size > 1:
        return "ddp"
    return "dp" if args.n_gpu > 1 else "single"


_IN_PARTS = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
