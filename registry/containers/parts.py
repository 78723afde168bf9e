"""The files of a folder, as its readers see them: looked up by name, read, and put in their place.

Law: a storage of a folder says which file holds it and where in that file it lies; a name that an
index gives is a file of this folder or an error.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from ..errors import CkregError, ContainerError, DamagedError, UntrustedError
from .contents import ByteOrder, Container, Contents
from .source import ByteSource
from .tree import Assembled, Storage, StorageView, Tensor, settle, walk

MAX_JSON_BYTES: Final = 128 << 20

Read = Callable[[ByteSource, str], Contents]
"""Reads one file: its bytes, and how to call it in errors."""


class Found(NamedTuple):
    """What a folder holds once it is read, before it becomes a `Contents`."""

    container: Container
    root: dict[Any, Any]


class Folder:
    """A folder's files, and what has been read of them.

    Args:
        files: all files by path.
        name: how to call the folder in errors.
        read: reads one file.
        prefix: the folder inside that this one stands for, with a slash at its end.
        whole: the folder that this one is inside of.
    """

    def __init__(
        self,
        files: Mapping[str, ByteSource],
        name: str,
        read: Read,
        prefix: str = "",
        whole: Folder | None = None,
    ) -> None:
        self._files = files
        self.name = name
        self._read = read
        self._prefix = prefix
        self._gathered: Gathered = whole._gathered if whole else Gathered()

    # --- names ------------------------------------------------------------------------------------

    def names(self) -> set[str]:
        """Return the names of all files in it and below."""
        start = len(self._prefix)
        return {path[start:] for path in self._files if path.startswith(self._prefix)}

    def top(self) -> set[str]:
        """Return the names of the files in it, those below left out."""
        return {name for name in self.names() if "/" not in name}

    def folders(self) -> set[str]:
        """Return the names of the folders in it that hold files."""
        return {name.partition("/")[0] for name in self.names() if "/" in name}

    def below(self, name: str) -> Folder:
        """Return a folder in it."""
        return Folder(self._files, self.name, self._read, f"{self._prefix}{name}/", self)

    def path(self, name: str) -> str:
        """Return a file's path in the whole checkpoint."""
        return self._prefix + name

    def label(self, name: str = "") -> str:
        """Return how to call a file in errors, or this folder."""
        return posixpath.join(self.name, self._prefix + name).rstrip("/") or "."

    def quoted(self, name: str = "", *, whole: bool = False) -> str:
        """Return a file's path, or this folder's, quoted for a shell.

        Args:
            whole: the name is a path in the whole checkpoint already.
        """
        return shlex.quote(posixpath.join(self.name, name) if whole else self.label(name))

    # --- contents ---------------------------------------------------------------------------------

    def source(self, name: str) -> ByteSource:
        """Return a file's bytes.

        Raises:
            DamagedError: there is no such file.
        """
        try:
            return self._files[self._prefix + name]
        except KeyError:
            raise DamagedError(f"{self.label()!r} lacks the file {name!r}") from None

    def part(self, name: str, read: Read | None = None) -> Contents:
        """Read a file of it, and note that it was needed.

        Args:
            read: reads it otherwise than by its kind.
        """
        contents = (read or self._read)(self.source(name), self.label(name))
        self.take(name, contents)
        return contents

    def take(self, name: str, contents: Contents, base: int = 0) -> None:
        """Put what was read from a file, or from a part of it, in its place in the folder.

        Args:
            base: where in the file the part starts.
        """
        path = self.path(name)
        place = f"{path}@{base}" if base else path
        settled: set[int] = set()
        for storage in (*contents.storages, *_storages(contents.root)):
            if id(storage) not in settled:
                settled.add(id(storage))
                settle(
                    storage, file=path, key=f"{place}:{storage.key}", offset=base + storage.offset
                )
        self.use(name)
        gathered = self._gathered
        gathered.storages.extend(contents.storages)
        gathered.unsafe.update(contents.unsafe_globals)
        gathered.warnings += [f"{path}: {warning}" for warning in contents.warnings]
        if contents.storages:  # else its byte order means nothing
            gathered.byteorders.setdefault(contents.byteorder, path)

    def use(self, name: str) -> None:
        """Note that a file was needed."""
        self._gathered.used[self.path(name)] = self.source(name).size

    def warn(self, warning: str) -> None:
        """Note what is odd and harms nothing."""
        self._gathered.warnings.append(warning)

    def json(self, name: str) -> dict[str, Any]:
        """Return the object that a JSON file holds.

        Raises:
            DamagedError: it is no JSON object.
            UntrustedError: it is too large, or has a key twice.
        """
        source, label = self.source(name), self.label(name)
        if source.size > MAX_JSON_BYTES:
            raise UntrustedError(
                f"{label!r} has {source.size} bytes; {MAX_JSON_BYTES} is the most for a JSON file"
            )
        self.use(name)
        return parse_json(source.pread(0, source.size), label)

    def contents(self, found: Found) -> Contents:
        """Return the folder's contents, with all that was gathered from its files.

        Raises:
            ContainerError: its files are of both byte orders.
        """
        gathered = self._gathered
        if len(gathered.byteorders) > 1:
            raise ContainerError(
                f"the files of {self.name!r} are of two byte orders: "
                + ", ".join(
                    f"{path} is {order}-endian" for order, path in gathered.byteorders.items()
                )
            )
        return Contents(
            container=found.container,
            root=found.root,
            storages=tuple(sorted(gathered.storages, key=lambda s: (s.file, s.offset))),
            byteorder=next(iter(gathered.byteorders), "little"),
            unsafe_globals=tuple(sorted(gathered.unsafe)),
            size_bytes=sum(gathered.used.values()),
            warnings=tuple(gathered.warnings),
            used_files=tuple(sorted(gathered.used)),
        )


class Gathered:
    """What the files of a folder that were read so far add to its `Contents`."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.unsafe: set[str] = set()
        self.warnings: list[str] = []
        self.used: dict[str, int] = {}
        self.byteorders: dict[ByteOrder, str] = {}


def _storages(root: object) -> Iterable[Storage]:
    """Yield the storages that a tree names, those without bytes too, some of them twice."""
    for node in walk(root):
        if isinstance(node, Tensor):
            yield node.storage
        elif isinstance(node, StorageView):
            yield node.root
        elif isinstance(node, Storage):
            yield node
        elif isinstance(node, Assembled):
            yield from (chunk.tensor.storage for chunk in node.chunks)


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """Return the object that a JSON text holds. Raises as `Folder.json`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise UntrustedError(f"{label!r} has a key twice")
        return made

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
    except CkregError:
        raise
    except (ValueError, RecursionError):
        raise DamagedError(f"{label!r} is no JSON") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{label!r} is no JSON object")
    return value


def is_inside(path: object) -> bool:
    """Say whether a name that a file gives is a relative path that stays inside its folder."""
    return (
        isinstance(path, str)
        and 0 < len(path) <= 4_096
        and "\0" not in path
        and "\\" not in path
        and not any(part in ("", ".", "..") for part in path.split("/"))
    )


def missing(folder: Folder, names: list[str], total: int, *, what: str, cure: str) -> DamagedError:
    """Return the error for files that an index names and the folder lacks.

    Args:
        names: those that are missing.
        total: how many the index names.
        what: what they are: `shard`.
    """
    count = len(names)
    shown = ", ".join(map(repr, names[:6])) + (f" and {count - 6} more" if count > 6 else "")
    plural = what + "s" if total > 1 else what
    return DamagedError(
        f"{folder.label()!r} lacks {count} of its {total} {plural}: {shown}", hint=cure
    )
