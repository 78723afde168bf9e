"""What torch.save writes is indexed without torch, and every tensor equals torch.load's."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import pickle
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reading import as_torch, bits, contents_of, opened, saved, torch_zip

from registry import DamagedError, UntrustedError
from registry.containers import Array, Constant, Global, Opaque, TaggedDict, Tensor, read, walk

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex128",
    "complex64",
    "complex32",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]

either = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Colour(enum.Enum):
    RED = 1

    def __reduce_ex__(self, protocol: object) -> tuple[type[Colour], tuple[int]]:
        """As Python's own does; that of 3.11.2 calls getattr, which is refused by name."""
        return type(self), (self.value,)


class Custom:
    def __init__(self) -> None:
        self.weight = torch.ones(2)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@either
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, dtype: str, legacy: bool) -> None:
    kind = getattr(torch, dtype)
    raw = torch.arange(1, 6 * kind.itemsize + 1, dtype=torch.uint8)
    value = (raw % 2).bool()[:6] if dtype == "bool" else raw.view(kind)
    state = {"w": value.view(2, 3), "scalar": value[1], "none": value[:0]}
    path = saved(state, tmp_path / "f", legacy=legacy)
    root = contents_of(path).root
    try:
        oracle = torch.load(path, weights_only=True)
    except (
        AttributeError
    ):  # torch 2.13 writes untyped storages into legacy files, and can't load them
        assert legacy
        oracle = state
    for key, expected in oracle.items():
        assert root[key].dtype == dtype
        assert root[key].shape == tuple(expected.shape)
        assert bits(as_torch(root[key], path)) == bits(expected)


@either
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_strides_and_ties_are_kept(tmp_path: Path, legacy: bool, protocol: int) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "base": base,
        "t": base.t(),
        "row": base[2],
        "step": base[::2, 1::2],
        "tied": base,
        "wide": torch.ones(1).expand(3, 5),
        "empty": torch.empty(0, 3),
    }
    path = saved(state, tmp_path / "f", legacy=legacy, protocol=protocol)
    root = contents_of(path).root
    for key, expected in torch.load(path, weights_only=False).items():
        assert root[key].stride == tuple(expected.stride())
        assert root[key].offset == expected.storage_offset()
        assert bits(as_torch(root[key], path)) == bits(expected)
    assert root["t"].storage is root["base"].storage
    assert root["tied"] is root["base"]  # one node in the pickle, one value here
    assert root["wide"].storage is not root["base"].storage


@either
def test_lazy_conjugate_and_negative_bits_are_kept(tmp_path: Path, legacy: bool) -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    path = saved({"conj": z.conj(), "neg": z.clone().conj().imag}, tmp_path / "f", legacy=legacy)
    root = contents_of(path).root
    oracle = torch.load(path, weights_only=True)
    assert root["conj"].conj
    assert root["neg"].neg
    for key in root:
        assert bits(as_torch(root[key], path)) == bits(oracle[key])


@either
def test_parameters_and_buffers_keep_kind_gradient_and_attributes(
    tmp_path: Path, legacy: bool
) -> None:
    marked = torch.nn.Parameter(torch.ones(2))
    marked.rank = 3  # type: ignore[attr-defined]
    plain = torch.ones(3, requires_grad=True)
    noted = torch.zeros(1)
    noted.note = "x"  # type: ignore[attr-defined]
    values = [
        torch.nn.Parameter(torch.ones(1), requires_grad=False),
        marked,
        torch.nn.Buffer(torch.ones(4)),
        plain,
        noted,
        torch.nn.Parameter(torch.ones(2, dtype=torch.float8_e5m2), False),
    ]
    root = contents_of(saved(values, tmp_path / "f", legacy=legacy)).root
    assert [(t.kind, t.requires_grad) for t in root] == [
        ("parameter", False),
        ("parameter", True),
        ("buffer", False),
        ("tensor", True),
        ("tensor", False),
        ("parameter", False),
    ]
    assert root[1].attributes == {"rank": 3}
    assert root[4].attributes == {"note": "x"}
    assert root[0].attributes is None


