"""What kind of file it is, and what to do with the kinds that aren't read.

Law: every kind has one name, and every name that `read` refuses has a cure. A kind is told by what
the bytes say, never by the file's extension.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from ..errors import CkregError, ContainerError, DamagedError
from .source import ByteSource
from .torch_legacy import MAGIC, MAGIC_BYTES
from .torch_zip import folder
from .zips import LOCAL, Directory, NotWholeError, read_directory

READABLE: Final = frozenset(
    {"torch-zip", "torch-legacy", "safetensors", "pickle", "torchscript", "pt2", "onnx", "gguf"}
)

PARTS: Final = frozenset({"dcp", "deepspeed", "sharded-safetensors"})
"""Kinds of files that are parts of a folder; lone.py says which part, and of how many."""

_HEAD: Final = 4_096
_PICKLE_SCAN: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Sniffed:
    """A kind of file, and what was read to tell it.

    Attributes:
        kind: its name, a key of `KINDS` or one of `READABLE`.
        directory: a zip's directory, else None.
    """

    kind: str
    directory: Directory | None = None


# What each kind that isn't read is, and the cure; {file} is the path, quoted for a shell.
KINDS: Final[dict[str, tuple[str, str]]] = {
    "empty": ("is empty (0 bytes): the save was cut off before it wrote", "save or copy it again"),
    "zeros": (
        "holds only zero bytes: the machine went down before its data reached the disk",
        "copy it again from where it was made",
    ),
    "truncated": (
        "is cut short: it starts like a checkpoint, and its end is missing",
        "copy or download it again, and compare sizes",
    ),
    "git-lfs-pointer": (
        "is a Git LFS pointer: the name of a large file, not the file",
        "fetch the file: git lfs pull --include {file}",
    ),
    "html": (
        "is a web page: the download gave a login or error page instead of the file",
        "download it again, with the link or the login that the site asks for",
    ),
    "dcp": (
        "is a part of a torch.distributed.checkpoint (DCP) folder",
        "push the whole folder, with .metadata and all .distcp files: ckreg push FOLDER",
    ),
    "deepspeed": (
        "is one rank's part of a DeepSpeed checkpoint",
        "push the whole folder, with 'latest' and all ranks' files: ckreg push FOLDER",
    ),
    "sharded-safetensors": (
        "is the index of a model in several files, without them",
        "push the whole folder, with the index and all shards: ckreg push FOLDER",
    ),
    "tar": (
        "is a tar archive",
        "unpack it: tar -xf {file} (a file of torch 0.1: load and save it again with torch 1.x)",
    ),
    "gzip": ("is compressed by gzip", "unpack it: gzip -dk {file} (or tar -xzf {file})"),
    "bzip2": ("is compressed by bzip2", "unpack it: bzip2 -dk {file}"),
    "xz": ("is compressed by xz", "unpack it: xz -dk {file}"),
    "zstd": ("is compressed by zstd", "unpack it: zstd -dk {file}"),
    "7z": ("is a 7z archive", "unpack it: 7z x {file}"),
    "npz": ("is an .npz file of numpy arrays", "load it with numpy, and torch.save the tensors"),
    "npy": ("is an .npy file, one numpy array", "load it with numpy, and torch.save the tensors"),
    "zip": ("is a zip archive that torch.save didn't write", "unpack it: unzip {file}"),
    "hdf5": ("is an HDF5 file (Keras)", "convert it to PyTorch, and torch.save the state_dict"),
    "json": ("is JSON text", "push the checkpoint itself"),
    "text": ("is text", "push the checkpoint itself"),
    "unknown": (
        "is no checkpoint of a kind that is known",
        "save it with torch.save or safetensors",
    ),
}


def sniff(source: ByteSource) -> str:
    """Return the name of a file's kind.

    Raises:
        UntrustedError, DamagedError: it is a zip whose directory breaks a rule of zips.py.
    """
    return examine(source).kind


def examine(source: ByteSource) -> Sniffed:
    """Return a file's kind with what was read to tell it. Raises as `sniff`."""
    if source.size == 0:
        return Sniffed("empty")
    head = source.pread(0, min(source.size, _HEAD))
    if head[:4] == LOCAL:
        return _zip(source)
    return Sniffed(_by_magic(head, source) or _by_text(head) or "unknown")


