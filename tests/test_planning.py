"""Load plans: every choice has its reason; a load that would be wrong is refused at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import AmbiguousError, RefusedLoadError
from registry.keys import Reading
from registry.planning import (
    LoadPlan,
    Machine,
    Saved,
    SavedOptimizer,
    SavedTensor,
    Target,
    TargetOptimizer,
    TargetTensor,
    Wanted,
    make_plan,
)
from registry.planning.dtypes import widens
from registry.planning.structures import structures
from registry.records import Provenance
from registry.signature import KeyStyle
from registry.topology import Device, Topology

NET = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "fc.weight": (2, 8), "fc.bias": (2,)}
RECORDED = Provenance("recorded", "recorded")
FOREIGN = Provenance("unknown", "inferred")
HERE = Machine({"cpu": 1})
TWO_GPUS = Machine({"cpu": 1, "cuda": 2})
MODULE = KeyStyle.parse("module.")
READ_MODULE = Reading(MODULE)

Shapes = Mapping[str, tuple[int, ...]]


def saved(
    shapes: Shapes = NET, /, *, tag: str = "cpu", dtype: str = "float32", **more: Any
) -> Saved:
    tensors = tuple(
        SavedTensor(k, dtype, shape=s, size_bytes=4, tag=tag) for k, s in shapes.items()
    )
    return replace(Saved("digits@v3", "torch-zip", tensors=tensors, provenance=RECORDED), **more)


def foreign(shapes: Shapes, /, **more: Any) -> Saved:
    return saved(shapes, provenance=FOREIGN, **more)


def target(
    shapes: Shapes = NET,
    /,
    *,
    style: str = "",
    device: str = "cpu",
    dtype: str = "float32",
    meta: bool = False,
    **more: Any,
) -> Target:
    tensors = tuple(
        TargetTensor(
            style + k, k, dtype=dtype, shape=s, device="meta" if meta else device, meta=meta
        )
        for k, s in shapes.items()
    )
    return replace(Target(tensors, KeyStyle.parse(style)), **more)


def plan(
    s: Saved, t: Target | None = None, /, machine: Machine | None = HERE, **wanted: Any
) -> LoadPlan:
    return make_plan(s, t, Wanted(**wanted), machine)


def refused(
    s: Saved, t: Target | None = None, /, machine: Machine | None = HERE, **wanted: Any
) -> str:
    with pytest.raises(RefusedLoadError) as caught:
        make_plan(s, t, Wanted(**wanted), machine)
    assert caught.value.hint or "no tensors" in caught.value.message
    return str(caught.value)


def prefixed(prefix: str, shapes: Shapes = NET) -> dict[str, tuple[int, ...]]:
    return {prefix + k: s for k, s in shapes.items()}


def reasons(p: LoadPlan) -> dict[str, str]:
    return {n.what: n.reason for n in (*p.ignored, *p.kept)}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_own_files_load_into_any_wrapping(style: str) -> None:
    p = plan(saved(key_style=MODULE), target(style=style))
    assert {m.source: m.key for m in p.moves} == {k: style + k for k in NET}
    assert p.keys_from == "recorded"


def test_recorded_file_keys_are_mapped_to_the_target() -> None:
    p = plan(saved(prefixed("module."), file_keys=MODULE), target())
    assert p.renames == {"module." + k: k for k in NET}


def test_recorded_file_keys_that_the_file_lacks_are_refused() -> None:
    assert "lack the wrapper" in refused(saved(NET, file_keys=MODULE), target())


@pytest.mark.parametrize(
    "style", ["", "module.", "_orig_mod.", "module.module.", "module._orig_mod.", "fc._orig_mod."]
)
def test_a_foreign_style_is_proved_by_the_target(style: str) -> None:
    head, token = ("fc.", "_orig_mod.") if style.startswith("fc") else ("", style)
    raw = {k.replace(head, head + token, 1) if head else token + k: s for k, s in NET.items()}
    p = plan(foreign(raw), target())
    assert str(p.file_keys) == style
    assert p.keys_from == "inferred"
    assert sorted(m.key for m in p.moves) == sorted(NET)


def test_vgg_style_wrapping_in_the_middle_is_proved_by_the_target() -> None:
    net = {"features.0.weight": (4, 3), "classifier.weight": (2, 4)}
    raw = {"features.module.0.weight": (4, 3), "classifier.weight": (2, 4)}
    p = plan(foreign(raw), target(net, style="module."))
    assert p.renames == {
        "features.module.0.weight": "module.features.0.weight",
        "classifier.weight": "module.classifier.weight",
    }


def test_half_prefixed_keys_are_refused_and_nothing_is_stripped() -> None:
    raw = {("module." if k.startswith("conv") else "") + k: s for k, s in NET.items()}
    text = refused(foreign(raw), target())
    assert "2 missing, 2 unexpected" in text
    assert "2 of 4 keys start with 'module.'" in text
    assert "nearest to 'conv.weight' in the file: 'module.conv.weight'" in text


def test_weight_beside_module_weight_is_never_stripped() -> None:
    raw = {"weight": (2,), "module.weight": (2,)}
    assert "(in the file, not in the net): 'module.weight'" in refused(
        foreign(raw), target({"weight": (2,)})
    )
    p = plan(foreign(raw), target(raw))
    assert not p.renames


def test_a_net_whose_only_child_is_called_module_keeps_its_name() -> None:
    net = {"module.weight": (2, 2)}
    assert not plan(foreign(net), target(net)).renames
    assert "keys='module.'" in refused(foreign({"weight": (2, 2)}), target(net))
    p = plan(foreign({"module.module.weight": (2, 2)}), target(net))
    assert p.renames == {"module.module.weight": "module.weight"}


def test_no_candidate_prints_how_many_each_reading_fits() -> None:
    raw = prefixed("module.", {**NET, "head.weight": (3,)})
    text = refused(foreign(raw), target())
    assert "keys='' (as they are): 0 of 4 fit" in text
    assert "keys='module.': 4 of 4 fit" in text
    assert "'head.weight'" in text


def test_several_ways_under_allow_are_ambiguous() -> None:
    raw = {"module.module.w": (1,), "module.module.v": (2,)}
    net = {"module.w": (1,), "module.v": (3,), "w": (1,), "v": (3,)}
    with pytest.raises(AmbiguousError) as caught:
        plan(foreign(raw), target(net), allow=("*",))
    assert set(caught.value.candidates) == {"module.", "module.module."}
    assert "keys=" in str(caught.value)
    p = plan(foreign(raw), target(net), allow=("*",), keys=READ_MODULE)
    assert p.keys_from == "stated"
    assert [m.key for m in p.moves] == ["module.w"]


def test_allow_doesnt_stop_a_single_way_from_being_found() -> None:
    raw = prefixed("module.", {**NET, "fc.weight": (10, 8), "fc.bias": (10,)})
    p = plan(foreign(raw), target(), allow=("fc.*",))
    assert str(p.file_keys) == "module."
    assert p.mismatched == ("fc.weight", "fc.bias")


def test_a_stated_style_that_has_no_place_in_the_file_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"names a wrapper at 'feature'"):
        plan(foreign(NET), target(), keys=Reading.parse("feature.module."))


def test_entries_that_are_no_tensors_are_joined_too() -> None:
    s = foreign(prefixed("module."), others=("module.fc._extra_state",))
    assert plan(s, target(others=("fc._extra_state",))).others == (
        ("module.fc._extra_state", "fc._extra_state"),
    )
    assert "unexpected" in refused(saved(others=("fc._extra_state",)), target())
    assert "missing" in refused(saved(), target(others=("fc._extra_state",)))


# --- missing, unexpected, mis-shaped --------------------------------------------------------------


def test_differences_are_refused_with_counts_and_the_first_few() -> None:
    raw = {**NET, "fc.weight": (10, 8), "head.bias": (2,)}
    del raw["fc.bias"]
    text = refused(saved(raw), target())
    assert "1 missing, 1 unexpected, 1 mis-shaped (4 tensors in the file, 4 in the net)" in text
    assert "'fc.weight' is (10, 8) in the file, (2, 8) in the net" in text
    assert "allow=['fc.*', 'head.*']" in text


def test_allow_covers_all_three_and_says_what_was_skipped() -> None:
    raw = {**NET, "fc.weight": (10, 8), "head.bias": (2,)}
    del raw["fc.bias"]
    p = plan(saved(raw), target(), allow=("fc.*", "head.*"))
    assert (p.missing, p.unexpected, p.mismatched) == (("fc.bias",), ("head.bias",), ("fc.weight",))
    assert [m.key for m in p.moves] == ["conv.weight", "conv.bias"]
    assert set(reasons(p)) >= {"'head.bias'", "'fc.weight'", "'fc.bias'"}


@pytest.mark.parametrize("pattern", ["nothing.*", "conv.*"])
def test_a_pattern_that_excuses_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="excuses nothing"):
        plan(saved({**NET, "head.bias": (2,)}), target(), allow=("head.*", pattern))


def test_zero_matched_tensors_are_refused_even_if_all_is_allowed() -> None:
    assert "no tensor of digits@v3 fits" in refused(saved({"x": (1,)}), target(), allow=("*",))
    assert "no tensor" in refused(foreign(NET), target({}))


def test_recorded_keys_are_never_stripped_beyond_the_record() -> None:
    assert "no tensor" in refused(saved(prefixed("module.")), target())


# --- ties -----------------------------------------------------------------------------------------

TIED = {"embed.weight": (5, 2), "decoder.weight": (5, 2)}
GROUP = (("embed.weight", "decoder.weight"),)


def tied(groups: Sequence[object]) -> tuple[SavedTensor, ...]:
    return tuple(
        SavedTensor(k, "float32", shape=s, size_bytes=40, tie_group=g)
        for (k, s), g in zip(TIED.items(), groups, strict=True)
    )


def test_ties_on_both_sides_are_read_once() -> None:
    p = plan(saved(TIED, tensors=tied([7, 7])), target(TIED, ties=GROUP))
    assert len(p.moves) == 2
    assert p.must_equal == ()
    assert p.bytes_to_read == 40


@pytest.mark.parametrize("groups", [(7, 8), (None, None)])
def test_tied_in_the_net_only_must_be_compared(groups: Sequence[object]) -> None:
    p = plan(saved(TIED, tensors=tied(groups)), target(TIED, style="module.", ties=GROUP))
    assert p.must_equal == (("module.embed.weight", "module.decoder.weight"),)
    assert p.bytes_to_read == 80


@pytest.mark.parametrize("make", [saved, foreign])
def test_a_tied_name_that_the_file_lacks_is_filled_from_its_partner(make: Any) -> None:
    p = plan(make({"embed.weight": (5, 2)}), target(TIED, ties=GROUP))
    assert [(m.source, m.key) for m in p.moves] == [
        ("embed.weight", "embed.weight"),
        ("embed.weight", "decoder.weight"),
    ]
    assert p.missing == ()
    assert not p.renames
    assert "'decoder.weight'" in refused(make({"embed.weight": (5, 2)}), target(TIED))


def test_tied_in_the_file_only_is_a_warning() -> None:
    p = plan(saved(TIED, tensors=tied([7, 7])), target(TIED))
    assert any("one tensor in the file" in w for w in p.warnings)


def test_a_meta_target_is_assigned_tied_again_and_rebuilt() -> None:
    t = target(TIED, meta=True, style="module.", ties=GROUP, nonpersistent=("pos.inv_freq",))
    p = plan(saved(TIED, tensors=tied([7, 7]), tag="cuda:3"), t)
    assert p.assign
    assert p.retie == (("module.embed.weight", "module.decoder.weight"),)
    assert p.rebuild == ("pos.inv_freq",)
    assert {m.device for m in p.moves} == {"cpu"}


def test_a_meta_target_refuses_what_would_stay_on_meta_or_be_stale() -> None:
    s = saved({k: v for k, v in NET.items() if k != "fc.bias"})
    assert "no values to keep" in refused(s, target(meta=True), allow=("fc.bias",))
    t = target(meta=True, optimizers={"optimizer": TargetOptimizer("torch.optim.sgd.SGD", ((),))})
    assert "was made before" in refused(saved(), t)


def test_meta_saved_tensors_are_refused() -> None:
    assert "meta device, with shapes but no values" in refused(saved(tag="meta"), target())


# --- devices --------------------------------------------------------------------------------------


def test_each_tensor_goes_to_its_parameters_device() -> None:
    p = plan(saved(tag="cuda:7"), target(device="cuda:1"), machine=TWO_GPUS)
    assert p.map_location == "cuda:1"
    assert {m.device for m in p.moves} == {"cuda:1"}
    first, *rest = target(device="cuda:0").tensors
    split = Target((replace(first, device="cpu"), *rest))
    p = plan(saved(), split, machine=TWO_GPUS)
    assert p.map_location == "each parameter's device"
    assert [m.device for m in p.moves] == ["cpu", "cuda:0", "cuda:0", "cuda:0"]


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "auto", None])
def test_a_device_that_agrees_with_the_target_is_taken(device: str | None) -> None:
    assert plan(saved(), target(device="cuda:1"), device=device).map_location == "cuda:1"


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "recorded"])
def test_a_device_that_disagrees_with_the_target_is_refused(device: str) -> None:
    assert "net is on cuda:1" in refused(saved(), target(device="cuda:1"), device=device)


def test_without_a_target_the_default_is_the_cpu_whatever_the_tags() -> None:
    p = plan(saved(tag="cuda:7"))
    assert p.map_location == "cpu"
    assert {m.device for m in p.moves} == {"cpu"}


@pytest.mark.parametrize(
    ("machine", "device", "here"),
    [
        (HERE, "cuda:3", "this machine has cpu"),
        (HERE, "cuda", "this machine has cpu"),
        (TWO_GPUS, "cuda:3", "this machine has cpu, cuda:0, cuda:1"),
        (TWO_GPUS, "cpu:1", "this machine has cpu"),
    ],
)
def test_an_absent_device_is_refused_with_what_is_here(
    machine: Machine, device: str, here: str
) -> None:
    assert here in refused(saved(), None, machine=machine, device=device)


def test_an_absent_recorded_device_is_refused() -> None:
    text = refused(saved(tag="cuda:7"), None, machine=TWO_GPUS, device="recorded")
    assert "saved on 'cuda:7'" in text
    p = plan(saved(tag="cuda:1"), machine=TWO_GPUS, device="recorded")
    assert p.map_location == "recorded"
    assert {m.device for m in p.moves} == {"cuda:1"}


def test_auto_is_the_recorded_kind_where_it_is_here() -> None:
    on_gpu = saved(tag="cuda:7")
    assert plan(on_gpu, machine=TWO_GPUS, device="auto").map_location == "cuda"
    p = plan(on_gpu, device="auto")
    assert p.map_location == "cpu"
    assert "isn't here" in p.device_reason
    recorded = saved(topology=Topology(device_type="xpu"))
    assert (
        plan(recorded, machine=Machine({"cpu": 1, "xpu": 1}), device="auto").map_location == "xpu"
    )


def test_without_a_machine_a_device_is_taken_as_said() -> None:
    p = plan(saved(), machine=None, device="cuda:99")
    assert p.map_location == "cuda:99"
    assert "not checked" in p.device_reason


@pytest.mark.parametrize("device", ["meta", "gpu one", "CUDA", "", "cuda:"])
def test_a_word_that_is_no_device_is_a_bad_call(device: str) -> None:
    with pytest.raises(ValueError, match="is none"):
        plan(saved(), device=device)


@pytest.mark.parametrize("device", ["foo", "cdua:1", "gpu", "gpu:0"])
@pytest.mark.parametrize("machine", [None, TWO_GPUS])
def test_a_word_that_is_no_type_of_device_is_a_bad_call(
    device: str, machine: Machine | None
) -> None:
    with pytest.raises(ValueError, match="is no type of device"):
        plan(saved(tag="meta"), machine=machine, device=device)


def test_gpu_is_answered_with_cuda() -> None:
    with pytest.raises(ValueError, match="did you mean 'cuda:1'"):
        plan(saved(), device="gpu:1")


@pytest.mark.parametrize("device", ["cpu:0", "npu:3", "hpu", "mps", "xpu:1", "privateuseone:1"])
def test_a_type_of_device_is_taken_as_said_wherever_it_is(device: str) -> None:
    assert plan(saved(), machine=None, device=device).map_location == device


def test_a_backends_own_name_is_a_device_where_it_is_here_or_in_the_file() -> None:
    assert plan(saved(tag="odd:0"), machine=None, device="odd:1").map_location == "odd:1"
    here = Machine({"cpu": 1, "odd": 2})
    assert plan(saved(), machine=here, device="odd:1").map_location == "odd:1"


def test_device_materialises_a_meta_target() -> None:
    p = plan(saved(), target(meta=True), machine=TWO_GPUS, device="cuda:1")
    assert {m.device for m in p.moves} == {"cuda:1"}
    assert "cuda:3" in refused(saved(), target(meta=True), machine=TWO_GPUS, device="cuda:3")


# --- dtypes ---------------------------------------------------------------------------------------


def test_dtypes_are_exact_unless_asked() -> None:
    text = refused(saved(dtype="float16"), target())
    assert "4 of 4 tensors" in text
    assert "cast='widen'" in text
    assert "cast='narrow'" in refused(saved(dtype="float64"), target())
    assert "net.to(dtype)" in refused(saved(dtype="int64"), target())


def test_widen_takes_lossless_casts_only() -> None:
    p = plan(saved(dtype="bfloat16"), target(), cast="widen")
    assert p.dtype == "widen"
    assert not any(m.check_finite for m in p.moves)
    assert "doesn't cover" in refused(
        saved(dtype="bfloat16"), target(dtype="float16"), cast="widen"
    )


def test_narrow_marks_the_moves_whose_values_must_be_checked() -> None:
    p = plan(saved(dtype="float64"), target(dtype="float16"), cast="narrow")
    assert p.dtype == "narrow"
    assert all(m.check_finite for m in p.moves)
    wide = plan(saved(dtype="float16"), target(), cast="narrow")
    assert not any(m.check_finite for m in wide.moves)
    assert "net.to(dtype)" in refused(saved(dtype="int64"), target(), cast="narrow")
    assert plan(saved(), target(), cast="narrow").dtype == "exact"


@pytest.mark.parametrize(
    ("dtype", "to", "lossless"),
    [
        ("int8", "int16", True), ("uint8", "int16", True), ("int8", "uint16", False),
        ("uint8", "int8", False), ("float16", "bfloat16", False), ("float8_e5m2", "float16", True),
        ("float8_e8m0fnu", "float16", False), ("int64", "float64", False), ("bool", "int8", False),
        ("complex64", "complex128", True), ("float32", "complex64", False),
    ],
)  # fmt: skip
def test_only_lossless_casts_widen(dtype: str, to: str, lossless: bool) -> None:
    assert widens(dtype, to) is lossless


@given(st.data())
def test_widening_is_a_strict_order(data: st.DataObject) -> None:
    names = [
        "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64", "uint8",
        "int8", "int16", "uint16", "int32", "int64", "uint64", "bool", "complex64", "complex128",
    ]  # fmt: skip
    a, b, c = (data.draw(st.sampled_from(names)) for _ in range(3))
    assert not widens(a, a)
    assert not (widens(a, b) and widens(b, a))
    if widens(a, b) and widens(b, c):
        assert widens(a, c)


# --- which weights --------------------------------------------------------------------------------


def both() -> Saved:
    ema = (
        SavedTensor("n_averaged", "int64", shape=()),
        *(SavedTensor("module." + k, "float32", shape=s) for k, s in NET.items()),
    )
    return saved(ema=ema, weights="both", ema_where="model_ema")


def test_live_and_averaged_weights_in_one_file_must_be_chosen() -> None:
    assert "weights='live'" in refused(both(), target())
    p = plan(both(), target(), weights="live")
    assert p.weights == "live"
    assert reasons(p)["averaged weights"] == "weights='live' was asked for"


def test_averaged_weights_beside_the_live_ones_have_their_own_keys() -> None:
    p = plan(both(), target(), weights="ema")
    assert p.renames == {"module." + k: k for k in NET}
    assert p.where == "model_ema"
    assert "n_averaged" in reasons(p)
    into = plan(both(), target(wrapper_state=("n_averaged",)), weights="ema")
    assert into.wrapper_state == (("n_averaged", "n_averaged"),)


def test_weights_that_the_file_lacks_are_refused() -> None:
    assert "live weights only" in refused(saved(), target(), weights="ema")
    assert "averaged (ema) weights only" in refused(saved(weights="ema"), target(), weights="live")
    assert plan(saved(weights="ema"), target()).weights == "ema"


def test_the_counter_of_averaged_model_goes_where_there_is_one() -> None:
    s = saved(weights="ema", wrapper_state=("n_averaged",))
    assert "AveragedModel" in reasons(plan(s, target()))["n_averaged"]
    averaged = target(style="module.", wrapper_state=("n_averaged",))
    assert plan(s, averaged).wrapper_state == (("n_averaged", "n_averaged"),)
    p = plan(saved(), averaged)
    assert p.wrapper_state == ()
    assert [n.what for n in p.kept] == ["n_averaged"]


# --- optimizers -----------------------------------------------------------------------------------

ADAM, SGD = "torch.optim.adam.Adam", "torch.optim.sgd.SGD"
NAMES = tuple(NET)


def state(
    groups: tuple[tuple[str, ...], ...] | None = (NAMES,), cls: str | None = ADAM, **more: Any
) -> dict[str, SavedOptimizer]:
    sizes = tuple(map(len, groups)) if groups is not None else (4,)
    found = SavedOptimizer(cls, groups, group_sizes=sizes, size_bytes=100)
    return {"optimizer": replace(found, **more)}


def optimizer(*groups: tuple[str, ...], cls: str = ADAM) -> dict[str, TargetOptimizer]:
    return {"optimizer": TargetOptimizer(cls, groups or (NAMES,))}


def test_optimizer_state_follows_the_names() -> None:
    turned = ("fc.bias", "conv.bias", "fc.weight", "conv.weight")
    p = plan(saved(optimizers=state()), target(optimizers=optimizer(turned)))
    (move,) = p.optimizers
    assert [NAMES[i] for i in move.order] == list(turned)
    assert move.proof == "recorded"
    assert p.bytes_to_read == 4 * 4 + 100


def test_groups_are_matched_by_their_names_and_positions_count_through() -> None:
    groups = (("conv.weight", "fc.weight"), ("conv.bias", "fc.bias"))
    p = plan(
        saved(optimizers=state(groups)),
        target(optimizers=optimizer(("fc.bias", "conv.bias"), ("conv.weight", "fc.weight"))),
    )
    (move,) = p.optimizers
    assert move.groups == (1, 0)
    assert move.order == (3, 2, 0, 1)


def test_state_of_another_class_is_refused_naming_both() -> None:
    text = refused(saved(optimizers=state(cls=SGD)), target(optimizers=optimizer()))
    assert SGD in text
    assert ADAM in text
    alias = state(cls="torch.optim.Adam")
    assert plan(saved(optimizers=alias), target(optimizers=optimizer())).optimizers


def test_other_groups_or_parameters_are_refused() -> None:
    text = refused(saved(optimizers=state()), target(optimizers=optimizer(NAMES[:2], NAMES[2:])))
    assert "grouped in another way" in text
    text = refused(saved(optimizers=state()), target(optimizers=optimizer(NAMES[:3])))
    assert "only in the file: 'fc.bias'" in text
    assert "weights load all the same" in text


def test_a_record_that_disagrees_with_the_file_is_refused() -> None:
    text = refused(saved(optimizers=state(group_sizes=(3,))), target(optimizers=optimizer()))
    assert "its record names [4]" in text


def test_a_tied_parameter_has_one_name_whichever_was_seen_first() -> None:
    s = saved(TIED, ties=GROUP, optimizers=state((("embed.weight",),)))
    t = target(TIED, ties=GROUP, optimizers=optimizer(("decoder.weight",)))
    assert plan(s, t).optimizers[0].order == (0,)


def test_two_states_are_never_put_on_one_tied_parameter() -> None:
    s = saved(TIED, optimizers=state((tuple(TIED),)))
    t = target(TIED, ties=GROUP, optimizers=optimizer(("embed.weight",)))
    assert "groups of [2] parameters there, 1 of [1] here" in refused(s, t)


def test_state_of_another_shape_is_refused() -> None:
    shapes = ((9, 3, 3, 3), (8,), (2, 8), (2,))
    text = refused(saved(optimizers=state(state_shapes=shapes)), target(optimizers=optimizer()))
    assert "(9, 3, 3, 3)" in text


@pytest.mark.parametrize("prefix", ["", "module."])
def test_param_names_prove_the_order(prefix: str) -> None:
    raw = tuple(prefix + n for n in reversed(NAMES))
    s = foreign(prefixed("module."), optimizers=state(None, param_names=(raw,)))
    (move,) = plan(s, target(optimizers=optimizer())).optimizers
    assert move.order == (3, 2, 1, 0)
    assert move.proof == "param_names"


def test_shapes_that_are_all_different_prove_the_order() -> None:
    shapes = ((2,), (2, 8), (8,), (8, 3, 3, 3))
    s = foreign(NET, optimizers=state(None, None, state_shapes=shapes))
    p = plan(s, target(optimizers=optimizer()))
    assert p.optimizers[0].order == (3, 2, 1, 0)
    assert p.optimizers[0].proof == "shapes"
    assert any("not recorded" in w for w in p.warnings)


def test_an_order_that_nothing_proves_is_refused() -> None:
    net = {"a": (2,), "b": (2,)}
    s = foreign(net, optimizers=state(None, state_shapes=((2,), (2,)), group_sizes=(2,)))
    text = refused(s, target(net, optimizers=optimizer(("a", "b"))))
    assert "weights load all the same: leave optimizer= out" in text
    assert not plan(s, target(net)).optimizers


def test_unrecorded_class_is_told_from_what_it_keeps() -> None:
    s = saved(optimizers=state(cls=None, state_names=("momentum_buffer",)))
    assert "momentum_buffer" in refused(s, target(optimizers=optimizer()))
    assert plan(s, target(optimizers=optimizer(cls=SGD))).optimizers


def test_an_optimizer_that_the_file_lacks_is_refused() -> None:
    assert "no optimizer state" in refused(saved(), target(optimizers=optimizer()))


def test_state_for_a_skipped_parameter_is_refused() -> None:
    raw = {**NET, "fc.weight": (10, 8)}
    s = saved(raw, optimizers=state(state_shapes=tuple(raw.values())))
    assert "'fc.weight'" in refused(s, target(optimizers=optimizer()), allow=("fc.weight",))


# --- what else the file holds ---------------------------------------------------------------------


def full(**more: Any) -> Saved:
    return saved(
        optimizers=state(), scheduler=True, stateful=("sampler",), rng=True, extra=("args",),
        topology=Topology(
            strategy="ddp", world_size=4, device_type="cuda", device_count=4,
            devices=(Device(0, "cuda", "NVIDIA A100-SXM4-80GB"),),
        ),
        key_style=MODULE, batch_size=256, unsafe_globals=("argparse.Namespace",), **more,
    )  # fmt: skip


def test_whatever_is_not_restored_is_noted_with_its_reason() -> None:
    found = reasons(plan(full(), target()))
    assert found == {
        "optimizer": "not asked for: optimizer= was not given",
        "scheduler": "not asked for: scheduler= was not given",
        "sampler": "not asked for: stateful= was not given",
        "rng": "not asked for: rng=True was not given",
        "args": found["args"],
        "objects of argparse.Namespace": found["objects of argparse.Namespace"],
    }
    assert "no target" in reasons(plan(full()))["optimizer"]


def test_what_is_asked_for_is_restored() -> None:
    t = target(optimizers=optimizer(), scheduler=True, stateful=("sampler",))
    p = plan(full(), t, rng=True, world_size=4)
    assert (len(p.optimizers), p.scheduler, p.stateful, p.rng) == (1, True, ("sampler",), True)
    assert p.warnings == ()


def test_what_is_asked_for_and_absent_is_refused() -> None:
    assert "scheduler" in refused(saved(), target(scheduler=True))
    assert "'sampler'" in refused(saved(), target(stateful=("sampler",)))
    assert "random state" in refused(saved(), target(), rng=True)


def test_another_world_size_is_reported_and_its_random_state_dropped() -> None:
    t = target(optimizers=optimizer())
    p = plan(full(), t, rng=True, world_size=1)
    assert not p.rng
    assert "4 processes saved it and 1 process" in reasons(p)["rng"]
    (text,) = [w for w in p.warnings if "resumed by" in w]
    assert "256, 64 per process" in text
    assert "not rescaled" in text
    assert not [w for w in plan(full(), target(), world_size=1).warnings if "resumed" in w]


def test_training_mode_and_wrapping_are_told() -> None:
    assert any("training mode" in a for a in plan(saved(), target(training=True)).advice)
    assert not plan(saved(), target()).advice
    assert any("load first, then wrap" in a for a in plan(full(), target()).advice)
    assert any("'module.'" in a for a in plan(full(), target(style="module.")).advice)


# --- without a target -----------------------------------------------------------------------------


def test_known_keys_come_out_plain_or_as_asked() -> None:
    s = saved(prefixed("module."), file_keys=MODULE)
    assert [m.key for m in plan(s).moves] == list(NET)
    out = plan(s, out_keys=KeyStyle.parse("fc._orig_mod."))
    assert [m.key for m in out.moves][-1] == "fc._orig_mod.bias"
    stated = plan(foreign(prefixed("module.")), keys=READ_MODULE)
    assert [m.key for m in stated.moves] == list(NET)


def test_foreign_keys_stay_as_they_are() -> None:
    s = foreign(prefixed("module."), file_keys=MODULE)
    p = plan(s)
    assert [m.key for m in p.moves] == list(prefixed("module."))
    assert p.keys_from == "as they are"
    assert any("look wrapped" in a for a in p.advice)


@pytest.mark.parametrize("out", [KeyStyle(), MODULE])
def test_a_guess_is_never_written(out: KeyStyle) -> None:
    s = foreign(prefixed("module."), file_keys=MODULE)
    assert "ckreg push FILE --keys 'module.'" in refused(s, out_keys=out)
    assert plan(s, out_keys=out, keys=READ_MODULE).moves


def test_foreign_keys_without_any_wrapper_can_be_written_as_asked() -> None:
    assert [m.key for m in plan(foreign(NET), out_keys=MODULE).moves] == list(prefixed("module."))


def test_an_averaged_models_counter_is_no_weight() -> None:
    s = saved({"n_averaged": (), **prefixed("module.")}, file_keys=MODULE)
    p = plan(s)
    assert [m.key for m in p.moves] == list(NET)
    assert "n_averaged" in reasons(p)


@pytest.mark.parametrize("wish", [{"cast": "widen"}, {"allow": ("*",)}])
def test_wishes_that_need_a_net_are_bad_calls_without_one(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="into=net"):
        plan(saved(), **wish)


# --- what it says ---------------------------------------------------------------------------------


def test_a_plan_is_a_page_that_a_person_reads() -> None:
    text = str(plan(full(), target(optimizers=optimizer(), training=True), world_size=1))
    lines = text.splitlines()
    assert len(lines) <= 23
    assert all(len(line) <= 114 for line in lines)
    for part in (
        "digits@v3", "4 x A100 ddp (recorded)", "map_location", "none renamed", "exact",
        "optimizer (Adam: same order, recorded)", "scheduler, sampler, rng: not asked for",
        "warning", "net.eval()", "torch.load(", "weights_only=True",
    ):  # fmt: skip
        assert part in text, part


def test_a_plan_is_json() -> None:
    p = plan(full(), target(optimizers=optimizer()), world_size=1)
    plain = json.loads(json.dumps(p.to_dict()))
    assert plain["format"] == 1
    assert plain["moves"][0]["canonical"] == "conv.weight"
    assert plain["topology"]["world_size"] == 4
    assert {n["what"] for n in plain["ignored"]} >= {"scheduler", "rng"}


def test_hostile_keys_never_reach_the_page_raw() -> None:
    raw = {"\x1b[31mevil.weight": (1,)}
    assert "\x1b" not in str(plan(foreign(raw)))
    assert "\x1b" not in refused(foreign({**NET, **raw}), target())


class ByHand:
    """Runs a plan's Python against a file that is a dict, and keeps what the net was given."""

    def __init__(self, shapes: Shapes) -> None:
        self.weights = {k: (k, s) for k, s in shapes.items()}
        self.given: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.resumed: dict[str, Any] = {}

    def run(self, p: LoadPlan, **file: Any) -> None:
        outer = self

        class Torch:
            @staticmethod
            def load(path: str, map_location: object = None, *, weights_only: bool) -> Any:
                assert path == "digits-v3.pt"
                assert weights_only
                return {"state_dict": outer.weights, **file}

        class Net:
            @staticmethod
            def load_state_dict(weights: Any, strict: bool = True, assign: bool = False) -> None:
                outer.given = dict(weights)

        class Optimizer:
            @staticmethod
            def load_state_dict(state: Any) -> None:
                outer.resumed = state

        exec(p.python, {"torch": Torch, "net": Net, "optimizer": Optimizer})


