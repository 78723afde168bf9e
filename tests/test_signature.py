"""Key styles and signatures: one text for one value, and a digest that wrapping doesn't change."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.signature import KINDS, WRAPPER_TOKENS, KeyStyle, Signature, TensorSpec
from registry.values import canonical_json, digest_of

ODD = ["features", "0", "a-b", "a]b", "[x]", "a\\", "é", "a,b"]
SEGMENTS = st.sampled_from([*WRAPPER_TOKENS, *ODD]) | (
    st.text(min_size=1, max_size=5).filter(lambda s: "." not in s)
)
PATHS = st.lists(SEGMENTS, max_size=3).map(".".join)
TOKENS = st.lists(st.sampled_from(WRAPPER_TOKENS), min_size=1, max_size=3).map(tuple)
STYLES = st.dictionaries(PATHS, TOKENS, max_size=4).map(
    lambda d: KeyStyle(tuple(sorted(d.items())))
)


@given(STYLES)
def test_the_text_of_a_key_style_parses_to_the_same_style(style):
    assert KeyStyle.parse(str(style)) == style
    assert pickle.loads(pickle.dumps(style)) == style


@given(STYLES, STYLES)
def test_two_styles_have_two_texts(a, b):
    assert (str(a) == str(b)) is (a == b)


@given(st.text() | st.text("module._orig[],\\"))
def test_any_text_is_a_key_style_or_a_value_error(text):
    try:
        style = KeyStyle.parse(text)
    except ValueError:
        return
    assert KeyStyle.parse(str(style)) == style


@pytest.mark.parametrize(
    ("text", "wraps"),
    [
        ("", ()),
        ("module.", (("", ("module",)),)),
        ("module._orig_mod.", (("", ("module", "_orig_mod")),)),
        ("_orig_mod.module.", (("", ("_orig_mod", "module")),)),
        ("features.module.", (("features", ("module",)),)),
        ("module.,features.module.", (("", ("module",)), ("features", ("module",)))),
        ("fc1._orig_mod.", (("fc1", ("_orig_mod",)),)),
        ("[module].module.", (("module", ("module",)),)),
        ("[module].[module].module.", (("module.module", ("module",)),)),
        ("layers.0._checkpoint_wrapped_module.", (("layers.0", ("_checkpoint_wrapped_module",)),)),
    ],
)
def test_each_form_of_a_key_style_has_its_meaning(text, wraps):
    assert KeyStyle.parse(text) == KeyStyle(wraps)
    assert str(KeyStyle(wraps)) == text
    assert bool(KeyStyle(wraps)) is bool(text)


def test_positions_may_be_given_in_any_order():
    assert str(KeyStyle.parse("features.module.,module.")) == "module.,features.module."


@pytest.mark.parametrize(
    "text",
    [
        "module", "plain", "features.", ".module.", "module..", "module. ", " module.", "module.,",
        ",module.", "module.,module.", "a.module.,a._orig_mod.", "[module].", "[].module.", "[a",
        "[a.b].module.", "[a\\b].module.", "module.\n", "features.module.0.", "ddp.",
    ],
)  # fmt: skip
def test_what_names_no_wrapper_is_no_key_style(text):
    with pytest.raises(ValueError, match="is no key style"):
        KeyStyle.parse(text)


def test_a_key_style_made_by_hand_is_checked():
    with pytest.raises(ValueError, match="sorted and distinct"):
        KeyStyle((("b", ("module",)), ("a", ("module",))))
    with pytest.raises(ValueError, match="sorted and distinct"):
        KeyStyle((("a", ("module",)), ("a", ("module",))))
    with pytest.raises(ValueError, match="are not wrapper tokens"):
        KeyStyle((("a", ("ddp",)),))
    with pytest.raises(ValueError, match="are not wrapper tokens"):
        KeyStyle((("a", ()),))


# --- signatures -----------------------------------------------------------------------------------

SPECS = st.builds(
    TensorSpec,
    st.text(max_size=10),
    st.sampled_from(["float32", "bfloat16", "int64"]),
    st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    st.sampled_from(KINDS),
)
SIGNATURES = st.lists(SPECS, max_size=5, unique_by=lambda s: s.key).map(
    lambda specs: Signature(tuple(specs))
)


@given(SIGNATURES)
def test_a_signature_survives_its_text(signature):
    again = Signature.from_json(signature.to_json())
    assert again == signature
    assert again.digest == signature.digest
    assert pickle.loads(pickle.dumps(signature)) == signature


@given(st.lists(SPECS, max_size=5, unique_by=lambda s: s.key), st.randoms(use_true_random=False))
def test_the_order_of_the_tensors_does_not_matter(specs, random):
    shuffled = random.sample(specs, len(specs))
    assert Signature(tuple(shuffled)) == Signature(tuple(specs))


def test_the_digest_covers_key_dtype_and_shape_but_not_kind():
    base = TensorSpec("w", "float32", (2, 3), "parameter")
    digest = Signature((base,)).digest
    assert digest == digest_of([["w", "float32", [2, 3]]])
    assert Signature((TensorSpec("w", "float32", (2, 3)),)).digest == digest
    assert Signature((TensorSpec("v", "float32", (2, 3)),)).digest != digest
    assert Signature((TensorSpec("w", "float16", (2, 3)),)).digest != digest
    assert Signature((TensorSpec("w", "float32", (3, 2)),)).digest != digest


def test_parameters_are_counted_where_kinds_are_known():
    weight = TensorSpec("w", "float32", (2, 3), "parameter")
    scale = TensorSpec("s", "float32", (), "parameter")
    mean = TensorSpec("m", "float32", (5,), "buffer")
    assert Signature((weight, scale, mean)).parameters == 7
    assert Signature((weight, TensorSpec("x", "float32", (1,)))).parameters is None
    assert Signature(()).parameters == 0


@pytest.mark.parametrize(
    "rows",
    [
        {}, [1], [["w"]], [["w", "float32", [1], "weight"]], [["w", "float32", [-1], "buffer"]],
        [["w", "float32", [1.5], "buffer"]], [["w", "float32", "12", "buffer"]],
        [["w", 3, [], "buffer"]], [[3, "float32", [], "buffer"]],
    ],
)  # fmt: skip
def test_a_damaged_signature_is_refused(rows):
    with pytest.raises((ValueError, TypeError)):
        Signature.from_json(canonical_json(rows))


def test_a_signature_that_names_a_key_twice_is_refused():
    with pytest.raises(ValueError, match="can't name 'w' twice"):
        Signature((TensorSpec("w", "float32", (1,)), TensorSpec("w", "float32", (2,))))
