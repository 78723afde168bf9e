"""The where language: what it means, how it prints, and how it refuses."""

import dataclasses
import re
import sqlite3
import time
import unicodedata
from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.records import Checkpoint, File, Provenance, RunRef
from registry.signature import KeyStyle
from registry.topology import STRATEGIES, Topology
from registry.values import FrozenMap, time_text
from registry.where import (
    COLUMNS,
    And,
    Column,
    Compare,
    Config,
    In,
    Labels,
    Like,
    Metric,
    Not,
    Or,
    evaluate,
    parse,
)
from registry.where.evaluating import matches

DIGEST = "blake3:" + "0" * 64

BARE = Checkpoint(
    id="0" * 32,
    model="m",
    version=1,
    container="torch-zip",
    signature=DIGEST,
    tensors=0,
    files=(),
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    facts_digest=DIGEST,
)
"""A checkpoint of which nothing is known that may be unknown."""

FULL = dataclasses.replace(
    BARE,
    id="c0ffee" + "1" * 26,
    model="vision/café",
    version=7,
    run=RunRef("a" * 32, "baseline"),
    dataset="cifar10",
    epoch=12,
    step=4000,
    metrics=FrozenMap({"acc": 0.93, "val/loss": 0.25, "best_acc1": 94.0}),
    config=FrozenMap(
        {
            "lr": 0.001, "epochs": 90, "amp": True, "optim": {"weight decay": 5e-4, "name": "sgd"},
            "nothing": None, "milestones": [30, 60], "big": 2**70, "huge": 10**400, "müll": "ö",
        }
    ),
    batch_size=256,
    key_style=KeyStyle.parse("module."),
    weights="both",
    topology=Topology("ddp", 4, device_type="cuda", device_count=4, hostname="gpu-3"),
    provenance=Provenance("recorded", "inferred"),
    tensors=161,
    parameters=25_557_032,
    files=(File("a", DIGEST, 100), File("b", DIGEST, 23)),
    scheduler="torch.optim.lr_scheduler.StepLR",
    tags=("good", "lab-2"),
    aliases=("prod",),
    parent="b" * 32,
    note="50% done_now",
    author="ada",
    origin="push",
    created_at=datetime(2026, 11, 1, 12, 30, tzinfo=UTC),
)  # fmt: skip


