"""Jobs of several gloo processes: each rank is `python tests/gloo.py JOB …`, and writes its answer
as JSON. A job is a function here, or MODULE:FUNCTION.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


@dataclass
class Rank:
    """How one rank ended: its exit code, what it answered, and what it printed on stderr."""

    code: int
    answer: Any
    stderr: str


def run(
    job: str, *words: str, ranks: int = 2, timeout_s: float = 120, env: dict[str, str] | None = None
) -> list[Rank]:
    """Run a job on several ranks, and return how each ended.

    Raises:
        subprocess.TimeoutExpired: one hangs; all are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE), job, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ, **(env or {}), "RANK": str(rank), "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent)]),
            },
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        ended = []
        for child in children:
            out, err = child.communicate(timeout=timeout_s)
            lines = [line for line in out.splitlines() if line.startswith("ANSWER ")]
            answer = json.loads(lines[-1].removeprefix("ANSWER ")) if lines else None
            ended.append(Rank(child.returncode, answer, err))
        return ended
    finally:
        for child in children:
            child.kill()


# --- the jobs, each run on every rank
# ---------------------------------------------------------------


def matrix(location: str) -> object:
    """Save DDP and load it everywhere; save everything and load it into DDP."""
    import torch.distributed as dist
    from nets import WRAPS, equal, seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    reg = Registry.open(location)
    rank = dist.get_rank()
    wraps = {**WRAPS, "DDP": DDP, "DDP(compile)": lambda net: DDP(WRAPS["compile"](net))}
    outcome = {}
    for epoch, saved in enumerate(wraps):
        source = wraps[saved](seeded(1))
        checkpoint = reg.save(source, model="net", dataset=saved, epoch=epoch)
        for target in wraps if saved.startswith("DDP") else ("DDP",):
            into = wraps[target](seeded(2))
            result = reg.load(checkpoint, into=into)
            outcome[f"{saved} to {target}"] = [equal(source, into), len(result.loaded)]
    dist.barrier()
    return {"rank": rank, "outcome": outcome, "versions": reg.get("net").version}


def unguarded(location: str) -> object:
    """Every rank saves and loads."""
    from nets import equal, seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    reg = Registry.open(location)
    net = DDP(seeded(1))
    saved = [reg.save(net, model="net", epoch=e, acc=e / 10).id for e in range(3)]
    into = DDP(seeded(2))
    reg.load("net@best", into=into)
    return {"saved": saved, "equal": equal(net, into)}


def unnamed(location: str) -> object:
    """Every rank begins a run without a name, saves to it, and asks it."""
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    run = Registry.open(location).run("net")
    net = DDP(seeded(1))
    saved = [run.save(net, epoch=e, acc=1 - e / 10).id for e in range(2)]
    return {"saved": saved, "run": run.id, "asked": [run.best().id, run.latest().id]}


def drawn() -> list[object]:
    """Draw from each generator."""
    import random

    import numpy
    import torch

    return [random.random(), float(numpy.random.rand()), *torch.rand(2).tolist()]


def rng_of_each(location: str) -> object:
    """Every rank's random states go into the one file of a replicated net, at once and later."""
    import random

    import numpy
    import torch
    import torch.distributed as dist
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    rank = dist.get_rank()
    net = DDP(seeded(1))
    with Registry.open(location) as reg:
        expected = []
        for epoch, wait in enumerate([True, False]):
            for seed in (random.seed, numpy.random.seed, torch.manual_seed):
                seed(10 * epoch + rank)
            saving = reg.save(net, model="net", epoch=epoch, rng="each", wait=wait)
            expected.append(drawn())
            if not wait:
                saving.result()
        found = []
        for epoch in range(2):
            result = reg.load(f"net@epoch={epoch}", into=net, rng=True)
            found.append([drawn(), dict(result.ignored)])
    return {"expected": expected, "found": found}


def rng_loaded(location: str) -> object:
    """Load what another number of ranks saved."""
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    with Registry.open(location) as reg:
        result = reg.load("net@epoch=1", into=DDP(seeded(2)), rng=True)
        return [drawn(), dict(result.ignored), list(result.plan.warnings)]


