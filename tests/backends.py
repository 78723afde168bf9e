"""The backends that the conformance suite runs on: where the records are, and where the bytes.

The suite is every test of the files in CONFORMING that has a registry or a catalog, but for those
that say `sqlite_only`, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import buckets
import clusters

from registry import Registry, urls
from registry.catalog import Catalog
from registry.schema import Database
from registry.server import ServerDatabase

CONFORMING = frozenset(
    f"test_{name}"
    for name in [
        "carry",
        "catalog",
        "cli",
        "collecting",
        "commits",
        "core",
        "diff",
        "export",
        "import",
        "keeping",
        "pending",
        "queries",
        "repairing",
        "resume",
        "retention",
        "runs",
        "surveying",
        "verifying",
        "web",
        "web_checkpoint",
        "where",
    ]
)

ON_S3 = frozenset({"test_core"})
"""The files of the suite that run on S3 too; the others add nothing there, or look into folders."""


@contextmanager
def sqlite_folder(place: Path) -> Iterator[Registry]:
    """Lend a new registry in a folder."""
    with Registry.create(place / "reg") as registry:
        yield registry


@contextmanager
def sqlite_s3(place: Path) -> Iterator[Registry]:
    """Lend a new registry in a folder, its blobs below a prefix of a bucket."""
    with Registry.create(place / "reg", blobs=buckets.prefix()) as registry:
        yield registry


@contextmanager
def postgres_folder(place: Path) -> Iterator[Registry]:
    """Lend a new registry in a database of its own, its blobs in a folder."""
    with _on_postgres(place / "reg") as registry:
        yield registry


@contextmanager
def postgres_s3(place: Path) -> Iterator[Registry]:
    """Lend a new registry in a database of its own, its blobs below a prefix of a bucket."""
    with _on_postgres(buckets.prefix()) as registry:
        yield registry


@contextmanager
def _on_postgres(blobs: Path | str) -> Iterator[Registry]:
    server = clusters.cluster()
    url = server.database(server.migrated())
    try:
        with Registry.create(url, blobs=blobs) as registry:
            yield registry
    finally:
        server.drop(url)


Backend = Callable[[Path], AbstractContextManager[Registry]]

BACKENDS: dict[str, Backend] = {
    "sqlite+folder": sqlite_folder,
    "sqlite+s3": sqlite_s3,
    "postgres+folder": postgres_folder,
    "postgres+s3": postgres_s3,
}


def why_not(name: str) -> str | None:
    """Return why a backend can't be tested here, or None."""
    why = clusters.why_not() if name.startswith("postgres") else None
    return buckets.why_not() if why is None and name.endswith("s3") else why


def blobs_at(registry: Registry) -> Path:
    """Return the folder of a registry's blobs and records."""
    return Path(registry._parts()[0].location)


def records_at(registry: Registry) -> Path | str:
    """Return where a registry's database is, for `drafts.by_hand`: a file, or a URL."""
    where = registry.location
    return where if "://" in where else Path(where) / "registry.db"


def reopened(place: Path | str) -> Catalog:
    """Return the catalog of a database, opened anew."""
    if isinstance(place, str):
        return Catalog(ServerDatabase.open(urls.parse(place)))
    return Catalog(Database.open(place))
