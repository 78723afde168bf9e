"""safetensors files: eight bytes of length, a JSON header, then the tensors' bytes.

Law: as the format's own validation (huggingface/safetensors, README "Format"): a capped header, no
key twice, and ranges that cover the rest of the file without overlap or hole. The root is a dict in
the header's order, with `__metadata__` among its attributes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ContainerError, DamagedError, UntrustedError
from .contents import Contents
from .source import ByteSource
from .tree import DTYPES, Storage, TaggedDict, Tensor

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""

_DTYPES: Final = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64",
}  # fmt: skip


def read_safetensors(source: ByteSource, name: str) -> Contents:
    """Index a safetensors file.

    Args:
        name: how to call the file in errors.

    Raises:
        DamagedError: it is cut short, or its header is none.
        ContainerError: a dtype in it is unknown.
        UntrustedError: its header is too large, has a key twice, or ranges overlap or leave holes.
    """
    size = int.from_bytes(source.pread(0, 8), "little")
    if size > MAX_HEADER_BYTES:
        raise UntrustedError(
            f"the header of {name!r} claims {size} bytes; {MAX_HEADER_BYTES} is the most"
        )
    header = _header(name, source.pread(8, size))
    base = 8 + size
    root = TaggedDict()
    metadata = header.pop("__metadata__", None)
    if metadata is not None:
        if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
            raise DamagedError(f"{name!r} has a __metadata__ that is not text by text")
        root.attributes = {"__metadata__": metadata}
    for key, fields in header.items():
        root[key] = _tensor(name, key, fields, base)
    storages = sorted((t.storage for t in root.values()), key=lambda s: (s.offset, s.size_bytes))
    end = base
    for storage in storages:
        if storage.offset != end:
            what = (
                "overlaps what comes before it"
                if storage.offset < end
                else "leaves a hole before it"
            )
            raise UntrustedError(f"the tensor {storage.key!r} of {name!r} {what}")
        end += storage.size_bytes
    if end > source.size:
        raise DamagedError(
            f"{name!r} is cut short: its tensors need {end} bytes, and it has {source.size}"
        )
    if end < source.size:
        raise UntrustedError(f"{name!r} has {source.size - end} bytes that belong to no tensor")
    return Contents(
        container="safetensors", root=root, storages=tuple(storages), byteorder="little",
        unsafe_globals=(), size_bytes=source.size,
    )  # fmt: skip


def own_record(metadata: Mapping[str, str]) -> Any:
    """Return our own record, which is JSON in a file's text metadata; None where there is none."""
    try:
        return json.loads(metadata["ckreg"])
    except (KeyError, ValueError, RecursionError):
        return None


def _header(name: str, data: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise UntrustedError(f"the header of {name!r} has a key twice")
        return made

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise DamagedError(f"the header of {name!r} is no JSON") from None
    if not isinstance(header, dict):
        raise DamagedError(f"the header of {name!r} is no JSON object")
    return header


def _tensor(name: str, key: str, fields: Any, base: int) -> Tensor:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedError(f"the tensor {key!r} of {name!r} is described in an unknown way")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise DamagedError(f"the tensor {key!r} of {name!r} has no sound shape or place")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise ContainerError(
            f"the tensor {key!r} of {name!r} is of the dtype {fields['dtype']!r}, which isn't known"
        )
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[dtype]:
        raise DamagedError(
            f"the tensor {key!r} of {name!r} has {stop - start} bytes, for {dtype} of shape "
            f"{tuple(shape)}"
        )
    stride, step = [], 1
    for length in reversed(shape):
        stride.append(step)
        step *= max(length, 1)
    storage = Storage(key, dtype, "cpu", base + start, stop - start)
    return Tensor(storage, dtype, tuple(shape), tuple(reversed(stride)))


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )
