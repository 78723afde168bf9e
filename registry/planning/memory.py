"""How much memory a load needs, on the host and on each device.

Law: counted from the record alone, with every tensor as it is after the load. What is mapped and
stays mapped counts once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from ..containers.tree import DTYPES
from .inputs import SavedTensor, Target
from .plan import Memory, Move


def memory_of(
    moves: Sequence[Move],
    tensors: Mapping[str, SavedTensor],
    assign: bool,
    target: Target | None,
    weight_bytes: int,
    optimizer_bytes: int,
) -> Memory:
    """Return what a load needs.

    Args:
        tensors: by raw key in the file.
        assign: the target's tensors are replaced by the file's.
        weight_bytes, optimizer_bytes: what is read of either.
    """
    landing: dict[tuple[str, Hashable], int] = {}
    copied: dict[tuple[str, Hashable], int] = {}
    tied = {name: i for i, group in enumerate(target.ties if target else ()) for name in group}
    for move in moves:
        source = tensors[move.source]
        one: Hashable = move.key
        if move.canonical in tied:
            one = ("tied", tied[move.canonical])
        elif source.tie_group is not None and target is None:
            one = ("view", source.tie_group)
        size = _size(move)
        landing[move.device, one] = size
        if (target is not None and not assign) or move.dtype != move.to_dtype:
            copied[move.device, one] = size
    devices: dict[str, int] = {}
    for (device, _), size in landing.items():
        devices[device] = devices.get(device, 0) + size
    on_host = sum(size for (device, _), size in copied.items() if _is_host(device))
    # What optimizers keep is copied out of the file on the host, then goes to the parameters.
    _spread(devices, optimizer_bytes)
    return Memory(devices, weight_bytes + on_host + 2 * optimizer_bytes)


def _size(move: Move) -> int:
    if move.dtype == move.to_dtype:
        return move.size_bytes
    width = DTYPES.get(move.to_dtype)
    return move.size_bytes if width is None else math.prod(move.shape) * width


def _is_host(device: str) -> bool:
    return device.partition(":")[0] == "cpu"


def _spread(devices: dict[str, int], extra: int) -> None:
    """Add bytes to each device by its share: an optimizer's state lies beside its parameters."""
    whole = sum(devices.values())
    if not extra or not whole:
        return
    rest = extra
    for device, size in sorted(devices.items(), key=lambda item: item[1]):
        part = extra * size // whole
        devices[device] = size + part
        rest -= part
        last = device
    devices[last] += rest
