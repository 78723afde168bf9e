"""Export: a folder that other tools read, whole or in shards; the oracles are their own readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from backends import blobs_at
from conftest import left_behind
from nets import WRAPS, seeded
from safetensors import safe_open
from tensor_files import same, state_of
from torch import nn

from registry import (
    Checkpoint,
    ConflictError,
    ContainerError,
    NotFoundError,
    RefusedLoadError,
    Registry,
    surroundings,
)
from registry.blobs import Staged
from registry.cli import run
from registry.errors import DamagedError, NoSpaceError
from registry.exports import shards
from registry.values import size_bytes


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def read_sharded(folder: Path, index: str) -> dict[str, torch.Tensor]:
    """Read shards as transformers does: by the index, which must be neither more nor less."""
    found = json.loads((folder / index).read_text())
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(set(found["weight_map"].values())):
        part = (
            safetensors.torch.load_file(folder / shard)
            if shard.endswith("safetensors")
            else torch.load(folder / shard, weights_only=True)
        )
        assert sorted(part) == sorted(k for k, f in found["weight_map"].items() if f == shard)
        state |= part
    assert sorted(state) == sorted(found["weight_map"])
    return state


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "DP(compile)", "submodule DP"])
def test_the_folder_loads_into_a_plain_net_with_safetensors_own_reader(
    reg: Registry, tmp_path: Path, wrap: str
) -> None:
    ckpt = reg.save(WRAPS[wrap](seeded(1)), model="net")

    out = reg.export(ckpt, tmp_path / "out")

    assert names(out) == ["README.md", "ckreg.json", "model.safetensors"]
    net = seeded(2)
    missing, unexpected = safetensors.torch.load_model(net, out / "model.safetensors")
    assert not [*missing, *unexpected]
    assert same(state_of(net), state_of(seeded(1)))


def test_tied_names_are_written_as_save_model_writes_them(reg: Registry, tmp_path: Path) -> None:
    out = reg.export(reg.save(seeded(1), model="net"), tmp_path / "out")
    safetensors.torch.save_model(seeded(1), tmp_path / "theirs.safetensors")
    with (
        safe_open(out / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "theirs.safetensors", "pt") as theirs,
    ):
        assert len(ours.keys()) == len(theirs.keys()) == len(seeded(1).state_dict()) - 1
        tied = {k: v for k, v in ours.metadata().items() if k in seeded(1).state_dict()}
        assert {frozenset(p) for p in tied.items()} == {
            frozenset(p) for p in theirs.metadata().items() if p[0] != "format"
        }


def test_a_torch_file_reads_with_weights_only(reg: Registry, tmp_path: Path) -> None:
    out = reg.export(reg.save(seeded(1), model="net"), tmp_path / "out", format="pt")
    assert names(out) == ["README.md", "ckreg.json", "pytorch_model.bin"]
    net = seeded(2)
    net.load_state_dict(torch.load(out / "pytorch_model.bin", weights_only=True))
    assert same(state_of(net), state_of(seeded(1)))


def test_the_record_lies_beside_it_and_the_file_brings_it_back(
    reg: Registry, tmp_path: Path
) -> None:
    ckpt = reg.save(nn.DataParallel(seeded(1)), model="net", dataset="d", epoch=3, acc=0.5)
    out = reg.export(ckpt, tmp_path / "out")
    said = json.loads((out / "ckreg.json").read_text())
    assert {k: v for k, v in said.items() if k != "ckreg"} == ckpt.to_dict()
    back = reg.push(out / "model.safetensors")
    assert (back.epoch, back.acc, back.key_style, back.provenance.key_style) == (
        3, 0.5, ckpt.key_style, "recorded",
    )  # fmt: skip
    assert reg.diff(ckpt, back).equal_weights


FACTS = (
    "model", "dataset", "epoch", "step", "metrics", "config", "batch_size", "run", "key_style",
    "weights", "topology", "provenance",
)  # fmt: skip


def said_of(ckpt: Checkpoint) -> dict[str, Any]:
    whole = {**ckpt.to_dict(), "topology": {**ckpt.topology.to_dict(), "storage_tags": None}}
    return {name: whole[name] for name in FACTS}


@pytest.mark.parametrize("format", ["safetensors", "pt"])
@pytest.mark.parametrize("shard_size", [None, 200])
@pytest.mark.parametrize("written", [None, "recorded", "module._orig_mod."])
def test_an_export_pushed_elsewhere_is_recorded_as_it_was(
    reg: Registry, tmp_path: Path, format: Any, shard_size: int | None, written: str | None
) -> None:
    net = nn.DataParallel(seeded(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with reg.run("net", dataset="d", name="try", config={"lr": 0.1}) as run:
        ckpt = run.save(net, epoch=3, step=7, acc=0.5, metrics={"loss": 2.0}, optimizer=optimizer)
    ckpt = reg.record(ckpt, {"test": 0.25})  # after the save: the file doesn't know
    out = reg.export(ckpt, tmp_path / "out", format=format, shard_size=shard_size, keys=written)
    with Registry.create(tmp_path / "other") as other:
        back = other.push(out)
        assert said_of(back) == said_of(ckpt)
        assert not back.optimizers  # which an export doesn't hold
        if format == "pt":  # a safetensors file leaves tied names out
            assert (back.signature, back.parameters) == (ckpt.signature, ckpt.parameters)
        assert str(back.file_keys) == {None: "", "recorded": "module."}.get(written, written)
        into = seeded(2)
        other.load(back, into=into)
    assert same(state_of(into), state_of(seeded(1)))


@pytest.mark.parametrize("shard_size", [None, 200])
def test_in_public_nothing_says_who_made_it_where_and_how(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int | None
) -> None:
    monkeypatch.setattr(surroundings, "hostname", lambda: "secret-host")
    monkeypatch.setattr(surroundings, "author", lambda: "secret-user")
    monkeypatch.setattr(surroundings, "command", lambda: "secret-script.py --lr 1")
    with reg.run("net", dataset="d", config={"lr": 0.1}) as run:
        ckpt = run.save(seeded(1), epoch=3, acc=0.5)
    told = reg.export(ckpt, tmp_path / "told")
    texts = {p.name: p.read_bytes() for p in told.iterdir()}
    for secret in (b"secret-host", b"secret-user", b"secret-script"):
        assert secret in texts["ckreg.json"]
        assert secret in texts["model.safetensors"]
    out = reg.export(ckpt, tmp_path / "out", shard_size=shard_size, public=True)
    assert [p.name for p in out.iterdir() if b"secret" in p.read_bytes()] == []
    with Registry.create(tmp_path / "other") as other:
        back = other.push(out)
    assert (back.epoch, back.acc, back.config, back.run) == (3, 0.5, ckpt.config, ckpt.run)
    assert replace(back.topology, storage_tags=ckpt.topology.storage_tags) == replace(
        ckpt.topology, hostname=None
    )


@pytest.mark.parametrize("shard_size", [None, 200])
def test_what_was_inferred_of_a_file_of_others_stays_so_through_an_export(
    reg: Registry, tmp_path: Path, shard_size: int | None
) -> None:
    state = nn.DataParallel(seeded(1)).state_dict()
    (tmp_path / "src").mkdir()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "src" / "net-acc=0.5.pt")
    reg.import_(tmp_path / "src", model="net")
    ckpt = reg.get("net")
    assert (ckpt.epoch, ckpt.acc, ckpt.provenance.from_name) == (3, 0.5, ("metrics.acc",))
    out = reg.export(ckpt, tmp_path / "out", shard_size=shard_size)
    with Registry.create(tmp_path / "other") as other:
        assert said_of(other.push(out)) == said_of(ckpt)
        assert other.push(out, acc=0.75).provenance.from_name == ()


def test_a_pulled_safetensors_file_carries_the_record_whatever_its_keys(
    reg: Registry, tmp_path: Path
) -> None:
    ckpt = reg.save(nn.DataParallel(seeded(1)), model="net", epoch=3)
    path = reg.pull(ckpt, tmp_path / "w.safetensors", format="safetensors", keys="module.")
    back = reg.push(path, note="again")
    assert (back.epoch, str(back.key_style), str(back.file_keys)) == (3, "module.", "module.")
    (tmp_path / "hub").mkdir()
    path.rename(tmp_path / "hub" / "model.safetensors")
    assert said_of(reg.push(tmp_path / "hub")) == said_of(back)


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_shards_and_their_index_hold_all_weights_once(
    reg: Registry, tmp_path: Path, format: Any
) -> None:
    ckpt = reg.save(nn.DataParallel(seeded(1)), model="net")

    out = reg.export(ckpt, tmp_path / "out", format=format, shard_size=600)

    stem, suffix = ("model", "safetensors") if format == "safetensors" else ("pytorch_model", "bin")
    index = f"{stem}.{suffix}.index.json"
    files = [n for n in names(out) if n not in ("README.md", "ckreg.json", index)]
    many = len(files)
    assert many > 1
    assert files == [f"{stem}-{i:05}-of-{many:05}.{suffix}" for i in range(1, many + 1)]
    state = read_sharded(out, index)
    expected = state_of(seeded(1))
    if format == "safetensors":
        del expected["tied.weight"]
    assert same(dict(sorted(state.items())), dict(sorted(expected.items())))
    total = json.loads((out / index).read_text())["metadata"]["total_size"]
    assert total == sum(t.nbytes for k, t in expected.items() if k != "tied.weight")


def test_no_shard_is_larger_than_said_but_for_one_tensor_and_ties_stay_together() -> None:
    groups = [(("a",), 6), (("b", "c"), 3), (("d",), 9), (("e",), 40), (("f",), 1)]
    found = shards(groups, 10, "safetensors")
    assert [s.keys for s in found] == [("a", "b", "c"), ("d",), ("e",), ("f",)]
    assert found[0].file == "model-00001-of-00004.safetensors"
    assert shards(groups, None, "pt")[0].file == "pytorch_model.bin"


def test_a_shard_of_views_into_one_storage_brings_no_other_s_bytes_along(
    reg: Registry, tmp_path: Path
) -> None:
    flat = torch.randn(40_000)
    state = {f"p{i}": flat[i * 10_000 : (i + 1) * 10_000] for i in range(4)}
    torch.save(state, tmp_path / "flat.pt")
    ckpt = reg.push(tmp_path / "flat.pt", model="net")
    out = reg.export(ckpt, tmp_path / "out", format="pt", shard_size=40_000)
    files = [p for p in out.iterdir() if p.suffix == ".bin"]
    assert len(files) == 4
    assert all(p.stat().st_size < 60_000 for p in files)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("5 gb", 5 * 10**9), ("2GiB", 2**31), ("1.5MB", 1_500_000), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text: int | str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "big", "5XB", "0", "-1GB", "0.1B", "GB"])
def test_what_is_no_size_is_refused(reg: Registry, tmp_path: Path, text: str) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net")
    with pytest.raises(ValueError, match="5GB"):
        reg.export(ckpt, tmp_path / "out", shard_size=text)


# --- keys and weights -----------------------------------------------------------------------------


def test_keys_are_written_as_asked(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.save(nn.DataParallel(nn.Linear(2, 2)), model="net")
    for keys, expected in (("plain", "weight"), ("recorded", "module.weight")):
        out = reg.export(ckpt, tmp_path / keys, keys=keys)
        assert expected in safetensors.torch.load_file(out / "model.safetensors")


def test_two_sets_of_weights_are_refused_until_one_is_chosen(reg: Registry, tmp_path: Path) -> None:
    tree = {"state_dict": {"w": torch.zeros(2)}, "state_dict_ema": {"w": torch.ones(2)}}
    torch.save(tree, tmp_path / "w.pt")
    ckpt = reg.push(tmp_path / "w.pt", model="net")
    with pytest.raises(RefusedLoadError, match="nothing says which"):
        reg.export(ckpt, tmp_path / "out")
    for weights, value in (("live", 0.0), ("ema", 1.0)):
        out = reg.export(ckpt, tmp_path / weights, weights=weights)  # type: ignore[arg-type]
        assert safetensors.torch.load_file(out / "model.safetensors")["w"].tolist() == [value] * 2


def test_what_the_format_has_no_place_for_is_refused_and_nothing_is_left(
    reg: Registry, tmp_path: Path
) -> None:
    ckpt = reg.save(nn.ParameterList([torch.zeros(2, dtype=torch.complex128)]), model="net")
    with pytest.raises(ContainerError, match="complex128"):
        reg.export(ckpt, tmp_path / "out")
    assert names(tmp_path) == ["reg"]


# --- where it goes --------------------------------------------------------------------------------


def test_a_folder_that_holds_anything_is_refused_and_left(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net")
    out = tmp_path / "out"
    out.mkdir()
    reg.export(ckpt, out)  # an empty one is taken
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ConflictError, match="not empty"):
        reg.export(ckpt, out, format="pt")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_force_replaces_an_earlier_export_whole(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.save(seeded(1), model="net")
    out = reg.export(ckpt, tmp_path / "out", shard_size=600)
    reg.export(ckpt, out, force=True)
    assert names(out) == ["README.md", "ckreg.json", "model.safetensors"]
    assert names(tmp_path) == ["out", "reg"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_force_never_replaces_what_no_export_wrote(
    reg: Registry, tmp_path: Path, kind: str
) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net")
    out = reg.export(ckpt, tmp_path / "out")
    mine = out / "model-00001-of-00001.safetensors" if kind != "file" else out / "thesis.tex"
    if kind == "file":
        mine.write_text("years of work")
    elif kind == "folder":
        mine.mkdir()
    else:
        mine.symlink_to(tmp_path)
    before = names(out)
    with pytest.raises(ConflictError, match="not written by ckreg"):
        reg.export(ckpt, out, force=True)
    assert names(out) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_destination_that_is_no_folder_is_refused(
    reg: Registry, tmp_path: Path, kind: str
) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net")
    out = tmp_path / "out"
    (tmp_path / "else").mkdir()
    out.write_text("x") if kind == "file" else out.symlink_to(tmp_path / "else")
    with pytest.raises(ConflictError):
        reg.export(ckpt, out, force=True)


def test_a_missing_parent_and_the_registry_s_own_folders_are_refused(
    reg: Registry, tmp_path: Path
) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net")
    with pytest.raises(NotFoundError, match="mkdir"):
        reg.export(ckpt, tmp_path / "no" / "out")
    before = left_behind(reg)
    with pytest.raises(ConflictError, match="registry"):
        reg.export(ckpt, blobs_at(reg) / "blobs" / "out")
    assert left_behind(reg) == before


def test_a_full_disk_leaves_neither_a_folder_nor_a_part_of_one(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = reg.save(seeded(1), model="net")
    synced = 0
    sync = Staged.sync

    def full(self: Staged) -> None:
        nonlocal synced
        synced += 1
        if synced == 3:
            raise NoSpaceError("no space")
        sync(self)

    monkeypatch.setattr(Staged, "sync", full)
    with pytest.raises(NoSpaceError):
        reg.export(ckpt, tmp_path / "out", shard_size=600)
    assert names(tmp_path) == ["reg"]


def test_damaged_bytes_are_never_exported(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.save(nn.Linear(64, 64), model="net")
    (blob,) = (p for p in blobs_at(reg).glob("blobs/*/*") if p.stat().st_size > 10_000)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DamagedError):
        reg.export(ckpt, tmp_path / "out")
    assert names(tmp_path) == ["reg"]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_the_folder(
    reg: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reg.save(seeded(1), model="net")
    out = str(tmp_path / "out")
    words = ["export", "net", "--format", "safetensors", "--shard-size", "0.6kB", "-o", out]
    assert run([*words, "-r", reg.location]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "model.safetensors.index.json" in names(Path(out))
    assert run([*words, "-r", reg.location]) == 5
    assert run([*words, "--force", "-r", reg.location]) == 0
