"""Lightning Fabric saves a net of FSDP2 on two ranks: `python tests/fabric_folder.py FOLDER`."""

from __future__ import annotations

import sys

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


def shard(net, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=mesh["data_parallel"])
    return net


def main(folder: str) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    strategy = ModelParallelStrategy(
        parallelize_fn=shard, data_parallel_size=2, tensor_parallel_size=1,
        process_group_backend="gloo",
    )  # fmt: skip
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    net = fabric.setup(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 7)))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(net.parameters()))
    net(torch.ones(4, 5)).sum().backward()
    optimizer.step()
    fabric.save(f"{folder}/fabric", {"model": net, "optimizer": optimizer, "epoch": 3})
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_model_state_dict(net.module, options=whole)
    if fabric.global_rank == 0:
        torch.save(full, f"{folder}/full.pt")


if __name__ == "__main__":
    main(sys.argv[1])
