"""What this process runs on: its devices, its ranks, its versions.

Law: what isn't known is None. Makes no collective call and starts no device that isn't here.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace

import torch

from ..planning import Machine
from ..surroundings import hostname
from ..topology import Device, Topology
from .observe import Live


def topology(live: Live | None = None) -> Topology:
    """Return what this process runs on; with a live net, also how that was spread over devices."""
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
    return replace(
        here,
        strategy=live.strategy,
        device_type=live.device_type,
        device_count=live.device_count * world_size(),
    )


def world_size() -> int:
    """Return how many processes there are."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if several else 1


def rank() -> int:
    """Return this process's rank."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if several else 0


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
