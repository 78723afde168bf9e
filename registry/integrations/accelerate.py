"""accelerate: `save_state` and `load_state` of an Accelerator, into a registry and from there.

Law: accelerate writes its own folder, and reads it; ckreg lays the record beside it, as
`ckreg.json`, and takes the whole in. Every process calls; the main one writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import RNG_STATE_NAME, broadcast_object_list

from ..errors import NotFoundError, RefusedLoadError
from ..exports import RECORD
from ..records import Checkpoint
from ..registry import Registry
from ..runs import Run
from ..values import metrics_of
from .training import on_rank_zero, record_of, temporary

if TYPE_CHECKING:
    from accelerate import Accelerator


def save_state(
    accelerator: Accelerator,
    registry: Registry,
    run: Run,
    *,
    epoch: int | None = None,
    step: int | None = None,
    acc: object = None,
    metrics: Mapping[str, object] | None = None,
    tags: Iterable[str] = (),
) -> Checkpoint:
    """Save all that the accelerator prepared: models, optimizers, schedulers, random states.

    Call it on every process; every one gets the checkpoint.

    Args:
        run: as `registry.run(…)` gave it: its model, dataset, config, batch size, and `keep`.

    Raises:
        ValueError, TypeError: a word breaks its rule.
        RefusedLoadError: ranks hold parts of the net.
        NotFoundError: processes on other machines don't see rank 0's folder.
        CkregError: it can't be kept; on the other processes a RemoteError.
    """
    numbers = metrics_of(metrics or {}, acc)
    models: list[Any] = []
    weights: list[Mapping[str, Any]] = []

    def seen(prepared: list[Any], states: list[Any], folder: str) -> None:
        models.extend(prepared)
        weights.extend(states)

    with ExitStack() as stack:
        rank = accelerator.process_index
        path = Path(on_rank_zero(rank, broadcast, lambda: stack.enter_context(temporary())))
        hook = accelerator.register_save_state_pre_hook(seen)
        stack.callback(hook.remove)
        accelerator.save_state(str(path))
        accelerator.wait_for_everyone()  # each process writes its own random states

        def take() -> dict[str, Any]:
            if not weights:
                raise RefusedLoadError(
                    f"{accelerator.distributed_type} spreads the net over its ranks, and what "
                    "accelerate writes then is not taken in here yet",
                    hint=f"accelerator.save_state(FOLDER), then: ckreg push FOLDER --model "
                    f"{run.record.model}",
                )
            _check_states(path, accelerator.num_processes)
            record = _record(accelerator, run, models, weights, epoch, step, numbers)
            (path / RECORD).write_text(json.dumps({"ckreg": record}, indent=2), encoding="utf-8")
            return registry.push(path, run=run, tags=tags).to_dict()

        return Checkpoint.from_dict(on_rank_zero(rank, broadcast, take))


def load_state(
    accelerator: Accelerator, registry: Registry, ref: Checkpoint | str, **words: Any
) -> Checkpoint:
    """Load a checkpoint that `save_state` saved into what the accelerator prepared.

    Call it on every process, after `accelerator.prepare`.

    Args:
        words: as for `Accelerator.load_state`.

    Raises:
        NotFoundError, AmbiguousError: the ref names none, or several.
        DamagedError: the stored bytes are damaged; nothing was loaded.
    """
    found = registry.get(ref)
    with temporary() as folder:
        path = registry.pull(found, folder)
        accelerator.load_state(str(path), **words)
    return found


def _check_states(folder: Path, processes: int) -> None:
    """See that every process wrote its random states here, and not on a machine of its own."""
    names = [f"{RNG_STATE_NAME}_{rank}.pkl" for rank in range(processes)]
    missing = [rank for rank, name in enumerate(names) if not (folder / name).exists()]
    if missing:
        raise NotFoundError(
            f"the random states of rank {missing[0]} are not in {str(folder)!r}, where rank 0 "
            "gathers what is saved: other machines don't see that folder",
            hint="export TMPDIR=FOLDER, one that all machines share",
        )


def broadcast(value: Any) -> Any:
    """Return rank 0's value; every process calls it."""
    return broadcast_object_list([value])[0]


def _record(
    accelerator: Accelerator,
    run: Run,
    models: list[Any],
    weights: list[Mapping[str, Any]],
    epoch: int | None,
    step: int | None,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    from ..tensors import observe

    net, keys = models[0], set(weights[0])
    live = observe.observe(net)
    optimizers = [getattr(o, "optimizer", o) for o in accelerator._optimizers]
    alone = len(models) == 1 == len(optimizers)
    record = record_of(
        run,
        net,
        epoch=epoch,
        step=step,
        metrics=metrics,
        file_keys=live.key_style if keys == set(live.state) else None,
        # Of several it isn't known which is whose
        optimizers={"optimizer": optimizers[0]} if alone else {},
    )
    if record["topology"]["strategy"] is None and accelerator.num_processes > 1:
        record["topology"]["strategy"] = "ddp"  # accelerate shows a hook the net without its DDP
    return record
