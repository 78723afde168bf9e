"""Models saved for other runtimes: what can be said of them, and why they aren't loaded.

Law: such a file is stored and described as far as its bytes say plainly what it is; a load is
refused, with the way to get the weights. Only the first bytes are parsed, within limits, and a
field that isn't understood ends the parsing: these are facts beside a file that is kept as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from struct import Struct, error
from typing import Any, Final

from .contents import Container, Contents
from .source import ByteSource
from .weights import items_of

REFUSALS: Final[dict[str, tuple[str, str]]] = {
    "torchscript": (
        "is a TorchScript archive (torch.jit.save): a program with its weights",
        (
            'export its weights: python -c "import sys, torch; torch.save(torch.jit.load('
            "sys.argv[1], map_location='cpu').state_dict(), 'weights.pt')\" {file}"
        ),
    ),
    "pt2": (
        "is a .pt2 archive (torch.export.save): a program with its weights",
        (
            'export its weights: python -c "import sys, torch; torch.save('
            "torch.export.load(sys.argv[1]).state_dict, 'weights.pt')\" {file}"
        ),
    ),
    "onnx": (
        "is an ONNX model, whose weights have other names than the net's",
        "load the PyTorch checkpoint that it was exported from, or run it with onnxruntime: {file}",
    ),
    "gguf": (
        "is a GGUF file (llama.cpp), whose weights have other names and forms than the net's",
        "load the checkpoint that it was converted from, or run it with llama.cpp: {file}",
    ),
    "megatron": (
        "is one rank's part of a Megatron-LM checkpoint, whose weights have names of their own",
        (
            "convert it with Megatron-LM's tools/checkpoint/convert.py, from the folder that "
            "{file} lay in"
        ),
    ),
}
"""What each kind is, and how to get its weights; {file} is the path, quoted for a shell."""

_HEAD: Final = 1 << 20
_MAX_FIELDS: Final = 10_000
_MAX_TEXT: Final = 4_096


FOREIGN: Final[dict[str, Container]] = {"pt2": "pt2", "onnx": "onnx", "gguf": "gguf"}
"""The kinds that are read no further than to say what they are."""


def read_foreign(kind: str, source: ByteSource) -> Contents:
    """Return what is known of a file of a kind in `FOREIGN`: facts, and no weights."""
    root: dict[str, Any] = {}
    head = source.pread(0, min(source.size, _HEAD))
    try:
        if kind == "gguf":
            _gguf(head, root)
        elif kind == "onnx":
            _onnx(head, root)
    except (error, IndexError, UnicodeDecodeError):
        pass  # beyond the first bytes, or not as expected: the facts so far stand
    return Contents(
        container=FOREIGN[kind], root=root, storages=(), byteorder="little", unsafe_globals=(),
        size_bytes=source.size, refusal=REFUSALS[kind],
    )  # fmt: skip


def as_megatron(contents: Contents) -> Contents:
    """Return a file's contents, refused if they are Megatron-LM's, told by its arguments.

    After megatron/training/checkpointing.py, generate_state_dict (core 0.12).
    """
    top = items_of(contents.root) or {}
    args = items_of(top.get("args")) or {}
    if "checkpoint_version" in top and "tensor_model_parallel_size" in args:
        return replace(contents, container="megatron", refusal=REFUSALS["megatron"])
    return contents


# --- GGUF -----------------------------------------------------------------------------------------

_GGUF_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_GGUF_TEXT: Final = 8
_GGUF_ARRAY: Final = 9


def _gguf(head: bytes, root: dict[str, Any]) -> None:
    """Read the metadata; after ggml/docs/gguf.md, versions 2 and 3, arrays passed over."""
    order = "<" if head[4:8] in (b"\2\0\0\0", b"\3\0\0\0") else ">"
    at = 8

    def number(form: str) -> Any:
        nonlocal at
        packed = Struct(order + form)
        (value,) = packed.unpack_from(head, at)
        at += packed.size
        return value

    def text() -> str:
        nonlocal at
        size = number("Q")
        if size > len(head) - at:
            raise IndexError
        piece = head[at : at + size]
        at += size
        return piece.decode()

    number("Q")  # tensors
    for _ in range(min(number("Q"), _MAX_FIELDS)):
        key, kind = text(), number("I")
        if kind == _GGUF_TEXT:
            value: Any = text()[:_MAX_TEXT]
        elif kind == _GGUF_ARRAY:
            of, count = number("I"), number("Q")
            if of == _GGUF_TEXT:
                for _ in range(count):
                    text()
            else:
                at += Struct(order + _GGUF_NUMBERS.get(of, "")).size * count
            if at > len(head) or of not in (*_GGUF_NUMBERS, _GGUF_TEXT):
                raise IndexError
            continue
        elif kind in _GGUF_NUMBERS:
            value = number(_GGUF_NUMBERS[kind])
        else:
            raise IndexError
        if not isinstance(value, float) or math.isfinite(value):
            root.setdefault(key, value)


# --- ONNX -----------------------------------------------------------------------------------------

_ONNX_FIELDS: Final = {
    1: "ir_version", 2: "producer_name", 3: "producer_version", 4: "domain", 5: "model_version",
    6: "doc_string",
}  # fmt: skip


def _onnx(head: bytes, root: dict[str, Any]) -> None:
    """Read the fields before the graph; after onnx.proto3, ModelProto."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while shift < 64:
            byte = head[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise IndexError

    while True:
        field, wire = divmod(varint(), 8)
        key = _ONNX_FIELDS.get(field)
        if key is None or wire not in (0, 2):
            return
        value: Any = varint()
        if wire == 2:
            piece = head[at : at + value]
            if len(piece) < value:
                return
            at += value
            value = piece.decode()[:_MAX_TEXT]
        if value < 2**63 if isinstance(value, int) else value:
            root[key] = value
