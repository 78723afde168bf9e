"""Folders as the Hugging Face libraries write them: models, Trainer checkpoints, accelerate, PEFT.

Law: the weights become `model` in the root, whatever files they lie in; what lies beside them is
kept under a name of its own, read like any file and never run. What `trainer_state.json` and
`config.json` state is taken as it stands.

    config.json                           the architecture
    ckreg.json                            our own record, where an export of ours wrote the weights
    model.safetensors, *.index.json       the weights, see shards.py
    trainer_state.json                    epoch, global_step, log_history
    optimizer.pt, scheduler.pt, scaler.pt (Trainer), optimizer.bin, scheduler.bin (accelerate)
    rng_state_0.pth, random_states_0.pkl  one a rank
    pytorch_model_fsdp_0/, optimizer_0/   DCP folders, when they were saved sharded
    training_args.bin                     a pickled object of transformers: never needed
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ..errors import AmbiguousError, ContainerError
from .contents import Container, Contents
from .dcp import read_pieces
from .parts import Folder, Found
from .safetensors import own_record
from .shards import INDEX, SHARD, read_shards, refuse_without_index
from .tree import TaggedDict

WEIGHTS: Final = (
    "model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)  # fmt: skip
"""The names that these libraries give to a model in one file."""

_VARIANT: Final = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)\.[A-Za-z0-9_]+\.(?:safetensors|bin)"
)
_SHARDED: Final = re.compile(r"pytorch_model_fsdp_\d+")
_OPTIMIZER: Final = re.compile(r"optimizer_\d+")
_ANOTHER: Final = re.compile(r"(?P<name>(?:model|pytorch_model)_\d+)\.(?:safetensors|bin)")
_RNG: Final = re.compile(r"(?:rng_state|random_states)(?:_(?P<rank>\d+))?\.(?:pth|pkl)")
_BESIDE: Final = re.compile(
    r"(?P<name>(?:optimizer|scheduler|sampler|dl_state_dict|custom_checkpoint)(?:_\d+)?|scaler"
    r"|training_args)\.(?:pt|bin|pkl)"
)
_OF_ACCELERATE: Final = re.compile(
    r"(?:optimizer|scheduler|sampler)(?:_\d+)?\.bin|random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl"
)


def holds_weights(names: Iterable[str]) -> bool:
    """Say whether one of these paths is where a library of Hugging Face's keeps weights."""
    return any(
        (name.endswith("/.metadata") and _SHARDED.fullmatch(name[:-10]))
        if "/" in name
        else name in WEIGHTS
        or INDEX.fullmatch(name)
        or SHARD.fullmatch(name)
        or _VARIANT.fullmatch(name)
        for name in names
    )


def read_hub(folder: Folder) -> Contents:
    """Index a folder of Hugging Face's. Raises as `read_folder`."""
    names = folder.top()
    root: dict[str, Any] = {}
    root["model"], container = _weights(folder)
    for name in sorted(names):
        another = _ANOTHER.fullmatch(name)
        if another and _is_accelerate(names):
            root[another["name"]] = folder.part(name).root
    _config(folder, root)
    _record(folder, root)
    _beside(folder, root)
    if "trainer_state.json" in names:
        container = "hf-trainer"
        _trainer(folder, root)
    elif _is_accelerate(names):
        container = "accelerate"
    return folder.contents(Found(container, root))


def _is_accelerate(names: set[str]) -> bool:
    return any(_OF_ACCELERATE.fullmatch(name) for name in names)


# --- weights --------------------------------------------------------------------------------------


def _weights(folder: Folder) -> tuple[Any, Container]:
    """Return the weights, and the kind of folder that they alone would make.

    Files of both formats hold the same, by these libraries' custom: safetensors are taken.

    Raises:
        AmbiguousError: two sets of one format, or none without a variant's name.
    """
    names = folder.top()
    adapters = [n for n in WEIGHTS if n in names and n.startswith("adapter_")]
    if adapters:
        return _adapter(folder, adapters[0])
    indexes = sorted(n for n in names if INDEX.fullmatch(n))
    singles = [n for n in WEIGHTS if n in names]
    sharded = sorted(n for n in folder.folders() if _SHARDED.fullmatch(n))
    if sharded and not (indexes or singles):
        return _fsdp(folder, sharded[0]), "accelerate"
    if not indexes and not singles:
        return _by_variant(folder, names)
    for ext in ("safetensors", "bin"):
        mine = [n for n in indexes if INDEX.fullmatch(n)["ext"] == ext]  # type: ignore[index]
        plain = [n for n in mine if not _has_variant(n)] or mine
        candidates = [*plain, *(n for n in singles if n.endswith(ext))]
        if len(candidates) > 1:
            raise _ambiguous(folder, candidates)
        if candidates:
            return _one(folder, candidates[0], [*indexes, *singles])
    raise AssertionError(names)


