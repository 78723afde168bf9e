"""The cases of people's checkpoints that load right or are refused, each by its number.

A refusal comes before the target is touched: `refused` compares every tensor before and after.
Folders of several files (18, 19, 20, 26, 28) have tests of their own.
"""

from __future__ import annotations

import argparse
import copy
import math
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import Net, equal, seeded
from test_foreign import tagged
from torch import nn
from torch.nn.utils import prune

from registry import (
    AmbiguousError,
    Checkpoint,
    CkregError,
    RefusedLoadError,
    Registry,
)

Push = Callable[..., Checkpoint]
MLP_SIZES = (3, 4, 2)


@pytest.fixture
def push(reg: Registry, tmp_path: Path) -> Push:
    """Return what pushes a tree as torch.save writes it, without any record of ours."""

    def make(tree: object, **how: Any) -> Checkpoint:
        path = tmp_path / "file.pt"
        torch.save(tree, path, **how)
        return reg.push(path, model="net")

    return make


def mlp(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def under(**children: nn.Module) -> nn.Module:
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder


def refused(
    reg: Registry, ref: Checkpoint, into: nn.Module, error: type[CkregError] = RefusedLoadError,
    /, **how: Any,
) -> str:  # fmt: skip
    """Return why a load is refused, having seen that it touched nothing."""
    before = {k: copy.deepcopy(v) for k, v in into.state_dict().items()}
    held = {k: id(v) for k, v in [*into.named_parameters(), *into.named_buffers()]}
    with pytest.raises(error) as caught:
        reg.load(ref, into=into, **how)
    assert {k: id(v) for k, v in [*into.named_parameters(), *into.named_buffers()]} == held
    after = into.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, torch.Tensor) and not value.is_meta:
            assert torch.equal(value, after[key]), key
    return f"{caught.value}"


# --- keys: 1 to 6, 34, 35, 40 ---------------------------------------------------------------------


def test_case_1_a_child_called_module_stays_where_it_is(reg: Registry, push: Push) -> None:
    source, into = under(module=mlp(1)), under(module=mlp(2))
    result = reg.load(push(source.state_dict()), into=into)
    assert equal(into, source)
    assert result.plan.renames == {}


def test_case_2_keys_with_and_without_the_token_lose_nothing(reg: Registry, push: Push) -> None:
    class Both(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.weight = nn.Parameter(torch.randn(2, 2))
            self.module = nn.Linear(2, 2, bias=False)

    source, into = Both(1), Both(2)
    checkpoint = push(source.state_dict())
    assert len(reg.load(checkpoint, into=into).loaded) == 2
    assert equal(into, source)
    state = reg.load(checkpoint).state_dict
    assert state is not None
    assert set(state) == {"weight", "module.weight"}


def test_case_3_a_wrapper_in_the_middle_loads_into_the_plain_net(reg: Registry, push: Push) -> None:
    wrapped = under(features=nn.DataParallel(mlp(1)), classifier=nn.Linear(2, 2))
    assert "features.module.0.weight" in wrapped.state_dict()
    into = under(features=mlp(2), classifier=nn.Linear(2, 2))
    reg.load(push(wrapped.state_dict()), into=into)
    assert equal(into, wrapped)


@pytest.mark.parametrize("target", ["plain", "compiled"])
def test_case_4_a_compiled_nets_file_loads_plain_and_compiled(
    reg: Registry, push: Push, target: str
) -> None:
    checkpoint = push({"model": prefixed("_orig_mod.", mlp(1).state_dict()), "iter_num": 7})
    into = mlp(2)
    reg.load(checkpoint, into=into if target == "plain" else torch.compile(into))
    assert equal(into, mlp(1))


def test_case_5_two_ways_that_fit_are_refused_with_both_shown(reg: Registry, push: Push) -> None:
    checkpoint = push({"module.module.w": torch.ones(1), "module.module.v": torch.ones(2)})
    into = under(module=nn.Module())
    for module in (into, into.module):
        assert isinstance(module, nn.Module)
        module.w, module.v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))
    why = refused(reg, checkpoint, into, AmbiguousError, allow=["*"])
    assert "keys='module.'" in why
    assert "keys='module.module.'" in why


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_case_6_a_prefix_on_half_the_keys_is_never_stripped(
    reg: Registry, push: Push, prefix: str
) -> None:
    state = mlp(1).state_dict()
    half = {(prefix if i % 2 else "") + k: v for i, (k, v) in enumerate(state.items())}
    checkpoint = push(half)
    why = refused(reg, checkpoint, mlp(2))
    assert "missing" in why
    assert f"'{prefix}0.bias'" in why
    assert "stripped" in refused(reg, checkpoint, mlp(2), keys=prefix) or prefix == "module."


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "model._orig_mod.", "module.model.", "_forward_module.model."]
)
def test_case_34_lightnings_attribute_is_inferred_into_the_bare_network(
    reg: Registry, push: Push, prefix: str
) -> None:
    checkpoint = push(
        {
            "pytorch-lightning_version": "2.5",
            "state_dict": prefixed(prefix, mlp(1).state_dict()),
            "epoch": 3,
        }
    )
    into = mlp(2)
    result = reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))
    assert result.plan.keys_from == "inferred"
    assert result.plan.reading.drop in ("model", "net")


