"""Rounds: what is measured and what it is measured against take turns, and their ratio is told."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what, against: what is measured, and the limit or rival beside it.
        goal: the largest ratio that is good; None where it is only told.
        times, others: seconds of each round, of both.
        note: what else was measured.
        worse: other things that broke the goal.
    """

    what: str
    against: str
    goal: float | None
    times: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    note: str = ""
    worse: str = ""

    @property
    def ratio(self) -> float:
        """The ratio of the medians."""
        return statistics.median(self.times) / statistics.median(self.others)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a round."""
        ratios = sorted(a / b for a, b in zip(self.times, self.others, strict=True))
        return ratios[0], ratios[-1]

    @property
    def verdict(self) -> str:
        """Whether the goal is reached."""
        if self.goal is None:
            return ""
        return "yes" if self.ratio <= self.goal and not self.worse else "no"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "what": self.what, "against": self.against, "goal": self.goal, "ratio": self.ratio,
            "spread": self.spread, "median_s": statistics.median(self.times),
            "against_s": statistics.median(self.others), "rounds": len(self.times),
            "note": self.note, "verdict": self.verdict,
        }  # fmt: skip


def rounds(
    row: Row,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    count: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> Row:
    """Run both in turn, once to warm up and then `count` times; `before` comes before each."""
    for number in range(count + 1):
        pair = [(ours, row.times), (theirs, row.others)]
        for act, times in pair if number % 2 else reversed(pair):
            before()
            took = timed(act)
            if number:
                times.append(took)
    told(row)
    return row


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def told(row: Row) -> None:
    """Say on stderr that a row is done."""
    print(f"  {row.what}: {row.ratio:.2f}", file=sys.stderr, flush=True)


def peak_kib() -> int:
    """Return this process's largest resident memory so far (ru_maxrss counts its parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status: Linux only")


def reset_peak_kib() -> int:
    """Begin to count the peak anew, and return the resident memory of now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kib()


def settle() -> None:
    """Let what others wrote reach the disk, so that nobody's writeback is in another's time."""
    os.sync()


def _environment() -> dict[str, str]:
    """Return the environment of an installed package: its modules are compiled once, not always."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def child(
    code: str, *, python: str = sys.executable, env: Mapping[str, str] | None = None, **words: Any
) -> dict[str, Any]:
    """Run Python in a process of its own; return what it printed last, as JSON.

    Args:
        python: which interpreter.
        env: added to the environment.
        words: what the code finds as variables.
    """
    text = "\n".join(f"{name} = {value!r}" for name, value in words.items()) + "\n" + code
    done = subprocess.run(
        [python, "-c", text],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**_environment(), **(env or {})},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def process(*words: str, env: Mapping[str, str] | None = None) -> Callable[[], object]:
    """Return what runs a command to its end."""
    environment = {**_environment(), **(env or {})}

    def run() -> None:
        subprocess.run(words, check=True, capture_output=True, env=environment)

    return run


def table(rows: list[Row]) -> str:
    """Return the table, as Markdown."""
    lines = ["| what | against | goal | measured | rounds from .. to | reached | besides |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        goal = "" if row.goal is None else f"<= {row.goal:g}"
        low, high = row.spread
        besides = "; ".join(part for part in (row.note, row.worse) if part)
        lines.append(
            f"| {row.what} | {row.against} | {goal} | {row.ratio:.2f} | {low:.2f} .. {high:.2f} | "
            f"{row.verdict} | {besides} |"
        )
    return "\n".join(lines)