@pytest.mark.parametrize(
    ("file_style", "target_style"),
    [
        ("", ""), ("module.", ""), ("", "module."), ("module._orig_mod.", "_orig_mod."),
        ("fc._orig_mod.", ""), ("", "fc.module."), ("conv.module.,fc.module.", "module."),
        ("module.,fc.module.", "conv.module.,fc._orig_mod."),
    ],
)  # fmt: skip
def test_the_python_by_hand_does_what_the_plan_does(file_style: str, target_style: str) -> None:
    from registry.keys import to_raw

    style, wrapped = KeyStyle.parse(file_style), KeyStyle.parse(target_style)
    raw = {k: NET[c] for c, k in to_raw(NET, style).items()}
    keys = to_raw(NET, wrapped)
    t = Target(tuple(replace(x, key=keys[x.canonical]) for x in target().tensors), wrapped)
    p = plan(saved(raw, file_keys=style), t)
    hand = ByHand(raw)
    hand.run(p)
    assert {k: source for k, (source, _) in hand.given.items()} == {
        m.key: m.source for m in p.moves
    }
    assert len(p.python.splitlines()) <= 5


def test_the_python_by_hand_skips_fills_and_reorders() -> None:
    net = {**NET, **TIED}
    raw = prefixed("module.", {**NET, "fc.weight": (10, 8), "embed.weight": (5, 2), "old": (1,)})
    order = (("embed.weight", "conv.bias"), ("conv.weight",))
    s = saved(raw, file_keys=MODULE, optimizers=state(order))
    t = target(
        net, ties=GROUP, optimizers=optimizer(("conv.weight",), ("conv.bias", "embed.weight"))
    )
    p = plan(s, t, allow=("fc.weight", "old"))
    hand = ByHand(raw)
    was = {
        "state": {0: "embed", 1: "bias", 2: "conv"},
        "param_groups": [{"lr": 1, "params": [0, 1]}, {"lr": 2, "params": [2]}],
    }
    hand.run(p, optimizer=was)
    assert {k: s for k, (s, _) in hand.given.items() if k in net} == {
        m.key: m.source for m in p.moves
    }
    assert hand.resumed == {
        "state": {0: "conv", 1: "bias", 2: "embed"},
        "param_groups": [{"lr": 2, "params": [0]}, {"lr": 1, "params": [1, 2]}],
    }


