"""Two checkpoints' metrics side by side, and whether the new one may take the other's place.

Law: of a metric that one of the two lacks there is no change, and no claim. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .records import Checkpoint
from .values import FORMAT
from .where import gate


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of both.

    Attributes:
        change: the new value less the base's; None where one of them lacks it.
    """

    name: str
    new: float | None
    base: float | None

    @property
    def change(self) -> float | None:
        return None if self.new is None or self.base is None else self.new - self.base

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "new": self.new, "base": self.base, "change": self.change}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a checkpoint is beside another.

    Attributes:
        metrics: all that either has, acc first.
        condition: what was asked, or None.
        meaning: the same with the base's values in it.
        holds: whether it holds; None where none was asked.
    """

    new: Checkpoint
    base: Checkpoint
    metrics: tuple[Compared, ...]
    condition: str | None = None
    meaning: str | None = None
    holds: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "new": {"ref": self.new.ref, "id": self.new.id},
            "base": {"ref": self.base.ref, "id": self.base.id},
            "metrics": [one.to_dict() for one in self.metrics],
            "condition": self.condition,
            "meaning": self.meaning,
            "holds": self.holds,
        }


def compare(new: Checkpoint, base: Checkpoint, condition: str | None = None) -> Comparison:
    """Return a checkpoint beside its base, and whether a condition on the two holds.

    Raises:
        ValueError: the condition can't be read.
        NotFoundError: one of the two lacks what the condition speaks of.
    """
    names = sorted({*new.metrics, *base.metrics}, key=lambda name: (name != "acc", name))
    metrics = tuple(Compared(n, new.metrics.get(n), base.metrics.get(n)) for n in names)
    if condition is None:
        return Comparison(new, base, metrics)
    holds, meaning = gate(condition, new, base)
    return Comparison(new, base, metrics, condition, str(meaning), holds)
