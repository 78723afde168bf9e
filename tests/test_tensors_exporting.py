"""Adapted copies of a file: the oracles are plain torch and the safetensors package."""

from __future__ import annotations

import io
import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from nets import seeded
from tensor_files import (
    Bytes,
    builder_of,
    planned,
    same,
    saved,
    state_of,
    torch_loaded,
    torch_saved,
)
from torch import nn

from registry.containers import read as read_container
from registry.errors import ContainerError, NoSpaceError, UntrustedError
from registry.keys import Reading
from registry.signature import KeyStyle
from registry.tensors import exporting
from registry.tensors.checks import same_bits


def adapted(data: bytes, *, only_weights: bool = False, **wanted: Any) -> dict[str, Any]:
    made = planned(data, **wanted)
    return exporting.adapted(
        made.plan, made.contents, made.builder, made.description, only_weights=only_weights
    )


def torch_file(tree: dict[str, Any], tag: str, weights: str = "") -> bytes:
    buffer = io.BytesIO()
    exporting.write_torch(tree, buffer, tag=tag, weights=weights)
    return buffer.getvalue()


def safetensors_file(state: dict[str, Any], **how: Any) -> bytes:
    buffer = io.BytesIO()
    exporting.write_safetensors(state, buffer, **how)
    return buffer.getvalue()


