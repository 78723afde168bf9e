"""Runs: what belongs to which, what came from which, and what another registry makes of them."""

from __future__ import annotations

import secrets
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from drafts import draft, held
from nets import Net, seeded

from registry import CkregWarning, ConflictError, Registry, surroundings
from registry.catalog import Added, Catalog
from registry.cli import run as run_cli
from registry.records import CarriedRun, RunRecord


@pytest.fixture
def catalog(reg: Registry) -> Catalog:
    return reg._parts()[1]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    """Return a second registry, where files from the first are carried."""
    with Registry.create(tmp_path / "other") as registry:
        yield registry


def trained(seed: int) -> tuple[Net, torch.optim.Optimizer]:
    net = seeded(seed)
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


# --- what a run is --------------------------------------------------------------------------------


def test_a_named_run_is_continued_as_it_was_begun_or_not_at_all(reg: Registry) -> None:
    begun = reg.run("net", name="try", config={"lr": 0.1}, batch_size=8)
    for same in ({}, {"config": {"lr": 0.1}}, {"batch_size": 8}, {"config": {}}):
        assert reg.run("net", name="try", **same).record == begun.record  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match=r"config=\{'lr': 0\.1\}.*config=\{'lr': 0\.2\}"):
        reg.run("net", name="try", config={"lr": 0.2})
    with pytest.raises(ConflictError, match=r"batch_size=8.*batch_size=16"):
        reg.run("net", name="try", batch_size=16)
    bare = reg.run("net", name="bare")
    with pytest.raises(ConflictError, match=r"batch_size=None.*batch_size=0"):
        reg.run("net", name="bare", batch_size=0)
    assert bare.record.batch_size is None


def test_a_monitor_needs_its_mode_and_a_mode_its_monitor(reg: Registry) -> None:
    for bad in (
        lambda: reg.run("net", name="a", monitor="val/loss"),
        lambda: reg.run("net", name="a", mode="min"),
        lambda: reg.run("net", name="a", monitor="val/loss", mode="least"),  # type: ignore[arg-type]
        lambda: reg.monitor("net", "val/loss", create=True),
    ):
        with pytest.raises(ValueError, match="mode"):
            bad()
    assert reg.models() == []
    reg.run("net", monitor="acc")
    reg.run("other", monitor="val/loss", mode="min")
    assert [(m.metric, m.mode) for m in reg.models()] == [("acc", "max"), ("val/loss", "min")]


