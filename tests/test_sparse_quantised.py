"""Sparse and quantised tensors: as torch.load gives them, into their like, or refused."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps.seeds import torch_zips, zip_parts
from tensor_files import builder_of, torch_loaded, torch_saved
from torch import nn

from registry import CkregError, ContainerError, DamagedError, RefusedLoadError, Registry
from registry.containers import Opaque, Quantised, Sparse
from registry.tensors.checks import same_bits
from registry.tensors.views import form_of


@pytest.fixture(autouse=True)
def _torch_warns() -> Iterator[None]:
    """Keep back what torch says when a test makes such tensors; ours are made outside of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse .* beta", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant", UserWarning)
        warnings.filterwarnings("ignore", ".*quant", UserWarning)
        warnings.filterwarnings("ignore", "TypedStorage", UserWarning)  # torch.load's own (2.13)
        yield


def matrix() -> torch.Tensor:
    torch.manual_seed(0)
    full = torch.randn(4, 6)
    full[full < 0.3] = 0
    return full


def per_tensor(dtype: torch.dtype = torch.quint8) -> torch.Tensor:
    return torch.quantize_per_tensor(matrix(), 0.03125, 3, dtype)


def per_channel(axis: int = 0) -> torch.Tensor:
    scales = torch.rand(matrix().shape[axis]).double() + 0.1
    zeros = torch.arange(matrix().shape[axis])
    return torch.quantize_per_channel(matrix(), scales, zeros, axis, torch.qint8)


MAKERS: dict[str, Callable[[], torch.Tensor]] = {
    "coo": lambda: matrix().to_sparse(),
    "coo of doubles": lambda: matrix().double().to_sparse(),
    "coo, complex": lambda: (matrix() + 1j * matrix()).to_sparse(),
    "coo, some dense": lambda: matrix().view(4, 3, 2).to_sparse(2),
    "coo, not coalesced": lambda: torch.sparse_coo_tensor([[1, 1, 0]], [1.0, 2.0, 3.0], (3,)),
    "coo, none": lambda: torch.sparse_coo_tensor(size=(2, 3)),
    "csr": lambda: matrix().to_sparse_csr(),
    "csr in batches": lambda: torch.stack([matrix().bool().float()] * 2).to_sparse_csr(),
    "csr, 32 bits": lambda: torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32),
        torch.tensor([1, 2]), (2, 2)),
    "csc": lambda: matrix().to_sparse_csc(),
    "bsr": lambda: matrix().to_sparse_bsr((2, 3)),
    "bsc": lambda: matrix().to_sparse_bsc((2, 2)),
    "parameter": lambda: nn.Parameter(matrix().to_sparse()),
    "buffer": lambda: nn.Buffer(matrix().to_sparse_csr()),
    "quint8": per_tensor,
    "qint8": lambda: per_tensor(torch.qint8),
    "qint32": lambda: per_tensor(torch.qint32),
    "quantised, turned": lambda: per_tensor()[1:3].t(),
    "per channel": per_channel,
    "per channel, second": lambda: per_channel(1),
    "per channel, one dimension": lambda: torch.quantize_per_channel(
        torch.ones(3), torch.tensor([0.5, 1, 2]), torch.tensor([1, 0, 1]), 0, torch.quint8),
    "quantised parameter": lambda: nn.Parameter(per_tensor(), requires_grad=False),
}  # fmt: skip
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@BOTH
@pytest.mark.parametrize("name", MAKERS)
def test_a_sparse_or_quantised_tensor_is_what_torch_load_makes_of_it(
    name: str, legacy: bool
) -> None:
    data = torch_saved({"t": MAKERS[name]()}, _use_new_zipfile_serialization=not legacy)
    builder, contents = builder_of(data)
    assert isinstance(contents.root["t"], Sparse | Quantised)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ours says nothing
        ours = builder.tree(contents.root)["t"]

    theirs = torch_loaded(data)["t"]
    assert same_bits(ours.detach(), theirs.detach())
    assert type(ours) is type(theirs)
    assert (ours.requires_grad, form_of(ours)) == (theirs.requires_grad, form_of(theirs))
    assert ours.layout != torch.sparse_coo or ours.is_coalesced() == theirs.is_coalesced()
    assert same_bits(builder.tree(contents.root, own=True)["t"].detach(), theirs.detach())


