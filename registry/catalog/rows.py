"""Records to rows and back.

Law: what a row says is what was recorded, or it isn't served. The record is kept whole as one
sealed JSON text; the columns beside it are a copy for searching, and must agree with it; metrics,
which come one by one, are sealed one by one. So a flipped bit is DamagedError, never a wrong fact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    bindparam,
    literal_column,
    null,
    select,
    union_all,
)

from ..errors import DamagedError
from ..records import Checkpoint, RunRecord
from ..signature import Signature
from ..tables import aliases, checkpoints, metrics, models, records, runs, tags
from ..values import canonical_json, digest_of, time_text

_CHANGES: Final = ("tags", "aliases", "removed_at")
"""The fields of a checkpoint's JSON form that may change after its creation; metrics only grow."""


def seal(value: object) -> str:
    """Return the digest, cut to 64 bits, by which a row is known to be as it was written."""
    return digest_of(value).removeprefix("blake3:")[:16]


def storable(text: str | None) -> str | None:
    """Return free text with NUL and lone surrogates escaped, which no database takes."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


# --- checkpoints ----------------------------------------------------------------------------------


def columns_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the columns that repeat what a checkpoint's record says."""
    topology = checkpoint.topology
    return {
        "id": checkpoint.id,
        "version": checkpoint.version,
        "dataset": checkpoint.dataset,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "batch_size": checkpoint.batch_size,
        "key_style": str(checkpoint.key_style),
        "file_keys": str(checkpoint.file_keys),
        "weights": checkpoint.weights,
        "container": checkpoint.container,
        "strategy": topology.strategy,
        "world_size": topology.world_size,
        "device_type": topology.device_type,
        "device_count": topology.device_count,
        "hostname": topology.hostname,
        "topology_provenance": checkpoint.provenance.topology,
        "key_style_provenance": checkpoint.provenance.key_style,
        "signature": checkpoint.signature,
        "raw_signature": checkpoint.raw_signature,
        "tensors": checkpoint.tensors,
        "parameters": checkpoint.parameters,
        "size_bytes": checkpoint.size_bytes,
        "scheduler": checkpoint.scheduler,
        "parent": checkpoint.parent,
        "note": storable(checkpoint.note),
        "author": storable(checkpoint.author),
        "origin": checkpoint.origin,
        "created_at": time_text(checkpoint.created_at),
        "facts_digest": checkpoint.facts_digest,
    }


def record_of(checkpoint: Checkpoint) -> str:
    """Return the canonical JSON of what never changes: the metrics are those of its creation."""
    plain = checkpoint.to_dict()
    return canonical_json({k: v for k, v in plain.items() if k not in _CHANGES})


def metric_seal(id: str, name: str, value: float, author: str | None, at: str) -> str:
    """Return the seal of one metric's row."""
    return seal([id, name, float(value), author, at])


# Made once: to build them takes longer than to run them.
_PKS: Final[BindParameter[Any]] = bindparam("pks", expanding=True)
_ROWS: Final = (
    select(
        checkpoints,
        models.c.name.label("model"),
        runs.c.id.label("run_id"),
        runs.c.name.label("run_name"),
        records.c.record,
        records.c.seal,
    )
    .outerjoin(models, models.c.pk == checkpoints.c.model_pk)
    .outerjoin(runs, runs.c.pk == checkpoints.c.run_pk)
    .outerjoin(records, records.c.checkpoint_pk == checkpoints.c.pk)
    .where(checkpoints.c.pk.in_(_PKS))
)
_NO: Final = null()
_DETAILS: Final = union_all(
    select(
        metrics.c.checkpoint_pk.label("pk"),
        literal_column("'metric'").label("kind"),
        metrics.c.name,
        metrics.c.value,
        metrics.c.author,
        metrics.c.recorded_at,
        metrics.c.seal,
    ).where(metrics.c.checkpoint_pk.in_(_PKS)),
    select(tags.c.checkpoint_pk, literal_column("'tag'"), tags.c.name, _NO, _NO, _NO, _NO).where(
        tags.c.checkpoint_pk.in_(_PKS)
    ),
    select(
        aliases.c.checkpoint_pk, literal_column("'alias'"), aliases.c.name, _NO, _NO, _NO, _NO
    ).where(aliases.c.checkpoint_pk.in_(_PKS)),
)
"""What a checkpoint has several of: metrics, tags, aliases."""


