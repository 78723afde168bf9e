"""Damaged checkpoints of each container kind: every one is read rightly or refused clearly.

Law: a mutant gives a CkregError or what torch itself reads from it, and nothing else: no other
exception, no crash, no code, at most 512 MiB and 2 seconds. A mutant is made from its kind and
number alone: --kinds torch-zip --start 17 --count 1 makes the same one again.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from registry import CkregError
from registry.containers import Description, describe, read, read_folder
from registry.errors import DamagedError
from registry.tensors.building import Builder
from registry.tensors.checks import same_bits
from registry.tensors.views import size_bytes

from . import folders, seeds

MAX_SECONDS: Final = 2.0
MAX_BYTES: Final = 512 << 20
_MAX_COMPARED: Final = 1 << 20
_SHOWN: Final = 20

File = bytes
Folder = dict[str, bytes]


# --- making ---------------------------------------------------------------------------------------

_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
                   2**63, 2**64 - 1)  # fmt: skip


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return bytes with one to three changes: bits, numbers, cuts, splices."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not out:
            break
        at = rng.randrange(len(out))
        match rng.randrange(8):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at] = rng.randrange(256)
            case 3:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) & (1 << 8 * size) - 1
                out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 4:
                del out[at:]
            case 5:
                del out[at : at + rng.randrange(1, 64)]
            case 6:  # a piece of another, in place or between
                other = rng.choice(others)
                start = rng.randrange(len(other))
                piece = other[start : start + rng.randrange(1, 200)]
                out[at : at + rng.choice((0, len(piece)))] = piece
            case _:  # a piece of itself, again
                start = rng.randrange(len(out))
                piece = out[start : start + rng.randrange(1, 200)]
                out[at : at + rng.choice((0, len(piece)))] = piece
    return bytes(out)


def _file(rng: random.Random, found: list[bytes]) -> bytes:
    return mutated(rng, rng.choice(found), found)


def _zip(rng: random.Random, found: list[bytes]) -> bytes:
    """Half of them with a sound zip around a damaged pickle: a checksum would hide the rest."""
    if rng.random() < 0.5:
        return _file(rng, found)
    parts = seeds.zip_parts(rng.choice(found))
    name = next(name for name in parts if name.endswith("/data.pkl"))
    others = [seeds.zip_parts(data) for data in found]
    pickles = [v for part in others for k, v in part.items() if k.endswith("/data.pkl")]
    return seeds.zip_of({**parts, name: mutated(rng, parts[name], pickles)})


def _folder(rng: random.Random, found: list[Folder]) -> Folder:
    """Damage one file: most often its bytes, now and then it is gone or is another."""
    files = dict(rng.choice(found))
    name = rng.choice(sorted(files))
    roll = rng.random()
    if roll < 0.05:
        del files[name]
    elif roll < 0.1:
        files[name] = files[rng.choice(sorted(files))]
    elif roll < 0.5 and _is_zip(files[name]):
        files[name] = _zip(rng, [files[name]])
    else:
        files[name] = mutated(rng, files[name], list(files.values()))
    return files


def _is_zip(data: bytes) -> bool:
    return data[:2] == b"PK" and any(n.endswith("/data.pkl") for n in seeds.zip_parts(data))


@dataclass(frozen=True, slots=True)
class Kind:
    """A container kind: its sound files, how they are damaged, and what else reads them."""

    seeds: Callable[[], list[Any]]
    mutate: Callable[[random.Random, list[Any]], Any]
    oracle: Callable[[Any], Any] | None = None


_PLAIN: Final = [
    argparse.Namespace, np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType,
    np._core.multiarray.scalar, np._core.multiarray._reconstruct,
]  # fmt: skip
"""What the sound files hold beyond tensors, for torch to read them too."""


def _by_torch(data: bytes) -> Any:
    with torch.serialization.safe_globals(_PLAIN):
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _by_safetensors(data: bytes) -> Any:
    from safetensors.torch import load

    return load(data)


KINDS: Final[dict[str, Kind]] = {
    "torch-zip": Kind(seeds.torch_zips, _zip, _by_torch),
    "torch-legacy": Kind(seeds.torch_legacies, _file, _by_torch),
    "safetensors": Kind(seeds.safetensors_files, _file, _by_safetensors),
    "pickle": Kind(seeds.pickles, _file),
    "torchscript": Kind(folders.torchscripts, _zip),
    "pt2": Kind(folders.exported_programs, _file),
    "onnx": Kind(folders.onnx_files, _file),
    "gguf": Kind(folders.gguf_files, _file),
    "dcp": Kind(folders.dcp_folders, _folder),
    "safetensors-sharded": Kind(folders.safetensors_sharded, _folder, folders.of_shards),
    "torch-sharded": Kind(folders.torch_sharded, _folder, folders.of_shards),
    "hf-trainer": Kind(folders.trainer_folders, _folder, folders.of_trainer),
    "deepspeed-zero": Kind(folders.zero_folders, _folder, folders.of_zero),
}


# --- checking -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes as a source."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise DamagedError("'mutant' is cut short")
        return self.data[offset : offset + size]


class TooSlowError(BaseException):
    """A mutant took longer than it may; no `except Exception` stops it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer."""

    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cap_memory() -> None:
    """Give this process 512 MiB beyond what it has now, where the system can tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, resource.RLIM_INFINITY))


