"""ckreg: a registry for PyTorch checkpoints whose loads never guess.

Example:
    >>> import tempfile
    >>> from registry import Registry
    >>> with Registry.create(tempfile.mkdtemp() + "/reg") as reg:
    ...     list(reg.find())
    []
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collecting import GcPlan
    from .diffing import Diff
    from .errors import (
        AmbiguousError,
        BusyError,
        CkregError,
        CkregWarning,
        ConflictError,
        ContainerError,
        DamagedError,
        NoSpaceError,
        NotFoundError,
        NotWritableError,
        RefusedLoadError,
        RemoteError,
        SchemaVersionError,
        UntrustedError,
    )
    from .importing import ImportedFile, ImportResult
    from .loads import LoadResult
    from .pending import PendingSave
    from .planning import LoadPlan
    from .pruning import PrunePlan
    from .records import Checkpoint, File, Git, Model, Provenance, RunRecord, RunRef
    from .registry import Registry
    from .repairing import Rebuilt, Repaired
    from .retention import Aliased, Best, Every, Last, Policy, Tagged, Verdict, Younger
    from .runs import Run
    from .signature import KeyStyle, Signature, TensorSpec
    from .topology import Device, Topology
    from .verifying import Finding, Verification

__version__ = "0.1.0"

__all__ = [
    # the facade
    "Registry",
    "Run",
    # what to keep
    "Policy",
    "Aliased",
    "Best",
    "Every",
    "Last",
    "Tagged",
    "Younger",
    # what it returns
    "Checkpoint",
    "Copied",
    "Diff",
    "File",
    "Finding",
    "GcPlan",
    "Git",
    "ImportedFile",
    "ImportResult",
    "LoadPlan",
    "LoadResult",
    "Model",
    "PendingSave",
    "Provenance",
    "PrunePlan",
    "Rebuilt",
    "Repaired",
    "RunRecord",
    "RunRef",
    "Verdict",
    "Verification",
    # what it saw
    "Device",
    "KeyStyle",
    "Signature",
    "TensorSpec",
    "Topology",
    # what it raises
    "CkregError",
    "CkregWarning",
    "AmbiguousError",
    "BusyError",
    "ConflictError",
    "ContainerError",
    "DamagedError",
    "NoSpaceError",
    "NotFoundError",
    "NotWritableError",
    "RefusedLoadError",
    "RemoteError",
    "SchemaVersionError",
    "UntrustedError",
]

_HOMES = {
    "Registry": "registry",
    "Copied": "copying",
    "Diff": "diffing",
    "GcPlan": "collecting",
    "PrunePlan": "pruning",
    **dict.fromkeys(
        ("Aliased", "Best", "Every", "Last", "Policy", "Tagged", "Verdict", "Younger"), "retention"
    ),
    **dict.fromkeys(("Rebuilt", "Repaired"), "repairing"),
    "Finding": "verifying",
    "Verification": "verifying",
    "ImportedFile": "importing",
    "ImportResult": "importing",
    "PendingSave": "pending",
    "Run": "runs",
    "LoadPlan": "planning",
    "LoadResult": "loads",
    **dict.fromkeys(
        ("Checkpoint", "File", "Git", "Model", "Provenance", "RunRecord", "RunRef"), "records"
    ),
    **dict.fromkeys(("Device", "Topology"), "topology"),
    **dict.fromkeys(("KeyStyle", "Signature", "TensorSpec"), "signature"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562): `ckreg --help` must not pay for
    SQLAlchemy.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
