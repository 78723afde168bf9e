"""A registry under test, and what it has promised: what was acknowledged must be there, whole.

Law: `faults` looks at the registry as anybody may, and believes no digest but one that it hashed
itself from the source. A fault is a sentence; no fault is the proof.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import blake3
import torch

from registry import CkregError, Registry
from registry.blobs.local import LocalStore
from registry.catalog import Catalog
from registry.records import Checkpoint
from registry.schema import SHIPPED, VERSION_TABLE, Database, Lineage

from .nursery import WEDGED, Nursery, Outcome


def digest_of(path: Path) -> str:
    """Return the digest that a record should name."""
    return "blake3:" + blake3.blake3(path.read_bytes()).hexdigest()


@dataclass(slots=True)
class Ledger:
    """A registry in a folder, the files beside it, and what was acknowledged.

    Attributes:
        folder: holds `reg`, and the files that are pushed and pulled.
        store, database: where they are; another place than `reg` on request.
        promised: digests by ref. A save's isn't known before, and is None.
        removed: refs whose removal was acknowledged.
        unsure: refs whose removal was asked for and not acknowledged.
        collected: removed refs whose files gc may have taken.
    """

    folder: Path
    store: Path
    database: Path
    lineage: Lineage = SHIPPED
    promised: dict[str, str | None] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    collected: set[str] = field(default_factory=set)
    made: int = 0

    @classmethod
    def new(cls, folder: Path) -> Ledger:
        """Make a registry in a new folder."""
        folder.mkdir(parents=True)
        Registry.create(folder / "reg").close()
        return cls(folder, folder / "reg", folder / "reg/registry.db")

    @property
    def reg(self) -> Path:
        """The registry's location."""
        return self.folder / "reg"

    def file(self, *, tensors: int = 1) -> Path:
        """Write a checkpoint like no other before."""
        self.made += 1
        path = self.folder / f"in{self.made}.pt"
        state = {f"w{i}": torch.full((16, 16), self.made + i / 8) for i in range(tensors)}
        torch.save({"model": "net", "epoch": self.made, "state_dict": state}, path)
        return path

    def push(self, nursery: Nursery) -> tuple[str, Outcome]:
        """Push a new file undisturbed, and return its ref; "" with the outcome if it failed."""
        path = self.file()
        outcome = nursery.run("command", "-r", str(self.reg), "push", str(path), "-q")
        self.note(path, outcome)
        return outcome.out.strip(), outcome

    def note(self, path: Path, outcome: Outcome) -> None:
        """Take down what a push acknowledged, and remove its source."""
        if outcome.out.strip():
            self.promised[outcome.out.strip()] = digest_of(path)
        path.unlink()

    # --- looking ------------------------------------------------------------------------------

    def parts(self) -> tuple[LocalStore, Catalog]:
        """Open it."""
        return (
            LocalStore.open(self.store),
            Catalog(Database.open(self.database, lineage=self.lineage)),
        )

    def faults(self) -> list[str]:
        """Return what is lost, torn or counted wrongly."""
        try:
            store, catalog = self.parts()
            found = {c.ref: c for c in catalog.find(include_removed=True)}
            counters = {m.name: m.versions for m in catalog.models()}
            whole = [c for c in found.values() if c.ref not in self.collected]
            faults = [f"{ref} is torn: {why}" for ref, why in _torn(store, catalog, whole)]
        except CkregError as error:
            return [f"it can't be opened and read: {error}"]
        with closing(sqlite3.connect(self.database)) as connection:
            said = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            said += [str(row) for row in connection.execute("PRAGMA foreign_key_check")]
        faults += [f"SQLite says: {text}" for text in said if text != "ok"]
        for ref, digest in self.promised.items():
            there = found.get(ref)
            if there is None:
                faults.append(f"{ref} was acknowledged, and is lost")
            elif digest is not None and there.digest != digest:
                faults.append(f"{ref} was acknowledged with {digest}, and is {there.digest}")
            elif there.removed_at is None and ref in self.removed:
                faults.append(f"{ref} was removed, and is back")
            elif there.removed_at is not None and ref not in self.removed | self.unsure:
                faults.append(f"{ref} was never removed, and is")
        for model, count in counters.items():
            versions = sorted(c.version for c in found.values() if c.model == model)
            if versions != list(range(1, count + 1)):
                faults.append(f"{model} counts {count} versions, and has {versions}")
        return faults

    def left_over(self) -> list[str]:
        """Return the temporary files that are left, and a journal that was not rolled back."""
        left = [p.name for p in self.store.joinpath("tmp").iterdir()]
        left += [p.name for p in self.folder.glob(".ckreg-*")]
        journal = self.database.with_name("registry.db-journal")
        if journal.exists() and journal.stat().st_size:
            left.append(journal.name)
        return left

    def orphans(self) -> list[str]:
        """Return the blobs that no row names."""
        store, catalog = self.parts()
        there = {f"{p.parent.name}/{p.name}" for p in store.root.glob("blobs/*/*")}
        named = set()
        for checkpoint in catalog.find(include_removed=True):
            for _, blob, index in catalog.blobs_of(checkpoint.id):
                named |= {blob.name, *([index.name] if index else [])}
        return sorted(there - named)

    def goes_on(self, nursery: Nursery) -> list[str]:
        """See that the next writer gets in, and leaves nothing of the killed one behind."""
        ref, outcome = self.push(nursery)
        faults = []
        if outcome.err.endswith(WEDGED):
            faults.append("it is wedged: the next push didn't end")
        elif outcome.code != 0 or not ref:
            faults.append(f"the next push ended with {outcome.ended_by}: {outcome.err.strip()}")
        return faults

    def revision(self) -> str:
        """Return the schema's revision; a killed writer's transaction is rolled back first."""
        with closing(sqlite3.connect(self.database)) as connection:
            (row,) = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}")
            return str(row[0])

    def elsewhere(self, store: Path, database: Path) -> Ledger:
        """Return what was promised so far, of another copy."""
        return Ledger(
            self.folder, store, database, self.lineage, dict(self.promised), set(self.removed),
            set(self.unsure), set(self.collected), self.made + 1_000_000,
        )  # fmt: skip

    @contextmanager
    def copied(self, name: str) -> Iterator[Ledger]:
        """Lend a copy of all, promises too."""
        folder = self.folder.with_name(f"{self.folder.name}-{name}")
        shutil.copytree(self.folder, folder, symlinks=True)
        try:
            yield Ledger(
                folder, folder / "reg", folder / "reg/registry.db", self.lineage,
                dict(self.promised), set(self.removed), set(self.unsure),
                set(self.collected), self.made,
            )  # fmt: skip
        finally:
            shutil.rmtree(folder)


def _torn(
    store: LocalStore, catalog: Catalog, found: Iterable[Checkpoint]
) -> Iterator[tuple[str, str]]:
    for checkpoint in found:
        blobs = catalog.blobs_of(checkpoint.id)
        if [(f.name, f.digest) for f in checkpoint.files] != [(n, b.digest) for n, b, _ in blobs]:
            yield checkpoint.ref, "its record and its files' rows disagree"
        for _, blob, index in blobs:
            for one in (blob, index):
                try:
                    if one is not None:
                        with store.open_blob(one) as file:
                            file.verify()
                except CkregError as error:
                    yield checkpoint.ref, error.message
