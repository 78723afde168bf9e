"""`.metadata`, the index of a torch.distributed.checkpoint (DCP) folder, read, not unpickled.

Law: the classes of torch that it is made of are known by name, as records; anything else in their
place is refused. A path in it is a file of this folder, a range lies inside that file, no two
overlap, and the chunks of a tensor cover it exactly. After torch/distributed/checkpoint/metadata.py
and filesystem.py of 2.13; those of 2.0 are the same but for the module of TensorProperties.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ContainerError, DamagedError, UntrustedError
from .limits import check_nesting
from .opcodes import OutOfBytesError
from .parts import Folder, is_inside, missing
from .pickles import read_pickle
from .recording import Recorder
from .tree import DTYPES, Constant, Opaque

MAX_METADATA_BYTES: Final = 256 << 20
MAX_COMPARISONS: Final = 1_000_000
"""Of pieces with one another; those that are a grid need none."""
MAX_PARTS: Final = 64

DISTCP: Final = re.compile(r"__(?P<rank>\d+)_(?P<part>\d+)\.distcp")

Offsets = tuple[int, ...]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A run of bytes in one of the folder's files: one torch.save stream.

    Attributes:
        transforms: what it was passed through before it was written, such as `zstd`.
    """

    file: str
    offset: int
    length: int
    transforms: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tensor as `.metadata` describes it.

    Attributes:
        chunks: its pieces' (offsets, sizes), sorted, those without elements left out.
    """

    dtype: str
    shape: Offsets
    chunks: tuple[tuple[Offsets, Offsets], ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What `.metadata` says.

    Attributes:
        tensors: by name.
        values: the names of what is no tensor.
        items: where each piece is, by name and offsets; by name and None where it is no tensor.
        paths: where in the state dict a name belongs; others stand at its top.
    """

    tensors: dict[str, Pieces]
    values: tuple[str, ...]
    items: dict[tuple[str, Offsets | None], Item]
    paths: dict[str, Path]


def read_metadata(folder: Folder, name: str = ".metadata") -> Metadata:
    """Read a folder's `.metadata`, and check it against the folder's files.

    Raises:
        DamagedError: it is cut short or contradicts itself, or a file that it names is missing or
            too short.
        ContainerError: a tensor in it is of a sort that isn't read, or a file isn't in it.
        UntrustedError: it names a file elsewhere, ranges overlap, or it passes a limit.
    """
    source, label = folder.source(name), folder.label(name)
    if source.size > MAX_METADATA_BYTES:
        raise UntrustedError(f"{label!r} has {source.size} bytes; {MAX_METADATA_BYTES} is the most")
    metadata = parse_metadata(source.pread(0, source.size), label)
    folder.use(name)
    _check_files(folder, name, metadata)
    return metadata


def parse_metadata(data: bytes, label: str) -> Metadata:
    """Read what `.metadata` says, by itself.

    Args:
        label: how to call it in errors.

    Raises:
        DamagedError, ContainerError, UntrustedError: as `read_metadata`, the files left aside.
    """
    try:
        root, end = read_pickle(data, Recorder())
    except OutOfBytesError:
        raise DamagedError(
            f"{label!r} is cut short: its pickle doesn't end", hint="save again, or copy it again"
        ) from None
    if end != len(data):
        raise UntrustedError(f"the pickle in {label!r} ends at byte {end} of {len(data)}")
    check_nesting(root)
    reader = _Reader(label)
    return reader.metadata(reader.state(root, "Metadata"))


