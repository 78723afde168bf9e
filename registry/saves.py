"""Save: a live model, wrapped or not, and all that a resume needs, become one file and one
checkpoint.

Law: the file is written as it would be pushed, with its own record inside, and the row is made from
what the file says when it is read back. So a save and a push of the saved file can't disagree.
Imports .tensors only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Required, TypeAlias, TypedDict

from . import sharded, surroundings
from .blobs import BlobStore
from .catalog import Catalog
from .commits import Part, commit
from .containers import describe
from .containers import read as read_container
from .drafting import Given, recorded
from .records import Checkpoint, RunRecord
from .values import FORMAT, CheckpointId

if TYPE_CHECKING:
    import torch

    from .runs import Run
    from .tensors.ranks import Facts, Turn
    from .tensors.together import Together

    Optimizers: TypeAlias = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]

RandomStates: TypeAlias = bool | Literal["each"]
"""Whose random states a save keeps: nobody's, the writer's, or every rank's own."""

FILE_NAME = "checkpoint.pt"


class Stateful(Protocol):
    """Anything that gives its state as a dict and takes it back: a scheduler, a GradScaler, a
    sampler.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take a state back."""
        ...


class RunSaveWords(TypedDict, total=False):
    """The keywords of `Run.save`."""

    epoch: int | None
    step: int | None
    acc: object
    metrics: Mapping[str, object] | None
    optimizer: Optimizers | None
    scheduler: Stateful | None
    stateful: Mapping[str, Stateful] | None
    rng: RandomStates
    extra: Mapping[str, object] | None
    tags: Iterable[str]
    aliases: Iterable[str]
    note: str | None


class SaveWords(RunSaveWords, total=False):
    """The keywords of `Registry.save`."""

    model: Required[str]
    dataset: str | None
    run: Run | str | None
    config: Mapping[str, object] | None
    batch_size: int | None
    parent: Checkpoint | str | None


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be saved: live objects, and what the caller says of them.

    Attributes:
        rng: the random states, under the keys that they have in the file.
    """

    net: torch.nn.Module
    given: Given
    optimizer: Optimizers | None
    scheduler: Stateful | None
    stateful: Mapping[str, Stateful]
    rng: Mapping[str, Any]
    extra: Mapping[str, object]

    def __post_init__(self) -> None:
        for name, one in {"scheduler": self.scheduler, **self.stateful}.items():
            if one is not None and not hasattr(one, "state_dict"):
                raise TypeError(
                    f"{name} takes an object with a state_dict(), not {type(one).__name__}"
                )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be written: plain values and tensors, and what the row will say.

    Attributes:
        tags: devices to name in the file in place of the CPU, by storage; see tensors/copying.py.
        wait: waits until the tensors are there.
        together: where every rank writes its part.
    """

    tree: dict[str, Any]
    given: Given
    tags: Mapping[int, str]
    wait: Callable[[], None]
    together: Together | None = None


def turn(net: torch.nn.Module, facts: Facts) -> Turn | Together:
    """Return this rank's part in a save.

    Of a net that every rank holds whole, rank 0 writes, and every other that calls gets its result;
    of a sharded one every rank writes its part.
    """
    from .tensors import ranks, together, wrappers

    if not wrappers.is_sharded(net):
        return ranks.turn(facts)
    return together.Together(f"save {ranks.named(facts)}", "call save", facts)


def random_states(net: torch.nn.Module, facts: Facts, rng: RandomStates) -> dict[str, Any]:
    """Return the random states to write, under the keys that they have in the file.

    Raises:
        ValueError: rng is none of what it may be.
        RemoteError: a rank whose states are to be kept didn't call in time.
    """
    if rng not in (False, True, "each"):
        raise ValueError(f"rng is True, False or 'each' (every rank's own), not {rng!r}")
    if not rng:
        return {}
    from .tensors import hardware, wrappers
    from .tensors import rng as rng_

    if wrappers.is_sharded(net):
        return {"rng_states": {str(hardware.rank()): rng_.capture()}}
    if rng == "each" and (hardware.world_size() or 1) > 1:
        return {"rng_states": rng_.of_all(facts)}
    return {"rng": rng_.capture()}


def prepare(job: Job, run: RunRecord, turn: Turn | Together, *, snapshot: bool) -> Prepared:
    """Take what is to be written from the live objects.

    Args:
        turn: this rank's part.
        snapshot: copy the tensors, so that they may change before they are written.

    Raises:
        TypeError, ValueError, RefusedLoadError: as `Registry.save`, before anything is written.
    """
    from .tensors import copying, hardware, observe, writing
    from .tensors.together import Together

    given = replace(job.given, run=run)
    together = turn if isinstance(turn, Together) else None
    if together is not None:
        together.agree(lambda: None)  # all are here: what FSDP1 gathers next won't wait for ever
    live = observe.observe(job.net)
    places: list[str] = []
    if together is not None:
        together.round(lambda: hardware.place(live), places.extend)
    tree = writing.contents(
        live,
        epoch=given.epoch,
        model=str(given.model),
        dataset=given.dataset,
        acc=given.metrics.get("acc"),
        step=given.step,
        metrics={k: v for k, v in given.metrics.items() if k != "acc"},
        config=given.config.to_dict(),
        batch_size=given.batch_size,
        optimizers=observe.named_optimizers(job.optimizer),
        scheduler=job.scheduler,
        stateful=job.stateful,
        rng=job.rng,
        extra=job.extra,
        record=record_of(given, hardware.topology(live, ranks=tuple(places)).to_dict()),
    )
    if not snapshot:
        return Prepared(tree, given, {}, lambda: None, together)
    copied = copying.Snapshot(tree)
    return Prepared(copied.tree, given, copied.tags, copied.wait, together)


def write(
    store: BlobStore, catalog: Catalog, prepared: Prepared, *, parent: CheckpointId | None
) -> Checkpoint:
    """Write the file, and commit it; see `Registry.save`."""
    from .tensors import writing

    prepared.wait()
    tree = prepared.tree
    given = replace(prepared.given, parent=parent)
    tree["ckreg"]["parent"] = parent
    if prepared.together is not None:
        return sharded.write(store, catalog, prepared.together, tree, prepared.tags, given)
    with store.stage(expect_bytes=writing.size_bytes(tree)) as staged:
        writing.write(tree, staged, tags=prepared.tags)
        digest, source = staged.finish(), staged.source()
        part = Part(FILE_NAME, digest, source, staged, probe=source.probe())
        contents = read_container(part.stored, given.model or FILE_NAME)
        description = describe(contents, part.stored)
        return commit(
            store,
            catalog,
            [part],
            known=given,
            contents=contents,
            description=description,
            origin="save",
            record=recorded(description.record),
        )


def record_of(given: Given, topology: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a file's own record that doesn't come from the live objects."""
    run = given.run
    git = surroundings.git()
    return {
        "format": FORMAT,
        "model": given.model,
        "dataset": given.dataset,
        "epoch": given.epoch,
        "step": given.step,
        "metrics": given.metrics.to_dict(),
        "config": given.config.to_dict(),
        "batch_size": given.batch_size,
        "parent": None,  # known when those before it are committed
        "run": None if run is None else run.to_dict(),
        "topology": topology,
        "git": None if git is None else {"commit": git.commit, "dirty": git.dirty},
        "command": surroundings.command(),
        "author": surroundings.author(),
    }
