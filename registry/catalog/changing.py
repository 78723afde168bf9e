"""What may change after a checkpoint was made: more metrics, labels, whether it is there at all.

Law: a metric that is set stays as it is; nothing is deleted, a removal is a tombstone that
`restore` takes away; whatever is refused leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from ..errors import ConflictError, NotFoundError
from ..records import Checkpoint, Mode
from ..tables import alias_moves, checkpoints, metrics, models, settings, tags
from ..values import now, time_text
from .adding import add_metrics, live_twin, lock_model, scales
from .labels import add_tags, point_alias
from .lookup import no_alias, the_pk
from .naming import listed, the_model
from .rows import fetch, moment, storable


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` did."""

    checkpoint: Checkpoint
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an alias.

    Attributes:
        before, after: refs; None where it pointed at nothing.
    """

    name: str
    before: str | None
    after: str | None
    author: str | None
    moved_at: datetime


# --- metrics --------------------------------------------------------------------------------------


def record(
    connection: Connection, id: str, values: Mapping[str, float], author: str | None
) -> Recorded:
    """Add metrics to a checkpoint; the same value once more is no error."""
    pk = the_pk(connection, id)
    checkpoint = fetch(connection, [pk])[0]
    other = {n: v for n, v in values.items() if checkpoint.metrics.get(n, v) != v}
    if other:
        said = ", ".join(f"{n}={checkpoint.metrics[n]!r} (not {v!r})" for n, v in other.items())
        raise ConflictError(
            f"{checkpoint.ref} has {said}; a metric that is set is never changed",
            hint="record the new value under another name: ckreg record "
            f"{checkpoint.ref} {next(iter(other))}.again={next(iter(other.values()))!r}",
        )
    new = {n: v for n, v in values.items() if n not in checkpoint.metrics}
    if not new:
        return Recorded(checkpoint)
    keys = connection.execute(
        select(checkpoints.c.model_pk, checkpoints.c.run_pk).where(checkpoints.c.pk == pk)
    ).one()
    warnings = scales(connection, keys.model_pk, checkpoint, new.get("acc"))
    add_metrics(
        connection,
        checkpoint,
        new,
        keys={"checkpoint_pk": pk, "model_pk": keys.model_pk, "run_pk": keys.run_pk},
        author=author,
        at=time_text(now()),
    )
    if "acc" in new:
        connection.execute(update(checkpoints).where(checkpoints.c.pk == pk).values(acc=new["acc"]))
    return Recorded(fetch(connection, [pk])[0], warnings)


def monitor(connection: Connection, model: str, metric: str, mode: Mode, *, create: bool) -> None:
    """Set what best means for a model."""
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', not {mode!r}")
    if create:
        row = lock_model(connection, model, time_text(now()))
    else:
        row = the_model(connection, model, lock=True)
    connection.execute(update(models).where(models.c.pk == row.pk).values(metric=metric, mode=mode))


def set_setting(connection: Connection, name: str, value: str | None) -> None:
    """Set a setting; None takes it away."""
    connection.execute(delete(settings).where(settings.c.name == name))
    if value is not None:
        connection.execute(insert(settings).values(name=name, value=value))


# --- labels ---------------------------------------------------------------------------------------


def tag(connection: Connection, id: str, names: Sequence[str], author: str | None) -> Checkpoint:
    """Add tags."""
    pk = the_pk(connection, id)
    add_tags(connection, pk, names, author, time_text(now()))
    return fetch(connection, [pk])[0]


def untag(connection: Connection, id: str, names: Sequence[str]) -> Checkpoint:
    """Take tags away."""
    pk = the_pk(connection, id)
    checkpoint = fetch(connection, [pk])[0]
    unknown = [name for name in names if name not in checkpoint.tags]
    if unknown:
        raise NotFoundError(
            f"{checkpoint.ref} has no tag {listed(unknown)} (it has: {listed(checkpoint.tags)})",
            hint=f"see: ckreg show {checkpoint.ref}",
        )
    connection.execute(delete(tags).where(tags.c.checkpoint_pk == pk, tags.c.name.in_(names)))
    return fetch(connection, [pk])[0]


def alias(connection: Connection, id: str, name: str, author: str | None) -> Checkpoint | None:
    """Point an alias at a checkpoint, and return the one it left, as it is now."""
    pk = the_pk(connection, id)
    model_pk = connection.scalars(
        select(checkpoints.c.model_pk).where(checkpoints.c.pk == pk)
    ).one()
    before = point_alias(connection, model_pk, name, pk, author, time_text(now()))
    return None if before is None else fetch(connection, [before])[0]


def unalias(connection: Connection, model: str, name: str, author: str | None) -> Checkpoint:
    """Remove an alias, and return the checkpoint that it pointed at, as it is now."""
    row = the_model(connection, model)
    before = point_alias(connection, row.pk, name, None, author, time_text(now()))
    if before is None:
        raise no_alias(connection, row, name)
    return fetch(connection, [before])[0]


def alias_history(connection: Connection, model: str, name: str | None) -> list[AliasMove]:
    """Return the moves of one alias of a model, or of all, the newest first."""
    row = the_model(connection, model)
    of, to = checkpoints.alias("of"), checkpoints.alias("to")
    query = (
        select(
            alias_moves.c.name,
            of.c.version.label("before"),
            to.c.version.label("after"),
            alias_moves.c.author,
            alias_moves.c.moved_at,
        )
        .outerjoin(of, of.c.pk == alias_moves.c.from_pk)
        .outerjoin(to, to.c.pk == alias_moves.c.to_pk)
        .where(alias_moves.c.model_pk == row.pk)
    )
    if name is not None:
        query = query.where(alias_moves.c.name == name)

    def ref(version: int | None) -> str | None:
        return None if version is None else f"{model}@v{version}"

    return [
        AliasMove(move.name, ref(move.before), ref(move.after), move.author, moment(move.moved_at))
        for move in connection.execute(query.order_by(alias_moves.c.pk.desc()))
    ]


# --- removal --------------------------------------------------------------------------------------


def remove(connection: Connection, id: str, *, force: bool, author: str | None) -> Checkpoint:
    """Set a checkpoint's tombstone; with force its aliases go too."""
    pk = the_pk(connection, id)
    checkpoint = fetch(connection, [pk])[0]
    if checkpoint.aliases and not force:
        raise ConflictError(
            f"{checkpoint.ref} has the alias {', '.join(checkpoint.aliases)}, and whoever loads by "
            "that name would lose it",
            hint=f"point it elsewhere, or take it away too: ckreg rm --force {checkpoint.ref}",
        )
    model_pk = connection.scalars(
        select(checkpoints.c.model_pk).where(checkpoints.c.pk == pk)
    ).one()
    at = time_text(now())
    for name in checkpoint.aliases:
        point_alias(connection, model_pk, name, None, author, at)
    set_live(connection, [pk], model_pk, removed_at=at, removed_by=storable(author))
    return fetch(connection, [pk])[0]


