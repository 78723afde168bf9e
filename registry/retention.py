"""Which checkpoints to keep, and why: policies that compose, and their verdicts.

Law: a checkpoint goes only where every policy lets it go. What a policy can't judge, since the
metric or the epoch is missing, stays; so do the best and the latest of every dataset, and whatever
an alias points at. Datasets are never compared. Pure: facts in, verdicts out; no SQL and no torch.

    Best(3) | Last(2) | Every(epochs=10) | Tagged("good") | Aliased() | Younger("7d")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from .formatting import number
from .records import Mode
from .values import EMPTY, CheckpointId, count, duration, label, one_of, printable

Monitor = tuple[str, Mode]
"""What best means for a model: a metric, and whether more or less of it is better."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a policy may ask of a checkpoint.

    Attributes:
        metrics: those that the policy or the monitor names.
    """

    id: CheckpointId
    ref: str
    version: int
    dataset: str | None
    epoch: int | None
    created_at: datetime
    size_bytes: int
    metrics: Mapping[str, float] = field(default_factory=lambda: EMPTY)
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one checkpoint.

    Attributes:
        kept: whether it stays.
        why: why it does, or why nothing keeps it.
        size_bytes: of its files; others may share them.
    """

    id: CheckpointId
    ref: str
    dataset: str | None
    epoch: int | None
    kept: bool
    why: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "id": self.id,
            "ref": self.ref,
            "dataset": self.dataset,
            "epoch": self.epoch,
            "kept": self.kept,
            "why": self.why,
            "size_bytes": self.size_bytes,
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all checkpoints that a policy is asked about.

    Attributes:
        at: the present.
    """

    monitor: Monitor
    at: datetime


Said = tuple[bool, str]
"""Whether a policy keeps a checkpoint, and in few words why, or why not."""


# --- the policies ---------------------------------------------------------------------------------


class Policy:
    """Which checkpoints to keep; `a | b` keeps what either keeps."""

    __slots__ = ()

    def __or__(self, other: Policy) -> Policy:
        if not isinstance(other, Policy):
            return NotImplemented
        return AnyOf(tuple(dict.fromkeys((*self.parts(), *other.parts()))))

    def parts(self) -> tuple[Policy, ...]:
        """Return the policies that it is the union of: itself, if it is none."""
        return (self,)

    def metrics(self) -> frozenset[str]:
        """Return the metrics that it names; the monitor isn't one of them."""
        return frozenset()

    def check(self, monitor: Monitor) -> None:
        """See that it can be asked about a model with this monitor.

        Raises:
            ValueError: it can't, and the message says what is missing.
        """

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Say of each checkpoint whether it is kept, and why.

        Args:
            group: all of one dataset, the newest version first.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class AnyOf(Policy):
    """What `|` makes."""

    of: tuple[Policy, ...]

    def parts(self) -> tuple[Policy, ...]:
        """Return them, each once."""
        return self.of

    def metrics(self) -> frozenset[str]:
        """Return the metrics that any of them names."""
        return frozenset().union(*(one.metrics() for one in self.of))

    def check(self, monitor: Monitor) -> None:
        """See that each can be asked."""
        for one in self.of:
            one.check(monitor)

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep what any of them keeps."""
        return [_joined(said) for said in zip(*(p.judge(group, setting) for p in self.of),
                                              strict=True)]  # fmt: skip

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.of))


def _joined(said: Iterable[Said]) -> Said:
    every = list(said)
    keeping = [why for kept, why in every if kept]
    return bool(keeping), ", ".join(keeping or [why for _, why in every])


@dataclass(frozen=True, slots=True, repr=False)
class Best(Policy):
    """Keep the best n by a metric, by default the model's monitor; of equals the newest.

    A checkpoint without the metric stays, since nobody knows how good it is.

    Attributes:
        mode: whether more ("max") or less ("min") is better; of the monitor it is known.

    Raises:
        ValueError, TypeError: n isn't 1 or more, or a mode is given without a metric.
    """

    n: int = 1
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _at_least_one(self.n, "Best(n)")
        if self.metric is not None:
            object.__setattr__(self, "metric", printable(self.metric, "metric"))
        elif self.mode is not None:
            raise ValueError("mode= says how to read metric=; name the metric as well")
        if self.mode is not None:
            one_of(self.mode, ("max", "min"), "mode")

    def metrics(self) -> frozenset[str]:
        """Return the metric, where one is named."""
        return frozenset() if self.metric is None else frozenset({self.metric})

    def by(self, monitor: Monitor) -> Monitor:
        """Return the metric and the mode that it goes by.

        Raises:
            ValueError: another metric than the monitor, without a mode.
        """
        name, mode = monitor
        if self.metric in (None, name):
            return name, self.mode or mode
        if self.mode is None:
            raise ValueError(
                f"whether more or less of {self.metric!r} is better isn't known (the monitor is "
                f"{name!r}, {mode}): say mode='max' or mode='min' (--mode)"
            )
        assert self.metric is not None
        return self.metric, self.mode

    def check(self, monitor: Monitor) -> None:
        """See that the mode is known."""
        self.by(monitor)

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep the first n, and those that have no place."""
        metric, mode = self.by(setting.monitor)
        places = {c.id: i for i, c in enumerate(_ranked(group, metric, mode), 1)}

        def said(one: Candidate) -> Said:
            place = places.get(one.id)
            if place is None:
                return True, f"has no {metric}"
            what = f"no. {place:,} by {metric} ({number(one.metrics[metric])})"
            return place <= self.n, what

        return [said(one) for one in group]

    def __repr__(self) -> str:
        return f"Best({', '.join(repr(v) for v in (self.n, self.metric, self.mode) if v)})"


