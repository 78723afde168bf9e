"""What is restored besides the weights, and what becomes of everything else that the file holds.

Law: what the caller asked for and the file lacks is refused; what the file holds and nobody asked
for is noted with the reason. Nothing is passed over in silence, and the learning rate is never
rescaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import RefusedLoadError
from .difference import Joined
from .inputs import Choice, Saved, Target, Wanted
from .optimizers import Names, remap
from .plan import NOT_ASKED, Note, OptimizerMove


@dataclass(slots=True)
class Restored:
    """What is restored besides the weights, and the notes on the rest; filled field by field."""

    optimizers: list[OptimizerMove] = field(default_factory=list)
    scheduler: bool = False
    stateful: tuple[str, ...] = ()
    rng: bool = False
    wrapper_state: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[Note] = field(default_factory=list)
    kept: list[Note] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bytes_to_read: int = 0


def restore(
    saved: Saved, target: Target | None, wanted: Wanted, joined: Joined, choice: Choice
) -> Restored:
    """Decide on optimizers, scheduler, stateful objects, random state and the wrapper's own
    tensors.

    Raises:
        RefusedLoadError: something asked for isn't in the file, or can't be matched.
    """
    found = Restored()
    _optimizers(found, saved, target, joined)
    _scheduler(found, saved, target)
    _stateful(found, saved, target)
    _rng(found, saved, wanted)
    _wrapper_state(found, saved, target, joined)
    for name in saved.extra:
        found.ignored.append(
            Note(name, "no state of the net; the result's .extra holds it, if it is plain data")
        )
    for name in saved.unsafe_globals:
        if name not in wanted.trust:
            found.ignored.append(Note(f"objects of {name}", "a load never runs a file's code"))
    if found.optimizers or found.scheduler:
        _changed(found, saved, wanted, choice)
    return found


def _optimizers(found: Restored, saved: Saved, target: Target | None, joined: Joined) -> None:
    asked = target.optimizers if target is not None else {}
    lacking = [name for name in asked if name not in saved.optimizers]
    if lacking and saved.partitioned is not None:
        raise RefusedLoadError(
            f"{saved.ref} can't be resumed here: {saved.partitioned}",
            hint=f"resume with DeepSpeed from its folder: ckreg pull {saved.ref}; or leave "
            "optimizer= out: the weights load all the same",
        )
    if lacking:
        has = ", ".join(map(repr, saved.optimizers)) or "no optimizer state"
        raise RefusedLoadError(
            f"{saved.ref} holds {has}, and {', '.join(map(repr, lacking))} was asked for",
            hint="leave optimizer= out to load the weights"
            + (", or name it as it was saved: optimizer={name: …}" if saved.optimizers else ""),
        )
    if target is not None and asked:
        names = Names(
            shapes={t.canonical: t.shape for t in target.tensors},
            renames=joined.renames,
            saved_ties=saved.ties,
            target_ties=target.ties,
        )
        for name, optimizer in asked.items():
            state = saved.optimizers[name]
            found.optimizers.append(remap(saved.ref, name, state, optimizer, names))
            found.bytes_to_read += state.size_bytes
            if state.cls is None:
                found.warnings.append(
                    f"the class of {name!r} is not recorded; it is taken for a {optimizer.cls}"
                )
    for name in saved.optimizers:
        if name not in asked:
            found.ignored.append(Note(name, _not_asked(target, "optimizer=")))


def _scheduler(found: Restored, saved: Saved, target: Target | None) -> None:
    asked = target is not None and target.scheduler
    if asked and not saved.scheduler:
        raise RefusedLoadError(
            f"{saved.ref} holds no scheduler state, and scheduler= asks for it",
            hint="leave scheduler= out, and set the scheduler to the epoch by hand",
        )
    found.scheduler = asked
    if saved.scheduler and not asked:
        found.ignored.append(Note("scheduler", _not_asked(target, "scheduler=")))


def _stateful(found: Restored, saved: Saved, target: Target | None) -> None:
    asked = target.stateful if target is not None else ()
    lacking = [name for name in asked if name not in saved.stateful]
    if lacking:
        raise RefusedLoadError(
            f"{saved.ref} holds no state of {', '.join(map(repr, lacking))}, only of "
            f"{', '.join(map(repr, saved.stateful)) or 'nothing'}",
            hint="name in stateful= only what was saved under that name",
        )
    found.stateful = asked
    for name in saved.stateful:
        if name not in asked:
            found.ignored.append(Note(name, _not_asked(target, "stateful=")))


def _not_asked(target: Target | None, keyword: str) -> str:
    if target is None:
        return "there is no target to restore it to"
    return f"{NOT_ASKED}: {keyword} was not given"


def _rng(found: Restored, saved: Saved, wanted: Wanted) -> None:
    if not saved.rng:
        if wanted.rng:
            raise RefusedLoadError(
                f"{saved.ref} holds no random state, and rng=True asks for it",
                hint="leave rng= out; reg.save(…, rng=True) keeps it from the next save on",
            )
        return
    was, now = saved.topology.world_size, wanted.world_size
    if not wanted.rng:
        found.ignored.append(Note("rng", f"{NOT_ASKED}: rng=True was not given"))
    elif saved.rng_ranks:
        _rng_of_ranks(found, saved, wanted)
    elif now is not None and was != now:
        found.ignored.append(
            Note(
                "rng",
                f"{_processes(was)} saved it and {_processes(now)} load it: no stream continues",
            )
        )
        found.warnings.append("random state is not restored, so the resumed run will differ")
    else:
        found.rng = True


def _rng_of_ranks(found: Restored, saved: Saved, wanted: Wanted) -> None:
    """Give each rank the state of the rank of its number, and tell of those that have no other."""
    found.rng = wanted.rank in saved.rng_ranks
    if not found.rng:
        found.ignored.append(
            Note("rng", f"rank {wanted.rank} had none: {_processes(len(saved.rng_ranks))} saved it")
        )
    now = wanted.world_size
    left = [r for r in saved.rng_ranks if now is not None and r >= now]
    if left:
        found.ignored.append(
            Note(f"rng of rank {', '.join(map(str, left))}", f"{_processes(now)} have no such rank")
        )
    if left or not found.rng:
        found.warnings.append(
            "random state is restored for the ranks that were and are: the resumed run will differ"
        )


def _wrapper_state(found: Restored, saved: Saved, target: Target | None, joined: Joined) -> None:
    has: Mapping[str, str] = {
        **{name: raw for raw, name in joined.of_wrapper.items()},
        **{name: name for name in saved.wrapper_state},
    }
    asked: Sequence[str] = target.wrapper_state if target is not None else ()
    for name in asked:
        if name in has:
            found.wrapper_state.append((has[name], name))
        else:
            found.kept.append(Note(name, "the file has none, so the net's own stays"))
    for name in has:
        if name not in asked:
            reason = "it counts what AveragedModel averaged, and the target is no AveragedModel"
            found.ignored.append(
                Note(name, reason if target is not None else "no weight of the net")
            )


def _changed(found: Restored, saved: Saved, wanted: Wanted, choice: Choice) -> None:
    """Report what else changes when training goes on elsewhere."""
    was, now = saved.topology.world_size, wanted.world_size
    if was is not None and now is not None and was != now:
        batch = (
            f"the global batch size was {saved.batch_size}, {saved.batch_size / was:g} per process"
            if saved.batch_size
            else "the batch size was not recorded"
        )
        found.warnings.append(
            f"saved by {_processes(was)}, resumed by {_processes(now)}; {batch}; the learning rate "
            "is as saved, not rescaled"
        )
    if choice == "ema":
        found.warnings.append(
            "the optimizer's state belongs to the live weights, and averaged weights are loaded"
        )


def _processes(many: int | None) -> str:
    if many is None:
        return "an unknown number of processes"
    return "1 process" if many == 1 else f"{many} processes"
