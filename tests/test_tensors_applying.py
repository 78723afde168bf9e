"""Doing a load plan: all of it or nothing, bit for bit, for every pair of wrappers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import WRAPS, Net, seeded
from tensor_files import load, planned, same, saved, state_of, torch_saved
from torch import nn

from registry.errors import CkregError, RefusedLoadError, UntrustedError
from registry.tensors import applying
from registry.tensors.checks import check_cast, same_bits
from registry.tensors.observe import observe

# torch warns of itself when torch.compile is first imported (2.13)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

AveragedModel = torch.optim.swa_utils.AveragedModel


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Return one saved file for every way of wrapping."""
    return {wrap: saved(WRAPS[wrap](seeded(1))) for wrap in WRAPS}


@pytest.mark.parametrize("target", WRAPS)
@pytest.mark.parametrize("source", WRAPS)
def test_every_wrapper_loads_into_every_other_bit_for_bit(
    files: dict[str, bytes], source: str, target: str
) -> None:
    net = WRAPS[target](seeded(2))

    loaded = load(files[source], net)

    assert same(state_of(net), state_of(seeded(1)))
    averaged = source == target == "AveragedModel"
    assert set(loaded) == set(observe(net).canonical) | ({"n_averaged"} if averaged else set())
    assert net.training


def test_modes_gradients_and_the_parameters_themselves_stay() -> None:
    net = seeded(2).eval()
    net.head.requires_grad_(False)
    net.model[0].weight.grad = torch.ones(8, 8)
    before = {name: id(p) for name, p in net.named_parameters()}

    load(saved(seeded(1)), net)

    assert not net.training
    assert not net.head.weight.requires_grad
    assert net.features[0].weight.requires_grad
    assert net.model[0].weight.grad.sum() == 64  # type: ignore[union-attr]
    assert {name: id(p) for name, p in net.named_parameters()} == before
    assert net.tied.weight is net.head.weight


def test_the_average_count_is_restored_only_where_the_file_has_one() -> None:
    source = AveragedModel(seeded(1))
    source.n_averaged.fill_(12)
    into = AveragedModel(seeded(2))
    into.n_averaged.fill_(3)

    load(saved(seeded(1)), into)
    assert int(into.n_averaged) == 3
    load(saved(source), into)
    assert int(into.n_averaged) == 12


# --- versions -------------------------------------------------------------------------------------


