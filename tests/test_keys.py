"""Keys: renaming is exact and invertible; no style is taken that the target doesn't prove."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import RefusedLoadError
from registry.keys import (
    Reading,
    Shapes,
    candidates,
    guess_style,
    idle_positions,
    is_whole,
    prefixed_ways,
    stated_style,
    to_canonical,
    to_raw,
    ways,
    wrapper_state,
)
from registry.signature import WRAPPER_TOKENS, KeyStyle

MODULE = KeyStyle.parse("module.")

# A module tree: real children may be called like wrappers; leaves are parameters.
NAMES = ("a", "b", "0", "module", "_orig_mod", "n_averaged")
LEAVES = st.sampled_from([(1,), (2,), (2, 3)])
TREES = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), LEAVES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(NAMES), st.one_of(LEAVES, inner), min_size=1, max_size=3
    ),
    max_leaves=8,
)


def flat(tree: dict[str, object], path: str = "") -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{path}{name}.")
        else:
            found[path + name] = value  # type: ignore[assignment]
    return found


def modules(keys: list[str]) -> list[str]:
    return sorted({".".join(k.split(".")[:i]) for k in keys for i in range(len(k.split(".")))})


@st.composite
def wrapped_nets(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], KeyStyle]:
    shapes = flat(draw(TREES))
    tokens = st.lists(st.sampled_from(WRAPPER_TOKENS), min_size=1, max_size=2).map(tuple)
    places = draw(st.lists(st.sampled_from(modules(list(shapes))), unique=True, max_size=3))
    return shapes, KeyStyle(tuple(sorted((place, draw(tokens)) for place in places)))


# --- there and back -------------------------------------------------------------------------------


@given(wrapped_nets())
def test_raw_and_canonical_are_inverse_with_wrappers_anywhere(
    net: tuple[dict[str, tuple[int, ...]], KeyStyle],
) -> None:
    shapes, style = net
    raw = to_raw(shapes, style)
    assert len(set(raw.values())) == len(shapes)
    assert to_canonical(raw.values(), style) == {v: k for k, v in raw.items()}


@given(wrapped_nets())
def test_every_wrapped_net_is_recognised_by_its_plain_self(
    net: tuple[dict[str, tuple[int, ...]], KeyStyle],
) -> None:
    shapes, style = net
    raw = to_raw(shapes, style)
    found = candidates({raw[k]: s for k, s in shapes.items()}, shapes)
    assert [to_canonical(raw.values(), s) for s in found] == [{v: k for k, v in raw.items()}]


@st.composite
def files_and_targets(
    draw: st.DrawFn,
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Draw a file's keys, and a target that is the same with some tokens gone."""
    shapes, style = draw(wrapped_nets())
    raw = {key: shapes[name] for name, key in to_raw(shapes, style).items()}
    gone = tuple(
        draw(st.lists(st.sampled_from(token_edges(raw)), unique=True)) if token_edges(raw) else ()
    )
    target = {without(k, gone): s for k, s in raw.items() if not is_counter(k, gone)}
    if draw(st.booleans()) and len(target) > 1:
        target.pop(draw(st.sampled_from(sorted(target))))
    return raw, target


@given(files_and_targets())
@settings(max_examples=400)
def test_candidates_are_all_deletions_that_fit_and_no_others(
    pair: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]],
) -> None:
    raw, target = pair
    found = candidates(raw, target)
    maps = {
        tuple(
            sorted(
                (k, c) for k, c in to_canonical(raw, s).items() if k not in wrapper_state(raw, s)
            )
        )
        for s in found
    }
    assert maps == brute_force(raw, target)
    assert len(maps) == len(found) <= 1


def brute_force(raw: Shapes, target: Shapes) -> set[tuple[tuple[str, str], ...]]:
    """Try every subset of the tokens that all keys of their module share, by the definition."""
    edges = token_edges(raw)
    found = set()
    for size in range(len(edges) + 1):
        for chosen in itertools.combinations(edges, size):
            renames = {key: without(key, chosen) for key in raw}
            counters = {k for k in raw if is_counter(k, chosen)}
            shapes = {c: raw[k] for k, c in renames.items() if k not in counters}
            if len(set(renames.values())) < len(raw):
                continue
            if len(shapes) == len(raw) - len(counters) and shapes == dict(target):
                found.add(tuple(sorted((k, c) for k, c in renames.items() if k not in counters)))
    return found


