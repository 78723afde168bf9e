"""`state_dict._metadata`: the versions of modules, renamed along with the keys.

Law: it goes wherever the keys go. Without it BatchNorm takes a file for one of before version 2,
and fills missing counters without a word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..containers import Description
from ..errors import CkregError
from ..keys import Reading, to_canonical, to_raw
from ..planning import LoadPlan
from .observe import Live
from .wrappers import CHECKPOINT_TOKEN


def without_token(key: str) -> str:
    """Return a key or module path without checkpoint_wrapper's token."""
    return ".".join(s for s in key.split(".") if s != CHECKPOINT_TOKEN)


def _canonical(plan: LoadPlan, description: Description) -> dict[str, Any] | None:
    """Return the file's `_metadata` under canonical module paths, or None."""
    averaged = plan.weights == "ema" and description.ema is not None
    metadata = description.ema_metadata if averaged else description.metadata
    if not isinstance(metadata, Mapping):
        return None
    found: dict[str, Any] = {}
    for path, versions in metadata.items():
        name = _renamed(path, plan.reading) if isinstance(path, str) else None
        if name is not None and isinstance(versions, Mapping):
            plain = {k: v for k, v in versions.items() if isinstance(k, str) and isinstance(v, int)}
            found[name] = plain
    return found


def _renamed(path: str, reading: Reading) -> str | None:
    """Return a module's path in the target, or None for a wrapper's or another's outside the net,
    whose version nobody needs.
    """
    path = without_token(path)
    probe = f"{path}.x" if path else "x"
    try:
        name = reading.place(to_canonical([probe], reading.style)[probe])
    except CkregError:
        return None
    return None if name is None else name.rpartition(".")[0]


def metadata_under(plan: LoadPlan, description: Description) -> OrderedDict[str, Any] | None:
    """Return the file's `_metadata` as it goes with the keys that a plan without a target gives."""
    found = _canonical(plan, description)
    if found is None:
        return None
    probes = {path: f"{path}.x" if path else "x" for path in found}
    raw = to_raw(probes.values(), plan.out_keys)
    return OrderedDict((raw[probes[p]].rpartition(".")[0], v) for p, v in found.items())


def metadata_for(
    live: Live, plan: LoadPlan, description: Description
) -> OrderedDict[str, Any] | None:
    """Return the file's `_metadata` as the modules of a live net look it up."""
    saved = _canonical(plan, description)
    if saved is None:
        return None
    own = getattr(live.state, "_metadata", None) or {}
    found = OrderedDict((path, dict(versions)) for path, versions in own.items())
    for raw, path in live.modules.items():
        if path in saved:
            found[raw] = dict(saved[path])
        else:
            found.pop(raw, None)
    return found
