"""A snapshot of what is to be saved, so that training may change its tensors while it is written.

Law: each storage is copied once, shared ones stay shared, and the copy holds the values of the
moment of the call, whatever is queued on the device afterwards. Nothing but the tensors is copied:
the tree around them is made anew by whoever made it plain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .spread import Spread


class Snapshot:
    """A tree of plain values with tensors of its own in host memory.

    Args:
        tree: what writing.contents made.

    Attributes:
        tree: the copy.
        tags: the devices of storages that were not on the CPU, by the copies' `_cdata`.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tags: dict[int, str] = {}
        self._storages: dict[int, Any] = {}  # copies, by the `_cdata` of what they copy
        self._copied: dict[int, Tensor] = {}
        self._waits: dict[str, Callable[[], object]] = {}
        with torch.no_grad():
            self.tree: dict[str, Any] = {key: self._below(value) for key, value in tree.items()}

    def wait(self) -> None:
        """Wait for copies that a device still makes; before that the tree is not to be read."""
        for wait in self._waits.values():
            wait()

    def _below(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Spread):
            return replace(value, parts=tuple((box, self._tensor(t)) for box, t in value.parts))
        if isinstance(value, dict):
            made = type(value)()  # dict, or OrderedDict with its `_metadata`
            for key, inner in value.items():
                made[key] = self._below(inner)
            vars(made).update(vars(value)) if hasattr(value, "__dict__") else None
            return made
        if type(value) is list:
            return [self._below(inner) for inner in value]
        if type(value) is tuple and any(_holds_tensors(inner) for inner in value):
            return tuple(self._below(inner) for inner in value)
        return value  # immutable, or of the plain tree's own making

    def _tensor(self, tensor: Tensor) -> Tensor:
        made = self._copied.get(id(tensor))
        if made is None and (tensor.layout != torch.strided or tensor.is_quantized):
            # Of parts that no other tensor shares; the file names the CPU for them.
            made = self._copied[id(tensor)] = tensor.detach().to("cpu", copy=True)
        if made is None:
            storage = self._storage(tensor)
            made = torch.empty(0, dtype=tensor.dtype).set_(
                storage, tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            made = made.conj() if tensor.is_conj() else made
            made = torch._neg_view(made) if tensor.is_neg() else made
            self._copied[id(tensor)] = made
        return made

    def _storage(self, tensor: Tensor) -> Any:
        source = tensor.untyped_storage()
        made = self._storages.get(source._cdata)
        if made is None:
            here = tensor.device.type == "cpu"
            made = source.clone() if here else self._fetched(tensor)  # type: ignore[no-untyped-call]
            self._storages[source._cdata] = made
        return made

    def _fetched(self, tensor: Tensor) -> Any:
        """Copy a storage from a device: CUDA's on a stream of its own, into pinned memory."""
        source = tensor.untyped_storage()
        device = tensor.device
        if device.type != "cuda":
            made = source.cpu()  # type: ignore[no-untyped-call]
        else:
            made = torch.empty(
                source.nbytes(), dtype=torch.uint8, pin_memory=True
            ).untyped_storage()
            here = torch.cuda.current_stream(device)
            beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                made.copy_(source, non_blocking=True)
            here.wait_stream(beside)  # what is queued next may change it, and so comes after
            self._waits[f"{device} {len(self._waits)}"] = beside.synchronize
        self.tags[made._cdata] = str(device)
        return made


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)
