"""One rank reads, and all have it: a checkpoint's tensors sent from rank 0, one by one.

Law: every rank asks for the same tensors in the same order, since each is a collective call; only
rank 0 touches the files' bytes; no more than one whole tensor is held for a spread net.
"""

from __future__ import annotations

from typing import Any

import torch

from ..containers import AnyTensor, Assembled, Contents, Tensor
from ..errors import RefusedLoadError
from .building import Builder, dtype_named
from .spread import Box


class Broadcast(Builder):
    """A Builder whose tensors come from rank 0.

    Args:
        contents, mapping, trust: as Builder's; the mapping is used on rank 0 only.

    Raises:
        RefusedLoadError: there is no process group.
    """

    def __init__(self, contents: Contents, mapping: Any, *, trust: Any = ()) -> None:
        super().__init__(contents, mapping, trust=trust)
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            raise RefusedLoadError(
                "broadcast=True, and there is no process group to send tensors through",
                hint="leave broadcast= out",
            )
        self._device = "cpu"
        if "cpu" not in dist.get_backend_config():  # nccl alone: by way of each rank's device
            accelerator = torch.accelerator.current_accelerator()
            self._device = "cpu" if accelerator is None else accelerator.type
        self._had: dict[int, torch.Tensor] = {}

    def tensor(self, found: AnyTensor) -> torch.Tensor:
        """Return the tensor on the CPU, as rank 0 has it."""
        if id(found) not in self._had:
            self._had[id(found)] = self._sent(found)
        return self._had[id(found)]

    def part(self, found: AnyTensor, box: Box) -> torch.Tensor:
        """Return a part of a tensor on the CPU, as rank 0 has it."""
        whole = Box((0,) * len(found.shape), found.shape)
        return self._sent(found)[box.within(whole)].clone()

    def _sent(self, found: AnyTensor) -> torch.Tensor:
        if not isinstance(found, Tensor | Assembled):
            raise RefusedLoadError(
                f"broadcast=True sends dense tensors only, and the file holds a {found.form} one",
                hint="leave broadcast= out",
            )
        if torch.distributed.get_rank() == 0:
            own = super().tensor(found).detach().resolve_conj().resolve_neg()
            self._tensors.pop(id(found), None)
            carrier = own.contiguous().to(self._device)
        else:
            carrier = torch.empty(found.shape, dtype=dtype_named(found.dtype), device=self._device)
        # As bytes: a backend need not know the dtype.
        flat = carrier.reshape(-1).view(torch.uint8)
        if flat.numel():
            torch.distributed.broadcast(flat, 0)
        return carrier.cpu()
