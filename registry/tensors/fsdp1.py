"""FSDP1 (FullyShardedDataParallel), whose state only its own, collective, functions give whole.

Law: every function here but `has` and `is_hybrid` is to be called by all ranks at once. Names are
those of `state_dict()`: FSDP1's own token is never in them. The state is taken as
SHARDED_STATE_DICT, so that no rank ever holds the whole net. Tested with torch 2.13 and
`use_orig_params=True`, without which an optimizer's parameters have no names of the net's.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .wrappers import FSDP1, Place, is_a


def has(places: Sequence[Place]) -> bool:
    """Say whether FSDP1 wraps a module of a net."""
    return any(is_a(p.module, *FSDP1) for p in places)


def is_hybrid(places: Sequence[Place]) -> bool:
    """Say whether it shards within groups and replicates between them."""
    strategies = [getattr(p.module, "sharding_strategy", None) for p in places]
    return any("HYBRID" in getattr(strategy, "name", "") for strategy in strategies)


@contextlib.contextmanager
def _sharded(net: nn.Module) -> Iterator[Any]:
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardedOptimStateDictConfig,
        ShardedStateDictConfig,
        StateDictType,
    )

    with warnings.catch_warnings():
        # torch 2.13 deprecates it for get_state_dict, which calls the same, gathers on the CPU,
        # and has no way to hand in values without touching the net.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*", category=UserWarning, module=r"torch\.")
        with FullyShardedDataParallel.state_dict_type(
            net,
            StateDictType.SHARDED_STATE_DICT,
            ShardedStateDictConfig(offload_to_cpu=False),
            ShardedOptimStateDictConfig(offload_to_cpu=False),
        ):
            yield FullyShardedDataParallel


def state_dict(net: nn.Module) -> Mapping[str, Any]:
    """Return the net's state in shards; they share no memory with it."""
    # FSDP1 itself makes ShardedTensors, and torch 2.13 warns whoever looks at one.
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
    with _sharded(net):
        return net.state_dict()


def load_state_dict(net: nn.Module, state: Mapping[str, Any]) -> Any:
    """Fill the net from a state in shards, spread as `state_dict` gave it."""
    with _sharded(net):
        return net.load_state_dict(state, strict=False)


def optimizer_state(optimizer: Any, net: nn.Module, canonical: Mapping[str, str]) -> dict[str, Any]:
    """Return an optimizer's state in shards, by canonical names."""
    with _sharded(net) as fsdp:
        given = fsdp.optim_state_dict(net, optimizer)
    return {
        "state": {canonical.get(key, key): entry for key, entry in given["state"].items()},
        "param_groups": [
            {**group, "params": [canonical.get(name, name) for name in group["params"]]}
            for group in given["param_groups"]
        ],
    }


def load_optimizer_state(
    optimizer: Any,
    net: nn.Module,
    state: Mapping[str, Any],
    groups: Sequence[Sequence[str]],
    canonical: Mapping[str, str],
) -> dict[str, Any]:
    """Return the state to load from one in shards by position.

    Args:
        groups: the parameters' canonical names, group by group.
    """
    raw = {name: key for key, name in canonical.items()}
    named = {
        position: raw.get(name, name)
        for group, names in zip(state["param_groups"], groups, strict=True)
        for position, name in zip(group["params"], names, strict=True)
    }
    given = {
        "state": {named.get(key, key): entry for key, entry in state["state"].items()},
        "param_groups": [
            {**group, "params": [named[position] for position in group["params"]]}
            for group in state["param_groups"]
        ],
    }
    with _sharded(net) as fsdp:
        return fsdp.optim_state_dict_to_load(net, optimizer, given)  # type: ignore[no-any-return]
