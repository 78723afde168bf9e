"""What this process runs on: its devices, its ranks, its versions.

Law: what isn't known is None. Makes no collective call and starts no device that isn't here.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import RefusedLoadError
from ..planning import Machine
from ..surroundings import hostname
from ..topology import Device, Mesh, Topology
from ..values import FrozenMap
from .observe import Live
from .spread import device_of, meshes_of, placements_of


def topology(live: Live | None = None, *, ranks: tuple[str, ...] = ()) -> Topology:
    """Return what this process runs on; with a live net, also how that was spread over devices.

    Args:
        ranks: where each rank is, where all were asked.
    """
    here = Topology(
        devices=(*_accelerators(), _cpu()),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        hostname=hostname(),
        torch_version=str(torch.__version__),
        cuda_version=torch.version.cuda,
        python_version=platform.python_version(),
        world_size=world_size(),
        rank=0,
    )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        here = replace(
            here, rank=torch.distributed.get_rank(), backend=torch.distributed.get_backend()
        )
    if live is None:
        return here
    spread = [t for t in live.state.values() if isinstance(t, torch.Tensor)]
    return replace(
        here,
        strategy=live.strategy,
        device_type=live.device_type,
        device_count=live.device_count * world_size(),
        meshes=tuple(Mesh.from_dict(mesh) for mesh in meshes_of(spread)),
        placements=FrozenMap(placements_of(spread) if live.spread else {}),
        ranks=ranks,
    )


def place(live: Live) -> str:
    """Return where this rank is: its host and the devices that hold its part of a net."""
    devices = sorted({device_of(t) for t in live.state.values() if isinstance(t, torch.Tensor)})
    return f"{hostname()} {' '.join(devices)}"


def world_size() -> int:
    """Return how many processes there are."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if several else 1


def rank() -> int:
    """Return this process's rank."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if several else 0


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device; "cpu" is the host.

    Raises:
        RefusedLoadError: this machine lacks it, or can't say.
        ValueError: it is no device's name.
    """
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none: take 'cpu', 'cuda' or 'cuda:1'") from error
    if kind == "cpu":
        return _free_host_memory()
    here = machine().devices.get(kind, 0)
    if (index or 0) >= here:
        raise RefusedLoadError(
            f"this machine has no {device}",
            hint="say how much memory the other one has: --memory 24GB",
        )
    module = getattr(torch, kind)
    if not hasattr(module, "mem_get_info"):
        raise RefusedLoadError(
            f"{kind} doesn't say how much of its memory is free",
            hint="say how much there is: --memory 24GB",
        )
    return int(module.mem_get_info(index or 0)[0])


def _free_host_memory() -> int:
    with suppress(OSError):  # Linux: what the system can give without swapping
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> Machine:
    """Return how many devices of each type this process can use."""
    devices = {"cpu": 1}
    kind = _accelerator_type()
    if kind is not None:
        devices[kind] = torch.accelerator.device_count()
    return Machine(devices=devices)


def _accelerator_type() -> str | None:
    """Return the type of the accelerator that is here and works, or None."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def _accelerators() -> tuple[Device, ...]:
    kind = _accelerator_type()
    if kind is None:
        return ()
    return tuple(_accelerator(kind, i) for i in range(torch.accelerator.device_count()))


def _accelerator(kind: str, index: int) -> Device:
    properties = getattr(getattr(torch, kind, None), "get_device_properties", None)
    if properties is None:  # mps has none
        return Device(index, kind)
    found = properties(index)
    return Device(index, kind, getattr(found, "name", None), getattr(found, "total_memory", None))


def _cpu() -> Device:
    return Device(0, "cpu", platform.processor() or platform.machine() or None, _memory_bytes())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no sysconf, or not these names
        return None
