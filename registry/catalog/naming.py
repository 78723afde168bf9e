"""Models by name, what metrics they have, and "did you mean" where a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, true

from ..errors import AmbiguousError, NotFoundError
from ..records import RunRecord
from ..tables import metrics, models, runs
from .rows import run_of
from .scopes import AnyDataset, Dataset, of_dataset, shown

_LOOKED_AT: Final = 2_000
"""How many names are compared for "did you mean": enough to help, too few to be slow."""

METRICS_SHOWN: Final = 20
"""How many metrics a message names."""


def near_names(connection: Connection, text: str) -> list[str]:
    """Return up to three models' names that are close to a text, the closest first."""
    if not text:
        return []
    name = models.c.name
    alike = select(name).where(name >= text[0], name < text[0] + "\U0010ffff")
    first = select(name)
    found = {
        found: found.casefold()
        for query in (alike, first)
        for found in connection.scalars(query.order_by(name).limit(_LOOKED_AT))
    }
    close = difflib.get_close_matches(text.casefold(), list(found.values()), n=3, cutoff=0.6)
    return [next(n for n, folded in found.items() if folded == match) for match in close]


def find_model(connection: Connection, name: str, *, lock: bool = False) -> Row[Any] | None:
    """Return a model's row, locked until the end of the transaction if asked."""
    query = select(models).where(models.c.name == name)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def the_model(connection: Connection, name: str, *, lock: bool = False) -> Row[Any]:
    """Return a model's row.

    Raises:
        NotFoundError: there is none of that name; `near` holds names that are close.
    """
    row = find_model(connection, name, lock=lock)
    if row is None:
        raise no_model(connection, name)
    return row


def no_model(connection: Connection, name: str) -> NotFoundError:
    """Return the error that says that no model has a name."""
    from ..filenames import SUFFIXES  # its imports are for who errs alone

    near = near_names(connection, name)
    maybe = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    if name.endswith(SUFFIXES):
        maybe += f"a file is taken in first: ckreg push {name}; "
    return NotFoundError(
        f"no checkpoint matches model={name!r}", hint=f"{maybe}all of them: ckreg models", near=near
    )


def run_named(connection: Connection, model: str | None, name: str, dataset: Dataset) -> RunRecord:
    """Return the one run of a name.

    Raises:
        NotFoundError, AmbiguousError: none, or those of several models or datasets.
    """
    scope = [runs.c.name == name]
    if model is not None:
        scope.append(runs.c.model_pk == the_model(connection, model).pk)
    if not isinstance(dataset, AnyDataset):
        scope.append(of_dataset(runs.c.dataset, dataset))
    found = [
        run_of(row)
        for row in connection.execute(
            select(runs, models.c.name.label("model"))
            .join(models, models.c.pk == runs.c.model_pk)
            .where(*scope)
            .order_by(models.c.name, runs.c.dataset.nulls_first())
            .limit(20)
        )
    ]
    of = f" of {model!r}" if model is not None else ""
    if not found:
        raise NotFoundError(f"no run{of} is called {name!r}", hint="see them: ckreg list")
    if len(found) > 1:
        several = [f"{r.model} on {shown(r.dataset)}" for r in found]
        raise AmbiguousError(
            f"{len(found)} runs{of} are called {name!r}: {', '.join(several)}",
            hint="name the model and the dataset as well: --dataset NAME",
            candidates=several,
        )
    return found[0]


def metric_names(connection: Connection, model_pk: int, *, limit: int = METRICS_SHOWN) -> list[str]:
    """Return the metrics that a model's checkpoints have, by steps through the index."""
    found: list[str] = []
    name = metrics.c.name
    while len(found) < limit:
        after = (name > found[-1],) if found else ()
        following = connection.scalar(
            select(func.min(name)).where(
                metrics.c.model_pk == model_pk, metrics.c.live == true(), *after
            )
        )
        if following is None:
            break
        found.append(following)
    return found


def listed(words: Sequence[str]) -> str:
    """Return words for a message."""
    return ", ".join(map(repr, words)) or "none"
