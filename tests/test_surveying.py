"""Many checkpoints at a glance say the same as one question each."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from registry import NotFoundError, Registry


@pytest.fixture
def filled(reg: Registry, tmp_path: Path) -> Registry:
    """Return a registry with two models, runs that save by turns, and removed checkpoints."""
    path = tmp_path / "w.pt"
    for number in range(24):
        torch.save({"state_dict": {"w": torch.full((2,), float(number // 2))}}, path)  # in pairs
        reg.push(
            path, model="net", dataset=("a", "b", None)[number % 3], run=f"run-{number % 2}",
            epoch=number // 2, acc=((number * 7) % 11) / 11, tags=["odd"] * (number % 2),
        )  # fmt: skip
    for step in range(4):
        reg.push(path, model="vision/net", step=step, metrics={"val/loss": 4.0 - step})
    reg.monitor("vision/net", "val/loss", "min")
    reg.remove("net@v24")
    reg.remove("vision/net@v4")
    return reg


def test_a_standing_names_the_best_that_best_returns(filled: Registry) -> None:
    found = filled.standings(["net", "vision/net", "none"])
    assert set(found) == {"net", "vision/net"}
    for model, datasets in (("net", ["a", "b", None]), ("vision/net", [None])):
        standing = found[model]
        assert [leader.dataset for leader in standing.leaders] == datasets
        for leader in standing.leaders:
            best = filled.best(model, dataset=leader.dataset or "")
            value = best.metrics["acc" if model == "net" else "val/loss"]
            assert (leader.id, leader.version, leader.value) == (best.id, best.version, value)
        newest = next(filled.find(model, limit=1))
        assert (standing.newest, standing.newest_version, standing.newest_at) == (
            newest.id, newest.version, newest.created_at,
        )  # fmt: skip


def test_a_model_without_its_metric_has_no_leader(reg: Registry, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "w.pt")
    ckpt = reg.push(tmp_path / "w.pt", model="bare")
    standing = reg.standings(["bare"])["bare"]
    assert (standing.leaders, standing.newest) == ((), ckpt.id)
    reg.remove(ckpt)
    assert reg.standings(["bare"])["bare"].newest is None


@pytest.mark.parametrize(
    "words",
    [{}, {"dataset": "a"}, {"dataset": ""}, {"run": "run-1", "dataset": "b"}, {"tags": ["odd"]},
     {"where": "epoch > 4 and acc < 0.7"}, {"where": 'tags == "odd"', "dataset": "a"}],
)  # fmt: skip
def test_a_course_has_what_find_finds(filled: Registry, words: dict[str, object]) -> None:
    found = [c for c in filled.find("net", sort="version", **words) if c.acc is not None]
    course = filled.course("net", "acc", **words)
    assert course.total == len(found) > 0
    assert [
        (p.id, p.version, p.dataset, p.epoch, p.step, p.created_at, p.value, p.run)
        for p in course.points
    ] == [(c.id, c.version, c.dataset, c.epoch, c.step, c.created_at, c.acc, c.run) for c in found]


def test_a_long_course_is_thinned_evenly(reg: Registry, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "w.pt")
    for number in range(60):  # two runs that save by turns
        reg.push(tmp_path / "w.pt", model="net", run=f"run-{number % 2}", epoch=number, acc=0.5)
    whole, course = reg.course("net", "acc"), reg.course("net", "acc", most=20)
    assert (course.total, whole.total, whole.whole) == (60, 60, None)
    assert course.whole == frozenset()  # each of the two has more than that
    assert set(course.points) < set(whole.points)
    assert 17 <= len(course.points) <= 23
    runs = [point.run.name for point in course.points if point.run]
    assert {runs.count("run-0"), runs.count("run-1")} <= set(range(7, 14))
    versions = [point.version for point in course.points]
    assert max(b - a for a, b in itertools.pairwise(versions)) <= 6


def test_of_a_long_course_the_newest_runs_stay_whole(filled: Registry, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"w": torch.zeros(2)}}, path)
    for epoch in range(4):
        filled.push(path, model="net", dataset="a", run="new", epoch=epoch, acc=0.5)
    course = filled.course("net", "acc", most=6)
    new = [point for point in course.points if point.run and point.run.name == "new"]
    assert [point.epoch for point in new] == [0, 1, 2, 3]
    assert course.whole == {point.run.id for point in new if point.run}
    of_one = filled.course("net", "acc", run="new", most=2)
    assert {point.run for point in of_one.points} <= {new[0].run}
    assert (of_one.total, of_one.whole) == (4, frozenset())
    assert len(course.points) < course.total == 27


def test_a_course_of_nothing_is_empty_or_an_error(filled: Registry) -> None:
    assert filled.course("net", "none").total == 0
    with pytest.raises(NotFoundError):
        filled.course("nat", "acc")


def test_choices_are_the_names_in_use(filled: Registry) -> None:
    of_net = filled.choices("net")
    assert (of_net.metrics, set(of_net.runs), of_net.tags) == (
        ("acc",), {"run-0", "run-1"}, ("odd",),
    )  # fmt: skip
    assert filled.choices("vision/net").metrics == ("val/loss",)
    assert set(filled.choices().runs) == {"run-0", "run-1"}


def test_a_holding_counts_each_file_once(filled: Registry) -> None:
    every = [*filled.find(include_removed=True)]
    for holding in filled.holdings():
        mine = [c for c in every if c.model == holding.model]
        blobs = {f.digest: f.size_bytes for c in mine for f in c.files}
        gone = [c for c in mine if c.removed_at is not None]
        assert holding.size_bytes == sum(blobs.values())
        assert (holding.checkpoints, holding.removed) == (len(mine) - len(gone), len(gone))
        assert holding.removed_bytes == sum(c.size_bytes for c in gone)
    assert [h.model for h in filled.holdings()] == ["net", "vision/net"]


def test_what_gc_took_is_held_no_more(filled: Registry) -> None:
    before = {h.model: h for h in filled.holdings()}
    filled.gc(grace="0")
    after = {h.model: h for h in filled.holdings()}
    assert (before["net"].removed, after["net"].removed) == (1, 0)
    assert after["vision/net"].size_bytes > 0  # others have its file


def test_what_is_freeable_is_what_gc_takes(filled: Registry) -> None:
    assert filled.freeable().waiting == 2
    assert (filled.freeable().checkpoints, filled.freeable().size_bytes) == (0, 0)
    filled.remove("net@v23", force=True)  # its file was v24's too, and vision/net's
    filled.remove("net@v1", force=True)
    filled.remove("net@v2", force=True)  # and nobody else has theirs
    found, plan = filled.freeable(grace="0"), filled.gc(grace="0", dry_run=True)
    assert (found.checkpoints, found.waiting) == (len(plan.checkpoints), 0) == (5, 0)
    assert set(found.first) == set(plan.checkpoints)
    assert (found.blobs, found.size_bytes) == (
        len(plan.blobs),
        sum(b.size_bytes for b in plan.blobs),
    )
    assert found.size_bytes > 0
    filled.gc(grace="0")
    assert filled.freeable(grace="0").checkpoints == 0


def test_a_registry_that_is_not_there_yet_has_nothing() -> None:
    reg = Registry.open()
    assert (reg.standings(["net"]), reg.holdings(), reg.choices().runs) == ({}, [], ())
