"""A file's keys as they are read, and how they differ from a target's.

Law: values only; join.py makes them, refusals.py tells what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..keys import Reading
from .inputs import SavedTensor, TargetTensor
from .plan import KeysFrom


@dataclass(frozen=True, slots=True)
class Difference:
    """How a file's canonical keys differ from a target's.

    Attributes:
        matched: pairs whose names and shapes agree, in file order.
        filled: target tensors that the file lacks under that name, with the tied tensor that fills
            each.
        others: entries that are no tensors: raw key, canonical key.
        missing, unexpected: canonical keys.
        misshapen: pairs whose names agree and shapes don't.
    """

    matched: tuple[tuple[SavedTensor, TargetTensor], ...]
    filled: tuple[tuple[SavedTensor, TargetTensor], ...]
    others: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[SavedTensor, TargetTensor], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The canonical keys that don't fit."""
        return (*self.missing, *self.unexpected, *(t.canonical for _, t in self.misshapen))


@dataclass(frozen=True, slots=True)
class Joined:
    """A file's keys, read: their style, how that is known, and the maps that follow.

    Attributes:
        renames: raw key -> canonical key, tensors and other entries; of a key that has no place in
            the target, its name in the file.
        of_wrapper: raw key -> name of tensors that belong to the file's wrapper.
        outside: raw keys outside of the attribute that is dropped.
    """

    reading: Reading
    source: KeysFrom
    renames: Mapping[str, str]
    of_wrapper: Mapping[str, str]
    outside: frozenset[str] = frozenset()
