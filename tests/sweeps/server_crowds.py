"""A crowd of processes that push into one model of a registry on a PostgreSQL server.

Law: no version is missing or twice, nobody fails, every byte is there, and nothing is left over.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import backends
import buckets
import torch

from registry import Registry

ENGINES = tuple(name for name in backends.BACKENDS if name.startswith("postgres"))

Answer = tuple[list[tuple[int, float]], str | None]


@dataclass
class Crowd:
    """What came of it.

    Attributes:
        broken: the laws that were broken, each in words.
        seconds: from the first push to the last.
        longest_s: the longest push.
        blobs: files in the store.
    """

    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    longest_s: float = 0.0
    blobs: int = 0


def _push_many(
    location: str, given: dict[str, str], place: Path, writer: int, each: int,
    answers: Queue[Answer],
) -> None:  # fmt: skip
    """Push in turn what all push and what nobody else does."""
    os.environ.update(given)
    took: list[tuple[int, float]] = []
    own = place / f"{writer}.pt"
    try:
        with Registry.open(location) as reg:
            for turn in range(each):
                if own_turn := turn % 2 == 1:
                    _write(own, 1 + writer * each + turn)
                began = time.monotonic()
                file = own if own_turn else place / "shared.pt"
                ckpt = reg.push(file, model="net", epoch=writer * each + turn)
                took.append((ckpt.version, time.monotonic() - began))
        answers.put((took, None))
    except Exception as error:
        answers.put((took, f"{type(error).__name__}: {error}"))


def _write(path: Path, value: int) -> None:
    torch.save({"state_dict": {"w": torch.full((16, 16), float(value))}}, path)


def environment(engine: str, place: Path) -> dict[str, str]:
    """Return the variables that each process needs, the caller of `crowd` too."""
    return buckets.environment(place / "cache") if engine.endswith("s3") else {}


def crowd(place: Path, engine: str, *, writers: int, each: int) -> Crowd:
    """Push from so many processes, and see what is there afterwards."""
    found = Crowd()
    _write(place / "shared.pt", 0)
    # not fork: the object store's client has threads, which a forked process lacks
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    with backends.BACKENDS[engine](place) as reg:
        answers: Queue[Answer] = fresh.Queue()
        crowd_ = [
            fresh.Process(
                target=_push_many,
                args=(reg.location, environment(engine, place), place, n, each, answers),
            )
            for n in range(writers)
        ]
        began = time.monotonic()
        for one in crowd_:
            one.start()
        told = [answers.get(timeout=3600) for _ in crowd_]
        found.seconds = time.monotonic() - began
        for one in crowd_:
            one.join()
        found.longest_s = max((s for took, _ in told for _, s in took), default=0.0)
        found.broken += [error for _, error in told if error is not None]
        versions = sorted(version for took, _ in told for version, _ in took)
        if versions != list(range(1, writers * each + 1)):
            found.broken.append(f"{len(versions)} versions of {writers * each}, or gaps, or twins")
        _look(reg, writers * each, 1 + writers * (each // 2), found)
    return found


def _look(reg: Registry, checkpoints: int, blobs: int, found: Crowd) -> None:
    """Compare what the registry holds with what was pushed, and the store with the registry."""
    numbers = [c.version for c in reg.find("net", sort="version")]
    if numbers != list(range(1, checkpoints + 1)):
        found.broken.append(f"the registry has {len(numbers)} of {checkpoints}, or gaps, or twins")
    found.broken += [f"{f.where}: {f.what}" for f in reg.verify().findings]
    reg.gc(grace="0")
    left = reg.gc(dry_run=True, grace="0")
    found.broken += [f"{orphan} is no row's" for orphan in (*left.orphans, *left.leftovers)]
    if left.spared:
        found.broken.append(f"{left.spared} files without a row, too new for gc")
    store, catalog = reg._parts()
    found.blobs = sum(len(files) for _, files in store.walk())
    # each file's index is a blob of its own
    if found.blobs != 2 * blobs or catalog.stored()[0] != found.blobs:
        found.broken.append(
            f"{found.blobs} files are stored, {catalog.stored()[0]} have rows, of {2 * blobs}"
        )


def sweep(engine: str, writers: int, each: int) -> int:
    """Run the crowd and print the counts; 1 if a law was broken, or there is no server."""
    why = backends.why_not(engine)
    if why is not None:
        print(f"crowd: not done: {why}")
        return 1
    with tempfile.TemporaryDirectory(prefix="ckreg-crowd-") as place:
        os.environ.update(environment(engine, Path(place)))
        found = crowd(Path(place), engine, writers=writers, each=each)
    print(
        f"crowd on {engine}: {writers} writers x {each} in {found.seconds:.0f} s; longest push "
        f"{found.longest_s:.2f} s; {found.blobs} files stored; {len(found.broken)} laws broken"
    )
    for line in found.broken[:20]:
        print(f"  {line}")
    return int(bool(found.broken))
