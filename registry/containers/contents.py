"""What a container holds, once read: its tree of values and the storages that they view.

Law: a `Contents` is an index. It holds no tensor's bytes and no open file; they are read from a
`ByteSource`.
"""

from __future__ import annotations

import shlex
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from ..errors import ContainerError
from .source import Sources, source_of
from .tree import DTYPES, Storage, Tensor

Container = Literal[
    "torch-zip", "torch-legacy", "safetensors", "pickle",
    # stored and described, not loaded
    "torchscript", "pt2", "onnx", "gguf", "megatron",
    # folders
    "safetensors-sharded", "torch-sharded", "hf-model", "hf-trainer", "accelerate", "peft",
    "dcp", "lightning-sharded", "deepspeed-zero",
]  # fmt: skip
ByteOrder = Literal["little", "big"]

_FORMS: Final = {
    "float64": "d", "float32": "f", "float16": "e", "bool": "?",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What one checkpoint holds: a file, or a folder's files together.

    Attributes:
        container: the kind of file or folder.
        root: the tree of values, see tree.py.
        storages: those that the tree names, by file and place; they don't overlap.
        byteorder: of the storages' elements.
        unsafe_globals: the names in it that `torch.load(weights_only=True)` would refuse, sorted.
        size_bytes: the size of the file, or of those used.
        warnings: what is odd about it and harms nothing.
        used_files: those of a folder that were needed, sorted; empty for a lone file.
        refusal: for a file that can be stored and not loaded: what it is, and how to get its
            weights, with {file} for its path.
    """

    container: Container
    root: Any
    storages: tuple[Storage, ...]
    byteorder: ByteOrder
    unsafe_globals: tuple[str, ...]
    size_bytes: int
    warnings: tuple[str, ...] = ()
    used_files: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None

    @property
    def loadable(self) -> bool:
        """Whether weights can be loaded from it; else it is only stored and described."""
        return self.refusal is None

    def check_loadable(self, name: str, file: str) -> None:
        """Refuse a file that can only be stored.

        Args:
            name: how to call it.
            file: its path, for the hint.

        Raises:
            ContainerError: it can only be stored; the hint is the way to get its weights.
        """
        if self.refusal is not None:
            what, cure = self.refusal
            raise ContainerError(f"{name} {what}", hint=cure.replace("{file}", shlex.quote(file)))

    def places_in(self, file: str) -> list[tuple[int, int]]:
        """Return (offset, size) of the storages in a file."""
        return [
            (s.offset, s.size_bytes)
            for s in self.storages
            if s.file in ("", file) and s.data is None
        ]

    @cached_property
    def storage_tags(self) -> dict[str, int]:
        """How many storages were saved on which device: {'cuda:7': 312}, most frequent first."""
        return dict(Counter(storage.tag for storage in self.storages).most_common())

    def scalar(self, sources: Sources, tensor: Tensor) -> bool | int | float:
        """Read a tensor of one element as a number.

        Raises:
            ContainerError: it has several elements, or is of a dtype without a Python number.
        """
        form = _FORMS.get("float32" if tensor.dtype == "bfloat16" else tensor.dtype)
        if tensor.elements != 1 or form is None:
            raise ContainerError(f"a {tensor.dtype} tensor of shape {tensor.shape} is no number")
        size = DTYPES[tensor.dtype]
        start = tensor.offset * size
        if tensor.storage.data is not None:
            data = tensor.storage.data[start : start + size]
        else:
            source = source_of(sources, tensor.storage.file)
            data = source.pread(tensor.storage.offset + start, size)
        little = data if self.byteorder == "little" else data[::-1]
        if tensor.dtype == "bfloat16":
            little = b"\0\0" + little
        (value,) = struct.unpack("<" + form, little)
        return -value if tensor.neg else value  # type: ignore[no-any-return]
