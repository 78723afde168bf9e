"""The nouns: immutable, checked when they come from outside, whole after a round trip."""

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.records import (
    SOURCES,
    Checkpoint,
    File,
    Git,
    Provenance,
    RunRecord,
    RunRef,
    facts_digest,
)
from registry.signature import KeyStyle
from registry.topology import STRATEGIES, Device, Topology
from registry.values import FrozenMap, canonical_json, digest_of

TEXTS = st.text("abzé 09-", min_size=1, max_size=8).map(str.strip).filter(bool)
NAMES = st.sampled_from(["m", "vision/resnet50-d", "é"])
LABELS = st.sampled_from(["good", "prod", "A-1"])
IDS = st.integers(0, 16**32 - 1).map("{:032x}".format)
DIGESTS = st.integers(0, 16**64 - 1).map("blake3:{:064x}".format)
COUNTS = st.integers(0, 2**63 - 1)
TIMES = st.datetimes(timezones=st.just(UTC))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
PROSE = st.text(max_size=8)
CONFIGS = st.dictionaries(
    PROSE,
    st.none() | st.booleans() | st.integers() | NUMBERS | PROSE
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(PROSE, NUMBERS, max_size=2),
    max_size=3,
).map(FrozenMap)  # fmt: skip
GITS = st.builds(Git, TEXTS, st.booleans())
STYLES = st.sampled_from(["", "module.", "module._orig_mod.", "features.module."]).map(
    KeyStyle.parse
)


def _maybe(values):
    return st.none() | values


CHECKPOINTS = st.builds(
    Checkpoint,
    id=IDS,
    model=NAMES,
    version=COUNTS,
    run=_maybe(st.builds(RunRef, IDS, _maybe(TEXTS))),
    dataset=_maybe(TEXTS),
    epoch=_maybe(COUNTS),
    step=_maybe(COUNTS),
    metrics=st.dictionaries(st.sampled_from(["acc", "val/loss", "x y"]), NUMBERS).map(FrozenMap),
    config=CONFIGS,
    batch_size=_maybe(COUNTS),
    key_style=STYLES,
    file_keys=STYLES,
    weights=st.sampled_from(["live", "ema", "both"]),
    topology=st.builds(
        Topology,
        _maybe(st.sampled_from(STRATEGIES)),
        _maybe(COUNTS),
        devices=st.lists(st.builds(Device, COUNTS, TEXTS, _maybe(TEXTS)), max_size=2).map(tuple),
    ),
    provenance=st.builds(Provenance, st.sampled_from(SOURCES), st.sampled_from(SOURCES)),
    container=st.sampled_from(["torch-zip", "safetensors"]),
    signature=DIGESTS,
    raw_signature=_maybe(DIGESTS),
    tensors=COUNTS,
    parameters=_maybe(COUNTS),
    files=st.lists(st.builds(File, TEXTS, DIGESTS, COUNTS), max_size=3).map(tuple),
    optimizers=st.dictionaries(TEXTS, TEXTS, max_size=2).map(FrozenMap),
    scheduler=_maybe(TEXTS),
    unsafe_globals=st.lists(TEXTS, max_size=2).map(tuple),
    tags=st.lists(LABELS, unique=True).map(tuple),
    aliases=st.lists(LABELS, unique=True).map(tuple),
    parent=_maybe(IDS),
    note=_maybe(PROSE),
    author=_maybe(PROSE),
    git=_maybe(GITS),
    command=_maybe(PROSE),
    origin=st.sampled_from(["save", "push"]),
    created_at=TIMES,
    removed_at=_maybe(TIMES),
    facts_digest=DIGESTS,
)

RUNS = st.builds(
    RunRecord,
    id=IDS,
    model=NAMES,
    name=_maybe(TEXTS),
    dataset=_maybe(TEXTS),
    config=CONFIGS,
    batch_size=_maybe(COUNTS),
    hostname=_maybe(PROSE),
    command=_maybe(PROSE),
    git=_maybe(GITS),
    author=_maybe(PROSE),
    created_at=TIMES,
)

DIGEST = "blake3:" + "0" * 64
CHECKPOINT = Checkpoint(
    id="1f2e3d4c" + "0" * 24,
    model="resnet50",
    version=3,
    run=RunRef("a" * 32, "baseline"),
    dataset="cifar10",
    epoch=12,
    metrics=FrozenMap({"acc": 0.93}),
    config=FrozenMap({"lr": 0.1}),
    key_style=KeyStyle.parse("module."),
    topology=Topology("ddp", 4, device_type="cuda", device_count=4),
    container="torch-zip",
    signature=DIGEST,
    tensors=161,
    files=(File("a.pt", DIGEST, 100),),
    tags=("good",),
    git=Git("0" * 40, False),
    created_at=datetime(2026, 11, 1, tzinfo=UTC),
    facts_digest=DIGEST,
)

