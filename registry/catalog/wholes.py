"""A checkpoint's whole record, as records/<id>.json keeps it, and its rows made of it again.

Law: the record alone gives back every row of its checkpoint: facts, run, metrics, tags, the moves
of aliases, files, signatures, tombstone. It proves itself, by a seal over all of it and by the
digest of its facts, or no row is made of it. Fields are only ever added to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from ..blobs import Blob
from ..errors import DamagedError, NotFoundError
from ..records import Checkpoint, RunRecord, facts_of
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
    tags,
)
from ..values import FORMAT, FrozenMap, canonical_json, digest, digest_of, label, printable
from .adding import insert_run, lock_model
from .rows import (
    columns_of,
    fetch,
    metric_seal,
    moment,
    record_of,
    run_columns,
    run_of,
    seal,
    weights_bytes,
)
from .settling import NewFile, blob_of

SEALED: Final = "seal"


# Made once: building them took most of the time, and each commit asks twice.
_PK: Final[BindParameter[int]] = bindparam("pk")
_OF, _INDEX = blobs.alias("of"), blobs.alias("index")
_BEFORE, _AFTER = checkpoints.alias("before"), checkpoints.alias("after")

_ROW: Final = (
    select(
        checkpoints.c.pk, checkpoints.c.run_pk, checkpoints.c.signature,
        checkpoints.c.raw_signature, checkpoints.c.removed_by, checkpoints.c.collected_at,
        records.c.record, models.c.created_at.label("model_created_at"), models.c.metric,
        models.c.mode,
    )
    .join(models, models.c.pk == checkpoints.c.model_pk)
    .outerjoin(records, records.c.checkpoint_pk == checkpoints.c.pk)
    .where(checkpoints.c.id == bindparam("id"))
)  # fmt: skip
_RUN: Final = (
    select(runs, models.c.name.label("model"))
    .join(models, models.c.pk == runs.c.model_pk)
    .where(runs.c.pk == _PK)
)
_TAGS: Final = select(tags).where(tags.c.checkpoint_pk == _PK).order_by(tags.c.name)
_METRICS: Final = select(metrics).where(metrics.c.checkpoint_pk == _PK).order_by(metrics.c.name)
_SIGNATURES: Final = (
    select(signatures)
    .where(signatures.c.digest.in_([bindparam("signature"), bindparam("raw")]))
    .order_by(signatures.c.digest)
)
_FILES: Final = (
    select(
        files.c.name.label("file"),
        _OF.c.digest, _OF.c.size_bytes, _OF.c.name, _OF.c.probe,
        _INDEX.c.digest.label("index_digest"),
        _INDEX.c.size_bytes.label("index_size"),
        _INDEX.c.name.label("index_name"),
    )
    .join(_OF, _OF.c.digest == files.c.digest)
    .outerjoin(_INDEX, _INDEX.c.digest == files.c.index_digest)
    .where(files.c.checkpoint_pk == _PK)
    .order_by(files.c.name)
)  # fmt: skip
_MOVES: Final = (
    select(
        alias_moves.c.name,
        _BEFORE.c.id.label("before"),
        _AFTER.c.id.label("after"),
        alias_moves.c.author,
        alias_moves.c.moved_at,
    )
    .outerjoin(_BEFORE, _BEFORE.c.pk == alias_moves.c.from_pk)
    .outerjoin(_AFTER, _AFTER.c.pk == alias_moves.c.to_pk)
    .where(or_(alias_moves.c.from_pk == _PK, alias_moves.c.to_pk == _PK))
    .order_by(alias_moves.c.pk)
)


def whole(connection: Connection, id: str) -> dict[str, Any]:
    """Return a checkpoint's whole record.

    Raises:
        NotFoundError: there is no such checkpoint.
    """
    row = connection.execute(_ROW, {"id": id}).one_or_none()
    if row is None:
        raise NotFoundError(f"no checkpoint has the id {id!r}")
    checkpoint = fetch(connection, [row.pk])[0]
    run = None
    if row.run_pk is not None:
        run = connection.execute(_RUN, {"pk": row.run_pk}).one()
    plain = {
        "format": FORMAT,
        "checkpoint": checkpoint.to_dict(),
        "run": None if run is None else run_of(run).to_dict(),
        "blobs": _files(connection, row.pk),
        "model": {"created_at": row.model_created_at, "metric": row.metric, "mode": row.mode},
        "metrics": _metrics(connection, row.pk, json.loads(row.record)["metrics"]),
        "tags": [
            {"name": tag.name, "author": tag.author, "tagged_at": tag.tagged_at}
            for tag in connection.execute(_TAGS, {"pk": row.pk})
        ],
        "moves": _moves(connection, row.pk),
        "signatures": [
            {"digest": one.digest, "tensors": json.loads(one.tensors)}
            for one in connection.execute(
                _SIGNATURES, {"signature": row.signature, "raw": row.raw_signature}
            )
        ],
        "removed_by": row.removed_by,
        "collected_at": row.collected_at,
    }
    return plain | {SEALED: digest_of(plain)}


def _files(connection: Connection, pk: int) -> list[dict[str, Any]]:
    rows = connection.execute(_FILES, {"pk": pk})
    return [
        {
            "file": row.file,
            "blob": _blob(row.digest, row.size_bytes, row.name),
            "index": None
            if row.index_digest is None
            else _blob(row.index_digest, row.index_size, row.index_name),
            "probe": row.probe,
        }
        for row in rows
    ]


def _blob(digest: str, size_bytes: int, name: str) -> dict[str, object]:
    return {"digest": digest, "size_bytes": size_bytes, "name": name}


def _metrics(connection: Connection, pk: int, first: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = connection.execute(_METRICS, {"pk": pk})
    return [
        {
            "name": row.name,
            "value": row.value,
            "author": row.author,
            "recorded_at": row.recorded_at,
            "first": row.name in first,  # known when the checkpoint was made
        }
        for row in rows
    ]


def _moves(connection: Connection, pk: int) -> list[dict[str, Any]]:
    """Return the moves of aliases to a checkpoint and away from it, in order."""
    rows = connection.execute(_MOVES, {"pk": pk})
    return [
        {
            "name": row.name,
            "from": row.before,
            "to": row.after,
            "author": row.author,
            "moved_at": row.moved_at,
        }
        for row in rows
    ]


# --- reading it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole record that proved itself.

    Attributes:
        checkpoint: as it was when the record was written.
        first: as it was made.
        complete: whether it has all that makes its rows; records of the first release hadn't.
    """

    plain: Mapping[str, Any]
    checkpoint: Checkpoint
    first: Checkpoint
    run: RunRecord | None
    files: tuple[NewFile, ...]
    signatures: tuple[Signature, ...]
    complete: bool


