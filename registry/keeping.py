"""Keeping: what keeps a registry whole and small: repair, rebuild, prune, gc, migrate.

Law: what goes is shown by a plan first, and the plan and the work are one; where the database or
the store may be the wrong one, nothing goes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from . import location, places
from .errors import CkregError, warn
from .handle import Progress
from .marking import Marking
from .records import Checkpoint
from .runs import Run, of_dataset, run_id
from .schema import Database, Upgrade
from .values import (
    duration,
    model_name,
)

if TYPE_CHECKING:
    from .collecting import GcPlan
    from .pruning import PrunePlan
    from .repairing import Rebuilt, Repaired
    from .retention import Policy
    from .verifying import Verification


class Keeping(Marking):
    """What is done for the checkpoints as a whole."""

    def migrate(self) -> Upgrade:
        """Bring the schema to this ckreg's; the database is copied aside first.

        Raises:
            SchemaVersionError: it was made by a newer ckreg.
            NotWritableError, NoSpaceError, BusyError: it can't be done; nothing has changed.
        """
        self._parts()
        return self._database().upgrade()

    def repair(self, found: Verification, *, progress: Progress | None = None) -> Repaired:
        """Mend what `verify` found, as far as something whole tells how. Nothing is deleted.

        Damaged and foreign files go to quarantine/, so that a push of the same file takes their
        place; records are written of rows that prove themselves, rows of records that do.

        Args:
            progress: called with findings seen to, and findings in all.

        Raises:
            NotFoundError, ConflictError: the store's marker is missing, or another store's.
            NotWritableError, BusyError: it can't be done.
        """
        from . import repairing

        store, catalog = self._for_writing()
        return repairing.repair(store, catalog, self._upkeep(), found, progress=progress)

    @classmethod
    def rebuild(
        cls,
        location_: str | os.PathLike[str] | None = None,
        *,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Rebuilt:
        """Make a database of the records alone, beside the one in use: registry.db.rebuilt.

        Versions, metrics, tags, aliases and their moves, runs and tombstones come back, and what
        best means for a model that has a checkpoint. It works where the database is lost.

        Args:
            replace: put it in the place of the one in use, which is kept beside it.
            progress: called with records done and records in all.

        Raises:
            ConflictError: one was made before; or the database in use has more than the records.
            DamagedError: the records contradict each other.
        """
        from . import repairing
        from .catalog import Catalog

        place = location.find() if location_ is None else location.place(location_)
        if not isinstance(place, location.Location):
            raise ValueError(
                f"a database is made anew of records in a folder, not on a server: {place}"
            )
        store, elsewhere = places.rebuilt_from(place.folder)
        database = Database(place.folder / location.DATABASE)
        done = repairing.rebuild(
            store, database, replace=replace, elsewhere=elsewhere, progress=progress
        )
        if replace:
            places.point(place.folder, Catalog(database))
        return done

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace: timedelta | str = "14d",
        plan: GcPlan | None = None,
        progress: Progress | None = None,
    ) -> GcPlan:
        """Take the bytes that nothing needs any more: those of checkpoints removed long ago, files
        that a crash left without a row, temporary files of killed writers.

        A removed checkpoint whose bytes went can't be restored; its record stays.

        Args:
            dry_run: return the plan, and take nothing.
            grace: how long after its removal a checkpoint keeps its bytes, and how long a file
                without a row stays (an hour at least): "14d", "36h", "0". Time is the store's.
            plan: what a dry run returned: take that, as far as it may still go, and nothing else.
            progress: called with steps done and steps in all, first of the plan, then of the work.

        Raises:
            NotFoundError, ConflictError: the store's marker is missing, or another store's.
            DamagedError: many blobs are missing, or the database lacks checkpoints that records/
                has; nothing was taken.
            NotWritableError, BusyError: it can't be done.
        """
        from . import collecting

        span = duration(grace)
        store, catalog = self._parts()
        upkeep = self._upkeep()
        found = collecting.plan(store, upkeep, span, progress=progress) if plan is None else plan
        if dry_run:
            return found
        self._for_writing()  # not before: it sweeps what the plan counts
        return collecting.collect(store, catalog, upkeep, found, progress=progress)

    def prune(
        self,
        model: str,
        policy: Policy,
        *,
        dataset: str | None = None,
        run: Run | str | None = None,
        dry_run: bool = False,
        plan: PrunePlan | None = None,
    ) -> PrunePlan:
        """Remove the checkpoints of a model that a policy doesn't keep, e.g. `Best(3) | Last(2)`.

        Each dataset is judged by itself. Whatever the policy, its best and its latest stay, and so
        does what an alias points at, and what lacks the metric or epoch that the policy asks for.
        A removal is a tombstone: `restore` undoes it, and the bytes come back when `gc` runs after
        its grace.

        Args:
            dataset: judge those of one dataset alone.
            run: judge those of one run alone; its best and latest stay beside the model's.
            dry_run: return the plan, and remove nothing.
            plan: what a dry run returned: remove that, as far as it would still go, and nothing
                else.

        Raises:
            NotFoundError: no such model or run.
            TypeError, ValueError: the policy is none, or names a metric and not its mode; or the
                plan is of another model or policy.
            DamagedError: a row isn't what was written.
            NotWritableError, BusyError: it can't be done.
        """
        from . import pruning
        from .retention import policy_of

        name = model_name(model)
        keep = policy_of(policy, "policy")
        upkeep = self._upkeep()
        if plan is None:
            of = run_id(self._catalog(), name, dataset, run)
            found = pruning.plan(upkeep, pruning.Scope(name, of_dataset(dataset), of), keep)
        elif (plan.model, plan.policy) != (name, keep) or not (dataset is None and run is None):
            raise ValueError(
                f"the plan is of {plan.model!r} with {plan.policy!r}, and has its own dataset and "
                "run: reg.prune(plan.model, plan.policy, plan=plan)"
            )
        else:
            found = plan if dry_run else pruning.again(upkeep, plan)
        if dry_run or not found:
            return found if dry_run else replace(found, done=True)
        return pruning.prune(*self._for_writing(), upkeep, found)

    def _keep(self, policy: Policy, run: str, saved: Checkpoint) -> None:
        """Remove a run's surplus after a save, which is safe whatever happens here."""
        from . import pruning

        try:
            scope = pruning.Scope(saved.model, saved.dataset, run)
            upkeep = self._upkeep()
            found = pruning.plan(upkeep, scope, policy, guarded={saved.id: "just saved"})
            if found:
                pruning.prune(*self._parts(), upkeep, found)
        except Exception as error:  # the save is committed: nothing here may look as if it weren't
            what = error.message if isinstance(error, CkregError) else str(error)
            warn(
                f"{saved.ref} is saved, but what keep={policy!r} doesn't keep was not removed: "
                f"{what}"
            )