def test_case_34_old_counters_are_still_missing_under_an_attribute(
    reg: Registry, push: Push
) -> None:
    state = OrderedDict(prefixed("model.", mlp(1).state_dict()))
    del state["model.1.num_batches_tracked"]
    assert "num_batches_tracked" in refused(reg, push(state), mlp(2))


def test_case_34_the_reverse_and_what_is_stated_by_hand(reg: Registry, push: Push) -> None:
    holder = under(model=mlp(2))
    reg.load(push(mlp(1).state_dict()), into=holder)
    assert equal(holder, mlp(1))
    own = reg.save(under(model=mlp(3)), model="own")
    into = mlp(2)
    assert "keys='model.'" in refused(reg, own, into)
    assert reg.load(own, into=into, keys="model.").plan.keys_from == "stated"
    assert equal(into, mlp(3))
    state = reg.load(own, keys="model.").state_dict
    assert state is not None
    assert list(state) == list(mlp(3).state_dict())


def test_case_34_an_optimizer_goes_along_under_the_attribute(reg: Registry) -> None:
    source = under(model=mlp(1))
    trained = torch.optim.Adam(source.parameters())
    source.model(torch.ones(2, 3)).sum().backward()
    trained.step()
    own = reg.save(source, model="own", optimizer=trained)
    into = mlp(2)
    again = torch.optim.Adam(into.parameters())
    reg.load(own, into=into, optimizer=again, keys="model.")
    ours, theirs = again.state_dict()["state"], trained.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)


def test_case_35_a_base_models_file_fills_the_headed_model_and_lists_the_head(
    reg: Registry, push: Push
) -> None:
    checkpoint = push(mlp(1).state_dict())
    headed = under(bert=mlp(2), classifier=nn.Linear(2, 5))
    why = refused(reg, checkpoint, headed)
    assert "keys='+bert.': 9 of 11 fit" in why
    assert "'classifier.weight'" in why
    head = headed.classifier.weight.clone()
    result = reg.load(checkpoint, into=headed, allow=["classifier.*"])
    assert equal(headed.bert, mlp(1))
    assert result.missing == ("classifier.weight", "classifier.bias")
    assert torch.equal(headed.classifier.weight, head)


def test_case_35_a_headed_models_file_fills_the_base_model(reg: Registry, push: Push) -> None:
    headed = under(bert=mlp(1), classifier=nn.Linear(2, 5))
    checkpoint, into = push(headed.state_dict()), mlp(2)
    assert "'classifier.weight'" in refused(reg, checkpoint, into)
    result = reg.load(checkpoint, into=into, allow=["classifier.*"])
    assert equal(into, mlp(1))
    assert result.unexpected == ("classifier.weight", "classifier.bias")


