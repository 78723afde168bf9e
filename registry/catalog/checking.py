"""What verify asks of the database: does it hold together, and is every row what was written.

Law: a row that can't be read is a finding like another, never the end of the search; nothing is
written. A page of checkpoints is one short read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from .. import dialects
from ..blobs import Blob
from ..errors import CkregError
from ..records import Checkpoint, facts_of
from ..signature import Signature
from ..tables import (
    alias_moves,
    aliases,
    blobs,
    checkpoints,
    files,
    metrics,
    models,
    records,
    runs,
    signatures,
)
from ..values import CheckpointId, Digest, label
from .rows import fetch, run_of
from .settling import blob_of
from .wholes import whole


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that is not as it was written.

    Attributes:
        where: the table, and which row of it.
        id: the checkpoint whose rows they are, where that is known.
    """

    what: str
    where: str
    id: CheckpointId | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """One checkpoint's rows, looked at.

    Attributes:
        record: its whole record, or None where the rows are too damaged to tell.
        newest: whether it has its model's highest version: its record tells the model's monitor.
    """

    pk: int
    id: CheckpointId
    ref: str
    wrong: tuple[Wrong, ...]
    record: dict[str, Any] | None
    newest: bool


def integrity(connection: Connection) -> list[str]:
    """Return what the database itself finds wrong: pages, indexes, constraints, references."""
    return dialects.integrity(connection)


def page(connection: Connection, after: int, size: int) -> list[Checked]:
    """Return the next checkpoints by key, removed ones too, each row checked."""
    rows = connection.execute(
        select(checkpoints, models.c.name.label("model"), models.c.versions, records.c.record)
        .outerjoin(models, models.c.pk == checkpoints.c.model_pk)
        .outerjoin(records, records.c.checkpoint_pk == checkpoints.c.pk)
        .where(checkpoints.c.pk > after)
        .order_by(checkpoints.c.pk)
        .limit(size)
    ).all()
    return [_checked(connection, row) for row in rows]


def one(connection: Connection, id: CheckpointId) -> Checked:
    """Return one checkpoint, its rows checked."""
    row = connection.execute(
        select(checkpoints, models.c.name.label("model"), models.c.versions, records.c.record)
        .outerjoin(models, models.c.pk == checkpoints.c.model_pk)
        .outerjoin(records, records.c.checkpoint_pk == checkpoints.c.pk)
        .where(checkpoints.c.id == id)
    ).one()
    return _checked(connection, row)


def _checked(connection: Connection, row: Row[Any]) -> Checked:
    id, ref = CheckpointId(str(row.id)), f"{row.model}@v{row.version}"
    try:
        said = list(_wrong_in(connection, row))
        record = whole(connection, row.id)
    except (CkregError, ValueError, TypeError, KeyError) as error:
        said, record = [error.message if isinstance(error, CkregError) else str(error)], None
    where = f"checkpoints, pk {row.pk}"
    wrong = tuple(Wrong(text, where, id) for text in said)
    return Checked(row.pk, id, ref, wrong, record, row.version == row.versions)


def _wrong_in(connection: Connection, row: Row[Any]) -> Iterator[str]:
    checkpoint = fetch(connection, [row.pk])[0]
    first = Checkpoint.from_dict(json.loads(row.record))
    found = facts_of(first)
    if found != row.facts_digest:
        yield f"its facts have the digest {found}, and {row.facts_digest} was recorded"
    there = {
        f.name: (f.digest, f.size_bytes)
        for f in connection.execute(
            select(files.c.name, files.c.digest, blobs.c.size_bytes)
            .outerjoin(blobs, blobs.c.digest == files.c.digest)
            .where(files.c.checkpoint_pk == row.pk)
        )
    }
    said = {f.name: (f.digest, f.size_bytes) for f in checkpoint.files}
    if row.collected_at is None and there != said:
        differ = sorted(name for name, _ in there.items() ^ said.items())
        yield f"its files aren't those that were recorded: {', '.join(dict.fromkeys(differ))}"
    if row.collected_at is not None and there:
        yield "gc took its files, and rows of them are there"
    repeated = (row.model_pk, row.dataset, row.run_pk, row.version, row.removed_at is None)
    for m in connection.execute(select(metrics).where(metrics.c.checkpoint_pk == row.pk)):
        if (m.model_pk, m.dataset, m.run_pk, m.version, m.live) != repeated:
            yield f"the row of its metric {m.name!r} repeats other facts than its own"


# --- what isn't one checkpoint's ------------------------------------------------------------------