# --- an attribute around the net ------------------------------------------------------------------


def test_an_attribute_is_inferred_and_the_plan_says_so() -> None:
    p = plan(foreign(prefixed("model._orig_mod.")), target())
    assert (str(p.reading), p.keys_from) == ("model.,model._orig_mod.", "inferred")
    assert p.renames == {"model._orig_mod." + k: k for k in NET}
    assert "with the net under 'model'" in str(p)
    assert "k.removeprefix('model._orig_mod.')" in p.python
    shown = p.to_dict()
    assert (shown["file_keys"], shown["dropped"], shown["added"]) == (
        "model._orig_mod.",
        "model",
        "",
    )


def test_a_recorded_style_is_never_bettered_by_an_attribute() -> None:
    text = refused(saved(prefixed("model.")), target())
    assert "hint: the net lies one attribute deeper on one side: keys='model.'" in text
    p = plan(saved(prefixed("model.")), target(), keys=Reading.parse("model."))
    assert p.keys_from == "stated"


def test_several_attributes_that_fit_under_allow_are_ambiguous() -> None:
    raw = {"online.w": (2,), "momentum.w": (2,)}
    with pytest.raises(AmbiguousError) as caught:
        plan(foreign(raw), target({"w": (2,)}), allow=("*",))
    assert set(caught.value.candidates) == {"online.", "momentum."}
    p = plan(foreign(raw), target({"w": (2,)}), allow=("*",), keys=Reading.parse("online."))
    assert [m.source for m in p.moves] == ["online.w"]
    assert p.unexpected == ("momentum.w",)


