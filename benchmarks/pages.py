"""The dashboard's pages, of 100,000 checkpoints in SQLite: how long each takes to be answered.

    python -m benchmarks --only pages [--at FOLDER]

Each page is asked for over HTTP of a server in a process of its own, as a browser asks.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from . import timing
from .million import filled

ROWS = 100_000

PAGES = {
    "models": "",
    "newest 50": "checkpoints",
    "a model": "checkpoints?model=resnet50",
    "a model by -acc": "checkpoints?model=resnet50&sort=-acc",
    "a model by a metric": "checkpoints?model=resnet50&metric=val/loss&sort=metrics.val/loss",
    "a model by size": "checkpoints?model=resnet50&sort=-size_bytes",
    "where acc > 0.9": "checkpoints?model=resnet50&where=" + quote("acc > 0.9"),
    "where, of all models": "checkpoints?where=" + quote("acc > 0.9 and epoch < 50"),
    "a run": "checkpoints?model=resnet50&run=imagenet-7",
    "chart of 54,000 points": "chart.json?model=resnet50",
    "chart of a dataset": "chart.json?model=resnet50&dataset=imagenet&metric=val/loss",
    "chart of a run": "chart.json?model=resnet50&run=imagenet-7",
    "a checkpoint": "checkpoint?ref=resnet50@v1000",
    "storage": "storage",
    "storage by model": "storage?show=models",
    "storage, gc": "storage?show=gc&grace=0",
}
"""The pages by name; a checkpoint's is without its plan, which reads the file."""


@contextmanager
def served(location: Path) -> Iterator[str]:
    """Run `ckreg ui` and lend its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "registry", "-r", str(location), "ui", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def pages(folder: Path, count: int, *, at: Path | None) -> Iterator[timing.Row]:
    """Ask for each page, beside the 300 ms that it may take."""
    place = at or folder / "hundred-thousand"
    filled(place, ROWS, in_runs=True).close()
    with served(place) as address:
        for name, path in PAGES.items():
            times: list[float] = []
            for _ in range(4 * count + 1):
                began = time.perf_counter()
                with urllib.request.urlopen(address + path) as answer:
                    answer.read()
                times.append(time.perf_counter() - began)
            times = times[1:]  # the first imports and compiles
            row = timing.Row(f"page: {name}", "300 ms", 1.0, times, [0.3] * len(times))
            row.note = f"{1000 * statistics.median(times):.0f} ms"
            yield row
