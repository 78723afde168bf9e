"""Plain values: what passes a check can be stored, compared and printed as it is."""

import copy
import enum
import json
import math
import pickle
import re
import types
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import blake3
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from registry.values import (
    EMPTY,
    FrozenMap,
    canonical_json,
    checkpoint_id,
    count,
    digest,
    digest_of,
    finite,
    label,
    list_of,
    metrics_of,
    model_name,
    one_of,
    optional_count,
    optional_prose,
    optional_text,
    parse_time,
    plain_json,
    printable,
    table_of,
    time_text,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
TABLES = st.dictionaries(st.text(), JSON)


# --- FrozenMap ------------------------------------------------------------------------------------


@given(TABLES)
def test_a_frozen_map_gives_back_what_it_was_made_from(table):
    assert FrozenMap(table).to_dict() == table
    assert FrozenMap(table) == table
    assert json.loads(canonical_json(FrozenMap(table).to_dict())) == table


@given(TABLES)
def test_equal_frozen_maps_have_one_hash_and_survive_pickle_and_copy(table):
    frozen = FrozenMap(table)
    turned = FrozenMap(dict(reversed(table.items())))
    assert frozen == turned
    assert hash(frozen) == hash(turned)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(frozen, protocol))
        assert again == frozen
        assert hash(again) == hash(frozen)
    assert copy.deepcopy(frozen) == frozen


def test_nothing_in_a_frozen_map_can_be_changed_at_any_depth():
    source = {"a": [1, {"b": [2]}]}
    frozen = FrozenMap(source)
    source["a"][1]["b"].append(3)
    assert frozen.to_dict() == {"a": [1, {"b": [2]}]}
    frozen.to_dict()["a"].append(4)
    assert frozen.to_dict() == {"a": [1, {"b": [2]}]}
    with pytest.raises(TypeError):
        frozen["a"] = 1
    with pytest.raises(TypeError):
        frozen["a"][1]["b"] = 1
    with pytest.raises(TypeError):
        del frozen["a"]
    with pytest.raises(AttributeError):
        frozen.b = 1


def test_a_frozen_map_prints_like_a_dict_and_differs_from_others():
    assert repr(FrozenMap({"acc": 0.9})) == "{'acc': 0.9}"
    assert FrozenMap({"a": 1}) != FrozenMap({"a": 2})
    assert FrozenMap({"a": 1}) != 3
    assert not EMPTY
    assert len(EMPTY) == 0


# --- JSON -----------------------------------------------------------------------------------------


@given(JSON)
def test_plain_json_leaves_json_as_it_is(value):
    assert plain_json(value, "config") == value
    assert canonical_json(plain_json(value, "config")) == canonical_json(plain_json(value, "x"))


@given(JSON)
def test_canonical_json_is_one_ascii_text_that_reads_back(value):
    text = canonical_json(value)
    assert text.isascii()
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


class Colour(enum.StrEnum):
    RED = "red"


class Shade(str, enum.Enum):  # noqa: UP042  the older spelling, whose str() is 'Shade.DARK'
    DARK = "dark"


class Size(enum.IntEnum):
    SMALL = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.bool_(True), True),
        (np.str_("adam"), "adam"),
        (np.array(3), 3),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(7), 7),
        (torch.tensor(True), True),
        (torch.tensor([0.5], dtype=torch.bfloat16), 0.5),
        ((1, 2, (3,)), [1, 2, [3]]),
        (FrozenMap({"a": [1]}), {"a": [1]}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Colour.RED, "red"),
        (Shade.DARK, "dark"),
        (Size.SMALL, 3),
    ],
)  # fmt: skip
def test_scalars_of_numpy_and_torch_become_plain(value, plain):
    found = plain_json({"x": value}, "config")["x"]
    assert found == plain
    assert type(found) is type(plain)
    assert json.loads(canonical_json(found)) == plain


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"fn": len}, r"config\.fn: a builtin_function_or_method has no JSON form"),
        ({"a": [1, {2}]}, r"config\.a\[1\]: a set has no JSON form"),
        ({"a": {1: 2}}, r"config\.a: the key 1 is an int, and must be a string"),
        ({"a": datetime(2026, 1, 1)}, r"config\.a: a datetime has no JSON form"),
        ({"a": b"x"}, r"config\.a: a bytes has no JSON form"),
        ({"a": 1j}, r"config\.a: a complex has no JSON form"),
        ({"a": np.zeros(2)}, r"config\.a: a ndarray has no JSON form"),
        ({"a": torch.zeros(2)}, r"config\.a: a Tensor has no JSON form"),
        ({"a": torch.zeros((), device="meta")}, r"config\.a: a Tensor has no JSON form"),
        ({"a": np.float32}, r"config\.a: a type has no JSON form"),
    ],
)
def test_what_has_no_json_form_is_refused_by_its_path(value, message):
    with pytest.raises(TypeError, match=message):
        plain_json(value, "config")


NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)]


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_json_numbers_are_finite(bad):
    with pytest.raises(ValueError, match=r"config\.lr\[0\] is -?(nan|inf), and must be finite"):
        plain_json({"lr": [bad]}, "config")
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float(bad))


def test_json_is_not_nested_without_end():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        plain_json(loop, "config")


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "acc",
    [0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5),
     torch.tensor([[0.5]]), torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True)],
)  # fmt: skip
def test_acc_may_be_any_scalar_and_becomes_a_float(acc):
    assert finite(acc, "acc") == 0.5
    assert type(finite(acc, "acc")) is float
    assert metrics_of({}, acc) == {"acc": 0.5}


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_acc_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"acc is -?(nan|inf), and must be finite"):
        metrics_of({}, bad)


@pytest.mark.parametrize("bad", ["0.9", True, np.bool_(True), None, [0.9], np.zeros(2), 1j, {}])
def test_what_is_no_number_is_no_metric(bad):
    with pytest.raises(TypeError, match="acc must be a number"):
        finite(bad, "acc")


def test_an_integer_too_large_for_a_float_is_refused_shortly():
    with pytest.raises(ValueError, match="acc is too large for a float") as caught:
        finite(10**400, "acc")
    assert len(str(caught.value)) < 200


def test_minus_zero_is_zero():  # as SQLite keeps it, so that digests of facts agree
    assert math.copysign(1, finite(-0.0, "acc")) == 1


@given(st.integers(0, 2**63 - 1))
def test_a_count_is_itself(number):
    assert count(number, "epoch") == number
    assert count(np.int64(number), "epoch") == number
    assert type(count(torch.tensor(number), "epoch")) is int


@pytest.mark.parametrize("bad", [-1, 2**63, np.int8(-1), 10**4000])
def test_a_count_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"epoch must be between 0 and 2\*\*63 - 1"):
        count(bad, "epoch")


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, np.float32(1), torch.tensor(1.0), [1]])
def test_what_is_no_integer_is_no_count(bad):
    with pytest.raises(TypeError, match="epoch must be an integer"):
        count(bad, "epoch")


def test_metrics_are_checked_whole():
    assert metrics_of({"val/loss": np.float64(0.25)}, 1) == {"val/loss": 0.25, "acc": 1.0}
    assert metrics_of({"acc": 0.5}, torch.tensor(0.5)) == {"acc": 0.5}
    with pytest.raises(ValueError, match=r"acc is given twice: 0\.5, and 0\.6 in metrics"):
        metrics_of({"acc": 0.6}, 0.5)
    with pytest.raises(ValueError, match="loss is nan"):
        metrics_of({"loss": math.nan})
    with pytest.raises(ValueError, match=r"metric 'a\\nb' must be 1 to 255 printable"):
        metrics_of({"a\nb": 1})
    with pytest.raises(TypeError, match="metric must be text, not an int"):
        metrics_of({1: 1})
    with pytest.raises(TypeError, match="metrics are a dict"):
        metrics_of([("a", 1)])
    with pytest.raises(ValueError, match="two Unicode forms"):
        metrics_of({"\u00e9": 1, "e\u0301": 2})


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "vision/resnet50-d",
        "a.b_c-d",
        "7b",
        "模型/大",
        "é",
        "Ω1",
        "a" * 255,
        "a.",
        "a--b",
    ],
)
def test_these_are_model_names(name):
    assert model_name(name) == name


def test_model_names_are_kept_in_nfc():
    assert model_name("cafe\u0301") == "caf\u00e9"
    assert len(model_name("e\u0301" * 255)) == 255


@pytest.mark.parametrize(
    "name",
    [
        "", "-a", ".a", "_a", "..", "a/../b", "/a", "a/", "a//b", "a b", "a\u00a0b", "a\tb",
        "a\n", "a@b", "a:b", "a\\b", "a\x00", "a\x1b[31m", "a\x7f", "a\u0085", "a\u202eb",
        "a\u200eb", "a\u2066b", "a\u200bb", "a\u200db", "a\ufeff", "a\u2028b", "a\ud800",
        "\u0301a", "a" * 256,
        "a/" * 200 + "a",
    ],
)  # fmt: skip
def test_these_are_no_model_names(name):
    with pytest.raises(ValueError, match="can't be a model's name: take letters") as caught:
        model_name(name)
    assert str(caught.value).isprintable()


def test_a_module_passed_as_the_model_is_told_the_right_call():
    with pytest.raises(
        TypeError, match=r'the network goes first: reg\.save\(net, model="resnet50"'
    ):
        model_name(torch.nn.Linear(1, 1))