def parse(text: str) -> Whole:
    """Return the record of a text.

    Raises:
        DamagedError: it isn't what was written.
    """
    try:
        plain = json.loads(text)
        complete = SEALED in plain
        if complete:
            rest = {name: value for name, value in plain.items() if name != SEALED}
            if digest_of(rest) != plain[SEALED]:
                raise ValueError("its seal is of another text")
        checkpoint = Checkpoint.from_dict(plain["checkpoint"])
        run = None if plain["run"] is None else RunRecord.from_dict(plain["run"])
        first = checkpoint
        if complete:
            metrics_ = {m["name"]: float(m["value"]) for m in plain["metrics"] if m["first"]}
            first = replace(checkpoint, metrics=FrozenMap(metrics_))
        first = replace(first, tags=(), aliases=(), removed_at=None)
        if facts_of(first) != first.facts_digest:
            raise ValueError("its facts are not those that its digest is of")
        return Whole(
            plain,
            checkpoint,
            first,
            run,
            tuple(
                (printable(f["file"], "file"), _read(f["blob"]), f["index"] and _read(f["index"]),
                 f.get("probe"))
                for f in plain["blobs"]
            ),
            tuple(
                Signature.from_json(canonical_json(s["tensors"]))
                for s in plain.get("signatures", ())
            ),
            complete,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"a checkpoint's record is damaged: {error}") from error