def test_case_40_wrappers_three_deep_with_one_inside(reg: Registry, push: Push) -> None:
    inner = seeded(1)
    inner.features = nn.DataParallel(inner.features)  # type: ignore[assignment]
    source = nn.DataParallel(torch.compile(torch.optim.swa_utils.AveragedModel(inner)))
    into = seeded(2)
    reg.load(push(source.state_dict()), into=into)
    assert equal(into, source)
    reg.load(reg.save(source, model="own"), into=(again := seeded(3)))
    assert equal(again, source)


# --- devices: 7, 8, 9 -----------------------------------------------------------------------------


def test_case_7_storages_of_two_gpus_load_on_the_cpu_and_are_reported(
    reg: Registry, push: Push
) -> None:
    turn = iter(range(10**6))
    torch.serialization.register_package(
        0, lambda storage: f"cuda:{next(turn) % 2}", lambda storage, location: None
    )
    try:
        checkpoint = push(mlp(1).state_dict())
    finally:
        registered = torch.serialization._package_registry
        registered[:] = [entry for entry in registered if entry[0] != 0]
    into = mlp(2)
    reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))
    assert set(checkpoint.topology.storage_tags) == {"cuda:0", "cuda:1"}


def test_case_8_a_running_best_on_an_absent_gpu_is_a_metric_of_its_own(
    reg: Registry, push: Push
) -> None:
    with tagged("cuda:3"):
        checkpoint = push({"state_dict": mlp(1).state_dict(), "best_acc1": torch.tensor(76.5)})
    assert dict(checkpoint.metrics) == {"best_acc1": 76.5}
    assert checkpoint.acc is None
    into = mlp(2)
    reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))


def test_case_9_tensors_without_values_are_refused(reg: Registry, push: Push) -> None:
    with torch.device("meta"):
        hollow = mlp()
    checkpoint = push(hollow.state_dict())
    assert "meta device" in refused(reg, checkpoint, mlp(2))
    with pytest.raises(RefusedLoadError, match="meta device"):
        reg.load(checkpoint)
    assert "meta device" in refused(
        reg, push({**mlp(1).state_dict(), "0.bias": hollow[0].bias}), mlp(2)
    )


# --- what is missing or of another sort: 10, 11, 16, 30, 32 ---------------------------------------


def test_case_10_counters_that_the_file_lacks_are_named(reg: Registry, push: Push) -> None:
    state = nn.DataParallel(mlp(1)).state_dict()
    del state["module.1.num_batches_tracked"]
    checkpoint, into = push(state), mlp(2)
    why = refused(reg, checkpoint, into)
    assert "'1.num_batches_tracked'" in why
    assert "allow=" in why
    into[1].num_batches_tracked.fill_(5)
    assert reg.load(checkpoint, into=into, allow=["*num_batches_tracked"]).missing
    assert int(into[1].num_batches_tracked) == 5


def test_case_11_halves_need_a_cast_and_overflow_is_refused_even_then(
    reg: Registry, push: Push
) -> None:
    half = push(mlp(1).half().state_dict())
    into = mlp(2)
    assert "cast='widen'" in refused(reg, half, into)
    reg.load(half, into=into, cast="widen")
    assert torch.equal(into[0].weight, mlp(1).half()[0].weight.float())
    big = mlp(1)
    with torch.no_grad():
        big[0].weight[0, 0] = 1e6
    checkpoint, small = push(big.state_dict()), mlp(2).half()
    assert "cast='narrow'" in refused(reg, checkpoint, small)
    assert "0.weight" in refused(reg, checkpoint, small, cast="narrow")


