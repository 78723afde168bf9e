"""A registry on its way to another place: what a copy asks of both databases, and the rows that it
makes in the new one.

Law: ids, versions and times are those of the source. A row of a checkpoint is made only of a record
that proves itself, and refers only to blobs that were seen in the new store inside the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from ..blobs import Blob
from ..errors import DamagedError
from ..records import Mode, RunRecord
from ..schema import Transactions
from ..tables import alias_moves, aliases, blobs, checkpoints, models, runs
from ..values import CheckpointId, Digest, now, time_text
from . import wholes
from .adding import find_run, insert_run, lock_model
from .collecting import portions
from .naming import find_model
from .rows import run_columns, run_of
from .scopes import shown
from .settling import NewFile, blob_of, settle
from .wholes import Whole

Move = Mapping[str, Any]
"""A move of an alias: name, from and to (ids, or None), author, moved_at."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model beside its checkpoints."""

    name: str
    versions: int
    metric: str
    mode: Mode
    created_at: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint that is to be copied.

    Attributes:
        twin_of: the digest of facts that no other live push may have; None where any may.
    """

    id: CheckpointId
    ref: str
    version: int
    twin_of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One checkpoint, its blobs in the new store.

    Attributes:
        whole: its record, with the blobs of the new store in it.
        borrowed: names of those blobs that were in the store before.
    """

    whole: Whole
    borrowed: frozenset[str]
    damaged: frozenset[Digest] = frozenset()

    @property
    def files(self) -> Sequence[NewFile]:
        """All of its files."""
        return self.whole.files