class Versioned(nn.Module):
    """A module that notes which version of itself the file says."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen: list[object] = []

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        self.seen.append(metadata.get("version"))
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("target", ["plain", "DP", "compile", "checkpoint_wrapper", "submodule DP"])
@pytest.mark.parametrize("source", ["plain", "DP(compile)", "checkpoint_wrapper", "submodule DP"])
def test_module_versions_reach_their_modules_however_either_side_is_wrapped(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def net() -> Net:
        made = seeded(1)
        made.model[1] = Versioned()
        return made

    data = saved(WRAPS[source](net()))
    monkeypatch.setattr(Versioned, "_version", 4)  # the code went on since
    inner = net()
    load(data, WRAPS[target](inner))
    assert inner.model[1].seen == [3]


@pytest.mark.parametrize("wrap", ["plain", "DP", "checkpoint_wrapper", "compile(DP)"])
def test_a_foreign_wrapped_file_brings_its_versions_along(
    wrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def net() -> Any:
        return nn.Sequential(nn.Linear(2, 2), Versioned())

    data = torch_saved({"state_dict": WRAPS[wrap](net()).state_dict()})
    monkeypatch.setattr(Versioned, "_version", 4)
    into = net()
    load(data, into)
    assert into[1].seen == [3]


# --- refused: nothing changes ---------------------------------------------------------------------


def _narrowing() -> tuple[bytes, nn.Module, dict[str, Any]]:
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        source[1].weight[0, 0] = 1e300
    return saved(source), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"cast": "narrow"}


def _untied_values() -> tuple[bytes, nn.Module, dict[str, Any]]:
    source = seeded(1)
    source.tied.weight = nn.Parameter(torch.zeros(5, 8))
    return saved(source), seeded(2), {}


def _expanded_target() -> tuple[bytes, nn.Module, dict[str, Any]]:
    target = nn.BatchNorm1d(4)
    target.running_var = torch.ones(1).expand(4)
    return saved(nn.BatchNorm1d(4)), target, {}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (_narrowing, r"'1.weight' .* float64 to float32: 1 finite values are beyond"),
        (_untied_values, r"are one tensor in the net, and have different values"),
        (_expanded_target, r"'running_var' of the net is an expanded view"),
    ],
)
def test_a_refused_load_changes_nothing(
    case: Callable[[], tuple[bytes, nn.Module, dict[str, Any]]], message: str
) -> None:
    data, net, wanted = case()
    before = state_of(net)
    with pytest.raises(RefusedLoadError, match=message):
        load(data, net, **wanted)
    assert same(state_of(net), before)


def test_tied_names_with_equal_values_in_two_tensors_are_taken() -> None:
    source = seeded(1)
    source.tied.weight = nn.Parameter(source.head.weight.detach().clone())
    net = seeded(2)
    load(saved(source), net)
    assert same(state_of(net), state_of(seeded(1)))


def test_narrow_casts_take_what_survives_and_keep_infinities() -> None:
    source = nn.Linear(2, 2).double()
    with torch.no_grad():
        source.weight[0, 0] = float("inf")
    net = nn.Linear(2, 2)
    load(saved(source), net, cast="narrow")
    assert torch.equal(net.weight, source.weight.float())


class Failing(nn.Module):
    """A module whose own loading code fails after others were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state, *rest)
        raise OSError("no such vocabulary")


def test_a_failure_in_the_nets_own_code_brings_every_value_back() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), Failing(), nn.BatchNorm1d(2))

    target = net()
    before, held = state_of(target), [id(p) for p in target.parameters()]
    with pytest.raises(RefusedLoadError, match=r"code of .*Failing.*no such vocabulary"):
        load(saved(net()), target)
    assert same(state_of(target), before)
    assert [id(p) for p in target.parameters()] == held


def test_a_hook_that_swallows_a_key_is_noticed_and_undone() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = state_of(target)

    def swallow(state: dict[str, Any], *_: Any) -> None:
        state.pop("1.bias")

    target._register_load_state_dict_pre_hook(swallow)
    with pytest.raises(RefusedLoadError, match=r"other than planned.*'1.bias'"):
        load(saved(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), target)
    assert same(state_of(target), before)


