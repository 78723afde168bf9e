"""One rank's file of a net that every rank held whole: read as the whole it is, or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from registry import ContainerError, RefusedLoadError, Registry

pytest.importorskip("torch.testing._internal.distributed.fake_pg")

WRITE = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module
from torch.testing._internal.distributed.fake_pg import FakeStore

dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
torch.manual_seed(0)
net = nn.Linear(4, 4)
here = Path(sys.argv[1])
torch.save(net.state_dict(), here / "plain.pt")

def save(name, mesh, *placements):
    own = net.state_dict().items()
    state = {k: DTensor.from_local(v.clone(), mesh, placements) for k, v in own}
    torch.save(state, here / f"{name}.pt")

save("replicated", line, Replicate())
save("replicated on two axes", square, Replicate(), Replicate())
save("sharded", line, Shard(0))
save("sharded on one of two", square, Replicate(), Shard(0))
save("partial", line, Partial())
torch.save({k: nn.Parameter(DTensor.from_local(v, line, [Replicate()]))
            for k, v in net.state_dict().items()}, here / "parameters.pt")
spoilt = DTensor.from_local(net.weight.data, line, [Replicate()])
spoilt._local_tensor = net.weight.data[:1].clone()
torch.save({"weight": spoilt, "bias": net.bias.data}, here / "spoilt.pt")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files as rank 1 of 4 saves them."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["replicated", "replicated on two axes", "parameters"])
def test_a_rank_that_held_all_of_it_gives_all_of_it(reg: Registry, files: Path, name: str) -> None:
    net = nn.Linear(4, 4)
    checkpoint = reg.push(files / f"{name}.pt", model="m")
    reg.load(checkpoint, into=net)
    plain = torch.load(files / "plain.pt", weights_only=True)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in plain.items())
    assert checkpoint.tensors == 2


@pytest.mark.parametrize("name", ["sharded", "sharded on one of two", "partial"])
def test_a_part_stays_refused(reg: Registry, files: Path, name: str) -> None:
    with pytest.raises(ContainerError, match="part 2 of 4 of a model"):
        reg.push(files / f"{name}.pt", model="m")


def test_one_whose_sizes_prove_nothing_is_refused(reg: Registry, files: Path) -> None:
    checkpoint = reg.push(files / "spoilt.pt", model="m")
    with pytest.raises(RefusedLoadError, match="DTensor"):
        reg.load(checkpoint, into=nn.Linear(4, 4))