def _read(plain: Mapping[str, Any]) -> Blob:
    return Blob(digest(plain["digest"]), plain["size_bytes"], plain["name"])


# --- rows of it -----------------------------------------------------------------------------------


def put_back(connection: Connection, found: Whole) -> None:
    """Make a checkpoint's rows of its record: all of them, or those that are wrong anew.

    The moves of aliases, and where they point now, are made by `put_moves` when all are there.
    """
    plain, checkpoint = found.plain, found.checkpoint
    model = lock_model(connection, checkpoint.model, plain["model"]["created_at"])
    run_pk = None if found.run is None else _run_pk(connection, found.run, model.pk)
    for signature in found.signatures:
        _put_signature(connection, signature)
    for _, blob, index, probe in found.files:
        _put_blob(connection, blob, probe, plain["checkpoint"]["created_at"])
        if index is not None:
            _put_blob(connection, index, None, plain["checkpoint"]["created_at"])
    values = columns_of(found.first) | {
        "acc": checkpoint.acc,
        "model_pk": model.pk,
        "run_pk": run_pk,
        "removed_at": plain["checkpoint"]["removed_at"],
        "removed_by": plain["removed_by"],
        "collected_at": plain["collected_at"],
    }
    pk = connection.scalar(select(checkpoints.c.pk).where(checkpoints.c.id == checkpoint.id))
    if pk is None:
        pk = connection.scalar(insert(checkpoints).values(values).returning(checkpoints.c.pk))
    else:
        connection.execute(update(checkpoints).where(checkpoints.c.pk == pk).values(values))
    assert pk is not None
    for table in (records, metrics, tags, files):
        connection.execute(delete(table).where(table.c.checkpoint_pk == pk))
    record = record_of(found.first)
    connection.execute(insert(records).values(checkpoint_pk=pk, record=record, seal=seal(record)))
    _put(
        connection,
        metrics,
        [
            {
                "checkpoint_pk": pk,
                **{name: m[name] for name in ("name", "value", "author", "recorded_at")},
                "seal": metric_seal(
                    checkpoint.id, m["name"], m["value"], m["author"], m["recorded_at"]
                ),
                "model_pk": model.pk,
                "dataset": checkpoint.dataset,
                "run_pk": run_pk,
                "version": checkpoint.version,
                "live": checkpoint.removed_at is None,
            }
            for m in plain["metrics"]
        ],
    )
    _put(connection, tags, [{"checkpoint_pk": pk, **tag} for tag in plain["tags"]])
    _put(
        connection,
        files,
        [
            {
                "checkpoint_pk": pk,
                "name": name,
                "digest": blob.digest,
                "index_digest": None if index is None else index.digest,
            }
            for name, blob, index, _ in found.files
        ],
    )
    _count(connection, model.pk)


