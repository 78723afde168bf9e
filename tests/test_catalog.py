"""The catalog: what is added is found again and ranked rightly, and damage is named."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from backends import records_at, reopened
from drafts import SIGNATURE, by_hand, draft, held, refusals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.million import explain, fill, questions, statements
from registry import Registry, refs, where
from registry.catalog import ANY, Added, Catalog, Query, narrowing
from registry.errors import AmbiguousError, ConflictError, DamagedError, NotFoundError
from registry.records import Checkpoint, Git, RunRecord
from registry.schema import Database
from registry.signature import KeyStyle, Signature, TensorSpec
from registry.topology import Device, Topology
from registry.values import CheckpointId, Digest, FrozenMap, digest_of, now, time_text

ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(reg: Registry) -> Path | str:
    """Return where the database is: SQLite's file, or a server's URL."""
    return records_at(reg)


@pytest.fixture
def catalog(reg: Registry) -> Catalog:
    return reg._parts()[1]


def add(catalog: Catalog, model: str = "net", **facts: Any) -> Checkpoint:
    return catalog.add(draft(model, **facts), held).checkpoint


def find(
    catalog: Catalog, model: str | None = None, *, limit: int | None = None, **asked: Any
) -> list[Checkpoint]:
    return list(catalog.find(model, limit=limit, **asked))


def count(catalog: Catalog, model: str | None = None, **asked: Any) -> int:
    return catalog.count(model, **asked)


def get(catalog: Catalog, ref: str, **how: Any) -> Checkpoint:
    return catalog.get(refs.parse(ref), **how)


def rows(path: Path | str, sql: str, *values: object) -> list[Any]:
    with by_hand(path) as connection:
        done = connection.execute(sql, values)
        return done.fetchall() if done.description else []


def run_of(model: str = "net", name: str | None = None, **facts: Any) -> RunRecord:
    return RunRecord(
        id=secrets.token_hex(16), model=model, name=name, **({"dataset": "digits"} | facts)
    )


# --- adding ---------------------------------------------------------------------------------------


def test_what_is_added_comes_back_whole(catalog: Catalog) -> None:
    run = run_of(
        name="first", config=FrozenMap({"lr": 0.1}), git=Git("abc", True), command="train.py"
    )
    whole = add(
        catalog, run=run, acc=0.5, metrics={"val/loss": 1.5}, epoch=3, step=1200, batch_size=256,
        config={"lr": 0.1, "nested": {"é": [1, 2.5, None, True]}}, dataset="digits",
        key_style=KeyStyle.parse("module."), file_keys=KeyStyle.parse(""),
        topology=Topology(
            strategy="ddp", world_size=2, device_type="cuda", device_count=2,
            devices=(Device(0, "cuda", "A100", 8 * 10**10),), hostname="node", visible_devices="",
        ),
        tags=("good", "a"), aliases=("prod",), note="line\nof \ud800 text\0", author="me",
        parent=CheckpointId("a" * 32), git=Git("abc", False), command="python train.py",
        optimizers=FrozenMap({"optimizer": "torch.optim.sgd.SGD"}), unsafe_globals=("os.system",),
    )  # fmt: skip
    assert whole.version == 1
    assert (whole.tags, whole.aliases) == (("a", "good"), ("prod",))
    for found in (
        catalog.by_id(whole.id), get(catalog, "net"), get(catalog, "net@v1"), catalog.best("net"),
        catalog.latest("net"), get(catalog, "net@prod"), get(catalog, "net@epoch=3"),
        get(catalog, whole.id[:6]), find(catalog, "net")[0], catalog.fits(SIGNATURE.digest)[0],
    ):  # fmt: skip
        assert found == whole
    assert catalog.run(run.id) == run
    assert catalog.find_run("net", "digits", "first") == run
    assert catalog.signature(whole.signature) == SIGNATURE


def test_versions_count_up_by_model_and_are_not_given_again(catalog: Catalog) -> None:
    assert [add(catalog).version for _ in range(3)] == [1, 2, 3]
    assert add(catalog, "other").version == 1
    catalog.remove(get(catalog, "net@v3").id)
    assert add(catalog).version == 4


def test_a_failed_add_counts_no_version_and_leaves_no_row(
    catalog: Catalog, path: Path | str
) -> None:
    add(catalog)
    with pytest.raises(ConflictError, match="went away"):
        catalog.add(draft(), lambda _: False)
    with pytest.raises(ConflictError):
        catalog.add(draft("brand-new"), lambda _: False)
    assert add(catalog).version == 2
    assert [m.name for m in catalog.models()] == ["net"]
    assert rows(path, "SELECT count(*) FROM blobs") == [(4,)]


def test_processes_that_add_at_once_get_versions_without_gap_or_duplicate(
    catalog: Catalog, path: Path
) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from backends import reopened
from drafts import draft, held
catalog = reopened({str(path)!r} if {isinstance(path, str)} else Path({str(path)!r}))
sys.stdin.read()
for _ in range(15):
    catalog.add(draft(acc=0.5), held)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert sorted(c.version for c in find(catalog, "net")) == list(range(1, 61))
    assert catalog.models()[0].versions == count(catalog, "net") == 60


def test_the_same_id_added_again_is_the_same_add(catalog: Catalog) -> None:
    first = draft(acc=0.5)
    added = catalog.add(first, held)
    again = catalog.add(first, held)
    assert again.existing
    assert again.checkpoint == added.checkpoint
    assert again.unused == ()  # the blobs are those that the row names
    assert count(catalog, "net") == 1


def test_a_repeated_push_returns_the_live_twin_with_its_new_labels(catalog: Catalog) -> None:
    first = catalog.add(draft(content="same", push=True, tags=("a",)), held)
    second_draft = draft(content="same", push=True, tags=("b",), aliases=("prod",))
    second = catalog.add(second_draft, held)
    assert second.existing
    assert second.checkpoint.id == first.checkpoint.id
    assert (second.checkpoint.tags, second.checkpoint.aliases) == (("a", "b"), ("prod",))
    assert set(second.unused) == {blob for _, *two, _ in second_draft.files for blob in two}
    assert count(catalog, "net") == 1


def test_a_push_of_other_facts_is_no_twin_and_a_save_never_is(catalog: Catalog) -> None:
    add(catalog, content="same", push=True, epoch=1)
    assert add(catalog, content="same", push=True, epoch=2).version == 2
    assert add(catalog, content="same", epoch=1).version == 3


def test_a_removed_twin_gives_a_new_version_and_cant_be_restored_beside_it(
    catalog: Catalog,
) -> None:
    old = add(catalog, content="same", push=True)
    catalog.remove(old.id)
    new = add(catalog, content="same", push=True)
    assert new.version == 2
    with pytest.raises(ConflictError, match="net@v2"):
        catalog.restore(old.id)
    catalog.remove(new.id)
    assert catalog.restore(old.id).removed_at is None


def test_a_draft_must_name_its_files_and_no_version(catalog: Catalog) -> None:
    good = draft()
    with pytest.raises(ValueError, match="files"):
        catalog.add(replace(good, files=draft().files), held)
    with pytest.raises(ValueError, match="version"):
        catalog.add(replace(good, checkpoint=replace(good.checkpoint, version=7)), held)


# --- blobs ----------------------------------------------------------------------------------------


def test_the_same_bytes_share_the_blob_that_was_first(catalog: Catalog) -> None:
    one, two = draft(content="same"), draft(content="same")
    first, second = catalog.add(one, held), catalog.add(two, held)
    assert first.unused == ()
    assert set(second.unused) == {two.files[0][1], two.files[0][2]}
    assert catalog.blobs_of(first.checkpoint.id) == catalog.blobs_of(second.checkpoint.id)
    assert catalog.blob(one.files[0][1].digest) == one.files[0][1]


@pytest.mark.parametrize("push", [False, True])
def test_a_blob_whose_file_is_gone_is_replaced_by_ours(catalog: Catalog, push: bool) -> None:
    one, two = draft(content="same", push=push), draft(content="same", push=push)
    first = catalog.add(one, held)
    lost = {one.files[0][1].name}
    second = catalog.add(two, lambda blob: blob.name not in lost)
    assert second.existing is push
    assert second.unused == (two.files[0][2],)
    (_, blob, index) = catalog.blobs_of(first.checkpoint.id)[0]
    assert (blob, index) == (two.files[0][1], one.files[0][2])


def test_a_blob_in_use_cant_be_deleted_even_by_hand(catalog: Catalog, path: Path | str) -> None:
    add(catalog)
    with by_hand(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(refusals(), match=r"(?i)foreign key"):
            connection.execute("DELETE FROM blobs")


def test_a_probe_finds_only_its_own(catalog: Catalog) -> None:
    add(catalog, probe=digest_of("head and tail"))
    assert catalog.has_probe(digest_of("head and tail"))
    assert not catalog.has_probe(digest_of("other"))


# --- best and latest ------------------------------------------------------------------------------


def test_best_is_the_extreme_and_of_equals_the_newest(catalog: Catalog) -> None:
    for acc in (0.5, 0.9, 0.9, 0.1):
        add(catalog, acc=acc, metrics={"val/loss": 1 - acc})
    assert catalog.best("net").version == 3
    assert catalog.best("net", mode="min").version == 4
    assert catalog.best("net", metric="val/loss", mode="max").version == 4
    assert catalog.best("net", metric="val/loss", mode="min").version == 3


def test_a_checkpoint_without_the_metric_is_never_best(catalog: Catalog) -> None:
    add(catalog, acc=-5.0)
    add(catalog)
    assert catalog.best("net").version == 1
    assert catalog.best("net", mode="min").version == 1
    with pytest.raises(NotFoundError, match=r"'val/loss'.*metrics: 'acc'"):
        catalog.best("net", metric="val/loss", mode="min")


def test_best_follows_the_monitor_and_another_metric_needs_a_mode(catalog: Catalog) -> None:
    for acc, loss in ((0.5, 0.1), (0.9, 0.2)):
        add(catalog, acc=acc, metrics={"val/loss": loss})
    assert catalog.monitor("net", "val/loss", "min").metric == "val/loss"
    assert catalog.best("net").version == 1
    assert catalog.best("net", metric="val/loss").version == 1
    assert get(catalog, "net@best").version == 1
    with pytest.raises(ValueError, match="mode='max' or mode='min'"):
        catalog.best("net", metric="acc")
    with pytest.raises(ValueError, match="mode must be"):
        catalog.best("net", mode="biggest")  # type: ignore[arg-type]


def test_best_and_latest_never_mix_datasets(catalog: Catalog) -> None:
    add(catalog, dataset="a", acc=0.5)
    assert catalog.best("net").dataset == "a"
    add(catalog, dataset="b", acc=0.9)
    add(catalog, dataset=None, acc=0.7)
    for ask, verb in ((catalog.best, "best"), (catalog.latest, "latest")):
        with pytest.raises(AmbiguousError, match="'a', 'b', no dataset") as caught:
            ask("net")
        assert caught.value.candidates == ("a", "b", "")
        hint = f"name one: ckreg show net@{verb} --dataset a; in Python: dataset='a'"
        assert caught.value.hint == hint
        for dataset in ("a", "b", None):
            assert ask("net", dataset=dataset).dataset == dataset
        with pytest.raises(NotFoundError, match="trained on 'c'"):
            ask("net", dataset="c")


def test_datasets_that_lack_the_metric_dont_make_best_ambiguous(catalog: Catalog) -> None:
    add(catalog, dataset="a", acc=0.5)
    add(catalog, dataset="b")
    add(catalog, dataset=None)
    assert catalog.best("net").dataset == "a"


def test_best_and_latest_of_a_run_are_of_that_run(catalog: Catalog) -> None:
    one, two = run_of(name="one"), run_of(name="two")
    add(catalog, run=one, acc=0.5)
    add(catalog, run=two, acc=0.9)
    add(catalog, run=one, acc=0.4)
    assert catalog.best("net", run=one.id).version == 1
    assert catalog.latest("net", run=one.id).version == 3
    assert catalog.latest("net", run=two.id).version == 2
    for ask in (catalog.best, catalog.latest):
        with pytest.raises(NotFoundError, match="no run"):
            ask("net", run="f" * 32)


def test_unknown_models_are_answered_with_near_names(catalog: Catalog) -> None:
    for name in ("resnet50", "resnet18", "vgg16"):
        add(catalog, name, acc=0.5)
    asks: list[Callable[[], object]] = [
        lambda: catalog.best("resnt50"),
        lambda: catalog.latest("resnt50"),
        lambda: get(catalog, "resnt50"),
        lambda: get(catalog, "resnt50@v1"),
        lambda: find(catalog, "resnt50"),
        lambda: count(catalog, "resnt50"),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError, match="model='resnt50'") as caught:
            ask()
        assert caught.value.near[0] == "resnet50"
        assert "'resnet50'" in str(caught.value.hint)
        assert "ckreg models" in str(caught.value.hint)
    assert catalog.near_names("RESNET5O")[0] == "resnet50"
    assert catalog.near_names("") == []


# --- refs -----------------------------------------------------------------------------------------


def test_ids_are_found_by_six_digits_or_more_and_ambiguity_is_listed(catalog: Catalog) -> None:
    one = add(catalog, id=CheckpointId("abcdef" + "0" * 26))
    two = add(catalog, id=CheckpointId("abcdef" + "1" * 26))
    assert catalog.by_id("abcdef0") == one
    assert catalog.by_id("ABCDEF1") == two
    assert catalog.by_id(two.id) == two
    with pytest.raises(AmbiguousError) as caught:
        catalog.by_id("abcdef")
    assert caught.value.candidates == ("net@v1", "net@v2")
    for wrong in ("abcde", "", "xyzxyz", "a" * 33):
        with pytest.raises(ValueError, match="no id"):
            catalog.by_id(wrong)
    with pytest.raises(NotFoundError):
        catalog.by_id("abcdee")
    catalog.remove(two.id)
    assert catalog.by_id("abcdef") == one  # a removed one makes nothing ambiguous
    with pytest.raises(AmbiguousError):
        catalog.by_id("abcdef", include_removed=True)


def test_a_bare_word_is_a_name_first_and_then_an_id(catalog: Catalog) -> None:
    named = add(catalog, "c0ffee", id=CheckpointId("1" * 32))
    other = add(catalog, "net", id=CheckpointId("c0ffee" + "2" * 26))
    assert get(catalog, "c0ffee") == named
    assert get(catalog, "c0ffee2") == other
    with pytest.raises(NotFoundError, match="neither"):
        get(catalog, "c0ffee3")


def test_an_epoch_that_several_have_is_ambiguous(catalog: Catalog) -> None:
    add(catalog, epoch=3, dataset="a")
    add(catalog, epoch=3, dataset="b")
    add(catalog, epoch=4)
    with pytest.raises(AmbiguousError, match=r"net@v2, net@v1") as caught:
        get(catalog, "net@epoch=3")
    assert caught.value.candidates == ("net@v2", "net@v1")
    assert get(catalog, "net@epoch=3", dataset="a").version == 1
    assert get(catalog, "net@epoch=4").version == 3
    with pytest.raises(NotFoundError, match="epoch 9"):
        get(catalog, "net@epoch=9")


def test_a_named_dataset_must_agree_with_the_ref(catalog: Catalog) -> None:
    add(catalog, dataset="a")
    add(catalog, dataset="b")
    assert get(catalog, "net", dataset="a").version == 1
    assert get(catalog, "net", dataset=ANY).version == 2
    with pytest.raises(NotFoundError, match="'a', not on 'b'"):
        get(catalog, "net@v1", dataset="b")
    with pytest.raises(NotFoundError, match="no checkpoint trained on no dataset"):
        get(catalog, "net", dataset=None)


def test_versions_and_aliases_that_arent_there(catalog: Catalog) -> None:
    add(catalog, aliases=("prod",))
    with pytest.raises(NotFoundError, match="up to v1"):
        get(catalog, "net@v2")
    with pytest.raises(NotFoundError, match="it has: 'prod'"):
        get(catalog, "net@staging")


# --- metrics that come later ----------------------------------------------------------------------


def test_a_metric_recorded_later_counts_from_then_on(catalog: Catalog, path: Path | str) -> None:
    one, two = add(catalog, acc=0.5), add(catalog)
    changed = catalog.record(two.id, {"acc": 0.9, "f1": 0.8}, "me").checkpoint
    assert changed.metrics == FrozenMap({"acc": 0.9, "f1": 0.8})
    assert catalog.best("net") == changed == catalog.by_id(two.id)
    assert rows(path, "SELECT acc FROM checkpoints ORDER BY version") == [(0.5,), (0.9,)]
    assert rows(path, "SELECT author FROM metrics WHERE name = 'f1'") == [("me",)]
    assert catalog.best("net", metric="f1", mode="max") == changed
    assert catalog.by_id(one.id) == one


def test_a_metric_is_never_changed_but_may_be_said_again(catalog: Catalog) -> None:
    one = add(catalog, acc=0.5)
    with pytest.raises(ConflictError, match=r"acc=0\.5"):
        catalog.record(one.id, {"acc": 0.6, "f1": 0.8})
    assert catalog.by_id(one.id) == one
    assert catalog.record(one.id, {"acc": 0.5}).checkpoint == one


def test_fractions_beside_percentages_are_warned_of_and_stored(catalog: Catalog) -> None:
    def warnings_of(**facts: Any) -> tuple[str, ...]:
        return catalog.add(draft(**facts), held).warnings

    assert warnings_of(acc=0.93) == ()
    assert warnings_of(acc=0.2) == ()
    assert warnings_of(acc=93.1, dataset="other") == ()
    (warning,) = warnings_of(acc=93.1)
    assert "93.1 here" in warning
    assert "net@v" in warning
    assert warnings_of(acc=0.0) == warnings_of() == ()
    assert len(warnings_of(acc=0.5)) == 1
    late = add(catalog)
    assert len(catalog.record(late.id, {"acc": 0.7}).warnings) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "high"])
def test_the_database_itself_refuses_numbers_that_are_none(path: Path | str, value: object) -> None:
    add(reopened(path), acc=0.5)
    with by_hand(path) as connection, pytest.raises(refusals()):
        connection.execute("UPDATE metrics SET value = ?", (value,))
    if value == value:  # NaN becomes NULL, which acc may be
        with by_hand(path) as connection, pytest.raises(refusals()):
            connection.execute("UPDATE checkpoints SET acc = ?", (value,))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE models SET mode = 'biggest'",
        "UPDATE models SET live = versions + 1",
        "UPDATE checkpoints SET epoch = -1",
        "UPDATE checkpoints SET epoch = 'ten'",
        "UPDATE checkpoints SET strategy = 'magic'",
        "UPDATE checkpoints SET version = 0",
        "UPDATE checkpoints SET id = 'short'",
        "UPDATE checkpoints SET created_at = 'yesterday'",
        "UPDATE checkpoints SET model_pk = 99",
        "UPDATE checkpoints SET collected_at = created_at",
        "UPDATE blobs SET size_bytes = -1",
        "DELETE FROM signatures",
        "DELETE FROM checkpoints",
    ],
)
def test_the_database_itself_refuses_rows_that_make_no_sense(path: Path | str, change: str) -> None:
    add(reopened(path))
    with by_hand(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(refusals()):
            connection.execute(change)


# --- labels ---------------------------------------------------------------------------------------


def test_tags_come_and_go(catalog: Catalog) -> None:
    one = add(catalog)
    assert catalog.tag(one.id, ["b", "a", "b"], "me").tags == ("a", "b")
    assert catalog.tag(one.id, ["a"]).tags == ("a", "b")
    assert catalog.untag(one.id, ["a"]).tags == ("b",)
    with pytest.raises(NotFoundError, match="it has: 'b'"):
        catalog.untag(one.id, ["b", "c"])
    assert catalog.by_id(one.id).tags == ("b",)


def test_an_alias_points_at_one_checkpoint_and_its_moves_are_kept(catalog: Catalog) -> None:
    one, two, other = add(catalog), add(catalog), add(catalog, "other")
    assert catalog.alias(one.id, "prod", "me") is None
    assert catalog.alias(other.id, "prod") is None  # a name is one within its model
    before = catalog.alias(two.id, "prod", "you")
    assert before is not None
    assert before == one
    assert catalog.alias(two.id, "prod").id == two.id  # type: ignore[union-attr]
    assert get(catalog, "net@prod").id == two.id
    assert catalog.unalias("net", "prod").id == two.id
    with pytest.raises(NotFoundError, match="no alias 'prod'"):
        catalog.unalias("net", "prod")
    moves = [(m.before, m.after, m.author) for m in catalog.alias_history("net", "prod")]
    assert moves == [
        ("net@v2", None, None), ("net@v1", "net@v2", "you"), (None, "net@v1", "me"),
    ]  # fmt: skip
    assert len(catalog.alias_history("net")) == 3


def test_an_alias_given_at_birth_is_taken_from_the_one_before(catalog: Catalog) -> None:
    one = add(catalog, aliases=("prod", "demo"))
    added: Added = catalog.add(draft(aliases=("prod",)), held)
    assert [c.ref for c in added.moved] == ["net@v1"]
    assert added.moved[0].aliases == ("demo",)
    assert catalog.by_id(one.id).aliases == ("demo",)


# --- removal --------------------------------------------------------------------------------------


def test_a_removed_checkpoint_answers_nothing_but_how_to_bring_it_back(catalog: Catalog) -> None:
    add(catalog, acc=0.5, epoch=1)
    gone = add(catalog, acc=0.9, epoch=2, tags=("good",))
    removed = catalog.remove(gone.id, author="me")
    assert removed.removed_at is not None
    assert catalog.best("net").version == catalog.latest("net").version == 1
    assert get(catalog, "net").version == 1
    assert [c.version for c in find(catalog, "net")] == [1]
    assert [c.version for c in catalog.fits(SIGNATURE.digest)] == [1]
    assert catalog.models()[0].checkpoints == count(catalog, "net") == count(catalog) == 1
    assert find(catalog, tags=["good"]) == []
    with pytest.raises(NotFoundError):
        get(catalog, "net@epoch=2")
    for ref in ("net@v2", gone.id, gone.id[:8]):
        with pytest.raises(NotFoundError, match=f"{removed.removed_at:%Y-%m-%d}") as caught:
            get(catalog, ref)
        assert caught.value.hint == "bring it back: ckreg restore net@v2"
        assert get(catalog, ref, include_removed=True) == removed
    for change in (
        catalog.remove,
        lambda id: catalog.tag(id, ["x"]),
        lambda id: catalog.record(id, {"f": 1}),
    ):
        with pytest.raises(NotFoundError, match="was removed"):
            change(gone.id)
    assert [c.version for c in find(catalog, "net", include_removed=True)] == [2, 1]
    assert count(catalog, "net", include_removed=True) == 2
    assert catalog.restore(gone.id) == gone == catalog.best("net")
    assert catalog.restore(gone.id) == gone
    assert count(catalog, "net") == 2


def test_an_aliased_checkpoint_is_removed_only_by_force(catalog: Catalog) -> None:
    one = add(catalog, aliases=("prod", "demo"))
    with pytest.raises(ConflictError, match="demo, prod"):
        catalog.remove(one.id)
    assert catalog.by_id(one.id) == one
    assert catalog.remove(one.id, force=True).aliases == ()
    with pytest.raises(NotFoundError):
        get(catalog, "net@prod")
    assert [m.after for m in catalog.alias_history("net", "prod")] == [None, "net@v1"]


def test_a_model_of_which_all_is_removed_says_so(catalog: Catalog) -> None:
    catalog.remove(add(catalog, acc=0.5).id)
    for ask in (catalog.best, catalog.latest, lambda m: get(catalog, m)):
        with pytest.raises(NotFoundError, match=r"0 live[;,] 1 removed"):
            ask("net")


# --- models, runs, settings -----------------------------------------------------------------------


def test_models_tell_their_counts_datasets_and_monitor(catalog: Catalog) -> None:
    for dataset in ("b", None, "a", "a"):
        add(catalog, dataset=dataset)
    catalog.monitor("made/ahead", "val/loss", "min", create=True)
    ahead, net = catalog.models()
    assert (net.versions, net.checkpoints, net.datasets) == (4, 4, ("a", "b", None))
    assert (net.metric, net.mode) == ("acc", "max")
    assert (ahead.name, ahead.versions, ahead.datasets) == ("made/ahead", 0, ())
    assert (ahead.metric, ahead.mode) == ("val/loss", "min")
    with pytest.raises(NotFoundError):
        catalog.monitor("nobody", "acc", "max")


def test_a_name_continues_its_run_within_model_and_dataset(catalog: Catalog) -> None:
    one = catalog.start_run(run_of(name="a"))
    assert catalog.start_run(run_of(name="a")) == one
    for other in (run_of(name="a", dataset=None), run_of(name="a", dataset="b"), run_of("m", "a")):
        assert catalog.start_run(other) == other
        assert catalog.start_run(replace(other, id=secrets.token_hex(16))) == other
    unnamed = run_of()
    assert catalog.start_run(unnamed) == unnamed != catalog.start_run(run_of())
    assert catalog.find_run("net", "digits", "b") is None
    assert catalog.find_run("nobody", "digits", "a") is None
    with pytest.raises(NotFoundError):
        catalog.run("f" * 32)


def test_two_runs_of_one_name_are_not_made_by_an_add(catalog: Catalog) -> None:
    add(catalog, run=run_of(name="a"))
    with pytest.raises(ConflictError, match="run called 'a'"):
        add(catalog, run=run_of(name="a"))
    assert count(catalog, "net") == 1


def test_settings_are_set_changed_and_taken_away(catalog: Catalog) -> None:
    assert catalog.setting("a word") is None
    for value in ("one", "two"):
        catalog.set_setting("a word", value)
        assert catalog.setting("a word") == value
    catalog.set_setting("a word", None)
    assert catalog.setting("a word") is None


def test_signatures_learn_what_a_parameter_is(catalog: Catalog) -> None:
    foreign = Signature(tuple(replace(t, kind="tensor") for t in SIGNATURE.tensors))
    assert foreign.digest == SIGNATURE.digest
    add(catalog, signature=foreign)
    add(catalog)
    add(catalog, signature=foreign)
    assert catalog.signature(SIGNATURE.digest) == SIGNATURE


def test_fits_finds_both_signatures_newest_first(catalog: Catalog) -> None:
    other = Signature((TensorSpec("module.fc.weight", "float32", (10, 4)),))
    one = add(catalog)
    catalog.add(
        replace(d := draft(raw_signature=other.digest), signatures=(*d.signatures, other)), held
    )
    assert [c.version for c in catalog.fits(SIGNATURE.digest)] == [2, 1]
    assert [c.version for c in catalog.fits(other.digest)] == [2]
    assert catalog.fits(other.digest, one.signature)[1] == one
    assert catalog.fits(Digest("blake3:" + "0" * 64)) == []


# --- lists ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, list[Checkpoint]]:
    """Return a catalog of varied checkpoints, and all of them."""
    catalog = Catalog(Database.create(tmp_path_factory.mktemp("many") / "registry.db"))
    chance = random.Random(11)
    runs = {m: run_of(m, "runé", dataset=None) for m in ("net", "vision/net")}
    start = datetime(2026, 11, 1, tzinfo=UTC)
    for _ in range(120):
        model = chance.choice(("net", "vision/net", "été"))
        metrics = {}
        if chance.random() < 0.7:
            metrics["acc"] = chance.choice((0.0, 0.25, 0.5, 0.75, 1.0))
        if chance.random() < 0.5:
            metrics["val/loss"] = chance.choice((-1.0, 0.5, 2.0))
        lr = chance.choice((1e-3, 1, "auto", True, False, None, [1], {"a": 1}, 2**70, "abc"))
        add(
            catalog, model, metrics=metrics, dataset=chance.choice(("a", "b", "A", None)),
            run=chance.choice((runs.get(model), None)),
            epoch=chance.choice((None, 0, 1, 2, 10)), batch_size=chance.choice((None, 32)),
            config=chance.choice(({}, {"lr": lr}, {"optim": {"weight decay": lr, "é": lr}})),
            tags=tuple(chance.sample(("good", "bad", "ugly"), chance.randrange(3))),
            aliases=chance.choice(((), ("prod",), ("demo",))),
            note=chance.choice((None, "50% [of] *it*_?", "Note", "zwei\nZeilen", "é")),
            key_style=KeyStyle.parse(chance.choice(("", "module."))),
            topology=chance.choice((Topology(), Topology(strategy="ddp", world_size=4))),
            created_at=start + timedelta(hours=chance.randrange(48)),
        )  # fmt: skip
    everything = find(catalog)
    for checkpoint in chance.sample(everything, 15):
        catalog.remove(checkpoint.id, force=True)
    return catalog, find(catalog)


def expected_order(
    found: list[Checkpoint], value: Callable[[Checkpoint], Any], *, descending: bool
) -> list[str]:
    """Return refs by a value, nulls last, then the newest version, as rows were added."""
    has = [c for c in found if value(c) is not None]
    lacks = [c for c in found if value(c) is None]
    has.sort(key=lambda c: c.version, reverse=True)
    has.sort(key=value, reverse=descending)
    lacks.sort(key=lambda c: c.version, reverse=True)
    return [c.ref for c in has + lacks]


SORTS: dict[str, Callable[[Checkpoint], Any]] = {
    "created_at": lambda c: c.created_at,
    "acc": lambda c: c.acc,
    "metrics.acc": lambda c: c.acc,
    "val/loss": lambda c: c.metrics.get("val/loss"),
    'metrics."val/loss"': lambda c: c.metrics.get("val/loss"),
    "epoch": lambda c: c.epoch,
    "version": lambda c: c.version,
    "dataset": lambda c: c.dataset,
    "note": lambda c: c.note,
    "run": lambda c: None if c.run is None else c.run.name,
    "world_size": lambda c: c.topology.world_size,
    "provenance.topology": lambda c: c.provenance.topology,
}


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("model", ["net", "vision/net"])
def test_any_field_or_metric_sorts_and_pages_neither_repeat_nor_skip(
    many: tuple[Catalog, list[Checkpoint]], name: str, descending: bool, model: str
) -> None:
    catalog, everything = many
    found = [c for c in everything if c.model == model]
    expected = expected_order(found, SORTS[name], descending=descending)
    sort = f"-{name}" if descending else name
    assert [c.ref for c in find(catalog, model, sort=sort)] == expected
    assert [c.ref for c in find(catalog, model, sort=sort, limit=7)] == expected[:7]
    paged: list[str] = []
    after = None
    while True:
        page = catalog.page(Query(model, sort=sort), size=4, after=after)
        paged += [c.ref for c in page.checkpoints]
        after = page.next
        if after is None:
            break
    assert paged == expected


def test_a_list_of_all_models_can_be_paged_by_an_equal_value(
    many: tuple[Catalog, list[Checkpoint]],
) -> None:
    catalog, everything = many
    seen: list[str] = []
    after = None
    while True:
        page = catalog.page(Query(sort="key_style"), size=3, after=after)
        seen += [c.id for c in page.checkpoints]
        after = page.next
        if after is None:
            break
    assert len(seen) == len(set(seen)) == len(everything)


def test_rows_added_while_a_list_is_read_neither_repeat_nor_hide_others(catalog: Catalog) -> None:
    for hour in range(250):
        add(catalog, created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour))
    listed = catalog.find("net")
    first = next(listed)
    add(catalog)
    rest = list(listed)
    assert [c.version for c in (first, *rest)] == list(range(250, 0, -1))


def test_an_unknown_sort_is_refused_with_what_there_is(catalog: Catalog) -> None:
    add(catalog, acc=0.5, metrics={"f1": 0.5})
    with pytest.raises(ValueError, match=r"'epohc'.*epoch.*metrics: 'acc', 'f1'"):
        find(catalog, "net", sort="-epohc")
    with pytest.raises(ValueError, match="neither a field nor a metric"):
        find(catalog, sort="f2")
    assert len(find(catalog, sort="-f1")) == 1


def test_a_place_that_is_none_is_refused(catalog: Catalog) -> None:
    add(catalog)
    for text in ("", "x", "[1]", "[1,2,3,4]", "{}", '[false,{},1,"a"]'):
        with pytest.raises(ValueError, match="no place"):
            catalog.page(Query(), size=1, after=text)
    with pytest.raises(ValueError, match="one row"):
        catalog.page(Query(), size=0)


def test_filters_narrow_a_list_and_its_count_alike(many: tuple[Catalog, list[Checkpoint]]) -> None:
    catalog, everything = many
    run = next(c.run for c in everything if c.run is not None)
    cases: list[tuple[dict[str, Any], Callable[[Checkpoint], bool]]] = [
        ({}, lambda c: True),
        ({"dataset": "a"}, lambda c: c.dataset == "a"),
        ({"dataset": None}, lambda c: c.dataset is None),
        ({"run": run.id}, lambda c: c.run == run),
        ({"run": "f" * 32}, lambda c: False),
        ({"tags": ["good"]}, lambda c: "good" in c.tags),
        ({"tags": ["good", "bad"]}, lambda c: {"good", "bad"} <= set(c.tags)),
        ({"model": "net", "dataset": "b"}, lambda c: (c.model, c.dataset) == ("net", "b")),
    ]
    for asked, holds in cases:
        expected = {c.id for c in everything if holds(c)}
        assert {c.id for c in find(catalog, **asked)} == expected
        assert count(catalog, **asked) == len(expected)
    assert count(catalog, include_removed=True) == 120 == len(find(catalog, include_removed=True))
    assert find(catalog, limit=0) == []
    with pytest.raises(ValueError, match="limit is how many"):
        find(catalog, limit=-1)


# --- where ----------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 10, 0.25, 0.5, 1e-3, -1.0, 2**62, 1e300, 4, 32])
TEXTS = st.sampled_from(
    ["a", "b", "A", "net", "é", "auto", "good", "prod", "", "Note", "runé", "ddp"]
)
PATTERNS = st.sampled_from(["%", "_", "n%", "%e_", "\\%", "50\\% [of]%", "*", "?", "N%", "%é", "a"])
NUMERIC = ["version", "epoch", "acc", "batch_size", "world_size", "size_bytes", "tensors"]
TEXTUAL = [
    "model", "run", "run_id", "dataset", "key_style", "strategy", "note", "origin", "id",
    "provenance.topology", "scheduler", "container",
]  # fmt: skip
PATHS = [("lr",), ("optim", "weight decay"), ("optim", "é"), ("optim",), ("lr", "a"), ("none",)]

numeric = st.one_of(
    st.sampled_from(NUMERIC).map(where.Column),
    st.sampled_from(["acc", "val/loss", "none"]).map(where.Metric),
    st.sampled_from(PATHS).map(where.Config),
)
textual = st.one_of(
    st.sampled_from(TEXTUAL).map(where.Column), st.sampled_from(PATHS).map(where.Config)
)
labels = st.sampled_from(["tags", "aliases"]).map(where.Labels)
order = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
equal = st.sampled_from(["==", "!="])
several = {"min_size": 1, "max_size": 3}

leaves = st.one_of(
    st.builds(where.Compare, numeric, order, NUMBERS),
    st.builds(where.Compare, textual, order, TEXTS),
    st.builds(where.Compare, st.sampled_from(PATHS).map(where.Config), equal, st.booleans()),
    st.builds(where.Compare, st.one_of(numeric, textual, labels), equal, st.none()),
    st.builds(where.Compare, labels, equal, TEXTS),
    st.builds(
        where.Compare,
        st.just(where.Column("created_at")),
        order,
        st.just(time_text(datetime(2026, 11, 2, tzinfo=UTC))),
    ),
    st.builds(where.In, numeric, st.lists(NUMBERS, **several).map(tuple), st.booleans()),
    st.builds(where.In, textual | labels, st.lists(TEXTS, **several).map(tuple), st.booleans()),
    st.builds(where.Like, textual | labels, PATTERNS, st.booleans()),
)


def combined(inner: st.SearchStrategy[where.Expression]) -> st.SearchStrategy[where.Expression]:
    pairs = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(where.Not, inner), st.builds(where.And, pairs), st.builds(where.Or, pairs)
    )


@given(expression=st.recursive(leaves, combined, max_leaves=6))
@settings(
    max_examples=max(400, settings().max_examples),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_where_means_in_sql_what_it_means_in_python(
    many: tuple[Catalog, list[Checkpoint]], expression: where.Expression
) -> None:
    catalog, everything = many
    found = {c.id for c in find(catalog, where=expression)}
    assert found == {c.id for c in everything if where.evaluate(expression, c)}, str(expression)


def test_the_longest_expression_is_no_burden_to_the_database(
    many: tuple[Catalog, list[Checkpoint]],
) -> None:
    catalog, everything = many
    wide = where.parse(" or ".join(f'metrics."m{n}" > {n}' for n in range(150)) + " or epoch >= 0")
    deep = where.parse("not (" * 30 + "epoch >= 0" + ")" * 30)
    expected = {c.id for c in everything if c.epoch is not None}
    assert {c.id for c in find(catalog, where=wide)} == expected
    assert {c.id for c in find(catalog, where=deep)} == expected


def test_nothing_of_an_expression_reaches_sql_as_text(catalog: Catalog) -> None:
    add(catalog, config={"a'b": 1})
    hostile = "x' OR 1=1 --"
    for expression in (
        where.Compare(where.Column("note"), "==", hostile),
        where.Compare(where.Metric(hostile), "==", 1),
        where.Compare(where.Config((hostile,)), "==", 1),
        where.Like(where.Column("note"), hostile),
    ):
        assert find(catalog, where=expression) == []
    with pytest.raises(ValueError, match="no field"):
        find(catalog, where=where.Compare(where.Column("pk"), "==", 1))
    assert len(find(catalog, where=where.Compare(where.Config(("a'b",)), "==", 1))) == 1


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE checkpoints SET epoch = 4",
        "UPDATE checkpoints SET dataset = 'other'",
        "UPDATE checkpoints SET acc = 0.99",
        "UPDATE checkpoints SET acc = NULL",
        "UPDATE checkpoints SET key_style = ''",
        "UPDATE checkpoints SET note = 'another'",
        "UPDATE checkpoints SET version = 8",
        "UPDATE checkpoints SET run_pk = NULL",
        "UPDATE checkpoints SET removed_at = substr('not a time' || created_at, 1, 27)",
        "UPDATE runs SET name = 'renamed'",
        "UPDATE models SET name = 'renamed'",
        "UPDATE metrics SET value = value + 0.01 WHERE name = 'acc'",
        "UPDATE metrics SET value = value + 0.01 WHERE name = 'later'",
        "UPDATE metrics SET author = 'somebody'",
        "DELETE FROM metrics WHERE name = 'val/loss'",
        "DELETE FROM records",
        "UPDATE records SET record = replace(record, 'torch-zip', 'torch-zap')",
        """UPDATE records SET record = replace(record, '"backend":null', '"backend":"nccl"')""",
        "UPDATE records SET record = '{', seal = 'x'",
    ],
)
def test_a_row_that_isnt_what_was_written_is_damage_that_names_it(
    path: Path | str, change: str
) -> None:
    catalog = reopened(path)
    one = add(
        catalog, acc=0.5, metrics={"val/loss": 1.5}, epoch=3, run=run_of(name="a"),
        key_style=KeyStyle.parse("module."),
    )  # fmt: skip
    catalog.record(one.id, {"later": 0.1}, "me")
    rows(path, change)
    with pytest.raises(DamagedError, match=one.id) as caught:
        catalog.by_id(one.id, include_removed=True)
    assert caught.value.exit_code == 6
    assert f"records/{one.id[:2]}/{one.id}.json" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE runs SET config = '{\"lr\":9}'",
        "UPDATE runs SET git_dirty = true",
        "UPDATE runs SET command = 'x'",
    ],
)
def test_a_runs_row_that_isnt_what_was_written_is_damage(path: Path | str, change: str) -> None:
    catalog = reopened(path)
    run = catalog.start_run(run_of(git=Git("abc", False), command="train.py"))
    rows(path, change)
    with pytest.raises(DamagedError, match=run.id):
        catalog.run(run.id)


@pytest.mark.sqlite_only("a server never takes text that is none")
def test_a_column_of_text_that_is_no_text_is_damage(path: Path | str) -> None:
    catalog = reopened(path)
    one = add(catalog, note="text")
    rows(path, "UPDATE checkpoints SET note = CAST(x'ff' AS TEXT)")
    with pytest.raises(DamagedError):
        catalog.by_id(one.id)


# --- kin ------------------------------------------------------------------------------------------


def test_a_checkpoint_knows_what_it_continues_and_what_continues_it(catalog: Catalog) -> None:
    chain = [add(catalog, parent="f" * 32)]  # which another registry has
    for _ in range(4):
        chain.append(add(catalog, parent=chain[-1].id))
    fork = add(catalog, "fork", parent=chain[1].id)
    catalog.remove(chain[2].id)

    def refs_of(found: list[Checkpoint]) -> list[str]:
        return [c.ref for c in found]

    assert refs_of(catalog.ancestors(chain[4].id, limit=10)) == refs_of(chain[3::-1])
    assert refs_of(catalog.ancestors(chain[4].id, limit=2)) == refs_of(chain[3:1:-1])
    assert catalog.ancestors(chain[0].id, limit=10) == []
    children = catalog.children(chain[1].id, limit=10)
    assert refs_of(children) == refs_of([chain[2], fork])
    assert [c.removed_at is None for c in children] == [False, True]
    assert refs_of(catalog.children(chain[1].id, limit=1)) == refs_of(chain[2:3])
    assert catalog.children(chain[4].id, limit=10) == []


def test_a_ring_of_parents_ends(catalog: Catalog) -> None:
    ids = ["a" * 32, "b" * 32, "c" * 32]
    for at, id in enumerate(ids):
        add(catalog, id=CheckpointId(id), parent=CheckpointId(ids[at - 1]))
    assert [c.id for c in catalog.ancestors(ids[0], limit=50)] == [ids[2], ids[1], ids[0]]


# --- speed ----------------------------------------------------------------------------------------


@pytest.mark.sqlite_only("it reads SQLite's query plans")
def test_best_latest_ids_and_new_lists_are_index_look_ups(
    path: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plans are the same at any number of rows: SQLite has no statistics of ours to go by."""
    monkeypatch.setattr(narrowing, "FEW", 0)  # as if there were a million
    fill(path, 200)
    catalog = reopened(path)
    asked = questions(catalog, catalog.latest("gpt/small", dataset="imagenet"))
    asked |= {
        "fits": lambda: catalog.fits(SIGNATURE.digest),
        "by facts": lambda: catalog.add(draft(push=True), held),
        "epoch": lambda: get(catalog, "resnet50@epoch=199", dataset="cifar10"),
        "models": lambda: catalog.models(),
        "probe": lambda: catalog.has_probe("x"),
        "ancestors": lambda: catalog.ancestors("0" * 32, limit=10),
        "children": lambda: catalog.children("0" * 32, limit=10),
    }
    for name, ask in asked.items():
        steps = explain(path, lambda ask=ask: _quietly(ask))
        for step in steps:
            small = re.search(r"SCAN (ckreg_version|models|CONSTANT ROW|anon_|steps$)", step)
            in_order = step.startswith("SCAN checkpoints USING INDEX ix_checkpoints_newest")
            assert small or in_order or not step.startswith("SCAN"), f"{name}: {step}"
            assert step != "USE TEMP B-TREE FOR ORDER BY", f"{name}: {steps}"


def _quietly(ask: Callable[[], object]) -> None:
    with contextlib.suppress(NotFoundError):
        ask()


@pytest.mark.sqlite_only("a server is asked for the lock and the number as well")
def test_adding_and_best_take_a_handful_of_statements(path: Path | str) -> None:
    catalog = reopened(path)
    add(catalog, acc=0.5, run=(run := run_of()))
    with statements() as asked:
        catalog.best("net", dataset="digits")
    assert len(asked) <= 6
    with statements() as asked:
        add(catalog, acc=0.6, run=run)
    assert len(asked) <= 12


@pytest.mark.sqlite_only("the benchmark writes an SQLite file")
def test_rows_made_by_the_benchmark_are_real_ones(path: Path | str) -> None:
    fill(path, 50)
    catalog = reopened(path)
    found = find(catalog, include_removed=True)
    assert len(found) == 50 == count(catalog, include_removed=True)
    assert now() - found[0].created_at > timedelta(0)
