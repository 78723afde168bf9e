"""All benchmarks, with a table at the end: `python -m benchmarks --json results.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from . import growth, million, objects, pages, rivals, speed
from .timing import Row, table


def main(words: list[str] | None = None) -> int:
    """Run them, print the table, and exit with 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of the large file (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on which disk; default a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of million")
    parser.add_argument("--at", type=Path, help="where million's registry is kept, or already is")
    names = ("in_and_out", "saves", "loads", "commands", "million", "growth", "pages", "objects")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names[:-1],
        help="objects, which starts a server, is measured where it is named",
    )  # fmt: skip
    parser.add_argument(
        "--rivals", action="store_true",
        help="other tools too; they are installed in an environment in your cache",
    )  # fmt: skip
    given = parser.parse_args(words)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        if "in_and_out" in given.only:
            rows += speed.in_and_out(folder, given.mib, given.rounds)
        if "saves" in given.only:
            rows += speed.saves(folder, given.mib, given.rounds)
        if "loads" in given.only:
            rows += speed.loads(folder, given.mib, given.rounds)
        if "commands" in given.only:
            rows += speed.commands(folder, given.rounds)
        if "million" in given.only:
            rows += million.million(folder, given.rounds, rows=given.rows, at=given.at)
        if "growth" in given.only:
            rows += growth.growth(folder, given.mib, given.rounds, at=given.at)
        if "pages" in given.only:
            rows += pages.pages(folder, given.rounds, at=given.at)
        if "objects" in given.only:
            rows += objects.push_and_pull(folder, given.mib, given.rounds)
        if given.rivals:
            rows += rivals.rivals(folder, given.mib, given.rounds)
    print(table(rows))
    if given.json is not None:
        machine = {
            "cores": os.cpu_count(), "machine": platform.machine(), "system": platform.platform(),
            "python": platform.python_version(), "torch": torch.__version__,
        }  # fmt: skip
        plain = {"machine": machine, "rows": [row.to_dict() for row in rows]}
        given.json.write_text(json.dumps(plain, indent=2) + "\n")
    return int(any(row.verdict == "no" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