def weights_of(made: bytes | Folder) -> tuple[Description, dict[str, torch.Tensor]]:
    """Read a mutant as a load would: index, facts and tensors."""
    if isinstance(made, bytes):
        contents = read(Memory(made), "mutant")
        description = describe(contents, Memory(made))
        builder = Builder(contents, bytearray(made))
        return description, {k: builder.tensor(v) for k, v in description.weights.items()}
    files = {name: Memory(data) for name, data in made.items()}
    contents = read_folder(files, "mutant")
    description = describe(contents, files)
    builder = Builder(contents, {name: bytearray(data) for name, data in made.items()})
    return description, {k: builder.tensor(v) for k, v in description.weights.items()}


def differs(ours: Mapping[str, torch.Tensor], theirs: Any, where: str) -> str | None:
    """Say where our tensors differ from the oracle's; None if they don't."""
    for part in where.split(".") if where else ():
        theirs = theirs[part]
    for key, mine in ours.items():
        other = theirs[key]
        if (mine.dtype, mine.shape) != (other.dtype, other.shape):
            return f"{key}: {mine.dtype} {mine.shape}, and torch {other.dtype} {other.shape}"
        if size_bytes(mine) <= _MAX_COMPARED and not same_bits(mine, other):
            return f"{key}: other values than torch's"
    return None


@dataclass(slots=True)
class Tally:
    """What became of a kind's mutants."""

    refused: int = 0
    read: int = 0
    compared: int = 0
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)


def check(kind: Kind, made: bytes | Folder, tally: Tally) -> str | None:
    """Read one mutant; return how the law was broken, or None."""
    started = time.perf_counter()
    try:
        with limited(MAX_SECONDS):
            description, ours = weights_of(made)
    except CkregError as error:
        tally.refused += 1
        return None if error.message and error.message.strip() else "an error without a message"
    except (Exception, TooSlowError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
    finally:
        tally.slowest = max(tally.slowest, time.perf_counter() - started)
    tally.read += 1
    if kind.oracle is None or not ours:
        return None
    try:
        theirs = kind.oracle(made)
    except Exception:
        return None  # we read what is sound in a file that torch takes as a whole or not at all
    tally.compared += 1
    # what reads a folder gives its weights alone
    return differs(ours, theirs, description.where if isinstance(made, bytes) else "")


def sweep(kinds: list[str], start: int, count: int) -> int:
    """Check mutants of each kind, and print what became of them; 1 if the law was broken."""
    warnings.simplefilter("ignore")  # the oracle's, of what it reads
    found = {name: KINDS[name].seeds() for name in kinds}
    for name in kinds:  # what is imported late is imported now
        for seed in found[name]:
            broken = check(KINDS[name], seed, tally := Tally())
            if broken or tally.refused:
                print(f"{name}: a sound file is not read: {broken or 'refused'}")
                return 1
    cap_memory()
    failed = False
    for name in kinds:
        tally = Tally()
        for number in range(start, start + count):
            rng = random.Random(f"{name} {number}")
            broken = check(KINDS[name], KINDS[name].mutate(rng, found[name]), tally)
            if broken:
                tally.broken.append(f"{name} {number}: {broken}")
        print(
            f"{name}: {count} mutants: {tally.refused} refused, {tally.read} read, "
            f"{tally.compared} of them compared; slowest {tally.slowest:.3f} s; "
            f"{len(tally.broken)} broke the law"
        )
        for line in tally.broken[:_SHOWN]:
            print(f"  {line}")
        sys.stdout.flush()
        failed |= bool(tally.broken)
    return int(failed)
