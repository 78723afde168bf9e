"""`_extra_state` that is a tensor: what set_extra_state takes, and no weight of a fixed shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from registry import RefusedLoadError, Registry


class Scaled(nn.Module):
    """A layer that keeps pickled bytes as a tensor, as transformer_engine's do."""

    def __init__(self, kept: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.kept = kept

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


def net(kept: object) -> nn.Module:
    return nn.Sequential(Scaled(kept), nn.Linear(2, 2))


LONG = torch.arange(7, dtype=torch.uint8)


@pytest.mark.parametrize("how", ["save", "push", "safetensors"])
@pytest.mark.parametrize("before", [torch.zeros(2, dtype=torch.uint8), torch.zeros(0), {"a": 1}])
def test_a_tensor_of_extra_state_may_change_its_shape(
    reg: Registry, tmp_path: Path, how: str, before: object
) -> None:
    saved, target = net(LONG), nn.DataParallel(net(before))
    if how == "save":
        checkpoint = reg.save(saved, model="m")
    else:
        path = tmp_path / "f"
        if how == "push":
            torch.save(saved.state_dict(), path)
        else:
            save_file(saved.state_dict(), path)
        checkpoint = reg.push(path, model="m")
    result = reg.load(checkpoint, into=target)
    assert torch.equal(target.module[0].kept, LONG)
    assert target.module[0].kept.data_ptr() != LONG.data_ptr()
    assert "module.0._extra_state" in result.loaded
    state = reg.load(checkpoint).state_dict
    assert state is not None
    assert torch.equal(state["0._extra_state"], LONG)


def test_it_is_no_tensor_of_the_signature(reg: Registry) -> None:
    checkpoint = reg.save(net(LONG), model="m")
    assert checkpoint.tensors == 3
    assert checkpoint.parameters == 8
    assert [c.id for c in reg.fits(net({"any": "thing"}))] == [checkpoint.id]


def test_one_that_only_one_side_has_is_named(reg: Registry) -> None:
    checkpoint = reg.save(net(LONG), model="m")
    plain = nn.Sequential(nn.Module(), nn.Linear(2, 2))
    plain[0].weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(RefusedLoadError, match=r"unexpected .*'0\._extra_state'"):
        reg.load(checkpoint, into=plain)
    reg.load(checkpoint, into=plain, allow=["*_extra_state"])
    assert torch.equal(plain[0].weight, torch.ones(2))
    with pytest.raises(RefusedLoadError, match=r"missing .*'0\._extra_state'"):
        reg.load(reg.save(plain, model="m"), into=net(LONG))


def test_a_net_on_meta_gets_it(reg: Registry) -> None:
    checkpoint = reg.save(net(LONG), model="m")
    with torch.device("meta"):
        target = net(torch.zeros(3))
    reg.load(checkpoint, into=target, device="cpu")
    assert torch.equal(target[0].kept, LONG)
    assert torch.equal(target[0].weight, torch.ones(2))


def test_a_load_that_fails_gives_it_back(reg: Registry) -> None:
    class Fails(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise RuntimeError("no")

    checkpoint = reg.save(net(LONG), model="m")
    kept = torch.zeros(3)
    target = nn.Sequential(Scaled(kept), Fails(2, 2))
    with pytest.raises(RefusedLoadError, match="no"):
        reg.load(checkpoint, into=target)
    assert torch.equal(target[0].kept, torch.zeros(3))


def test_an_adapted_pull_keeps_it(reg: Registry, tmp_path: Path) -> None:
    checkpoint = reg.save(net(LONG), model="m")
    path = reg.pull(checkpoint, tmp_path / "f.pt", keys="module.", only="weights")
    assert torch.equal(torch.load(path, weights_only=True)["module.0._extra_state"], LONG)
