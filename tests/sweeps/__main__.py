"""The command line of the sweeps: exits with 1 when a law was broken, and says by which input."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from . import (
    copies,
    crowds,
    damage,
    failures,
    fuzz,
    kills,
    matrix,
    mutants,
    power,
    s3faults,
    server_crowds,
)


def main(words: list[str] | None = None) -> int:
    """Run one sweep."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweeps")
    sweeps = parser.add_subparsers(required=True)
    of_mutants = sweeps.add_parser("mutants", help=_first(mutants))
    of_mutants.add_argument("--count", type=int, default=20_000, help="of each kind")
    of_mutants.add_argument("--start", type=int, default=0, help="the first one's number")
    of_mutants.add_argument("--kinds", nargs="+", choices=sorted(mutants.KINDS), default=None)
    of_mutants.set_defaults(
        sweep=lambda g: mutants.sweep(g.kinds or sorted(mutants.KINDS), g.start, g.count)
    )
    of_kills = sweeps.add_parser("kills", help=_first(kills))
    of_kills.add_argument("--count", type=int, default=400, help="calls of each name, at most")
    of_kills.add_argument("--operations", nargs="+", choices=kills.OPERATIONS, default=None)
    of_kills.add_argument("--calls", nargs="+", choices=kills.SYSCALLS, default=None)
    of_kills.set_defaults(
        sweep=lambda g: kills.sweep(
            g.operations or list(kills.OPERATIONS), g.calls or kills.SYSCALLS, g.count
        )
    )
    of_crowds = sweeps.add_parser("crowds", help=_first(crowds))
    of_crowds.add_argument("--writers", type=int, default=64)
    of_crowds.add_argument("--count", type=int, default=100, help="pushes of each writer")
    of_crowds.add_argument("--stops", type=int, default=400, help="calls of each name, at most")
    of_crowds.add_argument("--engine", choices=("sqlite", *server_crowds.ENGINES), default="sqlite")
    of_crowds.set_defaults(
        sweep=lambda g: (
            crowds.sweep(g.writers, g.count, g.stops)
            if g.engine == "sqlite"
            else server_crowds.sweep(g.engine, g.writers, g.count)
        )
    )
    of_damage = sweeps.add_parser("damage", help=_first(damage))
    of_damage.add_argument("--count", type=int, default=10_000, help="of each kind")
    of_damage.add_argument("--start", type=int, default=0, help="the first one's number")
    of_damage.add_argument("--kinds", nargs="+", choices=damage.KINDS, default=None)
    of_damage.set_defaults(
        sweep=lambda g: damage.sweep(g.kinds or list(damage.KINDS), g.start, g.count)
    )
    of_failures = sweeps.add_parser("failures", help=_first(failures))
    of_failures.add_argument("--count", type=int, default=400, help="calls of each name, at most")
    of_failures.add_argument("--operations", nargs="*", choices=kills.OPERATIONS, default=None)
    of_failures.add_argument("--errors", nargs="+", default=failures.ERRORS)
    of_failures.set_defaults(
        sweep=lambda g: failures.sweep(
            ["push", "pull", "rm"] if g.operations is None else g.operations, g.errors, g.count
        )
    )
    of_fuzz = sweeps.add_parser("fuzz", help=_first(fuzz))
    of_fuzz.add_argument("--count", type=int, default=100_000, help="inputs for each kind")
    of_fuzz.add_argument("--kinds", nargs="+", choices=fuzz.KINDS, default=list(fuzz.KINDS))
    of_fuzz.set_defaults(sweep=lambda g: fuzz.sweep(g.kinds, g.count))
    of_s3faults = sweeps.add_parser("s3faults", help=_first(s3faults))
    of_s3faults.add_argument("--count", type=int, default=1000, help="pushes and pulls")
    of_s3faults.add_argument("--seed", type=int, default=1)
    of_s3faults.add_argument("--share", type=float, default=0.08, help="of requests that fail")
    of_s3faults.set_defaults(sweep=lambda g: s3faults.sweep(g.count, g.seed, g.share))
    of_power = sweeps.add_parser("power", help=_first(power))
    of_power.add_argument("--count", type=int, default=400, help="calls of each name, at most")
    of_power.add_argument("--kinds", nargs="+", choices=power.KINDS, default=power.KINDS)
    of_power.set_defaults(sweep=lambda g: power.sweep(g.kinds, g.count))
    of_matrix = sweeps.add_parser("matrix", help=_first(matrix))
    of_matrix.add_argument("--saved", nargs="+", type=int, default=[1, 2, 4], help="ranks")
    of_matrix.add_argument("--loaded", nargs="+", type=int, default=[1, 2, 3], help="ranks")
    of_matrix.set_defaults(sweep=lambda g: matrix.sweep(g.saved, g.loaded))
    of_copies = sweeps.add_parser("copy", help=_first(copies))
    of_copies.add_argument("--count", type=int, default=1000, help="checkpoints")
    of_copies.set_defaults(sweep=lambda g: copies.sweep(g.count))
    given = parser.parse_args(words)
    return int(given.sweep(given))


def _first(module: ModuleType) -> str:
    """Return a module's first sentence."""
    return str(module.__doc__).partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
