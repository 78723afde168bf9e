"""Repair: what verify found is mended as far as something whole tells how; and a database made anew
of the records alone.

Law: nothing is deleted. A damaged or foreign file goes to quarantine/, a replaced record and a
replaced database are kept. A row is made only of a record that proves itself, a record only of
rows that prove themselves.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .blobs import Blob, BlobStore, Progress, Total
from .catalog import Catalog, Upkeep, Whole, parse_whole, portions
from .commits import write_record
from .errors import CkregError, ConflictError, DamagedError, NotFoundError
from .location import BLOBS_AT
from .places import BLOBS
from .schema import Database
from .values import FORMAT, CheckpointId, Digest
from .verifying import Finding, Verification

REBUILT: Final = "registry.db.rebuilt"
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Repaired:
    """What repair did.

    Attributes:
        done: findings, each with what was done about it.
        left: findings that need you.
    """

    done: tuple[tuple[Finding, str], ...]
    left: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no damage is left. What was set aside is still lost, until it is pushed again."""
        lost = any(finding.kind == "damaged" for finding, _ in self.done)
        return not lost and not any(finding.damage for finding in self.left)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "done": [finding.to_dict() | {"done": text} for finding, text in self.done],
            "left": [finding.to_dict() for finding in self.left],
        }


def repair(
    store: BlobStore,
    catalog: Catalog,
    upkeep: Upkeep,
    found: Verification,
    *,
    progress: Progress | None = None,
) -> Repaired:
    """Mend what was found, as far as it is still so and something whole tells how.

    Raises:
        ConflictError: the store is another one than the database's.
    """
    store.check_marker()
    upkeep.check(store.id)
    done: list[tuple[Finding, str]] = []
    left: list[Finding] = []
    back: list[Whole] = []
    older = any(finding.kind == "lost row" for finding in found.findings)
    # Records come after rows; but an older copy of a database is behind records that are whole.
    wrong = ("row", "lost row", "record") if older else ("row", "lost row")
    rows = {f.id for f in found.findings if f.kind in wrong and f.id is not None}
    rows = {id for id in rows if _proved(store, id)} | {
        f.id for f in found.findings if f.kind in ("row", "lost row") and f.id is not None
    }
    for id in sorted(rows):  # rows first: the records are then compared with what is right
        whole = _proved(store, id)
        if whole is not None:
            upkeep.put_back([whole])
            back.append(whole)
    upkeep.put_moves(back)
    mended = {whole.checkpoint.id for whole in back}
    for seen, finding in enumerate(found.findings):
        if progress is not None:
            progress(seen, len(found.findings))
        if finding.kind in wrong and finding.id in (None, *rows):
            text = "its rows were made of its record" if finding.id in mended else None
        else:
            text = _mend(store, catalog, finding, rows)
        if text is None:
            left.append(finding)
        else:
            done.append((finding, text))
    for id in sorted(mended):
        write_record(store, catalog, id)
    return Repaired(tuple(done), tuple(left))


def _mend(
    store: BlobStore, catalog: Catalog, finding: Finding, rows: Collection[CheckpointId]
) -> str | None:
    """Mend one finding about a file, and say what was done, or None."""
    if finding.kind in ("damaged", "foreign") and finding.name is not None:
        if finding.kind == "damaged" and _is_whole(store, finding.name):
            return "it is whole now"
        kept = store.set_aside("blobs", *finding.name.split("/"))
        return f"set aside: {kept}"
    if finding.kind == "writable" and finding.name is not None:
        store.protect(finding.name)
        return "made read-only"
    recorded = finding.kind in ("record", "old record")
    if recorded and finding.id is not None and finding.id not in rows:
        kept_at = ""
        with suppress(NotFoundError):
            kept_at = f"; the old one: {_aside(store, finding.id)}"
        write_record(store, catalog, finding.id)
        return f"its record was written of its rows{kept_at}"
    return None


def _aside(store: BlobStore, id: CheckpointId) -> str:
    return store.set_aside("records", id[:2], f"{id}.json")


def _proved(store: BlobStore, id: CheckpointId) -> Whole | None:
    """Return a checkpoint's record, or None where it doesn't prove itself, or isn't all."""
    try:
        whole = parse_whole(store.read_record(id))
    except CkregError:
        return None
    return whole if whole.complete and whole.checkpoint.id == id else None


def _is_whole(store: BlobStore, name: str) -> bool:
    shard, _, file = name.partition("/")
    there = {found.name: found for found in store.files(shard)}.get(name)
    if there is None:
        return False
    try:
        blob = Blob(Digest(f"blake3:{shard}{file[:62]}"), there.size_bytes, name)
        with store.open_blob(blob, cached=False) as stored:
            stored.verify()
    except CkregError:
        return False
    return True


