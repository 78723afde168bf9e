"""The catalog: every query of a registry's database; records in, records out.

`Catalog` is the facade: one method, one transaction; `Upkeep` is that of verify, prune and gc,
`Inventory` and `Arrivals` are those of copies. Beside them `rows` (records and rows), `lookup`
(refs and what to say when nothing answers), `ranking` (best, latest), `kin` (parents and children),
`finding` (lists), `surveying` (many at a glance), `filters` (where to SQL), `adding`, `changing`
and `pruning` (writes), `collecting` (gc), `moving` (copies). Only here is SQL spoken, for SQLite
and PostgreSQL; what is SQLite's own comes from registry/sqlite.py. Knows no files and no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from .facade import Catalog
from .finding import Page, Query
from .scopes import ANY, AnyDataset, Dataset

if TYPE_CHECKING:
    from .adding import Added, Draft
    from .changing import AliasMove, Recorded
    from .checking import Checked, Wrong
    from .collecting import Removed, portions
    from .moving import Arrival, Arrivals, Inventory, Listed, ModelFacts
    from .pruning import Prunable, Pruned
    from .settling import Gone
    from .surveying import Choices, Course, Freeable, Holding, Leader, Point, Standing
    from .upkeep import Upkeep
    from .wholes import Whole
    from .wholes import parse as parse_whole

__all__ = [
    "Catalog",
    "Upkeep",
    "Inventory",
    "Arrivals",
    "Arrival",
    "Listed",
    "ModelFacts",
    "Removed",
    "Prunable",
    "Pruned",
    "Checked",
    "Wrong",
    "Whole",
    "parse_whole",
    "portions",
    "Draft",
    "Added",
    "Gone",
    "Recorded",
    "Page",
    "Query",
    "Choices",
    "Course",
    "Freeable",
    "Holding",
    "Leader",
    "Point",
    "Standing",
    "AliasMove",
    "ANY",
    "AnyDataset",
    "Dataset",
]

_HOMES: Final = {
    **dict.fromkeys(("Added", "Draft"), "adding"),
    **dict.fromkeys(("AliasMove", "Recorded"), "changing"),
    **dict.fromkeys(("Checked", "Wrong"), "checking"),
    **dict.fromkeys(("Removed", "portions"), "collecting"),
    **dict.fromkeys(("Arrival", "Arrivals", "Inventory", "Listed", "ModelFacts"), "moving"),
    **dict.fromkeys(("Prunable", "Pruned"), "pruning"),
    **dict.fromkeys(
        ("Choices", "Course", "Freeable", "Holding", "Leader", "Point", "Standing"), "surveying"
    ),
    "Gone": "settling",
    "Upkeep": "upkeep",
    "Whole": "wholes",
}


def __getattr__(name: str) -> Any:
    """Import what changes or checks a registry at its first use (PEP 562): a question pays for
    neither.
    """
    if name == "parse_whole":
        from .wholes import parse

        return parse
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
