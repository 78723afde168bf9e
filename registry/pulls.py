"""Pull: a checkpoint out of the registry, as it was stored or adapted to where it will be used.

Law: a plain pull gives the stored bytes, verified; an adapted one is planned like a load, and what
it writes needs no ckreg to be read. Imports .tensors only to adapt.
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
from .errors import NotFoundError
from .keys import stated_style
from .opening import OpenFiles, opened
from .records import Checkpoint
from .signature import KeyStyle

_FORMATS: Final = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".ckpt": "pt"}


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
        store.produce(
            path,
            lambda staged: loads.export(
                file,
                want,
                staged,
                run=run,
                format=_format(checkpoint, adapt, path),
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


def _format(checkpoint: Checkpoint, adapt: Adaptation, dest: str | os.PathLike[str] | None) -> str:
    """Return the format to write: as said, else as the file's name says where both hold all that is
    asked for, else as it is stored.
    """
    only_weights = checkpoint.container.startswith("safetensors")
    suffix = "" if dest is None else Path(dest).suffix
    if (
        adapt
        and adapt.format is None
        and (only_weights or adapt.only == "weights")
        and suffix in _FORMATS
    ):
        return _FORMATS[suffix]
    return adapt.format or ("safetensors" if only_weights else "pt")


def _destination(
    checkpoint: Checkpoint, dest: str | os.PathLike[str] | None, adapt: Adaptation
) -> Path:
    """Return the path to write: the one given, or `NAME-vN.pt` in a folder given or the working
    folder; `NAME-vN` for a checkpoint that is a folder, unless the one given is an earlier pull.

    Raises:
        NotFoundError: the folder given isn't there.
    """
    whole = checkpoint.is_folder and not adapt
    suffix = ".safetensors" if _format(checkpoint, adapt, dest) == "safetensors" else ".pt"
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