class Extra(nn.Module):
    """A module with extra state, which is no tensor."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words
        self.weight = nn.Parameter(torch.zeros(1))

    def get_extra_state(self) -> list[str]:
        return list(self.words)

    def set_extra_state(self, state: list[str]) -> None:
        self.words = state


def test_extra_state_of_the_very_module_that_is_wrapped_is_its_own() -> None:
    source: Any = Extra(["a"])
    target: Any = Extra(["old"])
    load(saved(WRAPS["checkpoint_wrapper"](source)), WRAPS["checkpoint_wrapper"](target))
    assert target.words == ["a"]


@pytest.mark.parametrize("wrap", ["plain", "DP", "checkpoint_wrapper"])
def test_extra_state_is_saved_and_restored_through_wrappers(wrap: str) -> None:
    target = nn.Sequential(Extra(["old"]))
    source: Any = nn.Sequential(Extra(["a", "b"]))
    load(saved(WRAPS[wrap](source)), nn.DataParallel(target))
    assert target[0].words == ["a", "b"]


# --- optimizers and what else lies beside ---------------------------------------------------------


def _trained(
    seed: int, make: Callable[..., torch.optim.Optimizer], steps: int = 3
) -> tuple[Net, torch.optim.Optimizer]:
    net = seeded(seed)
    optimizer = make(net.parameters())
    _train(net, optimizer, steps)
    return net, optimizer


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(9)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 6, generator=generator)).square().sum().backward()
        optimizer.step()


MAKES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "Rprop": lambda p: torch.optim.Rprop(p),
}


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("wrap", ["plain", "DP", "submodule DP"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make: Callable[..., torch.optim.Optimizer], wrap: str
) -> None:
    net, optimizer = _trained(1, make)
    data = saved(net, optimizer=optimizer)
    resumed = WRAPS[wrap](seeded(2))
    other = make(resumed.parameters())

    load(data, resumed, optimizer=other)

    assert _equal(_state(other), _state(optimizer))
    for one, its in ((net, optimizer), (resumed, other)):
        _train(one, its, 5)
    assert same(state_of(net), state_of(resumed))
    assert _equal(_state(other), _state(optimizer))


def test_state_lands_by_name_when_parameters_of_one_shape_change_places() -> None:
    net, optimizer = _trained(1, MAKES["Adam"])
    into = seeded(2)
    params = dict(into.named_parameters())
    # model.0 and features.0 have the same shapes
    order = sorted(params, reverse=True)
    other = MAKES["Adam"]([params[name] for name in order])

    load(saved(net, optimizer=optimizer), into, optimizer=other)

    mine = dict(net.named_parameters())
    for name in order:
        assert _equal(optimizer.state[mine[name]], other.state[params[name]]), name


def test_restored_state_shares_no_memory_with_the_file() -> None:
    net, optimizer = _trained(1, MAKES["Adam"])
    into = seeded(2)
    other = MAKES["Adam"](into.parameters())
    data = saved(net, optimizer=optimizer)
    made = planned(data, into, optimizer=other)

    applying.apply(
        made.plan, made.builder, made.description, into, observe(into),
        optimizers={"optimizer": other},
    )  # fmt: skip
    first = next(iter(other.state.values()))
    first["exp_avg"].zero_()
    first["step"].zero_()
    again = made.builder.tree(made.description.optimizers["optimizer"])["state"]
    assert _equal(again, optimizer.state_dict()["state"])


def test_options_are_the_files_and_how_it_computes_is_the_machines() -> None:
    net = seeded(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5, foreach=True)
    into = seeded(2)
    other = torch.optim.Adam(into.parameters(), lr=0.1, foreach=False)

    load(saved(net, optimizer=optimizer), into, optimizer=other)

    assert other.param_groups[0]["lr"] == 0.5
    assert other.param_groups[0]["foreach"] is False


def test_state_that_torch_would_cast_keeps_its_own_dtype() -> None:
    def make(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.ASGD(net.parameters(), lr=0.1)

    net = nn.Linear(2, 2).bfloat16()
    optimizer = make(net)
    net(torch.ones(1, 2).bfloat16()).sum().backward()
    optimizer.step()
    into = nn.Linear(2, 2).bfloat16()
    other = make(into)

    load(saved(net, optimizer=optimizer), into, optimizer=other)

    assert other.state[into.weight]["eta"].dtype == torch.float32
    assert _equal(_state(other), _state(optimizer))


def test_state_is_cast_along_with_its_parameter() -> None:
    net = nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2).double()).sum().backward()
    optimizer.step()
    into = nn.Linear(2, 2)
    other = torch.optim.SGD(into.parameters(), lr=0.1, momentum=0.9)

    load(saved(net, optimizer=optimizer), into, optimizer=other, cast="narrow")

    assert other.state[into.weight]["momentum_buffer"].dtype == torch.float32
    optimizer.state[net.weight]["momentum_buffer"].fill_(1e300)
    before = _state(other)
    with pytest.raises(RefusedLoadError, match=r"momentum_buffer of weight"):
        load(saved(net, optimizer=optimizer), into, optimizer=other, cast="narrow")
    assert _equal(_state(other), before)


class Sampler:
    """Something with state, that can be told to fail."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.fails = False

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        if self.fails:
            raise RuntimeError("the sampler is at its end")


