"""`best` in the API, on the command line and in SQL by hand agree, on a thousand random
checkpoints.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from backends import BACKENDS, records_at
from drafts import by_hand

from registry import Checkpoint, NotFoundError, Registry

BY_HAND = """
SELECT c.id FROM checkpoints c JOIN models m ON m.pk = c.model_pk
WHERE m.name = ? AND c.dataset = ? AND c.removed_at IS NULL AND c.acc IS NOT NULL
ORDER BY c.acc DESC, c.version DESC LIMIT 1
"""

BY_HAND_LOSS = """
SELECT c.id FROM checkpoints c JOIN models m ON m.pk = c.model_pk
JOIN metrics x ON x.checkpoint_pk = c.pk AND x.name = 'val/loss'
WHERE m.name = ? AND c.dataset = ? AND c.removed_at IS NULL
ORDER BY x.value ASC, c.version DESC LIMIT 1
"""


MANY = {"sqlite+folder": 1000, "postgres+folder": 250}
Histories = Callable[[str], Registry]


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Histories]:
    """Return what gives a backend's registry of many checkpoints."""
    made: dict[str, Registry] = {}
    with ExitStack() as stack:

        def give(backend: str) -> Registry:
            if backend not in made:
                tmp_path = tmp_path_factory.mktemp("history")
                made[backend] = stack.enter_context(BACKENDS[backend](tmp_path))
                fill(made[backend], tmp_path, MANY[backend])
            return made[backend]

        yield give


@pytest.fixture
def history(histories: Histories, backend: str) -> Registry:
    """Return it."""
    return histories(backend)


def fill(reg: Registry, tmp_path: Path, many: int) -> None:
    """Push so many: ties, missing acc, datasets, runs, removed rows, two monitors."""
    chance = random.Random(7)
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, path)
    for number in range(many):
        model = chance.choice(["net", "vision/net", "loser"])
        metrics: dict[str, object] = {}
        if chance.random() < 0.8:
            metrics["acc"] = chance.randrange(0, 20) / 20  # few values: many ties
        if model == "loser" and chance.random() < 0.9:
            metrics["val/loss"] = chance.randrange(0, 30) / 10
        checkpoint = reg.push(
            path, model=model, dataset=chance.choice(["a", "b", None]), epoch=number,
            run=chance.choice(["r1", "r2", None]), metrics=metrics,
        )  # fmt: skip
        if chance.random() < 0.1:
            reg.remove(checkpoint)
    reg.monitor("loser", "val/loss", "min")


def brute_force(
    found: list[Checkpoint], metric: str, sign: int, dataset: str | None, run: str | None = None
) -> str | None:
    asked = [
        c for c in found
        if metric in c.metrics and c.dataset == dataset
        and (run is None or (c.run is not None and c.run.name == run))
    ]  # fmt: skip
    return max(asked, key=lambda c: (sign * c.metrics[metric], c.version)).id if asked else None


@pytest.mark.slow
def test_best_agrees_everywhere(history: Registry) -> None:
    with by_hand(records_at(history)) as db:
        for model, metric, sign, sql in (
            ("net", "acc", 1, BY_HAND),
            ("vision/net", "acc", 1, BY_HAND),
            ("loser", "val/loss", -1, BY_HAND_LOSS),
        ):
            found = list(history.find(model))
            assert (
                len(found)
                == db.execute(
                    "SELECT count(*) FROM checkpoints c JOIN models m ON m.pk = c.model_pk "
                    "WHERE m.name = ? AND c.removed_at IS NULL",
                    (model,),
                ).fetchone()[0]
            )
            for dataset in ("a", "b"):
                best = history.best(model, dataset=dataset)
                assert best.id == brute_force(found, metric, sign, dataset)
                assert (best.id,) == db.execute(sql, (model, dataset)).fetchone()
                assert best.id == history.get(f"{model}@best", dataset=dataset).id
                done = subprocess.run(
                    [sys.executable, "-m", "registry", "-r", history.location, "best", model,
                     "--dataset", dataset, "--json"],
                    capture_output=True, text=True, check=True,
                    cwd=Path(__file__).parents[1],
                )  # fmt: skip
                assert json.loads(done.stdout)["id"] == best.id
                for run in ("r1", "r2"):
                    mine = history.best(model, dataset=dataset, run=run)
                    assert mine.id == brute_force(found, metric, sign, dataset, run)
                newest = max((c for c in found if c.dataset == dataset), key=lambda c: c.version)
                assert history.latest(model, dataset=dataset).id == newest.id
            assert history.latest(model, dataset="a").removed_at is None


@pytest.mark.slow
def test_find_pages_through_all_of_them_in_any_order(history: Registry, backend: str) -> None:
    found = list(history.find())
    assert len({c.id for c in found}) == len(found)
    assert [c.created_at for c in found] == sorted((c.created_at for c in found), reverse=True)
    by_acc = list(history.find(sort="-acc"))
    assert {c.id for c in by_acc} == {c.id for c in found}
    known = [c.acc for c in by_acc if c.acc is not None]
    assert known == sorted(known, reverse=True)
    assert all(c.acc is None for c in by_acc[len(known) :])
    good = list(history.find("net", where='acc >= 0.5 and dataset == "a" and epoch < 500'))
    assert {c.id for c in good} == {
        c.id for c in found
        if c.model == "net" and c.acc is not None and c.acc >= 0.5 and c.dataset == "a"
        and c.epoch is not None and c.epoch < 500
    }  # fmt: skip
    removed = [c for c in history.find(include_removed=True) if c.removed_at is not None]
    assert len(removed) + len(found) == MANY[backend]


def test_a_checkpoint_without_the_metric_is_never_best(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, path)
    reg.push(path, model="net", epoch=1)
    with pytest.raises(NotFoundError, match="acc"):
        reg.best("net")
    worst = reg.push(path, model="net", epoch=2, acc=-3.0)
    assert reg.best("net") == worst


def test_a_metric_without_a_mode_is_a_bad_call_unless_it_is_the_monitor(
    reg: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, path)
    first = reg.push(path, model="net", epoch=1, metrics={"loss": 0.5})
    reg.push(path, model="net", epoch=2, metrics={"loss": 0.75})
    with pytest.raises(ValueError, match="mode"):
        reg.best("net", metric="loss")
    assert reg.best("net", metric="loss", mode="min") == first
    reg.monitor("net", "loss", "min")
    assert reg.best("net") == reg.best("net", metric="loss") == first


def test_a_metric_recorded_later_counts_and_is_never_overwritten(
    reg: Registry, tmp_path: Path
) -> None:
    from registry import ConflictError

    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, path)
    checkpoint = reg.push(path, model="net")
    assert reg.record(checkpoint, {"acc": 0.5}).acc == 0.5
    assert reg.record("net", {"acc": 0.5}).acc == 0.5
    with pytest.raises(ConflictError, match="acc"):
        reg.record("net", {"acc": 0.6})
    assert reg.best("net").acc == 0.5
