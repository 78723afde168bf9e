"""What a checkpoint file holds, read without running its code and without torch.

Law: DESIGN.md section 7. `read` gives an index of the file, `describe` the facts that the file
itself states; neither knows what a registry is.
"""

from __future__ import annotations

from ..errors import CkregError
from .contents import Contents
from .facts import Description, describe
from .safetensors import read_safetensors
from .sniffing import READABLE, examine, refusal, sniff
from .source import ByteSource, FileSource
from .torch_legacy import read_torch_legacy
from .torch_zip import read_torch_zip
from .tree import (
    Array,
    Constant,
    Global,
    NumpyDtype,
    Opaque,
    Storage,
    StorageView,
    TaggedDict,
    Tensor,
    walk,
)

__all__ = [
    "read", "sniff", "describe",
    "ByteSource", "FileSource",
    "Contents", "Description",
    "Tensor", "Storage", "StorageView", "Array", "NumpyDtype", "TaggedDict", "Constant", "Global",
    "Opaque", "walk",
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
    try:
        sniffed = examine(source)
        if sniffed.kind not in READABLE:
            raise refusal(sniffed.kind, name)
        if sniffed.kind == "torch-legacy":
            return read_torch_legacy(source, name)
        if sniffed.kind == "safetensors":
            return read_safetensors(source, name)
        assert sniffed.directory is not None
        return read_torch_zip(source, name, sniffed.directory)
    except CkregError as error:
        raise _naming(error, name) from error.__cause__


def _naming(error: CkregError, name: str) -> CkregError:
    """Return the error with the file's name in its message: code deep inside doesn't know it."""
    if repr(name) in error.message:
        return error
    return type(error)(f"{name!r}: {error.message}", hint=error.hint)
