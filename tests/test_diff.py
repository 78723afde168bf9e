"""Diff: what differs between two checkpoints, in the records, the keys and the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from backends import blobs_at
from nets import WRAPS, seeded
from torch import nn

import registry.tensors.comparing as comparing
from registry import Registry
from registry.cli import run
from registry.diffing import Numbers, Side, read_keys
from registry.keys import guess_style
from registry.records import Checkpoint, File, Provenance
from registry.signature import KeyStyle, TensorSpec
from registry.tensors.comparing import compare
from registry.values import CheckpointId, Digest, now


def saved(tree: object, path: Path) -> Path:
    torch.save(tree, path)
    return path


# --- equal weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_equal_weights_under_another_wrapper_are_equal(reg: Registry, wrap: str) -> None:
    plain = reg.save(seeded(1), model="net")
    wrapped = reg.save(WRAPS[wrap](seeded(1)), model="net")

    found = reg.diff(plain, wrapped)

    assert found.equal_weights
    assert found.only_a == found.only_b == ()
    assert len(found.tensors) == plain.tensors
    assert not any(m.changed for m in found.modules)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_file_without_a_record_is_read_so_that_its_keys_are_the_other_s(
    reg: Registry, tmp_path: Path, prefix: str
) -> None:
    net = seeded(2)
    ours = reg.save(net, model="net")
    state = {prefix + k: v for k, v in net.state_dict().items()}
    theirs = reg.push(saved(state, tmp_path / "w.pt"), model="net")

    for a, b in ((ours, theirs), (theirs, ours)):
        found = reg.diff(a, b)
        assert found.equal_weights
        assert {str(found.a.style), str(found.b.style)} == {"", prefix}
        assert {found.a.source, found.b.source} == {"recorded", "matched"}


def test_two_files_without_records_are_read_so_that_they_agree(
    reg: Registry, tmp_path: Path
) -> None:
    state = seeded(3).features.state_dict()
    plain = reg.push(saved(state, tmp_path / "a.pt"), model="net")
    wrapped = {f"module.{k}": v for k, v in state.items()}
    other = reg.push(saved(wrapped, tmp_path / "b.pt"), model="net")
    assert reg.diff(plain, other).equal_weights
    assert reg.diff(other, plain).equal_weights
    assert reg.diff(other, other).equal_weights


@pytest.mark.parametrize("a", ["", "module.", "model.", "model._orig_mod.", "module.model."])
@pytest.mark.parametrize("b", ["model.", "model._orig_mod.", "model.module."])
@pytest.mark.parametrize("recorded", [True, False])
def test_equal_weights_under_the_attribute_that_held_the_net_are_equal(
    reg: Registry, tmp_path: Path, a: str, b: str, recorded: bool
) -> None:
    net = seeded(3).features
    state = net.state_dict()
    first = {a + k: v for k, v in state.items()}
    if recorded:
        ours = reg.save(net, model="net")
    else:
        ours = reg.push(saved(first, tmp_path / "a.pt"), model="net")
    second = {b + k: v for k, v in state.items()}
    theirs = reg.push(saved(second, tmp_path / "b.pt"), model="net", note="b")
    for one, two in ((ours, theirs), (theirs, ours)):
        found = reg.diff(one, two)
        assert found.equal_weights
        assert len(found.tensors) == len(state)


def test_what_lies_beside_the_attribute_that_held_the_net_is_only_there(
    reg: Registry, tmp_path: Path
) -> None:
    net = seeded(3).features
    ours = reg.save(net, model="net")
    state = {f"model.{k}": v for k, v in net.state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    theirs = reg.push(saved(state, tmp_path / "b.pt"), model="net")
    found = reg.diff(ours, theirs)
    assert all(t.equal for t in found.tensors)
    assert (len(found.tensors), found.only_a, found.only_b) == (ours.tensors, (), ("loss.weight",))
    assert not found.equal_weights


def test_attributes_that_could_both_be_meant_are_not_chosen_between(
    reg: Registry, tmp_path: Path
) -> None:
    net = seeded(3).features
    ours = reg.save(net, model="net")
    state = {
        f"{name}.{k}": v for name in ("student", "teacher") for k, v in net.state_dict().items()
    }
    found = reg.diff(ours, reg.push(saved(state, tmp_path / "b.pt"), model="net"))
    assert not found.tensors
    assert "none has a name that both have" in str(found)


def test_a_real_child_called_module_keeps_its_name(reg: Registry, tmp_path: Path) -> None:
    net = nn.ModuleDict({"module": nn.Linear(2, 2)})
    ours = reg.save(net, model="net")
    theirs = reg.push(saved(net.state_dict(), tmp_path / "w.pt"), model="net")
    found = reg.diff(ours, theirs)
    assert found.equal_weights
    assert [t.key for t in found.tensors] == ["module.weight", "module.bias"]


def test_a_tied_name_that_one_file_lacks_is_its_partner(reg: Registry, tmp_path: Path) -> None:
    ours = reg.save(seeded(4), model="net")
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_model(seeded(4), path)
    theirs = reg.push(path, model="net")
    assert theirs.tensors == ours.tensors - 1
    for a, b in ((ours, theirs), (theirs, ours)):
        found = reg.diff(a, b)
        assert found.equal_weights
        assert {found.a.source, found.b.source} == {"recorded", "matched"}


# --- what differs ---------------------------------------------------------------------------------


def test_a_change_is_found_where_it_is_with_its_numbers(reg: Registry) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    a = reg.save(net, model="net")
    before = net[1].weight.detach().double().clone()
    with torch.no_grad():
        net[1].weight[0, 0] += 0.5
    b = reg.save(net, model="net")

    found = reg.diff(a, b)

    assert [(m.path, m.changed, m.tensors) for m in found.modules] == [("0", 0, 2), ("1", 1, 2)]
    assert [t.key for t in found.tensors if not t.equal] == ["1.weight"]
    after = net[1].weight.detach().double()
    (numbers,) = (t.numbers for t in found.tensors if not t.equal)
    assert numbers is not None
    assert numbers.max_abs == pytest.approx(0.5)
    relative = (after - before).norm() / before.norm()
    assert numbers.relative_norm == pytest.approx(float(relative), rel=1e-12)
    cosine = torch.cosine_similarity(before.flatten(), after.flatten(), 0)
    assert numbers.cosine == pytest.approx(float(cosine), rel=1e-12)


def test_a_module_s_numbers_are_those_of_its_tensors_taken_as_one(reg: Registry) -> None:
    net = nn.Linear(3, 4)
    a = reg.save(net, model="net")
    old = torch.cat([p.detach().double().flatten() for p in net.parameters()])
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5).add_(0.1)
    new = torch.cat([p.detach().double().flatten() for p in net.parameters()])
    (module,) = reg.diff(a, reg.save(net, model="net")).modules
    assert module.path == ""
    assert module.numbers.relative_norm == pytest.approx(float((new - old).norm() / old.norm()))
    assert module.numbers.cosine == pytest.approx(float(torch.cosine_similarity(old, new, 0)))
    assert module.numbers.max_abs == pytest.approx(float((new - old).abs().max()))


def test_keys_that_one_side_lacks_and_shapes_and_dtypes_that_differ_are_named(
    reg: Registry, tmp_path: Path
) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "d": torch.ones(3)}
    other = {"b": torch.ones(2).half(), "c": torch.ones(4), "d": torch.ones(3), "e": torch.ones(1)}
    x = reg.push(saved(state, tmp_path / "x.pt"), model="net")
    y = reg.push(saved(other, tmp_path / "y.pt"), model="net")

    found = reg.diff(x, y)

    assert (found.only_a, found.only_b) == (("a",), ("e",))
    b, c, d = found.tensors
    assert not b.equal  # the values are, the dtype isn't
    assert b.numbers is not None
    assert b.numbers.equal
    assert (c.equal, c.numbers, c.reason) == (False, None, "the shapes differ")
    assert d.equal
    assert not found.equal_weights


def test_facts_and_topology_that_differ_are_listed_and_others_are_not(reg: Registry) -> None:
    net = nn.Linear(2, 2)
    a = reg.save(net, model="net", dataset="cifar10", epoch=1, acc=0.5, config={"lr": 0.1, "o": 1})
    b = reg.save(
        nn.DataParallel(net), model="net", dataset="cifar10", epoch=2, acc=0.5,
        config={"lr": 0.2, "o": 1}, metrics={"val/loss": 0.3},
    )  # fmt: skip
    found = reg.diff(a, b)
    changed = {c.name: (c.a, c.b) for c in found.facts}
    assert changed["epoch"] == (1, 2)
    assert changed["config.lr"] == (0.1, 0.2)
    assert changed["metrics.val/loss"] == (None, 0.3)
    assert not changed.keys() & {"dataset", "metrics.acc", "config.o", "id", "version"}
    assert {c.name for c in found.topology} == {"strategy"}
    assert reg.diff(a, a).facts == reg.diff(a, a).topology == ()


def test_entries_that_are_no_tensors_are_compared_by_name(reg: Registry) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with_it = reg.save(Extra(2, 2), model="net")
    without = reg.save(nn.Linear(2, 2), model="net")
    assert reg.diff(with_it, without).only_a == ("_extra_state",)
    assert reg.diff(with_it, with_it).equal_weights


def test_damaged_bytes_are_reported_and_not_compared(reg: Registry) -> None:
    from registry import DamagedError

    a = reg.save(nn.Linear(64, 64), model="net")
    b = reg.save(nn.Linear(64, 64), model="net")
    (blob,) = (
        p
        for p in blobs_at(reg).glob("blobs/*/*")
        if p.parent.name + p.name.split(".")[0] == b.digest.removeprefix("blake3:")
    )
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1  # in the weight, which is most of the file
    blob.write_bytes(data)
    with pytest.raises(DamagedError):
        reg.diff(a, b)


# --- numbers --------------------------------------------------------------------------------------

CASES = {
    "float32": lambda: torch.randn(5, 3),
    "bfloat16": lambda: torch.randn(5, 3).bfloat16(),
    "float8": lambda: torch.randn(5, 3).to(torch.float8_e4m3fn),
    "int64": lambda: torch.randint(-9, 9, (5, 3)),
    "uint64": lambda: torch.randint(0, 9, (5, 3)).to(torch.uint64),
    "bool": lambda: torch.rand(5, 3) > 0.5,
    "complex64": lambda: torch.randn(5, 3, dtype=torch.complex64),
    "complex32": lambda: torch.randn(5, 3, dtype=torch.complex64).to(torch.complex32),
    "scalar": lambda: torch.tensor(2.5),
    "empty": lambda: torch.empty(0, 3),
    "conj": lambda: torch.randn(5, 3, dtype=torch.complex64).conj(),
    "expanded": lambda: torch.randn(1, 3).expand(5, 3),
    "float4": lambda: torch.zeros(5, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_of_any_dtype_and_layout_equals_its_copy(case: str) -> None:
    tensor = CASES[case]()
    twin = tensor.clone() if case not in ("expanded", "float4") else tensor.contiguous()
    found = compare(tensor, twin)
    assert found.equal
    assert (found.max_abs, found.relative_norm, found.cosine) == (0.0, 0.0, 1.0)


def test_nan_equals_nan_and_what_is_not_finite_is_counted_and_in_no_sum() -> None:
    a = torch.tensor([1.0, math.nan, math.inf, math.inf, 2.0])
    b = torch.tensor([1.0, math.nan, math.inf, 3.0, 2.5])
    assert compare(a, a.clone()).equal
    found = compare(a, b)
    assert (found.equal, found.nonfinite, found.max_abs) == (False, 1, 0.5)
    json.dumps(found.to_dict(), allow_nan=False)


def test_integers_beyond_doubles_that_differ_are_not_equal() -> None:
    a = torch.tensor([2**60])
    assert not compare(a, a + 1).equal


def test_zero_against_something_has_no_relative_norm_and_no_cosine() -> None:
    found = compare(torch.zeros(3), torch.ones(3))
    assert (found.relative_norm, found.cosine, found.max_abs) == (None, None, 1.0)


def test_the_largest_doubles_give_numbers_that_json_has() -> None:
    a = torch.full((4,), 1.7e308, dtype=torch.float64)
    json.dumps(compare(a, -a).to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(1000,), (7, 11, 13), (1, 1000), (1000, 1), (2, 1, 500)])
@pytest.mark.parametrize("turned", [False, True])
def test_pieces_give_the_numbers_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], turned: bool
) -> None:
    a, b = torch.randn(shape).double(), torch.randn(shape).double()
    if turned:
        a, b = (t.permute(*reversed(range(t.dim()))) for t in (a, b))
    whole = compare(a, b)
    seen = []
    pieces = comparing._pieces

    def counted(x: torch.Tensor, y: torch.Tensor) -> Any:
        for pair in pieces(x, y):
            seen.append(pair[0].numel())
            yield pair

    monkeypatch.setattr(comparing, "PIECE", 64)
    monkeypatch.setattr(comparing, "_pieces", counted)
    found = compare(a, b)
    assert max(seen) <= 64
    assert found.max_abs == whole.max_abs
    assert found.relative_norm == pytest.approx(whole.relative_norm)
    assert found.cosine == pytest.approx(whole.cosine)


# --- keys, pure -----------------------------------------------------------------------------------


def side(*names: str, recorded: str | None = None) -> Side:
    style = guess_style(names) if recorded is None else KeyStyle.parse(recorded)
    checkpoint = Checkpoint(
        id=CheckpointId("0" * 32), model="net", version=1, container="torch-zip",
        signature=Digest("blake3:" + "0" * 64), tensors=len(names), created_at=now(),
        files=(File("f.pt", Digest("blake3:" + "0" * 64), 1),),
        facts_digest=Digest("blake3:" + "0" * 64), file_keys=style, key_style=style,
        provenance=Provenance("unknown", "inferred" if recorded is None else "recorded"),
    )  # fmt: skip
    return Side(checkpoint, tuple(TensorSpec(n, "float32", (2,)) for n in names))


def test_a_wrapper_s_own_counter_is_no_key_of_the_net() -> None:
    averaged, plain = side("n_averaged", "module.w"), side("w", recorded="")
    a, b = read_keys(averaged, plain)
    assert set(a.raw) == set(b.raw) == {"w"}


def test_keys_that_are_nobody_s_are_guessed_and_say_so() -> None:
    a, b = read_keys(side("module.x", "module.y"), side("p", "q"))
    assert (a.source, str(a.style)) == ("guessed", "module.")
    assert set(a.raw) == {"x", "y"}
    assert set(b.raw) == {"p", "q"}


# --- the command ----------------------------------------------------------------------------------


def test_the_page_says_what_differs_by_module_and_exits_with_0(
    reg: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    reg.save(net, model="net", epoch=1)
    with torch.no_grad():
        net[1].bias.add_(1)
    reg.save(nn.DataParallel(net), model="net", epoch=2)
    assert run(["diff", "net@v1", "net@v2", "-r", reg.location], terminal=True) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["net@v1 -> net@v2", "  weights       1 of 4 tensors differ"]
    assert "  epoch  1  ->  2\n" in out
    assert "net@v2  wrapped 'module.', in the file '' (recorded)" in out
    assert "  1       1 of 2   1" in out
    assert "\n  0 " not in out


def test_the_json_has_every_tensor(reg: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    reg.save(seeded(1), model="net")
    reg.save(nn.DataParallel(seeded(1)), model="net")
    assert run(["diff", "net@v1", "net@v2", "--json", "-r", reg.location]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["equal_weights"] is True
    assert len(document["tensors"]) == len(seeded(1).state_dict())
    assert all(t["equal"] and t["numbers"]["cosine"] == 1.0 for t in document["tensors"])
    assert document["b"] == {
        "ref": "net@v2", "file_keys": "", "file_keys_source": "recorded", "key_style": "module.",
    }  # fmt: skip


def test_numbers_of_nothing_are_equal() -> None:
    from registry.diffing import together

    assert together([]) == Numbers(True)
