"""Commands that keep a registry whole and small: verify, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .. import pages
from ..formatting import listed, size
from .session import (
    Session,
    complete_ref,
    json_option,
    registry_option,
    takes_session,
)

if TYPE_CHECKING:
    from ..registry import Registry
    from ..verifying import Verification

_DAMAGED = 6


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
    with session.out.progress("rebuild"):
        done = Registry.rebuild(session.location, replace=replace)
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
        with out.progress(f"gc {reg.location}"):
            plan = reg.gc(dry_run=True, grace=grace)
        if dry_run or not plan:
            out.page(pages.collection(plan), plan.to_dict())
            return
        if not yes:
            out.note(pages.collection(plan).render().rstrip("\n"))
        question = f"free {size(plan.size_bytes)} of {reg.location} for good?"
        if not session.confirm(question, yes=yes):
            raise click.Abort
        with out.progress(f"gc {reg.location}"):
            done = reg.gc(plan=plan)
        out.page(pages.collection(done), done.to_dict())
        out.registry(reg.location)
