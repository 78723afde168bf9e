"""prune: what a policy doesn't keep goes, as `remove` would take it.

Law: the dry run and the real run share one plan; what was planned is judged again before it goes,
and the transaction that removes it spares what has since become best or latest, or was tagged or
aliased. A removal is a tombstone: `restore` undoes it, and bytes come back when gc takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from . import surroundings
from .blobs import BlobStore
from .catalog import ANY, Catalog, Dataset, Upkeep, portions
from .commits import write_record
from .retention import Candidate, Monitor, Policy, Setting, Verdict, judge, policy_of
from .values import FORMAT, CheckpointId, now

BATCH: Final = 100
"""How many go in one transaction, so that no writer waits long."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose checkpoints are judged.

    Attributes:
        run: an id; then no other run's are.
    """

    model: str
    dataset: Dataset = ANY
    run: str | None = None


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What prune would remove, or removed, and why; and what stays, and why.

    Attributes:
        verdicts: of every checkpoint that was judged, the newest version first.
        size_bytes: what no other live checkpoint needs, each blob counted once: it comes back when
            `gc` runs after its grace.
        spared: of those that were to go, how many stay, since they changed meanwhile.
        done: False for a dry run.
    """

    scope: Scope
    policy: Policy
    verdicts: tuple[Verdict, ...]
    size_bytes: int
    spared: int = 0
    done: bool = False
    _judged: Mapping[CheckpointId, Candidate] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def model(self) -> str:
        """The model whose checkpoints they are."""
        return self.scope.model

    @property
    def removed(self) -> tuple[Verdict, ...]:
        """Those that go, or went."""
        return tuple(one for one in self.verdicts if not one.kept)

    @property
    def kept(self) -> tuple[Verdict, ...]:
        """Those that stay."""
        return tuple(one for one in self.verdicts if one.kept)

    def __bool__(self) -> bool:
        return any(not one.kept for one in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "done": self.done,
            "model": self.model,
            "policy": repr(self.policy),
            "removed": [one.to_dict() for one in self.removed],
            "kept": [one.to_dict() for one in self.kept],
            "spared": self.spared,
            "size_bytes": self.size_bytes,
        }


def check(keep: object, monitor: Monitor) -> None:
    """See, before hours of work, that a policy can be asked about a model.

    Raises:
        TypeError: it is no policy.
        ValueError: it names a metric, and not whether more or less of it is better.
    """
    policy_of(keep, "keep").check(monitor)


def plan(
    upkeep: Upkeep,
    scope: Scope,
    policy: Policy,
    *,
    guarded: Mapping[CheckpointId, str] | None = None,
) -> PrunePlan:
    """Return what a policy would remove now.

    Args:
        guarded: what stays besides, and why.

    Raises:
        NotFoundError: no such model or run.
        ValueError: the policy names a metric, and not whether more or less of it is better.
        DamagedError: a metric isn't what was written.
    """
    found = upkeep.prunable(
        scope.model, dataset=scope.dataset, run=scope.run, named=policy.metrics()
    )
    verdicts = tuple(
        judge(
            found.candidates,
            policy,
            Setting(found.monitor, now()),
            guarded=guarded,
        )
    )
    surplus = {one.id for one in verdicts if not one.kept}
    return PrunePlan(
        scope, policy, verdicts, upkeep.freed(surplus) if surplus else 0,
        _judged={one.id: one for one in found.candidates if one.id in surplus},
    )  # fmt: skip


def again(upkeep: Upkeep, before: PrunePlan) -> PrunePlan:
    """Return a plan as it is now: what it named and would still remove goes, and nothing else."""
    fresh = {one.id: one for one in plan(upkeep, before.scope, before.policy).verdicts}
    spared = {
        one.id: f"since the plan: {fresh[one.id].why}"
        if one.id in fresh
        else "removed by somebody else"
        for one in before.removed
        if one.id not in fresh or fresh[one.id].kept
    }
    return _sparing(before, spared)


def prune(store: BlobStore, catalog: Catalog, upkeep: Upkeep, plan: PrunePlan) -> PrunePlan:
    """Remove what a plan names, as far as it may still go, and return what went.

    Raises:
        DamagedError: a row isn't what was written; those before it are removed.
        BusyError, NotWritableError: it can't be done.
    """
    gone: list[CheckpointId] = []
    spared: dict[CheckpointId, str] = {}
    surplus = [plan._judged[one.id] for one in reversed(plan.removed)]
    for part in portions(surplus, BATCH):
        done = upkeep.prune(plan.model, part, run=plan.scope.run, author=surroundings.author())
        for id in done.removed:
            write_record(store, catalog, id)
        gone += done.removed
        spared |= done.spared
    return replace(_sparing(plan, spared), size_bytes=upkeep.freed(gone) if gone else 0, done=True)


def _sparing(plan: PrunePlan, spared: Mapping[CheckpointId, str]) -> PrunePlan:
    """Return a plan without some of those that were to go, each with the reason."""
    return replace(
        plan,
        verdicts=tuple(
            replace(one, kept=True, why=spared[one.id]) if one.id in spared else one
            for one in plan.verdicts
        ),
        spared=plan.spared + len(spared),
    )
