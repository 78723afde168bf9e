"""Lists among many rows: the way to them is the cheap one, and the list the same on either way."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drafts import draft, held

from benchmarks.million import explain, fill
from registry import where
from registry.catalog import Catalog, Query, narrowing
from registry.records import Checkpoint
from registry.schema import Database

ROWS = 3_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of so many rows that ten are few; some have no dataset, and tags."""
    database = Database.create(tmp_path_factory.mktemp("finding") / "registry.db")
    fill(database.path, ROWS)
    catalog = Catalog(Database.open(database.path))
    for number in range(30):
        catalog.add(
            draft(
                "resnet50", dataset=None, epoch=number, acc=number / 30,
                metrics={"val/loss": 0.001 * number},
                tags=("good",) if number % 3 else (), aliases=("prod",) if number == 7 else (),
            ),
            held,
        )  # fmt: skip
    return database.path


@pytest.fixture
def catalog(path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setattr(narrowing, "FEW", 10)
    return Catalog(Database.open(path))


def find(catalog: Catalog, model: str | None, text: str = "", **how: Any) -> list[Checkpoint]:
    expression = where.parse(text) if text else None
    return list(catalog.find(model, where=expression, limit=50, **how))


def steps(path: Path, ask: Callable[[], object]) -> str:
    """Return the steps of all that is asked for a page."""
    return "\n".join(explain(path, ask))


SORTED = "USE TEMP B-TREE FOR ORDER BY"

FREQUENT: list[tuple[str | None, str, dict[str, Any], str]] = [
    ("resnet50", "acc > 0.1", {}, "ix_checkpoints_model_newest (model_pk=?)"),
    (None, "acc > 0.1", {}, "ix_checkpoints_newest"),
    ("resnet50", "acc > 0.1", {"dataset": "imagenet"}, "ix_checkpoints_dataset_newest (model_pk="),
    ("resnet50", 'dataset == "imagenet" and acc > 0.1', {}, "ix_checkpoints_dataset_newest (model"),
    ("resnet50", "epoch < 80", {}, "ix_checkpoints_model_newest (model_pk=?)"),
    (None, 'model == "resnet50"', {}, "ix_checkpoints_newest"),
    ("resnet50", 'metrics."val/loss" < 2', {}, "ix_checkpoints_model_newest (model_pk=?)"),
    ("resnet50", 'created_at > "2026-01-01T00:30:00Z" and epoch < 80', {},
     "ix_checkpoints_model_newest (model_pk=? AND created_at>?)"),
    ("resnet50", "acc > 0.1", {"sort": "acc"}, "ix_checkpoints_acc (model_pk=? AND acc>?)"),
    ("resnet50", "epoch < 80", {"sort": "-acc"}, "ix_checkpoints_acc (model_pk=? AND acc>?)"),
    ("resnet50", "", {"sort": "-acc", "dataset": "imagenet"}, "ix_checkpoints_acc (model_pk="),
    ("resnet50", "acc > 0.1", {"sort": "-version"}, "uq_checkpoints_version (model_pk=?)"),
    ("resnet50", "acc > 0.1", {"sort": "val/loss"},
     "ix_metrics_best (model_pk=? AND name=? AND live=? AND dataset=?)"),
    ("resnet50", 'strategy == "ddp"', {}, "ix_checkpoints_model_newest (model_pk=?)"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "text", "how", "index"), FREQUENT)
def test_where_many_match_the_list_is_walked_in_its_order(
    catalog: Catalog, path: Path, model: str | None, text: str, how: dict[str, Any], index: str
) -> None:
    plan = steps(path, lambda: find(catalog, model, text, **how))
    assert index in plan
    assert SORTED not in plan, plan


RARE: list[tuple[str | None, str, dict[str, Any]]] = [
    ("resnet50", "acc > 0.999", {}),
    (None, "acc > 0.999", {}),
    ("resnet50", "epoch == 1000", {}),
    ("resnet50", "acc > 0.1 and epoch in (3, 1000) and version < 9", {}),
    ("resnet50", 'metrics."val/loss" < 0', {}),
    ("resnet50", 'metrics."val/loss" < 0.001', {"dataset": "imagenet"}),
    ("resnet50", "acc > 0.999 or epoch == 1000", {}),
    ("resnet50", "acc > 0.999", {"sort": "val/loss", "dataset": "imagenet"}),
    ("resnet50", "acc > 0.999", {"sort": "size_bytes"}),
    ("resnet50", 'metrics."val/loss" < 0.001', {"sort": "-val/loss"}),
    (None, 'tags == "bad"', {}),
    (None, 'aliases == "prod"', {}),
    (None, "epoch < 80", {"tags": ("bad",)}),
    (None, 'run == "baseline" and epoch < 80', {}),
    (None, "epoch < 80", {"run": "f" * 32}),
    (None, "epoch < 80", {"dataset": "digits"}),
    (None, 'id == "0123"', {}),
]


@pytest.mark.parametrize(("model", "text", "how"), RARE)
def test_where_few_match_only_those_are_read_and_sorted(
    catalog: Catalog, path: Path, model: str | None, text: str, how: dict[str, Any]
) -> None:
    plan = steps(path, lambda: find(catalog, model, text, **how))
    assert "SEARCH checkpoints USING INTEGER PRIMARY KEY (rowid=?)\nLIST SUBQUERY" in plan, plan
    assert SORTED in plan
    walks = r"SCAN (checkpoints|metrics|tags|aliases|runs)|newest|checkpoints.*\(model_pk=\?\)$"
    assert not re.search(walks, plan, re.M), plan


def pages(catalog: Catalog, query: Query) -> list[str]:
    """Return the ids of the first fifty of a list, seven a page."""
    found: list[str] = []
    after = None
    while len(found) < 50:
        page = catalog.page(query, size=7, after=after)
        found += [c.id for c in page.checkpoints]
        after = page.next
        if after is None:
            break
    return found


TERMS = (
    "acc > 0.99", "acc < 0.5", "acc == null", "epoch == 3", "epoch in (1, 5)", "version > 20",
    'dataset == "imagenet"', 'dataset != "imagenet"', 'dataset > "d"', 'model like "gpt/%"',
    'metrics."val/loss" < 0.02', 'metrics."val/loss" >= 1', 'strategy == "ddp"', 'tags == "good"',
    'created_at < "2026-01-01T01:00:00Z"', "(acc > 0.99 or epoch == 7)", "not acc > 0.01",
    'tags not in ("good",)', "epoch not in (1, 5)", 'aliases == "prod"',
)  # fmt: skip
SORTS = ("created_at", "acc", "epoch", "version", "val/loss", "dataset", "size_bytes")


def queries(number: int) -> Iterator[Query]:
    chance = random.Random(3)
    for _ in range(number):
        terms = chance.sample(TERMS, chance.randint(1, 3))
        yield Query(
            model=chance.choice((None, "resnet50", "resnet50", "gpt/small")),
            dataset=chance.choice((narrowing.ANY, narrowing.ANY, "cifar10", None)),
            where=where.parse(" and ".join(terms)),
            sort=chance.choice(("", "-")) + chance.choice(SORTS),
            include_removed=chance.random() < 0.15,
        )


def test_the_list_is_the_same_on_every_way(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walked, read and sorted, or as the counts say: ids, order and total agree."""
    some = 0
    for query in queries(100):
        ways = []
        for few in (-1, 10, 10**9):
            monkeypatch.setattr(narrowing, "FEW", few)
            total = catalog.count(
                query.model, dataset=query.dataset, where=query.where,
                include_removed=query.include_removed,
            )  # fmt: skip
            found = pages(catalog, query)
            assert len(found) == total or len(found) >= 50 <= total
            ways.append((found, total))
        assert ways[0] == ways[1] == ways[2], query
        some += bool(ways[0][0])
    assert some > 30


def test_a_list_by_a_metric_is_put_together_from_its_datasets(catalog: Catalog, path: Path) -> None:
    plan = steps(path, lambda: find(catalog, "resnet50", sort="val/loss"))
    assert "ix_metrics_best (model_pk=? AND name=? AND live=? AND dataset=?)" in plan
    assert SORTED not in plan, plan
    found = find(catalog, "resnet50", sort="val/loss")
    losses = sorted(c.metrics["val/loss"] for c in catalog.find("resnet50"))
    assert [c.metrics["val/loss"] for c in found] == losses[:50]
    assert {c.dataset for c in found} == {"imagenet", "cifar10", None}


def test_a_metric_may_be_both_the_order_and_a_condition(catalog: Catalog) -> None:
    found = find(catalog, "resnet50", 'not metrics."val/loss" < 1.5', sort="val/loss")
    losses = [c.metrics["val/loss"] for c in found]
    assert len(losses) == 50
    assert losses == sorted(losses)
    assert losses[0] >= 1.5