class Inventory:
    """What a registry holds, to be copied. Every method is one transaction, as in Catalog.

    Raises, from any method: as Catalog.
    """

    def __init__(self, database: Transactions) -> None:
        self._database = database

    def models(self) -> list[ModelFacts]:
        """Return all models by name, those without checkpoints too."""
        with self._database.read() as connection:
            rows = connection.execute(select(models).order_by(models.c.name)).all()
        return [
            ModelFacts(row.name, row.versions, row.metric, row.mode, row.created_at) for row in rows
        ]

    def runs(self, model: str) -> tuple[list[RunRecord], dict[str, str]]:
        """Return the runs of a model, the oldest first, and why others can't be read, by id."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(runs, models.c.name.label("model"))
                .join(models, models.c.pk == runs.c.model_pk)
                .where(models.c.name == model)
                .order_by(runs.c.created_at, runs.c.pk)
            ).all()
        found: list[RunRecord] = []
        damaged: dict[str, str] = {}
        for row in rows:
            try:
                found.append(run_of(row))
            except DamagedError as error:
                damaged[row.id] = error.message
        return found, damaged

    def page(
        self, model: str, *, after: int = 0, size: int = 500, removed: bool = False
    ) -> list[Listed]:
        """Return a model's next checkpoints by version, removed ones too, or those alone."""
        of = (
            select(
                checkpoints.c.id,
                checkpoints.c.version,
                checkpoints.c.facts_digest,
                checkpoints.c.origin,
                checkpoints.c.removed_at,
            )
            .join(models, models.c.pk == checkpoints.c.model_pk)
            .where(models.c.name == model, checkpoints.c.version > after)
        )
        if removed:
            of = of.where(checkpoints.c.removed_at.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(of.order_by(checkpoints.c.version).limit(size)).all()
        return [
            Listed(
                CheckpointId(row.id),
                f"{model}@v{row.version}",
                row.version,
                row.facts_digest if row.origin == "push" and row.removed_at is None else None,
            )
            for row in rows
        ]

    def moves(self, model: str) -> list[Move]:
        """Return the moves of a model's aliases, in order."""
        with self._database.read() as connection:
            row = find_model(connection, model)
            return [] if row is None else _moves(connection, row.pk)


class Arrivals:
    """The database that a registry is copied to. Every method is one transaction, as in Catalog.

    Raises, from any method: as Catalog.
    """

    def __init__(self, database: Transactions) -> None:
        self._database = database

    def clashes(self, facts: ModelFacts, found: Sequence[Listed]) -> list[str]:
        """Return, in words, what is here in the place of a model's checkpoints that are to come."""
        with self._database.read() as connection:
            return list(_clashes(connection, facts, found))

    def run_clashes(self, found: Sequence[RunRecord]) -> list[str]:
        """Return, in words, what is here in the place of runs that are to come."""
        with self._database.read() as connection:
            return [text for run in found if (text := _run_clash(connection, run)) is not None]

    def blobs(self, digests: Sequence[Digest]) -> dict[Digest, Blob]:
        """Return the blobs that hold the bytes of some digests here, as far as there are any."""
        found: dict[Digest, Blob] = {}
        with self._database.read() as connection:
            for part in portions(digests, 500):
                for row in connection.execute(select(blobs).where(blobs.c.digest.in_(part))):
                    found[Digest(row.digest)] = blob_of(row)
        return found

    def put_model(self, facts: ModelFacts, found: Sequence[RunRecord]) -> int:
        """Make or change a model's row, and make its runs that aren't here; say how many those are.

        Its counter is set before any checkpoint comes: who pushes meanwhile takes no version of
        theirs.
        """

        def work(connection: Connection) -> int:
            row = lock_model(connection, facts.name, facts.created_at)
            connection.execute(
                update(models)
                .where(models.c.pk == row.pk)
                .values(
                    metric=facts.metric,
                    mode=facts.mode,
                    created_at=facts.created_at,
                    versions=max(row.versions, facts.versions),
                )
            )
            known = set(connection.scalars(select(runs.c.id).where(runs.c.model_pk == row.pk)))
            new = [run for run in found if run.id not in known]
            for run in new:
                insert_run(connection, run, row.pk)
            return len(new)

        return self._database.writing(work)

    def put(self, arrival: Arrival, holds: Callable[[Blob], bool]) -> tuple[Blob, ...]:
        """Make a checkpoint's rows, and return those of its blobs that no row refers to.

        Raises:
            Gone: a blob that was here before isn't any more.
        """

        def work(connection: Connection) -> tuple[Blob, ...]:
            unused = settle(connection, arrival, holds, create=True, at=time_text(now()))
            wholes.put_back(connection, arrival.whole)
            return unused

        return self._database.writing(work)

    def put_moves(self, model: str, moves: Sequence[Move]) -> tuple[list[CheckpointId], list[str]]:
        """Make the moves of aliases that aren't here, and point each where its last one went.

        Returns:
            The checkpoints whose records change with that; and the aliases that stay as they
            are here, since a checkpoint that they pointed at isn't here.
        """
        return self._database.writing(lambda c: _put_moves(c, model, moves))


def _clashes(connection: Connection, facts: ModelFacts, found: Sequence[Listed]) -> Iterator[str]:
    row = find_model(connection, facts.name)
    if row is None:
        return
    ids = {one.version: one.id for one in found}
    at = [checkpoints.c.model_pk == row.pk, checkpoints.c.version.in_(ids)]
    for there in connection.execute(select(checkpoints.c.version, checkpoints.c.id).where(*at)):
        if there.id != ids[there.version]:
            yield (
                f"{facts.name}@v{there.version} is {there.id[:8]} there, and "
                f"{ids[there.version][:8]} here"
            )
    twins = {one.twin_of: one.ref for one in found if one.twin_of is not None}
    own = [
        checkpoints.c.model_pk == row.pk,
        checkpoints.c.version > facts.versions,  # those that came from here are below
        checkpoints.c.facts_digest.in_(twins),
        checkpoints.c.origin == "push",
        checkpoints.c.removed_at.is_(None),
    ]
    for there in connection.execute(
        select(checkpoints.c.version, checkpoints.c.facts_digest).where(*own)
    ):
        yield (
            f"{twins[there.facts_digest]} was pushed there too, as {facts.name}@v{there.version}: "
            "it would be the same twice"
        )


def _run_clash(connection: Connection, run: RunRecord) -> str | None:
    row = connection.execute(select(runs.c.seal).where(runs.c.id == run.id)).one_or_none()
    if row is not None:
        same = row.seal == run_columns(run)["seal"]
        return None if same else f"the run {run.id[:8]} is another one there than here"
    model = find_model(connection, run.model)
    if model is None or run.name is None:
        return None
    named = find_run(connection, model.pk, run.dataset, run.name)
    if named is None:
        return None
    return (
        f"the run {run.name!r} of {run.model!r} on {shown(run.dataset)} is {named.id[:8]} there, "
        f"and {run.id[:8]} here"
    )


# --- the moves of aliases -------------------------------------------------------------------------


def _moves(connection: Connection, model_pk: int) -> list[Move]:
    before, after = checkpoints.alias("before"), checkpoints.alias("after")
    rows = connection.execute(
        select(
            alias_moves.c.name,
            before.c.id.label("from"),
            after.c.id.label("to"),
            alias_moves.c.author,
            alias_moves.c.moved_at,
        )
        .outerjoin(before, before.c.pk == alias_moves.c.from_pk)
        .outerjoin(after, after.c.pk == alias_moves.c.to_pk)
        .where(alias_moves.c.model_pk == model_pk)
        .order_by(alias_moves.c.pk)
    )
    return [dict(row._mapping) for row in rows]


def _put_moves(
    connection: Connection, model: str, moves: Sequence[Move]
) -> tuple[list[CheckpointId], list[str]]:
    model_pk = lock_model(connection, model, time_text(now())).pk
    known = {_key(move) for move in _moves(connection, model_pk)}
    new = [move for move in moves if _key(move) not in known]
    pks = _pks(connection, {move[end] for move in new for end in ("from", "to")} - {None})
    left = {m["name"] for m in new if any(m[e] not in (None, *pks) for e in ("from", "to"))}
    new = [move for move in new if move["name"] not in left]
    # In the order in which they were made, whatever the clocks said: the last one holds.
    for move in new:
        connection.execute(
            insert(alias_moves).values(
                model_pk=model_pk,
                name=move["name"],
                from_pk=pks.get(move["from"]),
                to_pk=pks.get(move["to"]),
                author=move["author"],
                moved_at=move["moved_at"],
            )
        )
    for name, move in {move["name"]: move for move in new}.items():
        connection.execute(
            delete(aliases).where(aliases.c.model_pk == model_pk, aliases.c.name == name)
        )
        if move["to"] is not None:
            connection.execute(
                insert(aliases).values(
                    model_pk=model_pk,
                    name=name,
                    checkpoint_pk=pks[move["to"]],
                    author=move["author"],
                    moved_at=move["moved_at"],
                )
            )
    changed = {move[end] for move in new for end in ("from", "to")} & set(pks)
    return [CheckpointId(id) for id in sorted(changed)], sorted(left)


def _key(move: Move) -> tuple[object, ...]:
    return (move["name"], move["moved_at"], move["from"], move["to"])


def _pks(connection: Connection, ids: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in portions(sorted(ids), 500):
        rows = connection.execute(
            select(checkpoints.c.id, checkpoints.c.pk).where(checkpoints.c.id.in_(part))
        )
        found |= {row.id: row.pk for row in rows}
    return found