def rest(connection: Connection) -> Iterator[Wrong]:
    """Yield what is wrong with models, runs, signatures, blobs and aliases."""
    yield from _models(connection)
    for row in connection.execute(
        select(runs, models.c.name.label("model")).outerjoin(models, models.c.pk == runs.c.model_pk)
    ):
        yield from _fails(f"runs, pk {row.pk}", lambda row=row: run_of(row))
    for row in connection.execute(select(signatures)):
        yield from _fails(f"signatures, {row.digest}", lambda row=row: _check_signature(row))
    for row in connection.execute(select(blobs)):
        yield from _fails(f"blobs, {row.digest}", lambda row=row: blob_of(row))
    yield from _aliases(connection)


def _fails(where: str, look: Any) -> Iterator[Wrong]:
    try:
        look()
    except CkregError as error:
        yield Wrong(error.message, where)
    except (ValueError, TypeError) as error:
        yield Wrong(str(error), where)


def _check_signature(row: Row[Any]) -> None:
    found = Signature.from_json(row.tensors)
    if found.digest != row.digest or len(found.tensors) != row.tensor_count:
        raise ValueError("its tensors are not those that its digest is of")


def _models(connection: Connection) -> Iterator[Wrong]:
    live = func.count(checkpoints.c.pk) - func.count(checkpoints.c.removed_at)
    rows = connection.execute(
        select(
            models,
            func.count(checkpoints.c.pk).label("amount"),
            func.coalesce(func.max(checkpoints.c.version), 0).label("highest"),
            live.label("alive"),
        )
        .outerjoin(checkpoints, checkpoints.c.model_pk == models.c.pk)
        .group_by(models.c.pk)
    )
    for row in rows:
        where = f"models, {row.name!r}"
        if not row.versions == row.highest == row.amount:
            yield Wrong(
                f"{row.versions} versions were counted, {row.amount} are there, and the highest "
                f"is v{row.highest}",
                where,
            )
        if row.live != row.alive:
            yield Wrong(f"{row.live} live checkpoints were counted, {row.alive} are there", where)


def _aliases(connection: Connection) -> Iterator[Wrong]:
    last: dict[tuple[int, str], int | None] = {}
    for move in connection.execute(select(alias_moves).order_by(alias_moves.c.pk)):
        last[move.model_pk, move.name] = move.to_pk
    rows = connection.execute(
        select(
            aliases,
            checkpoints.c.model_pk.label("of"),
            checkpoints.c.removed_at,
            models.c.name.label("model"),
        )
        .outerjoin(checkpoints, checkpoints.c.pk == aliases.c.checkpoint_pk)
        .outerjoin(models, models.c.pk == aliases.c.model_pk)
    ).all()
    for row in rows:
        where = f"aliases, {row.model}@{row.name}"
        yield from _fails(where, lambda row=row: label(row.name, "alias"))
        if row.of != row.model_pk:
            yield Wrong("it points at a checkpoint of another model", where)
        elif row.removed_at is not None:
            yield Wrong("it points at a checkpoint that was removed", where)
        if last.pop((row.model_pk, row.name), None) != row.checkpoint_pk:
            yield Wrong("it doesn't point where its last move went", where)
    for (model_pk, name), to in last.items():
        if to is not None:
            yield Wrong(
                "its last move went to a checkpoint, and it is gone",
                f"aliases, {name!r} of the model with pk {model_pk}",
            )


# --- bytes ----------------------------------------------------------------------------------------


def indexes_in(connection: Connection, shard: str) -> dict[Digest, Blob]:
    """Return the blobs of indexes, by the digest of the file that each is of, in one folder."""
    low, high = f"blake3:{shard}", f"blake3:{shard}g"
    rows = connection.execute(
        select(files.c.digest.label("of"), blobs)
        .join(blobs, blobs.c.digest == files.c.index_digest)
        .where(files.c.digest >= low, files.c.digest < high)
        .distinct()
    )
    return {Digest(row.of): blob_of(row) for row in rows}


def refs_of(connection: Connection, digest: Digest) -> list[str]:
    """Return the checkpoints that need some bytes, removed ones too."""
    rows = connection.execute(
        select(models.c.name, checkpoints.c.version)
        .join(checkpoints, checkpoints.c.model_pk == models.c.pk)
        .join(files, files.c.checkpoint_pk == checkpoints.c.pk)
        .where((files.c.digest == digest) | (files.c.index_digest == digest))
        .order_by(models.c.name, checkpoints.c.version)
    )
    return [f"{row.name}@v{row.version}" for row in rows]