def rng_without_one(location: str) -> object:
    """Rank 1 doesn't call."""
    import torch.distributed as dist
    from nets import seeded

    from registry import CkregError, Registry
    from registry.tensors import ranks

    ranks.TIMEOUT_S = 2.0
    answer = None
    if dist.get_rank() == 0:
        with Registry.open(location) as reg:
            try:
                reg.save(seeded(1), model="other", epoch=1, rng="each")
            except CkregError as error:
                answer = error.to_dict()
    dist.barrier()
    return answer


def guarded(location: str) -> object:
    """Rank 0 alone saves; then rank 0 alone loads."""
    import torch.distributed as dist
    from nets import equal, seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    net = DDP(seeded(1))
    saved, same = [], None
    if dist.get_rank() == 0:
        reg = Registry.open(location)
        saved = [reg.save(net, model="net", epoch=epoch).id for epoch in range(2)]
        into = seeded(2)
        reg.load("net", into=into)
        same = equal(net, into)
    dist.barrier()
    return {"saved": saved, "equal": same}


def out_of_step(location: str) -> object:
    """Rank 0 saves once more than rank 1 does, under a guard; then both save without one."""
    import torch.distributed as dist
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import Registry

    reg = Registry.open(location)
    net = DDP(seeded(1))
    if dist.get_rank() == 0:
        reg.save(net, model="net", epoch=0)
    return {"saved": reg.save(net, model="net", epoch=1).id}


def refused(location: str) -> object:
    """Rank 0's save is refused; rank 1 must learn it, and not wait."""
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import CkregError, Registry

    reg = Registry.open(location)
    net = DDP(seeded(1))
    try:
        reg.save(net, model="net", epoch=0, extra={"fn": len})
    except (CkregError, TypeError) as error:
        return {"type": type(error).__name__, "message": str(error)}
    return None


def killed(location: str, victim: str) -> object:
    """One rank dies by SIGKILL just before it would save."""
    import signal

    import torch.distributed as dist
    from nets import seeded
    from torch.nn.parallel import DistributedDataParallel as DDP

    from registry import CkregError, Registry
    from registry.tensors import ranks

    ranks.TIMEOUT_S = 5.0
    reg = Registry.open(location)
    net = DDP(seeded(1))
    dist.barrier()
    if dist.get_rank() == int(victim):
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        return {"saved": reg.save(net, model="net", epoch=0).id}
    except CkregError as error:
        return {"type": type(error).__name__, "message": str(error), "code": error.exit_code}


def sharded(folder: str) -> object:
    """Save a net of FSDP2 in every form: DCP, torchtitan's, one file a rank, and whole."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        get_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Stated:
        def __init__(self, **state: object) -> None:
            self.state = state

        def state_dict(self) -> dict[str, object]:
            return self.state

        def load_state_dict(self, state: object) -> None:
            raise AssertionError(state)

    rank = dist.get_rank()
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1), torch.nn.Linear(1, 7)
    )
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(4, 5)).sum().backward()
    optimizer.step()

    model, optim = get_state_dict(net, optimizer)
    state = {"model": model, "optim": optim, "epoch": 12, "more": [torch.ones(2), {"x": 1}]}
    dcp.save(state, checkpoint_id=f"{folder}/dcp")
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    titan = {
        **get_model_state_dict(net),
        **get_optimizer_state_dict(net, optimizer, options=flat),
        "lr_scheduler": Stated(last_epoch=10),
        "train_state": Stated(step=torch.tensor(10), ntokens_seen=torch.tensor(100)),
    }
    dcp.save(titan, checkpoint_id=f"{folder}/titan/step-10")
    torch.save(net.state_dict(), f"{folder}/rank{rank}.pt")
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_model_state_dict(net, options=whole)
    moments = get_optimizer_state_dict(net, optimizer, options=whole)
    if rank == 0:
        torch.save(full, f"{folder}/full.pt")
        torch.save(moments, f"{folder}/moments.pt")
    dist.barrier()
    return {"rank": rank}


def main(job: str, *words: str) -> None:
    """Run one rank of a job."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    module, _, name = job.rpartition(":")
    jobs = vars(importlib.import_module(module)) if module else globals()
    answer = jobs[name](*words)
    print("ANSWER " + json.dumps(answer), flush=True)
    if not name.startswith("killed"):
        # gloo may abort a peer that is still leaving a barrier when this one closes its sockets
        time.sleep(0.5)
        dist.destroy_process_group()
    else:
        os._exit(0)  # the group is broken: its destruction would wait for the dead


if __name__ == "__main__":
    words: Sequence[str] = sys.argv[1:]
    main(*words)
