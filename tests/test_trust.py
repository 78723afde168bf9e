"""trust=: objects of exactly the named classes come back, functions never, nothing by itself."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_files import builder_of
from torch import nn

from registry import ContainerError, Registry, UntrustedError

RAN: list[object] = []
HERE = "test_trust"


class Canary:
    """Tells whenever code of its class runs."""

    def __new__(cls, *args: object) -> Canary:
        RAN.append("new")
        return super().__new__(cls)

    def __init__(self, value: int = 0) -> None:
        RAN.append("init")
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        RAN.append("state")
        self.__dict__.update(state)


class Child(Canary):
    """A class of its own: trust in its base says nothing of it."""


def ran(*_: object) -> None:
    RAN.append("called")


class Calls:
    """What a hostile file holds: a class that asks for a function."""

    def __reduce__(self) -> Any:
        return ran, ("called",)


class CallsLater:
    """An object whose state would be set by a function of the file's."""

    def __reduce__(self) -> Any:
        return CallsLater, (), {"a": 1}, None, None, ran


@dataclass
class Point:
    x: int
    y: Any = None


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


class Colour(enum.Enum):
    RED = 1

    def __reduce_ex__(self, protocol: object) -> tuple[type[Colour], tuple[int]]:
        """As Python's own does; that of 3.11.2 calls getattr, which is refused by name."""
        return type(self), (self.value,)


class Listed(list[int]):
    name = ""


class Keyed(dict[str, int]):
    pass


