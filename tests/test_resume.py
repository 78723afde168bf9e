"""Resuming: optimizer state lands by name, a resumed run equals the uninterrupted one, failures
touch nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import WRAPS, Net, equal, seeded
from torch import nn

from registry import RefusedLoadError, Registry


def train(net: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, steps: range) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        loss = net(torch.randn(16, 6)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()


def setting(seed: int, wrap: str = "plain") -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    net = WRAPS[wrap](seeded(seed))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def same(a: Any, b: Any) -> bool:
    """Compare nested state: numbers by value, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("saved", "target"), [("plain", "plain"), ("DP", "plain"), ("plain", "DP")]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    reg: Registry, saved: str, target: str
) -> None:
    whole, whole_optimizer, whole_scheduler = setting(1, saved)
    train(whole, whole_optimizer, whole_scheduler, range(10))

    net, optimizer, scheduler = setting(1, saved)
    train(net, optimizer, scheduler, range(5))
    reg.save(net, model="net", epoch=0, step=5, optimizer=optimizer, scheduler=scheduler)
    again, again_optimizer, again_scheduler = setting(2, target)
    result = reg.load("net", into=again, optimizer=again_optimizer, scheduler=again_scheduler)
    assert result.step == 5
    train(again, again_optimizer, again_scheduler, range(result.step, 10))

    assert equal(again, whole)
    assert same(again_optimizer.state_dict()["state"], whole_optimizer.state_dict()["state"])
    assert again_scheduler.state_dict() == whole_scheduler.state_dict()