def _put(connection: Connection, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(insert(table), rows)


def _run_pk(connection: Connection, run: RunRecord, model_pk: int) -> int:
    """Return the key of a run's row, made of the record where there is none that is whole."""
    row = connection.execute(
        select(runs, models.c.name.label("model"))
        .join(models, models.c.pk == runs.c.model_pk)
        .where(runs.c.id == run.id)
    ).one_or_none()
    if row is None:
        return insert_run(connection, run, model_pk)
    try:
        run_of(row)
    except DamagedError:
        values = run_columns(run) | {"model_pk": model_pk}
        connection.execute(update(runs).where(runs.c.pk == row.pk).values(values))
    return int(row.pk)


def _put_signature(connection: Connection, signature: Signature) -> None:
    this = signatures.c.digest == signature.digest
    values = {
        "tensors": signature.to_json(),
        "tensor_count": len(signature.tensors),
        "parameters": signature.parameters,
        "size_bytes": weights_bytes(signature),
    }
    known = connection.execute(select(signatures).where(this)).one_or_none()
    if known is None:
        connection.execute(insert(signatures).values(digest=signature.digest, **values))
    # A later record may tell parameters from buffers; or the row may be damaged
    elif known.parameters is None or _digest_in(known.tensors) != signature.digest:
        connection.execute(update(signatures).where(this).values(values))


def _digest_in(tensors: str) -> str | None:
    """Return the digest of the signature that a row's text holds, or None for none."""
    try:
        return Signature.from_json(tensors).digest
    except (ValueError, TypeError):
        return None


def _put_blob(connection: Connection, blob: Blob, probe: str | None, at: str) -> None:
    """Make a blob's row, unless its digest has one that is whole: that names the bytes in use."""
    this = blobs.c.digest == blob.digest
    row = connection.execute(select(blobs).where(this)).one_or_none()
    values = {"name": blob.name, "size_bytes": blob.size_bytes, "probe": probe}
    if row is None:
        connection.execute(insert(blobs).values(digest=blob.digest, created_at=at, **values))
        return
    try:
        whole = blob_of(row).size_bytes == blob.size_bytes
    except DamagedError:
        whole = False
    if not whole:
        connection.execute(update(blobs).where(this).values(values))


def _count(connection: Connection, model_pk: int) -> None:
    """Set a model's counters to what its rows say; a counter never goes down."""
    mine = checkpoints.c.model_pk == model_pk
    live = select(func.count()).where(mine, checkpoints.c.removed_at.is_(None))
    highest = connection.scalar(select(func.max(checkpoints.c.version)).where(mine))
    counted = connection.scalars(select(models.c.versions).where(models.c.pk == model_pk)).one()
    connection.execute(
        update(models)
        .where(models.c.pk == model_pk)
        .values(versions=max(counted, highest or 0), live=connection.scalar(live))
    )


def put_model(connection: Connection, found: Whole) -> None:
    """Let best mean what a model's newest record says, and its birth be that."""
    facts = found.plain["model"]
    connection.execute(
        update(models)
        .where(models.c.name == found.checkpoint.model)
        .values(
            metric=printable(facts["metric"], "metric"),
            mode=facts["mode"],
            created_at=facts["created_at"],
        )
    )


def put_moves(connection: Connection, moves: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Make the moves of aliases that aren't there yet, and point each where its last one went.

    Args:
        moves: (model, move), as the records have them; each may come twice, from either end.
    """
    model_pks = {row.name: row.pk for row in connection.execute(select(models))}
    touched: set[tuple[int, str]] = set()
    for model, move in sorted(moves, key=lambda pair: str(pair[1]["moved_at"])):
        moment(move["moved_at"])
        this = {"model_pk": model_pks[model], "name": label(move["name"], "alias"),
                "moved_at": move["moved_at"]}  # fmt: skip
        touched.add((this["model_pk"], this["name"]))
        known = [alias_moves.c[name] == value for name, value in this.items()]
        if connection.scalar(select(alias_moves.c.pk).where(*known)) is None:
            ends = {side: _pk_of(connection, move[side]) for side in ("from", "to")}
            connection.execute(
                insert(alias_moves).values(
                    from_pk=ends["from"], to_pk=ends["to"], author=move["author"], **this
                )
            )
    for model_pk, name in sorted(touched):
        last = connection.execute(
            select(alias_moves)
            .where(alias_moves.c.model_pk == model_pk, alias_moves.c.name == name)
            .order_by(alias_moves.c.moved_at.desc(), alias_moves.c.pk.desc())
            .limit(1)
        ).one()
        connection.execute(
            delete(aliases).where(aliases.c.model_pk == model_pk, aliases.c.name == name)
        )
        if last.to_pk is not None:
            connection.execute(
                insert(aliases).values(
                    model_pk=model_pk, name=name, checkpoint_pk=last.to_pk, author=last.author,
                    moved_at=last.moved_at,
                )
            )  # fmt: skip


def _pk_of(connection: Connection, id: str | None) -> int | None:
    return (
        None
        if id is None
        else connection.scalar(select(checkpoints.c.pk).where(checkpoints.c.id == id))
    )
