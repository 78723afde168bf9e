"""Pull: a file is what its name says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from nets import equal, seeded

from registry import Checkpoint, ContainerError, Registry, cli

TORCH = (".pt", ".pth", ".ckpt", ".bin")


def is_safetensors(path: Path) -> bool:
    return not path.read_bytes().startswith(b"PK\3\4")


@pytest.fixture
def whole(reg: Registry) -> Checkpoint:
    """Weights and an optimizer, as a torch file."""
    net = seeded(1)
    return reg.save(net, model="whole", epoch=1, optimizer=torch.optim.Adam(net.parameters()))


@pytest.fixture
def weights(reg: Registry, tmp_path: Path, whole: Checkpoint) -> Checkpoint:
    """The same weights, as safetensors."""
    return reg.push(reg.pull(whole, tmp_path / "w", format="safetensors"), model="weights")


@pytest.fixture
def bare(reg: Registry, tmp_path: Path) -> Checkpoint:
    """The same weights, as a torch file of nothing else."""
    torch.save(seeded(1).state_dict(), tmp_path / "bare.bin")
    return reg.push(tmp_path / "bare.bin", model="bare")


@pytest.mark.parametrize("suffix", [*TORCH, ".safetensors", ".PTH", ".SafeTensors"])
@pytest.mark.parametrize("words", [{"only": "weights"}, {"device": "cpu"}])
def test_weights_are_written_in_the_format_that_the_name_says(
    reg: Registry, weights: Checkpoint, bare: Checkpoint, tmp_path: Path, suffix: str, words: dict
) -> None:
    for stored in (weights, bare):
        path = reg.pull(stored, tmp_path / f"{stored.model}-out{suffix}", **words)
        assert is_safetensors(path) == (suffix.lower() == ".safetensors")
        reg.load(reg.push(path, model="back"), into=(into := seeded(2)))
        assert equal(into, seeded(1))


@pytest.mark.parametrize("name", ["out", "out.v2", "out.best"])
def test_a_name_that_says_no_format_gets_that_of_the_stored_bytes(
    reg: Registry, whole: Checkpoint, weights: Checkpoint, tmp_path: Path, name: str
) -> None:
    for words in ({}, {"device": "cpu"}):
        assert is_safetensors(reg.pull(weights, tmp_path / name, force=True, **words))
        assert not is_safetensors(reg.pull(whole, tmp_path / name, force=True, **words))


def test_more_than_weights_goes_into_no_safetensors_file(
    reg: Registry, whole: Checkpoint, tmp_path: Path
) -> None:
    there = tmp_path / "a name.safetensors"
    with pytest.raises(ContainerError, match=r"holds weights alone, and whole@v1 holds more") as e:
        reg.pull(whole, there, device="cuda:1", keys="module.")
    assert not there.exists()
    first, second = commands(e.value)
    run(reg, first)
    assert is_safetensors(there)
    run(reg, second)
    state = torch.load(tmp_path / "a name.pt", map_location="cpu", weights_only=True)
    assert {"state_dict", "optimizer"} <= state.keys()
    assert all(key.startswith("module.") for key in state["state_dict"])


@pytest.mark.parametrize("suffix", TORCH)
def test_a_plain_pull_leaves_the_bytes_and_refuses_a_name_of_another_format(
    reg: Registry, whole: Checkpoint, weights: Checkpoint, tmp_path: Path, suffix: str
) -> None:
    torch_name, tensors_name = tmp_path / f"out{suffix}", tmp_path / "out.safetensors"
    for stored, name, other in (
        (weights, torch_name, tensors_name),
        (whole, tensors_name, tmp_path / "out.pt"),
    ):
        with pytest.raises(ContainerError, match="which a plain pull leaves as it is") as caught:
            reg.pull(stored, name)
        assert not name.exists()
        convert, as_stored = commands(caught.value)
        run(reg, convert)
        assert is_safetensors(name) == (name == tensors_name)
        name.unlink()
        run(reg, as_stored)
        assert is_safetensors(other) == (stored == weights)
        other.unlink()
    assert not is_safetensors(reg.pull(whole, torch_name))


def test_a_folder_is_pulled_under_no_name_of_a_file(
    reg: Registry, whole: Checkpoint, tmp_path: Path
) -> None:
    folder = reg.push(reg.export(whole, tmp_path / "folder", shard_size=400), model="sharded")
    assert folder.is_folder
    for suffix in (".safetensors", ".bin"):
        with pytest.raises(ContainerError, match="a folder, safetensors-sharded,") as caught:
            reg.pull(folder, tmp_path / f"out{suffix}")
        convert, as_stored = commands(caught.value)
        run(reg, convert)
        assert is_safetensors(tmp_path / f"out{suffix}") == (suffix == ".safetensors")
        run(reg, as_stored)
        assert (tmp_path / "out").is_dir()
    assert reg.pull(folder, tmp_path / "as-lightning-does.ckpt").is_dir()


def test_a_format_and_a_name_that_differ_are_refused(
    reg: Registry, whole: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"doesn't go with the name 'x\.bin': .*'x\.safetensors'"):
        reg.pull(whole, tmp_path / "x.bin", format="safetensors")
    with pytest.raises(ValueError, match=r"doesn't go with .*: name it 'x\.pt'"):
        reg.pull(whole, tmp_path / "x.safetensors", format="pt")
    assert not [*tmp_path.glob("x.*")]


def commands(error: ContainerError) -> list[str]:
    """Return the commands that a hint says."""
    return [part[part.index("ckreg ") :] for part in str(error.hint).split("; or ")]


def run(reg: Registry, command: str) -> None:
    _, *words = shlex.split(command)
    assert cli.run([*words, "-r", reg.location]) == 0, command