def test_same_bits_tells_sparse_and_quantised_tensors_apart() -> None:
    found = {name: make().detach() for name, make in MAKERS.items() if "parameter" not in name}
    for name, one in found.items():
        same = [other for other in found if same_bits(one, found[other])]
        assert same in ([name], ["csr", "buffer"]), name
    other_scale = torch._make_per_tensor_quantized_tensor(per_tensor().int_repr(), 0.5, 3)
    assert not same_bits(per_tensor(), other_scale)


# --- invariants -----------------------------------------------------------------------------------


def rebuilt(function: str, arguments: tuple[Any, ...]) -> bytes:
    """Return a file whose tensor is made by one of torch's functions, of any arguments."""
    import torch._utils

    class Made:
        def __reduce__(self) -> Any:
            return getattr(torch._utils, function), arguments

    return torch_saved({"t": Made()})


def read_and_built(data: bytes) -> torch.Tensor:
    builder, contents = builder_of(data)
    made: torch.Tensor = builder.tree(contents.root)["t"]
    return made


def coo(indices: Any, values: Any, size: Any, coalesced: Any = False) -> bytes:
    parts = (torch.tensor(indices), torch.tensor(values), size, coalesced)
    return rebuilt("_rebuild_sparse_tensor", (torch.sparse_coo, parts))


def csr(crow: Any, col: Any, values: Any, size: Any, layout: Any = torch.sparse_csr) -> bytes:
    parts = (torch.tensor(crow), torch.tensor(col), torch.tensor(values), size)
    return rebuilt("_rebuild_sparse_tensor", (layout, parts))


def quantised(scheme: Any, *parameters: Any, size: Any = (2, 2), of: Any = None) -> bytes:
    source = per_tensor() if of is None else of
    storage = torch.storage.TypedStorage(wrap_storage=source.untyped_storage(), dtype=source.dtype)
    hooks: dict[str, Any] = {}
    return rebuilt(
        "_rebuild_qtensor", (storage, 0, size, (2, 1), (scheme, *parameters), False, hooks)
    )


AFFINE, CHANNEL = torch.per_tensor_affine, torch.per_channel_affine
TWO, ZEROS = torch.tensor([0.5, 0.5]).double(), torch.tensor([0, 0])


def test_the_hand_made_files_are_sound_but_for_what_is_changed_in_them() -> None:
    assert read_and_built(coo([[0, 2]], [1.0, 2.0], (3,))).to_dense().tolist() == [1, 0, 2]
    assert read_and_built(csr([0, 1, 2], [1, 0], [1.0, 2.0], (2, 2)))[0, 1] == 1
    assert read_and_built(quantised(AFFINE, 0.5, 3)).q_scale() == 0.5
    assert read_and_built(quantised(CHANNEL, TWO, ZEROS, 1)).q_per_channel_axis() == 1