@either
def test_tags_count_storages_and_not_tensors(tmp_path: Path, legacy: bool) -> None:
    base = torch.ones(4)
    contents = contents_of(saved([base, base[1:], torch.ones(2)], tmp_path / "f", legacy=legacy))
    assert contents.storage_tags == {"cpu": 2}
    assert [s.size_bytes for s in contents.storages] == sorted(
        (s.size_bytes for s in contents.storages), reverse=contents.storages[0].size_bytes == 16
    )
    assert all(
        a.offset < b.offset for a, b in zip(contents.storages, contents.storages[1:], strict=False)
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_cannot_be_built_are_named_and_marked(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    values = [
        torch.ones(2, 2, device="meta"),
        nested,
        torch.nn.parameter.UninitializedParameter(),
    ]
    root = contents_of(saved(values, tmp_path / "f")).root
    assert [type(value) for value in root] == [Opaque] * 3
    assert all(value.is_tensor for value in root)
    assert [value.name.rpartition(".")[2] for value in root] == [
        "_rebuild_meta_tensor_no_storage",
        "_rebuild_nested_tensor",
        "UninitializedParameter",
    ]


class Odd(torch.Tensor):
    """A tensor class that the reader can't know."""


def test_other_tensor_classes_are_records_and_never_dense(tmp_path: Path) -> None:
    (value,) = contents_of(saved([torch.ones(2).as_subclass(Odd)], tmp_path / "f")).root
    assert isinstance(value, Opaque)
    assert value.is_tensor
    assert value.name == f"{__name__}.Odd"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@either
def test_plain_values_are_values(tmp_path: Path, protocol: int, legacy: bool) -> None:
    plain: list[Any] = [
        None,
        True,
        False,
        0,
        -5,
        255,
        256,
        70_000,
        2**40,
        -(2**70),
        1.5,
        float("inf"),
        "text é \ud800",
        b"\x00\xff",
        b"",
        bytearray(b"ab"),
        1 + 2j,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [1, [2]],
        {"a": {1: 2, None: 3, (1, "b"): 4}},
        {1, 2},
        frozenset([3]),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        datetime.timedelta(days=1, microseconds=2),
        datetime.time(1, 2),
    ]
    path = saved(plain, tmp_path / "f", protocol=protocol, legacy=legacy)
    root = contents_of(path).root
    assert root == plain
    assert [type(v) for v in root] == [type(v) for v in plain]


def test_numpy_scalars_become_numbers_and_arrays_keep_their_bytes(tmp_path: Path) -> None:
    scalars = [np.float32(1.5), np.int64(-4), np.bool_(True), np.complex64(1 + 2j), np.float16(0.5)]
    arrays = [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.eye(3)),
        np.zeros((0, 2)),
        np.array(["a", "bc"]),
    ]
    for protocol in (2, 4, 5):
        root = contents_of(saved([scalars, arrays], tmp_path / "f", protocol=protocol)).root
        assert root[0] == [1.5, -4, True, 1 + 2j, 0.5]
        assert [type(v) for v in root[0]] == [float, int, bool, complex, float]
        for array, expected in zip(root[1], arrays, strict=True):
            assert isinstance(array, Array)
            flat = np.frombuffer(array.data, dtype=array.dtype)
            order = "F" if array.fortran_order else "C"
            assert np.array_equal(flat.reshape(array.shape, order=order), expected)
    (objects,) = contents_of(saved([np.array([{}, 1], dtype=object)], tmp_path / "f")).root
    assert objects.items == [{}, 1]


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_spellings_of_numpy_are_known(tmp_path: Path, core: str) -> None:
    data = pickle.dumps([np.float64(2.5), np.arange(3)], 2)
    for name in (b"numpy._core.", b"numpy.core."):
        data = data.replace(name, f"numpy.{core}.".encode())
    path = tmp_path / "f"
    path.write_bytes(torch_zip(data))
    root = contents_of(path).root
    assert root[0] == 2.5
    assert root[1].shape == (3,)


def test_dicts_of_other_classes_are_dicts_that_say_so(tmp_path: Path) -> None:
    state = collections.OrderedDict(b=1, a=2)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    values = [
        state,
        collections.Counter("aab"),
        collections.defaultdict(list, {"x": [1]}),
        argparse.Namespace(lr=0.1),
        types.SimpleNamespace(k="v"),
    ]
    for protocol in (2, 4):
        root = contents_of(saved(values, tmp_path / "f", protocol=protocol)).root
        assert all(type(v) is TaggedDict for v in root)
        assert list(root[0].items()) == [("b", 1), ("a", 2)]
        assert root[0].attributes == {"_metadata": {"": {"version": 1}}}
        assert root[1:] == [{"a": 2, "b": 1}, {"x": [1]}, {"lr": 0.1}, {"k": "v"}]
        assert [v.cls.rpartition(".")[2] for v in root] == [
            "OrderedDict",
            "Counter",
            "defaultdict",
            "Namespace",
            "SimpleNamespace",
        ]


def test_torchs_own_constants_are_named(tmp_path: Path) -> None:
    values = [
        torch.device("cuda", 3),
        torch.device("cpu"),
        torch.float16,
        torch.sparse_coo,
        torch.Size([2, 3]),
        torch.per_tensor_affine,
        torch.nn.Linear,
        pathlib.PurePosixPath("/a/b"),
    ]
    root = contents_of(saved(values, tmp_path / "f")).root
    assert root[:4] == [
        Constant("device", "cuda:3"),
        Constant("device", "cpu"),
        Constant("dtype", "float16"),
        Constant("layout", "sparse_coo"),
    ]
    assert root[4] == (2, 3)
    assert root[5] == Constant("qscheme", "per_tensor_affine")
    assert isinstance(root[6], Global)
    assert root[6].dotted == "torch.nn.modules.linear.Linear"
    assert root[7] == pathlib.PurePosixPath("/a/b")


def test_unknown_objects_are_records_with_their_tensors_inside(tmp_path: Path) -> None:
    contents = contents_of(saved({"it": Custom(), "colour": Colour.RED}, tmp_path / "f"))
    it = contents.root["it"]
    assert isinstance(it, Opaque)
    assert it.name == f"{__name__}.Custom"
    assert isinstance(it.state["weight"], Tensor)
    assert contents.root["colour"].args == (1,)
    assert contents.unsafe_globals == (f"{__name__}.Colour", f"{__name__}.Custom")


def test_unsafe_globals_are_those_that_weights_only_refuses(tmp_path: Path) -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    from registry.containers.torch_values import is_safe

    for dotted in _get_allowed_globals():
        module, _, name = dotted.rpartition(".")
        assert is_safe(module, name), dotted
    for module, name in (
        ("posix", "system"),
        ("builtins", "eval"),
        ("argparse", "Namespace"),
        ("numpy", "dtype"),
        ("torch._utils", "_rebuild_xla_tensor"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
    ):
        assert not is_safe(module, name)
        assert f"{module}.{name}" not in _get_allowed_globals()


@either
def test_a_whole_pickled_module_is_read(tmp_path: Path, legacy: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    contents = contents_of(saved(net, tmp_path / "f", legacy=legacy))
    assert contents.root.name == "torch.nn.modules.container.Sequential"
    assert sum(isinstance(node, Tensor) for node in walk(contents.root)) == 7


# --- old files ------------------------------------------------------------------------------------


def old_file(tree: bytes, keys: bytes, storages: bytes) -> bytes:
    """Return a legacy file around a hand-written pickle."""
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return head + tree + keys + storages


def python2_text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def tensor_v2(*, key: str, numel: int, view: bytes = b"N", offset: int, size: int) -> bytes:
    storage = (
        b"("
        + python2_text("storage")
        + b"ctorch\nFloatStorage\n"
        + python2_text(key)
        + python2_text("cuda:1")
        + b"K"
        + bytes([numel])
        + view
        + b"tQ"
    )
    place = b"K" + bytes([offset]) + b"K" + bytes([size]) + b"\x85K\x01\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89NtR"


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    pair = b"](" + python2_text("w") + tensor_v2(key="12", numel=3, offset=0, size=3) + b"e"
    tree = b"\x80\x02ccollections\nOrderedDict\n](" + pair + b"e\x85R."
    data = struct.pack("<q3f", 3, 1.0, 2.0, 3.0)
    path = tmp_path / "f"
    path.write_bytes(old_file(tree, b"\x80\x02](" + python2_text("12") + b"e.", data))
    contents = contents_of(path)
    assert list(contents.root) == ["w"]
    assert contents.storage_tags == {"cuda:1": 1}
    assert as_torch(contents.root["w"], path).tolist() == [1.0, 2.0, 3.0]
    assert torch.load(path, map_location="cpu")["w"].tolist() == [1.0, 2.0, 3.0]


def test_views_of_very_old_files_are_views_of_their_root(tmp_path: Path) -> None:
    view = b"(" + python2_text("v") + b"K\x02K\x02t"  # two elements from the third on
    tree = (
        b"\x80\x02]("
        + tensor_v2(key="7", numel=4, offset=1, size=3)
        + tensor_v2(key="7", numel=4, view=view, offset=1, size=1)
        + b"e."
    )
    path = tmp_path / "f"
    path.write_bytes(old_file(tree, b"\x80\x02]U\x017a.", struct.pack("<q4f", 4, 1, 2, 3, 4)))
    contents = contents_of(path)
    whole, part = contents.root
    assert part.storage is whole.storage
    assert part.offset == 3
    oracle = torch.load(path, map_location="cpu")
    assert as_torch(whole, path).tolist() == oracle[0].tolist() == [2.0, 3.0, 4.0]
    assert as_torch(part, path).tolist() == oracle[1].tolist() == [4.0]


def test_a_view_beyond_its_storage_is_damage(tmp_path: Path) -> None:
    for view, offset in ((b"(U\x01vK\x03K\x02t", 0), (b"(U\x01vK\x00K\x02t", 2)):
        tree = b"\x80\x02](" + tensor_v2(key="7", numel=4, view=view, offset=offset, size=1) + b"e."
        path = tmp_path / "f"
        path.write_bytes(old_file(tree, b"\x80\x02]U\x017a.", struct.pack("<q4f", 4, 1, 2, 3, 4)))
        with pytest.raises(DamagedError, match=r"beyond its storage|ends at byte"):
            contents_of(path)


def test_legacy_storages_are_all_there_or_the_file_is_damaged(tmp_path: Path) -> None:
    tree = b"\x80\x02" + tensor_v2(key="7", numel=2, offset=0, size=2) + b"."
    keys, data = b"\x80\x02]U\x017a.", struct.pack("<q2f", 2, 1, 2)
    path = tmp_path / "f"
    for wrong, message in (
        (old_file(tree, keys, data[:-1]), "cut short"),
        (old_file(tree, keys, data[:3]), "cut short"),
        (old_file(tree, keys, struct.pack("<q2f", 3, 1, 2)), "3 elements"),
        (old_file(tree, keys, struct.pack("<q2f", -2, 1, 2)), "-2 elements"),
        (old_file(tree, b"\x80\x02].", data), "other storages"),
        (old_file(tree, b"\x80\x02](U\x017U\x017e.", data), "other storages"),
        (old_file(tree, b"\x80\x02N.", data), "no list"),
        (old_file(tree, b"", b""), "cut short"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(DamagedError, match=message):
            contents_of(path)
    path.write_bytes(old_file(tree, keys, data) + b"more")
    assert contents_of(path).warnings == ("4 bytes follow the last storage",)


def test_a_legacy_pickle_longer_than_the_first_read_is_read(tmp_path: Path) -> None:
    path = saved({"text": "x" * (3 << 20), "w": torch.ones(2)}, tmp_path / "f", legacy=True)
    root = contents_of(path).root
    assert len(root["text"]) == 3 << 20
    assert as_torch(root["w"], path).tolist() == [1.0, 1.0]


def test_parameters_of_torch_0_3_are_read(tmp_path: Path) -> None:
    # REDUCE Parameter(data), then BUILD (requires_grad, volatile, hooks)
    tree = (
        b"\x80\x02ctorch.nn.parameter\nParameter\n"
        + tensor_v2(key="7", numel=2, offset=0, size=2)
        + b"\x85R(\x88\x89ccollections\nOrderedDict\n)Rtb."
    )
    path = tmp_path / "f"
    path.write_bytes(old_file(tree, b"\x80\x02]U\x017a.", struct.pack("<q2f", 2, 1, 2)))
    root = contents_of(path).root
    assert (root.kind, root.requires_grad, root.shape) == ("parameter", True, (2,))


# --- bounds and agreement -------------------------------------------------------------------------


def v2_pickle(
    place: str, *, pid: str = "('storage', FloatStorage, '0', 'cpu', 4)", more: str = ""
) -> bytes:
    """Return the pickle of one tensor, from the arguments as Python text."""
    text = place.split("|")
    out = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    out += _spell(pid) + b"Q" + b"".join(_spell(part) for part in text)
    return out + b"\x89N" + (_spell(more) if more else b"") + b"tR."


def _spell(text: str) -> bytes:
    value = eval(text, {"FloatStorage": torch.FloatStorage, "IntStorage": torch.IntStorage})
    return (
        pickle.dumps(value, 2)[2:-1]
        .replace(b"q\x00", b"")
        .replace(b"q\x01", b"")
        .replace(b"q\x02", b"")
        .replace(b"q\x03", b"")
        .replace(b"q\x04", b"")
    )


@pytest.mark.parametrize(
    "place",
    [
        "0|(5,)|(1,)",
        "1|(4,)|(1,)",
        "5|()|()",
        "0|(2, 3)|(3, 1)",
        f"{2**62}|(1,)|(1,)",
        f"0|({2**62},)|(0,)",
        f"0|(2,)|({2**62},)",
        f"0|({2**40}, {2**40})|(1, 1)",
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(torch_zip(v2_pickle(place), {"0": bytes(16)}))
    with pytest.raises((DamagedError, UntrustedError)):
        contents_of(path)


@pytest.mark.parametrize(
    "place",
    ["-1|(1,)|(1,)", "0|(-1,)|(1,)", "0|(2,)|(-1,)", "0|(2,)|(1, 1)", "0|(True,)|(1,)", "0|2|1"],
)
def test_sizes_that_make_no_sense_never_become_a_tensor(tmp_path: Path, place: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(torch_zip(v2_pickle(place), {"0": bytes(16)}))
    try:
        root = contents_of(path).root
    except DamagedError:
        return
    assert isinstance(root, Opaque)
    assert root.is_tensor


def test_unknown_rebuild_arguments_make_a_record_and_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "f"
    good = v2_pickle("0|(4,)|(1,)", more="{'conj': False}")
    path.write_bytes(torch_zip(good, {"0": bytes(16)}))
    assert isinstance(contents_of(path).root, Tensor)
    for more in ("{'flip': True}", "{'conj': 1}", "'conj'"):
        path.write_bytes(torch_zip(v2_pickle("0|(4,)|(1,)", more=more), {"0": bytes(16)}))
        root = contents_of(path).root
        assert isinstance(root, Opaque)
        assert root.is_tensor


@pytest.mark.parametrize("flags", [b"N}", b"K\x01N", b"\x89ca\nHook\n)R", b"\x89}K\x01Ns"])
def test_odd_gradients_and_hooks_make_a_record_and_no_tensor(tmp_path: Path, flags: bytes) -> None:
    path = tmp_path / "f"
    good = v2_pickle("0|(4,)|(1,)")
    path.write_bytes(torch_zip(good.replace(b"\x89NtR", flags + b"tR"), {"0": bytes(16)}))
    root = contents_of(path).root
    assert isinstance(root, Opaque)
    assert root.is_tensor


@pytest.mark.parametrize(
    ("pid", "message"),
    [
        ("('storage', FloatStorage, '1', 'cpu', 4)", "lacks the storage '1'"),
        ("('storage', FloatStorage, '../x', 'cpu', 4)", "lacks the storage"),
        ("('storage', FloatStorage, '0', 'cpu', 5)", "has 16 bytes"),
        ("('storage', FloatStorage, '0', 'cpu', -4)", "in a way that torch doesn't"),
        (f"('storage', FloatStorage, '0', 'cpu', {2**70})", "in a way that torch doesn't"),
        ("('storage', 'FloatStorage', '0', 'cpu', 4)", "in a way that torch doesn't"),
        ("('module', FloatStorage, '0', 'cpu', 4)", "in a way that torch doesn't"),
        ("'storage'", "in a way that torch doesn't"),
    ],
)
def test_a_storage_that_is_not_there_is_damage(tmp_path: Path, pid: str, message: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(torch_zip(v2_pickle("0|(4,)|(1,)", pid=pid), {"0": bytes(16)}))
    with pytest.raises(DamagedError, match=message):
        contents_of(path)


@pytest.mark.parametrize(
    "other", ["('storage', IntStorage, '0', 'cpu', 4)", "('storage', FloatStorage, '0', 'cuda', 4)"]
)
def test_one_storage_under_two_dtypes_or_devices_is_damage(tmp_path: Path, other: str) -> None:
    one = _spell("('storage', FloatStorage, '0', 'cpu', 4)") + b"Q"
    path = tmp_path / "f"
    path.write_bytes(torch_zip(b"\x80\x02](" + one + _spell(other) + b"Qe.", {"0": bytes(16)}))
    with pytest.raises(DamagedError, match="is named as float32 on cpu and as"):
        contents_of(path)


def test_tensors_larger_than_their_bytes_are_capped(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(torch_zip(v2_pickle(f"0|({2**34},)|(0,)"), {"0": bytes(16)}))
    with pytest.raises(UntrustedError, match="4 GiB beyond"):
        contents_of(path)
    wide = saved(torch.ones(1).expand(1000, 1000), tmp_path / "wide")
    assert contents_of(wide).root.shape == (1000, 1000)


# --- the reading itself ---------------------------------------------------------------------------


@either
def test_a_file_is_indexed_in_a_few_reads(tmp_path: Path, legacy: bool) -> None:
    path = saved(
        {f"layer{i}.weight": torch.ones(10) for i in range(600)}, tmp_path / "f", legacy=legacy
    )
    with opened(path) as source:
        read(source, "f")
        assert source.reads <= 8


def test_no_tensor_bytes_are_read(tmp_path: Path) -> None:
    path = saved({str(i): torch.zeros(1 << 20) for i in range(8)}, tmp_path / "f")
    with opened(path) as source:
        read(source, "f")
        assert source.bytes_read < 1 << 19
        assert source.size > 1 << 25


def test_reading_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = saved({"w": torch.ones(2), "a": np.ones(2), "s": np.float32(1)}, tmp_path / "f")
    code = (
        "import os, sys\n"
        "from registry.containers import FileSource, describe, read\n"
        f"source = FileSource(os.open({str(path)!r}, os.O_RDONLY), 'f')\n"
        "read(source, 'f')\n"
        "print(sorted({'torch', 'numpy', 'pickle', 'sqlalchemy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


def test_big_endian_files_say_so(tmp_path: Path) -> None:
    from reading import zip_of

    path = tmp_path / "f"
    for order in ("little", "big"):
        entries = {"a/data.pkl": b"\x80\x02}.", "a/byteorder": order.encode()}
        path.write_bytes(zip_of(entries))
        assert contents_of(path).byteorder == order
    path.write_bytes(zip_of({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"middle"}))
    with pytest.raises(Exception, match="unknown byte order b'middle'"):
        contents_of(path)
