"""The command line of the sweeps: exits with 1 when a law was broken, and says by which input."""

from __future__ import annotations

import argparse
import sys

from . import fuzz, mutants


def main(words: list[str] | None = None) -> int:
    """Run one sweep."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweeps")
    sweeps = parser.add_subparsers(required=True)
    of_mutants = sweeps.add_parser("mutants", help=mutants.__doc__)
    of_mutants.add_argument("--count", type=int, default=20_000, help="of each kind")
    of_mutants.add_argument("--start", type=int, default=0, help="the first one's number")
    of_mutants.add_argument("--kinds", nargs="+", choices=sorted(mutants.KINDS), default=None)
    of_mutants.set_defaults(
        run=lambda g: mutants.sweep(g.kinds or sorted(mutants.KINDS), g.start, g.count)
    )
    of_fuzz = sweeps.add_parser("fuzz", help=fuzz.__doc__)
    of_fuzz.add_argument("--count", type=int, default=100_000, help="inputs for each kind")
    of_fuzz.add_argument("--kinds", nargs="+", choices=fuzz.KINDS, default=list(fuzz.KINDS))
    of_fuzz.set_defaults(run=lambda g: fuzz.sweep(g.kinds, g.count))
    given = parser.parse_args(words)
    return int(given.run(given))


if __name__ == "__main__":
    sys.exit(main())
