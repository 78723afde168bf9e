"""A checkpoint in a folder is read with every file and key accounted for, or refused by name."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
import torch
from folder_files import (
    Whole,
    assert_same,
    built,
    contents_of,
    copied,
    described,
    files_of,
    in_rows,
    torch_saved,
    write,
    write_dcp,
)
from safetensors.torch import save

from registry import AmbiguousError, CkregError, ContainerError, DamagedError, UntrustedError
from registry.containers import Opaque, read, read_folder, recognise

WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.ones(2),
    "b.weight": torch.full((2, 2), 3.0, dtype=torch.bfloat16),
}
HERE = Path(__file__).parent


def shard(k: int, n: int = 2, ext: str = "safetensors") -> str:
    stem = "model" if ext == "safetensors" else "pytorch_model"
    return f"{stem}-{k:05d}-of-{n:05d}.{ext}"


def sharded(folder: Path, ext: str = "safetensors", **changes: str | None) -> Path:
    """Write a model in two shards by hand, as save_pretrained does.

    Args:
        changes: keys that the index places elsewhere, `_` for a dot; None leaves one out.
    """
    parts = [{k: v for k, v in WEIGHTS.items() if k[0] == letter} for letter in "ab"]
    places = {key: shard(1 + (key[0] == "b"), ext=ext) for key in WEIGHTS}
    for key, place in changes.items():
        places[key.replace("_", ".")] = place  # type: ignore[assignment]
    index = {
        "metadata": {"total_size": 40},
        "weight_map": {k: v for k, v in places.items() if v is not None},
    }
    stem = "model" if ext == "safetensors" else "pytorch_model"
    encode = save if ext == "safetensors" else torch_saved
    return write(
        folder,
        {
            f"{stem}.{ext}.index.json": json.dumps(index),
            "config.json": json.dumps({"architectures": ["BertModel"], "hidden_size": 3}),
            **{shard(i + 1, ext=ext): encode(part) for i, part in enumerate(parts)},
        },
    )


def real(kind: str, folder: Path, *words: str) -> None:
    """Let the real library write its folders."""
    pytest.importorskip(kind if kind != "trainer" else "accelerate", reason=f"no {kind} here")
    if kind in ("trainer", "peft", "transformers"):
        pytest.importorskip("transformers", reason="no transformers here")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "hub_folders.py"), kind, str(folder), *words]
    subprocess.run(command, check=True, capture_output=True, env=env)


# --- weights in several files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ext", "container"), [("safetensors", "safetensors-sharded"), ("bin", "torch-sharded")]
)
def test_a_model_in_shards_is_whole_again(ext: str, container: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d", ext)
    found = described(folder)
    assert_same(found.weights, WEIGHTS, folder)
    assert (found.model, found.config) == (
        "BertModel",
        {"architectures": ["BertModel"], "hidden_size": 3},
    )
    contents = contents_of(folder)
    assert contents.container == container
    assert set(contents.used_files) == {p.name for p in folder.iterdir()}
    assert len({storage.key for storage in contents.storages}) == 3


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d")
    (folder / shard(2)).unlink()
    with pytest.raises(DamagedError, match=rf"'d' lacks 1 of its 2 shards: '{shard(2)}'") as caught:
        contents_of(folder)
    assert caught.value.hint == f"copy or download {shard(2)} into d"


def test_a_key_that_is_listed_and_absent_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d", c_weight=shard(2))
    with pytest.raises(DamagedError, match=rf"'d/{shard(2)}' lacks 'c.weight', which"):
        contents_of(folder)


@pytest.mark.parametrize("place", [None, shard(2)])
def test_a_key_that_the_index_does_not_place_there_is_named(
    place: str | None, tmp_path: Path
) -> None:
    folder = sharded(tmp_path / "d", a_bias=place)
    with pytest.raises(CkregError, match=r"(lacks|holds) 'a.bias', which"):
        contents_of(folder)


def test_a_shard_of_another_save_is_named(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path / "d"), {shard(3, 3): save(WEIGHTS)})
    with pytest.raises(ContainerError, match=rf"holds '{shard(3, 3)}', of which"):
        contents_of(folder)


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(DamagedError, match=r"2 of 2 shards, and lacks 'model.safetensors.index"):
        contents_of(folder)


@pytest.mark.parametrize("place", ["../x.safetensors", "/x", "", ".", "a//b", "a\\b", 3, None])
def test_a_shard_out_of_the_folder_is_refused(place: object, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d")
    index = {"weight_map": {"a.weight": place}}
    write(folder, {"model.safetensors.index.json": json.dumps(index)})
    with pytest.raises(UntrustedError, match="no file of this folder"):
        contents_of(folder)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("{", DamagedError, "no JSON"),
        ("[]", DamagedError, "no JSON object"),
        ("[" * 90_000, DamagedError, "no JSON"),
        ("{}", DamagedError, "no weight_map"),
        ('{"weight_map": {}}', DamagedError, "no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', UntrustedError, "key twice"),
    ],
)
def test_an_index_that_is_none_is_refused(
    index: str, error: type[CkregError], message: str, tmp_path: Path
) -> None:
    folder = write(sharded(tmp_path / "d"), {"model.safetensors.index.json": index})
    with pytest.raises(error, match=message) as caught:
        contents_of(folder)
    assert "'d/model.safetensors.index.json'" in caught.value.message


def test_a_shard_that_is_no_shard_is_named_with_its_own_cure(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    folder = write(sharded(tmp_path / "d"), {shard(2): pointer})
    with pytest.raises(ContainerError, match=rf"'d/{shard(2)}' is a Git LFS pointer") as caught:
        contents_of(folder)
    assert caught.value.hint == f"fetch the file: git lfs pull --include d/{shard(2)}"


def test_one_ranks_pieces_in_safetensors_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    piece = save(WEIGHTS, metadata={"DCP_SHARDING_INFO": "{}"})
    index = {"weight_map": dict.fromkeys(WEIGHTS, "model-1.safetensors")}
    folder = write(
        tmp_path / "d",
        {"model-1.safetensors": piece, "model.safetensors.index.json": json.dumps(index)},
    )
    with pytest.raises(ContainerError, match="one rank's pieces"):
        contents_of(folder)


def test_safetensors_are_taken_before_bin_and_that_is_said(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path / "d", "bin"), {"model.safetensors": save(WEIGHTS)})
    contents = contents_of(folder)
    assert contents.container == "hf-model"
    assert contents.warnings == (
        "the weights are taken from 'model.safetensors', and not from pytorch_model.bin.index.json",
    )


def test_two_sets_of_one_format_are_a_choice(tmp_path: Path) -> None:
    folder = write(sharded(tmp_path / "d"), {"model.safetensors": save(WEIGHTS)})
    with pytest.raises(AmbiguousError, match="2 sets of weights"):
        contents_of(folder)
    variants = {f"model.{v}.safetensors": save(WEIGHTS) for v in ("fp16", "ema")}
    with pytest.raises(AmbiguousError, match="2 sets of weights"):
        contents_of(write(tmp_path / "v", variants))
    (tmp_path / "v" / "model.ema.safetensors").unlink()
    assert_same(described(tmp_path / "v").weights, WEIGHTS, tmp_path / "v")


@pytest.mark.parametrize(
    ("name", "n"), [(shard(1), 2), (shard(3, 12), 12), (shard(2, ext="bin"), 2)]
)
def test_a_lone_shard_is_refused_with_which_of_how_many(name: str, n: int) -> None:
    data = save(WEIGHTS) if name.endswith("s") else torch_saved(WEIGHTS)
    k = int(name.split("-")[1])
    with pytest.raises(ContainerError, match=rf"is shard {k} of {n}: part of") as caught:
        read(Whole(data), f"/data/my net/{name}")
    assert str(caught.value.hint).endswith("ckreg push '/data/my net'")
    assert read(Whole(data), "model-00001-of-00001." + name.rpartition(".")[2]).root.keys()


def test_an_index_alone_is_refused_with_how_many_it_names(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    with pytest.raises(ContainerError, match=r"index of a model in 2 files \(model-00001-of"):
        reading.contents_of(folder / "model.safetensors.index.json")


@pytest.mark.slow
def test_real_models_of_transformers_are_read(tmp_path: Path) -> None:
    real("transformers", tmp_path)
    expected = torch.load(tmp_path / "expected.pt")
    for name, container in (("single", "hf-model"), ("sharded", "safetensors-sharded")):
        assert contents_of(tmp_path / name).container == container
        found = described(tmp_path / name)
        assert_same(found.weights, expected, tmp_path / name)
        assert found.model == "BertForSequenceClassification"


# --- what lies beside the weights -----------------------------------------------------------------


def optimizer_state() -> dict[str, Any]:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


STATE = {
    "epoch": 2.0, "global_step": 500, "best_metric": 0.91, "train_batch_size": 8,
    "log_history": [
        {"epoch": 1.0, "eval_accuracy": 0.7, "step": 250},
        {"epoch": 2.0, "loss": 0.3, "learning_rate": 0.1, "step": 500},
        {"epoch": 2.0, "eval_accuracy": 0.9, "eval_loss": float("nan"), "step": 500},
    ],
}  # fmt: skip


def trainer_folder(folder: Path, **state: Any) -> Path:
    """Write what Trainer of transformers writes, by hand."""
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.ones(8)}
    return write(
        folder,
        {
            "model.safetensors": save(WEIGHTS),
            "config.json": json.dumps({"architectures": ["BertModel"]}),
            "trainer_state.json": json.dumps({**STATE, **state}),
            "optimizer.pt": torch_saved(optimizer_state()),
            "scheduler.pt": torch_saved({"last_epoch": 500}),
            "training_args.bin": torch_saved(Namespace(seed=1)),
            **{f"rng_state_{i}.pth": torch_saved(rng) for i in range(2)},
            "tokenizer.json": "{}",
        },
    )


def test_a_trainer_checkpoint_states_its_facts(tmp_path: Path) -> None:
    folder = trainer_folder(tmp_path / "checkpoint-500")
    contents, found = contents_of(folder), described(folder)
    assert contents.container == "hf-trainer"
    assert (found.model, found.epoch, found.step, found.acc) == ("BertModel", 2, 500, None)
    assert found.metrics == {"loss": 0.3, "eval_accuracy": 0.9, "best_metric": 0.91}
    assert found.skipped_metrics == {"eval_loss": "nan"}
    assert_same(found.weights, WEIGHTS, folder)
    moment = found.optimizers["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(built(moment, folder), optimizer_state()["state"][0]["exp_avg"])
    assert found.scheduler == {"last_epoch": 500}
    assert (found.world_size, set(found.extra["rng_states"])) == (
        2,
        {"rng_state_0.pth", "rng_state_1.pth"},
    )
    assert "tokenizer.json" not in contents.used_files


def test_an_epoch_that_was_not_finished_is_not_rounded(tmp_path: Path) -> None:
    found = described(trainer_folder(tmp_path, epoch=1.53))
    assert (found.epoch, found.extra["trainer_state"]["epoch"]) == (None, 1.53)


def test_training_args_are_noted_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "ran"

    class Args:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(canary)!r}, 'w').close()",)

    data = torch_saved(Args())
    folder = write(trainer_folder(tmp_path / "d"), {"training_args.bin": data})
    contents = contents_of(folder)
    assert isinstance(contents.root["training_args"], Opaque)
    assert "builtins.exec" in contents.unsafe_globals
    assert any("training_args.bin" in w and "would run code" in w for w in contents.warnings)
    assert not canary.exists()
    write(folder, {"plain.bin": data})
    torch.load(folder / "plain.bin", weights_only=False)
    assert canary.exists()


def test_a_ranks_missing_random_state_is_noted(tmp_path: Path) -> None:
    folder = trainer_folder(tmp_path)
    (folder / "rng_state_0.pth").unlink()
    assert "1 of 2 ranks' random states are missing: [0]" in contents_of(folder).warnings


def test_a_damaged_optimizer_is_not_passed_over(tmp_path: Path) -> None:
    folder = trainer_folder(tmp_path / "d")
    data = (folder / "optimizer.pt").read_bytes()
    write(folder, {"optimizer.pt": data[: len(data) // 2]})
    with pytest.raises(DamagedError, match=r"'d/optimizer.pt' is cut short"):
        contents_of(folder)


@pytest.mark.slow
def test_a_real_trainer_checkpoint_is_read(tmp_path: Path) -> None:
    real("trainer", tmp_path)
    folder = tmp_path / "run"
    found = described(folder)
    assert_same(found.weights, torch.load(tmp_path / "expected.pt"), folder)
    assert (found.model, found.epoch, found.step) == ("BertForSequenceClassification", 1, 4)
    assert {"loss", "eval_loss"} <= found.metrics.keys()
    assert list(found.optimizers) == ["optimizer"]
    assert "transformers.training_args.TrainingArguments" in contents_of(folder).unsafe_globals


def test_an_accelerate_folder_by_hand(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "model.safetensors": save(WEIGHTS),
            "model_1.safetensors": save({"c": torch.ones(2)}),
            "optimizer.bin": torch_saved(optimizer_state()),
            "optimizer_1.bin": torch_saved(optimizer_state()),
            "scheduler.bin": torch_saved({"last_epoch": 1}),
            "random_states_0.pkl": torch_saved({"step": 3}),
            "custom_checkpoint_0.pkl": pickle.dumps({"anything": 1}),
        },
    )
    contents, found = contents_of(folder), described(folder)
    assert contents.container == "accelerate"
    assert_same(found.weights, WEIGHTS, folder)
    assert set(found.optimizers) == {"optimizer", "optimizer_1"}
    assert found.notes == ("1 tensors at 'model_1' are not taken for weights",)
    assert found.extra["custom_checkpoint_0"] == {"anything": 1}


def test_an_accelerate_folder_saved_in_pieces_by_hand(tmp_path: Path) -> None:
    """FSDP with SHARDED_STATE_DICT: a DCP folder for the model, another for the optimizer."""
    write_dcp(
        tmp_path / "pytorch_model_fsdp_0",
        {f"model.{k}": in_rows(v) for k, v in WEIGHTS.items()},
        paths={f"model.{k}": ("model", k) for k in WEIGHTS},
    )
    moment = torch.ones(2, 3)
    values = {"optimizer.state.a.weight.m": in_rows(moment), "optimizer.param_groups.0.lr": 0.1}
    paths: dict[str, tuple[str | int, ...]] = {
        "optimizer.state.a.weight.m": ("optimizer", "state", "a.weight", "m"),
        "optimizer.param_groups.0.lr": ("optimizer", "param_groups", 0, "lr"),
    }
    write_dcp(tmp_path / "optimizer_0", values, paths=paths)
    write(tmp_path, {"scheduler.bin": torch_saved({"last_epoch": 1})})
    found = described(tmp_path)
    assert_same(found.weights, WEIGHTS, tmp_path)
    state = found.optimizers["optimizer"]
    assert torch.equal(built(state["state"]["a.weight"]["m"], tmp_path), moment)
    assert state["param_groups"] == [{"lr": 0.1}]


@pytest.mark.slow
def test_real_accelerate_folders_are_read(tmp_path: Path) -> None:
    real("accelerate", tmp_path)
    for name in ("safe", "bin"):
        assert contents_of(tmp_path / name).container == "accelerate"
        found = described(tmp_path / name)
        assert_same(found.weights, torch.load(tmp_path / "expected.pt"), tmp_path / name)
        assert list(found.optimizers) == ["optimizer"]


def test_an_adapter_says_what_it_adapts(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base", "r": 2}
    lora = {"base_model.model.q.lora_A.weight": torch.ones(2, 3)}
    folder = write(tmp_path, {"adapter_model.safetensors": save(lora)})
    assert any("no adapter_config.json" in w for w in contents_of(folder).warnings)
    write(folder, {"adapter_config.json": json.dumps(config)})
    contents, found = contents_of(folder), described(folder)
    assert contents.container == "peft"
    assert contents.warnings == (
        "it is an adapter (PEFT): its weights are no model without their base model's",
    )
    assert (found.config, found.extra["base_model"]) == (config, "bert-base")
    assert_same(found.weights, lora, folder)


@pytest.mark.slow
def test_a_real_adapter_is_read(tmp_path: Path) -> None:
    real("peft", tmp_path)
    found = described(tmp_path / "adapter")
    assert_same(found.weights, torch.load(tmp_path / "expected.pt"), tmp_path / "adapter")


# --- DeepSpeed ------------------------------------------------------------------------------------


def zero_folder(folder: Path, stage: int = 2, *, ranks: int = 2, mp: int = 1) -> Path:
    """Write what DeepSpeed's engine writes, by hand (0.19.8)."""
    tag = "global_step10"
    state = {
        "module": {k: torch.empty(0) for k in WEIGHTS} if stage == 3 else WEIGHTS,
        "param_shapes": [{k: v.shape for k, v in WEIGHTS.items()}],
        "optimizer": None, "global_steps": 10, "dp_world_size": ranks, "mp_world_size": mp,
        "ds_config": {"zero_optimization": {"stage": stage}}, "ds_version": "0.19.8", "epoch": 3,
    }  # fmt: skip
    files: dict[str, bytes | str] = {"latest": tag, "zero_to_fp32.py": "print()"}
    for i in range(mp if stage < 3 else 0):
        files[f"{tag}/mp_rank_{i:02d}_model_states.pt"] = torch_saved(state)
    for i in range(ranks):
        part = torch_saved({"optimizer_state_dict": {"zero_stage": stage}, "ds_config": {}})
        files[f"{tag}/zero_pp_rank_{i}_mp_rank_00_optim_states.pt"] = part
        if stage == 3:
            files[f"{tag}/zero_pp_rank_{i}_mp_rank_00_model_states.pt"] = torch_saved(state)
    return write(folder, files)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_up_to_stage_2_gives_its_weights_and_says_what_it_keeps(
    stage: int, tmp_path: Path
) -> None:
    folder = zero_folder(tmp_path / "d", stage)
    contents, found = contents_of(folder), described(folder)
    assert contents.container == "deepspeed-zero"
    assert_same(found.weights, WEIGHTS, folder)
    assert (found.epoch, found.step, found.optimizers) == (3, 10, {})
    assert found.extra["zero"] == {"stage": stage, "data_parallel_size": 2, "partitions": 2}
    assert (found.strategy, found.world_size) == ("deepspeed", 2)
    assert "2 parts, of ZeRO on 2 data-parallel ranks" in str(found.partitioned)
    assert contents.used_files == ("global_step10/mp_rank_00_model_states.pt", "latest")


