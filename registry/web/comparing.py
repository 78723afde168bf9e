"""How two checkpoints differ as far as their records tell: facts, keys, shapes, dtypes.

Law: keys are compared canonical, as a diff of the bytes does; what a record only guesses is said.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..formatting import field
from ..records import Checkpoint
from ..signature import Signature, TensorSpec

MOST: Final = 200
"""How many keys of a kind are shown."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """How two signatures differ.

    Attributes:
        common: how many keys both have.
        only_a, only_b: keys that one has alone.
        changed: tensors of another shape or dtype, as a has them and as b does.
    """

    common: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[tuple[TensorSpec, TensorSpec], ...]

    @property
    def same(self) -> bool:
        """Whether both have the same tensors: keys, shapes and dtypes."""
        return not (self.only_a or self.only_b or self.changed)


def tensors(a: Signature, b: Signature) -> Tensors:
    """Return how two signatures differ."""
    ours = {t.key: t for t in a.tensors}
    theirs = {t.key: t for t in b.tensors}
    both = [key for key in ours if key in theirs]
    return Tensors(
        len(both),
        tuple(key for key in ours if key not in theirs),
        tuple(key for key in theirs if key not in ours),
        tuple(
            (ours[key], theirs[key])
            for key in both
            if (ours[key].shape, ours[key].dtype) != (theirs[key].shape, theirs[key].dtype)
        ),
    )


def guessed(*sides: Checkpoint) -> list[str]:
    """Return the refs of those whose canonical keys are not recorded but a guess."""
    return [side.ref for side in sides if side.provenance.key_style != "recorded"]


def sided(value: object) -> str | None:
    """Return a fact of one side as text; None where it has none."""
    if value is None:
        return None
    if isinstance(value, Mapping | list | tuple):
        return ", ".join(map(field, value)) if value else None
    return f"{value:.10g}" if isinstance(value, float) else field(value)
