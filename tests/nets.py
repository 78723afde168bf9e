"""The nets of the tests, and every way in which people wrap them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Net(nn.Module):
    """A small net with real submodules called `module` and `model`, tied weights and a
    BatchNorm.
    """

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.module = nn.Linear(6, 8)
        self.features = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.tied = nn.Linear(8, classes)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.model(self.features(self.module(x)))
        return (self.head(hidden) + self.tied(hidden)) * self.scale


def seeded(seed: int, classes: int = 5) -> Net:
    """Return a net whose every tensor, buffers included, is random by its seed."""
    torch.manual_seed(seed)
    net = Net(classes)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))
            else:
                tensor.fill_(seed + 7)
    return net


def _submodule(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Net], nn.Module]:
    def wrapped(net: Net) -> nn.Module:
        net.features = wrap(net.features)  # type: ignore[assignment]
        net.module = wrap(net.module)  # type: ignore[assignment]
        return net

    return wrapped


def _compile(net: nn.Module) -> nn.Module:
    return torch.compile(net)  # type: ignore[return-value]


def _checkpoint(net: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(net)


WRAPS: dict[str, Callable[[Net], nn.Module]] = {
    "plain": lambda net: net,
    "DP": nn.DataParallel,
    "compile": _compile,
    "DP(compile)": lambda net: nn.DataParallel(_compile(net)),
    "compile(DP)": lambda net: _compile(nn.DataParallel(net)),
    "submodule DP": _submodule(nn.DataParallel),
    "submodule compile": _submodule(_compile),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "checkpoint_wrapper": _checkpoint,
    "DP(submodule compile)": lambda net: nn.DataParallel(_submodule(_compile)(net)),
}
"""All that need no process group; DDP is added in the tests that have one."""


def values(net: nn.Module) -> list[torch.Tensor]:
    """Return a net's tensors in the order of its architecture, however it is wrapped."""
    buffers = [b for name, b in net.named_buffers() if not name.endswith("n_averaged")]
    return [p.detach() for p in net.parameters()] + buffers


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Say whether two nets hold the same values, bit for bit."""
    ours, theirs = values(a), values(b)
    return len(ours) == len(theirs) > 0 and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(ours, theirs, strict=True)
    )