def test_zero_stage_3_is_refused_with_the_way_to_join_it(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "d", 3)
    with pytest.raises(ContainerError, match=r"ZeRO stage 3.*; 2 of 2 parts are there") as caught:
        contents_of(folder)
    assert "in d: python zero_to_fp32.py . joined/" in str(caught.value.hint)
    (folder / "global_step10/zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(ContainerError, match="1 of 2 parts are there"):
        contents_of(folder)
    (folder / "zero_to_fp32.py").unlink()
    with pytest.raises(ContainerError) as caught:
        contents_of(folder)
    assert "python -m deepspeed.utils.zero_to_fp32" in str(caught.value.hint)


def test_weights_that_are_not_of_their_stated_shape_are_refused(tmp_path: Path) -> None:
    """Stage 3 in a file named as stages 1 and 2 name it: told by the shapes, not by the name."""
    folder = zero_folder(tmp_path / "d", 3)
    inside = folder / "global_step10"
    for path in inside.glob("*_1_*"):
        path.unlink()
    part = inside / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    part.rename(inside / "mp_rank_00_model_states.pt")
    with pytest.raises(ContainerError, match=r"'a.weight' as \(0,\), of \(2, 3\)"):
        contents_of(folder)


def test_slices_of_model_parallelism_are_refused(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "d", 1, mp=2)
    with pytest.raises(ContainerError, match="2 slices"):
        contents_of(folder)
    (folder / "global_step10/mp_rank_01_model_states.pt").unlink()
    with pytest.raises(DamagedError, match=r"lacks 1 of its 2 parts: 'mp_rank_01_model"):
        contents_of(folder)


def test_missing_parts_of_the_optimizer_are_noted(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "d", ranks=4)
    (folder / "global_step10/zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    assert "3 of 4 parts of the optimizer are there; ranks [2] lack" in contents_of(folder).warnings


def test_latest_names_the_save_or_there_is_one(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "d")
    copied(folder / "global_step10", folder / "global_step20")
    assert contents_of(folder).used_files[0].startswith("global_step10/")
    assert contents_of(folder / "global_step20").container == "deepspeed-zero"
    write(folder, {"latest": "global_step30"})
    with pytest.raises(DamagedError, match="'global_step30', which isn't there"):
        contents_of(folder)
    for hostile in ("../other", "/etc", "", "a/b"):
        write(folder, {"latest": hostile})
        with pytest.raises(DamagedError, match="names no save"):
            contents_of(folder)
    (folder / "latest").unlink()
    with pytest.raises(AmbiguousError, match="global_step10, global_step20"):
        contents_of(folder)


def test_one_ranks_part_of_deepspeed_alone_is_named(tmp_path: Path) -> None:
    name = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    path = zero_folder(tmp_path / "d", 3) / "global_step10" / name
    with pytest.raises(ContainerError, match="the part of data-parallel rank 1 of a DeepSpeed"):
        reading.contents_of(path)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("stage", ["2", "3"])
def test_real_deepspeed_folders_are_read_or_refused(stage: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="no deepspeed here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(HERE / "hub_folders.py"), "deepspeed", str(tmp_path), stage]
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [rank.wait(250) for rank in ranks] == [0, 0]
    if stage == "3":
        with pytest.raises(ContainerError, match="2 of 2 parts are there"):
            contents_of(tmp_path)
        return
    found = described(tmp_path)
    assert_same(found.weights, torch.load(tmp_path / "expected.pt"), tmp_path)
    assert (found.epoch, found.step, found.extra["zero"]["stage"]) == (3, 1, 2)


# --- folders in general ---------------------------------------------------------------------------


def test_one_checkpoint_among_other_files_is_the_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", {"best.pt": torch_saved(WEIGHTS), "log.txt": "x", "a.py": "y"})
    assert contents_of(folder).used_files == ("best.pt",)
    assert_same(described(folder).weights, WEIGHTS, folder)


def test_several_checkpoints_are_a_choice(tmp_path: Path) -> None:
    for step in (500, 1000):
        trainer_folder(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(AmbiguousError, match="2 checkpoints: checkpoint-1000, checkpoint-500"):
        contents_of(tmp_path / "run")
    write(tmp_path / "run", {"best.pt": torch_saved(WEIGHTS)})
    with pytest.raises(AmbiguousError, match="3 checkpoints"):
        contents_of(tmp_path / "run")


def test_a_folder_without_a_checkpoint_is_named_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"'d' is no checkpoint .* holds 'README.md'"):
        contents_of(write(tmp_path / "d", {"README.md": "x"}))
    with pytest.raises(ContainerError, match="holds no files"):
        read_folder({}, "d")


@pytest.mark.parametrize("name", ["../x.pt", "/x.pt", "a/../x.pt", "", "a\\b", "./x.pt"])
def test_names_that_lead_out_of_the_folder_are_a_bad_call(name: str) -> None:
    with pytest.raises(ValueError, match="no relative path"):
        read_folder({name: Whole(torch_saved(WEIGHTS))}, "d")


def test_files_of_two_byte_orders_are_refused(tmp_path: Path) -> None:
    folder = trainer_folder(tmp_path / "d")
    data = reading.torch_zip(b"\x80\x02}.")
    big = (folder / "optimizer.pt").read_bytes()
    assert b"little" in big
    assert b"little" in data
    swapped = reading.zip_of(_entries(big) | {"archive/byteorder": b"big"})
    write(folder, {"optimizer.pt": swapped})
    with pytest.raises(ContainerError, match="of two byte orders"):
        contents_of(folder)


def _entries(data: bytes) -> dict[str, bytes]:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if "/data" in name or name.endswith("byteorder")
        }


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({".metadata", "__0_0.distcp"}, "dcp"),
        ({"__0_0.distcp"}, "dcp"),
        ({"model.safetensors"}, "hub"),
        ({"model.safetensors.index.json"}, "hub"),
        ({"adapter_model.bin"}, "hub"),
        ({"latest", "global_step1/mp_rank_00_model_states.pt"}, "deepspeed-zero"),
        ({"a/b/mp_rank_00_model_states.pt"}, None),
        ({"sub/model.safetensors"}, None),
        ({"best.pt", "config.json"}, None),
        (set(), None),
    ],
)
def test_a_folder_is_told_by_its_names(names: set[str], kind: str | None) -> None:
    assert recognise(names) == kind


def test_mutants_of_an_index_give_an_error_or_a_correct_read(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d")
    files, rng = files_of(folder), random.Random(5)
    outcomes = set()
    for _ in range(300):
        name = rng.choice(sorted(files))
        data = bytearray(files[name].data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            outcomes.add(len(read_folder({**files, name: Whole(bytes(data))}, "d").root["model"]))
        except CkregError:
            outcomes.add(-1)
    assert outcomes == {3, -1}
