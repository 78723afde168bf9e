"""What save writes: plain data, canonical keys, equal bytes for equal state, small views."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import WRAPS, seeded
from tensor_files import builder_of, same, saved, state_of, torch_loaded, written
from torch import nn

from registry.errors import NoSpaceError, RefusedLoadError
from registry.tensors import writing
from registry.tensors.observe import observe
from registry.tensors.plain import Plainer

# torch warns of itself when torch.compile is first imported (2.13)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


def plain(value: object) -> Any:
    """Return the plain form of a value, as `extra` has it."""
    return Plainer()(value, "extra")


# --- plain values ---------------------------------------------------------------------------------


def test_numbers_arrays_namespaces_and_paths_become_plain() -> None:
    made = plain(
        {
            "f": np.float64(0.5), "h": np.float16(0.5), "i": np.int32(3), "b": np.bool_(True),
            "s": np.str_("x"), "array": np.arange(3), "args": argparse.Namespace(lr=0.1, n=[1]),
            "path": pathlib.Path("a/b"), "size": torch.Size([2, 3]), np.int64(7): None,
        }
    )  # fmt: skip

    assert made | {"array": None} == {
        "f": 0.5, "h": 0.5, "i": 3, "b": True, "s": "x", "array": None,
        "args": {"lr": 0.1, "n": [1]}, "path": os.path.join("a", "b"), "size": (2, 3), 7: None,
    }  # fmt: skip
    kinds = {k: type(v) for k, v in made.items()}
    assert (kinds["f"], kinds["h"], kinds["i"], kinds["b"], kinds["s"]) == (
        float, float, int, bool, str,
    )  # fmt: skip
    assert kinds["size"] is tuple
    assert kinds["args"] is dict
    assert torch.equal(made["array"], torch.arange(3))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3), np.arange(5)[::-1], np.asfortranarray(np.eye(3)),
        np.array(3.5), np.zeros((0, 2)), np.arange(3, dtype=np.uint16), np.array([True, False]),
        np.broadcast_to(np.float32(2), (3, 2)),
    ],
)  # fmt: skip
def test_arrays_of_every_layout_become_equal_tensors(array: np.ndarray) -> None:
    array.flags.writeable = False
    tensor = plain(array)

    assert tensor.dtype == torch.from_numpy(np.zeros(1, array.dtype.newbyteorder("="))).dtype
    assert tuple(tensor.shape) == array.shape
    assert tensor.tolist() == array.tolist()


@dataclass
class Settings:
    lr: float = 0.1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"args": argparse.Namespace(fn=len)}, r"^extra\.args\.fn: a function "),
        ({"a": [1, {"b": lambda x: x}]}, r"^extra\.a\[1\]\.b: a function "),
        ({"a b": print}, r"^extra\['a b'\]: a function "),
        ({"c": Settings()}, r"^extra\.c: a Settings "),
        ({"c": Settings}, r"^extra\.c: a class "),
        ({"m": nn.Linear(1, 1)}, r"^extra\.m: a Linear "),
        ({"s": {1, 2}}, r"^extra\.s: a set "),
        ({"o": np.array([None])}, r"^extra\.o: a numpy array of object "),
        ({"d": np.datetime64("2026-01-01")}, r"^extra\.d: a datetime64 "),
        ({"packed": torch.eye(2).to_mkldnn()}, r"^extra\.packed: a _mkldnn tensor "),
        ({"meta": torch.zeros(2, device="meta")}, r"^extra\.meta: a tensor on the meta device "),
        ({len: 1}, r"^extra: the key .* is a function"),
        ({((1,), 2): 1}, r"^extra: the key "),
        ({2**70: 1}, r"^extra: the key "),
    ],
)
def test_what_has_no_plain_form_is_refused_by_its_path(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        plain(value)


def test_cycles_and_bottomless_nests_are_refused() -> None:
    cycle: dict[str, Any] = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(ValueError, match=r"^extra\.a\[0\] holds extra again"):
        plain(cycle)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than"):
        plain(deep)


def test_a_value_shared_ten_thousandfold_is_visited_once() -> None:
    node: list[Any] = [1]
    for _ in range(90):
        node = [node, node]
    made = plain(node)
    assert made[0] is made[1]


def test_nothing_that_was_given_is_changed() -> None:
    weight = nn.Parameter(torch.ones(2))
    given = {"w": weight, "n": np.float32(1), "l": [np.int8(1)]}
    plain(given)

    assert given["w"] is weight
    assert weight.requires_grad
    assert isinstance(given["n"], np.float32)
    assert isinstance(given["l"][0], np.int8)


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_plain_torch_reads_canonical_keys_in_the_customary_order(wrap: str) -> None:
    net = WRAPS[wrap](seeded(1))
    optimizer = torch.optim.Adam(net.parameters())
    file = torch_loaded(saved(net, optimizer=optimizer, extra={"a": 1}, step=7))

    expected = ["epoch", "model", "dataset", "state_dict", "acc", "step", "optimizer", "extra"]
    averaged = ["wrapper_state"] if wrap == "AveragedModel" else []
    assert list(file) == [*expected, *averaged, "ckreg"]
    fresh = seeded(2)
    fresh.load_state_dict(file["state_dict"], strict=True)
    assert same(state_of(fresh), state_of(net))
    assert file["state_dict"]._metadata == seeded(1).state_dict()._metadata
    assert all(type(t) is torch.Tensor for t in file["state_dict"].values())
    assert file["ckreg"]["ties"] == [["head.weight", "tied.weight"]]
    assert "features.1.running_mean" in file["ckreg"]["buffers"]
    assert file["ckreg"]["weights"] == ("ema" if averaged else "live")
    assert file["ckreg"]["optimizers"] == {
        "optimizer": {
            "class": "torch.optim.adam.Adam",
            "groups": [[name for name, _ in seeded(1).named_parameters()]],
        }
    }


def test_every_torch_scheduler_comes_back_from_the_code_free_reader() -> None:
    from torch.optim import lr_scheduler as lr

    def make(kind: str) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
        made = {
            "step": lambda: lr.StepLR(optimizer, 3),
            "multi": lambda: lr.MultiStepLR(optimizer, [2, 2, 5]),
            "one cycle": lambda: lr.OneCycleLR(optimizer, 0.1, total_steps=10),
            "cyclic": lambda: lr.CyclicLR(optimizer, 0.01, 0.1),
            "plateau": lambda: lr.ReduceLROnPlateau(optimizer),
            "warm": lambda: lr.CosineAnnealingWarmRestarts(optimizer, 3),
            "lambda": lambda: lr.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
            "sequence": lambda: lr.SequentialLR(
                optimizer, [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.9)], [2]
            ),
        }
        return optimizer, made[kind]()

    for kind in ("step", "multi", "one cycle", "cyclic", "plateau", "warm", "lambda", "sequence"):
        optimizer, scheduler = make(kind)
        optimizer.step()
        scheduler.step(1.0) if kind == "plateau" else scheduler.step()
        builder, contents = builder_of(written({"scheduler": plain(scheduler.state_dict())}))
        back = builder.tree(contents.root["scheduler"])

        assert back == scheduler.state_dict(), kind
        if kind == "multi":
            assert type(back["milestones"]) is collections.Counter
        _, other = make(kind)
        other.load_state_dict(back)


def test_parameters_and_lazy_bits_become_plain_dense_tensors() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    tree = {"p": nn.Parameter(z), "conj": z.conj(), "neg": z.conj().imag, "grad": z.abs()}
    file = torch_loaded(written(plain(tree)))

    for key, value in tree.items():
        assert torch.equal(file[key], value.detach())
        assert not file[key].requires_grad
        assert type(file[key]) is torch.Tensor
        assert not file[key].is_conj()
        assert not file[key].is_neg()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    ],
    ids=str,
)  # fmt: skip
def test_every_dtype_is_written_bit_for_bit(dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2, (64,), dtype=torch.uint8)
    tensor = bits.view(dtype)
    file = torch_loaded(written(plain({"t": tensor, "scalar": tensor[0], "none": tensor[:0]})))

    assert file["t"].dtype == dtype
    assert torch.equal(file["t"].view(torch.uint8), bits)
    assert file["scalar"].shape == ()
    assert file["none"].shape == (0,)


_SAVES = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]
import torch
from nets import seeded
from tensor_files import saved
torch.set_num_threads(1)
net = seeded(1)
optimizer = torch.optim.AdamW([{{"params": [p]}} for p in net.parameters()])
net(torch.ones(3, 6)).sum().backward(); optimizer.step()
word, pairs, data = {values}
extra = {{word: word, "other": [word, *pairs, *data]}}
file = saved(net, optimizer=optimizer, extra=extra, config={{"device": word}})
open({path!r}, "wb").write(file)
"""


