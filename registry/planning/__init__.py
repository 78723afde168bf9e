"""Load plans: what a load will do, decided from the record before any tensor is read.

Law: pure (no torch, no files, no SQL). inputs.py holds what a plan is made from, plan.py the plan,
make.py the order of the decisions; devices, dtypes, join, optimizers and restore each make one of
them, text.py tells.
"""

from .inputs import (
    Cast,
    Choice,
    Machine,
    Saved,
    SavedOptimizer,
    SavedTensor,
    Target,
    TargetOptimizer,
    TargetTensor,
    Wanted,
    trusted,
)
from .make import make_plan
from .plan import KeysFrom, LoadPlan, Move, Note, OptimizerMove

__all__ = [
    "make_plan",
    "LoadPlan", "Move", "OptimizerMove", "Note", "KeysFrom",
    "Saved", "SavedTensor", "SavedOptimizer",
    "Target", "TargetTensor", "TargetOptimizer",
    "Wanted", "Cast", "Choice", "Machine", "trusted",
]  # fmt: skip