def refusal(kind: str, name: str) -> CkregError:
    """Return the error that names a kind that isn't read, with its cure.

    Args:
        name: how to call the file.
    """
    what, cure = KINDS[kind]
    error = DamagedError if kind in ("empty", "zeros", "truncated") else ContainerError
    return error(f"{name!r} {what}", hint=cure.replace("{file}", shlex.quote(name)))


def _zip(source: ByteSource) -> Sniffed:
    try:
        directory = read_directory(source)
    except NotWholeError as error:
        return Sniffed("dcp" if error.joined else "truncated")
    names = directory.entries.keys()
    top = folder(directory.entries)
    if f"{top}/constants.pkl" in names:
        return Sniffed("torchscript", directory)
    if f"{top}/archive_format" in names or any(
        n.endswith(("serialized_exported_program.json", "models/model.json")) for n in names
    ):
        return Sniffed("pt2", directory)
    if f"{top}/data.pkl" in names:
        pickle = directory.entries[f"{top}/data.pkl"]
        data = source.pread(
            pickle.header, min(pickle.size + 1_024, _PICKLE_SCAN, directory.start - pickle.header)
        )
        deepspeed = b"ds_version" in data and b"ds_config" in data
        return Sniffed("deepspeed" if deepspeed else "torch-zip", directory)
    if names and all(n.endswith(".npy") for n in names):
        return Sniffed("npz", directory)
    return Sniffed("zip", directory)


_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"), (b"GGUF", "gguf"), (b"\x93NUMPY", "npy"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"version https://git-lfs.github.com/spec/", "git-lfs-pointer"),
)  # fmt: skip


_OLD_PICKLE: Final = re.compile(
    rb"(?:\([dl]p\d+\n|[\]}]q.|c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n[p(q)])",
    re.DOTALL,
)
"""How a dict, a list or an object starts in protocols 0 and 1, which have no magic number."""


def _by_magic(head: bytes, source: ByteSource) -> str | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    # Before the pickles: a header's length may read like the first opcode of one.
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 40:
        whole = int.from_bytes(head[:8], "little") + 8 <= source.size
        return "safetensors" if whole or b'"data_offsets"' not in head else "truncated"
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        if MAGIC_BYTES in head[:32]:
            return "torch-legacy"
        return "dcp" if b"torch.distributed.checkpoint.metadata" in head else "pickle"
    if head.startswith(b"L%d" % MAGIC):
        return "torch-legacy"
    if _OLD_PICKLE.match(head) and source.pread(source.size - 1, 1) == b".":
        return "pickle"
    if _is_onnx(head):
        return "onnx"
    if not head.strip(b"\0") and _is_zeros(source):
        return "zeros"
    return None


def _is_onnx(head: bytes) -> bool:
    """Say whether it starts like a ModelProto: ir_version (field 1), then producer or graph."""
    return (
        len(head) > 3
        and head[0] == 0x08
        and 1 <= head[1] <= 20
        and head[2] in (0x12, 0x1A, 0x3A, 0x42)
        and (b"onnx" in head or b"pytorch" in head or head[2] in (0x12, 0x3A))
    )


def _is_zeros(source: ByteSource) -> bool:
    """Look at the middle and the end too: a file that only begins with zeros is another."""
    step = min(source.size, _HEAD)
    return all(
        not source.pread(at, step).strip(b"\0")
        for at in ((source.size - step) // 2, source.size - step)
    )


def _by_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character cut in two by the read
            return None
        text = head[: error.start].decode("utf-8-sig")
    start = text.lstrip()[:200].lower()
    if re.match(r"<!doctype html|<html|<head|<\?xml|<!--", start):
        return "html"
    if start[:1] in ("{", "["):
        return "sharded-safetensors" if '"weight_map"' in text else "json"
    if not any(ord(c) < 32 and c not in "\t\r\n\f\x1b" for c in text):
        return "text"
    return None