# --- what it means --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        """acc > 0.9 and (dataset == "cifar10" or tags == "good") and metrics."val/loss" < 0.3
        and config.lr >= 1e-3 and strategy == "ddp" and world_size >= 4
        and created_at > "2026-11-01" """,
        "acc == 0.93 and epoch == 12 and epoch == 12.0 and step == 4_000 and version != 6",
        "0.5 < acc < 0.94 and 13 > epoch >= 12",
        "epoch in (11, 12) and epoch not in [1, 2,] and 12 == epoch",
        'model == "vision/cafe\u0301"',  # NFC, as names are kept
        'model like "vision/%" and model like "vision/caf_" and model not like "VISION/%"',
        'run == "baseline" and run.name == "baseline" and run_id like "aaaa%" and run.id != "b"',
        'id like "c0ffee%" and parent != null and batch_size == 256',
        'key_style == "module." and file_keys == "plain" and file_keys == ""',
        'weights == "both" and origin == "push" and container == "torch-zip"',
        'device_type == "cuda" and device_count == 4 and host == "gpu-3" and hostname like "gpu-_"',
        'topology.strategy in ("ddp", "dp") and topology.world_size == 4',
        'provenance.topology == "recorded" and provenance.key_style != "recorded"',
        "size_bytes == 123 and tensors == 161 and parameters > 25e6",
        r'note like "50\\%%" and note like "50\%%" and note like "%done\_now" and author < "adb"',
        r"note not like '50\_%' and scheduler like '%StepLR'",
        'tags == "good" and "good" in tags and tags != "bad" and "bad" not in tags',
        'tags in ("x", "good") and tags not in ("x", "y") and tags like "lab-%"',
        'aliases == "prod" and aliases not in ("best",)',
        'tags != null and not tags not like "lab-_" and not tags == null',
        'created_at < "2026-11-02" and created_at >= "2026-11-01T13:30:00+01:00"',
        '"2026-11-01" <= created_at < "2026-11-02T00:00:00.5Z"',
        "metrics.best_acc1 == 94 and metrics.acc == 0.93 and metrics.none == null",
        "config.amp == true and config.amp in (true,) and config.amp != false",
        'config.optim."weight decay" < 1e-3 and config.optim.name == "sgd" and config.müll == "ö"',
        "config.nothing == null and config.absent == null and config.lr.deeper == null",
        "config.milestones != null and config.optim != null and not config.milestones == 30",
        "config.big > 9_223_372_036_854_775_807 and config.huge > 1e308",
        'not (acc < 0.9 or dataset == "imagenet") and not not epoch == 12',
        'True == config.amp and config.absent == None and (((epoch == 12)))',
        'dataset < "cifar100" and dataset > "CIFAR10"',
    ],
)  # fmt: skip
def test_these_hold(text):
    assert evaluate(parse(text), FULL)


@pytest.mark.parametrize(
    "text",
    [
        "acc != 0.5", "acc > 0", "acc <= 0", "0 < acc < 1", "acc in (0.5)", "acc not in (0.5)",
        'dataset != "a"', 'dataset like "%"', 'dataset not like "a"', 'dataset not in ("a", "b")',
        'metrics."val/loss" != 1', 'config.a.b != "x"', "config.a not in (1, 2)",
        'run != "x"', 'run_id != "x"', 'strategy != "ddp"', 'note like "%"', "parameters >= 0",
    ],
)  # fmt: skip
def test_a_comparison_with_an_absent_value_is_false_and_not_of_it_true(text):
    assert evaluate(parse(text), BARE) is False
    assert evaluate(parse(f"not ({text})"), BARE) is True


@pytest.mark.parametrize(
    "text",
    [
        "config.lr == true", 'config.lr != "0.001"', 'config.lr like "%"', 'config.lr < "z"',
        "config.amp == 1", "config.amp != 0", "config.amp in (1, 0)", "config.amp < 2",
        "config.optim.name != 3", "config.optim.name > 0", "config.milestones != 30",
        'config.milestones not like "x"', "config.optim not in (1, 2)", "config.nothing != 1",
    ],
)  # fmt: skip
def test_a_config_value_of_another_type_compares_as_if_absent_but_is_not_null(text):
    assert evaluate(parse(text), FULL) is False
    field = text.split(" ")[0]
    assert evaluate(parse(f"{field} != null"), FULL) is (field != "config.nothing")


def test_labels_are_a_set_that_is_never_absent():
    assert evaluate(parse('tags == null and tags != "a" and tags not like "%"'), BARE)
    assert evaluate(parse('aliases not in ("a", "b") and not aliases in ("a")'), BARE)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_its_value_and_its_type(name):
    assert evaluate(parse(f"{name} != null"), FULL)
    if COLUMNS[name] == "number":
        assert evaluate(parse(f"{name} > -1"), FULL)
        with pytest.raises(ValueError, match=f"{re.escape(name)} is a number"):
            parse(f'{name} == "x"')
    elif COLUMNS[name] == "text":
        assert evaluate(parse(f'{name} like "%"'), FULL)
        with pytest.raises(ValueError, match=f"{re.escape(name)} is text"):
            parse(f"{name} == 3")
    else:
        assert evaluate(parse(f'{name} > "0001-01-01"'), FULL)


# --- how it is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("acc>0.9", "acc > 0.9"),
        ("0.5<acc<=.9", "acc > 0.5 and acc <= 0.9"),
        ("not(acc>1 or acc<0)", "not (acc > 1 or acc < 0)"),
        ("acc>1 or acc<0 and epoch==3", "acc > 1 or (acc < 0 and epoch == 3)"),
        ("(acc>1 or acc<0) and epoch==3", "(acc > 1 or acc < 0) and epoch == 3"),
        ("(acc>1 and acc<2) and (epoch==3)", "acc > 1 and acc < 2 and epoch == 3"),
        ("not dataset in ['a']", 'not dataset in ("a")'),
        ("'good' not in tags", 'tags != "good"'),
        ("host == 'it\\'s'", 'hostname == "it\'s"'),
        ("created_at>'2026-11-01'", 'created_at > "2026-11-01T00:00:00.000000Z"'),
        ("created_at>'2026-11-01t01:00z'", 'created_at > "2026-11-01T01:00:00.000000Z"'),
        ('note == "\\u202e\\n\\U0001f600"', 'note == "\\u202e\\n😀"'),
        ("acc in (1, 9007199254740993)", "acc in (1, 9007199254740992.0)"),
        ("step == 9007199254740993", "step == 9007199254740993"),
        ("config.'a b'.c == None", 'config."a b".c == null'),
        ("epoch == +1_0 and step == -1e3", "epoch == 10 and step == -1000.0"),
    ],
)
def test_an_expression_prints_in_one_way(text, printed):
    assert str(parse(text)) == printed
    assert parse(printed) == parse(text)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**63 - 1)
SMALL_INTS = st.integers(-(2**53), 2**53)  # beyond, an int beside a metric becomes a float
NFC = partial(unicodedata.normalize, "NFC")  # what an expression's text is read as
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).map(
    NFC
)
KEYS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='\0"\\'), min_size=1, max_size=8
).map(NFC) | st.sampled_from(["lr", "and", "in", "weight decay", "0"])
NAMES = st.sampled_from(["acc", "val/loss", "val loss", "é", "not", 'a"b'])
PATTERNS = TEXTS.map(lambda s: s.replace("\\", "\\\\"))
ORDERS = st.sampled_from(["<", "<=", ">", ">="])
EQUALITIES = st.sampled_from(["==", "!="])
NUMBERS = (
    st.sampled_from([n for n, kind in COLUMNS.items() if kind == "number"]).map(Column)
    | NAMES.map(Metric)
)  # fmt: skip
CONFIGS = st.lists(KEYS, min_size=1, max_size=3).map(lambda path: Config(tuple(path)))
NOTES = st.just(Column("note"))
LABELS = st.sampled_from([Labels("tags"), Labels("aliases")])
TIMES = st.datetimes(timezones=st.just(UTC)).map(time_text)
FLAGS = st.booleans()


def _lists(values):
    return st.lists(values, min_size=1, max_size=3).map(tuple)


TERMS = st.one_of(
    st.builds(Compare, NUMBERS, EQUALITIES | ORDERS, SMALL_INTS | FINITE),
    st.builds(Compare, CONFIGS, EQUALITIES | ORDERS, INTS | FINITE),
    st.builds(Compare, NOTES | CONFIGS, EQUALITIES | ORDERS, TEXTS),
    st.builds(Compare, CONFIGS, EQUALITIES, FLAGS | st.none()),
    st.builds(Compare, LABELS, EQUALITIES, TEXTS | st.none()),
    st.builds(Compare, st.just(Column("strategy")), EQUALITIES, st.sampled_from(STRATEGIES)),
    st.builds(Compare, st.just(Column("created_at")), EQUALITIES | ORDERS, TIMES),
    st.builds(In, NUMBERS, _lists(SMALL_INTS | FINITE), FLAGS),
    st.builds(In, CONFIGS, _lists(INTS | FINITE), FLAGS),
    st.builds(In, NOTES | CONFIGS | LABELS, _lists(TEXTS), FLAGS),
    st.builds(In, CONFIGS, _lists(FLAGS), FLAGS),
    st.builds(Like, NOTES | CONFIGS | LABELS, PATTERNS, FLAGS),
)


def _joined(inner):
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, inner) | st.builds(And, several) | st.builds(Or, several)


EXPRESSIONS = st.recursive(TERMS, _joined, max_leaves=8)


@given(EXPRESSIONS)
def test_the_text_of_an_expression_parses_to_the_same_expression(expression):
    # repr, because 1 == 1.0 == True
    assert repr(parse(str(expression))) == repr(expression)


@given(EXPRESSIONS)
def test_logic_has_two_values(expression):
    for checkpoint in (BARE, FULL):
        found = evaluate(expression, checkpoint)
        assert found is not evaluate(Not(expression), checkpoint)
        assert found is evaluate(parse(str(expression)), checkpoint)


@given(st.sampled_from([Config(("lr",)), Config(("absent",)), Column("acc"), Column("epoch")]),
       _lists(st.sampled_from([0.001, 0.93, 12, 5])))  # fmt: skip
def test_in_is_any_of_equals_and_not_in_is_all_of_unequals(field, values):
    for c in (BARE, FULL):
        equal = [evaluate(Compare(field, "==", v), c) for v in values]
        unequal = [evaluate(Compare(field, "!=", v), c) for v in values]
        assert evaluate(In(field, values), c) is any(equal)
        assert evaluate(In(field, values, True), c) is all(unequal)


def test_an_and_directly_inside_an_and_is_merged():
    a, b, c = (Compare(Column("epoch"), "==", n) for n in range(3))
    assert And((And((a, b)), c)) == And((a, b, c)) == And((a, And((b, c))))
    assert Or((Or((a, b)), c)) == Or((a, b, c))
    with pytest.raises(ValueError, match="two or more"):
        And((a,))


# --- like -----------------------------------------------------------------------------------------

SMALL = st.text("ab%_\\*?[]é\n", max_size=8)
SMALL_PATTERNS = SMALL.filter(lambda s: (len(s) - len(s.rstrip("\\"))) % 2 == 0)


def _oracle(pattern, text):
    wild = {"%": ".*", "_": "."}
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    body = "".join(wild.get(p, re.escape(p[-1])) for p in parts)
    return re.fullmatch(body, text, re.DOTALL) is not None


@given(SMALL_PATTERNS, SMALL)
def test_like_matches_as_its_rules_say(pattern, text):
    assert matches(Like(Column("note"), pattern), text) is _oracle(pattern, text)


@given(SMALL_PATTERNS, SMALL)
def test_glob_means_the_same_to_sqlite(pattern, text):
    like = Like(Column("note"), pattern)
    with sqlite3.connect(":memory:") as connection:
        (found,) = connection.execute("SELECT ? GLOB ?", (text, like.glob())).fetchone()
    connection.close()
    assert bool(found) is matches(like, text)


def test_a_pattern_of_many_wildcards_is_matched_in_bounded_time():
    start = time.monotonic()
    assert not matches(Like(Column("note"), "%a" * 100 + "b"), "a" * 5000)
    assert time.monotonic() - start < 30  # backtracking over every run would take for ever


# --- how it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("acc = 0.9", "=", "write == (or in, like)"),
        ("acc > 0.9 && epoch < 3", "&&", "write and"),
        ("acc > 0.9 || epoch < 3", "||", "write or"),
        ("!(acc > 0.9)", "!", "write not"),
        ("acc <> 0.9", "<>", "write !="),
        ("acc === 0.9", "===", "write =="),
        ("acc > 1 AND epoch > 2", "AND", "write and"),
        ("acc is null", "is", "write == null, or != null"),
        ("acc between 1 and 2", "between", "0.5 <= acc <= 0.9"),
        ("acc == NULL", "NULL", "write null"),
        ("acc == nan", "nan", "never nan"),
        ("ac > 0.9", "ac", "did you mean acc?"),
        ("datset == 'a'", "datset", "did you mean dataset?"),
        ("Epoch > 3", "Epoch", "did you mean epoch?"),
        ("provenance == 'recorded'", "provenance", "did you mean provenance.topology"),
        ("val_loss < 3", "val_loss", "a metric is metrics.val_loss"),
        ("acc.x == 3", "acc.x", "no field 'acc.x'"),
        ("tags.x == 'a'", "tags.x", "no field 'tags.x'"),
        ("dataset == cifar10", "cifar10", 'text stands in quotes: "cifar10"'),
        ("dataset in (cifar10, cifar100)", "cifar10", 'text stands in quotes: "cifar10"'),
        ("dataset like cifar", "cifar", 'text stands in quotes: "cifar"'),
        ("metrics.val/loss < 3", "/", 'quote it: metrics."val/loss"'),
        ("metrics.val.loss < 3", "metrics.val.loss", 'write metrics."val.loss"'),
        ("metrics > 3", "metrics", 'write metrics."val/loss"'),
        ("config.0.x > 3", "", "after '.' comes a name"),
        ("config == 3", "config", "name a value in it: config.lr"),
        ("config.'a\"b' == 3", "config.'a\"b'", "holds a quote or backslash"),
        ("config.'' == 3", "config.''", "it is empty"),
        ("created_at > 2026-11-01", "2026-11-01", 'write it in quotes: "2026-11-01"'),
        ("created_at == '2026-11-01'", "'2026-11-01'",
         'write "2026-11-01" <= created_at < "2026-11-02"'),
        ("created_at > '2026-11-01T10:00'", "'2026-11-01T10:00'", "add Z for UTC"),
        ("created_at > '2026-02-30'", "'2026-02-30'", "day is out of range"),
        ("created_at > '0001-01-01T00:00:00+01:00'", "'0001-01-01T00:00:00+01:00'",
         "outside the years 1 to 9999"),
        ("created_at > 'soon'", "'soon'", "is no time"),
        ("created_at > 3", "3", "created_at is a time, and 3 is none"),
        ("created_at like '2026%'", "'2026%'", "write < or > for a range"),
        ("acc > '0.9'", "'0.9'", "write acc > 0.9"),
        ("acc like '0.9'", "'0.9'", "like matches text"),
        ("epoch == true", "true", "epoch is a number, and true is none"),
        ("model == 3", "3", 'write it in quotes: "3"'),
        ("tags == 3", "3", "tags is a set of labels, and 3 is none"),
        ("tags > 'a'", "'a'", "has no order"),
        ("config.amp > true", "true", "has no order"),
        ("acc > null", "null", "acc > null is never true"),
        ("acc in (1, null)", "null", "write acc == null"),
        ("acc in (1, 'a')", "'a'", "acc is a number"),
        ("config.x in (1, 'a')", "'a'", "values of one type"),
        ("strategy == 'dpp'", "'dpp'", 'did you mean "dp"?'),
        ("key_style == 'module'", "'module'", "is no key style"),
        ("epoch == step", "step", "not with a field"),
        ("1 == 2", "1", "neither side is a field"),
        ("acc", "acc", "acc alone is no condition"),
        ("acc and epoch > 3", "acc", "acc alone is no condition"),
        ("true", "true", "a value alone is no condition"),
        ("not", "", "ends too early"),
        ("acc >", "", "ends too early"),
        ("acc > 1 and", "", "ends too early"),
        ("acc not 3", "3", "expected in or like after not"),
        ("acc in 3", "3", "expected a list"),
        ("acc in ()", ")", "expected a field or a value"),
        ("acc in (1", "(", "this list is never closed"),
        ("(acc > 1", "(", "this parenthesis is never closed"),
        ("acc > 1)", ")", "found ')'"),
        ("acc > 1 epoch > 3", "epoch", "found 'epoch'"),
        ("acc >> 1", ">", "found '>'"),
        ("acc > 1 + 1", "+", "'+' can't stand here"),
        ("acc > 1 -1", "-1", "there is no arithmetic here"),
        ("acc > 3x", "3x", 'text stands in quotes: "3x"'),
        ("acc > 1.2.3", "1.2.3", "is no number"),
        ("acc > 1__0", "1__0", "this is no number"),
        ("acc > 1e999", "1e999", "too large"),
        ("acc > 9223372036854775808", "9223372036854775808", "doesn't fit 64 bits"),
        ("'x' in note", "note", 'note like "%x%"'),
        ("epoch in tags", "tags", "tags is no list"),
        ("dataset == 'abc", "'", "close it with '"),
        (r"dataset == 'a\qb'", r"\q", "is no escape"),
        (r"dataset == 'a\ud800'", r"\ud800", "is no character"),
        (r"dataset == 'a\u0000'", r"\u0000", "is no character"),
        (r"note like 'a\\'", r"'a\\'", "lone backslash"),
        ("note like 3", "3", 'write it in quotes: "3"'),
        ("config.x like 3", "3", "a pattern is text"),
        ("dataset == 'a\0'", "\0", "can't stand in an expression"),
        ("", "", "the expression is empty"),
        ("  ", "", "the expression is empty"),
        ("acc > 1;", ";", "';' can't stand here"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_at_its_place_with_what_to_write(text, marked, message):
    with pytest.raises(ValueError, match=r"^where: ") as caught:
        parse(text)
    lines = str(caught.value).split("\n")
    assert message in str(caught.value)
    marks = re.fullmatch(r"(?P<indent> {2} *)\^+", lines[2])
    assert marks is not None, lines
    assert lines[1] == "  " + text.replace("\0", " ")
    if marked:
        assert text[marks.start() + len(marks["indent"]) - 2 :].startswith(marked)
        assert lines[2].count("^") == len(marked)


def test_a_place_far_into_a_long_expression_is_shown_with_its_surroundings():
    with pytest.raises(ValueError, match="no field 'foo'") as caught:
        parse("acc > 1 or " * 100 + "foo == 1" + " or acc > 1" * 20)
    _, shown, marks, _ = str(caught.value).split("\n")
    assert shown.startswith("  … ")
    assert shown.endswith(" …")
    assert shown[marks.index("^") :].startswith("foo == 1")
    assert len(shown) < 100


def test_marks_stand_under_wide_characters():
    with pytest.raises(ValueError, match="no field '日本'") as caught:
        parse('dataset == "日本語" and 日本 == 1')
    _, _, marks, _ = str(caught.value).split("\n")
    assert marks == " " * (2 + len('dataset == "日本語" and ') + 3) + "^^^^"


def test_no_control_character_of_an_expression_reaches_the_message():
    with pytest.raises(ValueError, match="where") as caught:
        parse('acc > "\x1b[31m\u202e"')
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_an_expression_must_be_text():
    with pytest.raises(TypeError, match="not int: 3"):
        parse(3)  # type: ignore[arg-type]


def test_length_depth_and_number_of_comparisons_are_capped():
    parse("acc>1" + " " * 4091)
    with pytest.raises(ValueError, match="4097 characters, more than 4096"):
        parse("acc>1" + " " * 4092)
    parse("(" * 64 + "acc>1" + ")" * 64)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse("(" * 65 + "acc>1" + ")" * 65)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse("not " * 65 + "acc>1")
    assert len(parse(" or ".join(["acc>1"] * 256)).operands) == 256
    with pytest.raises(ValueError, match="more than 256 comparisons"):
        parse(" or ".join(["acc>1"] * 257))


VOCABULARY = """
    acc epoch dataset tags metrics."a" config.x created_at note strategy key_style
    and or not in like == != < <= ( ) [ ] , = && is
    true null 1 -2 0.5 "a" "ddp" "2026-11-01"
"""
WORDS = st.lists(st.sampled_from(VOCABULARY.split()), max_size=12).map(" ".join)


@given(st.text() | st.text("ac>=<!&|.'\"\\()0123456789 -e") | WORDS)
def test_any_text_is_an_expression_or_a_value_error(text):
    try:
        expression = parse(text)
    except ValueError:
        return
    assert repr(parse(str(expression))) == repr(expression)
    assert evaluate(expression, FULL) in (True, False)