FIELDS = {
    "format", "id", "ref", "model", "version", "run", "dataset", "epoch", "step", "acc", "metrics",
    "config", "batch_size", "key_style", "file_keys", "weights", "topology", "provenance",
    "container", "signature", "tensors", "parameters", "size_bytes", "digest", "files", "tags",
    "aliases", "parent", "note", "author", "git", "command", "created_at", "removed_at",
    "unsafe_globals",
}  # fmt: skip
"""What the public JSON form promises; more may be added, none may go."""


def _json(record):
    return json.loads(canonical_json(record.to_dict()))


@given(CHECKPOINTS)
def test_a_checkpoint_survives_json_pickle_and_copy(checkpoint):
    again = Checkpoint.from_dict(_json(checkpoint))
    assert again == checkpoint
    assert hash(again) == hash(checkpoint)
    assert again.to_dict() == checkpoint.to_dict()
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint
    assert copy.deepcopy(checkpoint) == checkpoint


@given(RUNS)
def test_a_run_survives_json_and_pickle(run):
    assert RunRecord.from_dict(_json(run)) == run
    assert pickle.loads(pickle.dumps(run)) == run


def test_the_public_json_form_has_every_promised_field():
    plain = CHECKPOINT.to_dict()
    assert plain.keys() >= FIELDS
    assert plain["format"] == 1
    assert plain["ref"] == "resnet50@v3"
    assert plain["run"] == {"id": "a" * 32, "name": "baseline"}
    assert plain["acc"] == 0.93
    assert plain["key_style"] == "module."
    assert plain["file_keys"] == ""
    assert plain["files"] == [{"name": "a.pt", "digest": DIGEST, "size_bytes": 100}]
    assert plain["git"] == {"commit": "0" * 40, "dirty": False}
    assert plain["created_at"] == "2026-11-01T00:00:00.000000Z"
    assert plain["step"] is plain["removed_at"] is plain["parent"] is None
    assert plain["topology"].keys() >= {
        "strategy", "world_size", "device_type", "device_count", "devices", "visible_devices",
        "hostname", "torch_version", "cuda_version", "python_version", "storage_tags",
    }  # fmt: skip


def test_a_record_cannot_be_changed():
    for record in (CHECKPOINT, CHECKPOINT.topology, CHECKPOINT.run, CHECKPOINT.files[0]):
        for field in dataclasses.fields(record):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, field.name, None)
    plain = CHECKPOINT.to_dict()
    plain["config"]["lr"] = 1
    plain["tags"].append("x")
    assert CHECKPOINT.config["lr"] == 0.1
    assert CHECKPOINT.tags == ("good",)


def test_a_checkpoint_prints_in_one_line():
    assert repr(CHECKPOINT) == (
        "<Checkpoint resnet50@v3 dataset='cifar10', epoch=12, acc=0.93, key_style='module.', "
        "topology='4 x cuda ddp', id='1f2e3d4c'>"
    )
    removed = dataclasses.replace(CHECKPOINT, removed_at=CHECKPOINT.created_at)
    assert repr(removed).endswith(" REMOVED>")


def test_size_and_digest_cover_all_files():
    a, b = File("a", DIGEST, 1), File("b", "blake3:" + "1" * 64, 2)
    assert dataclasses.replace(CHECKPOINT, files=(a,)).digest == DIGEST
    both = dataclasses.replace(CHECKPOINT, files=(a, b))
    assert both.size_bytes == 3
    assert both.digest == digest_of([["a", a.digest], ["b", b.digest]])


# --- what comes from outside ----------------------------------------------------------------------

JUNK = [3, -1, 1.5, True, "x\ny", "", [], ["x"], [3], [[]], {}, {"x": 1}, {"x": []}, 10**30, [None]]


@pytest.mark.parametrize("field", CHECKPOINT.to_dict())
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_a_field_of_another_kind_is_refused_or_harmless(field, junk):
    plain = _json(CHECKPOINT) | {field: junk}
    try:
        found = Checkpoint.from_dict(plain)
    except (ValueError, TypeError, KeyError):
        return
    # What got through is a valid record: it survives its own JSON.
    assert Checkpoint.from_dict(_json(found)) == found
    hash(found)