def linear(wrap: Callable[[nn.Linear], object] = lambda layer: None) -> nn.Module:
    layer = nn.Linear(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates weight_norm, and people's files have it
        wrap(layer)
    return under(fc=layer)


STRUCTURES: dict[str, Callable[[nn.Linear], object]] = {
    "parametrizations.weight_norm": nn.utils.parametrizations.weight_norm,
    "torch.nn.utils.weight_norm": nn.utils.weight_norm,
    "parametrizations.spectral_norm": nn.utils.parametrizations.spectral_norm,
    "torch.nn.utils.spectral_norm": nn.utils.spectral_norm,
    "torch.nn.utils.parametrize": nn.utils.parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_case_16_a_structure_of_the_file_is_named_and_never_stripped(
    reg: Registry, push: Push, name: str
) -> None:
    checkpoint = push(linear(STRUCTURES[name]).state_dict())
    why = refused(reg, checkpoint, linear())
    assert "the file has" in why
    assert name in why
    assert "hint" in why


@pytest.mark.parametrize("name", STRUCTURES)
def test_case_16_a_structure_of_the_net_is_named(reg: Registry, push: Push, name: str) -> None:
    why = refused(reg, push(linear().state_dict()), linear(STRUCTURES[name]))
    assert "the net has" in why
    assert name in why


def test_case_16_weight_norm_new_and_old_are_told_apart(reg: Registry, push: Push) -> None:
    new, old = (STRUCTURES[n] for n in list(STRUCTURES)[:2])
    for there, here in ((new, old), (old, new)):
        why = refused(reg, push(linear(there).state_dict()), linear(here))
        assert "parametrizations.weight_norm" in why
        assert "of the old kind" in why
        assert "load into the plain net" not in why


def quantised() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def test_case_16_quantised_layers_are_named(reg: Registry, push: Push) -> None:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    state = quantised().state_dict()
    state["1.weight"] = torch.ones(2)
    why = refused(reg, push(state), nn.Sequential(nn.Linear(4, 4), nn.Linear(2, 2)))
    assert "quantised" in why


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["fc.base_layer.weight", "fc.lora_A.default.weight", "fc.lora_B.default.weight"], "LoRA"),
        (["fc.weight", "fc.lora_A", "fc.lora_B"], "LoRA"),
        (["fc.qweight", "fc.qzeros", "fc.scales"], "GPTQ"),
        (["fc.weight", "fc.weight.absmax", "fc.weight.quant_map"], "bitsandbytes"),
        (["fc.weight", "fc.scale", "fc.zero_point"], "quantised"),
        (["fc.weight", "fc.activation_post_process.min_val"], "observers"),
        (["fc.weight", "bn.running_mean", "bn.running_var"], "BatchNorm"),
    ],
)
def test_case_16_other_structures_are_named(
    reg: Registry, push: Push, keys: list[str], named: str
) -> None:
    checkpoint = push({key: torch.ones(4, 4) for key in [*keys, "fc.bias"]})
    assert named in refused(reg, checkpoint, linear())


def test_case_30_a_pattern_that_excuses_nothing_excuses_no_load(reg: Registry, push: Push) -> None:
    checkpoint = push({"other.weight": torch.ones(3)})
    assert "no tensor" in refused(reg, checkpoint, mlp(2), allow=["*"])
    into = mlp(2)
    before = into[0].weight.clone()
    with pytest.raises(ValueError, match="excuses nothing"):
        reg.load(push(mlp(1).state_dict()), into=into, allow=["head.*"])
    assert torch.equal(into[0].weight, before)


def test_case_32_one_missing_key_of_a_hundred_touches_nothing(reg: Registry, push: Push) -> None:
    def wide(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))

    state = wide(1).state_dict()
    assert len(state) == 100
    del state["31.bias"]
    why = refused(reg, push(state), wide(2))
    assert "1 missing" in why
    assert "'31.bias'" in why