def token_edges(raw: Shapes) -> list[str]:
    return [
        module
        for module in modules(list(raw))
        if module.rpartition(".")[2] in WRAPPER_TOKENS and only_child(module, raw)
    ]


def only_child(module: str, raw: Shapes) -> bool:
    parent, _, token = module.rpartition(".")
    below = [k for k in raw if not parent or k.startswith(parent + ".")]
    others = [k for k in below if not k.startswith(module + ".")]
    counter = f"{parent}.n_averaged" if parent else "n_averaged"
    return not others or (token == "module" and others == [counter])


def is_counter(key: str, chosen: tuple[str, ...]) -> bool:
    parent, _, leaf = key.rpartition(".")
    return leaf == "n_averaged" and (f"{parent}.module" if parent else "module") in chosen


def without(key: str, chosen: tuple[str, ...]) -> str:
    segments = key.split(".")
    return ".".join(s for i, s in enumerate(segments) if ".".join(segments[: i + 1]) not in chosen)


# --- examples that people meet --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["model.", "+bert.", "module.model.", "model.,model._orig_mod."])
def test_an_attribute_stated_as_a_wrapper_is_refused_with_where_it_is_stated(text: str) -> None:
    with pytest.raises(ValueError, match=r"names an attribute that holds the net, '(model|bert)'"):
        stated_style(text)


def test_what_is_no_key_style_at_all_is_refused_as_that() -> None:
    with pytest.raises(ValueError, match="is no key style"):
        stated_style("no style")
    assert str(stated_style("a.module.")) == "a.module."


@pytest.mark.parametrize(
    ("style", "raw", "canonical"),
    [
        ("module.", "module.fc.weight", "fc.weight"),
        ("module._orig_mod.", "module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.", "_orig_mod.module.fc.weight", "fc.weight"),
        ("features.module.", "features.module.0.weight", "features.0.weight"),
        ("fc1._orig_mod.", "fc1._orig_mod.weight", "fc1.weight"),
        ("module.,features.module.", "module.features.module.0.bias", "features.0.bias"),
        ("[module].module.", "module.module.weight", "module.weight"),
        ("", "module.module.weight", "module.module.weight"),
    ],
)
def test_tokens_are_taken_from_their_position_only(style: str, raw: str, canonical: str) -> None:
    parsed = KeyStyle.parse(style)
    assert to_canonical([raw], parsed) == {raw: canonical}
    assert to_raw([canonical], parsed) == {canonical: raw}


def test_half_prefixed_keys_are_never_stripped() -> None:
    with pytest.raises(RefusedLoadError, match=r"1 of 2 keys lack .*'fc\.bias'"):
        to_canonical(["module.fc.weight", "fc.bias"], MODULE)


def test_two_keys_that_would_become_one_are_refused() -> None:
    with pytest.raises(RefusedLoadError, match="one would overwrite the other"):
        to_canonical(["module.n_averaged", "n_averaged"], MODULE)


def test_a_parameter_called_module_is_no_wrapper() -> None:
    assert not guess_style(["fc.module", "module"])
    with pytest.raises(RefusedLoadError):
        to_canonical(["module"], MODULE)


def test_the_counter_of_averaged_model_is_wrapper_state() -> None:
    raw = ["n_averaged", "module.weight"]
    assert guess_style(raw) == MODULE
    assert wrapper_state(raw, MODULE) == {"n_averaged": "n_averaged"}
    assert wrapper_state(["module.n_averaged"], MODULE) == {}
    ddp = KeyStyle.parse("module.module.")
    assert wrapper_state(["module.n_averaged", "module.module.w"], ddp) == {
        "module.n_averaged": "n_averaged"
    }


