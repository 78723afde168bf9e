"""From a ref to the one checkpoint that it means.

Law: a removed checkpoint is never found by what it was good at (best, latest, highest, epoch);
asked for by version or id it answers that it was removed, when, and how to bring it back.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, select

from ..errors import AmbiguousError, NotFoundError
from ..records import Checkpoint
from ..refs import Ref
from ..tables import aliases, checkpoints, models
from .naming import find_model, listed, no_model
from .ranking import best, latest
from .rows import fetch
from .scopes import ANY, Dataset, of_dataset, shown

_SHOWN: Final = 10
"""How many of several are listed."""


def get(
    connection: Connection, ref: Ref, *, dataset: Dataset, include_removed: bool = False
) -> Checkpoint:
    """Return the checkpoint that a ref means."""
    if ref.at == "id":
        assert ref.id is not None
        return _of(by_id(connection, ref.id, include_removed=include_removed), dataset)
    assert ref.model is not None
    if ref.at == "best":
        return best(connection, ref.model, dataset=dataset, metric=None, mode=None, run=None)
    if ref.at == "latest":
        return latest(connection, ref.model, dataset=dataset)
    model = find_model(connection, ref.model)
    if model is None:
        if ref.id is None:
            raise no_model(connection, ref.model)
        return _of(_by_prefix_or_name(connection, ref, include_removed), dataset)
    if ref.at == "version":
        assert ref.number is not None
        return _of(_by_version(connection, model, ref.number, include_removed), dataset)
    if ref.at == "alias":
        assert ref.alias is not None
        return _of(_by_alias(connection, model, ref.alias), dataset)
    if ref.at == "epoch":
        assert ref.number is not None
        return _by_epoch(connection, model, ref.number, dataset, include_removed)
    return _highest(connection, model, dataset, include_removed)


def _of(checkpoint: Checkpoint, dataset: Dataset) -> Checkpoint:
    if dataset is not ANY and checkpoint.dataset != dataset:
        raise NotFoundError(
            f"{checkpoint.ref} was trained on {shown(checkpoint.dataset)}, not on {shown(dataset)}",
            hint=f"see: ckreg show {checkpoint.ref}",
        )
    return checkpoint


# --- by id ----------------------------------------------------------------------------------------


def by_id(connection: Connection, prefix: str, *, include_removed: bool = False) -> Checkpoint:
    """Return the checkpoint whose id begins with 6 or more hex digits."""
    text = prefix.lower()
    if not 6 <= len(text) <= 32 or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"{prefix!r} is no id: take 6 to 32 hex digits")
    rows = _starting_with(connection, text)
    live = [row for row in rows if row.removed_at is None]
    found = rows if include_removed else live or rows
    if not found:
        raise NotFoundError(
            f"no checkpoint has an id that begins with {text!r}", hint="see: ckreg list"
        )
    if len(found) > 1:
        refs = [f"{row.name}@v{row.version}" for row in found[:_SHOWN]]
        many = "more than 10" if len(found) > _SHOWN else str(len(found))
        raise AmbiguousError(
            f"{many} checkpoints have ids that begin with {text!r}: {', '.join(refs)}",
            hint=f"give more digits, or a ref: ckreg show {refs[0]}",
            candidates=refs,
        )
    return _unless_removed(fetch(connection, [found[0].pk])[0], include_removed)


def _starting_with(connection: Connection, text: str) -> list[Row[Any]]:
    # A range and no LIKE: the index serves it on every engine and under every collation of bytes.
    return list(
        connection.execute(
            select(checkpoints.c.pk, checkpoints.c.version, checkpoints.c.removed_at, models.c.name)
            .join(models, models.c.pk == checkpoints.c.model_pk)
            .where(checkpoints.c.id >= text, checkpoints.c.id < text + "g")
            .order_by(checkpoints.c.id)
            .limit(_SHOWN + 1)
        )
    )


def _by_prefix_or_name(connection: Connection, ref: Ref, include_removed: bool) -> Checkpoint:
    assert ref.id is not None
    assert ref.model is not None
    if not _starting_with(connection, ref.id):
        unknown = no_model(connection, ref.model)
        raise NotFoundError(
            f"{ref.model!r} is neither a model's name nor the beginning of an id",
            hint=unknown.hint,
            near=unknown.near,
        )
    return by_id(connection, ref.id, include_removed=include_removed)


def _unless_removed(checkpoint: Checkpoint, include_removed: bool) -> Checkpoint:
    if checkpoint.removed_at is not None and not include_removed:
        raise NotFoundError(
            f"{checkpoint.ref} was removed on {checkpoint.removed_at:%Y-%m-%d %H:%M} UTC",
            hint=f"bring it back: ckreg restore {checkpoint.ref}",
        )
    return checkpoint


def the_pk(connection: Connection, id: str) -> int:
    """Return the key of the checkpoint with a whole id.

    Raises:
        NotFoundError: there is none, or it was removed.
    """
    row = connection.execute(
        select(checkpoints.c.pk, checkpoints.c.removed_at).where(checkpoints.c.id == id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no checkpoint has the id {id!r}", hint="see: ckreg list")
    if row.removed_at is not None:
        _unless_removed(fetch(connection, [row.pk])[0], include_removed=False)
    return int(row.pk)


# --- within a model -------------------------------------------------------------------------------


def _by_version(
    connection: Connection, model: Row[Any], number: int, include_removed: bool
) -> Checkpoint:
    pk = connection.scalar(
        select(checkpoints.c.pk).where(
            checkpoints.c.model_pk == model.pk, checkpoints.c.version == number
        )
    )
    if pk is None:
        raise NotFoundError(
            f"{model.name!r} has no version {number}: its versions go up to v{model.versions}",
            hint=f"see: ckreg list {model.name}",
        )
    return _unless_removed(fetch(connection, [pk])[0], include_removed)


def _by_alias(connection: Connection, model: Row[Any], alias: str) -> Checkpoint:
    pk = connection.scalar(
        select(aliases.c.checkpoint_pk).where(
            aliases.c.model_pk == model.pk, aliases.c.name == alias
        )
    )
    if pk is None:
        raise no_alias(connection, model, alias)
    return fetch(connection, [pk])[0]


def no_alias(connection: Connection, model: Row[Any], alias: str) -> NotFoundError:
    """Return the error that says that a model has no such alias, and which it has."""
    names = connection.scalars(
        select(aliases.c.name)
        .where(aliases.c.model_pk == model.pk)
        .order_by(aliases.c.name)
        .limit(_SHOWN)
    ).all()
    near = get_close_matches(alias, ["best", "latest", *names], 1)
    if number := re.fullmatch(r"(epoch|v|V)[-_.]?([0-9]+)", alias):
        near = [f"epoch={number[2]}" if number[1] == "epoch" else f"v{number[2]}"]
    hint = f"point one at a checkpoint: ckreg alias {model.name}@best {alias}"
    return NotFoundError(
        f"{model.name!r} has no alias {alias!r} (it has: {listed(names)})",
        hint=f"did you mean {model.name}@{near[0]}? or {hint}" if near else hint,
        near=[f"{model.name}@{n}" for n in near],
    )


def _by_epoch(
    connection: Connection, model: Row[Any], epoch: int, dataset: Dataset, include_removed: bool
) -> Checkpoint:
    rows = _newest(
        connection, model, [checkpoints.c.epoch == epoch], dataset, include_removed, _SHOWN + 1
    )
    if not rows:
        raise NotFoundError(
            f"{model.name!r} has no checkpoint of epoch {epoch}",
            hint=f"see: ckreg list {model.name} --sort -epoch",
        )
    if len(rows) > 1:
        found = [f"{model.name}@v{row.version}" for row in rows[:_SHOWN]]
        many = "more than 10" if len(rows) > _SHOWN else str(len(rows))
        raise AmbiguousError(
            f"{model.name!r} has {many} checkpoints of epoch {epoch}: {', '.join(found)}",
            hint=f"name one: ckreg show {found[0]}; all: "
            f"ckreg list {model.name} --where 'epoch == {epoch}'",
            candidates=found,
        )
    return fetch(connection, [rows[0].pk])[0]


def _highest(
    connection: Connection, model: Row[Any], dataset: Dataset, include_removed: bool
) -> Checkpoint:
    rows = _newest(connection, model, [], dataset, include_removed, 1)
    if not rows:
        gone = model.versions - model.live
        which = "" if dataset is ANY else f" trained on {shown(dataset)}"
        raise NotFoundError(
            f"{model.name!r} has no checkpoint{which} ({model.live} live, {gone} removed)",
            hint=f"see: ckreg list {model.name} --removed",
        )
    return fetch(connection, [rows[0].pk])[0]


def _newest(
    connection: Connection,
    model: Row[Any],
    conditions: list[ColumnElement[bool]],
    dataset: Dataset,
    include_removed: bool,
    limit: int,
) -> list[Row[Any]]:
    query = select(checkpoints.c.pk, checkpoints.c.version).where(
        checkpoints.c.model_pk == model.pk, *conditions
    )
    if dataset is not ANY:
        query = query.where(of_dataset(checkpoints.c.dataset, dataset))
    if not include_removed:
        query = query.where(checkpoints.c.removed_at.is_(None))
    return list(connection.execute(query.order_by(checkpoints.c.version.desc()).limit(limit)))
