"""verify: every byte, every row, every record, each against the others.

Law: it changes nothing. What is found once is looked at again before it is said, since others write
meanwhile: a finding is what no order of their steps explains. One bad thing never ends the search.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .blobs import Blob, BlobStore, Progress, StoredFile, read_through
from .blobs.listing import joined
from .blobs.ranges import Index
from .blobs.reading import copy_back
from .catalog import Catalog, Checked, Dataset, Upkeep, parse_whole
from .errors import CkregError, DamagedError, NotFoundError, warn
from .formatting import listed
from .records import Checkpoint
from .values import FORMAT, CheckpointId, Digest, canonical_json

Kind = Literal[
    "missing", "damaged", "index", "row", "database", "record", "lost row", "store",
    "foreign", "orphan", "hard link", "writable", "leftover", "old record", "kept",
]  # fmt: skip

REMARKS: Final = frozenset(
    {"foreign", "orphan", "hard link", "writable", "leftover", "old record", "kept"}
)
"""What loses nothing as it is; all else is damage."""

_AT_ONCE: Final = 1000  # files whose rows are looked up in one transaction


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that isn't as it should be.

    Attributes:
        where: the file or the row.
        mend: how to mend it.
        id: the checkpoint whose row or record it is.
        name: the file below blobs/ that it is.
    """

    kind: Kind
    what: str
    where: str
    mend: str
    id: CheckpointId | None = None
    name: str | None = None

    @property
    def damage(self) -> bool:
        """Whether something is lost or wrong; else it is a remark."""
        return self.kind not in REMARKS

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "damage": self.damage,
            "what": self.what,
            "where": self.where,
            "mend": self.mend,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """What verify saw.

    Attributes:
        checked: checkpoints, removed ones too.
        files: blobs read.
        bytes_read: of them.
        findings: damage first.
    """

    checked: int
    files: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing; there may be remarks."""
        return not any(f.damage for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "checked": self.checked,
            "files": self.files,
            "bytes_read": self.bytes_read,
            "findings": [f.to_dict() for f in self.findings],
        }


def together(found: Sequence[Verification]) -> Verification:
    """Return several verifications as one, damage first."""
    findings = (finding for one in found for finding in one.findings)
    return Verification(
        sum(one.checked for one in found),
        sum(one.files for one in found),
        sum(one.bytes_read for one in found),
        tuple(sorted(dict.fromkeys(findings), key=lambda finding: not finding.damage)),
    )


def verify(
    store: BlobStore,
    catalog: Catalog,
    upkeep: Upkeep,
    checkpoint: Checkpoint | None,
    *,
    progress: Progress | None,
) -> Verification:
    """Verify one checkpoint, or all that there is."""
    work = _Verifier(store, catalog, upkeep, progress)
    if checkpoint is None:
        work.everything()
    else:
        work.one(checkpoint)
    found = sorted(work.findings, key=lambda f: (not f.damage, f.kind, f.where))
    return Verification(work.checked, work.files, work.bytes_read, tuple(found))


def newest_whole(
    store: BlobStore,
    catalog: Catalog,
    upkeep: Upkeep,
    model: str,
    *,
    dataset: Dataset,
    run: str | None,
) -> Checkpoint:
    """Return the newest checkpoint whose rows and bytes are whole; warn of those passed over.

    Raises:
        NotFoundError, AmbiguousError: as `Catalog.latest`; or all are damaged.
        CkregError: the bytes can't be reached.
    """
    found = upkeep.older(model, dataset=dataset, run=run)
    passed: list[str] = []
    while found is not None:
        id, version = found
        ref = f"{model}@v{version}"
        try:
            checkpoint = catalog.by_id(id)
            for _, blob, _ in catalog.blobs_of(id):
                # Past a cache, which may hold what the store has lost: all machines must agree.
                with store.open_blob(blob, cached=False) as stored:
                    if (digest := stored.hash()) != blob.digest:
                        raise DamagedError(f"its bytes have the digest {digest}")
            return checkpoint
        except (DamagedError, NotFoundError) as error:
            warn(f"{ref} is damaged, and passed over: {error.message}; see: ckreg verify {ref}")
            passed.append(ref)
        found = upkeep.older(model, dataset=dataset, run=run, than=version)
    raise NotFoundError(
        f"no checkpoint of {model!r} is whole: {listed(passed)} "
        f"{'is' if len(passed) == 1 else 'are'} damaged",
        hint="see: ckreg verify",
    )


@dataclass(slots=True)
class _Verifier:
    """One verification under way."""

    store: BlobStore
    catalog: Catalog
    upkeep: Upkeep
    progress: Progress | None
    findings: list[Finding] = field(default_factory=list)
    checked: int = 0
    files: int = 0
    bytes_read: int = 0
    total: int = 0

    def everything(self) -> None:
        self.total = self.catalog.stored()[1]
        self.marker()
        self.database()
        self.checkpoints()
        self.lost_rows()
        for file in self.store.strays():
            self.foreign(file)
        for shard in self.store.lacking():
            self.say(
                "store", "a folder of blobs/ is missing", f"blobs/{shard}",
                f"mkdir {shlex.quote(f'{self.store.location}/blobs/{shard}')}",
            )  # fmt: skip
        for folders in joined(self.store.walk(), _AT_ONCE):
            self.folders(folders)
        for path in self.store.kept():
            self.say(
                "kept", "a save that couldn't be committed in time waits here",
                str(path.relative_to(self.store.location)),
                f"ckreg push {shlex.quote(str(path))} --move",
            )  # fmt: skip
        for file in self.store.leftovers():
            self.say(
                "leftover", f"a killed writer left {file.size_bytes:,} bytes",
                f"tmp/{file.name}", "the next write or gc takes it: ckreg gc",
            )  # fmt: skip

    def one(self, checkpoint: Checkpoint) -> None:
        blobs = self.catalog.blobs_of(checkpoint.id)
        self.total = sum(b.size_bytes for _, *pair in blobs for b in pair if b is not None)
        self.marker()
        self.checkpoint(self.upkeep.one(checkpoint.id))
        for _, blob, index in blobs:
            for part, its_index in ((blob, index), (index, None)):
                if part is not None:
                    there = {f.name: f for f in self.store.files(part.folder)}
                    self.named(part, there.get(part.name), its_index)

    # --- the database ------------------------------------------------------------------------

    def marker(self) -> None:
        known = self.upkeep.store()
        try:
            self.store.check_marker()
            self.upkeep.check(self.store.id)
        except CkregError as error:
            self.say("store", error.message, "store.json", error.hint or f"it should say {known}")

    def database(self) -> None:
        try:
            for text in self.upkeep.integrity():
                self.say("database", text, "registry.db", _REBUILD)
            for wrong in self.upkeep.rest():
                self.say("row", wrong.what, wrong.where, _REBUILD)
        except DamagedError as error:
            self.say("database", error.message, "registry.db", _REBUILD)

    def checkpoints(self) -> None:
        after = 0
        try:
            while page := self.upkeep.page(after=after):
                for found in page:
                    self.checkpoint(found)
                after = page[-1].pk
        except DamagedError as error:
            self.say("database", error.message, "registry.db", _REBUILD)

    def checkpoint(self, found: Checked) -> None:
        self.checked += 1
        for wrong in found.wrong:
            self.say(
                "row", f"{found.ref}: {wrong.what}", wrong.where,
                "from its record: ckreg verify --repair", id=found.id,
            )  # fmt: skip
        if found.record is not None:
            self.record(found, found.record)
        else:
            self.unread_record(found.id, found.ref)

    # --- records -----------------------------------------------------------------------------

    def record(self, found: Checked, expected: dict[str, Any]) -> None:
        """Compare a record with its rows, again where one was being written just then."""
        id, newest = found.id, found.newest
        for _ in range(100):
            kind, why = self._compared(id, expected, newest)
            if kind is None:
                return
            # Rows are committed first, then the record is written: give that writer his time.
            time.sleep(_PAUSE_S)
            now = self.upkeep.one(id)
            if now.record is None:
                return
            if now.record == expected and (kind, why) == self._compared(id, expected, now.newest):
                break
            expected, newest = now.record, now.newest
        assert kind is not None
        self.say(kind, f"{found.ref}: {why}", _record(id), "ckreg verify --repair", id=id)

    def _compared(
        self, id: CheckpointId, expected: dict[str, Any], newest: bool
    ) -> tuple[Literal["record", "old record"] | None, str]:
        try:
            text = self.store.read_record(id)
            if text == canonical_json(expected):
                return None, ""
            found = parse_whole(text)
        except NotFoundError:
            return "record", "its record is missing"
        except CkregError as error:
            return "record", error.message
        plain = json.loads(canonical_json(expected))
        said = dict(found.plain)
        if not found.complete:
            # Fields are only ever added: what it doesn't say is what it is read as.
            said["checkpoint"] = json.loads(canonical_json(found.checkpoint.to_dict()))
            for file in plain["blobs"]:
                file.pop("probe", None)
        # Another checkpoint of the architecture may have told since what is a parameter and what a
        # buffer; names, shapes and dtypes are in the digest.
        for one in (said, plain) if "signatures" in said else ():
            one["signatures"] = [signature["digest"] for signature in one["signatures"]]
        differ = sorted(name for name in said if said[name] != plain.get(name))
        differ = [name for name in differ if name != "seal" and (newest or name != "model")]
        if found.complete and not differ and text == canonical_json(found.plain):
            return None, ""  # of a monitor only the newest record tells
        if not found.complete and not differ:
            return "old record", "an older ckreg wrote its record, which isn't whole"
        return "record", f"its record and its rows disagree on {', '.join(differ) or 'its form'}"

    def unread_record(self, id: CheckpointId, ref: str) -> None:
        """Look at the record of a checkpoint whose rows can't be read."""
        try:
            parse_whole(self.store.read_record(id))
        except (CkregError, ValueError) as error:
            self.say(
                "record", f"{ref}: neither its rows nor its record are whole: {error}",
                str(id), "bring one of them back from a backup", id=None,
            )  # fmt: skip

    def lost_rows(self) -> None:
        try:
            lost = self.upkeep.unknown(self.store.records())
        except DamagedError:
            return  # said already
        for id in lost:
            self.say(
                "lost row", "a record is there, and no row: perhaps the database is an older copy",
                _record(id), "ckreg verify --repair", id=id,
            )  # fmt: skip

    # --- bytes -------------------------------------------------------------------------------

    def folders(self, found: Sequence[tuple[str, Sequence[StoredFile]]]) -> None:
        try:
            known = self.upkeep.named_in([shard for shard, _ in found])
        except DamagedError:
            # The row was said; of which of its folder's files it is can't be told.
            for one in found if len(found) > 1 else ():
                self.folders([one])
            return
        for (shard, files), (named, indexes) in zip(found, known, strict=True):
            self.folder(shard, files, named, indexes)

    def folder(
        self,
        shard: str,
        files: Sequence[StoredFile],
        named: Mapping[str, Blob],
        indexes: Mapping[Digest, Blob],
    ) -> None:
        there = {file.name: file for file in files}
        for name, blob in named.items():
            self.named(blob, there.get(name), indexes.get(blob.digest))
        for name, file in there.items():
            if name in named:
                continue
            if file.blob is None:
                self.foreign(file)
            elif name not in self.upkeep.blobs_in([shard])[0] and self.store.holds(file.blob):
                self.say(
                    "orphan", f"no row names these {file.size_bytes:,} bytes", f"blobs/{name}",
                    "gc takes it after the grace: ckreg gc", name=name,
                )  # fmt: skip

    def named(self, blob: Blob, file: StoredFile | None, index: Blob | None) -> None:
        """Look at a blob that a row names, and read it."""
        if file is None and not self.store.holds(blob) and self.still(blob):
            self.say(
                "missing", f"{self.of(blob)}: the file is gone", f"blobs/{blob.name}",
                f"push the same file again, or: {copy_back(self.place(blob))}", name=blob.name,
            )  # fmt: skip
            return
        if file is not None and file.links > 1:
            path = shlex.quote(self.place(blob))
            self.say(
                "hard link", f"it has {file.links} names: who writes to another one changes it",
                f"blobs/{blob.name}", f"cp {path} {path}.new && mv -f {path}.new {path}",
                name=blob.name,
            )  # fmt: skip
        if file is not None and file.writable:
            self.say(
                "writable", "its mode lets it be written to", f"blobs/{blob.name}",
                f"chmod a-w {shlex.quote(self.place(blob))}", name=blob.name,
            )  # fmt: skip
        self.read(blob, index)

    def read(self, blob: Blob, index: Blob | None) -> None:
        before = self.bytes_read
        try:
            ranges = None if index is None else self.index(blob, index)
            with self.store.open_blob(blob, cached=False) as stored:
                found, wrong = read_through(ranges, stored, progress=self.shown(before))
            self.files += 1
            self.bytes_read = before + blob.size_bytes
        except NotFoundError:
            if self.still(blob):
                self.say("missing", f"{self.of(blob)}: the file is gone", f"blobs/{blob.name}",
                         f"push the same file again, or: {copy_back(self.place(blob))}",
                         name=blob.name)  # fmt: skip
            return
        except CkregError as error:  # of another size, or a disk that fails
            if self.still(blob):
                self.damaged(blob, error.message)
            return
        if found != blob.digest:
            self.damaged(blob, f"its bytes have the digest {found}")
        elif wrong:
            first = wrong[0]
            self.say(
                "index", f"{self.of(blob)}: its index has another digest for bytes {first.offset} "
                f"to {first.end - 1}", f"blobs/{blob.name}",
                "loads read the whole file instead: push the same file again", name=blob.name,
            )  # fmt: skip

    def index(self, blob: Blob, index: Blob) -> Index | None:
        """Return a file's index, or None where it is damaged by itself, which is said of it."""
        try:
            with self.store.open_blob(index, cached=False) as stored:
                found = Index.from_bytes(stored.pread(0, stored.size))
                whole = stored.hash() == index.digest
        except CkregError:
            return None
        if (found.digest, found.size_bytes) != (blob.digest, blob.size_bytes):
            if whole:
                self.say(
                    "index", f"{self.of(blob)}: its index is of another file, {found.digest}",
                    f"blobs/{index.name}", "push the same file again", name=index.name,
                )  # fmt: skip
            return None
        return found if whole else None

    def damaged(self, blob: Blob, what: str) -> None:
        self.say(
            "damaged", f"{self.of(blob)}: {what}", f"blobs/{blob.name}",
            f"push the same file again, or: ckreg verify --repair, then "
            f"{copy_back(self.place(blob))}", name=blob.name,
        )  # fmt: skip

    def foreign(self, file: StoredFile) -> None:
        self.say(
            "foreign", "no blob is called so" if file.regular else "it is no file",
            f"blobs/{file.name}", "set it aside: ckreg verify --repair", name=file.name,
        )  # fmt: skip

    # --- words -------------------------------------------------------------------------------

    def still(self, blob: Blob) -> bool:
        """Say whether a row names the blob now: gc, or a push with a better copy, may have come."""
        try:
            return self.catalog.blob(blob.digest) == blob
        except DamagedError:
            return True

    def of(self, blob: Blob) -> str:
        try:
            refs = self.upkeep.refs_of(blob.digest)
        except DamagedError:
            return str(blob.digest)
        more = f" and {len(refs) - 3} more" if len(refs) > 3 else ""
        return (", ".join(refs[:3]) or str(blob.digest)) + more

    def place(self, blob: Blob) -> str:
        return f"{self.store.location}/blobs/{blob.name}"

    def shown(self, before: int) -> Progress | None:
        shown, total = self.progress, self.total
        return None if shown is None else lambda done, _: shown(before + done, total)

    def say(
        self,
        kind: Kind,
        what: str,
        where: str,
        mend: str,
        *,
        id: CheckpointId | None = None,
        name: str | None = None,
    ) -> None:
        self.findings.append(Finding(kind, what, where, mend, id, name))


_PAUSE_S: Final = 0.1
_REBUILD: Final = "from the records: ckreg verify --rebuild"


def _record(id: CheckpointId) -> str:
    return f"records/{id[:2]}/{id}.json"