@dataclass(frozen=True, slots=True, repr=False)
class Last(Policy):
    """Keep the n newest versions.

    Raises:
        ValueError, TypeError: n isn't 1 or more.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self.n, "Last(n)")

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep the first n: the newest are first."""
        return [
            (i < self.n, f"{'in' if i < self.n else 'not in'} the last {self.n:,}")
            for i in range(len(group))
        ]

    def __repr__(self) -> str:
        return f"Last({self.n})"


@dataclass(frozen=True, slots=True, repr=False)
class Every(Policy):
    """Keep each nth epoch, 0 among them. A checkpoint without an epoch stays.

    Raises:
        ValueError, TypeError: epochs isn't 1 or more.
    """

    epochs: int

    def __post_init__(self) -> None:
        _at_least_one(self.epochs, "Every(epochs=)")

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep the multiples."""
        return [
            (True, "has no epoch")
            if one.epoch is None
            else (True, f"epoch {one.epoch}, of every {self.epochs}")
            if one.epoch % self.epochs == 0
            else (False, f"epoch {one.epoch} is between")
            for one in group
        ]

    def __repr__(self) -> str:
        return f"Every(epochs={self.epochs})"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Tagged(Policy):
    """Keep what has one of these tags; without a name, what has any.

    Raises:
        ValueError, TypeError: a name can't be a tag's.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        checked = dict.fromkeys(label(name, "tag") for name in names)
        object.__setattr__(self, "names", tuple(checked))

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep the tagged."""
        without = f"no tag {' or '.join(self.names)}" if self.names else "no tag"

        def said(one: Candidate) -> Said:
            found = [tag for tag in one.tags if not self.names or tag in self.names]
            return (True, f"tag {', '.join(found)}") if found else (False, without)

        return [said(one) for one in group]

    def __repr__(self) -> str:
        return f"Tagged({', '.join(map(repr, self.names))})"


@dataclass(frozen=True, slots=True)
class Aliased(Policy):
    """Keep what an alias points at. It stays under any policy; alone this one keeps little else."""

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep the aliased."""
        return [(bool(one.aliases), _aliased(one) or "no alias") for one in group]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Younger(Policy):
    """Keep what was made within some time: "7d", "36h", or a timedelta.

    Raises:
        ValueError: it is no time, or none at all.
    """

    than: timedelta

    def __init__(self, than: timedelta | str) -> None:
        span = duration(than)
        if not span:
            raise ValueError("Younger('7d') needs a time of more than none")
        object.__setattr__(self, "than", span)

    def judge(self, group: Sequence[Candidate], setting: Setting) -> list[Said]:
        """Keep what isn't older."""
        return [
            (young, f"{'younger' if young else 'older'} than {_span(self.than)}")
            for young in (setting.at - one.created_at <= self.than for one in group)
        ]

    def __repr__(self) -> str:
        return f"Younger({_span(self.than)!r})"