class Pair(nn.Module):
    """Two parameters of one shape, registered in either order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(3)))


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for factor, (_, parameter) in enumerate(sorted(net.named_parameters()), start=1):
        parameter.grad = torch.full_like(parameter, float(factor))
    optimizer.step()


def test_same_shapes_in_another_order_land_by_name(reg: Registry) -> None:
    net = Pair("a", "b")
    optimizer = torch.optim.Adam(net.parameters())
    stepped(net, optimizer)
    reg.save(net, model="pair", optimizer=optimizer)

    other = Pair("b", "a")
    other_optimizer = torch.optim.Adam(other.parameters())
    reg.load("pair", into=other, optimizer=other_optimizer)

    for name in ("a", "b"):
        mine = optimizer.state[getattr(net, name)]
        theirs = other_optimizer.state[getattr(other, name)]
        assert same(mine, theirs)
    assert not torch.equal(
        other_optimizer.state[other.a]["exp_avg"], other_optimizer.state[other.b]["exp_avg"]
    )


def test_other_groups_over_the_same_names_land_by_name(reg: Registry) -> None:
    net = Pair("a", "b", "c")
    optimizer = torch.optim.Adam(
        [{"params": [net.b], "lr": 0.5}, {"params": [net.a, net.c], "lr": 0.25}]
    )
    stepped(net, optimizer)
    reg.save(net, model="pair", optimizer=optimizer)

    other = Pair("c", "b", "a")
    other_optimizer = torch.optim.Adam([{"params": [other.c, other.a]}, {"params": [other.b]}])
    reg.load("pair", into=other, optimizer=other_optimizer)

    assert [g["lr"] for g in other_optimizer.param_groups] == [0.25, 0.5]
    assert same(optimizer.state[net.c], other_optimizer.state[other.c])


def untouched(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    return copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())


def test_state_of_another_optimizer_class_is_refused_and_nothing_touched(reg: Registry) -> None:
    net = seeded(1)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    stepped(net, sgd)
    reg.save(net, model="net", optimizer=sgd)
    into = seeded(2)
    adam = torch.optim.Adam(into.parameters())
    stepped(into, adam)
    before = untouched(into, adam)

    with pytest.raises(RefusedLoadError, match=r"SGD.*Adam"):
        reg.load("net", into=into, optimizer=adam)

    assert same(before[0], into.state_dict())
    assert same(before[1], adam.state_dict())


def test_a_parameter_that_the_net_does_not_own_is_refused_by_group_and_index(reg: Registry) -> None:
    net, foreign = seeded(1), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([*net.parameters()], lr=0.1)
    optimizer.add_param_group({"params": [foreign]})

    with pytest.raises(RefusedLoadError, match="parameter 0 of group 1"):
        reg.save(net, model="net", optimizer=optimizer)

    assert list(reg.find()) == []


class Stubborn:
    """State that saves, and refuses to load."""

    def state_dict(self) -> dict[str, int]:
        return {"a": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise RuntimeError("no")


def test_an_object_that_fails_to_load_leaves_net_and_optimizer_as_they_were(reg: Registry) -> None:
    net, optimizer, scheduler = setting(1)
    train(net, optimizer, scheduler, range(2))
    reg.save(net, model="net", optimizer=optimizer, scheduler=scheduler, stateful={"s": Stubborn()})
    into, into_optimizer, into_scheduler = setting(2)
    train(into, into_optimizer, into_scheduler, range(3))
    before = untouched(into, into_optimizer)
    schedule = dict(into_scheduler.state_dict())

    with pytest.raises(Exception, match="no"):
        reg.load(
            "net", into=into, optimizer=into_optimizer, scheduler=into_scheduler,
            stateful={"s": Stubborn()},
        )  # fmt: skip

    assert same(before[0], into.state_dict())
    assert same(before[1], into_optimizer.state_dict())
    assert schedule == into_scheduler.state_dict()


def test_weights_alone_leave_the_optimizer_and_say_so(reg: Registry) -> None:
    net, optimizer, scheduler = setting(1)
    train(net, optimizer, scheduler, range(1))
    reg.save(net, model="net", optimizer=optimizer, scheduler=scheduler)

    result = reg.load("net", into=(into := Net()))

    assert equal(net, into)
    assert {"optimizer", "scheduler"} <= set(result.ignored)
    assert result.plan.bytes_to_read < result.checkpoint.size_bytes / 2


def test_several_optimizers_are_restored_by_their_names(reg: Registry) -> None:
    net = Pair("a", "b")
    named = {
        "left": torch.optim.Adam([net.a], lr=0.1),
        "right": torch.optim.SGD([net.b], lr=0.2, momentum=0.9),
    }
    for optimizer in named.values():
        stepped(net, optimizer)
    checkpoint = reg.save(net, model="pair", optimizer=named)
    assert set(checkpoint.optimizers) == {"left", "right"}

    other = Pair("b", "a")
    again = {
        "right": torch.optim.SGD([other.b], lr=0.9, momentum=0.1),
        "left": torch.optim.Adam([other.a]),
    }
    reg.load("pair", into=other, optimizer=again)

    assert again["right"].param_groups[0]["momentum"] == 0.9
    assert same(again["left"].state[other.a], named["left"].state[net.a])


def test_the_random_states_come_back_where_asked_for(reg: Registry) -> None:
    torch.manual_seed(3)
    reg.save(seeded(1), model="net", rng=True)
    expected = torch.rand(4)

    torch.manual_seed(99)
    reg.load("net", into=seeded(2), rng=True)

    assert torch.equal(torch.rand(4), expected)


def test_lineage_follows_the_run_and_the_checkpoint_resumed_from(reg: Registry) -> None:
    net, optimizer, _ = setting(1)
    first = reg.save(net, model="net", epoch=0, optimizer=optimizer)
    second = reg.save(net, model="net", epoch=1, optimizer=optimizer)
    assert (first.parent, second.parent) == (None, first.id)
    assert first.run == second.run

    with Registry.open(reg.location) as later:
        into, into_optimizer, _ = setting(2)
        later.load(first, into=into, optimizer=into_optimizer)
        third = later.save(into, model="net", epoch=1)

    assert third.parent == first.id
    assert third.run != first.run


def test_a_named_run_is_continued_by_its_name(reg: Registry) -> None:
    with reg.run("net", dataset="digits", name="try-1", config={"lr": 0.1}, batch_size=64) as run:
        first = run.save(seeded(1), epoch=0, acc=0.5)
    with Registry.open(reg.location) as later:
        second = later.run("net", dataset="digits", name="try-1").save(seeded(2), epoch=1, acc=0.4)
        assert second.run == first.run
        assert second.parent == first.id
        assert later.best("net", run="try-1") == first
    assert first.config.to_dict() == {"lr": 0.1}
    assert first.batch_size == second.batch_size == 64


@pytest.mark.parametrize("params", [5, None, [[0], [1]], [None, None], {"a": 1}])
def test_an_optimizer_that_is_not_in_torchs_form_is_refused_and_the_weights_load(
    reg: Registry, tmp_path: Path, params: object
) -> None:
    odd = {"state": {0: {"step": 1}}, "param_groups": [{"params": params, "lr": 1.0}]}
    net = nn.Linear(3, 4)
    torch.save({"state_dict": net.state_dict(), "optimizer": odd}, tmp_path / "odd.pt")
    reg.push(tmp_path / "odd.pt", model="net")
    into = nn.Linear(3, 4)
    reg.load("net", into=into)
    assert same(into.state_dict(), net.state_dict())
    optimizer = torch.optim.SGD(into.parameters(), lr=0.1)
    with pytest.raises(RefusedLoadError):
        reg.load("net", into=into, optimizer=optimizer)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"0": {"step": 1}}, "its param groups name none of them"),
        ({0: 5}, "for weight it holds a int"),
    ],
)
def test_optimizer_state_that_would_be_lost_is_refused(
    reg: Registry, tmp_path: Path, state: object, why: str
) -> None:
    net = nn.Linear(3, 1, bias=False)
    odd = {"state": state, "param_groups": [{"params": [0], "param_names": ["weight"], "lr": 1.0}]}
    torch.save({"state_dict": net.state_dict(), "optimizer": odd}, tmp_path / "odd.pt")
    reg.push(tmp_path / "odd.pt", model="net")
    optimizer = torch.optim.LBFGS(net.parameters())
    with pytest.raises(RefusedLoadError, match=why):
        reg.load("net", into=net, optimizer=optimizer)