# --- ties, views, meta: 12 to 15, 17, 31 ----------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("own", [True, False], ids=["saved", "pushed"])
def test_case_12_a_meta_target_is_tied_again(reg: Registry, push: Push, own: bool) -> None:
    source = Tied()
    checkpoint = reg.save(source, model="own") if own else push(source.state_dict())
    with torch.device("meta"):
        into = Tied(2)
    reg.load(checkpoint, into=into)
    assert into.head.weight is into.embedding.weight
    assert len(list(into.parameters())) == 1
    assert torch.equal(into.head.weight, source.head.weight)


def test_case_13_a_tied_name_absent_from_safetensors_is_filled(
    reg: Registry, tmp_path: Path
) -> None:
    from safetensors.torch import save_model

    save_model(Tied(), str(tmp_path / "w.safetensors"))
    checkpoint = reg.push(tmp_path / "w.safetensors", model="net")
    assert checkpoint.tensors == 1
    into = Tied(2)
    reg.load(checkpoint, into=into)
    assert equal(into, Tied())
    assert into.head.weight is into.embedding.weight


def test_case_14_one_tensor_with_two_values_is_refused(reg: Registry, push: Push) -> None:
    state = {k: v + i for i, (k, v) in enumerate(Tied().state_dict().items())}
    assert "different values" in refused(reg, push(state), Tied(2))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("angles", torch.empty(3), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.angles, 7.0)


def test_case_15_a_buffer_that_no_file_holds_is_rebuilt(reg: Registry) -> None:
    checkpoint = reg.save(Rotary(), model="own")
    with torch.device("meta"):
        into = Rotary()
    reg.load(checkpoint, into=into)
    assert torch.equal(into.angles, torch.full((3,), 7.0))
    assert not any(t.is_meta for t in [*into.parameters(), *into.buffers()])


def test_case_17_an_optimizer_of_the_meta_parameters_is_detected(reg: Registry) -> None:
    source = mlp(1)
    checkpoint = reg.save(source, model="own", optimizer=torch.optim.SGD(source.parameters(), 0.1))
    with torch.device("meta"):
        into = mlp()
    optimizer = torch.optim.SGD(into.parameters(), 0.1)
    why = refused(reg, checkpoint, into, optimizer=optimizer)
    assert "optimizer" in why
    assert all(p.is_meta for p in into.parameters())


def test_case_31_one_row_of_a_large_storage_is_saved_small(reg: Registry) -> None:
    class Row(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.register_buffer("row", torch.randn(10_000, 64)[17])

    checkpoint = reg.save(Row(1), model="own")
    assert checkpoint.size_bytes < 20_000
    into = Row(2)
    reg.load(checkpoint, into=into)
    assert torch.equal(into.row, Row(1).row)


# --- what else lies in files: 21 to 25, 33 --------------------------------------------------------


def test_case_21_numpy_scalars_and_a_namespace_need_no_trust(reg: Registry, push: Push) -> None:
    checkpoint = push(
        {
            "state_dict": mlp(1).state_dict(),
            "acc": np.float64(0.75),
            "args": argparse.Namespace(lr=0.1, arch="mlp"),
        }
    )
    assert checkpoint.acc == 0.75
    into = mlp(2)
    reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))


