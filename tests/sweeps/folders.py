"""Small sound checkpoints that are folders, or of other runtimes, for the mutants to be made of.

Where a library isn't at hand its layout is written by hand: transformers' Trainer, DeepSpeed, ONNX
and GGUF.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes

from .seeds import net, saved

Folder = dict[str, bytes]


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- shards ---------------------------------------------------------------------------------------


def _sharded(stem: str, ext: str, write: Any) -> Folder:
    state = net().state_dict()
    names = [f"{stem}-{i:05d}-of-00002.{ext}" for i in (1, 2)]
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (key, value) in enumerate(state.items()):
        parts[i % 2][key] = value
    placed = {key: names[i % 2] for i, key in enumerate(state)}
    index = {"metadata": {"total_size": 160}, "weight_map": placed}
    files = {name: write(part) for name, part in zip(names, parts, strict=True)}
    return {f"{stem}.{ext}.index.json": _text(index), "config.json": _text({"model_type": "m"}),
            **files}  # fmt: skip


def safetensors_sharded() -> list[Folder]:
    """Return folders of safetensors shards with their index."""
    return [_sharded("model", "safetensors", safetensors_bytes)]


def torch_sharded() -> list[Folder]:
    """Return folders of torch shards with their index."""
    return [_sharded("pytorch_model", "bin", lambda part: saved(part, zipped=True))]


def of_shards(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """Return what the libraries read from a folder of shards: each key from its own shard."""
    (index,) = (name for name in files if name.endswith(".index.json"))
    shards: dict[str, dict[str, torch.Tensor]] = {}
    found: dict[str, torch.Tensor] = {}
    for key, name in json.loads(files[index])["weight_map"].items():
        if name not in shards:
            data = files[name]
            is_torch = data[:2] == b"PK"
            shards[name] = (
                torch.load(io.BytesIO(data), weights_only=True)
                if is_torch
                else safetensors_load(data)
            )
        found[key] = shards[name][key]
    return found


# --- folders of frameworks ------------------------------------------------------------------------


def dcp_folders() -> list[Folder]:
    """Return folders of torch.distributed.checkpoint: file name -> bytes."""
    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process, which it is
        dcp.save({"model": net().state_dict(), "epoch": 3}, checkpoint_id=folder, no_dist=True)
        return [{path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}]


def trainer_folders() -> list[Folder]:
    """Return what transformers' Trainer writes (transformers 5)."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    history = [{"epoch": 1.0, "eval_accuracy": 0.7, "step": 250}, {"loss": float("nan"), "step": 9}]
    return [{
        "model.safetensors": safetensors_bytes(dict(model.state_dict())),
        "config.json": _text({"architectures": ["BertModel"]}),
        "trainer_state.json": _text({"epoch": 2.0, "global_step": 500, "log_history": history}),
        "optimizer.pt": saved(optimizer.state_dict(), zipped=True),
        "scheduler.pt": saved({"last_epoch": 500}, zipped=True),
        "training_args.bin": saved(Namespace(seed=1), zipped=True),
        "rng_state.pth": saved({"cpu": torch.ones(8, dtype=torch.uint8)}, zipped=True),
    }]  # fmt: skip


def zero_folders() -> list[Folder]:
    """Return what DeepSpeed's engine writes of ZeRO's stage 2 (deepspeed 0.19)."""
    state = net().state_dict()
    whole = {
        "module": state, "param_shapes": [{k: v.shape for k, v in state.items()}],
        "optimizer": None, "global_steps": 10, "dp_world_size": 2, "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}}, "ds_version": "0.19.8", "epoch": 3,
    }  # fmt: skip
    part = saved({"optimizer_state_dict": {"zero_stage": 2}, "ds_config": {}}, zipped=True)
    return [{
        "latest": b"global_step10",
        "global_step10/mp_rank_00_model_states.pt": saved(whole, zipped=True),
        **{f"global_step10/zero_pp_rank_{i}_mp_rank_00_optim_states.pt": part for i in (0, 1)},
    }]  # fmt: skip


def of_trainer(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """Return what the libraries read of a Trainer's weights."""
    found: dict[str, torch.Tensor] = safetensors_load(files["model.safetensors"])
    return found


def of_zero(files: Mapping[str, bytes]) -> Any:
    """Return what torch reads of the module in a ZeRO folder."""
    states = files["global_step10/mp_rank_00_model_states.pt"]
    return torch.load(io.BytesIO(states), weights_only=True)["module"]


# --- other runtimes -------------------------------------------------------------------------------


def torchscripts() -> list[bytes]:
    """Return archives of torch.jit.save."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch would have torch.export in its place
        torch.jit.save(torch.jit.script(net().eval()), out)
    return [out.getvalue()]


def exported_programs() -> list[bytes]:
    """Return archives of torch.export.save."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net().eval(), (torch.ones(2, 4),)), out)
    return [out.getvalue()]


def onnx_files() -> list[bytes]:
    """Return the start of ONNX models: ModelProto's fields up to a graph that is all zeros."""
    return [b"\x08\x08\x12\x07pytorch\x1a\x052.0.0\x22\x02ab\x28\x03:\x80\x01" + bytes(128)]


def gguf_files() -> list[bytes]:
    """Return GGUF headers of version 3 (ggml/docs/gguf.md), with a value of each sort."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    pairs = [
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5),
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 32),
        text("general.rope") + struct.pack("<Id", 12, 1e4),
    ]
    return [b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)]