# --- a database of the records alone --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A database that was made anew.

    Attributes:
        path: where it is.
        checkpoints: how many are in it.
        unusable: records that don't prove themselves, or that an older ckreg wrote.
        remarks: what the new database shows to be lost, e.g. a version without a record.
        replaced: whether it is in use now.
        kept: where the old database is then.
    """

    path: Path
    checkpoints: int
    unusable: tuple[CheckpointId, ...]
    remarks: tuple[str, ...]
    replaced: bool
    kept: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "path": str(self.path),
            "checkpoints": self.checkpoints,
            "unusable": list(self.unusable),
            "remarks": list(self.remarks),
            "replaced": self.replaced,
            "kept": None if self.kept is None else str(self.kept),
        }


def rebuild(
    store: BlobStore,
    database: Database,
    *,
    replace: bool,
    elsewhere: str | None = None,
    progress: Progress | None = None,
) -> Rebuilt:
    """Make a database of the records, beside the one in use, and see that it holds together.

    Args:
        replace: put it in the place of the one in use, which is kept.
        elsewhere: where the store is, if not beside the database.
        progress: told of records: each is read, made rows of, compared, and to replace read again.

    Raises:
        NotFoundError: there are no records.
        ConflictError: one was made before and is still there; or checkpoints were made or changed
            meanwhile, or the database in use has some that no record tells of.
        DamagedError: what was made doesn't hold together.
    """
    store.check_marker()
    path = database.path.with_name(REBUILT)
    if path.exists():
        raise ConflictError(f"{str(path)!r} is there already", hint=f"look at it, then: rm {path}")
    ids = list(store.records())
    rounds = 4 if replace else 3
    passes = Total(rounds * len(ids), _once_for(rounds, progress))
    texts, unusable, found = _records(store, ids, passes.next(len(ids)))
    if not texts and not unusable:
        here, at = shlex.quote(str(path.parent)), shlex.quote(str(elsewhere))
        raise NotFoundError(
            f"there are no records at {store.location!r}",
            hint="where the blobs are elsewhere: CKREG_BLOBS=PLACE ckreg verify --rebuild"
            + (
                ""
                if elsewhere is None
                else "; if nothing was saved yet, make the registry anew: "
                f"rm {here}/{BLOBS_AT} && ckreg -r {here} init --blobs {at}"
            ),
        )
    fresh = Database.create(path)
    upkeep = Upkeep(fresh)
    upkeep.adopt(store.id)
    if elsewhere is not None:
        Catalog(fresh).set_setting(BLOBS, elsewhere)
    shown, made = passes.next(len(ids)), 0
    for part in portions(found, _BATCH):
        upkeep.put_back(part)
        made += len(part)
        if shown is not None:
            shown(made, len(ids))
    upkeep.put_moves(found, models=True)
    remarks = _checked(upkeep, found, passes.next(len(ids)))
    kept = None
    if replace:

        def unchanged() -> None:
            again = list(store.records())
            if _records(store, again, passes.next(len(ids)))[0] != texts:
                raise ConflictError(
                    "checkpoints were made or changed meanwhile", hint=f"rm {path}, and again"
                )
            known = {whole.checkpoint.id for whole in found}
            more = [id for id in _ids(Upkeep(database)) if id not in known]
            if more:
                raise ConflictError(
                    f"the database in use has {len(more)} checkpoints that no whole record tells "
                    f"of, one is {more[0]}; both databases are there",
                    hint="write these records first: ckreg verify --repair",
                )

        kept = database.replace(path, unchanged)
    return Rebuilt(
        database.path if replace else path, len(found), tuple(unusable), remarks, replace, kept
    )


def _once_for(rounds: int, progress: Progress | None) -> Progress | None:
    """Return what counts a record when so many things were done for one, whichever they are."""
    if progress is None:
        return None
    return lambda done, total: progress(done // rounds, total // rounds)


def _records(
    store: BlobStore, ids: Sequence[CheckpointId], progress: Progress | None
) -> tuple[dict[str, Digest], list[CheckpointId], list[Whole]]:
    """Return the seals of all records, the ids of those that are no use, and the others."""
    seals: dict[str, Digest] = {}
    unusable: list[CheckpointId] = []
    found: list[Whole] = []
    for seen, id in enumerate(ids, 1):
        whole = _proved(store, id)
        if whole is None:
            unusable.append(id)
        else:
            seals[id] = whole.plain["seal"]
            found.append(whole)
        if progress is not None:
            progress(seen, len(ids))
    # As they came, so that of equals in a list the order stays
    found.sort(key=lambda w: (w.checkpoint.created_at, w.checkpoint.model, w.checkpoint.version))
    return seals, unusable, found


def _checked(upkeep: Upkeep, found: Sequence[Whole], progress: Progress | None) -> tuple[str, ...]:
    """See that each checkpoint reads back as its record has it; return what is lost.

    Raises:
        DamagedError: it doesn't.
    """
    wrong = upkeep.integrity()
    expected = {whole.checkpoint.id: whole for whole in found}
    after = 0
    while page := upkeep.page(after=after):
        for one in page:
            whole = expected.pop(one.id)
            wrong += [f"{one.ref}: {w.what}" for w in one.wrong]
            if one.record is None or one.record["checkpoint"] != whole.plain["checkpoint"]:
                wrong.append(f"{one.ref} reads back as another checkpoint")
        after = page[-1].pk
        if progress is not None:
            progress(len(found) - len(expected), len(found))
    wrong += [f"{whole.checkpoint.ref} is not in it" for whole in expected.values()]
    if wrong:
        raise DamagedError(
            f"the database that was made doesn't hold together: {wrong[0]}",
            hint="two records may be of one version: see ckreg verify",
        )
    return tuple(f"{w.where}: {w.what}" for w in upkeep.rest())


def _ids(upkeep: Upkeep) -> list[CheckpointId]:
    """Return the checkpoints of a database; none of one that can't be read."""
    try:
        return upkeep.ids()
    except (DamagedError, NotFoundError):
        return []