DAMAGED = {
    "an index beyond": lambda: coo([[0, 9]], [1.0, 2.0], (3,)),
    "an index below": lambda: coo([[0, -1]], [1.0, 2.0], (3,)),
    "coalesced, out of order": lambda: coo([[1, 0]], [1.0, 2.0], (3,), True),
    "more values than indices": lambda: coo([[0, 1]], [1.0], (3,)),
    "indices of no dimension": lambda: coo([0, 1], [1.0, 2.0], (3,)),
    "indices of floats": lambda: coo([[0.0, 1.0]], [1.0, 2.0], (3,)),
    "more indices than sizes": lambda: coo([[0], [0]], [1.0], (3,)),
    "values of another shape": lambda: coo([[0]], [[1.0, 2.0]], (3, 3)),
    "more elements than 64 bits count": lambda: coo([[0], [0]], [1.0], (2**40, 2**40)),
    "rows that end beyond": lambda: csr([0, 1, 3], [1, 0], [1.0, 2.0], (2, 2)),
    "rows that go back": lambda: csr([0, 2, 1], [1, 0], [1.0, 2.0], (2, 2)),
    "a column beyond": lambda: csr([0, 1, 2], [7, 0], [1.0, 2.0], (2, 2)),
    "columns out of order": lambda: csr([0, 2, 2], [1, 0], [1.0, 2.0], (2, 2)),
    "rows too few": lambda: csr([0, 2], [1, 0], [1.0, 2.0], (2, 2)),
    "fewer columns than values": lambda: csr([0, 1, 2], [1], [1.0, 2.0], (2, 2)),
    "blocks that don't fit": lambda: csr([0, 1], [0], [[[1.0, 2.0]]], (3, 3), torch.sparse_bsr),
    "a scale of zero": lambda: quantised(AFFINE, 0.0, 0),
    "a scale of NaN": lambda: quantised(AFFINE, float("nan"), 0),
    "a scale of infinity": lambda: quantised(AFFINE, float("inf"), 0),
    "a zero point beyond": lambda: quantised(AFFINE, 0.5, 256),
    "a zero point below": lambda: quantised(AFFINE, 0.5, -1),
    "elements beyond": lambda: quantised(AFFINE, 0.5, 0, size=(200, 2)),
    "an axis beyond": lambda: quantised(CHANNEL, TWO, ZEROS, 2),
    "scales too few": lambda: quantised(CHANNEL, TWO[:1], ZEROS, 0),
    "zero points too few": lambda: quantised(CHANNEL, TWO, ZEROS[:1], 0),
    "one scale of zero": lambda: quantised(CHANNEL, TWO * torch.tensor([1.0, 0.0]), ZEROS, 0),
    "one zero point beyond": lambda: quantised(CHANNEL, TWO, torch.tensor([0, 300]), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_broken_invariant_is_damage(name: str) -> None:
    with pytest.raises(DamagedError):
        read_and_built(DAMAGED[name]())


UNKNOWN = {
    "a layout without a form": lambda: rebuilt(
        "_rebuild_sparse_tensor", (torch.strided, (ZEROS[None], TWO, (2,), True))),
    "coalesced, of no kind": lambda: coo([[0]], [1.0], (3,), 1),
    "sizes that are no numbers": lambda: coo([[0]], [1.0], ("3",)),
    "a part that is no tensor": lambda: rebuilt(
        "_rebuild_sparse_tensor", (torch.sparse_coo, ([[0]], TWO[:1], (3,), True))),
    "a sparse part": lambda: rebuilt(
        "_rebuild_sparse_tensor", (torch.sparse_coo, (ZEROS[None].to_sparse(), TWO, (2,), True))),
    "a scale that is no float": lambda: quantised(AFFINE, "1", 0),
    "a zero point that is no int": lambda: quantised(AFFINE, 0.5, 0.0),
    "an axis that is no int": lambda: quantised(CHANNEL, TWO, ZEROS, True),
    "scales of floats": lambda: quantised(CHANNEL, TWO.float(), ZEROS, 0),
    "a symmetric scheme": lambda: quantised(torch.per_tensor_symmetric, 0.5, 0),
    "integers of no quantised dtype": lambda: quantised(AFFINE, 0.5, 0, of=torch.ones(4)),
    "quantised floats": lambda: torch_saved({"t": torch.quantize_per_channel(
        torch.ones(2, 2), TWO.float(), TWO.float(), 0, torch.quint8)}),
    "4 bits": lambda: torch_saved({"t": torch.quantize_per_channel(
        torch.ones(2, 2), TWO.float(), TWO.float(), 0, torch.quint4x2)}),
    "nested": lambda: torch_saved({"t": torch.nested.nested_tensor([TWO, TWO[:1]])}),
    "meta": lambda: torch_saved({"t": torch.ones(2, device="meta")}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    builder, contents = builder_of(UNKNOWN[name]())
    assert isinstance(contents.root["t"], Opaque)
    assert contents.root["t"].is_tensor
    with pytest.raises(CkregError, match="_rebuild_"):
        builder.tree(contents.root)


def test_a_parameter_of_integers_that_requires_a_gradient_is_damage() -> None:
    class Made:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_parameter, (ZEROS, True, {})

    with pytest.raises(DamagedError, match="int64 tensor in the file requires a gradient"):
        read_and_built(torch_saved({"t": Made()}))


# --- loads ----------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A net with a tensor of each sort."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)
        self.coo = nn.Parameter((matrix() * scale).to_sparse())
        self.register_buffer("csr", (matrix() * scale).to_sparse_csr())
        self.register_buffer("q", torch.quantize_per_tensor(matrix(), scale, 0, torch.quint8))
        scales = torch.full((4,), scale).double()
        zeros = torch.zeros(4).long()
        channel = torch.quantize_per_channel(matrix(), scales, zeros, 0, torch.qint8)
        self.register_buffer("channel", channel)


def equal(net: nn.Module, other: nn.Module) -> bool:
    here, there = net.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(same_bits(here[k], there[k]) for k in here)


@pytest.mark.parametrize("how", ["save", "push"])
def test_a_net_of_every_sort_is_saved_and_loaded_exactly(
    reg: Registry, tmp_path: Path, how: str
) -> None:
    net, other = Mixed(), Mixed(0.5)
    if how == "save":
        checkpoint = reg.save(net, model="m")
    else:
        torch.save(net.state_dict(), tmp_path / "f.pt")
        checkpoint = reg.push(tmp_path / "f.pt", model="m")
    assert not equal(other, net)
    parameter = other.coo
    reg.load(checkpoint, into=other)
    assert equal(other, net)
    assert other.coo is parameter
    state = reg.load(checkpoint).state_dict
    assert state is not None
    assert all(same_bits(state[key], value) for key, value in net.state_dict().items())
    assert checkpoint.parameters is None or checkpoint.parameters == 6 + 24
    assert "sparse" not in str(reg.plan(checkpoint, into=other))


def test_a_sparse_net_on_meta_is_filled(reg: Registry) -> None:
    class Holder(nn.Module):
        def __init__(self, device: str) -> None:
            super().__init__()
            values = matrix().to_sparse()
            if device == "meta":
                values = torch.empty(values.shape, layout=torch.sparse_coo, device="meta")
            self.coo = nn.Parameter(values)

    net, other = Holder("cpu"), Holder("meta")
    checkpoint = reg.save(net, model="m")
    reg.load(checkpoint, into=other)
    assert equal(other, net)


DIFFER: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor], str]] = {
    "sparse into dense": (
        lambda: matrix().to_sparse(), matrix, "a sparse_coo tensor of float32 in the file, a dense"
    ),
    "dense into sparse": (matrix, lambda: matrix().to_sparse(), "a dense tensor of float32"),
    "coo into csr": (lambda: matrix().to_sparse(), lambda: matrix().to_sparse_csr(), "sparse_csr"),
    "quantised into dense": (per_tensor, matrix, r"state\['w'\]\.dequantize\(\)"),
    "dense into quantised": (matrix, per_tensor, "a per_tensor_affine tensor of quint8 in the net"),
    "per channel into per tensor": (
        per_channel, lambda: per_tensor(torch.qint8), "per_channel_affine tensor of qint8 in the f"
    ),
    "quantised into its other dtype": (per_tensor, lambda: per_tensor(torch.qint8), "only dense"),
    "sparse into another dtype": (
        lambda: matrix().to_sparse(), lambda: matrix().double().to_sparse(), "only dense tensors"
    ),
    "csr into fewer values": (
        lambda: matrix().to_sparse_csr(), lambda: torch.eye(4, 6).to_sparse_csr(), "assign=True"
    ),
}  # fmt: skip


class One(nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("w", value)
        self.register_buffer("beside", torch.zeros(2))


@pytest.mark.parametrize("name", DIFFER)
def test_another_sort_is_refused_and_the_net_stays(reg: Registry, name: str) -> None:
    there, here, message = DIFFER[name]
    net, other = One(here()), One(there())
    other.beside += 1
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(RefusedLoadError) as caught:
        reg.load(
            reg.save(other, model="m"), into=net, **({} if "csr" in name else {"cast": "narrow"})
        )
    text = f"{caught.value.message} {caught.value.hint}"
    assert re.search(message, text), text
    assert all(same_bits(net.state_dict()[key], value) for key, value in before.items())


def test_a_load_that_fails_gives_sparse_and_quantised_tensors_back(reg: Registry) -> None:
    class Fails(Mixed):
        def _load_from_state_dict(self, *args: Any, **how: Any) -> None:
            super()._load_from_state_dict(*args, **how)
            raise RuntimeError("no")

    checkpoint = reg.save(Mixed(), model="m")
    net, same = Fails(0.5), Fails(0.5)
    same.load_state_dict = lambda *_: None  # type: ignore[method-assign,assignment]
    same.dense.weight.data.copy_(net.dense.weight)
    same.dense.bias.data.copy_(net.dense.bias)
    with pytest.raises(RefusedLoadError, match="no"):
        reg.load(checkpoint, into=net)
    assert equal(net, same)


def test_a_quantised_layer_comes_back_whole(reg: Registry, tmp_path: Path) -> None:
    """Its weight is a tuple under `_packed_params`, which is no tensor of the state dict."""
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]

    def dynamic(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})

    net, other = dynamic(0), dynamic(1)
    torch.save(net.state_dict(), tmp_path / "f.pt")
    checkpoint = reg.push(tmp_path / "f.pt", model="m")
    data = torch.randn(3, 4)
    assert not torch.equal(net(data), other(data))
    reg.load(checkpoint, into=other)
    assert torch.equal(net(data), other(data))


