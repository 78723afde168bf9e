"""Commands that keep a registry whole and small: prune, verify, gc."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

import click

from .. import pages
from ..formatting import count, listed, size
from ..records import Mode
from .session import (
    Session,
    answers,
    complete_model,
    complete_ref,
    json_option,
    registry_option,
    takes_session,
)

if TYPE_CHECKING:
    from ..registry import Registry
    from ..retention import Policy
    from ..verifying import Verification

_DAMAGED = 6
_SHOWN = 20  # refs in the line that brings them back


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--keep-best", "best", type=int, metavar="N", help="The best N of each dataset.")
@click.option("--metric", metavar="NAME", help="By which; default: the model's monitor.")
@click.option("--mode", type=click.Choice(["max", "min"]), help="Whether more or less is better.")
@click.option("--keep-last", "last", type=int, metavar="N", help="The newest N of each dataset.")
@click.option("--keep-every", "every", type=int, metavar="N", help="Each Nth epoch.")
@click.option("--keep-tagged", "tags", multiple=True, is_flag=False, flag_value="",
              metavar="[TAG]", help="What has this tag, or any; repeatable.")  # fmt: skip
@click.option("--younger", metavar="TIME", help="What is younger: 7d, 36h, …")
@click.option("--dataset", metavar="NAME", help="Judge those of this dataset alone.")
@click.option("--run", metavar="NAME", help="Judge those of this training job alone.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and stop.")
@click.option("--yes", is_flag=True, help="Don't ask; needed where there is no terminal.")
@answers
def prune(
    session: Session,
    model: str,
    *,
    best: int | None,
    metric: str | None,
    mode: Mode | None,
    last: int | None,
    every: int | None,
    tags: tuple[str, ...],
    younger: str | None,
    dataset: str | None,
    run: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove the checkpoints that no keep option names.

    The best and the latest of each dataset stay in any case, and so does what an alias points at,
    and what lacks the metric or epoch that is asked for. ckreg restore brings back what went, until
    gc takes its bytes.

    \b
    Example:
      ckreg prune resnet50 --keep-best 3 --keep-last 2 --dry-run
    """
    policy = _policy(best, metric, mode, last, every, tags, younger)
    out = session.out
    with session.open() as reg:
        plan = reg.prune(model, policy, dataset=dataset, run=run, dry_run=True)
        if dry_run or not plan:
            out.pruning(plan)
            return
        if not yes:
            out.aside.pruning(plan)
        question = f"remove {count(len(plan.removed), 'checkpoint')} from {reg.location}?"
        if not session.confirm(question, yes=yes):
            raise click.Abort
        done = reg.prune(model, policy, plan=plan)
        out.pruning(done)
        out.registry(reg.location)
        if gone := [one.ref for one in done.removed]:
            more = "" if len(gone) <= _SHOWN else f" …, and {len(gone) - _SHOWN:,} more"
            back = f"to bring back: ckreg restore {' '.join(gone[:_SHOWN])}{more}"
            out.note(session.there(back))


def _policy(
    best: int | None,
    metric: str | None,
    mode: Mode | None,
    last: int | None,
    every: int | None,
    tags: tuple[str, ...],
    younger: str | None,
) -> Policy:
    """Return the policy that the options say.

    Raises:
        click.UsageError: no option says what to keep, or one lacks another.
        ValueError: a number, a name or a time can't be.
    """
    from ..retention import Best, Every, Last, Tagged, Younger

    if best is None and (metric or mode):
        raise click.UsageError("--metric and --mode say how to read --keep-best: give it as well")
    policies: list[Policy] = []
    if best is not None:
        policies.append(Best(best, metric, mode))
    if last is not None:
        policies.append(Last(last))
    if every is not None:
        policies.append(Every(every))
    if tags:
        policies.append(Tagged() if "" in tags else Tagged(*tags))
    if younger is not None:
        policies.append(Younger(younger))
    if not policies:
        raise click.UsageError(
            "say what to keep: --keep-best N, --keep-last N, --keep-every N, --keep-tagged or "
            "--younger TIME"
        )
    return functools.reduce(operator.or_, policies)