def test_keys_outside_of_a_stated_attribute_need_allow_and_never_fit() -> None:
    raw = {**prefixed("model."), "loss.weight": (3,)}
    stated = Reading.parse("model.")
    assert "'loss.weight'" in refused(foreign(raw), target(), keys=stated)
    assert plan(foreign(raw), target(), keys=stated, allow=("loss.*",)).unexpected == (
        "loss.weight",
    )
    assert "lie outside" in refused(foreign(raw), keys=stated)
    partly = {**prefixed("model."), "head.weight": (3,)}
    net = target({**NET, "head.weight": (3,)})
    assert "stripped from some keys" in refused(foreign(partly), net, keys=stated, allow=("*",))
    with pytest.raises(ValueError, match="drops 'net'"):
        plan(foreign(raw), target(), keys=Reading.parse("net."))


def test_recorded_ties_follow_the_attribute() -> None:
    s = saved({"model.a": (2,)}, ties=(("model.a", "model.b"),))
    p = plan(s, target({"a": (2,), "b": (2,)}), keys=Reading.parse("model."))
    assert {m.key: m.source for m in p.moves} == {"a": "model.a", "b": "model.a"}


# --- memory ---------------------------------------------------------------------------------------

MEGA = {"a": (250, 1000), "b": (250, 1000)}  # 1 MB each as float32