def test_the_command_needs_the_mode_as_well(
    reg: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    reg.monitor("net", "acc", create=True)
    assert run_cli(["monitor", "net", "val/loss", "-r", reg.location]) == 2
    assert "mode" in capsys.readouterr().err
    assert run_cli(["monitor", "net", "val/loss", "--mode", "min", "-r", reg.location]) == 0
    assert reg.models()[0].metric == "val/loss"


def test_of_a_run_that_a_push_names_no_more_is_known_than_who_named_it(
    reg: Registry, catalog: Catalog, tmp_path: Path
) -> None:
    torch.save(seeded(1).state_dict(), tmp_path / "f.pt")
    pushed = reg.push(tmp_path / "f.pt", model="net", run="try")
    assert pushed.run is not None
    run = catalog.run(pushed.run.id)
    assert (run.name, run.command, run.hostname, run.git) == ("try", None, None, None)
    assert run.author == surroundings.author()
    assert reg.push(tmp_path / "f.pt", model="net", run="try", epoch=1).run == pushed.run


def test_a_save_by_a_new_name_knows_where_it_ran(reg: Registry, catalog: Catalog) -> None:
    saved = reg.save(seeded(1), model="net", run="try")
    assert saved.run is not None
    assert catalog.run(saved.run.id).hostname == surroundings.hostname()


# --- which came from which ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "try"])
def test_what_is_resumed_from_is_the_parent_of_the_next_save_alone(
    reg: Registry, name: str | None
) -> None:
    net, optimizer = trained(1)
    run = reg.run("net", name=name)
    first = run.save(net, epoch=0, optimizer=optimizer)
    second = run.save(net, epoch=1, optimizer=optimizer)
    reg.load(first, into=net, optimizer=optimizer)
    third = run.save(net, epoch=1, optimizer=optimizer)
    fourth = run.save(net, epoch=2, optimizer=optimizer)
    assert second.parent == third.parent == first.id
    assert fourth.parent == third.id
    assert reg.run("net").save(net, epoch=0).parent is None


def test_a_resume_of_one_model_is_nothing_to_another(reg: Registry) -> None:
    net, optimizer = trained(1)
    first = reg.save(net, model="net", optimizer=optimizer)
    reg.load(first, into=net, optimizer=optimizer)
    assert reg.save(net, model="other").parent is None
    assert reg.save(net, model="net").parent == first.id


def test_threads_that_save_at_once_save_to_one_run(reg: Registry) -> None:
    surroundings._git.cache_clear()  # a new run asks git, which takes its time
    start = threading.Barrier(4)
    found: list[Any] = []

    def save(epoch: int) -> None:
        start.wait()
        found.append(reg.save(seeded(1), model="net", epoch=epoch).run)

    threads = [threading.Thread(target=save, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


@pytest.mark.ranks
def test_a_run_without_a_name_is_the_same_on_every_rank(reg: Registry) -> None:
    ended = gloo.run("unnamed", reg.location)
    assert [r.code for r in ended] == [0, 0], ended[1].stderr
    assert ended[0].answer == ended[1].answer
    assert ended[1].answer["asked"] == ended[1].answer["saved"]


# --- runs that come with a file -------------------------------------------------------------------


Carry = Callable[[Any], Path]


@pytest.fixture
def carry(reg: Registry, tmp_path: Path) -> Carry:
    return lambda saved: reg.pull(saved, tmp_path / f"{secrets.token_hex(4)}.pt")


def test_a_carried_run_whose_name_is_taken_goes_without(
    reg: Registry, other: Registry, carry: Carry
) -> None:
    own = other.run("net", name="try")
    mine = reg.run("net", name="try", config={"lr": 0.1})
    files = [carry(mine.save(seeded(i), epoch=i)) for i in range(2)]
    with pytest.warns(CkregWarning, match="'try', which is the name of another run"):
        first = other.push(files[0])
    with pytest.warns(CkregWarning, match="known as"):
        second = other.push(files[1])
    assert first.run == second.run
    assert first.run is not None
    assert (first.run.id, first.run.name) == (mine.id, None)
    assert other._parts()[1].run(mine.id).config == {"lr": 0.1}
    assert other.count("net", run=own) == 0
    assert other.count("net", run="try") == 0
    with pytest.warns(CkregWarning):
        assert other.push(files[0]).id == first.id  # still its twin


def carried(**facts: Any) -> CarriedRun:
    return CarriedRun(**({"id": "a" * 32, "model": "net", "dataset": "digits"} | facts))


def add(catalog: Catalog, run: RunRecord, **facts: Any) -> Added:
    push = isinstance(run, CarriedRun)
    return catalog.add(draft(run.model, run=run, dataset=run.dataset, push=push, **facts), held)


@pytest.mark.parametrize(
    "there",
    [{"dataset": "mnist"}, {"model": "other"}, {"name": "another"}, {"dataset": None}],
    ids=str,
)
def test_a_run_s_id_alone_does_not_make_it_the_same(
    catalog: Catalog, there: dict[str, Any]
) -> None:
    before = replace(RunRecord(id="a" * 32, model="net", dataset="digits"), **there)
    mine = add(catalog, before).checkpoint
    first, second = (add(catalog, carried(name="try")) for _ in range(2))
    assert mine.run is not None
    assert first.checkpoint.run == second.checkpoint.run
    assert first.checkpoint.run is not None
    assert first.checkpoint.run.id != mine.run.id
    assert first.checkpoint.run.name == "try"
    assert "another model, dataset or name" in first.warnings[0]
    assert catalog.run("a" * 32) == before
    content = {"content": "same", "epoch": 1}
    assert not add(catalog, carried(name="try"), **content).existing
    assert add(catalog, carried(name="try"), **content).existing


def test_a_run_s_own_files_join_it_in_silence(catalog: Catalog) -> None:
    for run in (RunRecord(id="a" * 32, model="net", dataset="digits", name="try"), carried()):
        name = {"name": "try"}
        added = add(catalog, replace(run, **name))
        assert added.warnings == ()
        assert added.checkpoint.run is not None
        assert (added.checkpoint.run.id, added.checkpoint.run.name) == ("a" * 32, "try")


def test_a_new_run_whose_name_was_taken_meanwhile_is_still_a_conflict(catalog: Catalog) -> None:
    add(catalog, RunRecord(id="a" * 32, model="net", name="try"))
    with pytest.raises(ConflictError, match="run called 'try'"):
        add(catalog, RunRecord(id="b" * 32, model="net", name="try"))


def test_a_carried_run_is_not_followed_into_another_model(
    reg: Registry, other: Registry, carry: Carry
) -> None:
    path = carry(reg.run("net", dataset="digits", name="try").save(seeded(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CkregWarning)
        assert other.push(path, model="mine").run is None
        assert other.push(path, dataset="mnist").run is None


def test_the_label_s_author_is_who_pushes(catalog: Catalog) -> None:
    there = draft(author="ann", aliases=("prod",), push=True)
    catalog.add(replace(there, actor="bob"), held)
    assert [move.author for move in catalog.alias_history("net")] == ["bob"]
