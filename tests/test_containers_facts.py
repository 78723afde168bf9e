"""What a file states is told by values under customary keys, and nothing is computed."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reading import contents_of, described, saved
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from registry import AmbiguousError, ContainerError
from registry.containers import Opaque, Tensor


def net() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


KEYS = list(net().state_dict())


def facts(value: Any, tmp_path: Path, *, legacy: bool = False) -> Any:
    return described(saved(value, tmp_path / "f.pt", legacy=legacy))


@pytest.mark.parametrize("legacy", [False, True])
def test_the_customary_dictionary_is_understood(tmp_path: Path, legacy: bool) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    found = facts(
        {
            "epoch": 12,
            "model": "resnet50",
            "dataset": "cifar10",
            "state_dict": model.state_dict(),
            "acc": 0.93,
            "optimizer": optimizer.state_dict(),
        },
        tmp_path,
        legacy=legacy,
    )
    assert (found.model, found.dataset, found.epoch, found.acc) == ("resnet50", "cifar10", 12, 0.93)
    assert list(found.weights) == KEYS
    assert found.where == "state_dict"
    assert found.metadata[""] == {"version": 1}
    assert list(found.optimizers) == ["optimizer"]
    assert found.optimizers["optimizer"]["param_groups"][0]["params"] == [0, 1, 2, 3]
    assert (found.metrics, found.extra, found.record, found.ema, found.step) == (
        {},
        {},
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda s: s, ""),
        (lambda s: dict(s), ""),
        (lambda s: {"state_dict": s}, "state_dict"),
        (lambda s: {"net": s, "acc": 93.1, "epoch": 1}, "net"),
        (lambda s: {"model": s}, "model"),
        (lambda s: {"model": {"state_dict": s, "args": {}}}, "model.state_dict"),
        (
            lambda s: {"anything": {"goes": s}, "rng": {"cpu": torch.get_rng_state()}},
            "anything.goes",
        ),
        (lambda s: {"model": "resnet50", "weights": s}, "weights"),
        (lambda s: {"state_dict": s, "discriminator": dict(s)}, "state_dict"),
        (lambda s: {"module": s, "rng_state": {"cpu": torch.get_rng_state()}}, "module"),
    ],
)
def test_weights_are_found_where_they_lie(wrap: Any, where: str, tmp_path: Path) -> None:
    found = facts(wrap(net().state_dict()), tmp_path)
    assert found.where == where
    assert list(found.weights) == KEYS


def test_several_sets_without_a_customary_name_are_ambiguous(tmp_path: Path) -> None:
    state = net().state_dict()
    with pytest.raises(
        AmbiguousError, match=r"generator \(7 tensors\), discriminator \(7 tensors\)"
    ) as caught:
        facts({"generator": state, "discriminator": dict(state)}, tmp_path)
    assert caught.value.candidates == ("generator", "discriminator")


def test_what_is_passed_over_is_noted(tmp_path: Path) -> None:
    state = net().state_dict()
    found = facts({"state_dict": state, "critic": dict(state)}, tmp_path)
    assert found.notes == ("7 tensors at 'critic' are not taken for weights",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 1, "loss": 0.5}, r"a dict of 2: 'epoch': a int, 'loss': a float"),
        ([1, 2], "a list of 2"),
        (torch.ones(2), "a float32 tensor"),
        ({}, "an empty dict"),
        (
            {"optimizer": torch.optim.SGD(net().parameters()).state_dict()},
            "'optimizer': a dict of 2",
        ),
        ({1: torch.ones(2)}, "a float32 tensor"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(
    value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ContainerError, match=message):
        facts(value, tmp_path)


def test_averaged_weights_beside_live_ones_are_apart(tmp_path: Path) -> None:
    state = net().state_dict()
    averaged = {k: v + 1 for k, v in state.items()}
    for key in ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "swa_model"):
        found = facts({"state_dict": state, key: averaged}, tmp_path)
        assert (found.where, found.ema_where) == ("state_dict", key)
        assert list(found.ema) == KEYS
        assert found.weights[KEYS[0]].storage is not found.ema[KEYS[0]].storage
        assert found.notes == ()
    only = facts({"ema": averaged, "epoch": 3}, tmp_path)
    assert only.where == only.ema_where == "ema"
    assert facts({"model": state, "schema": {"n": 1}}, tmp_path).ema is None


def test_an_averaged_models_own_keys_stand_as_they_are(tmp_path: Path) -> None:
    found = facts(
        {"model": net().state_dict(), "model_ema": AveragedModel(net()).state_dict()}, tmp_path
    )
    assert list(found.ema) == ["n_averaged", *(f"module.{key}" for key in KEYS)]


def test_running_bests_are_metrics_and_never_acc(tmp_path: Path) -> None:
    state = net().state_dict()
    found = facts(
        {
            "state_dict": state,
            "best_acc1": 76.1,
            "best_val_loss": np.float32(0.5),
            "best_metric": 1,
            "best_model_score": torch.tensor(0.25),
            "accuracy": 0.9,
            "loss": torch.tensor([2.0]),
            "lr": 0.1,
            "metrics": {"val/loss": 0.3, "top5": np.float64(0.99), "note": "x"},
            "best_loss": float("inf"),
            "best_epoch": 7,
        },
        tmp_path,
    )
    assert found.acc is None
    assert found.metrics == {
        "val/loss": 0.3,
        "top5": 0.99,
        "best_acc1": 76.1,
        "best_val_loss": 0.5,
        "best_metric": 1.0,
        "best_model_score": 0.25,
        "accuracy": 0.9,
        "loss": 2.0,
    }
    assert found.skipped_metrics == {"best_loss": "inf"}
    assert found.extra == {"lr": 0.1, "best_epoch": 7}
    assert found.epoch is None


@pytest.mark.parametrize(
    "number",
    [
        torch.tensor(7),
        torch.tensor([7]),
        torch.tensor(7, dtype=torch.uint8),
        np.int64(7),
        7,
        torch.arange(10)[7],
    ],
)
def test_scalars_are_taken_as_plain_numbers(number: Any, tmp_path: Path) -> None:
    found = facts({"state_dict": net().state_dict(), "epoch": number, "acc": number}, tmp_path)
    assert (found.epoch, found.acc) == (7, 7.0)
    assert type(found.epoch) is int
    assert type(found.acc) is float


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("legacy", [False, True])
def test_an_acc_of_any_float_dtype_is_read_exactly(
    dtype: str, legacy: bool, tmp_path: Path
) -> None:
    acc = torch.tensor([9.0, 0.937], dtype=getattr(torch, dtype))[1]
    found = facts({"net": net().state_dict(), "acc": acc}, tmp_path, legacy=legacy)
    assert found.acc == acc.item()


def test_facts_of_other_types_stay_in_extra(tmp_path: Path) -> None:
    odd = {"epoch": "12", "acc": True, "dataset": 3, "model": None, "step": -1, "batch_size": 1.5}
    found = facts({"state_dict": net().state_dict(), **odd}, tmp_path)
    assert (found.epoch, found.acc, found.dataset, found.model, found.step, found.batch_size) == (
        None,
    ) * 6
    assert found.extra == odd


def test_nan_is_handed_on_for_the_caller_to_refuse(tmp_path: Path) -> None:
    found = facts({"state_dict": net().state_dict(), "acc": float("nan")}, tmp_path)
    assert found.acc != found.acc


def test_settings_are_taken_as_plain_data(tmp_path: Path) -> None:
    args = argparse.Namespace(
        lr=0.1, name="x", path=Path("/a"), layers=[1, 2], tensor=torch.ones(1)
    )
    found = facts({"state_dict": net().state_dict(), "args": args, "arch": "resnet18"}, tmp_path)
    assert found.config == {"lr": 0.1, "name": "x", "layers": [1, 2]}
    assert found.model == "resnet18"


def test_optimizers_keep_their_names_unless_there_is_one(tmp_path: Path) -> None:
    state = net().state_dict()
    optimizer = torch.optim.SGD(net().parameters(), momentum=0.9).state_dict()
    for key in ("optimizer", "optimizer_state_dict", "optim"):
        assert list(facts({"model": state, key: optimizer}, tmp_path).optimizers) == ["optimizer"]
    pair = {"model": state, "optimizer_G": optimizer, "optimizer_D": dict(optimizer)}
    assert list(facts(pair, tmp_path).optimizers) == ["optimizer_G", "optimizer_D"]
    named = facts(
        {"model": state, "optimizer": {"gen": optimizer, "dis": dict(optimizer)}}, tmp_path
    )
    assert list(named.optimizers) == ["gen", "dis"]
    listed = facts({"state_dict": state, "optimizer_states": [optimizer]}, tmp_path)
    assert list(listed.optimizers) == ["optimizer"]


def test_a_scheduler_is_found_under_its_customary_names(tmp_path: Path) -> None:
    scheduler = {"last_epoch": 3, "base_lrs": [0.1]}
    for key in ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict"):
        found = facts({"model": net().state_dict(), key: scheduler}, tmp_path)
        assert found.scheduler == scheduler
        assert found.extra == {}
    assert (
        facts({"model": net().state_dict(), "lr_schedulers": [scheduler]}, tmp_path).scheduler
        == scheduler
    )


def test_extra_state_and_unreadable_tensors_stand_beside_the_weights(tmp_path: Path) -> None:
    state = OrderedDict(net().state_dict())
    state["0._extra_state"] = {"k": 1}
    state["1._extra_state"] = torch.ones(2)
    state["meta"] = torch.ones(2, device="meta")
    found = facts({"state_dict": state}, tmp_path)
    assert list(found.weights) == KEYS
    assert found.others["0._extra_state"] == {"k": 1}
    assert isinstance(found.others["1._extra_state"], Tensor)
    assert list(found.unbuildable) == ["meta"]
    assert isinstance(found.unbuildable["meta"], Opaque)


def test_a_pickled_module_is_described_by_its_state_dicts_names(tmp_path: Path) -> None:
    model = net()
    model[0].register_buffer("cache", torch.ones(9), persistent=False)
    for value, where in ((model, ""), ({"model": model, "epoch": 2}, "model")):
        found = facts(value, tmp_path)
        assert found.where == where
        assert found.module == "torch.nn.modules.container.Sequential"
        assert list(found.weights) == list(model.state_dict())
        assert [t.kind for t in found.weights.values()] == ["parameter"] * 4 + ["buffer"] * 3


def test_a_module_that_is_used_twice_has_both_names(tmp_path: Path) -> None:
    shared = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    found = facts(model, tmp_path)
    assert list(found.weights) == list(model.state_dict())
    assert found.weights["0.weight"].storage is found.weights["2.weight"].storage


RECORD = {
    "format": 1,
    "key_style": "module.",
    "parent": None,
    "metrics": {"acc": 0.5},
    "ties": [["a", "b"]],
}


def test_a_file_of_our_own_is_read_where_save_puts_things(tmp_path: Path) -> None:
    state = net().state_dict()
    own = {
        "epoch": 1,
        "model": "m",
        "dataset": None,
        "state_dict": state,
        "acc": 0.5,
        "step": 9,
        "metrics": {"acc": 0.5},
        "config": {"lr": 0.1},
        "batch_size": 4,
        "stateful": {"ema": dict(state)},
        "rng": {"cpu": torch.get_rng_state()},
        "extra": {"model": dict(state), "note": "x"},
        "wrapper_state": {"n_averaged": torch.tensor(3)},
        "ckreg": RECORD,
    }
    found = facts(own, tmp_path)
    assert found.record == RECORD
    assert (found.where, found.ema, found.notes) == ("state_dict", None, ())
    assert (found.step, found.batch_size, found.config) == (9, 4, {"lr": 0.1})
    assert list(found.stateful) == ["ema"]
    assert set(found.extra) == {"model", "note"}
    assert list(found.wrapper_state) == ["n_averaged"]
    assert list(found.rng) == ["cpu"]


@pytest.mark.parametrize(
    "more",
    [
        {"x": torch.ones(1)},
        {"x": {1: 2}},
        {"x": float("nan")},
        {"x": b"y"},
        {"x": 2**70},
        {"x": argparse.Namespace},
    ],
)
def test_a_record_that_is_not_plain_data_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="more than plain data"):
        facts({"state_dict": net().state_dict(), "ckreg": {**RECORD, **more}}, tmp_path)


def test_somebody_elses_ckreg_key_is_no_record(tmp_path: Path) -> None:
    for other in ("text", {"a": 1}, {"format": "1"}, {"format": True}):
        assert facts({"state_dict": net().state_dict(), "ckreg": other}, tmp_path).record is None


def test_safetensors_state_facts_in_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file(
        net().state_dict(),
        path,
        metadata={"dataset": "cifar10", "epoch": "3", "ckreg": json.dumps(RECORD)},
    )
    found = described(path)
    assert set(found.weights) == set(KEYS)
    assert (found.where, found.dataset, found.record) == ("", "cifar10", RECORD)
    assert found.epoch is None  # it is text: nothing is computed
    save_file(net().state_dict(), path, metadata={"ckreg": "{broken"})
    assert described(path).record is None


def test_the_root_of_a_bare_state_dict_states_nothing(tmp_path: Path) -> None:
    contents = contents_of(saved(net().state_dict(), tmp_path / "f"))
    assert contents.unsafe_globals == ()
    found = described(tmp_path / "f")
    assert found.extra == {}
    assert found.metadata[""] == {"version": 1}
