"""Pull: a checkpoint out of the registry, as it was stored or adapted to where it will be used.

Law: a plain pull gives the stored bytes, verified; an adapted one is planned like a load, and what
it writes needs no ckreg to be read. No file is written under a name that says another format.
Imports .tensors only to adapt.
"""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import loads
from .blobs import BlobStore, Progress
from .catalog import Catalog
from .errors import ContainerError, NotFoundError
from .keys import stated_style
from .opening import OpenFiles, opened
from .records import Checkpoint
from .signature import KeyStyle

_FORMATS: Final = {
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".ckpt": "pt",
    ".bin": "pt",
}
"""The format that a file's name says; other names say none."""

_KINDS: Final = {"safetensors": "a safetensors", "pt": "a torch"}


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How a pulled file differs from the stored one; None means as it is.

    Attributes:
        keys: "plain", "recorded", or a style.
        only: "weights" for the state dict alone.
    """

    device: str | None
    keys: KeyStyle | str | None
    weights: str | None
    only: str | None
    format: str | None

    def __bool__(self) -> bool:
        return any(
            x is not None for x in (self.device, self.keys, self.weights, self.only, self.format)
        )


def adaptation(
    *,
    device: str | None = None,
    keys: str | None = None,
    weights: str | None = None,
    only: str | None = None,
    format: str | None = None,
) -> Adaptation:
    """Return what a caller asks for, checked.

    Raises:
        ValueError: a word is none of those that are known.
    """
    if only not in (None, "weights"):
        raise ValueError(f"only={only!r} is not 'weights'")
    if format not in (None, "pt", "safetensors"):
        raise ValueError(f"format={format!r} is neither 'pt' nor 'safetensors'")
    if device in ("auto", "recorded", "meta"):
        why = "has no values" if device == "meta" else "is for loads"
        raise ValueError(
            f"device={device!r} {why}; a pulled file's tag is written as said, "
            "e.g. 'cpu' or 'cuda:0'"
        )
    style: KeyStyle | str | None = keys
    if keys not in (None, "plain", "recorded"):
        style = stated_style(str(keys))
    return Adaptation(device, style, weights, only, format)


def pull(
    store: BlobStore,
    catalog: Catalog,
    checkpoint: Checkpoint,
    dest: str | os.PathLike[str] | None,
    adapt: Adaptation,
    *,
    force: bool,
    progress: Progress | None,
) -> Path:
    """Write the file or the folder, and return its path; see `Registry.pull`."""
    path = _destination(checkpoint, dest, adapt)
    _check_name(checkpoint, adapt, path)
    if not adapt:
        with ExitStack() as stack:
            files = OpenFiles(store, catalog, checkpoint, stack)
            if checkpoint.is_folder:
                blobs = {name: files[name].blob for name in files}
                store.pull_folder(blobs, path, force=force, progress=progress)
            else:
                (name,) = files
                store.pull(files[name].blob, path, force=force, progress=progress)
        return path
    want = loads.wanted(
        device=adapt.device, out_keys=out_keys(checkpoint, adapt), weights=adapt.weights
    )
    run = None if checkpoint.run is None else catalog.run(checkpoint.run.id)
    with opened(store, catalog, checkpoint, verify=True) as file:
        # Of safetensors, and of a bare state dict, the weights are all there is.
        bare = _stored(checkpoint) == "safetensors" or not file.description.where
        format = _format(checkpoint, adapt, path, only_weights=bare or adapt.only == "weights")
        store.produce(
            path,
            lambda staged: loads.export(
                file,
                want,
                staged,
                run=run,
                format=format,
                only_weights=adapt.only == "weights",
                progress=progress,
            ),
            force=force,
            expect_bytes=checkpoint.size_bytes,
        )
    return path


def out_keys(checkpoint: Checkpoint, adapt: Adaptation) -> KeyStyle | None:
    """Return the style of the keys to write; None: canonical where known, else as they are."""
    if adapt.keys == "plain":
        return KeyStyle()
    if adapt.keys == "recorded":
        return checkpoint.key_style
    return adapt.keys if isinstance(adapt.keys, KeyStyle) else None


def _check_name(checkpoint: Checkpoint, adapt: Adaptation, path: Path) -> None:
    """Refuse a name that says another format than the words or the stored bytes.

    Raises:
        ValueError: than the one asked for.
        ContainerError: than the stored bytes, which a plain pull leaves as they are.
    """
    named = _named(path)
    if adapt.format is not None:
        if named not in (None, adapt.format):
            raise ValueError(
                f"format={adapt.format!r} doesn't go with the name {path.name!r}: name it "
                f"{path.with_suffix(_suffix(adapt.format)).name!r}"
            )
        return
    if adapt or named is None:
        return
    if checkpoint.is_folder:
        if path.suffix.lower() == ".ckpt":  # so Lightning calls its sharded folders
            return
        stored = f"a folder, {checkpoint.container},"
    elif named == _stored(checkpoint):
        return
    else:
        stored = checkpoint.container
    whole = path.with_suffix("" if checkpoint.is_folder else _suffix(_stored(checkpoint)))
    hint = f"take it as it is stored: {_command(checkpoint, adapt, whole)}"
    if checkpoint.tensors:
        hint = f"convert the weights: {_command(checkpoint, adapt, path)} --only weights; or {hint}"
    raise ContainerError(
        f"{path.name!r} is a name of {_KINDS[named]} file, and {checkpoint.ref} is stored as "
        f"{stored} which a plain pull leaves as it is",
        hint=hint,
    )


def _format(checkpoint: Checkpoint, adapt: Adaptation, path: Path, *, only_weights: bool) -> str:
    """Return the format to write: as said, else as the file's name says, else as it is stored.

    Args:
        only_weights: nothing but the weights is asked for, or is there.

    Raises:
        ContainerError: the name says safetensors, which holds weights alone.
    """
    format = adapt.format or _named(path) or _stored(checkpoint)
    if format != "safetensors" or adapt.format is not None or only_weights:
        return format
    whole = path.with_suffix(_suffix("pt"))
    raise ContainerError(
        f"{path.name!r} is a name of a safetensors file, which holds weights alone, and "
        f"{checkpoint.ref} holds more",
        hint=f"write its weights: {_command(checkpoint, adapt, path)} --only weights; or all of "
        f"it: {_command(checkpoint, adapt, whole)}",
    )


def _named(path: Path) -> str | None:
    return _FORMATS.get(path.suffix.lower())


def _stored(checkpoint: Checkpoint) -> str:
    return "safetensors" if checkpoint.container.startswith("safetensors") else "pt"


def _suffix(format: str) -> str:
    return ".safetensors" if format == "safetensors" else ".pt"


def _command(checkpoint: Checkpoint, adapt: Adaptation, path: Path) -> str:
    """Return the command that pulls it so to a path."""
    words = ["ckreg", "pull", checkpoint.ref, "-o", str(path)]
    for option, value in (
        ("--device", adapt.device), ("--keys", adapt.keys), ("--weights", adapt.weights),
    ):  # fmt: skip
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def _destination(
    checkpoint: Checkpoint, dest: str | os.PathLike[str] | None, adapt: Adaptation
) -> Path:
    """Return the path to write: the one given, or `NAME-vN.pt` in a folder given or the working
    folder; `NAME-vN` for a checkpoint that is a folder, unless the one given is an earlier pull.

    Raises:
        NotFoundError: the folder given isn't there.
    """
    whole = checkpoint.is_folder and not adapt
    suffix = _suffix(adapt.format or _stored(checkpoint))
    name = f"{checkpoint.model.replace('/', '-')}-v{checkpoint.version}{'' if whole else suffix}"
    if dest is None:
        return Path(name)
    path = Path(dest)
    if path.is_dir():
        pulled = whole and any((path / file.name).exists() for file in checkpoint.files)
        return path if pulled else path / name
    if os.fspath(dest).endswith(os.sep) and not whole:
        raise NotFoundError(
            f"there is no folder {str(path)!r} to pull into",
            hint=f"mkdir -p {shlex.quote(str(path))}",
        )
    return path