class _Reader:
    """The parts of one `.metadata`, each checked to be what torch writes."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.comparisons_left = MAX_COMPARISONS

    def damaged(self, what: str) -> DamagedError:
        return DamagedError(f"{self.label!r} {what}, which torch doesn't write")

    def state(self, node: Any, cls: str) -> dict[Any, Any]:
        """Return the fields of an object of one of torch's classes."""
        if (
            not isinstance(node, Opaque)
            or not node.name.startswith("torch.distributed.")
            or node.name.rpartition(".")[2] != cls
        ):
            raise self.damaged(f"has something else where a {cls} belongs")
        state = node.state
        if state is None:
            return {}
        if not isinstance(state, dict):
            raise self.damaged(f"has a {cls} without fields")
        return state

    def sizes(self, value: Any) -> Offsets:
        if (
            not isinstance(value, tuple | list)
            or len(value) > MAX_PARTS
            or any(type(n) is not int or not 0 <= n < 2**63 for n in value)
        ):
            raise self.damaged("has sizes or offsets that are none")
        return tuple(value)

    def metadata(self, top: dict[Any, Any]) -> Metadata:
        described, placed = top.get("state_dict_metadata"), top.get("storage_data")
        if not isinstance(described, dict) or not isinstance(placed, dict):
            raise self.damaged("lacks state_dict_metadata or storage_data")
        tensors: dict[str, Pieces] = {}
        values: list[str] = []
        for name, node in described.items():
            if type(name) is not str:
                raise self.damaged("has a name that is no text")
            if isinstance(node, Opaque) and node.name.endswith(".BytesStorageMetadata"):
                self.state(node, "BytesStorageMetadata")
                values.append(name)
            else:
                tensors[name] = self.pieces(name, self.state(node, "TensorStorageMetadata"))
        wanted: set[tuple[str, Offsets | None]] = {(name, None) for name in values}
        wanted |= {(name, offsets) for name, t in tensors.items() for offsets, _ in t.chunks}
        items = self.items(placed, wanted, described.keys())
        for name, offsets in sorted(wanted - items.keys(), key=repr):
            at = "" if offsets is None else f" at {offsets}"
            raise DamagedError(f"{self.label!r} doesn't say where {name!r}{at} is")
        return Metadata(tensors, tuple(values), items, self.paths(top.get("planner_data")))

    def pieces(self, name: str, fields: dict[Any, Any]) -> Pieces:
        properties = fields.get("properties")
        given = properties.state if isinstance(properties, Opaque) else None
        if (
            not isinstance(given, tuple)
            or len(given) != 5
            or not isinstance(given[0], Constant)
            or given[0].kind != "dtype"
        ):
            raise self.damaged(f"has no dtype for {name!r}")
        dtype, layout = given[0].name, given[1]
        if dtype not in DTYPES or layout != Constant("layout", "strided"):
            raise ContainerError(f"{self.label!r} has a tensor of an unknown sort at {name!r}")
        shape, chunks = self.sizes(fields.get("size")), fields.get("chunks")
        if not isinstance(chunks, list):
            raise self.damaged(f"has no chunks for {name!r}")
        found: list[tuple[Offsets, Offsets]] = []
        for chunk in chunks:
            state = self.state(chunk, "ChunkStorageMetadata")
            found.append((self.sizes(state.get("offsets")), self.sizes(state.get("sizes"))))
        pieces = Pieces(dtype, shape, tuple(sorted(c for c in found if math.prod(c[1]))))
        self.comparisons_left -= check_cover(
            pieces, f"{name!r} in {self.label!r}", self.comparisons_left
        )
        if not pieces.chunks:  # a tensor without elements keeps one piece, and its item
            return Pieces(dtype, shape, tuple(found[:1]))
        return pieces

    def items(
        self, placed: dict[Any, Any], wanted: set[tuple[str, Offsets | None]], known: Iterable[Any]
    ) -> dict[tuple[str, Offsets | None], Item]:
        items: dict[tuple[str, Offsets | None], Item] = {}
        names = set(known)
        for index, info in placed.items():
            where, what = self.state(index, "MetadataIndex"), self.state(info, "_StorageInfo")
            name, offset = where.get("fqn"), where.get("offset")
            if type(name) is not str or name not in names:
                raise self.damaged(f"places {str(name)[:80]!r}, and doesn't say what it is")
            key = (name, None if offset is None else self.sizes(offset))
            item = self.item(name, what)
            if items.setdefault(key, item) is not item and key in wanted:
                raise self.damaged(f"places {name!r} twice")
        return items

    def item(self, name: str, what: dict[Any, Any]) -> Item:
        path, offset, length = (what.get(k) for k in ("relative_path", "offset", "length"))
        if not is_inside(path):
            raise UntrustedError(
                f"{self.label!r} says that {name!r} is in {path!r}, which is no file of this folder"
            )
        if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, length)):
            raise self.damaged(f"places {name!r} at no sound range")
        transforms = what.get("transform_descriptors") or ()
        if not isinstance(transforms, tuple | list):
            raise self.damaged(f"has unknown transforms for {name!r}")
        assert isinstance(path, str)
        assert isinstance(offset, int)
        assert isinstance(length, int)
        return Item(path, offset, length, tuple(transforms))

    def paths(self, planner: Any) -> dict[str, Path]:
        """Return where in the state dict each name belongs, as the planner kept it."""
        paths: dict[str, Path] = {}
        for name, path in planner.items() if isinstance(planner, dict) else ():
            if (
                type(name) is not str
                or not isinstance(path, tuple)
                or not 0 < len(path) <= MAX_PARTS
                or any(type(p) not in (str, int) or (type(p) is int and p < 0) for p in path)
            ):
                raise self.damaged(f"has no sound path for {str(name)[:80]!r}")
            paths[name] = path
        return paths