def sized(dtype: str = "float32", **more: Any) -> Saved:
    width = {"float32": 4, "bfloat16": 2}[dtype]
    tensors = tuple(
        SavedTensor(k, dtype, shape=s, size_bytes=250_000 * width) for k, s in MEGA.items()
    )
    return replace(saved(MEGA), tensors=tensors, **more)


def test_a_state_dict_stays_mapped_and_counts_once() -> None:
    memory = plan(sized()).memory
    assert (memory.devices, memory.host_peak) == ({"cpu": 2_000_000}, 2_000_000)


def test_a_device_needs_the_tensors_and_the_host_what_is_mapped() -> None:
    p = plan(sized(size_bytes=9_000_000), device="cuda:1", machine=TWO_GPUS)
    assert p.memory.devices == {"cuda:1": 2_000_000}
    assert p.memory.host_peak == 2_000_000
    assert "2 MB to read of 9 MB" in str(p)
    assert "memory        2 MB on cuda:1; at most 2 MB on the host" in str(p)
    assert p.to_dict()["memory"] == {"devices": {"cuda:1": 2_000_000}, "host_peak": 2_000_000}


def test_a_cast_counts_in_the_type_that_it_becomes() -> None:
    p = plan(sized("bfloat16"), target(MEGA), cast="widen")
    assert p.bytes_to_read == 1_000_000
    assert p.memory.devices == {"cpu": 2_000_000}
    assert p.memory.host_peak == 3_000_000
    assert "2 MB on cpu (the net has them already)" in str(p)