def _everything(seed: int) -> tuple[Net, dict[str, Any]]:
    net, optimizer = _trained(seed, MAKES["Adam"], steps=0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])
    for _ in range(seed):
        _train(net, optimizer, 1)
        scheduler.step()
    return net, {
        "optimizer": optimizer, "scheduler": scheduler, "stateful": {"sampler": Sampler(seed)},
    }  # fmt: skip


def test_scheduler_and_stateful_things_are_restored() -> None:
    net, beside = _everything(3)
    into, others = _everything(1)
    load(saved(net, **beside), into, **others)
    assert others["stateful"]["sampler"].at == 3
    assert others["scheduler"].state_dict() == beside["scheduler"].state_dict()
    assert others["optimizer"].param_groups[0]["lr"] == beside["optimizer"].param_groups[0]["lr"]


@pytest.mark.parametrize("fails", ["sampler", "scheduler", "optimizer", "net"])
def test_whatever_fails_leaves_all_of_it_as_it_was(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, beside = _everything(3)
    data = saved(net, **beside)
    into, others = _everything(1)
    before = (
        state_of(into),
        _state(others["optimizer"]),
        copy.deepcopy(others["scheduler"].state_dict()),
    )
    states = others["optimizer"].state, others["optimizer"].param_groups

    def fail(*_: Any, **__: Any) -> None:
        monkeypatch.undo()  # once: undoing must work
        raise RuntimeError("it fails")

    if fails == "sampler":
        others["stateful"]["sampler"].fails = True
        monkeypatch.setattr(Sampler, "load_state_dict", _at_first(Sampler.load_state_dict, fail))
    elif fails == "net":
        into.register_load_state_dict_post_hook(fail)
    else:
        monkeypatch.setattr(type(others[fails]), "load_state_dict", fail)

    with pytest.raises(CkregError):
        load(data, into, **others)

    assert same(state_of(into), before[0])
    assert _equal(_state(others["optimizer"]), before[1])
    assert others["optimizer"].state is states[0]
    assert others["optimizer"].param_groups is states[1]
    assert others["scheduler"].state_dict() == before[2]
    assert others["stateful"]["sampler"].at == 1


def _at_first(real: Any, fail: Any) -> Any:
    def load_state_dict(self: Sampler, state: dict[str, Any]) -> None:
        self.at = state["at"]
        if self.fails:
            self.fails = False
            fail()

    return load_state_dict


def test_random_states_come_back() -> None:
    net = seeded(1)
    data = saved(net, rng=True)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    for _ in range(7):
        random.random(), np.random.rand(), torch.rand(3)
    load(data, seeded(2), rng=True)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_stateful_of_an_unknown_class_is_refused_before_anything_changes() -> None:
    tree = {"state_dict": seeded(1).state_dict(), "optimizer": {"state": {}, "param_groups": []}}
    net = seeded(2)
    data = torch_saved({**tree, "scheduler": {"x": Sampler(1)}})
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), lr=0.1), 1)
    before = state_of(net)
    with pytest.raises(UntrustedError, match="Sampler"):
        load(data, net, scheduler=scheduler)
    assert same(state_of(net), before)


# --- meta -----------------------------------------------------------------------------------------


def _on_meta(make: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("wrap", ["plain", "checkpoint_wrapper", "submodule DP", "compile"])
def test_a_meta_net_is_filled_tied_again_and_left_without_meta(wrap: str) -> None:
    inner = _on_meta()
    inner.head.requires_grad_(False)  # type: ignore[union-attr,operator]
    net = WRAPS[wrap](inner)  # type: ignore[arg-type]

    load(saved(seeded(1)), net)

    assert same(state_of(net), state_of(seeded(1)))
    assert inner.tied.weight is inner.head.weight  # type: ignore[union-attr]
    assert not inner.head.weight.requires_grad  # type: ignore[union-attr]
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())
    assert not any(t.is_meta for t in (*net.parameters(), *net.buffers()))


