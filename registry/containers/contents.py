"""What a container holds, once read: its tree of values and the storages that they view.

Law: a `Contents` is an index. It holds no tensor's bytes and no open file; they are read from a
`ByteSource`.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from ..errors import ContainerError
from .source import ByteSource
from .tree import DTYPES, Storage, Tensor

Container = Literal["torch-zip", "torch-legacy", "safetensors"]
ByteOrder = Literal["little", "big"]

_FORMS: Final = {
    "float64": "d", "float32": "f", "float16": "e", "bool": "?",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What one checkpoint file holds.

    Attributes:
        container: the kind of file.
        root: the tree of values, see tree.py.
        storages: those that the tree names, by their place in the file; they don't overlap.
        byteorder: of the storages' elements.
        unsafe_globals: the names in it that `torch.load(weights_only=True)` would refuse, sorted.
        size_bytes: the file's size.
        warnings: what is odd about it and harms nothing.
    """

    container: Container
    root: Any
    storages: tuple[Storage, ...]
    byteorder: ByteOrder
    unsafe_globals: tuple[str, ...]
    size_bytes: int
    warnings: tuple[str, ...] = ()

    @cached_property
    def storage_tags(self) -> dict[str, int]:
        """How many storages were saved on which device: {'cuda:7': 312}, most frequent first."""
        return dict(Counter(storage.tag for storage in self.storages).most_common())

    def scalar(self, source: ByteSource, tensor: Tensor) -> bool | int | float:
        """Read a tensor of one element as a number.

        Raises:
            ContainerError: it has several elements, or is of a dtype without a Python number.
        """
        form = _FORMS.get("float32" if tensor.dtype == "bfloat16" else tensor.dtype)
        if tensor.elements != 1 or form is None:
            raise ContainerError(f"a {tensor.dtype} tensor of shape {tensor.shape} is no number")
        size = DTYPES[tensor.dtype]
        data = source.pread(tensor.storage.offset + tensor.offset * size, size)
        little = data if self.byteorder == "little" else data[::-1]
        if tensor.dtype == "bfloat16":
            little = b"\0\0" + little
        (value,) = struct.unpack("<" + form, little)
        return -value if tensor.neg else value  # type: ignore[no-any-return]
