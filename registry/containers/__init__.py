"""What a checkpoint file holds, read without running its code and without torch.

Law: DESIGN.md section 7. `read` gives an index of the file, `describe` the facts that the file
itself states; neither knows what a registry is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import CkregError
from . import folders
from .contents import Contents
from .dcp import stream_storages
from .facts import Description, describe
from .folders import recognise
from .lone import check_whole, refuse_part
from .plain_pickle import read_plain_pickle
from .runtimes import FOREIGN, REFUSALS, as_megatron, read_foreign
from .safetensors import read_safetensors
from .sniffing import PARTS, READABLE, examine, refusal, sniff
from .source import ByteSource, FileSource, Sources, source_of
from .torch_legacy import read_torch_legacy
from .torch_zip import read_torch_zip
from .tree import (
    AnyTensor,
    Array,
    Assembled,
    Chunk,
    Constant,
    Global,
    NumpyDtype,
    Opaque,
    Quantised,
    Sparse,
    Storage,
    StorageView,
    TaggedDict,
    Tensor,
    walk,
)

__all__ = [
    "read", "read_folder", "stream_storages", "sniff", "recognise", "describe",
    "ByteSource", "FileSource", "Sources", "source_of",
    "Contents", "Description",
    "AnyTensor", "Tensor", "Assembled", "Chunk", "Sparse", "Quantised", "Storage", "StorageView",
    "Array", "NumpyDtype", "TaggedDict",
    "Constant", "Global", "Opaque", "walk",
]  # fmt: skip


def read(source: ByteSource, name: str) -> Contents:
    """Index a checkpoint file: its tree of values, and where each tensor's bytes are.

    Args:
        source: its bytes.
        name: how to call it in errors; a path makes the hints right.

    Raises:
        ContainerError: it is of a kind that isn't read, or no checkpoint; the hint is the cure.
        DamagedError: it is empty, cut short or contradicts itself.
        UntrustedError: it asks for code to run, or passes a limit.
    """
    contents = _read_file(source, name)
    check_whole(contents, name)
    return contents


def read_folder(files: Mapping[str, ByteSource], name: str) -> Contents:
    """Index a checkpoint that is a folder; see folders.py for the kinds.

    Args:
        files: its files by relative POSIX path.
        name: how to call the folder in errors; a path makes the hints right.

    Returns:
        Contents whose storages say in which file they lie, and whose `used_files` are those needed.

    Raises:
        ValueError: a name in `files` leads out of the folder.
        ContainerError: it is of a kind that isn't read, or no checkpoint, or holds shards or keys
            that its index doesn't know; the hint is the cure.
        AmbiguousError: it holds several checkpoints.
        DamagedError: a shard, a file or a key is missing, or a file is cut short.
        UntrustedError: it names files elsewhere, or as for `read`.
    """
    try:
        return folders.read_folder(files, name, _read_file)
    except CkregError as error:
        raise _naming(error, name) from error.__cause__


def _read_file(source: ByteSource, name: str) -> Contents:
    """Index a file, whether it is whole or a part of a folder. Raises as `read`."""
    try:
        sniffed = examine(source)
        if sniffed.kind in PARTS:
            raise refuse_part(sniffed.kind, source, name)
        if sniffed.kind not in READABLE:
            raise refusal(sniffed.kind, name)
        if sniffed.kind == "torch-legacy":
            return read_torch_legacy(source, name)
        if sniffed.kind == "safetensors":
            return read_safetensors(source, name)
        if sniffed.kind == "pickle":
            return read_plain_pickle(source, name)
        if sniffed.kind in FOREIGN:
            return read_foreign(sniffed.kind, source)
        assert sniffed.directory is not None
        if sniffed.kind == "torchscript":
            script = read_torch_zip(source, name, sniffed.directory, "torchscript")
            return replace(script, refusal=REFUSALS["torchscript"])
        return as_megatron(read_torch_zip(source, name, sniffed.directory))
    except CkregError as error:
        raise _naming(error, name) from error.__cause__


def _naming(error: CkregError, name: str) -> CkregError:
    """Return the error with the file's name in its message: code deep inside doesn't know it."""
    if repr(name)[:-1] in error.message:  # a folder's name starts its files'
        return error
    return type(error)(f"{name!r}: {error.message}", hint=error.hint)