def test_equal_state_gives_equal_bytes_in_another_process(tmp_path: Path) -> None:
    here = Path(__file__).parent
    files = []
    one = '"cpu", [("a", 0.5)] * 2, [bytes([1, 2])] * 2'  # one object in two places
    two = (  # and two equal ones
        '"".join(["c", "p", "u"]), [("a", float("0.5")) for _ in range(2)], '
        "[bytes([1, n]) for n in (2, 2)]"
    )
    for seed, values in (("1", one), ("2", two)):
        path = tmp_path / f"{seed}.pt"
        code = _SAVES.format(tests=str(here), root=str(here.parent), values=values, path=str(path))
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        files.append(path.read_bytes())

    assert files[0] == files[1]


# --- views ----------------------------------------------------------------------------------------


def _compacted(tree: dict[str, Any]) -> dict[str, Any]:
    plainer = Plainer()
    made = plainer(tree, "extra")
    plainer.compact()
    return made  # type: ignore[no-any-return]


def test_a_row_of_a_big_table_brings_no_table_along() -> None:
    table = torch.randn(10_000, 8)
    made = _compacted({"row": table[5], "column": table[:4, 2]})

    assert torch.equal(made["row"], table[5])
    assert torch.equal(made["column"], table[:4, 2])
    assert writing.size_bytes(made) < 1000
    assert len(written(made)) < 4000
    assert table.untyped_storage().nbytes() == 320_000