# --- pull, diff -----------------------------------------------------------------------------------


def test_an_adapted_pull_keeps_every_sort(reg: Registry, tmp_path: Path) -> None:
    net = Mixed()
    checkpoint = reg.save(nn.DataParallel(net), model="m")
    path = reg.pull(checkpoint, tmp_path / "out.pt", keys="module.", device="cpu")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(same_bits(state[f"module.{k}"], v) for k, v in net.state_dict().items())


def test_a_device_tag_is_written_on_every_part(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.save(Mixed(), model="m")
    path = reg.pull(checkpoint, tmp_path / "out.pt", device="cuda:3", only="weights")
    assert reg.push(path, model="m").topology.storage_tags == {"cuda:3": 11}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        assert b"cpu" not in archive.read(names[0])


def test_safetensors_refuses_what_it_cannot_hold_by_name(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.save(One(matrix().to_sparse()), model="m")
    with pytest.raises(ContainerError, match="'w' is a sparse_coo tensor"):
        reg.pull(checkpoint, tmp_path / "out.safetensors", format="safetensors")
    with pytest.raises(ContainerError, match="'w' is a sparse_coo tensor"):
        reg.export(checkpoint, tmp_path / "folder")
    other = reg.save(One(per_tensor()), model="m")
    with pytest.raises(ContainerError, match="'w' is a per_tensor_affine tensor"):
        reg.pull(other, tmp_path / "out.safetensors", format="safetensors")


@pytest.mark.parametrize("make", [lambda: matrix().to_sparse(), per_tensor], ids=["coo", "q"])
def test_a_diff_sees_what_is_equal_and_says_what_is_not_compared(
    reg: Registry, make: Callable[[], torch.Tensor]
) -> None:
    a, b = reg.save(One(make()), model="m"), reg.save(One(make()), model="m")
    found = {t.key: t for t in reg.diff(a, b).tensors}
    assert found["w"].numbers is not None
    assert found["w"].numbers.equal
    c = reg.save(One(per_channel() if make is per_tensor else matrix().double().to_sparse()),
                 model="m")  # fmt: skip
    (differs,) = [t for t in reg.diff(a, c).tensors if t.key == "w"]
    assert "only dense ones are compared" in str(differs.reason)


def test_a_mutant_seed_holds_such_tensors() -> None:
    """The sweep over torch zips mutates their arguments too."""
    found = b"".join(zip_parts(data)["archive/data.pkl"] for data in torch_zips())
    assert b"_rebuild_sparse_tensor" in found
    assert b"_rebuild_qtensor" in found


@pytest.mark.parametrize("part", range(3))
def test_every_part_is_verified_before_it_is_used(reg: Registry, tmp_path: Path, part: int) -> None:
    """A damaged byte of the row starts, the columns or the values."""
    checkpoint = reg.save(One(matrix().to_sparse_csr()), model="m")
    data = reg.pull(checkpoint, tmp_path / "f.pt").read_bytes()
    _, contents = builder_of(data)
    found = contents.root["state_dict"]["w"]
    (blob,) = (p for p in Path(reg.location).glob("blobs/*/*") if p.stat().st_size == len(data))
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(found.parts[part].storage.offset)
        file.write(bytes([data[found.parts[part].storage.offset] ^ 1]))
    with pytest.raises(DamagedError):
        reg.load(checkpoint, into=One(matrix().to_sparse_csr()))
    with pytest.raises(DamagedError):
        reg.load(checkpoint)