def test_a_meta_target_takes_the_mapping_itself() -> None:
    memory = plan(sized(), target(MEGA, meta=True)).memory
    assert (memory.devices, memory.host_peak) == ({"cpu": 2_000_000}, 2_000_000)


def test_tied_tensors_take_their_memory_once() -> None:
    tied = target({"a": (250, 1000), "b": (250, 1000)}, ties=(("a", "b"),))
    assert plan(sized(), tied).memory.devices == {"cpu": 1_000_000}


def test_an_optimizers_state_lies_beside_its_parameters() -> None:
    state = SavedOptimizer("torch.optim.adam.Adam", (("a", "b"),), group_sizes=(2,),
                           size_bytes=4_000_000)  # fmt: skip
    t = target(MEGA, optimizers={
        "optimizer": TargetOptimizer("torch.optim.adam.Adam", (("a", "b"),))
    })  # fmt: skip
    asked = plan(sized(optimizers={"optimizer": state}), t)
    assert asked.memory.devices == {"cpu": 6_000_000}
    assert asked.bytes_to_read == 6_000_000
    unasked = plan(sized(optimizers={"optimizer": state}), target(MEGA))
    assert unasked.bytes_to_read == 2_000_000


# --- structures -----------------------------------------------------------------------------------


def test_a_structure_needs_all_its_signs_at_one_place() -> None:
    assert structures(["a.weight"], ["a.weight_g"]) == []
    assert structures([], ["a.weight_orig", "b.weight_mask"]) == []
    assert structures([], ["a.scale", "b.zero_point"]) == []
    (found,) = structures([], ["a.weight_orig", "a.weight_mask", "b.weight_orig", "b.weight_mask"])
    assert (found.side, found.modules) == ("file", 2)
    assert str(found) == (
        "the file has pruning masks (torch.nn.utils.prune) on 2 modules: 'a.weight_orig', "
        "'a.weight_mask'"
    )


