"""Every kind of blob store, with a hand in its back door: what the tests damage and count."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from registry import Registry
from registry.blobs import Blob, LocalStore, ObjectStore


class Held(ABC):
    """A store, and what lies in it, past its own code."""

    store: LocalStore | ObjectStore

    @property
    @abstractmethod
    def staging(self) -> Path:
        """The folder where files are staged."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write a file of the store."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the bytes of a file of the store."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file of the store."""

    @abstractmethod
    def keys(self, below: str) -> list[str]:
        """Return the names of the store's files below one of its folders."""

    def damage(self, blob: Blob, data: bytes) -> None:
        """Give a blob other bytes."""
        self.put(f"blobs/{blob.name}", data)

    def staged(self) -> list[str]:
        """Return what is staged."""
        return os.listdir(self.staging)


class HeldFolder(Held):
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.store: LocalStore = LocalStore.create(root)
        self.root = root

    @property
    def staging(self) -> Path:
        return self.root / "tmp"

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(exist_ok=True)
        path.touch()
        mode = path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(data)
        path.chmod(mode)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def remove(self, key: str) -> None:
        (self.root / key).unlink()

    def keys(self, below: str) -> list[str]:
        found = (self.root / below).rglob("*")
        return sorted(p.relative_to(self.root).as_posix() for p in found if p.is_file())


class HeldBucket(Held):
    """A store in a bucket."""

    def __init__(self, url: str) -> None:
        self.store: ObjectStore = ObjectStore.create(url)
        self.attach(url)

    def attach(self, url: str) -> None:
        """Put the hand in the back door of a store that is there."""
        from obstore.store import S3Store

        self._raw = S3Store.from_url(url, client_options={"allow_http": True})

    @property
    def staging(self) -> Path:
        return Path(os.environ["CKREG_CACHE"], "tmp")

    def put(self, key: str, data: bytes) -> None:
        import obstore

        obstore.put(self._raw, key, data)

    def read(self, key: str) -> bytes:
        import obstore

        return bytes(obstore.get(self._raw, key).bytes())

    def remove(self, key: str) -> None:
        import obstore

        obstore.delete(self._raw, key)

    def keys(self, below: str) -> list[str]:
        import obstore

        return sorted(one["path"] for page in obstore.list(self._raw, below) for one in page)


def bring_only_what_is_asked_for() -> None:
    """Let no byte of a bucket come unasked in this process, so that one which is used and wasn't
    asked for is found missing: it is 0.
    """
    from registry.blobs import fetched

    fetched._SMALL = fetched._NEAR = 0
    fetched._BUDGET = 1 << 60


def hand_on(registry: Registry) -> Held:
    """Return a hand in the back door of a registry's store."""
    place = registry._parts()[0].location
    return HeldBucket(place) if "://" in place else HeldFolder(Path(place))
