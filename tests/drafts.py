"""For the tests of the database: drafts whose blobs exist in name only, and SQL by hand."""

from __future__ import annotations

import importlib.util
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.blobs import Blob
from registry.blobs.blob import fresh
from registry.catalog import Draft
from registry.records import Checkpoint, File, RunRecord, RunRef
from registry.signature import Signature, TensorSpec
from registry.values import CheckpointId, FrozenMap, digest_of, metrics_of, now

SIGNATURE = Signature(
    (
        TensorSpec("fc.weight", "float32", (10, 4), "parameter"),
        TensorSpec("fc.bias", "float32", (10,), "parameter"),
    )
)


class _Hand:
    """A server's connection that takes SQLite's placeholders."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str, values: Sequence[object] = ()) -> Any:
        """Run a statement."""
        if sql == "PRAGMA foreign_keys = OFF":
            sql = "SET session_replication_role = replica"
        if sql.startswith("PRAGMA"):
            return None
        return self.connection.execute(sql.replace("%", "%%").replace("?", "%s"), values or None)

    def executescript(self, script: str) -> None:
        """Run several statements; none has a semicolon inside."""
        for sql in script.split("; "):
            self.execute(sql)


def refusals() -> tuple[type[Exception], ...]:
    """Return what a database raises for a row that breaks a constraint, or is of a wrong type."""
    if importlib.util.find_spec("psycopg") is None:
        return (sqlite3.IntegrityError,)
    from psycopg.errors import DataError, IntegrityError, SyntaxErrorOrAccessRuleViolation

    return (sqlite3.IntegrityError, IntegrityError, DataError, SyntaxErrorOrAccessRuleViolation)


@contextmanager
def by_hand(path: Path | str) -> Iterator[Any]:
    """Lend a connection as a person would open it, closed and committed afterwards.

    Args:
        path: SQLite's file, or a server's URL.
    """
    if isinstance(path, str):
        import psycopg

        with psycopg.connect(path.replace("+psycopg", "")) as server:
            yield _Hand(server)
        return
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def held(_: Blob) -> bool:
    """Say of every blob that the store holds it."""
    return True


def draft(
    model: str = "net",
    *,
    acc: float | None = None,
    metrics: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    content: str | None = None,
    run: RunRecord | None = None,
    push: bool = False,
    signature: Signature = SIGNATURE,
    probe: str | None = None,
    **facts: Any,
) -> Draft:
    """Return a draft of a checkpoint with one file.

    Args:
        content: what stands for the file's bytes; by default they are like no others.
        push: as `push` drafts it: the same content has the same facts digest, and twins are sought.
        facts: other fields of Checkpoint.
    """
    content = secrets.token_hex(8) if content is None else content
    blob, index = fresh(digest_of(content), 1000), fresh(digest_of(["index", content]), 100)
    fields: dict[str, Any] = {
        "id": CheckpointId(secrets.token_hex(16)),
        "version": 0,
        "model": model,
        "dataset": "digits",
        "run": None if run is None else RunRef(run.id, run.name),
        "metrics": metrics_of(metrics or {}, acc),
        "config": FrozenMap(config or {}),
        "container": "torch-zip",
        "signature": signature.digest,
        "tensors": len(signature.tensors),
        "parameters": signature.parameters,
        "files": (File("model.pt", blob.digest, blob.size_bytes),),
        "origin": "push" if push else "save",
        "created_at": now(),
        "facts_digest": digest_of([model, content, facts.get("dataset"), facts.get("epoch")]),
    }
    return Draft(
        checkpoint=Checkpoint(**(fields | facts)),
        run=run,
        signatures=(signature,),
        files=(("model.pt", blob, index, probe),),
        twin=push,
    )
