"""A registry of a million checkpoints: how long each question takes, and how the database finds it.

    python -m benchmarks --only million --rows 1000000 --at FOLDER
    python -m benchmarks.million --at FOLDER        (the plans)

Rows are inserted past the catalog, which would take an hour of commits, but through its own
columns, records and seals, so that the catalog reads them like any other.
"""

from __future__ import annotations

import argparse
import math
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Engine, event

from registry import Registry, refs, where
from registry.blobs import Blob
from registry.blobs.blob import fresh
from registry.catalog import Catalog
from registry.catalog.rows import columns_of, metric_seal, record_of, run_columns, seal
from registry.records import Checkpoint, File, RunRecord, RunRef
from registry.schema import Database
from registry.signature import KeyStyle, Signature, TensorSpec
from registry.topology import Device, Topology
from registry.values import CheckpointId, digest_of, metrics_of, time_text

from . import timing

MODELS = ("resnet50", "vision/vit-b", "gpt/small", "gpt/medium", "unet")
"""Half of all rows are resnet50's."""

SIGNATURE = Signature(
    tuple(TensorSpec(f"layer{i}.weight", "float32", (64, 64), "parameter") for i in range(20))
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def template(model: str) -> Checkpoint:
    """Return a checkpoint as rich as a real one; the rows differ from it in what is searched."""
    digest = digest_of("template")
    return Checkpoint(
        id=CheckpointId("0" * 32),
        model=model,
        version=1,
        dataset="imagenet",
        epoch=0,
        metrics=metrics_of({"val/loss": 0.5}, 0.5),
        key_style=KeyStyle.parse("module."),
        topology=Topology(
            strategy="ddp",
            world_size=4,
            device_type="cuda",
            device_count=4,
            devices=tuple(
                Device(i, "cuda", "NVIDIA A100-SXM4-80GB", 85_094_825_984) for i in range(4)
            ),
            hostname="node17",
            torch_version="2.13.0",
            cuda_version="13.0",
            python_version="3.11.7",
        ),
        container="torch-zip",
        signature=SIGNATURE.digest,
        tensors=20,
        parameters=SIGNATURE.parameters,
        files=(File("model.pt", digest, 100_000_000),),
        created_at=START,
        facts_digest=digest,
    )


# --- filling --------------------------------------------------------------------------------------


GROWN = ("ix_blobs_probe", "ix_files_digest")
"""Indexes by digests, which are filled row by row as in life: built at the end they would be full
to the last byte, and each push to such a one splits pages, which at a thousand are split already.
"""


EPOCHS = 90
"""Of one run: as many checkpoints of one model and dataset follow each other."""


def fill(path: Path, rows: int, *, seed: int = 0, in_runs: bool = False) -> None:
    """Put checkpoints into an empty registry's database.

    Args:
        in_runs: each is an epoch of a run, and its accuracy grows with it.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    run = connection.execute
    run("PRAGMA journal_mode = OFF")
    run("PRAGMA synchronous = OFF")
    run("PRAGMA cache_size = -1000000")
    run("BEGIN")
    indexes = run(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL "
        f"AND name NOT IN ({', '.join('?' * len(GROWN))})",
        GROWN,
    ).fetchall()
    for name, _ in indexes:
        run(f"DROP INDEX {name}")
    counts = [0] * len(MODELS)
    made = time_text(START)
    for name in MODELS:
        run(
            "INSERT INTO models (name, versions, live, metric, mode, created_at) "
            "VALUES (?, 0, 0, 'acc', 'max', ?)",
            (name, made),
        )
    run(
        "INSERT INTO signatures VALUES (?, ?, 20, ?, ?)",
        (SIGNATURE.digest, SIGNATURE.to_json(), SIGNATURE.parameters, 20 * 64 * 64 * 4),
    )
    runs: dict[str, tuple[int, RunRecord]] = {}
    source = _rows(rows, counts, random.Random(seed), runs if in_runs else None)
    batch: list[tuple[Any, ...]] = []
    for row in source:
        batch.append(row)
        if len(batch) == 10_000:
            _insert(run, connection, batch)
            batch.clear()
    _insert(run, connection, batch)
    for pk, record in runs.values():
        columns = run_columns(record) | {"pk": pk, "model_pk": MODELS.index(record.model) + 1}
        run(
            f"INSERT INTO runs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            tuple(columns.values()),
        )
    for number, count in enumerate(counts, 1):
        run(
            "UPDATE models SET versions = ?, live = (SELECT count(*) FROM checkpoints "
            "WHERE model_pk = ? AND removed_at IS NULL) WHERE pk = ?",
            (count, number, number),
        )
    for _, sql in indexes:
        run(sql)
    run("COMMIT")
    connection.close()


Row = tuple[dict[str, Any], str, list[tuple[str, float]], Blob]


def _rows(
    rows: int,
    counts: list[int],
    chance: random.Random,
    runs: dict[str, tuple[int, RunRecord]] | None,
) -> Iterator[Row]:
    """Yield columns, record, metrics and blob; records are made by text from one template each."""
    templates = [template(name) for name in MODELS]
    saved: Counter[tuple[int, str]] = Counter()
    for number in range(rows):
        at = 0 if chance.random() < 0.5 else chance.randrange(len(MODELS))
        counts[at] += 1
        version, plain = counts[at], templates[at]
        digest = digest_of(number)
        blob = fresh(digest, 100_000_000)
        metrics = {} if chance.random() < 0.1 else {"acc": round(chance.random(), 4)}
        metrics["val/loss"] = round(chance.random() * 3, 4)
        dataset, epoch, of = chance.choice(("imagenet", "cifar10")), number % EPOCHS, None
        if runs is not None:
            turn, epoch = divmod(saved[at, dataset], EPOCHS)
            saved[at, dataset] += 1
            name = f"{dataset}-{turn}"
            id = digest_of([at, name]).removeprefix("blake3:")[:32]
            record = RunRecord(id=id, name=name, model=plain.model, dataset=dataset,
                               created_at=START)  # fmt: skip
            of = runs.setdefault(id, (len(runs) + 1, record))
            rise = 1 - 0.6 * math.exp(-epoch / (12 + turn % 9))
            metrics = {
                "acc": round(min(0.99, rise * (0.9 + chance.random() / 20)), 4),
                "val/loss": round(2.4 * (1.05 - rise) + chance.random() / 10, 4),
            }
        checkpoint = replace(
            plain,
            id=CheckpointId(f"{chance.getrandbits(128):032x}"),
            version=version,
            dataset=dataset,
            epoch=epoch,
            run=None if of is None else RunRef(of[1].id, of[1].name),
            metrics=metrics_of(metrics),
            files=(File("model.pt", digest, 100_000_000),),
            created_at=START + timedelta(seconds=10 * number),
            removed_at=None,
            facts_digest=digest,
        )
        columns = columns_of(checkpoint) | {
            "pk": number + 1,
            "model_pk": at + 1,
            "acc": checkpoint.acc,
            "run_pk": None if of is None else of[0],
            "removed_at": time_text(START) if chance.random() < 0.1 else None,
        }
        yield columns, record_of(checkpoint), list(metrics.items()), blob


def _insert(
    run: Callable[..., sqlite3.Cursor], connection: sqlite3.Connection, batch: list[Any]
) -> None:
    if not batch:
        return
    names = list(batch[0][0])
    many = connection.executemany
    many(
        f"INSERT INTO checkpoints ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
        [tuple(columns.values()) for columns, *_ in batch],
    )
    many(
        "INSERT INTO records VALUES (?, ?, ?)",
        [(columns["pk"], record, seal(record)) for columns, record, *_ in batch],
    )
    many(
        "INSERT INTO blobs VALUES (?, ?, ?, ?, ?)",
        [(b.digest, b.name, b.size_bytes, b.digest, time_text(START)) for *_, b in batch],
    )
    many(
        "INSERT INTO files VALUES (?, 'model.pt', ?, NULL)",
        [(columns["pk"], blob.digest) for columns, _, _, blob in batch],
    )
    many(
        "INSERT INTO metrics (checkpoint_pk, name, value, recorded_at, seal, model_pk, dataset, "
        "run_pk, version, live) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                c["pk"], name, value, c["created_at"],
                metric_seal(c["id"], name, value, None, c["created_at"]),
                c["model_pk"], c["dataset"], c["run_pk"], c["version"], c["removed_at"] is None,
            )
            for c, _, metrics, _ in batch
            for name, value in metrics
        ],
    )  # fmt: skip


# --- asking ---------------------------------------------------------------------------------------


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Collect the SELECTs that run inside."""
    found: list[tuple[str, Any]] = []

    def note(
        _connection: object, _cursor: object, sql: str, values: Any, _context: object, _many: bool
    ) -> None:
        if sql.lstrip().upper().startswith(("SELECT", "WITH")):
            found.append((sql, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def explain(path: Path, call: Callable[[], object]) -> list[str]:
    """Return the steps of the query plans of everything that a call asks the database."""
    with statements() as asked:
        call()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [
            step[3]
            for sql, values in asked
            for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        ]
    finally:
        connection.close()


def questions(catalog: Catalog, some: Checkpoint) -> dict[str, Callable[[], object]]:
    """Return the questions for one checkpoint, and the counts, by name."""

    def get(text: str) -> Callable[[], object]:
        return lambda: catalog.get(refs.parse(text))

    return {
        "best by acc": lambda: catalog.best("resnet50", dataset="imagenet"),
        "best by val/loss": lambda: catalog.best(
            "resnet50", dataset="cifar10", metric="val/loss", mode="min"
        ),
        "latest": lambda: catalog.latest("resnet50", dataset="imagenet"),
        "get NAME": get("resnet50"),
        "get NAME@vN": get(some.ref),
        "get by 12 digits of an id": get(some.id[:12]),
        "count of a model": lambda: catalog.count("resnet50"),
        "count of all": lambda: catalog.count(),
        "models": lambda: catalog.models(),
    }


LISTS: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "newest 50": (None, "", {}),
    "newest 50 of a model": ("resnet50", "", {}),
    "newest 50 of a dataset": ("resnet50", "", {"dataset": "imagenet"}),
    "50 best by acc": ("resnet50", "", {"sort": "-acc"}),
    "50 least val/loss": ("resnet50", "", {"sort": "val/loss"}),
    "50 least val/loss of a dataset": (
        "resnet50", "", {"sort": "val/loss", "dataset": "imagenet"}
    ),
    "newest 50 with acc > 0.9 (a tenth)": ("resnet50", "acc > 0.9", {}),
    "newest 50 with acc > 0.995": ("resnet50", "acc > 0.995", {}),
    "newest with acc > 0.99999": ("resnet50", "acc > 0.99999", {}),
    "newest 50 of all models with acc > 0.9": (None, "acc > 0.9", {}),
    "newest of all models with acc > 0.99999": (None, "acc > 0.99999", {}),
    "newest 50 with epoch == 3": ("resnet50", "epoch == 3", {}),
    "newest 50 with a val/loss < 0.3": ("resnet50", 'metrics."val/loss" < 0.3', {}),
    "newest with a val/loss < 0.001": ("resnet50", 'metrics."val/loss" < 0.001', {}),
    "newest 50 with acc > 0.9 of a dataset": (
        "resnet50", 'acc > 0.9 and dataset == "imagenet"', {}
    ),
    "newest 50 of ddp with epoch < 50": (None, 'strategy == "ddp" and epoch < 50', {}),
    "newest with a tag": (None, 'tags == "good"', {}),
}  # fmt: skip
"""The lists that an index serves, by name: model, where, and the other words of find."""

SLOW: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "no index: strategy == \"tp\" (none is)": ("resnet50", 'strategy == "tp"', {}),
    "no index: config.lr > 1 (none is)": ("resnet50", "config.lr > 1", {}),
    "no index: -acc of all models": (None, "", {"sort": "-acc"}),
    "three conditions, each frequent": (
        "resnet50", 'acc > 0.9 and epoch == 3 and metrics."val/loss" < 0.3', {}
    ),
}  # fmt: skip
"""Those that none serves: docs/queries.md says why."""


def lists(catalog: Catalog, named: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Return the questions for a page of a list, by name."""

    def ask(model: str | None, text: str, how: dict[str, Any]) -> Callable[[], object]:
        expression = where.parse(text) if text else None
        return lambda: list(catalog.find(model, where=expression, limit=50, **how))

    return {name: ask(*words) for name, words in named.items()}


# --- measuring ------------------------------------------------------------------------------------


def filled(folder: Path, rows: int, *, in_runs: bool = False) -> Registry:
    """Return the registry of so many checkpoints in a folder, made unless it is there."""
    if not (folder / "registry.db").exists():
        began = time.perf_counter()
        Registry.create(folder).close()
        fill(folder / "registry.db", rows, in_runs=in_runs)
        taken = time.perf_counter() - began
        print(f"  made {rows:,} checkpoints in {taken:.0f} s", file=sys.stderr, flush=True)
    return Registry.open(folder)


def cpu_ms(ask: Callable[[], object], times: int = 5) -> float:
    """Return the processor's share of a call, which other programs can't make longer."""
    began = time.process_time()
    for _ in range(times):
        ask()
    return 1000 * (time.process_time() - began) / times


def million(folder: Path, count: int, *, rows: int, at: Path | None) -> Iterator[timing.Row]:
    """Ask many checkpoints and a thousand the same, by turns; then push to both.

    Args:
        at: where the many are kept, or are already.
    """
    places = (at or folder / "many", folder / "thousand")
    many, few = filled(places[0], rows), filled(places[1], 1_000)
    catalogs = [Catalog(Database.open(place / "registry.db")) for place in places]
    size = f"{catalogs[0].count(include_removed=True):,}"
    latest = [catalog.latest("gpt/small", dataset="imagenet") for catalog in catalogs]
    asked = [questions(*of) for of in zip(catalogs, latest, strict=True)]
    for name, ask in asked[0].items():
        row = timing.Row(f"{name}, of {size}", "the same of a thousand", 1.5)
        timing.rounds(row, ask, asked[1][name], 8 * count)
        taken = statistics.median(row.times)
        row.note = f"{1000 * taken:.2f} ms ({cpu_ms(ask):.2f} of CPU)"
        if name.startswith(("best", "latest", "get")) and taken > 0.002:
            row.worse = "more than 2 ms"
        yield row
    pages, same = (lists(catalog, LISTS) for catalog in catalogs)
    for name, ask in pages.items():
        both = timing.rounds(timing.Row("", "", None), ask, same[name], 2 * count)
        row = timing.Row(f"{name}, of {size}", "25 ms", 1.0, both.times, [0.025] * len(both.times))
        row.note = f"{1000 * statistics.median(both.times):.1f} ms ({cpu_ms(ask):.1f} of CPU); "
        row.note += f"of a thousand {1000 * statistics.median(both.others):.1f} ms"
        yield row
    pages, same = (lists(catalog, SLOW) for catalog in catalogs)
    for name, ask in pages.items():
        row = timing.Row(f"{name}, of {size}", "the same of a thousand", None)
        timing.rounds(row, ask, same[name], max(1, count // 2))
        row.note = f"{1000 * statistics.median(row.times):.0f} ms ({cpu_ms(ask):.0f} of CPU)"
        yield row
    yield _pushes(folder, many, few, count, size)
    many.close()
    few.close()


def _pushes(folder: Path, many: Registry, few: Registry, count: int, size: str) -> timing.Row:
    path = folder / "small.pt"

    def write() -> None:
        torch.save({"state_dict": {"w": torch.rand(1000)}}, path)
        timing.settle()

    row = timing.Row(f"push of 4 kB, at {size}", "the same at a thousand", 1.1)
    timing.rounds(
        row, lambda: many.push(path, model="resnet50"), lambda: few.push(path, model="resnet50"),
        8 * count, before=write,
    )  # fmt: skip
    row.note = f"{1000 * statistics.median(row.times):.1f} ms"
    return row


def main() -> None:
    """Print the plan of each question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--at", type=Path, help="of a registry that is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.at or Path(temporary) / "registry"
        filled(folder, options.rows).close()
        catalog = Catalog(Database.open(folder / "registry.db"))
        asked = questions(catalog, catalog.latest("gpt/small", dataset="imagenet"))
        for name, call in (asked | lists(catalog, LISTS | SLOW)).items():
            print(f"\n{name}")
            for step in dict.fromkeys(explain(folder / "registry.db", call)):
                print(f"    {step}")


if __name__ == "__main__":
    main()
