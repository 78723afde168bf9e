"""The state of the random number generators: Python's, numpy's, torch's.

Law: captured as plain values and tensors. Per-device states are given back only where there are as
many devices as there were; otherwise they mean nothing. Those of other ranks come through the
group's store, and are read as data.
"""

from __future__ import annotations

import base64
import io
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import RefusedLoadError
from . import ranks
from .plain import Plainer
from .together import Together


def capture() -> dict[str, Any]:
    """Return the states of the generators of this process, as far as they are in use."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = numpy.random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def of_all(facts: ranks.Facts) -> dict[str, Any]:
    """Return the states of every rank, by its number as text, on rank 0; all ranks have to call.

    Args:
        facts: of the save, equal on all ranks.

    Raises:
        RemoteError: a rank didn't call in time, or could not tell.
    """
    found: dict[str, Any] = {}
    together = Together(f"save {ranks.named(facts)} with rng='each'", "call save", facts)
    together.round(
        lambda: _packed(capture()),
        lambda told: found.update({str(r): _unpacked(text) for r, text in enumerate(told)}),
    )
    return found


def _packed(states: Mapping[str, Any]) -> str:
    data = io.BytesIO()
    torch.save(Plainer()(states, "rng"), data)
    return base64.b64encode(data.getvalue()).decode()


def _unpacked(text: str) -> Any:
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


def restore(states: Mapping[str, Any]) -> None:
    """Set the generators of this process.

    Args:
        states: what `capture` gave, read back from a file.

    Raises:
        RefusedLoadError: the states aren't in the form that `capture` gave. Nothing was changed
            then.
    """
    before = capture()
    try:
        _set(states)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        _set(before)
        raise RefusedLoadError(f"the file's rng state can't be restored: {error}") from error


def _set(states: Mapping[str, Any]) -> None:
    if "python" in states:
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
    if "torch" in states:
        torch.set_rng_state(states["torch"].cpu().clone())
    if "numpy" in states and "numpy" in sys.modules:
        name, keys, *rest = states["numpy"]
        keys = keys.numpy() if isinstance(keys, torch.Tensor) else keys
        sys.modules["numpy"].random.set_state((name, keys, *rest))
    per_device = states.get("cuda", ())
    if per_device and len(per_device) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu().clone() for state in per_device])
