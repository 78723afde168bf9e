"""What frameworks save is told by its keys, its facts are as stated, and its weights come out.

The files here are made by hand after the frameworks' writers (tests/frameworks.py); files of the
libraries themselves are in test_containers_libraries.py.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import frameworks
import numpy as np
import pytest
import torch
from reading import bits, contents_of, described, opened, saved, torch_zip, zip_of
from safetensors.torch import save_file

from registry import ContainerError, DamagedError, Registry, UntrustedError
from registry.containers import sniff
from registry.tensors.building import Builder


class Canary:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def built(path: Path, weights: Any) -> dict[str, torch.Tensor]:
    """Build tensors as a load does."""
    builder = Builder(contents_of(path), bytearray(path.read_bytes()))
    return {key: builder.tensor(tensor) for key, tensor in weights.items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that two state dicts are bit-equal, keys in order."""
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert bits(found[key]) == bits(tensor), key


LAYOUTS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "imagenet-example": (
        frameworks.imagenet_example,
        {"where": "state_dict", "model": "vgg16", "epoch": 4, "metrics": {"best_acc1": 71.5}},
    ),
    "torchvision": (
        frameworks.torchvision,
        {"where": "model", "ema_where": "model_ema", "model": "resnet50", "epoch": 9},
    ),
    "timm": (
        frameworks.timm,
        {"where": "state_dict", "ema_where": "state_dict_ema", "model": "resnet10t",
         "dataset": "imagenet", "epoch": 3, "metrics": {"metric": 74.2}},
    ),
    "lightning": (
        frameworks.lightning,
        {"where": "state_dict", "model": "mlp", "dataset": "mnist", "epoch": 2, "step": 40,
         "metrics": {"best_val_acc": 0.75}},
    ),
    "fvcore": (frameworks.fvcore, {"where": "model", "step": 89_999}),
    "mmengine": (
        frameworks.mmengine,
        {"where": "ema_state_dict", "ema_where": "state_dict", "epoch": 2, "step": 4,
         "metrics": {"best_score": 0.5}},
    ),
    "nanogpt": (
        frameworks.nanogpt,
        {"where": "model", "dataset": "shakespeare_char", "step": 5_000,
         "metrics": {"best_val_loss": 1.5}},
    ),
    "ignite": (frameworks.ignite, {"where": "model", "step": 10}),
    "composer": (frameworks.composer, {"where": "state.model", "epoch": 2, "step": 400}),
    "ultralytics": (
        frameworks.ultralytics,
        {"where": "ema", "ema_where": "ema", "model": "yolov8n.yaml", "dataset": "coco8.yaml",
         "epoch": 4, "metrics": {"metrics/mAP50(B)": 0.4, "best_fitness": 0.3}},
    ),
}  # fmt: skip