def fetch(connection: Connection, pks: Sequence[int]) -> list[Checkpoint]:
    """Return whole checkpoints in the order of their keys, each checked.

    Raises:
        DamagedError: a row isn't what was written.
    """
    if not pks:
        return []
    rows = connection.execute(_ROWS, {"pks": pks}).all()
    rest: dict[int, list[Row[Any]]] = {}
    details = connection.execute(_DETAILS, {"pks": pks}).all()
    for pk, group in groupby(sorted(details, key=lambda r: r.pk), key=lambda r: r.pk):
        rest[pk] = list(group)
    found = {row.pk: _checkpoint(row, rest.get(row.pk, ())) for row in rows}
    return [found[pk] for pk in pks if pk in found]


def _checkpoint(row: Row[Any], details: Sequence[Row[Any]]) -> Checkpoint:
    try:
        if row.record is None or seal(row.record) != row.seal:
            raise ValueError("its record is missing, or not what was written")
        plain = json.loads(row.record)
        values: dict[str, float] = {}
        for metric in details:
            if metric.kind != "metric":
                continue
            expected = metric_seal(
                row.id, metric.name, metric.value, metric.author, metric.recorded_at
            )
            if metric.seal != expected:
                raise ValueError(f"its metric {metric.name!r} is not what was written")
            values[metric.name] = metric.value
        if not plain["metrics"].items() <= values.items():
            raise ValueError("metrics of its record are missing")
        plain |= {
            "metrics": values,
            "tags": sorted(d.name for d in details if d.kind == "tag"),
            "aliases": sorted(d.name for d in details if d.kind == "alias"),
            "removed_at": row.removed_at,
        }
        checkpoint = Checkpoint.from_dict(plain)
        run = checkpoint.run
        said = columns_of(checkpoint) | {
            "acc": checkpoint.acc,
            "model": checkpoint.model,
            "run_id": None if run is None else run.id,
            "run_name": None if run is None else run.name,
        }
        for column, value in said.items():
            if row._mapping[column] != value:
                raise ValueError(
                    f"its column {column} is {row._mapping[column]!r}, and {value!r} was recorded"
                )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"the row of checkpoint {row.id!r} (version {row.version} of {row.model!r}) is "
            f"damaged: {error}",
            hint=f"its whole record is also in records/{str(row.id)[:2]}/{row.id}.json",
        ) from error
    return checkpoint


# --- runs -----------------------------------------------------------------------------------------


def run_columns(run: RunRecord) -> dict[str, Any]:
    """Return a run's columns, all but its keys."""
    columns: dict[str, Any] = {
        "id": run.id,
        "name": run.name,
        "dataset": run.dataset,
        "config": canonical_json(run.config.to_dict()),
        "batch_size": run.batch_size,
        "hostname": storable(run.hostname),
        "command": storable(run.command),
        "git_commit": None if run.git is None else storable(run.git.commit),
        "git_dirty": None if run.git is None else run.git.dirty,
        "author": storable(run.author),
        "created_at": time_text(run.created_at),
    }
    return columns | {"seal": seal([run.model, columns])}


def run_of(row: Row[Any]) -> RunRecord:
    """Return the run that a row (with its model's name as `model`) tells of.

    Raises:
        DamagedError: it isn't what was written.
    """
    columns: Mapping[str, Any] = dict(row._mapping)
    names = (
        "id", "name", "dataset", "config", "batch_size", "hostname", "command", "git_commit",
        "git_dirty", "author", "created_at",
    )  # fmt: skip
    try:
        if seal([row.model, {n: columns[n] for n in names}]) != row.seal:
            raise ValueError("it is not what was written")
        plain: dict[str, Any] = {n: columns[n] for n in names if not n.startswith("git_")}
        plain |= {
            "model": row.model,
            "config": json.loads(row.config),
            "git": None
            if row.git_commit is None
            else {"commit": row.git_commit, "dirty": row.git_dirty},
        }
        return RunRecord.from_dict(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"the row of run {row.id!r} is damaged: {error}") from error


# --- signatures -----------------------------------------------------------------------------------


def weights_bytes(signature: Signature) -> int | None:
    """Return how many bytes the tensors take, or None where a dtype's width isn't in its name."""
    sizes = [tensor.size_bytes for tensor in signature.tensors]
    total = sum(size for size in sizes if size is not None)
    return total if None not in sizes and total < 2**63 else None


def moment(text: str) -> datetime:
    """Return a time that a row holds.

    Raises:
        DamagedError: it holds none.
    """
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"a row holds {text!r} where a time should be") from error
