"""What is done to a registry in a child process while the system fails: one function each.

Law: an operation acknowledges on stdout, and only what is done; its words are texts. Nothing here
knows how it is disturbed. To add one that is a command, add a line to kills.OPERATIONS.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from registry import Registry, cli
from registry.blobs.local import LocalStore
from registry.catalog import Catalog
from registry.drafting import check
from registry.pushes import push
from registry.schema import HEAD, SHIPPED, Database, Lineage

NEXT: Final = f"{int(HEAD) + 1:04d}"
"""The revision that `migrate` upgrades to: ours and one more, with all that a revision may do."""

_REVISION: Final = f'''"""The next one: a column, a table with data, and a rebuilt parent table."""
import sqlalchemy as sa
from alembic import op
revision = {NEXT!r}
down_revision = {HEAD!r}
branch_labels = depends_on = None


def upgrade():
    op.add_column("models", sa.Column("described", sa.Text()))
    op.create_table("extra", sa.Column("pk", sa.Integer, primary_key=True), sa.Column("t", sa.Text))
    op.execute("INSERT INTO extra (t) SELECT facts_digest FROM checkpoints")
    op.execute("UPDATE models SET described = 'described'")
    with op.batch_alter_table("blobs", recreate="always") as batch:
        batch.add_column(sa.Column("described", sa.Text()))


def downgrade():
    raise NotImplementedError
'''


def next_lineage(folder: Path) -> Lineage:
    """Return our migrations with one more after them, written into a folder."""
    shutil.copytree(SHIPPED.scripts, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / f"{NEXT}_next.py").write_text(_REVISION)
    return Lineage(folder, head=NEXT)


def command(words: Sequence[str]) -> int:
    """Run a command of ckreg, as its process does."""
    return cli.run(words)


def as_nobody(words: Sequence[str]) -> int:
    """Run a command as a user who owns nothing here."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return cli.run(words)


def migrate(words: Sequence[str]) -> int:
    """Upgrade a database: the folder of the migrations, the database."""
    Database(Path(words[1]), lineage=Lineage(Path(words[0]), head=NEXT)).upgrade()
    print(NEXT, flush=True)
    return 0


def push_apart(words: Sequence[str]) -> int:
    """Push with the store and the database in two places: store, database, file."""
    store = LocalStore.open(Path(words[0]))
    catalog = Catalog(Database.open(Path(words[1])))
    made = push(Path(words[2]), check(), None, lambda: (store, catalog), move=False, progress=None)
    print(made.ref, flush=True)
    return 0


def save(words: Sequence[str]) -> int:
    """Save a small net: the registry, the epoch."""
    import torch

    torch.manual_seed(int(words[1]))
    net = torch.nn.Linear(16, 16)
    with Registry.open(words[0]) as reg:
        made = reg.save(net, model="net", epoch=int(words[1]), acc=0.5)
    print(made.ref, flush=True)
    return 0


def push_many(words: Sequence[str]) -> int:
    """Push a file many times: registry, file, first epoch, count.

    Prints of each push its version, and the seconds of its wait for the lock, its hold, and all.
    """
    from registry import schema

    first, count, waits = int(words[2]), int(words[3]), [0.0, 0.0]
    lock = schema.exclusive

    @contextmanager
    def timed(path: Path, *, timeout_s: float) -> Iterator[None]:
        began = time.monotonic()
        with lock(path, timeout_s=timeout_s):
            got = time.monotonic()
            waits[0] = max(waits[0], got - began)
            try:
                yield
            finally:
                waits[1] = max(waits[1], time.monotonic() - got)

    schema.exclusive = timed
    with Registry.open(words[0]) as reg:
        for epoch in range(first, first + count):
            waits[:], began = [0.0, 0.0], time.monotonic()
            made = reg.push(words[1], model="net", epoch=epoch)
            took = time.monotonic() - began
            print(made.version, f"{waits[0]:.4f} {waits[1]:.4f} {took:.4f}", flush=True)
    return 0


def read_many(words: Sequence[str]) -> int:
    """Read until a file appears: registry, the file. Each list must be in order and whole."""
    stop, rounds, most = Path(words[1]), 0, 0
    with Registry.open(words[0]) as reg:
        while not stop.exists():
            rounds += 1
            found = list(reg.find("net", limit=20)) if reg.models() else []
            versions = [c.version for c in found]
            if versions and (versions[0] < most or len(set(versions)) != len(versions)):
                print(f"a list went back or repeats: {versions}", flush=True)
                return 1
            most = versions[0] if versions else 0
            if found:
                reg.plan(found[-1])
            time.sleep(0.05)
    print(rounds, flush=True)
    return 0


OPERATIONS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {
    f.__name__: f for f in (command, as_nobody, migrate, push_apart, save, push_many, read_many)
}


def forbid_torch() -> None:
    """See that no operation of the command line brought torch in."""
    if "torch" in sys.modules:
        raise AssertionError("torch was imported")
