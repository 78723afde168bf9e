"""Commands that add to a checkpoint's record or put it away: record, tag, alias, rm, restore."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from ..records import Checkpoint, Mode
from .session import (
    Session,
    answers,
    assignments,
    complete_model,
    complete_ref,
    dataset_option,
    ref_argument,
)

if TYPE_CHECKING:
    from ..registry import Registry


@click.command()
@ref_argument
@click.argument("metrics", metavar="NAME=VALUE…", nargs=-1, required=True, callback=assignments)
@dataset_option
@answers
def record(session: Session, ref: str, *, metrics: dict[str, float], dataset: str | None) -> None:
    """Add metrics to a checkpoint; a recorded one never changes.

    \b
    Example:
      ckreg record resnet50@v12 test/acc=0.931 test/loss=0.24
    """
    _change(session, ref, dataset, lambda reg, ckpt: reg.record(ckpt, metrics))


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.argument("metric", metavar="METRIC")
@click.option("--mode", type=click.Choice(["max", "min"]), help="Of acc max; else it must be said.")
@answers
def monitor(session: Session, model: str, metric: str, *, mode: Mode | None) -> None:
    """Set what best means for a model; acc and max until then.

    \b
    Example:
      ckreg monitor resnet50 val/loss --mode min
    """
    with session.open() as reg:
        changed = reg.monitor(model, metric, mode)
        session.out.models([changed])
        session.out.registry(reg.location)
        there = reg.choices(model).metrics
        if there and changed.metric not in there:
            session.out.note(
                f"no checkpoint of {model} has {changed.metric} yet (metrics: {', '.join(there)})"
            )


@click.command()
@ref_argument
@click.argument("tags", metavar="TAG…", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the tags off.")
@dataset_option
@answers
def tag(
    session: Session, ref: str, *, tags: tuple[str, ...], remove: bool, dataset: str | None
) -> None:
    """Put tags on a checkpoint, or take them off.

    \b
    Example:
      ckreg tag resnet50@v12 good published
    """
    _change(
        session, ref, dataset,
        lambda reg, ckpt: reg.untag(ckpt, *tags) if remove else reg.tag(ckpt, *tags),
    )  # fmt: skip


def _change(
    session: Session,
    ref: str,
    dataset: str | None,
    change: Callable[[Registry, Checkpoint], Checkpoint],
) -> None:
    """Change the checkpoint that a ref names, or those on stdin, and print what each is now."""
    out = session.out
    with session.open() as reg:
        found = _all(reg, session.refs(ref), dataset)
        changed = [change(reg, ckpt) for ckpt in found]
        if ref == "-":
            out.refs(changed)
            out.registry(reg.location)
        else:
            out.written(reg.location, changed[0])


def _all(reg: Registry, refs: Iterable[str], dataset: str | None) -> list[Checkpoint]:
    """Look all up before the first changes, and each once, however many refs name it."""
    return list({c.id: c for c in (reg.get(r, dataset=dataset) for r in refs)}.values())


@click.command()
@click.argument("ref", metavar="REF", shell_complete=complete_ref)
@click.argument("name", metavar="NAME", required=False)
@click.option("--remove", is_flag=True, help="Take an alias away: ckreg alias MODEL@NAME --remove.")
@dataset_option
@answers
def alias(
    session: Session, ref: str, name: str | None, *, remove: bool, dataset: str | None
) -> None:
    """Point a name at a checkpoint, which MODEL@NAME then means.

    \b
    Example:
      ckreg alias resnet50@v12 production
    """
    out = session.out
    if remove:
        model, _, named = ref.partition("@")
        if name is not None or not named:
            raise click.UsageError(
                "an alias to remove is named by its ref: ckreg alias resnet50@production --remove"
            )
        with session.open() as reg:
            ckpt = reg.unalias(model, named)
            out.written(reg.location, ckpt)
        return
    if name is None:
        raise click.UsageError("missing argument 'NAME': ckreg alias resnet50@v12 production")
    with session.open() as reg:
        ckpt = reg.get(session.ref(ref), dataset=dataset)
        before = reg.alias(ckpt, name)
        ckpt = reg.get(ckpt)
        if before is not None and before.id != ckpt.id:
            out.note(f"{ckpt.model}@{name} was {before.ref}")
        out.written(reg.location, ckpt)


@click.command()
@click.argument("refs", metavar="REF…", nargs=-1, required=True, shell_complete=complete_ref)
@dataset_option
@click.option("--force", is_flag=True, help="Even where an alias points; the alias goes too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and stop.")
@click.option("--yes", is_flag=True, help="Don't ask; needed where there is no terminal.")
@answers
def rm(
    session: Session,
    refs: tuple[str, ...],
    *,
    dataset: str | None,
    force: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove checkpoints from every answer, until restored.

    \b
    Example:
      ckreg rm resnet50@v3 resnet50@v4 --yes
    """
    out = session.out
    with session.open() as reg:
        found = _all(reg, session.refs(*refs), dataset)
        if dry_run:
            out.refs(found)
            out.note("these would go; ckreg restore brings them back")
            return
        names = ", ".join(c.ref for c in found)
        if not session.confirm(f"remove {names} from {reg.location}?", yes=yes):
            raise click.Abort
        gone = [reg.remove(ckpt, force=force) for ckpt in found]
        out.refs(gone)
        out.registry(reg.location)
        out.note(session.there(f"to bring back: ckreg restore {' '.join(c.ref for c in gone)}"))


@click.command()
@click.argument("refs", metavar="REF…", nargs=-1, required=True)
@answers
def restore(session: Session, refs: tuple[str, ...]) -> None:
    """Bring removed checkpoints back, under their old versions.

    \b
    Example:
      ckreg restore resnet50@v3
    """
    with session.open() as reg:
        session.out.refs([reg.restore(ref) for ref in session.refs(*refs)])
        session.out.registry(reg.location)