def check_cover(pieces: Pieces, name: str, most: int = MAX_COMPARISONS) -> int:
    """Check that a tensor's pieces lie inside it and cover it, none of it twice.

    Args:
        most: how many pairs of pieces may be compared.

    Returns:
        How many were.

    Raises:
        DamagedError: they don't.
        UntrustedError: they are so many, and so placed, that the check would take too long.
    """
    shape, total = pieces.shape, 0
    for offsets, sizes in pieces.chunks:
        if not len(offsets) == len(sizes) == len(shape) or any(
            o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)
        ):
            raise DamagedError(f"a piece of {name} lies outside of its shape {shape}")
        total += math.prod(sizes)
    if total != math.prod(shape):
        raise DamagedError(
            f"the pieces of {name} have {total} elements, and its shape {shape} has "
            f"{math.prod(shape)}"
        )
    return 0 if _is_grid(pieces) else _compare(pieces, name, most)


def _is_grid(pieces: Pieces) -> bool:
    """Say whether the pieces are all of a grid's cells, as sharding over a mesh makes them."""
    if len({offsets for offsets, _ in pieces.chunks}) != len(pieces.chunks):
        return False
    for axis in range(len(pieces.shape)):
        cuts: dict[int, int] = {}
        for offsets, sizes in pieces.chunks:
            if cuts.setdefault(offsets[axis], sizes[axis]) != sizes[axis]:
                return False
        end = 0
        for start in sorted(cuts):
            if start < end:
                return False
            end = start + cuts[start]
    return True


def _compare(pieces: Pieces, name: str, most: int) -> int:
    """Compare each piece with those that reach as far along one axis; return how many pairs."""
    axis = max(
        range(len(pieces.shape)),
        key=lambda axis: len({o[axis] for o, _ in pieces.chunks}),
        default=0,
    )
    compared = 0
    near: list[tuple[Offsets, Offsets]] = []
    for piece in sorted(pieces.chunks, key=lambda chunk: chunk[0][axis : axis + 1]):
        near = [p for p in near if p[0][axis] + p[1][axis] > piece[0][axis]]
        compared += len(near)
        if compared > most:
            raise UntrustedError(f"{name} is in too many pieces that lie side by side")
        if any(_overlap(piece, other) for other in near):
            raise DamagedError(f"two pieces of {name} overlap")
        near.append(piece)
    return compared


def _overlap(a: tuple[Offsets, Offsets], b: tuple[Offsets, Offsets]) -> bool:
    return all(
        ao < bo + bs and bo < ao + az for ao, az, bo, bs in zip(a[0], a[1], b[0], b[1], strict=True)
    )


def _check_files(folder: Folder, name: str, metadata: Metadata) -> None:
    """Check that the files named are there, hold the ranges, and that none is there besides."""
    files: dict[str, list[tuple[int, int, str]]] = {}
    for (key, _), item in metadata.items.items():
        files.setdefault(item.file, []).append((item.offset, item.offset + item.length, key))
    here = folder.names()
    absent = sorted(files.keys() - here)
    if absent:
        raise missing(
            folder, absent, len(files), what="file",
            cure=f"copy {', '.join(absent[:6])} from where it was saved, into {folder.quoted()}",
        )  # fmt: skip
    for file, ranges in files.items():
        size, end = folder.source(file).size, 0
        for start, stop, key in sorted(ranges):
            if stop > size:
                raise DamagedError(
                    f"{folder.label(file)!r} is cut short: {key!r} ends at byte {stop}, and it has "
                    f"{size}",
                    hint="copy it again from where it was saved, and compare sizes",
                )
            if start < end:
                raise UntrustedError(
                    f"{folder.label(name)!r} places {key!r} over another's bytes in {file!r}"
                )
            end = stop
    extra = sorted(n for n in here - files.keys() if DISTCP.fullmatch(n) and folder.source(n).size)
    if extra:
        raise ContainerError(
            f"{folder.label()!r} holds {', '.join(map(repr, extra[:6]))}, of which {name!r} knows "
            "nothing: two saves lie in one folder",
            hint=f"if {name} is right, move them away: mv "
            + " ".join(folder.quoted(n) for n in extra[:6])
            + " /elsewhere",
        )
