"""Files from elsewhere: tagged with devices that aren't here, without a record, from strangers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import strangers
import torch
from nets import WRAPS, equal, seeded

from registry import DamagedError, RefusedLoadError, Registry
from registry.blobs import BlobFile


@contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Have torch.save tag every CPU storage with another device, as a machine with that device
    would.
    """
    torch.serialization.register_package(0, lambda storage: tag, lambda storage, location: None)
    try:
        yield
    finally:
        registered = torch.serialization._package_registry
        registered[:] = [entry for entry in registered if entry[0] != 0]


def tagged_file(path: Path, tag: str, *, legacy: bool = False, value: Any = None) -> Path:
    value = seeded(1).state_dict() if value is None else value
    with tagged(tag):
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_tagged_with_an_absent_gpu_loads_here_and_keeps_its_tags(
    reg: Registry, tmp_path: Path, legacy: bool
) -> None:
    path = tagged_file(tmp_path / "w.pth", "cuda:3", legacy=legacy)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)  # what everybody runs into

    checkpoint = reg.push(path, model="net")
    into = seeded(2)
    result = reg.load(checkpoint, into=into)

    assert equal(into, seeded(1))
    assert set(checkpoint.topology.storage_tags) == {"cuda:3"}
    assert checkpoint.provenance.topology == "unknown"
    assert (
        result.plan.map_location == "each parameter's device" or result.plan.map_location == "cpu"
    )
    assert checkpoint.container == ("torch-legacy" if legacy else "torch-zip")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("device", ["cuda:3", "recorded"])
def test_an_absent_device_is_refused_before_any_tensor_byte_is_read(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, device: str
) -> None:
    weights = torch.randn(1 << 20)
    path = tagged_file(tmp_path / "w.pth", "cuda:3", legacy=legacy, value={"w": weights})
    checkpoint = reg.push(path, model="net")
    # One byte in the middle of the tensor is changed: whoever reads the tensor finds damage.
    blob = next(Path(reg.location).glob(f"blobs/{checkpoint.digest[7:9]}/{checkpoint.digest[9:]}*"))
    data = bytearray(blob.read_bytes())
    data[data.index(weights[:64].numpy().tobytes()) + (2 << 20)] ^= 1
    os.chmod(blob, 0o644)
    blob.write_bytes(data)
    read: list[int] = []
    pread = BlobFile.pread
    monkeypatch.setattr(BlobFile, "pread", lambda f, o, n: read.append(n) or pread(f, o, n))

    with pytest.raises(RefusedLoadError, match="cuda:3"):
        reg.load(checkpoint, device=device)

    assert 0 < sum(read) < 2 << 20  # a legacy file says only at its end where its pickles end
    with pytest.raises(DamagedError):
        reg.load(checkpoint)


def test_mixed_tags_load_here_and_are_reported(reg: Registry, tmp_path: Path) -> None:
    turn = iter(range(10**6))
    torch.serialization.register_package(
        0, lambda storage: f"cuda:{next(turn) % 2}", lambda storage, location: None
    )
    try:
        torch.save(seeded(1).state_dict(), tmp_path / "w.pth")
    finally:
        registered = torch.serialization._package_registry
        registered[:] = [entry for entry in registered if entry[0] != 0]

    checkpoint = reg.push(tmp_path / "w.pth", model="net")
    reg.load(checkpoint, into=(into := seeded(2)))

    assert set(checkpoint.topology.storage_tags) == {"cuda:0", "cuda:1"}
    assert equal(into, seeded(1))


@pytest.mark.parametrize("wrap", ["plain", "DP", "compile", "DP(compile)", "submodule DP"])
@pytest.mark.parametrize("target", ["plain", "DP", "compile"])
def test_a_wrapped_file_without_a_record_finds_its_way_into_any_target(
    reg: Registry, tmp_path: Path, wrap: str, target: str
) -> None:
    source = WRAPS[wrap](seeded(1))
    torch.save({"state_dict": source.state_dict(), "epoch": 4, "acc": 0.25}, tmp_path / "w.pth")

    checkpoint = reg.push(tmp_path / "w.pth", model="net")
    reg.load(checkpoint, into=(into := WRAPS[target](seeded(2))))

    assert equal(into, source)
    assert checkpoint.provenance.key_style == "inferred"
    assert (checkpoint.epoch, checkpoint.acc) == (4, 0.25)


def test_safetensors_load_bit_equal(reg: Registry, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {k: v.clone() for k, v in seeded(1).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")

    checkpoint = reg.push(tmp_path / "w.safetensors", model="net")
    reg.load(checkpoint, into=(into := seeded(2)))

    assert equal(into, seeded(1))
    assert checkpoint.container == "safetensors"


def every_tensor_equal(ours: Any, theirs: Any) -> int:
    """Compare two state dicts, and return how many tensors they hold."""
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
        assert ours[key].dtype == tensor.dtype
    return len(theirs)


@pytest.mark.index
def test_chgnet_saved_on_cuda_7_loads_here(reg: Registry, tmp_path: Path) -> None:
    (path,) = strangers.files(*strangers.CHGNET)
    oracle = torch.load(path, map_location="cpu", weights_only=True)["model"]["state_dict"]

    checkpoint = reg.push(path, model="chgnet")

    tags = checkpoint.topology.storage_tags
    assert tags["cuda:7"] > 250
    assert set(tags) == {"cuda:7", "cpu"}  # one tensor of it was never moved
    assert next(reg.find("chgnet")).topology.short() == "cuda:7 tags"
    plan = reg.plan(checkpoint, device="cpu")
    assert plan.map_location == "cpu"
    assert "cuda:7" in str(plan)
    assert every_tensor_equal(reg.load(checkpoint).state_dict, oracle) == 136
    plain = reg.pull(checkpoint, tmp_path / "plain.pth")
    assert hashlib.sha256(plain.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    adapted = reg.pull(checkpoint, tmp_path / "cpu.pt", device="cpu", keys="plain", only="weights")
    assert every_tensor_equal(torch.load(adapted, weights_only=True), oracle)
    with pytest.raises(RefusedLoadError, match="cuda:7"):
        reg.load(checkpoint, device="recorded")


@pytest.mark.index
def test_lpips_legacy_files_saved_on_cuda_0_load_here(reg: Registry, tmp_path: Path) -> None:
    for path in strangers.files(*strangers.LPIPS):
        oracle = torch.load(path, map_location="cpu", weights_only=False)

        checkpoint = reg.push(path, model=f"lpips/{path.stem}")

        assert checkpoint.container == "torch-legacy"
        assert set(checkpoint.topology.storage_tags) == {"cuda:0"}
        assert every_tensor_equal(reg.load(checkpoint).state_dict, oracle)
        adapted = reg.pull(checkpoint, tmp_path / f"{path.stem}.pt", device="cpu", only="weights")
        assert every_tensor_equal(torch.load(adapted, weights_only=True), oracle)
        plain = reg.pull(checkpoint, tmp_path / f"{path.stem}.pth")
        assert plain.read_bytes() == path.read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_file_saved_on_a_gpu_loads_on_gpu_and_cpu(reg: Registry) -> None:
    source = seeded(1).cuda()
    checkpoint = reg.save(source, model="net")
    assert set(checkpoint.topology.storage_tags) == {"cuda:0"}
    reg.load(checkpoint, into=(here := seeded(2)))
    reg.load(checkpoint, into=(there := seeded(2).cuda()))
    assert equal(here, seeded(1))
    assert equal(there.cpu(), seeded(1))
