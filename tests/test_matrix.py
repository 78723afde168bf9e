"""Every way of wrapping, saved and loaded into every other: the values are equal bit for bit."""

from __future__ import annotations

import pytest
import torch
from nets import WRAPS, equal, seeded

from registry import Registry

PAIRS = [(s, t) for s in WRAPS for t in WRAPS]


@pytest.mark.parametrize(("saved", "target"), PAIRS, ids=[f"{s} to {t}" for s, t in PAIRS])
def test_saved_under_one_wrapper_loads_bit_equal_under_another(
    reg: Registry, saved: str, target: str
) -> None:
    source = WRAPS[saved](seeded(1))
    into = WRAPS[target](seeded(2))
    assert not equal(source, into)
    reg.save(source, model="net", epoch=3, acc=0.5)

    result = reg.load("net@best", into=into)

    assert equal(source, into)
    tensors = len(seeded(1).state_dict())
    averaged = "AveragedModel"
    restored = 1 if saved == target == averaged else 0
    assert len(result.loaded) == tensors + restored
    assert result.missing == result.unexpected == ()
    if saved == averaged != target:
        assert any("n_averaged" in what and reason for what, reason in result.ignored.items())
    if target == averaged != saved:
        assert [n.what for n in result.plan.kept if "n_averaged" in n.what]


@pytest.mark.parametrize("saved", WRAPS)
def test_what_is_saved_reads_with_plain_torch_under_canonical_keys(
    reg: Registry, saved: str, tmp_path
) -> None:
    source = WRAPS[saved](seeded(1))
    path = reg.pull(reg.save(source, model="net"), tmp_path / "net.pt")

    plain = torch.load(path, weights_only=True, map_location="cpu")

    fresh = seeded(2)
    fresh.load_state_dict(plain["state_dict"], strict=True)
    assert equal(source, fresh)


def test_the_number_of_averaged_models_is_restored(reg: Registry) -> None:
    source = torch.optim.swa_utils.AveragedModel(seeded(1))
    source.n_averaged.fill_(12)
    into = torch.optim.swa_utils.AveragedModel(seeded(2))

    checkpoint = reg.save(source, model="net")
    reg.load(checkpoint, into=into)

    assert int(into.n_averaged) == 12
    assert checkpoint.weights == "ema"
