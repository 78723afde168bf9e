"""A crowd of processes that push into one model of a registry on a PostgreSQL server.

Law: no version is missing or twice, nobody fails, every byte is there, and nothing is left over.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import backends
import clusters
import torch

from registry import Registry


def _push_many(location: str, file: str, first: int, each: int, answers: object) -> None:
    took = []
    try:
        with Registry.open(location) as reg:
            for epoch in range(first, first + each):
                began = time.monotonic()
                ckpt = reg.push(file, model="net", epoch=epoch)
                took.append((ckpt.version, time.monotonic() - began))
        answers.put((took, None))  # type: ignore[attr-defined]
    except Exception as error:
        answers.put((took, f"{type(error).__name__}: {error}"))  # type: ignore[attr-defined]


def crowd(place: Path, *, writers: int, each: int) -> tuple[list[str], float, float]:
    """Push from many processes; return what was broken, the seconds, and the longest push."""
    file = place / "w.pt"
    torch.save({"state_dict": {"w": torch.full((16, 16), 0.5)}}, file)
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with backends.postgres_folder(place) as reg:
        crowd_ = [
            fork.Process(
                target=_push_many, args=(reg.location, str(file), 1 + n * each, each, answers)
            )
            for n in range(writers)
        ]
        began = time.monotonic()
        for one in crowd_:
            one.start()
        found = [answers.get(timeout=3600) for _ in crowd_]
        seconds = time.monotonic() - began
        for one in crowd_:
            one.join()
        broken = [error for _, error in found if error is not None]
        versions = sorted(version for took, _ in found for version, _ in took)
        if versions != list(range(1, writers * each + 1)):
            broken.append(f"{len(versions)} versions of {writers * each}, or a gap, or a duplicate")
        broken += [f"{f.where}: {f.what}" for f in reg.verify().findings]
        orphans = reg.gc(dry_run=True, grace="0").orphans
        broken += [f"{orphan} is no row's" for orphan in orphans]
    return broken, seconds, max((s for took, _ in found for _, s in took), default=0.0)


def sweep(writers: int, each: int) -> int:
    """Run the crowd and print the counts; 1 if a law was broken, or there is no server."""
    why = clusters.why_not()
    if why is not None:
        print(f"crowd: not done: {why}")
        return 1
    with tempfile.TemporaryDirectory(prefix="ckreg-crowd-") as place:
        broken, seconds, longest = crowd(Path(place), writers=writers, each=each)
    print(
        f"crowd on PostgreSQL: {writers} writers x {each} in {seconds:.0f} s; longest push "
        f"{longest:.2f} s; {len(broken)} laws broken"
    )
    for line in broken[:20]:
        print(f"  {line}")
    return int(bool(broken))