def test_names_that_the_file_ties_and_the_meta_net_does_not_get_their_own_memory() -> None:
    class Untied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.tied.weight = nn.Parameter(torch.zeros(5, 8))

    net: Any = _on_meta(Untied)
    load(saved(seeded(1)), net)
    net.head.weight.data.zero_()
    assert net.tied.weight.abs().sum() > 0


class Rotary(nn.Module):
    """A module with a buffer that no state dict holds, filled as torch's convention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.empty(4), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        self.table = torch.arange(4.0, device=self.table.device)


def test_nonpersistent_buffers_are_rebuilt_by_reset_parameters() -> None:
    source = Rotary()
    nn.init.ones_(source.weight)
    net: Any = _on_meta(lambda: nn.Sequential(Rotary()))

    load(saved(nn.Sequential(source)), net)

    assert net[0].table.tolist() == [0, 1, 2, 3]
    assert net[0].weight.tolist() == [1, 1, 1, 1]


def test_nonpersistent_buffers_that_nobody_rebuilds_are_refused() -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
        net[0].register_buffer("mask", torch.ones(2), persistent=False)
        return net

    net = _on_meta(make)
    with pytest.raises(RefusedLoadError, match=r"left on meta.* 0\.mask"):
        load(saved(make()), net)
    assert all(p.is_meta for p in net.parameters())


def test_a_meta_net_refuses_an_optimizer_that_was_built_before() -> None:
    net = _on_meta()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    source = seeded(1)
    data = saved(source, optimizer=torch.optim.SGD(source.parameters(), lr=0.1))
    with pytest.raises(RefusedLoadError, match="meta"):
        load(data, net, optimizer=optimizer)
    assert all(p.is_meta for p in net.parameters())


def test_a_failed_load_leaves_a_meta_net_on_meta() -> None:
    net = _on_meta()

    def fail(*_: Any) -> None:
        raise RuntimeError("it fails")

    net.register_load_state_dict_post_hook(fail)
    with pytest.raises(RefusedLoadError):
        load(saved(seeded(1)), net)
    assert all(p.is_meta for p in net.parameters())


# --- without a target -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_without_a_target_the_state_dict_fits_the_plain_net(wrap: str) -> None:
    made = planned(saved(WRAPS[wrap](seeded(1))))
    state = applying.collect(made.plan, made.builder, made.description)

    net = seeded(2)
    net.load_state_dict(state, strict=True)
    assert same(state_of(net), state_of(seeded(1)))
    assert state._metadata == seeded(1).state_dict()._metadata  # type: ignore[attr-defined]


# --- checks ---------------------------------------------------------------------------------------


def test_bits_are_compared_not_numbers() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert not same_bits(zero, zero[0])
    assert same_bits(zero[:0], zero[:0].clone())


@pytest.mark.parametrize(
    ("values", "dtype", "to", "lost"),
    [
        ([1.0, float("nan"), float("inf")], torch.float64, torch.float16, False),
        ([1e6], torch.float32, torch.float16, True),
        ([300, -2], torch.int64, torch.int8, True),
        ([127, -128], torch.int64, torch.int8, False),
        ([-1], torch.int8, torch.uint64, True),
        ([2**63], torch.uint64, torch.int64, True),
        ([2**63 - 1, 0], torch.uint64, torch.int64, False),
        ([65535], torch.uint16, torch.int16, True),
        ([1000.0], torch.float32, torch.float8_e4m3fn, True),
        ([460.0, -448.0], torch.float32, torch.float8_e4m3fn, False),
        ([1e40], torch.float64, torch.float32, True),
        ([3e38j], torch.complex128, torch.complex64, False),
        ([3e39j], torch.complex128, torch.complex64, True),
    ],
)
def test_what_a_cast_would_lose_is_found(
    values: list[float], dtype: torch.dtype, to: torch.dtype, lost: bool
) -> None:
    assert (check_cast(torch.tensor(values, dtype=dtype), to) is not None) == lost
    assert check_cast(torch.tensor([], dtype=dtype), to) is None


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Bit equality of training needs one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