NOTHING = dict.fromkeys(("ema_where", "model", "dataset", "epoch", "step", "acc", "record"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_frameworks_facts_are_read_as_stated_and_no_code_runs(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    make, expected = LAYOUTS[name]
    canary = tmp_path / "canary"
    path = saved({**make(), "other": Canary(canary)}, tmp_path / "f.whatever", legacy=legacy)
    found = described(path)
    assert found.layout == name
    wanted = {**NOTHING, "metrics": {}, **expected}
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert list(found.optimizers) == ["optimizer"]
    assert any(word.endswith(".mkdir") for word in contents_of(path).unsafe_globals)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the canary must be able to sing"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_frameworks_weights_come_out_bit_equal(name: str, tmp_path: Path) -> None:
    make, _ = LAYOUTS[name]
    value = make()
    path = saved(value, tmp_path / "f")
    found = described(path)

    def at(where: str) -> dict[str, torch.Tensor]:
        node: Any = value
        for part in where.split("."):
            node = node[part]
        state = dict(node.state_dict() if isinstance(node, torch.nn.Module) else node)
        state.pop("steps", None)
        return state

    same(built(path, found.weights), at(found.where))
    if found.ema is not None:
        same(built(path, found.ema), at(found.ema_where))


def test_a_folder_of_layouts_is_read_without_torch_or_numpy(tmp_path: Path) -> None:
    for name, (make, _) in LAYOUTS.items():
        saved(make(), tmp_path / name)
    (tmp_path / "detectron2").write_bytes(pickle.dumps(frameworks.detectron2()))
    code = (
        "import os, sys; sys.modules.update(torch=None, numpy=None)\n"
        "from registry.containers import FileSource, describe, read\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)\n"
        "    source = FileSource(fd, name)\n"
        "    print(describe(read(source, name), source).layout == name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * (len(LAYOUTS) + 1)


# --- live and averaged weights --------------------------------------------------------------------


def test_with_lightnings_weight_averaging_the_state_dict_is_the_average(tmp_path: Path) -> None:
    found = described(saved(frameworks.lightning_averaged(), tmp_path / "f"))
    assert (found.where, found.ema_where) == ("current_model_state", "state_dict")
    after = frameworks.lightning()
    after["callbacks"]["EMAWeightAveraging"] = {"latest_update_step": 4}
    found = described(saved(after, tmp_path / "f"))
    assert (found.where, found.ema_where) == ("state_dict", "state_dict")


def test_both_of_timms_weights_can_be_had(tmp_path: Path) -> None:
    path = saved(frameworks.timm(), tmp_path / "f.pth.tar")
    found = described(path)
    same(built(path, found.weights), frameworks.state(0))
    same(built(path, found.ema), frameworks.state(1))


def test_mmengines_counter_is_no_weight(tmp_path: Path) -> None:
    found = described(saved(frameworks.mmengine(), tmp_path / "f"))
    assert "steps" not in found.weights
    without = frameworks.mmengine()
    del without["ema_state_dict"]
    found = described(saved(without, tmp_path / "f"))
    assert (found.where, found.ema) == ("state_dict", None)


# --- plain pickles --------------------------------------------------------------------------------

ARRAYS: dict[str, Any] = {
    "float64": np.arange(300.0), "float16": np.ones(3, "f2"), "turned": np.ones((40, 50), "f4").T,
    "swapped": np.arange(200, dtype=">f8"), "swapped_complex": np.array([1 + 2j] * 99, ">c16"),
    "bool": np.array([True, False]), "scalar": np.array(3), "empty": np.zeros((0, 2), "u2"),
    "bytes": np.arange(2_000, dtype="u1"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_arrays_in_a_plain_pickle_are_weights(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    arrays = {**ARRAYS, "tied": ARRAYS["float64"]}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "it": 3}, protocol))
    contents, found = contents_of(path), described(path)
    assert (contents.container, found.layout, found.where) == ("pickle", "detectron2", "model")
    native = {k: np.array(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()}
    same(built(path, found.weights), {k: torch.from_numpy(v) for k, v in native.items()})
    assert found.weights["tied"].storage is found.weights["float64"].storage
    kept = {name for name, t in found.weights.items() if t.storage.data is None}
    assert kept == ({"float64", "turned", "bytes", "tied"} if protocol >= 3 else set())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_torchs_tensors_in_a_plain_pickle_are_read_from_the_streams_in_it(
    protocol: int, tmp_path: Path
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30)).half()
    path = tmp_path / "f.pkl"
    for value in (net.state_dict(), {"net": net, "epoch": 1}):
        path.write_bytes(pickle.dumps(value, protocol))
        found = described(path)
        same(built(path, found.weights), dict(net.state_dict()))


def test_streams_inside_streams_are_not_followed(tmp_path: Path) -> None:
    """Each stream may hold one storage, and nothing that is read further."""
    inner = b"x"
    for _ in range(50):
        inner = pickle.dumps(Stream(inner), 4)
    path = tmp_path / "f.pkl"
    path.write_bytes(inner)
    with pytest.raises((ContainerError, DamagedError, UntrustedError)):
        described(path)


class Stream:
    """Bytes that torch would load as a file inside the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)


def test_a_pickle_and_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.pkl"
    for more in (b"tail", pickle.dumps({}), torch_zip(b"\x80\x02}.")):
        path.write_bytes(pickle.dumps(frameworks.detectron2()) + more)
        with pytest.raises(ContainerError, match="after its pickle ends"):
            contents_of(path)
    path.write_bytes(pickle.dumps(frameworks.detectron2())[:-9])
    with pytest.raises(DamagedError, match="cut short"):
        contents_of(path)


def test_a_legacy_file_that_is_also_a_zip_is_refused(tmp_path: Path) -> None:
    path = saved(frameworks.state(), tmp_path / "f", legacy=True)
    path.write_bytes(path.read_bytes() + torch_zip(b"\x80\x02}."))
    with pytest.raises(UntrustedError, match="a legacy torch file and a zip file in one"):
        contents_of(path)


# --- what is stored and not loaded ----------------------------------------------------------------


def gguf() -> bytes:
    """Return a GGUF header of version 3, after ggml/docs/gguf.md."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    pairs = [
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 32),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)


def foreign(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return a file of each kind that is only stored, with what its hint must say."""
    net = frameworks.seeded(0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(folder / "torchscript"))
    torch.export.save(torch.export.export(net, (torch.ones(2, 4),)), folder / "pt2")
    (folder / "gguf").write_bytes(gguf())
    (folder / "onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:\x80\x01" + bytes(128))
    saved(frameworks.megatron(), folder / "megatron")
    hints = {"torchscript": "torch.jit.load", "pt2": "torch.export.load", "gguf": "converted from",
             "onnx": "exported from", "megatron": "convert.py"}  # fmt: skip
    return {kind: (folder / kind, hint) for kind, hint in hints.items()}


KINDS = ("torchscript", "pt2", "gguf", "onnx", "megatron")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_other_runtimes_files_are_stored_and_a_load_is_refused_with_the_way(
    kind: str, tmp_path: Path, reg: Registry
) -> None:
    path, hint = foreign(tmp_path)[kind]
    contents = contents_of(path)
    assert (contents.container, contents.loadable) == (kind, False)
    checkpoint = reg.push(path, model="m")
    assert checkpoint.container == kind
    for act in (reg.plan, reg.load):
        with pytest.raises(ContainerError, match="m@v1 is ") as caught:
            act(checkpoint)
        assert hint in str(caught.value.hint)
        assert "{" not in str(caught.value.hint)
    assert reg.pull(checkpoint, tmp_path / "back").read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_other_runtimes_files_say_of_themselves_is_read(tmp_path: Path) -> None:
    found = {kind: described(path) for kind, (path, _) in foreign(tmp_path).items()}
    assert found["gguf"].model == "llama"
    assert found["gguf"].extra["llama.block_count"] == 32
    assert found["onnx"].extra["producer_name"] == "pytorch"
    assert (found["megatron"].step, found["megatron"].config["lr"]) == (100, 0.1)
    assert list(found["torchscript"].weights) == list(frameworks.state())
    for kind in KINDS[1:]:
        assert found[kind].weights == {}


@pytest.mark.parametrize("cut", [9, 24, 30, 60, 100, 150])
def test_a_cut_gguf_header_gives_the_facts_before_the_cut(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(gguf()[:cut])
    assert described(path).model in (None, "llama")


# --- the cases, as far as they are about reading ------------------------------------------


def test_real_submodules_and_wrappers_keys_stand_as_they_are(tmp_path: Path) -> None:
    """Cases 1 to 6 and 34: nothing is stripped by reading."""
    for keys in (
        ["module.weight"], ["weight", "module.weight"], ["features.module.0.weight"],
        ["_orig_mod.a", "_orig_mod.b"], ["module.a", "b"], ["model._orig_mod.w"],
    ):  # fmt: skip
        state = {key: torch.ones(2) for key in keys}
        for value in (state, {"state_dict": state}):
            assert list(described(saved(value, tmp_path / "f")).weights) == keys


@contextmanager
def tagged(tag: Callable[[torch.UntypedStorage], str]) -> Iterator[None]:
    """Have torch.save tag storages as a machine with those devices would."""
    torch.serialization.register_package(0, tag, lambda storage, location: None)
    try:
        yield
    finally:
        registered = torch.serialization._package_registry
        registered[:] = [entry for entry in registered if entry[0] != 0]


def test_mixed_tags_are_counted(tmp_path: Path) -> None:
    """Case 7."""
    with tagged(lambda storage: f"cuda:{storage.nbytes() // 8 - 1}"):
        path = saved({"a": torch.ones(2), "b": torch.ones(4), "c": torch.ones(2)}, tmp_path / "f")
    assert contents_of(path).storage_tags == {"cuda:0": 2, "cuda:1": 1}
    assert built(path, described(path).weights)["b"].tolist() == [1.0] * 4


def test_a_running_best_on_an_absent_gpu_is_a_metric(tmp_path: Path) -> None:
    """Case 8."""
    with tagged(lambda storage: "cuda:3"):
        path = saved(frameworks.imagenet_example(), tmp_path / "f")
    found = described(path)
    assert (found.metrics, found.acc) == ({"best_acc1": 71.5}, None)


def test_weights_on_meta_are_none(tmp_path: Path) -> None:
    """Case 9."""
    found = described(
        saved({"a": torch.ones(2), "b": torch.ones(2, device="meta")}, tmp_path / "f")
    )
    assert list(found.weights) == ["a"]
    assert list(found.unbuildable) == ["b"]


def test_numpy_facts_and_a_namespace_need_no_trust(tmp_path: Path) -> None:
    """Case 21."""
    value = {**frameworks.torchvision(), "acc": np.float32(0.5), "epoch": np.int64(3)}
    path = saved(value, tmp_path / "f")
    found = described(path)
    assert (found.acc, found.epoch, found.config["lr"]) == (0.5, 3, 0.5)
    same(built(path, found.weights), frameworks.state())


def test_a_whole_modules_weights_come_out_and_its_code_never_runs(tmp_path: Path) -> None:
    """Case 22."""
    net = frameworks.seeded(0)
    net.trap = Canary(tmp_path / "canary")  # type: ignore[assignment]  # what a hostile file does
    for path in (saved(net, tmp_path / "zip"), saved(net, tmp_path / "old", legacy=True)):
        same(built(path, described(path).weights), frameworks.state())
    assert not (tmp_path / "canary").exists()


def test_a_module_that_holds_itself_or_itself_many_times_is_refused(tmp_path: Path) -> None:
    net = frameworks.seeded(0)
    net._modules["self"] = net
    with pytest.raises(UntrustedError, match="holds itself"):
        described(saved(net, tmp_path / "f"))
    below = torch.nn.Module()
    for _ in range(40):
        above = torch.nn.Module()
        above.a = above.b = below
        below = above
    with pytest.raises(UntrustedError, match="more than"):
        described(saved(below, tmp_path / "f"))


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
     b"<!DOCTYPE html><html></html>", b"PK\x03\x04" + bytes(50)],
    ids=["empty", "lfs", "html", "truncated"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_named_with_its_cure(data: bytes, tmp_path: Path) -> None:
    """Case 24."""
    (tmp_path / "f.pt").write_bytes(data)
    with pytest.raises((ContainerError, DamagedError), match=r"f\.pt' ") as caught:
        contents_of(tmp_path / "f.pt")
    assert caught.value.hint


@pytest.mark.parametrize("model", ["resnet50", None, 3, ["a"]])
def test_a_model_that_is_no_weights_is_not_taken_for_them(model: Any, tmp_path: Path) -> None:
    """Case 25."""
    found = described(saved({"model": model, "state_dict": frameworks.state()}, tmp_path / "f"))
    assert found.where == "state_dict"
    assert found.model == (model if isinstance(model, str) else None)


def test_a_big_endian_file_is_read_rightly(tmp_path: Path) -> None:
    """Case 38, as an s390x machine writes it."""
    stream = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
        b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
    )
    path = tmp_path / "f"
    entries = {"a/data.pkl": stream, "a/byteorder": b"big", "a/version": b"3\n"}
    path.write_bytes(zip_of({**entries, "a/data/0": struct.pack(">4f", *ABCD)}))
    assert tuple(built(path, described(path).weights)["w"].tolist()) == ABCD
    assert torch.equal(torch.load(path)["w"], torch.tensor(ABCD)), "as torch reads it"


ABCD = (0.0, 1.0, -2.5, 3e8)


def test_a_suffix_says_nothing(tmp_path: Path) -> None:
    for name in ("a.pth.tar", "b.safetensors", "c.zip", "d"):
        with opened(saved(frameworks.timm(), tmp_path / name)) as source:
            assert sniff(source) == "torch-zip"
    save_file(dict(frameworks.state()), tmp_path / "model.bin")
    with opened(tmp_path / "model.bin") as source:
        assert sniff(source) == "safetensors"