@pytest.mark.parametrize(
    ("raw", "style"),
    [
        (["fc.weight", "fc.bias"], ""),
        (["module.fc.weight", "module.fc.bias"], "module."),
        (["module.fc.weight", "fc.bias"], ""),
        (["features.module.0.weight", "fc.weight"], "features.module."),
        (["fc1._orig_mod.weight", "fc2.weight"], "fc1._orig_mod."),
        (["module._orig_mod.a.w", "module._orig_mod.b.w"], "module._orig_mod."),
        (["module.weight", "weight"], ""),
    ],
)
def test_guess_is_what_uniform_tokens_suggest(raw: list[str], style: str) -> None:
    assert str(guess_style(raw)) == style


def test_a_net_whose_only_child_is_called_module_keeps_it() -> None:
    net = {"module.weight": (2, 2), "module.bias": (2,)}
    assert candidates(net, net) == [KeyStyle()]
    wrapped = {f"module.{k}": s for k, s in net.items()}
    assert candidates(wrapped, net) == [MODULE]
    plain = {"weight": (2, 2), "bias": (2,)}
    assert candidates(plain, net) == []
    assert candidates(net, plain) == [MODULE]


def test_shapes_must_agree_for_a_candidate() -> None:
    assert candidates({"module.w": (2,)}, {"w": (3,)}) == []


def test_a_tied_name_that_the_file_lacks_is_no_gap() -> None:
    raw, target = {"module.a": (2,)}, {"a": (2,), "b": (2,)}
    assert candidates(raw, target) == []
    assert candidates(raw, target, ties=[("a", "b")]) == [MODULE]


def test_ways_that_differ_are_all_told() -> None:
    raw = {"module.module.w": (1,), "module.module.v": (2,)}
    target = {"module.w": (1,), "module.v": (3,), "w": (1,), "v": (3,)}
    found = ways(raw, target)
    assert {str(w.style): dict(w.matched) for w in found} == {
        "module.": {"module.module.w": "module.w"},
        "module.module.": {"module.module.w": "w"},
    }


def test_keys_that_reach_nothing_stay_as_they_are() -> None:
    (way,) = ways({"module.x": (1,)}, {"y": (1,)})
    assert not way.style
    assert not way.matched


def test_idle_positions_are_found() -> None:
    style = KeyStyle.parse("feature.module.,features.module.")
    assert idle_positions(["features.0.weight", "fc.weight"], style) == ("feature",)


def test_keys_of_absurd_depth_are_handled() -> None:
    deep = "module." * 5000 + "w"
    assert guess_style([deep]).wraps[0][1] == ("module",) * 5000
    assert candidates({deep: (1,)}, {"w": (1,)}) != []
    assert guess_style([".".join("ab" * 2000)]) == KeyStyle()


def test_a_counter_is_read_as_the_target_needs_it() -> None:
    averaged_child = {"module.n_averaged": (), "module.module.w": (1,)}
    assert candidates(averaged_child, {"module.w": (1,)}) == [KeyStyle.parse("[module].module.")]
    averaged_root = {"n_averaged": (), "module.module.w": (1,)}
    assert candidates(averaged_root, {"module.w": (1,)}) == [MODULE]
    own = {"module.n_averaged": (1,), "module.module.module.a": (1,)}
    (style,) = candidates(own, {"n_averaged": (1,), "module.a": (1,)})
    assert to_canonical(own, style)["module.n_averaged"] == "n_averaged"
    assert not wrapper_state(own, style)


def test_a_net_that_counts_like_its_wrapper_has_no_candidate() -> None:
    raw = {"n_averaged": (), "module.n_averaged": (2,), "module.w": (1,)}
    assert candidates(raw, {"n_averaged": (2,), "w": (1,)}) == []


def test_a_token_that_is_a_tensor_too_is_no_wrapper() -> None:
    raw = {"a.module": (1,), "a.module.w": (2,)}
    assert guess_style(raw) == KeyStyle()
    assert candidates(raw, raw) == [KeyStyle()]
    assert candidates(raw, {"a": (1,), "a.w": (2,)}) == []


# --- an attribute around the net ------------------------------------------------------------------


def prefixed_candidates(raw: Shapes, target: Shapes) -> list[str]:
    found = [*ways(raw, target), *prefixed_ways(raw, target)]
    return [str(w.reading) for w in found if is_whole(w, raw, target)]


