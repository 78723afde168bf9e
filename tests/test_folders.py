"""Checkpoints of several files, from the folder to the net: pushed, planned, loaded, pulled."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed.checkpoint as dcp
from folder_files import copied, in_rows, write, write_dcp
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from registry import (
    AmbiguousError,
    Checkpoint,
    CkregError,
    CkregWarning,
    ConflictError,
    ContainerError,
    DamagedError,
    NotFoundError,
    RefusedLoadError,
    Registry,
)
from registry.cli import run


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what two ranks of FSDP2 saved, see gloo.py."""
    folder = tmp_path_factory.mktemp("sharded")
    ended = gloo.run("sharded", str(folder))
    assert [rank.answer for rank in ended] == [{"rank": 0}, {"rank": 1}], ended[0].stderr
    return folder


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """Make this process the only rank of a group."""
    init = f"file://{tmp_path / 'init'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def of_ranks(seed: int = 5) -> nn.Sequential:
    """Return a net as gloo.py's `sharded` trains it, with other values."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Linear(1, 7))


def mlp(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def hub(folder: Path, *, shards: bool = True) -> Path:
    """Write a folder as transformers does: config, weights in two shards or one file, tokenizer."""
    folder.mkdir()
    state = mlp().state_dict()
    write(folder, {"config.json": '{"architectures": ["Mlp"]}', "vocab.txt": "a\nb\n"})
    if not shards:
        save_file(state, folder / "model.safetensors")
        return folder
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({k: v for k, v in state.items() if k.startswith("0.")}, folder / names[0])
    save_file({k: v for k, v in state.items() if k.startswith("1.")}, folder / names[1])
    where = {k: names[0] if k.startswith("0.") else names[1] for k in state}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    write(folder, {"model.safetensors.index.json": json.dumps(index)})
    return folder


def same(net: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = net.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[key], value) for key, value in expected.items()
    )


def kept(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --- case 18: DCP of two ranks into one process ---------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize("form", ["dcp", "titan/step-10"])
@pytest.mark.parametrize("wrapped", ["plain", "dp", "ddp", "compiled"])
def test_case_18_a_dcp_folder_of_two_ranks_loads_into_one_process(
    saved: Path, reg: Registry, form: str, wrapped: str, one_rank: None
) -> None:
    checkpoint = reg.push(saved / form, model="net")
    net = of_ranks()
    into: Any = {
        "plain": lambda: net,
        "dp": lambda: nn.DataParallel(net),
        "ddp": lambda: DistributedDataParallel(net),
        "compiled": lambda: torch.compile(net),
    }[wrapped]()
    result = reg.load(checkpoint, into=into)
    full = torch.load(saved / "full.pt")
    assert same(net, full)
    assert len(result.loaded) == len(full)


@pytest.mark.ranks
def test_case_18_a_dcp_folder_is_pulled_with_the_keys_of_dataparallel(
    saved: Path, reg: Registry, tmp_path: Path
) -> None:
    checkpoint = reg.push(saved / "dcp", model="net")
    path = reg.pull(checkpoint, tmp_path / "dp.pt", keys="module.", only="weights")
    full = torch.load(saved / "full.pt")
    found = torch.load(path, weights_only=True)
    assert {f"module.{key}" for key in full} == found.keys()
    assert all(torch.equal(found[f"module.{key}"], value) for key, value in full.items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("shapes_differ", [True, False])
def test_a_positional_optimizer_in_a_dcp_folder_is_restored_or_refused_and_never_lost(
    reg: Registry, tmp_path: Path, shapes_differ: bool
) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2 if shapes_differ else 4))

    trained = net()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.5)
    trained(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {"model": trained.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    reg.push(tmp_path / "dcp", model="net")
    into = net()
    fresh = torch.optim.AdamW(into.parameters())
    if not shapes_differ:
        with pytest.raises(RefusedLoadError, match="doesn't say which parameter"):
            reg.load("net", into=into, optimizer=fresh)
        return
    reg.load("net", into=into, optimizer=fresh)
    for was, now in zip(trained.parameters(), into.parameters(), strict=True):
        assert torch.equal(optimizer.state[was]["exp_avg"], fresh.state[now]["exp_avg"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_dcp_folder_keeps_what_its_keys_no_longer_say(reg: Registry, tmp_path: Path) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)  # whose state is empty
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # milestones are numbers
    state = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    reg.push(tmp_path / "dcp", model="net")
    fresh = torch.optim.SGD(net.parameters(), lr=0.1)
    again = torch.optim.lr_scheduler.MultiStepLR(fresh, [7])
    reg.load("net", into=net, optimizer=fresh, scheduler=again)
    assert fresh.param_groups[0]["lr"] == 0.5
    assert again.state_dict()["milestones"] == {3: 1, 5: 1}


@pytest.mark.ranks
def test_a_dcp_folder_resumes_with_its_optimizer(saved: Path, reg: Registry) -> None:
    checkpoint = reg.push(saved / "dcp", model="net")
    assert (checkpoint.container, checkpoint.epoch) == ("dcp", 12)
    net = of_ranks()
    optimizer = torch.optim.AdamW(net.parameters())
    reg.load(checkpoint, into=net, optimizer=optimizer)
    moments = torch.load(saved / "moments.pt")["state"]
    names = dict(net.named_parameters())
    for name, slots in moments.items():
        for slot, value in slots.items():
            assert torch.equal(optimizer.state[names[name]][slot], value), (name, slot)


# --- cases 19, 20, 26: what is not whole ----------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize("gone", ["__1_0.distcp", ".metadata"])
def test_case_19_a_dcp_folder_that_lacks_a_file_is_refused_by_its_name(
    saved: Path, reg: Registry, tmp_path: Path, gone: str
) -> None:
    folder = copied(saved / "dcp", tmp_path / "dcp")
    (folder / gone).unlink()
    with pytest.raises(CkregError) as caught:
        reg.push(folder, model="net")
    assert gone in str(caught.value)
    assert reg.models() == []


@pytest.mark.ranks
def test_case_20_one_ranks_file_alone_is_refused_as_one_of_two(saved: Path, reg: Registry) -> None:
    with pytest.raises(ContainerError) as caught:
        reg.push(saved / "rank1.pt", model="net")
    assert "rank 1" in str(caught.value) or "2 of 2" in str(caught.value)
    assert "2" in str(caught.value)
    assert reg.models() == []


def test_case_26_an_index_whose_shard_is_missing_is_refused_by_its_name(
    reg: Registry, tmp_path: Path
) -> None:
    folder = hub(tmp_path / "hub")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DamagedError, match="model-00002-of-00002"):
        reg.push(folder, model="net")
    assert reg.models() == []


def test_case_26_a_key_that_is_listed_but_absent_is_refused_by_its_name(
    reg: Registry, tmp_path: Path
) -> None:
    folder = hub(tmp_path / "hub")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedError, match=r"head\.weight"):
        reg.push(folder, model="net")
    assert reg.models() == []


# --- a folder in, a folder out --------------------------------------------------------------------


@pytest.mark.parametrize("shards", [True, False])
def test_a_folder_comes_back_as_it_was(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: bool
) -> None:
    folder = hub(tmp_path / "hub", shards=shards)
    write(folder, {"1_Pooling/config.json": "{}"})
    checkpoint = reg.push(folder, model="org/net")
    assert checkpoint.is_folder
    assert [file.name for file in checkpoint.files] == sorted(kept(folder))
    monkeypatch.chdir(tmp_path)
    path = reg.pull(checkpoint)
    assert path == Path("org-net-v1")
    assert kept(tmp_path / path) == kept(folder)
    assert reg.pull(checkpoint) == path  # the same bytes already there: done
    assert reg.pull(checkpoint, path) == path
    (path / "config.json").write_text("mine")
    with pytest.raises(ConflictError, match="not empty"):
        reg.pull(checkpoint)
    assert (path / "config.json").read_text() == "mine"
    reg.pull(checkpoint, force=True)
    assert kept(tmp_path / path) == kept(folder)


def test_a_pulled_folder_never_replaces_what_is_not_its_own(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.push(hub(tmp_path / "hub"), model="net")
    mine = write(tmp_path / "mine", {"config.json": "{}", "notes/today.txt": "mine"})
    with pytest.raises(ConflictError, match=r"notes/today\.txt"):
        reg.pull(checkpoint, mine, force=True)
    assert kept(mine) == {"config.json": b"{}", "notes/today.txt": b"mine"}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".ckreg-")) == []


def test_a_folder_is_loaded_from_its_shards(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.push(hub(tmp_path / "hub"), model="net")
    net = mlp(2)
    reg.load(checkpoint, into=nn.DataParallel(net))
    assert same(net, dict(mlp().state_dict()))
    state = reg.load(checkpoint).state_dict
    assert state is not None
    assert torch.equal(state["1.bias"], mlp()[1].bias.detach())
    with torch.device("meta"):
        shell = mlp(3)
    reg.load(checkpoint, into=shell, device="cpu")
    assert same(shell, dict(mlp().state_dict()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", ["hub", "dcp", "dcp with optimizer"])
def test_the_same_by_hand_works_on_what_the_pull_that_it_names_writes(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = mlp()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    if kind == "hub":
        hub(tmp_path / "src")
    else:
        state = {"model": trained.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.save(state, checkpoint_id=tmp_path / "src", no_dist=True)
    ref = reg.push(tmp_path / "src", model="net").ref
    net = mlp(2)
    fresh = torch.optim.SGD(net.parameters(), lr=0.1)
    resumed = fresh if kind == "dcp with optimizer" else None
    first, *code = reg.plan(ref, into=net, optimizer=resumed).python.splitlines()
    words = shlex.split(first.partition("as one file: ")[2])
    assert words[0] == "ckreg"
    assert run([*words[1:], "-r", reg.location]) == 0
    exec("\n".join(code), {"torch": torch, "net": net, "optimizer": fresh})
    assert same(net, mlp().state_dict())
    assert fresh.param_groups[0]["lr"] == (0.1 if resumed is None else 0.5)


def test_a_folder_pushed_twice_is_one_checkpoint(reg: Registry, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    first = reg.push(folder, model="net")
    assert reg.push(copied(folder, tmp_path / "copy"), model="net").id == first.id
    (folder / "vocab.txt").write_text("c\n")
    assert reg.push(folder, model="net").version == 2
    assert sum(1 for _ in (tmp_path / "reg").glob("blobs/*/*")) > 0


def test_a_damaged_shard_is_refused_before_the_target_is_touched(
    reg: Registry, tmp_path: Path
) -> None:
    checkpoint = reg.push(hub(tmp_path / "hub"), model="net")
    shard = next(f for f in checkpoint.files if f.name.startswith("model-00002"))
    (blob,) = blob_of(reg, shard.digest)
    os.chmod(blob, 0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    net = mlp(2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(DamagedError):
        reg.load(checkpoint, into=net)
    assert same(net, before)
    with pytest.raises(DamagedError):
        reg.pull(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_load_does_not_need_is_not_opened(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.push(hub(tmp_path / "hub"), model="net")
    vocab = next(f for f in checkpoint.files if f.name == "vocab.txt")
    (blob,) = blob_of(reg, vocab.digest)
    blob.unlink()
    net = mlp(2)
    reg.load(checkpoint, into=net)
    assert same(net, dict(mlp().state_dict()))
    with pytest.raises(NotFoundError):
        reg.pull(checkpoint, tmp_path / "out")


def blob_of(reg: Registry, digest: str) -> list[Path]:
    hexes = digest.removeprefix("blake3:")
    return list((Path(reg.location) / "blobs" / hexes[:2]).glob(f"{hexes[2:]}*"))


def test_only_weights_of_a_trainers_folder_leave_the_optimizer_unread(
    reg: Registry, tmp_path: Path
) -> None:
    folder = hub(tmp_path / "checkpoint-500", shards=False)
    net = mlp()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    write(folder, {"trainer_state.json": '{"global_step": 500, "epoch": 2.0, "log_history": []}'})
    checkpoint = reg.push(folder, model="net")
    assert (checkpoint.container, checkpoint.step) == ("hf-trainer", 500)
    (blob,) = blob_of(reg, next(f.digest for f in checkpoint.files if f.name == "optimizer.pt"))
    os.chmod(blob, 0o644)
    data = bytearray(blob.read_bytes())
    at = data.index(optimizer.state[net[0].bias]["exp_avg"].numpy().tobytes())
    data[at] ^= 1
    blob.write_bytes(data)
    into = mlp(2)
    reg.load(checkpoint, into=into)  # the optimizer's tensors are damaged, and not read
    assert same(into, dict(mlp().state_dict()))
    assert reg.plan(checkpoint).bytes_to_read == sum(p.nbytes for p in net.parameters())


# --- what is taken in, and what is not ------------------------------------------------------------


def test_a_checkpoint_inside_the_folder_is_not_part_of_it(reg: Registry, tmp_path: Path) -> None:
    folder = hub(tmp_path / "run")
    hub(folder / "checkpoint-500", shards=False)
    with pytest.warns(CkregWarning, match=r"checkpoint-500/config\.json"):
        checkpoint = reg.push(folder, model="net")
    assert not [file for file in checkpoint.files if "/" in file.name]


def test_one_file_among_others_is_the_checkpoint(reg: Registry, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"log.txt": "epoch 1\n"})
    torch.save(mlp().state_dict(), folder / "last.pt")
    with pytest.warns(CkregWarning, match=r"log\.txt"):
        checkpoint = reg.push(folder, model="net")
    assert [file.name for file in checkpoint.files] == ["last.pt"]
    assert not checkpoint.is_folder
    net = mlp(2)
    reg.load(checkpoint, into=net)
    assert same(net, dict(mlp().state_dict()))
    torch.save(mlp().state_dict(), folder / "best.pt")
    with pytest.raises(AmbiguousError, match=r"best\.pt"):
        reg.push(folder, model="net")


def test_hidden_folders_are_named_and_stay_out(reg: Registry, tmp_path: Path) -> None:
    hidden = {".git/config": "[core]", "sub/.cache/x": "x"}
    folder = write(hub(tmp_path / "hub"), hidden)
    with pytest.warns(CkregWarning, match=r"\.git, sub/\.cache"):
        checkpoint = reg.push(folder, model="net")
    assert not hidden.keys() & {file.name for file in checkpoint.files}


def test_a_link_out_of_the_folder_is_refused(reg: Registry, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    folder = hub(tmp_path / "hub")
    (folder / "README.md").symlink_to(secret)
    with pytest.raises(ContainerError, match="leads out of the folder"):
        reg.push(folder, model="net")
    (folder / "README.md").unlink()
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(ContainerError, match="leads to a folder"):
        reg.push(folder, model="net")
    assert reg.models() == []


@pytest.mark.parametrize("target", ["nowhere", "gone.txt"])
def test_a_link_to_nothing_or_to_itself_is_named_as_one(
    reg: Registry, tmp_path: Path, target: str
) -> None:
    folder = hub(tmp_path / "src")
    (folder / "gone.txt").symlink_to(folder / target)
    with pytest.raises(ContainerError, match=r"gone\.txt' is a link to .*, where nothing is"):
        reg.push(folder, model="net")


def test_the_cache_of_huggingface_hub_is_pushed_through_its_links(
    reg: Registry, tmp_path: Path
) -> None:
    real = hub(tmp_path / "real")
    cache = tmp_path / "models--org--net"
    snapshot = cache / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, name in enumerate(sorted(kept(real))):
        shutil.copy(real / name, cache / "blobs" / f"{i}")
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    checkpoint = reg.push(snapshot, model="net")
    assert kept(reg.pull(checkpoint, tmp_path / "out")) == kept(real)


def test_moving_a_folder_unlinks_what_was_taken_in(reg: Registry, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    reg.push(folder, model="net", move=True)
    assert not folder.exists()


def test_a_folder_that_holds_the_registry_is_refused(reg: Registry, tmp_path: Path) -> None:
    hub(tmp_path / "hub")
    where = Path(reg.location)
    for name, data in kept(tmp_path / "hub").items():
        (where.parent / name).write_bytes(data)
    with pytest.raises(ConflictError, match="holds the registry"):
        reg.push(where.parent, model="net", move=True)


def test_an_empty_folder_is_no_checkpoint(reg: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContainerError, match="empty folder"):
        reg.push(tmp_path / "empty", model="net")


# --- case 28: ZeRO --------------------------------------------------------------------------------


def zero(folder: Path, *, stage: int = 1) -> Path:
    """Write what DeepSpeed's ZeRO stage 1 leaves of two ranks, by hand from its layout (0.19)."""
    net = mlp()
    state = {
        "module": dict(net.state_dict()),
        "param_shapes": [{k: p.shape for k, p in net.named_parameters()}],
        "buffer_names": [], "dp_world_size": 2, "mp_world_size": 1, "global_steps": 10,
        "ds_config": {}, "ds_version": "0.19.8", "optimizer": None,
    }  # fmt: skip
    save = folder / "global_step10"
    save.mkdir(parents=True)
    torch.save(state, save / "mp_rank_00_model_states.pt")
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    for rank in (0, 1):
        part = {
            "optimizer_state_dict": {
                "zero_stage": stage,
                "partition_count": 2,
                "single_partition_of_fp32_groups": [flat.chunk(2)[rank].clone()],
                "base_optimizer_state": {"state": {}, "param_groups": []},
            },
            "ds_config": {},
            "ds_version": "0.19.8",
        }
        torch.save(part, save / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return write(folder, {"latest": "global_step10"})


def test_case_28_zero_weights_load_on_any_number_of_processes(
    reg: Registry, tmp_path: Path
) -> None:
    checkpoint = reg.push(zero(tmp_path / "zero"), model="net")
    assert (checkpoint.container, checkpoint.topology.world_size) == ("deepspeed-zero", 2)
    assert checkpoint.topology.strategy == "deepspeed"
    net = mlp(2)
    reg.load(checkpoint, into=net)
    assert same(net, dict(mlp().state_dict()))


def test_case_28_a_resume_of_zero_is_refused_with_the_cure(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.push(zero(tmp_path / "zero"), model="net")
    net = mlp(2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RefusedLoadError) as caught:
        reg.load(checkpoint, into=net, optimizer=torch.optim.AdamW(net.parameters()))
    assert "2" in str(caught.value)
    assert "DeepSpeed" in str(caught.value)
    assert caught.value.hint
    assert same(net, before)


# --- by hand --------------------------------------------------------------------------------------


def test_a_tensor_in_pieces_is_put_together_as_it_was(reg: Registry, tmp_path: Path) -> None:
    """Rows, columns, a middle that is empty, no dimension at all; every dtype."""
    values = {
        "model.rows": in_rows(torch.arange(35.0).reshape(7, 5), ranks=3),
        "model.columns": [((0, 0), torch.ones(2, 1)), ((0, 1), torch.full((2, 2), 3.0))],
        "model.half": in_rows(torch.arange(8).to(torch.bfloat16)),
        "model.flags": in_rows(torch.tensor([True, False, True])),
        "model.scalar": [((), torch.tensor(7))],
    }
    paths = {key: tuple(key.split(".")) for key in values}
    checkpoint = reg.push(write_dcp(tmp_path / "dcp", values, paths=paths), model="net")
    state = reg.load(checkpoint).state_dict
    assert state is not None
    assert torch.equal(state["rows"], torch.arange(35.0).reshape(7, 5))
    assert torch.equal(state["columns"], torch.tensor([[1.0, 3, 3], [1, 3, 3]]))
    assert torch.equal(state["half"], torch.arange(8).to(torch.bfloat16))
    assert torch.equal(state["flags"], torch.tensor([True, False, True]))
    assert torch.equal(state["scalar"], torch.tensor(7))


def test_facts_of_a_folder_checkpoint_outlive_the_registry(reg: Registry, tmp_path: Path) -> None:
    checkpoint: Checkpoint = reg.push(hub(tmp_path / "hub"), model="net", epoch=3, acc=0.5)
    found = reg.get(checkpoint.ref)
    assert (found.epoch, found.acc, found.files) == (3, 0.5, checkpoint.files)
    record = json.loads(next(Path(reg.location).glob(f"records/*/{found.id}.json")).read_text())
    assert [f["name"] for f in record["checkpoint"]["files"]] == [f.name for f in found.files]