class Canary:
    """Leaves a file when it is unpickled by code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_case_22_a_whole_modules_weights_come_out_without_its_code(
    reg: Registry, push: Push, tmp_path: Path
) -> None:
    module = mlp(1)
    canary = tmp_path / "canary"
    module.canary = Canary(str(canary))  # type: ignore[assignment]
    checkpoint = push(module)
    into = mlp(2)
    reg.load(checkpoint, into=into)
    reg.pull(checkpoint, tmp_path / "weights.pt", only="weights")
    assert equal(into, mlp(1))
    plain = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(plain["0.weight"], mlp(1)[0].weight)
    assert not canary.exists()


def test_case_23_torchscript_and_exported_programs_are_named(reg: Registry, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(mlp(1)).save(str(tmp_path / "script.pt"))
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    torch.export.save(program, tmp_path / "program.pt2")
    for name, called in (("script.pt", "TorchScript"), ("program.pt2", "pt2")):
        with pytest.raises(CkregError, match=f"(?i){called}") as caught:
            reg.load(reg.push(tmp_path / name, model="net"), into=mlp(2))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "LFS"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"", "empty"),
        (None, "cut short|truncated|ends"),
    ],
    ids=["lfs", "html", "empty", "truncated"],
)
def test_case_24_what_is_no_checkpoint_is_named(
    reg: Registry, tmp_path: Path, data: bytes | None, reason: str
) -> None:
    path = tmp_path / "model.pt"
    torch.save(mlp(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500] if data is None else data)
    with pytest.raises(CkregError, match=f"(?i){reason}") as caught:
        reg.push(path, model="net")
    assert caught.value.hint


def test_case_25_a_models_name_is_no_weights(reg: Registry, tmp_path: Path) -> None:
    torch.save({"model": "resnet50", "state_dict": mlp(1).state_dict()}, tmp_path / "w.pt")
    checkpoint = reg.push(tmp_path / "w.pt")
    assert checkpoint.model == "resnet50"
    into = mlp(2)
    reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))


def test_case_33_averaged_weights_beside_live_ones_must_be_chosen(
    reg: Registry, push: Push
) -> None:
    checkpoint = push(
        {
            "arch": "mlp", "state_dict": mlp(1).state_dict(),
            "state_dict_ema": mlp(3).state_dict(), "version": 2, "metric": 0.5,
        }
    )  # fmt: skip
    into = mlp(2)
    assert "weights='ema'" in refused(reg, checkpoint, into)
    reg.load(checkpoint, into=into, weights="live")
    assert equal(into, mlp(1))
    reg.load(checkpoint, into=into, weights="ema")
    assert equal(into, mlp(3))


# --- resume, mappings: 27, 29 ---------------------------------------------------------------------


def test_case_27_two_processes_to_one_keeps_weights_and_says_what_changes(
    reg: Registry, tmp_path: Path
) -> None:
    source = mlp(1)
    optimizer = torch.optim.SGD(source.parameters(), 0.1, momentum=0.9)
    source(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    checkpoint = reg.save(source, model="own", optimizer=optimizer, rng=True, batch_size=64)
    path = reg.pull(checkpoint, tmp_path / "carried.pt")
    tree = torch.load(path, weights_only=True)
    tree["ckreg"]["topology"]["world_size"] = 2
    torch.save(tree, path)
    carried = reg.push(path, model="carried")
    assert carried.topology.world_size == 2
    into = mlp(2)
    again = torch.optim.SGD(into.parameters(), 0.1, momentum=0.9)
    result = reg.load(carried, into=into, optimizer=again, rng=True)
    assert equal(into, source)
    state = again.state_dict()["state"]
    assert torch.equal(state[0]["momentum_buffer"], optimizer.state_dict()["state"][0][
        "momentum_buffer"
    ])  # fmt: skip
    assert "2 processes" in result.ignored["rng"]
    assert any("global batch size was 64" in w for w in result.plan.warnings)


def test_case_29_a_pulled_file_that_its_owner_rewrites_changes_nothing_here(
    reg: Registry, tmp_path: Path
) -> None:
    checkpoint = reg.save(mlp(1), model="own")
    state = reg.load(checkpoint).state_dict
    assert state is not None
    path = reg.pull(checkpoint, tmp_path / "mine.pt")
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(state[k], v) for k, v in mlp(1).state_dict().items())
    into = mlp(2)
    reg.load(checkpoint, into=into)
    assert equal(into, mlp(1))


# --- tensors of every sort: 36, 37, 38, 39 --------------------------------------------------------


def every_sort() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {
        "bool": torch.tensor([True, False, True]),
        "int8": torch.arange(-4, 4, dtype=torch.int8),
        "complex64": torch.randn(3, dtype=torch.complex64),
        "bfloat16": torch.randn(5).bfloat16(),
        "e4m3": torch.randn(4).to(torch.float8_e4m3fn),
        "e5m2": torch.randn(4).to(torch.float8_e5m2),
        "conj": torch.randn(3, dtype=torch.complex64).conj(),
        "neg": torch.randn(3, dtype=torch.complex64).conj().imag,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
        "strided": torch.randn(4, 6)[::2, 1::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "transposed": torch.randn(3, 5).t(),
        "channels": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    return {f"t_{name}": tensor for name, tensor in found.items()}


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


class Holder(nn.Module):
    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_buffer(name, tensor)


@pytest.mark.parametrize("own", [True, False], ids=["saved", "pushed"])
def test_cases_36_and_37_every_sort_of_tensor_is_bit_equal(
    reg: Registry, push: Push, own: bool
) -> None:
    state = every_sort()
    checkpoint = reg.save(Holder(state), model="own") if own else push(state)
    into = Holder({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()})
    reg.load(checkpoint, into=into)
    loaded = reg.load(checkpoint).state_dict
    assert loaded is not None
    for name, tensor in state.items():
        for found in (into.get_buffer(name), loaded[name]):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert bits(found) == bits(tensor), name


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write a torch zip anew, each entry changed; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_case_38_a_big_endian_file_is_right_or_refused(reg: Registry, tmp_path: Path) -> None:
    state = mlp(1).state_dict()
    torch.save(state, tmp_path / "little.pt")
    widths = {v.untyped_storage().nbytes(): v.element_size() for v in state.values()}

    def swap(name: str, data: bytes) -> bytes | None:
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" in name:
            return np.frombuffer(data, f"u{widths[len(data)]}").byteswap().tobytes()
        return data

    path = rewritten(tmp_path / "little.pt", tmp_path / "big.pt", swap)
    into = mlp(2)
    reg.load(reg.push(path, model="net"), into=into)
    assert equal(into, mlp(1))


def duplicated(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        name = next(n for n in file.namelist() if n.endswith("/data/0"))
        file.writestr(name, b"\0" * 48)


def deflated(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        entries = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


def traversing(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../outside", b"x")


def overlapping(path: Path) -> None:
    """Point the last entry of the central directory at the first one's data."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    struct.pack_into(
        "<I", data, at + 42, struct.unpack_from("<I", data, data.index(b"PK\1\2") + 42)[0]
    )
    path.write_bytes(data)


