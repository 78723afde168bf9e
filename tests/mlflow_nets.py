"""The net that the tests of MLflow log, for whoever logs it and whoever compares."""

from __future__ import annotations

import torch
from torch import nn


def net() -> nn.Module:
    """Return a small net, the same each time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