@click.command()
@click.argument("ref", metavar="REF", required=False, shell_complete=complete_ref)
@click.option("--repair", is_flag=True, help="Mend what can be mended; nothing is deleted.")
@click.option("--rebuild", is_flag=True, help="Make the database anew, of the records alone.")
@click.option("--yes", is_flag=True, help="Don't ask; needed where there is no terminal.")
@json_option
@registry_option
@takes_session
@click.pass_context
def verify(
    context: click.Context,
    session: Session,
    ref: str | None,
    *,
    repair: bool,
    rebuild: bool,
    yes: bool,
) -> None:
    """Read every byte, row and record, and say what is wrong.

    Of all checkpoints, or of REF alone. Nothing is changed unless --repair or --rebuild is given.
    Exits with 6 when something is damaged or missing, and with 0 when there are only remarks.

    \b
    Example:
      ckreg verify resnet50@best
    """
    if rebuild and (repair or ref is not None):
        raise click.UsageError("--rebuild is of the whole database, and stands alone")
    if yes and not (repair or rebuild):
        raise click.UsageError("--yes answers what --repair and --rebuild ask")
    from ..verifying import together

    if rebuild:
        _rebuild(session, yes=yes)
        return
    out = session.out
    with session.open() as reg:
        if ref is None:
            found, title = _verified(session, reg, None), reg.location
        else:
            refs = session.refs(ref)
            found = together([_verified(session, reg, one) for one in refs])
            title = listed(refs)
        page = pages.verification(found, title)
        if not (repair and found.findings):
            out.findings(page, found)
            ok = found.ok
        else:
            if not yes:
                out.note(page.render().rstrip("\n"))
            if not session.confirm(f"mend what can be mended in {reg.location}?", yes=yes):
                raise click.Abort
            with out.progress(f"repair {reg.location}", "finding") as shown:
                done = reg.repair(found, progress=shown)
            out.page(pages.repaired(done, reg.location), done.to_dict())
            out.registry(reg.location)
            ok = done.ok
    if not ok:
        context.exit(_DAMAGED)


def _verified(session: Session, reg: Registry, ref: str | None) -> Verification:
    with session.out.progress(f"verify {ref or reg.location}") as progress:
        return reg.verify(ref, progress=progress)


def _rebuild(session: Session, *, yes: bool) -> None:
    from ..registry import Registry

    question = (
        "put a database made of the records alone in the place of the one in use, which is kept?"
    )
    replace = session.confirm(question, yes=yes)
    with session.out.progress("rebuild", "record") as progress:
        done = Registry.rebuild(session.location, replace=replace, progress=progress)
    session.out.page(pages.rebuilt(done), done.to_dict())


@click.command()
@click.option("--grace", metavar="TIME", default="14d", show_default=True,
              help="How long removed bytes are kept: 36h, 0, …")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would go, and stop.")
@click.option("--yes", is_flag=True, help="Don't ask; needed where there is no terminal.")
@json_option
@registry_option
@takes_session
def gc(session: Session, *, grace: str, dry_run: bool, yes: bool) -> None:
    """Free the bytes that nothing needs any more.

    Those of checkpoints removed longer ago than the grace, which can't be restored afterwards;
    files that a crash left without a row; temporary files of killed writers.

    \b
    Example:
      ckreg gc --dry-run
    """
    out = session.out
    with session.open() as reg:
        with out.progress(f"gc {reg.location}", "step") as progress:
            plan = reg.gc(dry_run=True, grace=grace, progress=progress)
        if dry_run or not plan:
            out.page(pages.collection(plan), plan.to_dict())
            return
        if not yes:
            out.note(pages.collection(plan).render().rstrip("\n"))
        question = f"free {size(plan.size_bytes)} of {reg.location} for good?"
        if not session.confirm(question, yes=yes):
            raise click.Abort
        with out.progress(f"gc {reg.location}", "step") as progress:
            done = reg.gc(plan=plan, progress=progress)
        out.page(pages.collection(done), done.to_dict())
        out.registry(reg.location)
