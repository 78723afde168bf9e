"""A registry of a million checkpoints: how long each question takes, and how the database finds it.

    python -m benchmarks.million --rows 1000000

Rows are inserted past the catalog, which would take an hour of commits, but through its own
columns, records and seals, so that the catalog reads them like any other.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from registry import refs, where
from registry.blobs import Blob
from registry.blobs.blob import fresh
from registry.catalog import Catalog, Draft
from registry.catalog.rows import columns_of, metric_seal, record_of, seal
from registry.records import Checkpoint, File
from registry.schema import Database
from registry.signature import KeyStyle, Signature, TensorSpec
from registry.topology import Device, Topology
from registry.values import CheckpointId, digest_of, metrics_of, now, time_text

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


def fill(path: Path, rows: int, *, seed: int = 0) -> None:
    """Put checkpoints into an empty registry's database."""
    connection = sqlite3.connect(path, isolation_level=None)
    run = connection.execute
    run("PRAGMA journal_mode = OFF")
    run("PRAGMA synchronous = OFF")
    run("PRAGMA cache_size = -1000000")
    run("BEGIN")
    indexes = run(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
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
    source = _rows(rows, counts, random.Random(seed))
    batch: list[tuple[Any, ...]] = []
    for row in source:
        batch.append(row)
        if len(batch) == 10_000:
            _insert(run, connection, batch)
            batch.clear()
    _insert(run, connection, batch)
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


def _rows(rows: int, counts: list[int], chance: random.Random) -> Iterator[Row]:
    """Yield columns, record, metrics and blob; records are made by text from one template each."""
    templates = [template(name) for name in MODELS]
    for number in range(rows):
        at = 0 if chance.random() < 0.5 else chance.randrange(len(MODELS))
        counts[at] += 1
        version, plain = counts[at], templates[at]
        digest = digest_of(number)
        blob = fresh(digest, 100_000_000)
        metrics = {} if chance.random() < 0.1 else {"acc": round(chance.random(), 4)}
        metrics["val/loss"] = round(chance.random() * 3, 4)
        checkpoint = replace(
            plain,
            id=CheckpointId(f"{chance.getrandbits(128):032x}"),
            version=version,
            dataset=chance.choice(("imagenet", "cifar10")),
            epoch=number % 90,
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
        "version, live) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                c["pk"], name, value, c["created_at"],
                metric_seal(c["id"], name, value, None, c["created_at"]),
                c["model_pk"], c["dataset"], c["version"], c["removed_at"] is None,
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
    """Return what is asked, by name."""

    def newest(model: str | None = None, **how: Any) -> Callable[[], object]:
        return lambda: list(catalog.find(model, limit=50, **how))

    def get(text: str) -> Callable[[], object]:
        return lambda: catalog.get(refs.parse(text))

    return {
        "best by acc": lambda: catalog.best("resnet50", dataset="imagenet"),
        "best by val/loss": lambda: catalog.best(
            "resnet50", dataset="cifar10", metric="val/loss", mode="min"
        ),
        "latest": lambda: catalog.latest("resnet50", dataset="imagenet"),
        "highest version": get("resnet50"),
        "by version": get(some.ref),
        "by id prefix": get(some.id[:12]),
        "newest 50": newest(),
        "newest 50 of a model": newest("resnet50"),
        "newest 50 of a dataset": newest("resnet50", dataset="imagenet"),
        "50 best by acc": newest("resnet50", sort="-acc"),
        "50 least val/loss of a dataset": newest("resnet50", dataset="imagenet", sort="val/loss"),
        "newest 50 with acc > 0.9": newest("resnet50", where=where.parse("acc > 0.9")),
        "newest 50 of ddp, wide": newest(where=where.parse('strategy == "ddp" and epoch < 50')),
        "count of a model": lambda: catalog.count("resnet50"),
        "count of all": lambda: catalog.count(),
        "models": lambda: catalog.models(),
    }


def draft(model: str, number: int) -> Draft:
    """Return a draft of a new checkpoint."""
    digest, index = digest_of(["new", number, secrets.token_hex(8)]), digest_of(["index", number])
    blob = fresh(digest, 100_000_000)
    checkpoint = replace(
        template(model),
        id=CheckpointId(secrets.token_hex(16)),
        version=0,
        files=(File("model.pt", digest, 100_000_000),),
        created_at=now(),
        facts_digest=digest,
    )
    files = (("model.pt", blob, fresh(index, 1000), digest),)
    return Draft(checkpoint=checkpoint, signatures=(SIGNATURE,), files=files)


def median_ms(call: Callable[[], object], times: int) -> float:
    """Return the median time of a call that was made once before."""
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Make the registry (or take the one that is there) and print the table and the plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--at", type=Path, help="a folder to keep it in; default: a temporary one")
    parser.add_argument("--plans", action="store_true", help="print the plans too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.at or Path(temporary)
        path = folder / "registry.db"
        if not path.exists():
            began = time.perf_counter()
            Database.create(path)
            fill(path, options.rows)
            taken = time.perf_counter() - began
            print(
                f"made {options.rows:,} checkpoints in {taken:.1f} s "
                f"({path.stat().st_size / 1e6:,.0f} MB)",
                file=sys.stderr,
            )
        report(path, plans=options.plans)


def report(path: Path, *, plans: bool) -> None:
    """Print what each question takes."""
    catalog = Catalog(Database.open(path))
    print(f"{catalog.count(include_removed=True):,} checkpoints\n")
    asked = questions(catalog, catalog.latest("gpt/small", dataset="imagenet"))
    for name, call in asked.items():
        print(f"{name:32} {median_ms(call, 9):9.2f} ms")
    numbers = iter(range(1_000_000))
    adding = median_ms(
        lambda: catalog.add(draft("resnet50", next(numbers)), lambda _: True), times=9
    )
    print(f"{'add (durable)':32} {adding:9.2f} ms")
    if plans:
        for name, call in asked.items():
            print(f"\n{name}")
            for step in dict.fromkeys(explain(path, call)):
                print(f"    {step}")


if __name__ == "__main__":
    main()