def _one(folder: Folder, chosen: str, all_sets: list[str]) -> tuple[Any, Container]:
    passed = [name for name in all_sets if name != chosen]
    if passed:
        folder.warn(f"the weights are taken from {chosen!r}, and not from {', '.join(passed)}")
    if INDEX.fullmatch(chosen):
        kind: Container = "safetensors-sharded" if ".safetensors." in chosen else "torch-sharded"
        return read_shards(folder, chosen), kind
    root = folder.part(chosen).root
    if not isinstance(root, dict):
        raise ContainerError(f"{folder.label(chosen)!r} holds no weights by name")
    return root, "hf-model"


def _has_variant(index: str) -> bool:
    match = INDEX.fullmatch(index)
    return match is not None and (match["variant"] is not None or "." in match["stem"])


def _by_variant(folder: Folder, names: set[str]) -> tuple[Any, Container]:
    variants = sorted(n for n in names if _VARIANT.fullmatch(n))
    if len(variants) > 1:
        raise _ambiguous(folder, variants)
    if variants:
        return _one(folder, variants[0], variants)
    raise refuse_without_index(folder, sorted(n for n in names if SHARD.fullmatch(n)))


def _ambiguous(folder: Folder, candidates: list[str]) -> AmbiguousError:
    paths = [folder.path(name) for name in candidates]
    return AmbiguousError(
        f"{folder.label()!r} holds {len(paths)} sets of weights: {', '.join(paths)}",
        hint="keep the one that is meant in the folder, and move the others away",
        candidates=paths,
    )


def _adapter(folder: Folder, name: str) -> tuple[Any, Container]:
    root, _ = _one(folder, name, [name])
    if "adapter_config.json" not in folder.top():
        folder.warn(f"{name!r} has no adapter_config.json, which says what it adapts, and how")
    folder.warn("it is an adapter (PEFT): its weights are no model without their base model's")
    return root, "peft"


def _fsdp(folder: Folder, name: str) -> Any:
    root = read_pieces(folder.below(name))
    return root.get("model", root)


# --- what lies beside the weights -----------------------------------------------------------------


def _config(folder: Folder, root: dict[str, Any]) -> None:
    names = folder.top()
    if "config.json" in names:
        root["config"] = config = folder.json("config.json")
        architectures = config.get("architectures")
        if isinstance(architectures, list) and architectures and type(architectures[0]) is str:
            root["arch"] = architectures[0]
    if "adapter_config.json" in names:
        adapter = folder.json("adapter_config.json")
        root["adapter_config" if "config" in root else "config"] = adapter
        root["base_model"] = adapter.get("base_model_name_or_path")


def _record(folder: Folder, root: dict[str, Any]) -> None:
    """Take our own record: `ckreg.json` holds it, or the metadata of a lone safetensors file."""
    if "ckreg.json" in folder.top():
        found = folder.json("ckreg.json").get("ckreg")
    elif isinstance(root["model"], TaggedDict):
        found = own_record((root["model"].attributes or {}).get("__metadata__") or {})
    else:
        return
    if found is not None:
        root["ckreg"] = found


def _beside(folder: Folder, root: dict[str, Any]) -> None:
    ranks: dict[str, Any] = {}
    for name in sorted(folder.top()):
        if match := _BESIDE.fullmatch(name):
            value = _read_beside(folder, name)
            if value is not None:
                root.setdefault(match["name"], value)
            if match["name"] == "training_args":
                folder.warn(
                    f"{name!r} is a pickled object of transformers: loading a checkpoint doesn't "
                    "need it, and unpickling it would run code"
                )
        elif _RNG.fullmatch(name):
            ranks[name] = _read_beside(folder, name)
    for name in sorted(folder.folders()):
        if _OPTIMIZER.fullmatch(name) and ".metadata" in folder.below(name).names():
            state = read_pieces(folder.below(name))
            key = "optimizer" if name == "optimizer_0" else name
            root.setdefault(key, state.get("optimizer", state))
    if ranks:
        root["rng_states"] = ranks
        numbers = {int(m["rank"]) for n in ranks if (m := _RNG.fullmatch(n)) and m["rank"]}
        root["world_size"] = max(numbers, default=0) + 1
        absent = sorted(set(range(root["world_size"])) - numbers) if numbers else []
        if absent:
            folder.warn(
                f"{len(absent)} of {root['world_size']} ranks' random states are missing: {absent}"
            )


def _read_beside(folder: Folder, name: str) -> Any:
    """Return what a file holds, None for one of a kind that isn't read; that is noted."""
    try:
        return folder.part(name).root
    except ContainerError as error:
        folder.warn(f"{name} is not read: {error.message}")
        return None


def _trainer(folder: Folder, root: dict[str, Any]) -> None:
    """Take what trainer_state.json states (transformers/trainer_callback.py, TrainerState)."""
    state = folder.json("trainer_state.json")
    epoch, step = state.get("epoch"), state.get("global_step")
    if type(epoch) is int or (type(epoch) is float and epoch.is_integer()):
        root["epoch"] = int(epoch)
    if type(step) is int:
        root["step"] = step
    metrics: dict[str, Any] = {}
    history = state.get("log_history")
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict) and entry.get("step") == step:
            metrics |= {k: v for k, v in entry.items() if k == "loss" or k.startswith("eval_")}
    if state.get("best_metric") is not None:
        metrics["best_metric"] = state["best_metric"]
    root["metrics"] = metrics
    root["trainer_state"] = state