def restore(connection: Connection, id: str) -> Checkpoint:
    """Take a tombstone away; a checkpoint that is live already is left as it is."""
    row = connection.execute(
        select(
            checkpoints.c.pk,
            checkpoints.c.model_pk,
            checkpoints.c.origin,
            checkpoints.c.facts_digest,
            checkpoints.c.removed_at,
            checkpoints.c.collected_at,
        ).where(checkpoints.c.id == id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no checkpoint has the id {id!r}", hint="see: ckreg list --removed")
    checkpoint = fetch(connection, [row.pk])[0]
    if row.removed_at is None:
        return checkpoint
    if row.collected_at is not None:
        raise NotFoundError(
            f"the files of {checkpoint.ref} are gone: gc took them on {row.collected_at[:10]}",
            hint="push the file again, if you have it",
        )
    twin = live_twin(connection, row.facts_digest) if row.origin == "push" else None
    if twin is not None:
        ref = fetch(connection, [twin])[0].ref
        raise ConflictError(
            f"{checkpoint.ref} was pushed again meanwhile, as {ref}: they would be the same twice",
            hint=f"use {ref}, or: ckreg rm {ref}, then restore",
        )
    set_live(connection, [row.pk], row.model_pk, removed_at=None, removed_by=None)
    return fetch(connection, [row.pk])[0]


def set_live(
    connection: Connection,
    pks: Sequence[int],
    model_pk: int,
    *,
    removed_at: str | None,
    removed_by: str | None,
) -> None:
    """Set the tombstones of a model's checkpoints that were live, or take away those of others."""
    live = removed_at is None
    connection.execute(
        update(models)
        .where(models.c.pk == model_pk)
        .values(live=models.c.live + (len(pks) if live else -len(pks)))
    )
    connection.execute(
        update(checkpoints)
        .where(checkpoints.c.pk.in_(pks))
        .values(removed_at=removed_at, removed_by=removed_by)
    )
    connection.execute(update(metrics).where(metrics.c.checkpoint_pk.in_(pks)).values(live=live))