def test_views_that_are_one_tensor_stay_one_when_their_storage_is_left_behind() -> None:
    table = torch.randn(10_000)
    made = _compacted({"a": table[:4], "b": table[:4], "c": table[4:8]})
    file = torch_loaded(written(made))

    assert file["a"].data_ptr() == file["b"].data_ptr() != file["c"].data_ptr()
    assert torch.equal(file["c"], table[4:8])


def test_a_flat_storage_that_is_all_used_stays_one() -> None:
    flat = torch.randn(1000)
    made = _compacted({"a": flat[:600].view(20, 30), "b": flat[600:]})
    file = torch_loaded(written(made))

    assert file["a"].untyped_storage().data_ptr() == file["b"].untyped_storage().data_ptr()
    assert writing.size_bytes(made) == 4000


def test_an_expanded_tensor_stays_as_small_as_it_is() -> None:
    made = _compacted({"ones": torch.ones(1).expand(100_000)})

    assert len(written(made)) < 4000
    assert torch.equal(torch_loaded(written(made))["ones"], torch.ones(100_000))


def test_one_storage_as_two_dtypes_is_split_where_torch_would_refuse() -> None:
    z = torch.randn(4, dtype=torch.complex64)
    made = _compacted({"z": z, "parts": torch.view_as_real(z)})
    file = torch_loaded(written(made))

    assert torch.equal(file["z"], z)
    assert torch.equal(file["parts"], torch.view_as_real(z))


# --- refusals and errors --------------------------------------------------------------------------


def test_a_net_on_meta_has_nothing_to_save() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(RefusedLoadError, match="weight is on the meta device"):
        saved(net)


@pytest.mark.parametrize("limit", [0, 100, 200_000])
def test_what_the_writer_raises_comes_out_as_it_is(limit: int) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() >= limit:
                raise NoSpaceError("the disk is full: 3 bytes left")
            return super().write(data)

    with pytest.raises(NoSpaceError, match="3 bytes left"):
        writing.write({"a": torch.zeros(100_000)}, Full())


def test_the_expected_size_is_the_tensors_each_storage_once() -> None:
    live = observe(seeded(1))
    tree = {"state_dict": dict(live.state)}
    names = {n: t for n, t in seeded(1).state_dict().items() if n != "tied.weight"}
    assert writing.size_bytes(tree) == sum(t.nbytes for t in names.values())