def tags(data: bytes) -> dict[str, int]:
    return read_container(Bytes(data), "f.pt").storage_tags


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = seeded(1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    return net, optimizer


# --- torch ----------------------------------------------------------------------------------------


def test_the_whole_checkpoint_goes_along_with_other_keys() -> None:
    net, optimizer = trained()
    data = saved(net, optimizer=optimizer, extra={"a": [1]})

    tree = adapted(data, out_keys=KeyStyle.parse("module."))
    file = torch_loaded(torch_file(tree, "cpu", "state_dict"))

    assert [k for k in torch_loaded(data) if k != "ckreg"] == list(file)
    wrapped = nn.DataParallel(seeded(2))
    wrapped.load_state_dict(file["state_dict"], strict=True)
    assert same(state_of(wrapped), state_of(net))
    other = torch.optim.Adam(wrapped.parameters())
    other.load_state_dict(file["optimizer"])
    assert file["extra"] == {"a": [1]}
    assert file["epoch"] == 1
    assert file["state_dict"]._metadata["module.features.1"] == {"version": 2}


def test_our_record_goes_along_where_keys_stay_canonical() -> None:
    data = saved(nn.DataParallel(seeded(1)))
    assert adapted(data, out_keys=KeyStyle())["ckreg"] == torch_loaded(data)["ckreg"]
    assert "ckreg" not in adapted(data, out_keys=KeyStyle.parse("module."))


def test_weights_alone_are_a_state_dict_that_loads_as_it_is() -> None:
    data = torch_saved({"state_dict": nn.DataParallel(seeded(1)).state_dict(), "epoch": 3})
    tree = adapted(data, only_weights=True, keys=Reading.parse("module."), out_keys=KeyStyle())
    file = torch_loaded(torch_file(tree, "cpu"))

    net = seeded(2)
    net.load_state_dict(file, strict=True)
    assert same(state_of(net), state_of(seeded(1)))
    assert file["head.weight"].data_ptr() == file["tied.weight"].data_ptr()


@pytest.mark.parametrize("tag", ["cuda:0", "cuda:7", "mps", "xpu:1"])
def test_weights_are_tagged_with_a_device_that_need_not_be_here(tag: str) -> None:
    net, optimizer = trained()
    tree = adapted(saved(net, optimizer=optimizer))
    data = torch_file(tree, tag, "state_dict")

    storages = len(
        {id(t.storage) for t in read_container(Bytes(data), "f").root["state_dict"].values()}
    )
    assert tags(data)[tag] == storages
    assert tags(data)["cpu"] > 0  # Adam's state, and `step`, which belongs on the CPU
    file = torch_loaded(data, map_location="cpu")
    assert same(dict(file["state_dict"]), state_of(net))


def test_a_tagged_file_asks_plain_torch_for_that_very_device() -> None:
    data = torch_file({"w": torch.ones(2)}, "cuda:5")
    if torch.cuda.device_count() <= 5:
        with pytest.raises(RuntimeError, match=r"CUDA|cuda"):
            torch_loaded(data)


def test_a_tag_leaves_no_trace_in_torch_even_when_writing_fails() -> None:
    before = list(torch.serialization._package_registry)

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise NoSpaceError("full")

    with pytest.raises(NoSpaceError):
        exporting.write_torch({"w": torch.ones(2)}, Full(), tag="cuda:1")
    assert torch.serialization._package_registry == before
    assert tags(torch_saved({"w": torch.ones(2)})) == {"cpu": 1}


def test_tags_of_one_thread_do_not_reach_the_files_of_another() -> None:
    found: list[tuple[str, dict[str, int]]] = []

    def work(tag: str) -> None:
        found.extend((tag, tags(torch_file({"w": torch.ones(100)}, tag))) for _ in range(30))

    threads = [threading.Thread(target=work, args=(f"cuda:{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert all(tagged == {tag: 1} for tag, tagged in found)


class Config:
    """A class of the training script."""


def test_what_needs_code_stays_out_and_the_cure_is_named() -> None:
    data = torch_saved({"state_dict": seeded(1).state_dict(), "hooks": [Config()]})
    with pytest.raises(UntrustedError, match=r"'hooks' of net@v0 .*Config") as caught:
        adapted(data)
    assert "--only weights" in str(caught.value.hint)
    assert set(adapted(data, only_weights=True)) == set(seeded(1).state_dict())


def test_of_two_sets_of_weights_the_chosen_one_takes_the_customary_place() -> None:
    data = torch_saved(
        {"state_dict": seeded(1).state_dict(), "state_dict_ema": seeded(2).state_dict(), "epoch": 1}
    )
    tree = adapted(data, weights="ema")
    assert "state_dict_ema" not in tree
    assert same(dict(tree["state_dict"]), state_of(seeded(2)))


def test_weights_deep_in_the_file_are_replaced_there_and_what_lies_beside_them_stays() -> None:
    inner = {"state_dict": nn.DataParallel(seeded(1)).state_dict(), "args": {"n": 2}}
    data = torch_saved({"model": inner, "seed": 7})

    tree = adapted(data, keys=Reading.parse("module."), out_keys=KeyStyle())

    file = torch_loaded(torch_file(tree, "cuda:0", "model"), map_location="cpu")
    assert file["seed"] == 7
    assert file["model"]["args"] == {"n": 2}
    assert same(file["model"]["state_dict"], state_of(seeded(1)))


@pytest.mark.parametrize("key", ["model", None])
def test_a_whole_pickled_module_becomes_its_state_dict(key: str | None) -> None:
    data = torch_saved(seeded(1) if key is None else {key: seeded(1), "epoch": 3})

    tree = adapted(data)

    file = torch_loaded(torch_file(tree, "cpu", key or ""))
    state = file if key is None else file[key]
    assert same({k: v.detach() for k, v in state.items()}, state_of(seeded(1)))


def test_a_file_in_a_namespace_becomes_plain() -> None:
    import argparse

    data = torch_saved({"state_dict": seeded(1).state_dict(), "args": argparse.Namespace(lr=0.1)})
    assert torch_loaded(torch_file(adapted(data), "cpu", "state_dict"))["args"] == {"lr": 0.1}


# --- safetensors ----------------------------------------------------------------------------------

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


def test_the_safetensors_package_reads_every_dtype_and_layout_bit_for_bit(tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        base = torch.randint(0, 2, (6 * dtype.itemsize,), dtype=torch.uint8).view(dtype)
        state |= {
            f"{dtype}": base.view(2, 3), f"{dtype}.t": base.view(2, 3).t(), f"{dtype}.0": base[0],
            f"{dtype}.none": base[:0].clone(),
        }  # fmt: skip
    path = tmp_path / "f.safetensors"
    path.write_bytes(safetensors_file(state))

    back = safetensors.torch.load_file(path)

    assert back.keys() == state.keys()
    assert all(same_bits(back[k], state[k]) for k in state)


def test_tied_names_are_written_once_and_named(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(safetensors_file(seeded(1).state_dict(), metadata={"epoch": "3"}))

    with safetensors.safe_open(path, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata == {"format": "pt", "epoch": "3", "tied.weight": "head.weight"}
    assert names == set(seeded(1).state_dict()) - {"tied.weight"}
    net = seeded(2)
    safetensors.torch.load_model(net, path)  # the package's own way with ties
    assert same(state_of(net), state_of(seeded(1)))


def test_the_same_state_gives_the_same_bytes_in_any_order() -> None:
    state = dict(seeded(1).state_dict())
    del state["tied.weight"]
    assert safetensors_file(state) == safetensors_file(dict(reversed(state.items())))


def test_every_tensor_is_aligned_and_the_file_has_no_holes() -> None:
    state = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3), "c": torch.ones(5).double()}
    data = safetensors_file(state)
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    at = 0
    spans = sorted((v["data_offsets"], k) for k, v in header.items() if k != "__metadata__")
    for (begin, end), name in spans:
        assert begin == at
        assert (8 + size + begin) % state[name].element_size() == 0
        at = end
    assert 8 + size + at == len(data)
    assert size % 8 == 0


def test_our_reader_takes_what_was_written() -> None:
    builder, contents = builder_of(safetensors_file(dict(seeded(1).state_dict())))
    back = builder.tree(contents.root)
    assert contents.container == "safetensors"
    assert torch.equal(back["head.weight"], seeded(1).head.weight)


def test_a_large_tensor_is_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.arange(1000.0)}
    whole = safetensors_file(state)
    monkeypatch.setattr(exporting, "_CHUNK_BYTES", 7)
    assert safetensors_file(state) == whole


@pytest.mark.parametrize(
    "state",
    [{"x": torch.ones(2), "_extra_state": [1]}, {"z": torch.ones(2, dtype=torch.complex128)}],
)
def test_what_safetensors_has_no_place_for_is_refused_by_name(state: dict[str, Any]) -> None:
    with pytest.raises(ContainerError, match=r"_extra_state|'z'") as caught:
        safetensors_file(state)
    assert "pt" in str(caught.value.hint)


def test_a_saved_file_becomes_a_safetensors_file() -> None:
    tree = adapted(saved(nn.DataParallel(seeded(1))), only_weights=True)
    back = safetensors.torch.load(safetensors_file(tree))
    expected = {k: v for k, v in seeded(1).state_dict().items() if k != "tied.weight"}
    assert same(back, expected)
