"""Where training frameworks put what: told by their keys, as far as those are customary.

Law: a layout only says where facts lie; it changes none and computes none. A running best keeps a
name of its own (`best_` and what was monitored), never `acc`. Key names are those that the
frameworks' own writers use, at the versions named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .tree import TaggedDict
from .weights import items_of, keyed_by_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What wrote a file, and where its facts lie beyond the customary keys at the top.

    Attributes:
        name: the framework: `lightning`; None where the keys say nothing.
        top: the keys at the top, with those of an inner dict that holds them all.
        facts: further facts by name: `model`, `dataset`, `epoch`, `step`, `strategy`, `world_size`;
            `partitioned`: where the optimizer's state is, if it can't be had.
        metrics: further metrics by name; values as they stand.
        config: the key of the settings, where it isn't a customary one.
        live, averaged: where live and averaged weights lie, where names don't say or mislead.
    """

    name: str | None = None
    top: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    live: str | None = None
    averaged: str | None = None


def layout_of(top: Mapping[str, Any], container: str) -> Layout:
    """Return the layout of a file with these keys at its top."""
    if container == "gguf":
        return Layout(name="gguf", top=top, facts={"model": top.get("general.architecture")})
    if container == "deepspeed-zero":
        return _deepspeed(top)
    for recognise in _LAYOUTS:
        found = recognise(top)
        if found is not None:
            return found
    return Layout(top=top)


def _lightning(top: Mapping[str, Any]) -> Layout | None:
    """Lightning 2.6: trainer/connectors/checkpoint_connector.py, callbacks/weight_averaging.py."""
    if "pytorch-lightning_version" not in top:
        return None
    callbacks = keyed_by_text(top.get("callbacks"))
    metrics: dict[str, Any] = {}
    for key, state in callbacks.items():
        found = items_of(state) or {}
        monitor = found.get("monitor")
        if key.startswith("ModelCheckpoint") and isinstance(monitor, str):
            metrics.setdefault(f"best_{monitor}", found.get("best_model_score"))
    live = averaged = None
    if "current_model_state" in top:
        live, averaged = "current_model_state", "state_dict"
    elif any(key.endswith("WeightAveraging") for key in callbacks):
        averaged = "state_dict"  # saved after fit, which leaves the averages in the model
    return Layout(name="lightning", top=top, metrics=metrics, live=live, averaged=averaged)


def _deepspeed(top: Mapping[str, Any]) -> Layout:
    """deepspeed 0.19: what deepspeed.py found of ZeRO's partitions."""
    zero = keyed_by_text(top.get("zero"))
    world, parts = zero.get("data_parallel_size"), zero.get("partitions")
    facts: dict[str, Any] = {"strategy": "deepspeed", "world_size": world}
    if parts:
        facts["partitioned"] = (
            f"the optimizer's state lies in {parts} parts, of ZeRO on {world} data-parallel ranks, "
            "and only DeepSpeed on as many puts them together"
        )
    return Layout(name="deepspeed", top=top, facts=facts)


def _mmengine(top: Mapping[str, Any]) -> Layout | None:
    """mmengine 0.10 (runner/runner.py, hooks/ema_hook.py) and mmcv 1."""
    meta = keyed_by_text(top.get("meta"))
    if "message_hub" not in top and not meta.keys() & {"mmengine_version", "mmcv_version"}:
        return None
    runtime = keyed_by_text(keyed_by_text(top.get("message_hub")).get("runtime_info"))
    hooks = keyed_by_text(meta.get("hook_msgs"))
    bests = {k: v for k, v in {**hooks, **runtime}.items() if k.startswith("best_score")}
    # EMAHook swaps the two as it saves, so that state_dict is what one deploys.
    swapped = "ema_state_dict" in top
    return Layout(
        name="mmengine", top=top, metrics=bests,
        facts={"epoch": meta.get("epoch"), "step": meta.get("iter")},
        live="ema_state_dict" if swapped else None,
        averaged="state_dict" if swapped else None,
    )  # fmt: skip


def _composer(top: Mapping[str, Any]) -> Layout | None:
    """Composer 0.32: core/state.py, State.state_dict; everything lies under `state`."""
    state = keyed_by_text(top.get("state"))
    if "rng" not in top or not {"model", "timestamp"} <= state.keys():
        return None
    time = keyed_by_text(state["timestamp"])
    time = keyed_by_text(time.get("Timestamp")) or time
    inner = {**{k: v for k, v in top.items() if k != "state"}, **state}
    optimizers = keyed_by_text(state.get("optimizers"))
    if len(optimizers) == 1:  # by its class: Composer takes one
        inner["optimizers"] = next(iter(optimizers.values()))
    return Layout(
        name="composer", top=inner, facts={"epoch": time.get("epoch"), "step": time.get("batch")}
    )


def _ultralytics(top: Mapping[str, Any]) -> Layout | None:
    """ultralytics 8.4: engine/trainer.py, save_model; weights are a pickled module, in fp16."""
    if not {"ema", "train_args", "best_fitness"} <= top.keys():
        return None
    args = keyed_by_text(top["train_args"])
    return Layout(
        name="ultralytics", top=top, config="train_args",
        facts={"dataset": args.get("data")},
        metrics=keyed_by_text(top.get("train_metrics")),
    )  # fmt: skip


def _ignite(top: Mapping[str, Any]) -> Layout | None:
    """ignite 0.5: engine/engine.py, Engine.state_dict, under the name that the caller gave it."""
    for value in top.values():
        state = keyed_by_text(value)
        if {"epoch_length", "max_epochs"} <= state.keys() and state.keys() & {"iteration", "epoch"}:
            facts = {"epoch": state.get("epoch"), "step": state.get("iteration")}
            return Layout(name="ignite", top=top, facts=facts)
    return None


def _by_keys(name: str, *needed: str) -> Callable[[Mapping[str, Any]], Layout | None]:
    def recognise(top: Mapping[str, Any]) -> Layout | None:
        return Layout(name=name, top=top) if top.keys() >= set(needed) else None

    return recognise


def _torchvision(top: Mapping[str, Any]) -> Layout | None:
    """torchvision's references: classification/train.py; `args` is a Namespace."""
    args = top.get("args")
    if not {"model", "optimizer", "lr_scheduler", "epoch"} <= top.keys():
        return None
    is_namespace = isinstance(args, TaggedDict) and args.cls == "argparse.Namespace"
    return Layout(name="torchvision", top=top) if is_namespace else None


_LAYOUTS: Final[tuple[Callable[[Mapping[str, Any]], Layout | None], ...]] = (
    _lightning,  # before ours: a callback of ours lays our record in a checkpoint of Lightning's
    _by_keys("ckreg", "ckreg"),
    _mmengine,
    _composer,
    _ultralytics,
    _by_keys("megatron", "checkpoint_version", "iteration", "args"),
    _by_keys("nanogpt", "model_args", "iter_num", "model"),
    _by_keys("timm", "arch", "state_dict", "version", "optimizer"),
    _by_keys("imagenet-example", "arch", "state_dict", "best_acc1"),
    _by_keys("detectron2", "model", "__author__"),
    _by_keys("detectron2", "model", "matching_heuristics"),
    _by_keys("fvcore", "model", "iteration"),
    _torchvision,
    _ignite,
)