def test_each_key_explains_one_structure() -> None:
    keys = [f"parametrizations.weight.original{i}" for i in "01"]
    (found,) = structures(["weight"], keys)
    assert "weight_norm" in found.name
    (found,) = structures(
        ["weight"], ["parametrizations.weight.original", "parametrizations.weight.0._u"]
    )
    assert "spectral_norm" in found.name


def test_two_forms_of_one_structure_have_the_files_cure_alone() -> None:
    old = ["fc.weight_g", "fc.weight_v"]
    new = [f"fc.parametrizations.weight.original{i}" for i in "01"]
    theirs, ours = structures(old, new)
    assert (theirs.side, ours.side) == ("file", "net")
    assert theirs.cure.startswith("torch.nn.utils.parametrizations.weight_norm(layer)")
    assert ours.cure == ""


def test_a_tensor_that_cannot_be_read_says_what_it_is() -> None:
    made = "torch._utils._rebuild_nested_tensor"
    s = saved(
        {k: v for k, v in NET.items() if k != "fc.bias"},
        others=("fc.bias",), unbuildable={"fc.bias": made},
    )  # fmt: skip
    assert "'fc.bias' is no tensor that can be read: it is a nested tensor" in refused(s, target())
    assert "it is a nested tensor" in refused(s)
