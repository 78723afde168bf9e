"""Save: a live model, wrapped or not, and all that a resume needs, become one file and one
checkpoint.

Law: the file is written as it would be pushed, with its own record inside, and the row is made from
what the file says when it is read back. So a save and a push of the saved file can't disagree.
Imports .tensors only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from . import surroundings
from .blobs import BlobStore
from .catalog import Catalog
from .commits import Part, commit
from .containers import describe
from .containers import read as read_container
from .drafting import Given, draft, recorded
from .records import Checkpoint, RunRecord
from .values import FORMAT, CheckpointId

if TYPE_CHECKING:
    import torch

    from .tensors.ranks import Facts

    Optimizers: TypeAlias = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]

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


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be saved: live objects, and what the caller says of them."""

    net: torch.nn.Module
    given: Given
    optimizer: Optimizers | None
    scheduler: Stateful | None
    stateful: Mapping[str, Stateful]
    rng: bool
    extra: Mapping[str, object]


def once(facts: Facts, write: Callable[[], Checkpoint]) -> Checkpoint:
    """Save on one rank only: rank 0 writes, every other that calls gets what it wrote."""
    from .tensors import ranks

    return ranks.once(facts, write)


def write(
    store: BlobStore,
    catalog: Catalog,
    job: Job,
    *,
    run: RunRecord,
    parent: CheckpointId | None,
) -> Checkpoint:
    """Write the file, and commit it; see `Registry.save`."""
    from .tensors import hardware, observe, writing

    given = replace(job.given, run=run, parent=parent)
    live = observe.observe(job.net)
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
        record=_record(given, hardware.topology(live).to_dict()),
    )
    with store.stage(expect_bytes=writing.size_bytes(tree)) as staged:
        writing.write(tree, staged)
        part = Part(FILE_NAME, staged.finish(), staged.source(), staged)
        contents = read_container(part.stored, given.model or FILE_NAME)
        description = describe(contents, part.stored)
        actor = surroundings.author()
        checkpoint, signatures = draft(
            given,
            contents,
            description,
            origin="save",
            record=recorded(description.record),
            files=(part.file,),
            author=actor,
        )
        return commit(
            store,
            catalog,
            [part],
            checkpoint=checkpoint,
            signatures=signatures,
            contents=contents,
            run=run,
            twin=False,
            actor=actor,
        )


def _record(given: Given, topology: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the file's own record that doesn't come from the live objects."""
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
        "parent": given.parent,
        "run": None if run is None else run.to_dict(),
        "topology": topology,
        "git": None if git is None else {"commit": git.commit, "dirty": git.dirty},
        "command": surroundings.command(),
        "author": surroundings.author(),
    }
