"""Tensors and values from a file without its code: torch.load is the oracle, never the engine."""

from __future__ import annotations

import argparse
import collections
import gc
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensor_files import Bytes, builder_of, torch_loaded, torch_saved
from torch import nn

from registry.containers import Contents, Storage, Tensor
from registry.containers import read as read_container
from registry.errors import ContainerError, DamagedError, UntrustedError
from registry.tensors.building import Builder, dtype_named
from registry.tensors.checks import same_bits

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64, torch.complex128, torch.complex32,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
]  # fmt: skip


def tree_of(data: bytes, **how: Any) -> Any:
    builder, contents = builder_of(data, **how)
    return builder.tree(contents.root)


_NEW = ("float8", "complex32", "uint16", "uint32", "uint64")
_ZIP = [(dtype, False) for dtype in DTYPES]
# torch can write the newer dtypes into a legacy file, and can't read them there (2.13)
_LEGACY = [(dtype, True) for dtype in DTYPES if not any(new in str(dtype) for new in _NEW)]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(("dtype", "legacy"), [*_ZIP, *_LEGACY], ids=str)
def test_every_dtype_shape_and_stride_equals_torch_load(dtype: torch.dtype, legacy: bool) -> None:
    base = torch.randint(0, 2, (24 * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    tree = {
        "flat": base, "matrix": base.view(4, 6), "transposed": base.view(4, 6).t(),
        "slice": base.view(4, 6)[1:3, ::2], "scalar": base[7], "none": base[:0],
        "wide": base[:1].expand(5), "3d": base.view(2, 3, 4).permute(2, 0, 1),
    }  # fmt: skip
    data = torch_saved(tree, _use_new_zipfile_serialization=not legacy)

    ours, theirs = tree_of(data), torch_loaded(data)

    for key, tensor in theirs.items():
        assert same_bits(ours[key], tensor), key
        assert ours[key].stride() == tensor.stride()
        assert ours[key].dtype == tensor.dtype
    storages = {t.untyped_storage().data_ptr() for k, t in ours.items() if k != "none"}
    assert len(storages) == 1  # one storage in the file is one in memory


def test_lazy_bits_parameters_and_requires_grad_are_honoured() -> None:
    z = torch.randn(4, dtype=torch.complex64)
    tree = {
        "conj": z.conj(), "neg": z.clone().conj().imag, "both": z.clone().conj()[1:].imag,
        "parameter": nn.Parameter(z), "frozen": nn.Parameter(z, requires_grad=False),
        "grad": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    data = torch_saved(tree)

    ours, theirs = tree_of(data), torch_loaded(data)

    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
        assert type(ours[key]) is type(tensor)
        assert ours[key].requires_grad == tensor.requires_grad
        assert (ours[key].is_conj(), ours[key].is_neg()) == (tensor.is_conj(), tensor.is_neg())


def test_attributes_of_a_parameter_come_back_and_never_hide_torchs_own() -> None:
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    good.no_decay = True  # type: ignore[attr-defined]
    bad.__dict__["detach"] = 5
    data = torch_saved({"w": good})
    assert tree_of(data)["w"].no_decay is True
    with pytest.raises(UntrustedError, match="'detach'"):
        tree_of(torch_saved({"w": bad}))


def test_nothing_is_copied_out_of_a_private_mapping(tmp_path: Path) -> None:
    data = torch_saved({"a": torch.arange(1000.0), "b": torch.arange(10)})
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    contents = read_container(Bytes(data), "f.pt")
    start = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()

    tensor = Builder(contents, mapping).tree(contents.root)["a"]

    assert start <= tensor.data_ptr() < start + len(data)
    copied = Builder(contents, mapping, copy=True).tree(contents.root)["a"]
    assert not start <= copied.data_ptr() < start + len(data)
    tensor.add_(1)
    assert path.read_bytes() == data  # private: a write never reaches the file


def test_closing_the_mapping_under_a_living_tensor_is_impossible(tmp_path: Path) -> None:
    data = torch_saved({"a": torch.arange(1000.0)})
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    contents = read_container(Bytes(data), "f.pt")
    tensor = Builder(contents, mapping).tree(contents.root)["a"]
    gc.collect()  # the builder is gone; the tensor alone keeps the mapping

    with pytest.raises(BufferError):
        mapping.close()
    assert tensor.sum() == 499_500


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_misaligned_storages_are_copied_and_equal(shift: int) -> None:
    values = torch.arange(8, dtype=torch.float64)
    data = b"\0" * shift + bytes(struct.pack("<8d", *values.tolist()))
    storage = Storage("0", "float64", "cpu", shift, 64)
    contents = Contents("torch-zip", {}, (storage,), "little", (), len(data))
    found = Tensor(storage, "float64", (8,), (1,))

    tensor = Builder(contents, bytearray(data)).tensor(found)

    assert torch.equal(tensor, values)
    assert tensor.data_ptr() % 8 == 0


@pytest.mark.parametrize(
    ("dtype", "form", "values"),
    [
        ("float32", "4f", [1.5, -2, 3, 4]), ("int16", "4h", [1, 2, 3, -4]),
        ("int64", "2q", [1, -2]), ("uint8", "4B", [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_big_endian_storages_are_swapped(dtype: str, form: str, values: list[float]) -> None:
    data = struct.pack(">" + form, *values)
    storage = Storage("0", dtype, "cpu", 0, len(data))
    contents = Contents("torch-zip", {}, (storage,), "big", (), len(data))
    original = bytearray(data)

    tensor = Builder(contents, original).tensor(Tensor(storage, dtype, (len(values),), (1,)))

    assert tensor.tolist() == values
    assert original == data


def test_complex_numbers_are_swapped_by_their_halves() -> None:
    data = struct.pack(">4f", 1, 2, 3, 4)
    storage = Storage("0", "complex64", "cpu", 0, 16)
    contents = Contents("torch-zip", {}, (storage,), "big", (), 16)
    tensor = Builder(contents, bytearray(data)).tensor(Tensor(storage, "complex64", (2,), (1,)))
    assert tensor.tolist() == [1 + 2j, 3 + 4j]


def test_a_storage_beyond_the_mapping_is_damage() -> None:
    storage = Storage("0", "float32", "cpu", 8, 16)
    contents = Contents("torch-zip", {}, (storage,), "little", (), 64)
    with pytest.raises(DamagedError, match="ends at byte 24 of a file of 16"):
        Builder(contents, bytearray(16)).tensor(Tensor(storage, "float32", (4,), (1,)))


def test_dtypes_that_no_dense_tensor_has_are_refused_by_name() -> None:
    assert dtype_named("bfloat16") is torch.bfloat16
    for name in ("qint8", "load", "nonsense", "bits8"):
        with pytest.raises(ContainerError, match=name):
            dtype_named(name)


# --- values ---------------------------------------------------------------------------------------


def test_plain_values_come_back_as_torch_load_gives_them() -> None:
    ordered = collections.OrderedDict(a=1)
    ordered._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    tree = {
        "n": [1, 2.5, True, None, "x", b"\xff", 3j, 2**80], "t": (1, (2, [3])), 7: {1, 2},
        "o": ordered, "c": collections.Counter({3: 2}), "size": torch.Size([1, 2]),
        "dtype": torch.float16, "device": torch.device("cuda:1"), "inf": float("inf"),
    }  # fmt: skip
    data = torch_saved(tree)

    ours, theirs = tree_of(data), torch_loaded(data)

    assert ours == theirs == tree
    for key, value in theirs.items():
        if key != "size":
            assert type(ours[key]) is type(value)
    assert ours["o"]._metadata == ordered._metadata  # type: ignore[attr-defined]
    assert ours["dtype"] is torch.float16


def test_arrays_and_namespaces_of_a_foreign_file_come_back() -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    tree = {"a": array, "f": np.asfortranarray(array), "args": argparse.Namespace(lr=0.1)}

    ours = tree_of(torch_saved(tree))

    assert (ours["a"] == array).all()
    assert ours["a"].dtype == array.dtype
    assert (ours["f"] == array).all()
    assert ours["args"] == tree["args"]


def test_shared_values_stay_shared_and_cycles_close() -> None:
    shared = [1]
    cycle: dict[str, Any] = {"s": shared, "also": (shared,)}
    cycle["self"] = cycle

    ours = tree_of(torch_saved(cycle))

    assert ours["s"] is ours["also"][0]
    assert ours["self"] is ours


def test_owned_tensors_share_nothing_with_the_file() -> None:
    data = torch_saved({"a": torch.ones(3), "p": nn.Parameter(torch.ones(2))})
    builder, contents = builder_of(data)
    mapped, owned = builder.tree(contents.root), builder.tree(contents.root, own=True)
    owned["a"].zero_()
    assert mapped["a"].tolist() == [1, 1, 1]
    assert isinstance(owned["p"], nn.Parameter)


# --- trust ----------------------------------------------------------------------------------------

CALLS: list[object] = []


class Config:
    """A class of the training script, as people put into checkpoints."""

    def __init__(self, lr: float = 0.0) -> None:
        CALLS.append(lr)
        self.lr = lr


class Evil:
    def __reduce__(self) -> Any:
        return CALLS.append, ("evil",)


def test_an_object_is_refused_by_name_and_its_code_does_not_run() -> None:
    data = torch_saved({"config": Config(0.5), "w": torch.ones(1)})
    CALLS.clear()
    builder, contents = builder_of(data)
    with pytest.raises(UntrustedError, match=r"test_tensors_building\.Config") as caught:
        builder.tree(contents.root)
    assert "trust=[test_tensors_building.Config]" in str(caught.value.hint)
    assert CALLS == []
    assert builder.tree(contents.root["w"]).tolist() == [1]  # the weights load without it


def test_an_object_of_a_trusted_class_comes_back_and_no_other() -> None:
    data = torch_saved({"config": Config(0.5)})
    config = tree_of(data, trust=[Config])["config"]
    assert type(config) is Config
    assert config.lr == 0.5
    with pytest.raises(UntrustedError):
        tree_of(data, trust=[Evil])


def test_functions_are_never_trusted() -> None:
    data = torch_saved({"x": Evil()})
    CALLS.clear()
    with pytest.raises(TypeError, match="takes classes"):
        builder_of(data, trust=[CALLS.append])
    with pytest.raises(UntrustedError):
        tree_of(data, trust=[Evil, list])
    assert CALLS == []