@given(st.text())
def test_a_model_name_that_passes_is_printable_nfc_and_passes_again(text):
    try:
        name = model_name(text)
    except ValueError:
        return
    assert name == model_name(name) == unicodedata.normalize("NFC", name)
    assert name.isprintable()
    assert not re.search(r"\s", name)
    assert not any(
        unicodedata.bidirectional(c)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for c in name
    )


def test_text_is_printable_nfc_without_blanks_around():
    assert printable("ImageNet 1k (fold 2)", "dataset") == "ImageNet 1k (fold 2)"
    assert printable("cafe\u0301", "dataset") == "caf\u00e9"
    for bad in ("", " a", "a ", "a\nb", "a\u202eb", "a\u00a0b", "a\x00", "\ud800", "a" * 256):
        with pytest.raises(ValueError, match="must be 1 to 255 printable characters"):
            printable(bad, "dataset")
    with pytest.raises(TypeError, match="dataset must be text, not an int: 3"):
        printable(3, "dataset")


def test_labels_are_words_that_refs_do_not_use():
    for good in ("prod", "A", "v1.2", "vnext", "bestever", "a" * 64, "a-b_c.d", "V2"):
        assert label(good, "tag") == good
    for bad in ("", "1a", "-a", "a b", "a" * 65, "é", "a\n", "a/b", "a@b"):
        with pytest.raises(ValueError, match="must be a letter followed by"):
            label(bad, "tag")
    for reserved in ("best", "latest", "v0", "v12"):
        with pytest.raises(ValueError, match="is a word that refs use"):
            label(reserved, "alias")
    with pytest.raises(TypeError, match="tag must be text, not a NoneType"):
        label(None, "tag")


# --- time -----------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(UTC)))
def test_time_text_reads_back_and_has_one_width(moment):
    text = time_text(moment)
    assert parse_time(text) == moment
    assert len(text) == len("2026-11-01T12:30:00.000000Z")


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_the_order_of_time_text_is_the_order_of_time(a, b):
    assert (time_text(a) < time_text(b)) is (a < b)


def test_times_of_every_zone_become_utc():
    moment = datetime(2026, 11, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert time_text(moment) == "2026-10-31T23:00:00.000000Z"
    assert parse_time("2026-11-01T01:00:00+02:00") == moment
    assert parse_time("2026-11-01T01:00:00+02:00").tzinfo is UTC


def test_times_without_a_zone_or_outside_the_calendar_are_refused():
    with pytest.raises(ValueError, match="names no time zone"):
        parse_time("2026-11-01T01:00:00")
    with pytest.raises(ValueError, match="names no time zone"):
        time_text(datetime(2026, 11, 1))
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        parse_time("0001-01-01T00:00:00+01:00")
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_time("soon")
    with pytest.raises(TypeError):
        parse_time(3)


# --- ids, digests, fields -------------------------------------------------------------------------


def test_a_digest_is_blake3_of_the_canonical_json():
    text = b'{"a":1,"\\u00e9":[]}'
    assert digest_of({"\u00e9": (), "a": 1}) == "blake3:" + blake3.blake3(text).hexdigest()
    assert digest(digest_of({})) == digest_of({})


@pytest.mark.parametrize("bad", ["", "ab" * 15, "AB" * 16, "ab" * 16 + "\n", "zz" * 16, 3, None])
def test_an_id_is_32_hex_digits(bad):
    assert checkpoint_id("ab" * 16) == "ab" * 16
    with pytest.raises(ValueError, match="is no id"):
        checkpoint_id(bad)


@pytest.mark.parametrize("bad", ["", "ab" * 32, "sha256:" + "ab" * 32, "blake3:" + "AB" * 32, 3])
def test_a_digest_names_its_algorithm(bad):
    with pytest.raises(ValueError, match="is no digest"):
        digest(bad)


def test_fields_of_foreign_records_have_the_type_that_they_should():
    assert optional_text(None, "x") is None
    assert optional_count(None, "x") is None
    assert optional_prose("a\nb", "note") == "a\nb"
    assert optional_prose(None, "note") is None
    assert table_of(None, "x") == {}
    assert list_of(None, "x") == ()
    with pytest.raises(TypeError, match="note must be text"):
        optional_prose(3, "note")
    with pytest.raises(TypeError, match="config must be a table, not a list"):
        table_of([], "config")
    with pytest.raises(TypeError, match="tags must be a list, not a str: 'good'"):
        list_of("good", "tags")
    assert one_of("max", ("max", "min"), "mode") == "max"
    with pytest.raises(ValueError, match="mode 'up' is none of max, min"):
        one_of("up", ("max", "min"), "mode")
