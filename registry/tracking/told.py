"""What a tracking server tells, whichever it is: runs, trees of artifacts, registered versions.

Law: as it is told, nothing interpreted; what it means for a checkpoint is facts.py's to say. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One value of a metric: of equal steps the later counts."""

    step: int
    timestamp: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """One training job.

    Attributes:
        metrics: each one's whole history, in order.
        params, tags: as text, the server's own tags left out.
        dataset: the one that it says it was trained on; None where it says none or several.
        git: the commit of the training code.
    """

    id: str
    name: str | None
    experiment: str
    metrics: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    author: str | None = None
    command: str | None = None
    git: str | None = None
    started: datetime | None = None

    @property
    def title(self) -> str:
        """How a person tells it: experiment and name."""
        return f"{self.experiment}/{self.name or self.id[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One version of a registered model."""

    model: str
    version: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    stage: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A tree of files that a run logged, or one model's.

    Attributes:
        title: how a person tells it.
        uri: where it is.
        files: each one's bytes, by its path in the tree.
        run: whose it is; None where the server doesn't know it any more.
        versions: the registered versions, each by the folder in the tree that it is; "" is all.
        metrics: those that the server links to this very model.
        step: the step at which this model was logged, where that was said.
        one_model: it is one logged model, not all that a run logged.
        missing: why its files can't be listed.
    """

    title: str
    uri: str
    files: Mapping[str, int]
    run: TrackedRun | None
    versions: tuple[tuple[str, Registered], ...] = ()
    metrics: Mapping[str, Point] = field(default_factory=dict)
    step: int | None = None
    one_model: bool = False
    missing: str | None = None
