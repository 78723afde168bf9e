"""Refs: every documented form, and a message that shows them for everything else."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.refs import Ref, parse

NAMES = st.from_regex(r"[a-zA-Z0-9é][\w.\-é]{0,8}(/[a-zA-Z0-9][\w.\-]{0,8}){0,2}", fullmatch=True)
NAMES = NAMES.filter(lambda name: unicodedata.is_normalized("NFC", name))  # else it is another
ALIASES = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,63}", fullmatch=True)
NUMBERS = st.integers(0, 2**63 - 1).map(str)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("resnet50", Ref(model="resnet50", at="highest")),
        ("vision/resnet50-d@v12", Ref(model="vision/resnet50-d", at="version", number=12)),
        ("resnet50@best", Ref(model="resnet50", at="best")),
        ("resnet50@latest", Ref(model="resnet50", at="latest")),
        ("resnet50@epoch=0", Ref(model="resnet50", at="epoch", number=0)),
        ("resnet50@prod", Ref(model="resnet50", at="alias", alias="prod")),
        ("resnet50@vnext", Ref(model="resnet50", at="alias", alias="vnext")),
        ("1f2e3d", Ref(model="1f2e3d", at="highest", id="1f2e3d")),
        ("C0FFEE1", Ref(model="C0FFEE1", at="highest", id="c0ffee1")),
        ("ab" * 16, Ref(model="ab" * 16, at="highest", id="ab" * 16)),
        ("1f2e3", Ref(model="1f2e3", at="highest")),
        ("ab" * 16 + "c", Ref(model="ab" * 16 + "c", at="highest")),
        ("1f2e3d@best", Ref(model="1f2e3d", at="best")),
    ],
)
def test_each_form_has_its_meaning(text, ref):
    assert parse(text) == ref


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the model's name is missing"),
        ("@best", "the model's name is missing"),
        ("resnet50@", "nothing follows '@'"),
        ("resnet50@3", "a version is written resnet50@v3"),
        ("resnet50@v0", "the number must be between 1 and 2**63 - 1"),
        ("resnet50@v" + "9" * 19, "the number must be between 1 and 2**63 - 1"),
        ("resnet50@v" + "9" * 5000, "the number must be between 1 and 2**63 - 1"),
        ("resnet50@epoch=-1", "an epoch is written resnet50@epoch=12"),
        ("resnet50@epoch=", "an epoch is written resnet50@epoch=12"),
        ("resnet50@acc=0.9", "only an epoch can be asked for by '='"),
        ("resnet50@a b", "the alias 'a b' must be a letter followed by"),
        ("resnet50@prod@v2", "the alias 'prod@v2' must be a letter followed by"),
        ("resnet50:v3", "it is written resnet50@v3"),
        ("team/net:prod", "it is written team/net@prod"),
        ("res net", "'res net' can't be a model's name"),
        ("-x", "'-x' can't be a model's name"),
        ("a//b", "'a//b' can't be a model's name"),
        ("a\u202eb", "'a\\u202eb' can't be a model's name"),
        ("a" * 256, "can't be a model's name"),
    ],
)
def test_anything_else_is_refused_with_its_reason_and_the_forms(text, reason):
    with pytest.raises(ValueError, match="is no ref") as caught:
        parse(text)
    assert reason in str(caught.value)
    assert "NAME@vN, NAME@best, NAME@latest, NAME@epoch=N, NAME@ALIAS" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).replace("\n", " ").isprintable()


def test_a_number_may_have_leading_zeros():
    assert parse("m@v" + "0" * 100 + "7") == Ref(model="m", at="version", number=7)


def test_a_ref_of_an_id_alone_prints_the_id():
    assert str(Ref(model=None, at="id", id="1f2e3d4c")) == "1f2e3d4c"


def test_a_ref_must_be_text():
    with pytest.raises(TypeError, match="a ref is text, not int: 3"):
        parse(3)  # type: ignore[arg-type]


@given(
    NAMES,
    st.one_of(
        st.sampled_from(["", "@best", "@latest"]),
        ALIASES.map("@{}".format).filter(lambda s: not re.fullmatch(r"@v[0-9]+", s)),
        NUMBERS.filter(lambda n: n != "0").map("@v{}".format),
        NUMBERS.map("@epoch={}".format),
    ),
)
def test_text_of_a_ref_parses_to_the_same_ref(name, rest):
    ref = parse(name + rest)
    assert parse(str(ref)) == ref


@given(st.text() | st.text("abv01@=./-\u202e"))
def test_any_text_is_a_ref_or_a_value_error(text):
    try:
        ref = parse(text)
    except ValueError:
        return
    assert parse(str(ref)) == ref
