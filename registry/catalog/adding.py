"""The one transaction that makes a checkpoint.

Law: the id decides first (a repeated add is the same add), then the model's row is locked, then a
live twin is looked for, and only then is the version counted up, so that versions have no gaps and
no duplicates. Every blob that a row refers to was seen in the store inside this transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, literal_column, select, true, update

from ..blobs import Blob
from ..errors import ConflictError
from ..records import (
    RECORD_LIMIT,
    CarriedRun,
    Checkpoint,
    RunRecord,
    RunRef,
    facts_of,
    small,
)
from ..signature import Signature
from ..tables import checkpoints, files, metrics, models, records, runs, signatures
from ..values import Digest, canonical_json, digest_of, now, time_text
from .labels import add_tags, left_by, point_alias
from .naming import find_model
from .rows import (
    columns_of,
    fetch,
    metric_seal,
    record_of,
    run_columns,
    run_of,
    seal,
    storable,
    weights_bytes,
)
from .scopes import of_dataset, shown
from .settling import NewFile, settle


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to become a checkpoint.

    Attributes:
        checkpoint: with version 0; id and created_at are the caller's.
        run: its run, inserted if it is new.
        signatures: those that the checkpoint names.
        files: all of its files, their blobs durable.
        twin: return the live twin of a push instead of a new version.
        borrowed: names of blobs that are not the draft's own, but the store's already.
        damaged: digests whose stored bytes were found damaged: ours replace them.
        actor: who does it; the checkpoint's own author may be whoever saved the file long ago.
    """

    checkpoint: Checkpoint
    run: RunRecord | None = None
    signatures: tuple[Signature, ...] = ()
    files: tuple[NewFile, ...] = ()
    twin: bool = False
    borrowed: frozenset[str] = frozenset()
    damaged: frozenset[Digest] = frozenset()
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add` did.

    Attributes:
        existing: it was there already: a twin, or this very id.
        unused: blobs of the draft that no row refers to; drop them.
        moved: the checkpoints that an alias was taken from, as they are now.
        warnings: what a person should know.
    """

    checkpoint: Checkpoint
    existing: bool = False
    unused: tuple[Blob, ...] = ()
    moved: tuple[Checkpoint, ...] = ()
    warnings: tuple[str, ...] = ()


def add(connection: Connection, draft: Draft, holds: Callable[[Blob], bool]) -> Added:
    """Make a checkpoint of a draft, or find the one that it repeats."""
    _check(draft)
    checkpoint, at = draft.checkpoint, time_text(now())
    pk = connection.scalar(select(checkpoints.c.pk).where(checkpoints.c.id == checkpoint.id))
    if pk is not None:
        unused = settle(connection, draft, holds, create=False, at=at)
        return Added(
            checkpoint=fetch(connection, [pk])[0],
            existing=True,
            unused=unused,
            moved=tuple(fetch(connection, left_by(connection, pk))),
        )
    model = lock_model(connection, checkpoint.model, at)
    draft, warnings = _settle_run(connection, draft, model.pk)
    checkpoint = draft.checkpoint
    twin = live_twin(connection, checkpoint.facts_digest) if draft.twin else None
    unused = settle(connection, draft, holds, create=twin is None, at=at)
    if twin is None:
        checkpoint = replace(
            checkpoint,
            version=model.versions + 1,
            tags=tuple(sorted(set(checkpoint.tags))),
            aliases=tuple(sorted(set(checkpoint.aliases))),
        )
        warnings += scales(connection, model.pk, checkpoint, checkpoint.acc)
        pk = _insert(connection, replace(draft, checkpoint=checkpoint), model)
    else:
        pk = twin
    author = draft.actor
    add_tags(connection, pk, checkpoint.tags, author, at)
    left = {
        point_alias(connection, model.pk, alias, pk, author, at) for alias in checkpoint.aliases
    }
    return Added(
        checkpoint=checkpoint if twin is None else fetch(connection, [twin])[0],
        existing=twin is not None,
        unused=unused,
        moved=tuple(fetch(connection, sorted(k for k in left if k is not None and k != pk))),
        warnings=warnings,
    )


def _check(draft: Draft) -> None:
    checkpoint = draft.checkpoint
    if checkpoint.version != 0:
        raise ValueError(f"a draft's version is counted here, and must be 0: {checkpoint.version}")
    if not draft.files or {(f.name, f.digest) for f in checkpoint.files} != {
        (name, blob.digest) for name, blob, _, _ in draft.files
    }:
        raise ValueError("the draft's files and its checkpoint's are not the same")
    # One row that can't be read back would take every list with it.
    plain = small(checkpoint.to_dict(), "the checkpoint's record", RECORD_LIMIT)
    try:
        same = Checkpoint.from_dict(json.loads(canonical_json(plain))) == checkpoint
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the checkpoint's record can't be read back: {error}") from error
    if not same:
        raise ValueError("the checkpoint's record reads back as another one")


def lock_model(connection: Connection, name: str, at: str) -> Row[Any]:
    """Return a model's row, locked; made if it is new."""
    row = find_model(connection, name, lock=True)
    if row is None:
        connection.execute(
            insert(models).values(
                name=name, versions=0, live=0, metric="acc", mode="max", created_at=at
            )
        )
        row = find_model(connection, name, lock=True)
        assert row is not None
    return row


def live_twin(connection: Connection, facts_digest: str) -> int | None:
    """Return the key of the live push with the same facts, or None."""
    found: int | None = connection.scalar(
        select(checkpoints.c.pk).where(
            checkpoints.c.facts_digest == facts_digest,
            # Spelled out as in the partial index, which a bound parameter could not use.
            checkpoints.c.origin == literal_column("'push'"),
            checkpoints.c.removed_at.is_(None),
        )
    )
    return found


def _insert(connection: Connection, draft: Draft, model: Row[Any]) -> int:
    """Insert a checkpoint and all that hangs on it but its labels, and return its key."""
    checkpoint = draft.checkpoint
    connection.execute(
        update(models)
        .where(models.c.pk == model.pk)
        .values(versions=models.c.versions + 1, live=models.c.live + 1)
    )
    run_pk = None if checkpoint.run is None else _run_pk(connection, draft, model.pk)
    _add_signatures(connection, draft.signatures)
    pk = connection.scalar(
        insert(checkpoints)
        .values(
            columns_of(checkpoint) | {"model_pk": model.pk, "run_pk": run_pk, "acc": checkpoint.acc}
        )
        .returning(checkpoints.c.pk)
    )
    assert pk is not None
    pk = int(pk)
    record = record_of(checkpoint)
    connection.execute(insert(records).values(checkpoint_pk=pk, record=record, seal=seal(record)))
    connection.execute(
        insert(files),
        [
            {
                "checkpoint_pk": pk,
                "name": name,
                "digest": blob.digest,
                "index_digest": None if index is None else index.digest,
            }
            for name, blob, index, _ in draft.files
        ],
    )
    add_metrics(
        connection,
        checkpoint,
        checkpoint.metrics,
        keys={"checkpoint_pk": pk, "model_pk": model.pk, "run_pk": run_pk},
        author=draft.actor,
        at=time_text(checkpoint.created_at),
    )
    return pk


def add_metrics(
    connection: Connection,
    checkpoint: Checkpoint,
    values: Mapping[str, float],
    *,
    keys: Mapping[str, int | None],
    author: str | None,
    at: str,
) -> None:
    """Insert metrics of a live checkpoint, with what `best` asks for repeated."""
    author = storable(author)
    rows = [
        {
            **keys,
            "name": name,
            "value": value,
            "author": author,
            "recorded_at": at,
            "seal": metric_seal(checkpoint.id, name, value, author, at),
            "dataset": checkpoint.dataset,
            "version": checkpoint.version,
            "live": True,
        }
        for name, value in values.items()
    ]
    if rows:
        connection.execute(insert(metrics), rows)


# --- runs, signatures -----------------------------------------------------------------------------


def _settle_run(
    connection: Connection, draft: Draft, model_pk: int
) -> tuple[Draft, tuple[str, ...]]:
    """Find a run that came with a file its place here, and return what was changed in words.

    Here its name may be another run's, and then it goes without; even its id may be, and then it
    gets one that follows from what the file says, so that all files of that run meet in it again.
    """
    run, checkpoint = draft.run, draft.checkpoint
    if not isinstance(run, CarriedRun) or checkpoint.run is None:
        return draft, ()
    said: list[str] = []
    row = _run_row(connection, run.id)
    if row is not None and not _is_run(row, run, model_pk):
        other = digest_of([run.id, run.model, run.dataset, run.name]).removeprefix("blake3:")[:32]
        said.append(
            f"the file's run {run.id[:8]} is here a run of another model, dataset or name: its "
            f"checkpoint is of a run of its own, {other[:8]}"
        )
        run = replace(run, id=other)
        row = _run_row(connection, run.id)
    named = None if run.name is None else find_run(connection, model_pk, run.dataset, run.name)
    if (row is not None and row.name != run.name) or (named is not None and named.id != run.id):
        said.append(
            f"the file's run is called {run.name!r}, which is the name of another run of "
            f"{run.model!r} on {shown(run.dataset)} here: it is known as {run.id[:8]} alone"
        )
        run = replace(run, name=None)
    if run is draft.run:
        return draft, ()
    checkpoint = replace(checkpoint, run=RunRef(run.id, run.name))
    checkpoint = replace(checkpoint, facts_digest=facts_of(checkpoint))
    return replace(draft, run=run, checkpoint=checkpoint), tuple(said)


def _run_row(connection: Connection, id: str) -> Row[Any] | None:
    columns: Select[Any] = select(runs.c.pk, runs.c.model_pk, runs.c.dataset, runs.c.name)
    return connection.execute(columns.where(runs.c.id == id)).one_or_none()


def _is_run(row: Row[Any], run: RunRecord, model_pk: int) -> bool:
    """Say whether a row of a run's id is that run; it may have lost its name on the way in."""
    same = (row.model_pk, row.dataset) == (model_pk, run.dataset)
    return same and row.name in (None, run.name)


def _run_pk(connection: Connection, draft: Draft, model_pk: int) -> int:
    checkpoint, run = draft.checkpoint, draft.run
    assert checkpoint.run is not None
    row = _run_row(connection, checkpoint.run.id)
    if row is not None:
        if row.model_pk != model_pk or row.name != checkpoint.run.name:
            raise ConflictError(
                f"the run {checkpoint.run.id[:8]} is of another model, or has another name "
                f"({row.name!r}), than {checkpoint.model!r} and {checkpoint.run.name!r}"
            )
        return int(row.pk)
    if run is None or run.id != checkpoint.run.id:
        raise ValueError(f"the run {checkpoint.run.id} is new, and its record isn't in the draft")
    return insert_run(connection, run, model_pk)


def start_run(connection: Connection, run: RunRecord) -> RunRecord:
    """Record a run before its first save; if one of its name exists, return that one."""
    model = lock_model(connection, run.model, run.to_dict()["created_at"])
    if run.name is not None:
        row = find_run(connection, model.pk, run.dataset, run.name)
        if row is not None:
            return run_of(row)
    if _run_row(connection, run.id) is None:  # else it is this one, done again
        insert_run(connection, run, model.pk)
    return run


def find_run(
    connection: Connection, model_pk: int, dataset: str | None, name: str
) -> Row[Any] | None:
    """Return the row of a named run, with its model's name as `model`."""
    return connection.execute(
        select(runs, models.c.name.label("model"))
        .join(models, models.c.pk == runs.c.model_pk)
        .where(
            runs.c.model_pk == model_pk, of_dataset(runs.c.dataset, dataset), runs.c.name == name
        )
    ).one_or_none()


def insert_run(connection: Connection, run: RunRecord, model_pk: int) -> int:
    """Insert a run and return its key."""
    if run.name is not None and find_run(connection, model_pk, run.dataset, run.name) is not None:
        raise ConflictError(
            f"another process began a run called {run.name!r} of {run.model!r} on "
            f"{shown(run.dataset)} at the same moment",
            hint="run the command again: the same name continues it",
        )
    pk = connection.scalar(
        insert(runs).values(run_columns(run) | {"model_pk": model_pk}).returning(runs.c.pk)
    )
    assert pk is not None
    return int(pk)


def _add_signatures(connection: Connection, found: tuple[Signature, ...]) -> None:
    new = {signature.digest: signature for signature in found}
    if not new:
        return
    known = connection.execute(
        select(signatures.c.digest, signatures.c.parameters).where(signatures.c.digest.in_(new))
    )
    for row in known:
        signature = new.pop(row.digest)
        if row.parameters is None and signature.parameters is not None:
            # A file's reader took them as tensors; a live model tells parameters from buffers.
            connection.execute(
                update(signatures)
                .where(signatures.c.digest == row.digest)
                .values(tensors=signature.to_json(), parameters=signature.parameters)
            )
    if new:
        connection.execute(
            insert(signatures),
            [
                {
                    "digest": digest,
                    "tensors": signature.to_json(),
                    "tensor_count": len(signature.tensors),
                    "parameters": signature.parameters,
                    "size_bytes": weights_bytes(signature),
                }
                for digest, signature in new.items()
            ],
        )


# --- scales ---------------------------------------------------------------------------------------


def scales(
    connection: Connection, model_pk: int, checkpoint: Checkpoint, acc: float | None
) -> tuple[str, ...]:
    """Return a warning when acc is a fraction beside percentages of the same model and dataset."""
    if acc is None or acc <= 0:
        return ()
    value = metrics.c.value
    other = (value > 1,) if acc <= 1 else (value > 0, value <= 1)
    row = connection.execute(
        select(metrics.c.value, metrics.c.version)
        .where(
            metrics.c.model_pk == model_pk,
            metrics.c.name == "acc",
            metrics.c.live == true(),
            of_dataset(metrics.c.dataset, checkpoint.dataset),
            *other,
        )
        .limit(1)
    ).one_or_none()
    if row is None:
        return ()
    text = (
        f"acc is on two scales for {checkpoint.model!r} on {shown(checkpoint.dataset)}: {acc:g} "
        f"here, and {row.value:g} in {checkpoint.model}@v{row.version}; best compares them as they "
        "are"
    )
    return (text,)