def polyglot(path: Path) -> None:
    legacy = path.with_suffix(".old")
    torch.save(mlp(3).state_dict(), legacy, _use_new_zipfile_serialization=False)
    path.write_bytes(legacy.read_bytes() + path.read_bytes())


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (duplicated, "two entries named"),
        (deflated, "is compressed"),
        (traversing, "leads elsewhere"),
        (overlapping, "overlaps"),
        (polyglot, "a legacy torch file and a zip file in one"),
    ],
)
def test_case_39_files_that_two_readers_would_read_differently_are_refused(
    reg: Registry, tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "file.pt"
    torch.save(mlp(1).state_dict(), path)
    harm(path)
    with pytest.raises(CkregError, match=reason):
        reg.push(path, model="net")
    assert reg.models() == []


def test_case_39_a_giant_shape_on_one_element_is_refused(reg: Registry, push: Push) -> None:
    giant = torch.zeros(1).as_strided((2**40,), (0,))
    into = Holder({"weight": torch.zeros(1)})
    with pytest.raises(CkregError):
        reg.load(push({"weight": giant}), into=into)
    with pytest.raises(CkregError):
        reg.load(push({"weight": giant}))


def test_pickle_protocols_are_all_read(reg: Registry, push: Push) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        into = mlp(2)
        reg.load(push(mlp(protocol).state_dict(), pickle_protocol=protocol), into=into)
        assert equal(into, mlp(protocol))


def test_the_net_of_these_tests_has_what_people_trip_over() -> None:
    assert {"module.weight", "model.0.weight"} <= set(Net().state_dict())
