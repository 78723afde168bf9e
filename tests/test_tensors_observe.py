"""Observing a live net: keys, wrappers, ties and owners, for every way of wrapping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nets import WRAPS, Net, seeded
from torch import nn

from registry import keys
from registry.errors import RefusedLoadError
from registry.tensors.observe import (
    named_optimizers,
    observe,
    optimizer_groups,
    target_of,
)

# torch warns of itself when torch.compile is first imported (2.13)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

AveragedModel = torch.optim.swa_utils.AveragedModel
STYLES = {
    "plain": "",
    "DP": "module.",
    "compile": "_orig_mod.",
    "DP(compile)": "module._orig_mod.",
    "compile(DP)": "_orig_mod.module.",
    "submodule DP": "features.module.,[module].module.",
    "submodule compile": "features._orig_mod.,[module]._orig_mod.",
    "AveragedModel": "module.",
    "checkpoint_wrapper": "",
    "DP(submodule compile)": "module.,features._orig_mod.,[module]._orig_mod.",
}


@pytest.fixture
def one_gloo_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", WRAPS)
def test_canonical_keys_are_the_plain_nets_however_it_is_wrapped(wrap: str) -> None:
    plain = observe(seeded(1))
    live = observe(WRAPS[wrap](seeded(2)))

    assert list(live.canonical.values()) == list(seeded(1).state_dict())
    assert live.signature.digest == plain.signature.digest
    assert live.signature == plain.signature  # kinds too
    assert live.ties == plain.ties == (("head.weight", "tied.weight"),)
    assert str(live.key_style) == STYLES[wrap]
    assert live.others == ()
    assert set(live.wrapper_state) == ({"n_averaged"} if wrap == "AveragedModel" else set())


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_style_alone_renames_as_the_walk_did(wrap: str) -> None:
    live = observe(WRAPS[wrap](seeded(1)))

    assert keys.to_canonical(live.canonical, live.key_style) == live.canonical
    assert {r: c for c, r in keys.to_raw(live.canonical.values(), live.key_style).items()} == (
        live.canonical
    )


def test_ddp_is_seen_alone_and_around_and_inside_compile(one_gloo_process: None) -> None:
    ddp = nn.parallel.DistributedDataParallel
    for net, style in (
        (ddp(seeded(1)), "module."),
        (ddp(torch.compile(seeded(1))), "module._orig_mod."),  # type: ignore[arg-type]
        (torch.compile(ddp(seeded(1))), "_orig_mod.module."),
    ):
        live = observe(net)  # type: ignore[arg-type]
        assert str(live.key_style) == style
        assert list(live.canonical.values()) == list(seeded(1).state_dict())
        assert live.strategy == "ddp"


def test_three_wrappers_deep_in_the_tree_are_all_taken_out() -> None:
    net = seeded(1)
    net.model[0] = WRAPS["checkpoint_wrapper"](  # type: ignore[arg-type]
        torch.compile(nn.DataParallel(net.model[0]))  # type: ignore[arg-type]
    )
    live = observe(nn.DataParallel(net))

    assert list(live.canonical.values()) == list(seeded(1).state_dict())
    assert str(live.key_style) == "module.,model.0._orig_mod.module."


def test_a_wrapper_without_tensors_has_no_place_in_the_style() -> None:
    net = seeded(1)
    net.features[2] = nn.DataParallel(net.features[2])

    assert str(observe(net).key_style) == ""


@pytest.mark.parametrize("wrap", WRAPS)
def test_metadata_goes_by_canonical_module_paths(wrap: str) -> None:
    live = observe(WRAPS[wrap](seeded(1)))

    assert live.metadata == {k: dict(v) for k, v in seeded(1).state_dict()._metadata.items()}
    assert live.metadata["features.1"]["version"] == 2


def test_an_averaged_model_inside_a_net_is_not_the_nets_average() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.ema = AveragedModel(self.net)

    live = observe(Both())
    assert set(live.wrapper_state) == {"ema.n_averaged"}
    assert "ema.weight" in live.canonical.values()
    assert not live.averaged
    assert observe(AveragedModel(nn.Linear(2, 2))).averaged


def test_a_module_reached_by_two_paths_has_both_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(3, 3)
            self.parallel = nn.DataParallel(self.encoder)

    net = Twice()
    live = observe(net)

    assert list(live.canonical.values()) == [
        "encoder.weight", "encoder.bias", "parallel.weight", "parallel.bias",
    ]  # fmt: skip
    assert live.ties == (
        ("encoder.weight", "parallel.weight"), ("encoder.bias", "parallel.bias"),
    )  # fmt: skip
    assert live.names[id(net.encoder.weight)] == ("encoder.weight", "parallel.weight")


def test_two_raw_keys_that_become_one_are_refused() -> None:
    class Odd(nn.DataParallel):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.register_buffer("weight", torch.zeros(1))

    with pytest.raises(RefusedLoadError, match=r"'weight' belongs to the wrapper"):
        observe(Odd(nn.Linear(2, 2)))


def test_a_hook_that_strips_some_keys_only_is_refused() -> None:
    net = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))

    def strip(_: nn.Module, state: dict[str, object], *__: object) -> None:
        state["1.bias"] = state.pop("module.1.bias")

    net._register_state_dict_hook(strip)
    with pytest.raises(RefusedLoadError, match=r"mixes keys with and without 'module'"):
        observe(net)


def test_a_hook_that_strips_every_key_makes_a_plain_style() -> None:
    net = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))

    def strip(_: nn.Module, state: dict[str, object], *__: object) -> None:
        for key in list(state):
            state[key.removeprefix("module.")] = state.pop(key)

    net._register_state_dict_hook(strip)
    live = observe(net)
    assert (str(live.key_style), list(live.canonical)) == ("", ["0.weight", "0.bias"])


def test_lazy_parameters_are_refused_with_the_cure() -> None:
    with pytest.raises(RefusedLoadError, match="no shape yet") as caught:
        observe(nn.Sequential(nn.LazyLinear(3)))
    assert "forward" in str(caught.value.hint)


def test_a_net_of_fsdp2_is_seen_whole(one_gloo_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = nn.Sequential(nn.Linear(4, 3))
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    live = observe(net)
    assert (live.strategy, live.spread, str(live.key_style)) == ("fsdp2", True, "")
    assert [(t.key, t.shape) for t in live.signature.tensors] == [
        ("0.bias", (3,)),
        ("0.weight", (3, 4)),
    ]


def test_distributed_tensors_alone_are_tensor_parallel(one_gloo_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    net = nn.Sequential(nn.Linear(4, 4))
    mesh = init_device_mesh("cpu", (1,))
    net[0].weight = nn.Parameter(distribute_tensor(net[0].weight.detach(), mesh, [Shard(0)]))
    assert observe(net).strategy == "tp"


def test_nonpersistent_buffers_are_listed_and_in_no_key() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_buffer("mask", torch.zeros(2), persistent=False)
    live = observe(nn.DataParallel(net))

    assert live.nonpersistent == ("0.mask",)
    assert "0.mask" not in live.canonical.values()


def test_slices_of_one_storage_are_no_ties_and_equal_views_are() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.zeros(8)
            self.register_buffer("low", flat[:4])
            self.register_buffer("high", flat[4:])
            self.register_buffer("again", flat[4:])
            self.register_buffer("square", flat[4:].view(2, 2))

    assert observe(Flat()).ties == (("high", "again"),)


def test_ties_are_seen_on_meta() -> None:
    with torch.device("meta"):
        net = Net()
    assert observe(net).ties == (("head.weight", "tied.weight"),)


def test_compile_in_place_changes_no_key() -> None:
    net = seeded(1)
    net.compile()
    assert str(observe(net).key_style) == ""


# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_optimizer_groups_are_canonical_names_in_order(wrap: str) -> None:
    net = WRAPS[wrap](seeded(1))
    params = list(net.parameters())
    optimizer = torch.optim.SGD([{"params": params[3:]}, {"params": params[:3]}], lr=0.1)

    groups = optimizer_groups(optimizer, observe(net), "optimizer")

    names = [name for name, _ in seeded(1).named_parameters()]
    assert groups == (tuple(names[3:]), tuple(names[:3]))


def test_a_parameter_of_another_net_is_refused_by_group_and_index() -> None:
    net, other = seeded(1), seeded(2)
    optimizer = torch.optim.SGD(
        [{"params": [net.head.bias]}, {"params": [net.tied.bias, other.head.bias]}], lr=0.1
    )
    with pytest.raises(RefusedLoadError, match=r"parameter 1 of group 1, shape \(5,\)"):
        target_of(net, observe(net), optimizers={"optimizer": optimizer})


def test_one_optimizer_is_called_optimizer_and_what_is_none_is_refused() -> None:
    sgd = torch.optim.SGD(seeded(1).parameters(), lr=0.1)
    assert named_optimizers(sgd) == {"optimizer": sgd}
    assert named_optimizers({"g": sgd, "d": sgd}) == {"g": sgd, "d": sgd}
    assert named_optimizers(None) == {}
    for wrong in (3, {"g": 3}, [sgd]):
        with pytest.raises(TypeError, match="optimizer takes"):
            named_optimizers(wrong)


def test_the_target_says_what_the_planner_asks() -> None:
    net = nn.DataParallel(seeded(1))
    target = target_of(net, observe(net), optimizers={})
    first = target.tensors[1]  # the buffer `scale` comes first

    assert (first.key, first.canonical) == ("module.module.weight", "module.weight")
    assert (first.dtype, first.shape, first.device) == ("float32", (8, 6), "cpu")
    assert (first.kind, first.meta, target.training) == ("parameter", False, True)
    kinds = {t.canonical: t.kind for t in target.tensors}
    assert kinds["scale"] == kinds["features.1.running_mean"] == "buffer"