class Initialised:
    """Made by calling the class, as its __reduce__ asks, and then given a state."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.made = True

    def __reduce__(self) -> Any:
        return Initialised, (self.width,), {"depth": 7}


class Picky:
    def __setstate__(self, state: object) -> None:
        raise ValueError("not this state")


class Scheduler:
    """A scheduler or any stateful object whose state holds an object."""

    def __init__(self, best: object = None) -> None:
        self.best = best

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


NET = nn.Linear(2, 2)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def pushed(reg: Registry, tmp_path: Path, **beside: object) -> Any:
    torch.save({"state_dict": NET.state_dict(), **beside}, tmp_path / "f.pt")
    RAN.clear()
    return reg.push(tmp_path / "f.pt", model="m")


def extra(reg: Registry, tmp_path: Path, value: object, *trust: type) -> Any:
    result = reg.load(pushed(reg, tmp_path, thing=value), trust=trust)
    assert "extra.thing" not in result.ignored, result.ignored
    return result.extra["thing"]


def test_without_trust_no_code_runs_and_the_result_says_what_to_name(
    reg: Registry, tmp_path: Path
) -> None:
    checkpoint = pushed(reg, tmp_path, thing=Canary(3), plain=5)
    result = reg.load(checkpoint, into=nn.Linear(2, 2))
    assert RAN == []
    assert result.extra == {"plain": 5}
    assert f"trust=[{HERE}.Canary]" in result.ignored["extra.thing"]
    assert result.ignored[f"objects of {HERE}.Canary"] == "a load never runs a file's code"
    assert len(result.loaded) == 2


def test_an_object_of_a_named_class_comes_back(reg: Registry, tmp_path: Path) -> None:
    checkpoint = pushed(reg, tmp_path, thing=Canary(3))
    result = reg.load(checkpoint, trust=[Canary])
    assert type(result.extra["thing"]) is Canary
    assert result.extra["thing"].value == 3
    assert RAN == ["new", "state"]
    assert not [what for what in result.ignored if "Canary" in what]
    assert f"objects of {HERE}.Canary" not in str(reg.plan(checkpoint, trust=[Canary]))


def test_trust_is_in_exactly_the_named_classes(reg: Registry, tmp_path: Path) -> None:
    checkpoint = pushed(reg, tmp_path, thing=Child(3))
    result = reg.load(checkpoint, trust=[Canary, object])
    assert RAN == []
    assert f"trust=[{HERE}.Child]" in result.ignored["extra.thing"]


@pytest.mark.parametrize("made", [Calls, CallsLater])
def test_a_function_is_never_called_whatever_is_trusted(
    reg: Registry, tmp_path: Path, made: Any
) -> None:
    checkpoint = pushed(reg, tmp_path, thing=made())
    result = reg.load(checkpoint, trust=[made, Canary, list, dict, object, type, functools.partial])
    assert RAN == []
    assert result.extra == {}
    assert "test_trust.ran" in result.ignored["extra.thing"]
    assert "a function is never called" in result.ignored["extra.thing"]


def test_a_function_hidden_in_a_trusted_object_is_refused_with_it(
    reg: Registry, tmp_path: Path
) -> None:
    checkpoint = pushed(reg, tmp_path, thing=Point(1, Calls()), other=functools.partial(ran))
    result = reg.load(checkpoint, trust=[Point, functools.partial])
    assert RAN == []
    assert result.extra == {}
    assert {"extra.thing", "extra.other"} <= result.ignored.keys()


@pytest.mark.parametrize("wrong", [[len], [Canary(1)], ["test_trust.Canary"], "Canary", Canary])
def test_what_is_no_class_is_a_bad_call(reg: Registry, tmp_path: Path, wrong: Any) -> None:
    checkpoint = pushed(reg, tmp_path)
    with pytest.raises(TypeError, match="trust"):
        reg.load(checkpoint, trust=wrong)
    with pytest.raises(TypeError, match="trust"):
        reg.plan(checkpoint, trust=wrong)


def test_objects_come_back_as_unpickling_makes_them(reg: Registry, tmp_path: Path) -> None:
    assert extra(reg, tmp_path, Point(1, [2]), Point) == Point(1, [2])
    assert extra(reg, tmp_path, Slotted(4), Slotted).a == 4
    assert extra(reg, tmp_path, Colour.RED, Colour) is Colour.RED
    listed = Listed([3, 1])
    listed.name = "x"
    back = extra(reg, tmp_path, listed, Listed)
    assert (type(back), list(back), back.name) == (Listed, [3, 1], "x")
    keyed = Keyed(a=1)
    assert type(extra(reg, tmp_path, keyed, Keyed)) is Keyed
    assert extra(reg, tmp_path, keyed, Keyed) == keyed
    called = extra(reg, tmp_path, Initialised(3), Initialised)
    assert vars(called) == {"width": 3, "made": True, "depth": 7}
    shared = Point(0)
    one, two = extra(reg, tmp_path, [shared, shared], Point)
    assert one is two
    nested = extra(reg, tmp_path, Point(1, Point(torch.ones(2))), Point)  # type: ignore[arg-type]
    assert torch.equal(nested.y.x, torch.ones(2))


class Keyworded:
    """Made by `__new__` with keywords, which pickle spells from protocol 4 on."""

    def __new__(cls, *, width: int) -> Keyworded:
        made = super().__new__(cls)
        made.width = width  # type: ignore[attr-defined]
        return made

    def __init__(self, *, width: int) -> None:
        RAN.append("init")

    def __getnewargs_ex__(self) -> Any:
        return (), {"width": self.width}  # type: ignore[attr-defined]


def test_new_with_keywords_is_not_called_as_the_class(tmp_path: Path) -> None:
    torch.save({"x": Keyworded(width=3)}, tmp_path / "f.pt", pickle_protocol=4)
    RAN.clear()
    builder, contents = builder_of((tmp_path / "f.pt").read_bytes(), trust=[Keyworded])
    assert builder.tree(contents.root)["x"].width == 3
    assert RAN == []


def test_a_whole_module_beside_the_weights_comes_back(reg: Registry, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    back = extra(reg, tmp_path, [net], nn.Sequential, nn.Linear)[0]
    assert torch.equal(back[0].weight, net[0].weight)


def test_code_of_a_class_that_fails_is_an_error_and_no_traceback(
    reg: Registry, tmp_path: Path
) -> None:
    picky = Picky()
    picky.__dict__["a"] = 1
    checkpoint = pushed(reg, tmp_path, thing=picky)
    result = reg.load(checkpoint, trust=[Picky])
    assert "ValueError: not this state" in result.ignored["extra.thing"]


def test_scheduler_and_stateful_need_the_name_and_leave_the_net(
    reg: Registry, tmp_path: Path
) -> None:
    """A file that ckreg wrote holds plain values; one that was changed by hand may not."""
    path = tmp_path / "own.pt"
    reg.pull(reg.save(NET, model="m", scheduler=Scheduler(1), stateful={"s": Scheduler(2)}), path)
    tree = torch.load(path, weights_only=True)
    tree["scheduler"] = {"best": Point(1)}
    tree["stateful"] = {"s": {"best": Canary(2)}}
    torch.save(tree, path)
    RAN.clear()
    checkpoint = reg.push(path, model="m")
    net, scheduler, s = nn.Linear(2, 2), Scheduler(), Scheduler()
    before = net.weight.detach().clone()
    for trust, lacks in (((), "Canary"), ((Canary,), "Point"), ((Point,), "Canary")):
        with pytest.raises(UntrustedError, match=lacks) as caught:
            reg.load(checkpoint, into=net, scheduler=scheduler, stateful={"s": s}, trust=trust)
        assert f"trust=[{HERE}.{lacks}]" in str(caught.value.hint)
        assert torch.equal(net.weight, before)
        assert (scheduler.best, s.best) == (None, None)
    reg.load(checkpoint, into=net, scheduler=scheduler, stateful={"s": s}, trust=[Point, Canary])
    assert scheduler.best == Point(1)
    assert type(s.best) is Canary
    assert torch.equal(net.weight, NET.weight)


def test_no_state_gives_an_object_another_class(tmp_path: Path) -> None:
    class Turned:
        def __reduce__(self) -> Any:
            return Point, (1,), (None, {"__class__": Canary})

    torch.save({"x": Turned()}, tmp_path / "f.pt")
    builder, contents = builder_of((tmp_path / "f.pt").read_bytes(), trust=[Point, Canary])
    with pytest.raises((UntrustedError, ContainerError), match="__class__"):
        builder.tree(contents.root)
