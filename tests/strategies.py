"""A net under every strategy of torch, and jobs of several ranks that save and load it.

Law: what is compared was gathered by torch's own functions, never by ckreg's.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Net(nn.Module):
    """Two linear layers and a BatchNorm. No number of ranks divides the 5 of the last ones; the 12
    between them is what tensor parallelism divides, which takes no remainder (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.down(torch.relu(self.up(x))))  # type: ignore[no-any-return]


def plain(seed: int) -> Net:
    """Return the net, whole."""
    torch.manual_seed(seed)
    return Net()


def _ddp(net: Net) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def _fsdp1(net: Net) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))


def _fsdp2(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(net.up, mesh=mesh)  # type: ignore[arg-type]
    fully_shard(net, mesh=mesh)
    return net


def _hsdp(net: Net) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    ranks = dist.get_world_size()
    shape = (2, ranks // 2) if ranks % 2 == 0 else (1, ranks)
    fully_shard(net, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))
    return net


def _tp(net: Net) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    return parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


STRATEGIES: dict[str, Callable[[Any], nn.Module]] = {
    "plain": lambda net: net,
    "DDP": _ddp,
    "FSDP1": _fsdp1,
    "FSDP2": _fsdp2,
    "HSDP": _hsdp,
    "TP": _tp,
}


def trained(strategy: str, seed: int) -> tuple[nn.Module, torch.optim.Adam]:
    """Return a net that was trained for a step, and its optimizer."""
    net = STRATEGIES[strategy](plain(seed))
    # TP leaves some parameters whole, and foreach takes no mixture (torch 2.13)
    optimizer = torch.optim.Adam(net.parameters(), foreach=False)
    torch.manual_seed(seed + 100)
    net(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    return net, optimizer


def gathered(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all of a net and of its optimizer's state, by name, on every rank that has it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    # Without cpu_offload: FSDP1 on the CPU dies of it, by a segmentation fault (torch 2.13).
    options = StateDictOptions(full_state_dict=dist.is_initialized())
    weights, moments = get_state_dict(net, optimizer, options=options)
    found = {f"net.{key}": value for key, value in weights.items()}
    for name, entry in moments.get("state", {}).items():
        found |= {f"adam.{name}.{key}": value for key, value in entry.items()}
    return {key: torch.as_tensor(value).clone() for key, value in found.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Return the names under which two states differ, bit for bit."""
    return sorted(
        key
        for key in a.keys() | b.keys()
        if key not in a or key not in b or a[key].dtype != b[key].dtype
        or not torch.equal(a[key], b[key])
    )  # fmt: skip


# --- jobs, each run on every rank -----------------------------------------------------------------


def save(location: str, reference: str, *strategies: str) -> Any:
    """Save the net under each strategy, and what torch gathers of it."""
    from registry import Registry

    found = {}
    with Registry.open(location) as reg:
        for strategy in strategies:
            net, optimizer = trained(strategy, 1)
            ranks = dist.get_world_size()
            name = f"{strategy.lower()}-{ranks}"
            checkpoint = reg.save(
                net, model=name, epoch=3, acc=0.5, optimizer=optimizer, rng=True, batch_size=8
            )
            found[name] = checkpoint.to_dict()
            whole = gathered(net, optimizer)
            if dist.get_rank() == 0:
                torch.save(whole, Path(reference) / f"{name}.pt")
    dist.barrier()
    return found


def load(location: str, reference: str, *pairs: str) -> Any:
    """Load checkpoints into nets, `NAME:STRATEGY` each, and compare what torch gathers then."""
    from registry import Registry

    found = {}
    with Registry.open(location) as reg:
        for pair in pairs:
            name, strategy = pair.split(":")
            net, optimizer = trained(strategy, 2)
            reg.load(name, into=net, optimizer=optimizer)
            whole = gathered(net, optimizer)
            expected = torch.load(Path(reference) / f"{name}.pt")
            found[f"{name} into {strategy}"] = [len(whole), differing(whole, expected)]
            net(torch.randn(4, 6)).square().mean().backward()  # it goes on training
            optimizer.step()
    return found


def load_in_parts(location: str, reference: str, *pairs: str) -> Any:
    """Load them, of a bucket no more than is asked for."""
    from stores import bring_only_what_is_asked_for

    bring_only_what_is_asked_for()
    return load(location, reference, *pairs)


class _Failing:
    """Has no state to give."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError("the sampler is broken")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError(state)


def _error(what: Callable[[], object]) -> dict[str, Any] | None:
    from registry import CkregError

    began = time.monotonic()
    try:
        what()
    except CkregError as error:
        return {**error.to_dict(), "took_s": time.monotonic() - began}
    except Exception as error:
        return {"type": type(error).__name__, "message": str(error)}
    return None


def refused(location: str) -> Any:
    """Do what one rank alone gets wrong."""
    from registry import Registry
    from registry.tensors import ranks

    rank = dist.get_rank()
    found: dict[str, Any] = {}
    with Registry.open(location) as reg:
        net, optimizer = trained("FSDP2", 1)
        good = reg.save(net, model="good", epoch=0, optimizer=optimizer)
        broken = {"sampler": _Failing()} if rank == 1 else {}
        found["fails"] = _error(lambda: reg.save(net, model="bad", epoch=1, stateful=broken))
        ranks.TIMEOUT_S = 3.0
        if rank == 0:
            found["absent"] = _error(lambda: reg.save(net, model="bad", epoch=2))
        dist.barrier()
        before = gathered(net, optimizer)
        wrong = torch.optim.SGD(net.parameters(), momentum=0.9) if rank == 1 else optimizer
        found["load"] = _error(lambda: reg.load(good, into=net, optimizer=wrong))
        changed, its = trained("FSDP2", 2)
        apart = gathered(changed, its)
        one = torch.optim.SGD(changed.parameters()) if rank == 1 else its
        found["other"] = _error(lambda: reg.load(good, into=changed, optimizer=one))
        found["touched"] = differing(apart, gathered(changed, its)) + differing(
            before, gathered(net, optimizer)
        )
        found["again"] = reg.save(net, model="good", epoch=5).version
    return found


def busy(location: str, model: str, patient: str = "") -> Any:
    """Save where the database can't be had, and then where it can, the second time."""
    from registry import BusyError, Registry, sharded
    from registry.catalog import Catalog

    add, calls, patience = Catalog.add, [False, True], sharded.PATIENCE_S

    def never(self: Catalog, *words: Any, **more: Any) -> Any:
        raise BusyError("the registry is busy", hint="see who holds it")

    def later(self: Catalog, *words: Any, **more: Any) -> Any:
        return (add if calls.pop(0) else never)(self, *words, **more)

    sharded.PATIENCE_S = 0.0
    with Registry.open(location) as reg:
        net, optimizer = trained("FSDP2", 1)
        Catalog.add = never  # type: ignore[method-assign]
        found = _error(
            lambda: reg.save(
                net, model=model, epoch=3, acc=0.5, optimizer=optimizer, tags=["good"], note="a b"
            )
        )
        sharded.PATIENCE_S = patience
        Catalog.add = later if patient else add  # type: ignore[method-assign]
        return [found, reg.save(net, model="after", epoch=4, optimizer=optimizer).to_dict()]


def resumed(location: str) -> Any:
    """Save and load the random states of all ranks; then fill a net on meta."""
    import warnings

    from registry import Registry
    from registry.tensors.building import Builder

    rank = dist.get_rank()
    found: dict[str, Any] = {}
    with Registry.open(location) as reg, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, _ = trained("FSDP2", 1)
        torch.manual_seed(70 + rank)
        saved = reg.save(net, model="rng", epoch=0, rng=True, wait=False).result()
        drawn = torch.rand(3).tolist()
        torch.manual_seed(5)
        reg.load(saved, into=net, rng=True)
        found["drawn"] = [drawn, torch.rand(3).tolist()]
        found["ranks"] = list(saved.topology.ranks)
        whole = plain(9)
        if rank == 0:
            reg.save(whole, model="whole", epoch=1)
        dist.barrier()
        expected = {f"net.{key}": value for key, value in whole.state_dict().items()}
        found["meta"] = []
        for broadcast in (False, True):
            if broadcast and rank:
                Builder.part = Builder.tensor = None  # type: ignore[assignment,method-assign]
            with torch.device("meta"):
                hollow = _fsdp2(Net())
            reg.load("whole", into=hollow, broadcast=broadcast)
            full = gathered(hollow, torch.optim.SGD(hollow.parameters()))
            found["meta"] += differing(full, expected)
            hollow(torch.randn(4, 6)).sum().backward()
            hollow = _ddp(plain(3))
            reg.load("whole", into=hollow, broadcast=broadcast)
            found["meta"] += differing(
                {f"net.{key}": value for key, value in hollow.module.state_dict().items()}, expected
            )
    return found


def measured(location: str) -> Any:
    """Save and load nets that have just been measured: torch leaves the root's parameters whole."""
    from registry import Registry

    def trained_and_measured(seed: int) -> tuple[nn.Module, torch.optim.Adam]:
        net, optimizer = trained("HSDP", seed)
        with torch.no_grad():
            net.eval()(torch.zeros(4, 6))
        return net, optimizer

    with Registry.open(location) as reg:
        net, optimizer = trained_and_measured(1)
        saved = reg.save(net, model="net", epoch=0, optimizer=optimizer)
        into, other = trained_and_measured(2)
        reg.load(saved, into=into, optimizer=other)
        return [saved.version, differing(gathered(net, optimizer), gathered(into, other))]


def hooked_ddp(location: str, returned: str, strategy: str = "DDP") -> None:
    """Save where a hook runs; rank 1 says when its save is over."""
    from registry import Registry

    with Registry.open(location) as reg:
        net, _ = trained(strategy, 1)
        reg.save(net, model="net", epoch=0)
        if dist.get_rank() == 1:
            Path(returned).touch()


def hooked_fsdp2(location: str, returned: str) -> None:
    """Do the same with a net that both hold in parts."""
    hooked_ddp(location, returned, "FSDP2")


def rng_of_fewer(location: str) -> Any:
    """Load the random states of more ranks than there are, or of fewer."""
    import warnings

    from registry import Registry

    with Registry.open(location) as reg, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, _ = trained("FSDP2", 1)
        result = reg.load("rng", into=net, rng=True)
        return [torch.rand(3).tolist(), dict(result.ignored), list(result.plan.warnings)]


def killed(location: str, victim: str) -> Any:
    """One rank is killed while it writes its part."""
    from registry import Registry
    from registry.tensors import distcp, ranks

    ranks.TIMEOUT_S = 4.0
    with Registry.open(location) as reg:
        net, optimizer = trained("FSDP2", 1)
        dist.barrier()
        if dist.get_rank() == int(victim):
            distcp.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
        error = _error(lambda: reg.save(net, model="net", epoch=0, optimizer=optimizer))
    if dist.get_rank() == 0:
        time.sleep(1)  # it holds the store, which the others may be reading
    return error


def killed_in_a_crowd(location: str) -> Any:
    """Save a replicated net on many ranks: one slow, then guarded, then with the last but one
    killed.
    """
    from registry import Registry

    rank, ranks = dist.get_rank(), dist.get_world_size()
    with Registry.open(location) as reg:
        net = _ddp(plain(1))
        versions = []
        for epoch in range(3):
            if rank == ranks - 3:
                time.sleep(0.5)
            versions.append(reg.save(net, model="net", epoch=epoch).version)
        if rank == 0:
            reg.save(net, model="net", epoch=3)
        dist.barrier()
        if rank == ranks - 2:
            os.kill(os.getpid(), signal.SIGKILL)
        versions.append(reg.save(net, model="net", epoch=4).version)
        refused = _error(lambda: reg.load("net", into=plain(2)))
    time.sleep(2 if rank == 0 else 0)
    return [versions, refused]
