"""Folders of torch.distributed.checkpoint: tensors in pieces, by the ranks that wrote them.

Law: as dcp_metadata.py's. Each piece is a torch.save stream inside a file, read as such by our own
reader; a piece that isn't of the dtype and sizes that `.metadata` says is refused. A tensor in one
piece is a `Tensor`, others are `Assembled`.

    .metadata      what there is, and where
    __0_0.distcp   what rank 0 wrote; __1_0.distcp, …
    meta.pt        what Lightning and Fabric keep beside it: epoch, loops, callbacks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ContainerError, DamagedError
from .contents import Contents
from .dcp_metadata import DISTCP, Item, Metadata, Offsets, Pieces, read_metadata
from .dcp_tree import arrange, nest
from .parts import Folder, Found
from .source import ByteSource, Slice
from .torch_zip import read_torch_zip
from .tree import Assembled, Chunk, Storage, TaggedDict, Tensor
from .zips import NotWholeError, read_directory

_TAIL = 4_096  # holds the directory of a stream of one value, which has seven entries


def read_dcp(folder: Folder) -> Contents:
    """Index a DCP folder. Raises as `read_folder`."""
    if ".metadata" not in folder.top():
        raise _without_metadata(folder)
    root = arrange(read_pieces(folder))
    if "ckreg" in root and isinstance(root.get("state_dict"), dict) and "_metadata" in root:
        # DCP has no place for an attribute of a dict: a save of ours keeps it beside.
        state = TaggedDict(root["state_dict"])
        state.attributes = {"_metadata": root.pop("_metadata")}
        root["state_dict"] = state
    if "meta.pt" not in folder.top():
        return folder.contents(Found("dcp", root))
    beside = folder.part("meta.pt").root
    if not isinstance(beside, dict):
        raise ContainerError(f"{folder.label('meta.pt')!r} is no dict, which Lightning would write")
    both = sorted(str(key) for key in beside.keys() & root.keys())
    if both:
        folder.warn(f"meta.pt and the pieces both hold {', '.join(both)}: the pieces' are taken")
    return folder.contents(Found("lightning-sharded", {**beside, **root}))


def read_pieces(folder: Folder) -> dict[str, Any]:
    """Return the state dict that a DCP folder holds, nested as it was saved.

    Raises:
        DamagedError, ContainerError, UntrustedError: as `read_metadata`; or a piece isn't what
            `.metadata` says.
    """
    metadata = read_metadata(folder)
    values: dict[str, Any] = {
        name: _tensor(folder, metadata, name, pieces) for name, pieces in metadata.tensors.items()
    }
    for name in metadata.values:
        values[name] = _stream(folder, metadata.items[name, None], name)
    return nest(values, metadata.paths, folder.label(".metadata"))


def _tensor(folder: Folder, metadata: Metadata, name: str, pieces: Pieces) -> Tensor | Assembled:
    chunks = tuple(
        Chunk(offsets, _piece(folder, metadata, name, pieces.dtype, offsets, sizes))
        for offsets, sizes in pieces.chunks
    )
    if len(chunks) == 1 and chunks[0].tensor.shape == pieces.shape:
        return chunks[0].tensor
    return Assembled(pieces.dtype, pieces.shape, "tensor", chunks)


def _piece(
    folder: Folder, metadata: Metadata, name: str, dtype: str, offsets: Offsets, sizes: Offsets
) -> Tensor:
    item = metadata.items[name, offsets]
    found = _stream(folder, item, name)
    if not isinstance(found, Tensor):
        raise ContainerError(
            f"{folder.label(item.file)!r} holds no dense tensor at byte {item.offset}, where "
            f"{name!r} should be"
        )
    if found.dtype != dtype or found.shape != sizes:
        raise DamagedError(
            f"{folder.label(item.file)!r} holds a {found.dtype} tensor of shape {found.shape} at "
            f"byte {item.offset}, where {name!r} should be {dtype} of shape {sizes}"
        )
    return found


def stream_storages(
    source: ByteSource, label: str, places: Sequence[tuple[int, int]]
) -> list[Storage]:
    """Return the storages in a file of torch.save streams.

    Args:
        label: how to call the file in errors.
        places: where each stream starts, and its length.

    Raises:
        DamagedError, ContainerError, UntrustedError: a stream is none.
    """
    folder = Folder({label: source}, "", _read_stream)
    for start, length in places:
        part = Slice(source, start, length, label)
        folder.take(label, _read_stream(part, label), start)
    return list(folder.contents(Found("dcp", {})).storages)


def _stream(folder: Folder, item: Item, name: str) -> Any:
    """Return what one torch.save stream inside a file holds."""
    if item.transforms:
        raise ContainerError(
            f"{folder.label(item.file)!r} holds {name!r} passed through {item.transforms!r}",
            hint="load it with torch.distributed.checkpoint and the extension that wrote it, and "
            "save it without",
        )
    label = f"{folder.label(item.file)}[{name}]"
    part = Slice(folder.source(item.file), item.offset, item.length, label)
    contents = _read_stream(part, label)
    folder.take(item.file, contents, item.offset)
    return contents.root


def _read_stream(part: ByteSource, label: str) -> Contents:
    try:
        return read_torch_zip(part, label, read_directory(part, _TAIL))
    except NotWholeError as error:
        raise DamagedError(f"{label} is no torch.save stream: {error}") from None
    except KeyError:
        raise DamagedError(f"{label} is no torch.save stream") from None


def _without_metadata(folder: Folder) -> DamagedError:
    names = sorted(n for n in folder.top() if DISTCP.fullmatch(n))
    cut = any(n.startswith(".metadata") for n in folder.top())
    why = ": the save was cut off before it was finished" if cut else ""
    return DamagedError(
        f"{folder.label()!r} holds {len(names)} files of a DCP checkpoint "
        f"({', '.join(names[:4])}{', …' if len(names) > 4 else ''}), and lacks '.metadata', which "
        f"says what is in them{why}",
        hint=f"copy .metadata from where it was saved, into {folder.quoted()} (cp -r takes it, "
        "cp DIR/* doesn't); without it the files are of no use",
    )