_SPANS: Final = (("w", timedelta(weeks=1)), ("d", timedelta(days=1)), ("h", timedelta(hours=1)),
                 ("m", timedelta(minutes=1)))  # fmt: skip


def _span(time: timedelta) -> str:
    """Return a time in the largest unit that it is a whole number of."""
    for unit, one in _SPANS:
        if time % one == timedelta(0):
            return f"{time // one}{unit}"
    return f"{time.total_seconds():g}s"


def _at_least_one(value: object, what: str) -> None:
    if count(value, what) < 1:
        raise ValueError(f"{what} must be 1 or more, not {value!r}")


def policy_of(value: object, what: str) -> Policy:
    """Return a policy as it is.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Policy):
        raise TypeError(f"{what} is a policy, e.g. Best(3) | Last(2), not {value!r}")
    return value


# --- verdicts -------------------------------------------------------------------------------------


def _ranked(group: Iterable[Candidate], metric: str, mode: Mode) -> list[Candidate]:
    """Return those that have a metric, the best first; of equals the newest version."""
    sign = -1.0 if mode == "max" else 1.0
    having = (one for one in group if metric in one.metrics)
    return sorted(having, key=lambda one: (sign * one.metrics[metric], -one.version))


def _aliased(one: Candidate) -> str:
    return f"alias {', '.join(one.aliases)}" if one.aliases else ""


def judge(
    candidates: Iterable[Candidate],
    policy: Policy,
    setting: Setting,
    *,
    guarded: Mapping[CheckpointId, str] | None = None,
) -> list[Verdict]:
    """Return what becomes of each checkpoint, the newest version first.

    Args:
        candidates: all of a model, or of one dataset or run of it: the model's best and latest are
            a run's own best and latest, where they are of that run.
        guarded: some that stay besides, and why.

    Raises:
        ValueError: the policy can't be asked about this model.
    """
    policy.check(setting.monitor)
    groups: dict[str | None, list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: -one.version):
        groups[one.dataset].append(one)
    found: list[tuple[int, Verdict]] = []
    for group in groups.values():
        always = _always(group, setting.monitor, guarded or {})
        for one, (kept, why) in zip(group, policy.judge(group, setting), strict=True):
            reasons = [*always.get(one.id, ()), *([why] if kept else [])]
            found.append((one.version, verdict(one, reasons, why)))
    return [verdict for _, verdict in sorted(found, key=lambda pair: -pair[0])]


def verdict(one: Candidate, reasons: Sequence[str], otherwise: str) -> Verdict:
    """Return a checkpoint's verdict: it stays if there is a reason."""
    return Verdict(
        one.id, one.ref, one.dataset, one.epoch, bool(reasons),
        ", ".join(dict.fromkeys(reasons)) or otherwise, one.size_bytes,
    )  # fmt: skip


def _always(
    group: Sequence[Candidate], monitor: Monitor, guarded: Mapping[CheckpointId, str]
) -> dict[CheckpointId, list[str]]:
    """Return what stays whatever the policy, and why."""
    reasons: dict[CheckpointId, list[str]] = defaultdict(list)
    for best in _ranked(group, *monitor)[:1]:
        reasons[best.id].append("best")
    for latest in group[:1]:
        reasons[latest.id].append("latest")
    for one in group:
        for why in (guarded.get(one.id), _aliased(one)):
            if why:
                reasons[one.id].append(why)
    return reasons
