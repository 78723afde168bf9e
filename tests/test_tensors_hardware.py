"""What a process runs on: every device, how the net was spread, what was set in the environment."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import pytest
import torch
from nets import seeded
from torch import nn

from registry.tensors import hardware
from registry.tensors.observe import observe
from registry.topology import Topology


def test_a_plain_net_is_single_on_one_device_of_its_type() -> None:
    found = hardware.topology(observe(seeded(1)))

    assert (found.strategy, found.world_size, found.rank, found.backend) == ("single", 1, 0, None)
    assert (found.device_type, found.device_count) == ("cpu", 1)
    assert found.hostname == socket.gethostname()
    assert found.torch_version == str(torch.__version__)
    assert found.python_version == platform.python_version()
    assert found.cuda_version == torch.version.cuda


def test_the_cpu_is_one_device_with_its_memory() -> None:
    cpu = [d for d in hardware.topology().devices if d.type == "cpu"]
    assert len(cpu) == 1
    assert cpu[0].name
    assert cpu[0].memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_it_is_a_record_that_comes_back_from_its_json_form() -> None:
    found = hardware.topology(observe(nn.DataParallel(seeded(1))))
    assert found.strategy == "dp"
    assert Topology.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("value", [None, "", "2,3"])
def test_visible_devices_are_as_they_were_set(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert hardware.topology().visible_devices == value


def test_a_process_group_gives_rank_backend_and_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        found = hardware.topology(observe(nn.parallel.DistributedDataParallel(seeded(1))))
    finally:
        torch.distributed.destroy_process_group()
    assert (found.strategy, found.backend, found.rank, found.world_size) == ("ddp", "gloo", 0, 1)


def test_this_machine_has_a_cpu_and_what_torch_can_use() -> None:
    devices = dict(hardware.machine().devices)
    assert devices.pop("cpu") == 1
    for kind, many in devices.items():
        assert torch.empty(1, device=f"{kind}:{many - 1}").device.type == kind


def test_a_net_on_two_devices_counts_those_that_hold_it() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    live = observe(nn.Sequential(net, nn.Linear(2, 2)))
    assert (live.device_type, live.device_count) == ("cpu", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_devices_are_named_with_their_memory() -> None:
    found = hardware.topology(observe(seeded(1).cuda()))
    cuda = [d for d in found.devices if d.type == "cuda"]
    assert len(cuda) == torch.cuda.device_count()
    assert cuda[0].name == torch.cuda.get_device_name(0)
    assert cuda[0].memory_bytes == torch.cuda.get_device_properties(0).total_memory
    assert found.device_type == "cuda"