@pytest.mark.parametrize("field", RunRecord.__slots__)
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_a_field_of_a_run_of_another_kind_is_refused_or_harmless(field, junk):
    run = RunRecord("a" * 32, "m", created_at=CHECKPOINT.created_at)
    try:
        found = RunRecord.from_dict(_json(run) | {field: junk})
    except (ValueError, TypeError, KeyError):
        return
    assert RunRecord.from_dict(_json(found)) == found
    hash(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "1f2e3d"}, "an id is 32 hex digits"),
        ({"model": "a b"}, "can't be a model's name"),
        ({"version": -1}, "version must be between"),
        ({"epoch": 1.0}, "epoch must be an integer"),
        ({"metrics": {"acc": "0.9"}}, "acc must be a number"),
        ({"metrics": {"acc": float("nan")}}, "acc is nan"),
        ({"metrics": []}, "metrics must be a table"),
        ({"config": [1]}, "config must be a table"),
        ({"key_style": "module"}, "is no key style"),
        ({"weights": "swa"}, "weights 'swa' is none of live, ema, both"),
        ({"topology": {"strategy": "x"}}, "strategy 'x' is none of"),
        ({"topology": "ddp"}, "topology must be a table"),
        ({"provenance": {"topology": "guessed"}}, "provenance 'guessed' is none of"),
        ({"signature": "0"}, "is no digest"),
        ({"files": [{"name": "a\x1bb", "digest": DIGEST, "size_bytes": 1}]}, "file 'a"),
        ({"files": [{"name": "a", "digest": DIGEST, "size_bytes": -1}]}, "size_bytes must be"),
        ({"files": {"a": 1}}, "files must be a list"),
        ({"tags": "good"}, "tags must be a list"),
        ({"tags": ["best"]}, "is a word that refs use"),
        ({"aliases": ["v3"]}, "is a word that refs use"),
        ({"parent": "x"}, "is no id"),
        ({"note": 3}, "note must be text"),
        ({"git": {"commit": "a", "dirty": 1}}, "dirty must be true or false"),
        ({"origin": "pull"}, "origin 'pull' is none of save, push"),
        ({"created_at": "2026-11-01"}, "names no time zone"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Checkpoint.from_dict(_json(CHECKPOINT) | change)


@pytest.mark.parametrize(
    "field", ["id", "model", "version", "container", "signature", "tensors", "files", "created_at"]
)
def test_a_field_that_every_checkpoint_has_must_be_there(field):
    plain = _json(CHECKPOINT)
    del plain[field]
    with pytest.raises(KeyError, match=field):
        Checkpoint.from_dict(plain)


# --- the facts digest -----------------------------------------------------------------------------

FACTS = {
    "model": "m", "dataset": "d", "run": "a" * 32, "epoch": 1, "step": 2, "metrics": {"acc": 0.5},
    "parent": "b" * 32, "key_style": KeyStyle.parse("module."), "file_keys": KeyStyle(),
    "strategy": "ddp", "world_size": 4, "files": [File("a", DIGEST, 1)],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"}, {"dataset": None}, {"run": None}, {"epoch": None}, {"epoch": 0},
        {"step": None}, {"metrics": {}}, {"metrics": {"acc": 0.6}}, {"metrics": {"acc1": 0.5}},
        {"parent": None},
        {"key_style": KeyStyle()}, {"file_keys": KeyStyle.parse("module.")}, {"strategy": None},
        {"world_size": 2}, {"files": []}, {"files": [File("a", "blake3:" + "1" * 64, 1)]},
        {"files": [File("a", DIGEST, 1), File("b", DIGEST, 1)]},
    ],
)  # fmt: skip
def test_the_facts_digest_covers_every_identifying_fact(change):
    assert facts_digest(**FACTS | change) != facts_digest(**FACTS)


def test_the_names_of_files_are_facts_only_where_there_are_several():
    a, b, c = (File(name, DIGEST, 1) for name in "abc")
    assert facts_digest(**FACTS | {"files": [b]}) == facts_digest(**FACTS)
    assert facts_digest(**FACTS | {"files": [a, b]}) != facts_digest(**FACTS | {"files": [a, c]})


def test_the_facts_digest_is_fixed():
    # Another value would part every stored checkpoint from its twin, and so need a migration.
    assert facts_digest(**FACTS) == digest_of(
        {
            "model": "m", "dataset": "d", "run": "a" * 32, "epoch": 1, "step": 2,
            "metrics": {"acc": 0.5}, "parent": "b" * 32, "key_style": "module.", "file_keys": "",
            "strategy": "ddp", "world_size": 4, "files": [DIGEST],
        }
    )  # fmt: skip