READINGS = st.builds(
    lambda style, name, add: Reading(style, **({"add": name} if add else {"drop": name})),
    wrapped_nets().map(lambda pair: pair[1]),
    st.text(min_size=1, max_size=5).filter(lambda s: "." not in s),
    st.booleans(),
)


@given(READINGS)
def test_a_readings_text_is_read_back(reading: Reading) -> None:
    assert Reading.parse(str(reading)) == reading


@pytest.mark.parametrize(
    ("text", "raw", "name"),
    [
        ("model.", "model.fc.weight", "fc.weight"),
        ("+bert.", "fc.weight", "bert.fc.weight"),
        ("model.,model._orig_mod.", "model._orig_mod.fc.weight", "fc.weight"),
        ("module.model.", "module.model.fc.weight", "fc.weight"),
        ("_forward_module.model.,model._orig_mod.", "_forward_module.model._orig_mod.w", "w"),
        ("[module].", "module.fc.weight", "fc.weight"),
        ("model._orig_mod.", "model._orig_mod.fc.weight", "model.fc.weight"),
        ("model.", "model", None),
        ("model.", "models.fc.weight", None),
        ("", "model.fc.weight", "model.fc.weight"),
    ],
)
def test_an_attribute_is_dropped_or_added_as_stated(text: str, raw: str, name: str | None) -> None:
    reading = Reading.parse(text)
    assert reading.place(to_canonical([raw], reading.style)[raw]) == name


@pytest.mark.parametrize("text", ["model", "a.b.", "+", "model.,", "model.,net.", "+a.b.", "."])
def test_what_is_no_reading_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key style"):
        Reading.parse(text)


@given(wrapped_nets(), st.sampled_from(["model", "net", "n_averaged"]))
@settings(max_examples=300)
def test_every_net_under_an_attribute_is_recognised_by_its_plain_self(
    net: tuple[dict[str, tuple[int, ...]], KeyStyle], attribute: str
) -> None:
    shapes, style = net
    held = {f"{attribute}.{key}": shapes[name] for name, key in to_raw(shapes, style).items()}
    texts = prefixed_candidates(held, shapes)
    assert len(texts) >= 1
    maps = set()
    for reading in map(Reading.parse, texts):
        named = to_canonical(held, reading.style)
        maps.add(tuple((key, reading.place(name)) for key, name in named.items()))
    assert len(maps) == len(texts)
    truth = {f"{attribute}.{key}": name for name, key in to_raw(shapes, style).items()}
    assert tuple(truth.items()) in maps
    assert prefixed_candidates(shapes, {f"{attribute}.{k}": s for k, s in shapes.items()})


def test_an_attribute_is_dropped_from_no_key_while_the_net_names_another() -> None:
    raw = {"model.a": (1,), "b": (2,)}
    assert prefixed_ways(raw, {"a": (1,), "b": (2,)}) == []
    assert prefixed_ways({"model.a": (1,), "a": (1,)}, {"a": (1,)}) == []
    (way,) = prefixed_ways(raw, {"a": (1,)})
    assert (str(way.reading), is_whole(way, raw, {"a": (1,)})) == ("model.", False)


def test_an_attribute_is_never_called_like_a_wrapper() -> None:
    assert prefixed_ways({"module.a": (1,), "b": (2,)}, {"a": (1,)}) == []
    assert prefixed_ways({"a": (1,)}, {"module.a": (1,)}) == []


def test_a_net_with_a_child_called_model_keeps_it() -> None:
    net = {"model.weight": (2, 2), "model.bias": (2,)}
    assert prefixed_candidates(net, net) == [""]
    assert prefixed_candidates({f"model.{k}": s for k, s in net.items()}, net) == ["model."]


def test_a_reading_that_makes_two_keys_one_is_no_way() -> None:
    net = {"n_averaged": (1,), "module.n_averaged": (1,)}
    held = {f"model.{k}": s for k, s in net.items()}
    assert prefixed_candidates(held, net) == ["model."]
    (way,) = ways(net, {"n_averaged": (1,)})
    assert dict(way.matched) == {"n_averaged": "n_averaged"}
    assert not way.reading
