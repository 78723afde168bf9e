"""A checkpoint that is a folder: which kind it is, and its files' contents put together.

Law: every file that the folder's own indexes name is there and holds what they say, or the error
names it; nothing outside the folder is ever asked for. A folder is told by its files' names, their
contents by their bytes. Two sets of weights of one kind are an error, never a choice.

    .metadata, __R_N.distcp               dcp; with meta.pt beside it, lightning-sharded
    *.safetensors.index.json, *.bin.…     safetensors-sharded, torch-sharded
    model.safetensors, pytorch_model.bin  hf-model
      + trainer_state.json                hf-trainer
      + optimizer.bin, random_states_0.pkl  accelerate
    adapter_model.safetensors             peft
    latest, mp_rank_00_model_states.pt    deepspeed-zero
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Final

from ..errors import AmbiguousError, ContainerError
from .contents import Contents
from .dcp import read_dcp
from .deepspeed import STATES, read_deepspeed
from .hub import WEIGHTS, holds_weights, read_hub
from .parts import Folder, Read, is_inside
from .source import ByteSource

_CHECKPOINT: Final = re.compile(
    r".*\.(pt|pth|ckpt|bin|pkl|pickle|th|tar|safetensors|pt2|onnx|gguf|model|weights|t7|distcp)"
)
_BESIDE: Final = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args).*")


def read_folder(files: Mapping[str, ByteSource], name: str, read: Read) -> Contents:
    """Index a checkpoint that is a folder.

    Args:
        files: its files by relative POSIX path.
        name: how to call the folder in errors; a path makes the hints right.
        read: reads one file.

    Raises:
        ValueError: a name in `files` leads out of the folder.
        ContainerError: it is of a kind that isn't read, or no checkpoint; the hint is the cure.
        AmbiguousError: it holds several checkpoints.
        DamagedError: a file is missing, cut short, or contradicts another.
        UntrustedError: it names files elsewhere, or as for a file.
    """
    for path in files:
        if not is_inside(path):
            raise ValueError(f"{path!r} is no relative path inside a folder")
    folder = Folder(files, name, read)
    return _read(folder)


def recognise(names: Set[str]) -> str | None:
    """Return what kind of folder these file names make, or None.

    Args:
        names: relative POSIX paths of the files in it.
    """
    top = {n for n in names if "/" not in n}
    if ".metadata" in top or any(n.endswith(".distcp") for n in top):
        return "dcp"
    if holds_weights(names):
        return "hub"
    if any(STATES.fullmatch(n) for n in names if n.count("/") <= 1):
        return "deepspeed-zero"
    return None


def _read(folder: Folder) -> Contents:
    match recognise(folder.names()):
        case "dcp":
            return read_dcp(folder)
        case "hub":
            return read_hub(folder)
        case "deepspeed-zero":
            return read_deepspeed(folder)
    files = sorted(n for n in folder.top() if _CHECKPOINT.fullmatch(n) and not _BESIDE.fullmatch(n))
    below = sorted(n for n in folder.folders() if recognise(folder.below(n).names()))
    if len(files) + len(below) > 1:
        raise _several(folder, files, below)
    if below:
        return _read(folder.below(below[0]))
    if files:
        part = folder.part(files[0])
        return replace(part, used_files=(folder.path(files[0]),))
    raise _none(folder)


def _several(folder: Folder, files: list[str], below: list[str]) -> AmbiguousError:
    found = [folder.path(n) for n in (*below, *files)]
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return AmbiguousError(
        f"{folder.name!r} holds {len(found)} checkpoints: {shown}",
        hint=f"take one of them: ckreg push {folder.quoted(found[-1], whole=True)}; "
        f"or every checkpoint below it: ckreg import {folder.quoted()} --dry-run",
        candidates=found,
    )


def _none(folder: Folder) -> ContainerError:
    names = sorted(folder.names())
    shown = ", ".join(map(repr, names[:8])) + (" and more" if len(names) > 8 else "")
    return ContainerError(
        f"{folder.name!r} is no checkpoint of a kind that is known: it holds {shown or 'no files'}",
        hint=f"to take in every checkpoint file below it: ckreg import {folder.quoted()} "
        "--dry-run; as one checkpoint a folder is read when it holds one of "
        + ", ".join((".metadata", *WEIGHTS, "*.index.json", "mp_rank_*_model_states.pt")),
    )
