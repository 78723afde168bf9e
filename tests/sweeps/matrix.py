"""Every strategy saved on 1, 2 and 4 ranks, loaded under every strategy on 1, 2 and 3 ranks.

And without a process group; and a replicated net on 8. Weights, buffers and Adam's state are
compared bit for bit as torch's own functions gather them before the save and after the load.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from registry import Registry

sys.path.insert(0, str(Path(__file__).parent.parent))


def sweep(saved: list[int], loaded: list[int]) -> int:
    """Run the matrix; return how many of its cells were wrong.

    Args:
        saved, loaded: numbers of ranks.
    """
    import gloo
    import strategies

    began, done, wrong = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="ckreg-matrix-") as place:
        location = f"{place}/reg"
        Registry.create(location).close()
        names: list[str] = []
        for ranks in saved:
            ended = gloo.run(
                "strategies:save", location, place, *strategies.STRATEGIES, ranks=ranks,
                timeout_s=600,
            )  # fmt: skip
            failed = [rank for rank in ended if rank.code]
            wrong += len(failed)
            for rank in failed:
                print(f"saving on {ranks} ranks: {rank.stderr[-2000:]}")
            names += [f"{name.lower()}-{ranks}" for name in strategies.STRATEGIES]
        for ranks in loaded:
            for strategy in strategies.STRATEGIES:
                pairs = [f"{name}:{strategy}" for name in names]
                ended = gloo.run(
                    "strategies:load", location, place, *pairs, ranks=ranks, timeout_s=600
                )
                bad = [rank for rank in ended if rank.code]
                cells = {} if bad else ended[0].answer
                for rank in bad:
                    print(f"loading into {strategy} on {ranks} ranks: {rank.stderr[-2000:]}")
                wrong += len(names) if bad else 0
                for cell, (_, differ) in cells.items():
                    if differ:
                        print(f"{cell} on {ranks} ranks: {', '.join(differ)} differ")
                        wrong += 1
                done += len(names)
                print(f"into {strategy} on {ranks}: {len(cells)} cells", flush=True)
        found = strategies.load(location, place, *(f"{name}:plain" for name in names))
        differing = {cell: differ for cell, (_, differ) in found.items() if differ}
        done, wrong = done + len(found), wrong + len(differing)
        print(f"without a group: {len(found)} cells, {differing or 'all equal'}")
        crowd = gloo.run("strategies:killed_in_a_crowd", location, ranks=8, timeout_s=600)
        off = [r for r, one in enumerate(crowd) if r != 6 and one.answer != [[1, 2, 3, 5], None]]
        print(f"8 ranks of a replicated net, one slow, one killed: {off or 'all right'}")
        done, wrong = done + 1, wrong + int(bool(off))
    print(f"{done} cells, {wrong} wrong, {time.monotonic() - began:.0f} s")
    return int(wrong > 0)
