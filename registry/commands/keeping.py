"""Commands that keep a registry whole and small: verify, gc."""

from __future__ import annotations

import click

from .. import pages
from ..formatting import size
from .session import (
    Session,
    complete_ref,
    json_option,
    registry_option,
    takes_session,
)

_DAMAGED = 6


@click.command()
@click.argument("ref", metavar="REF", required=False, shell_complete=complete_ref)
@json_option
@registry_option
@takes_session
@click.pass_context
def verify(context: click.Context, session: Session, ref: str | None) -> None:
    """Read every byte, row and record, and say what is wrong.

    Of all checkpoints, or of REF alone. Nothing is changed. Exits with 6 when something is damaged
    or missing, and with 0 when there are only remarks.

    \b
    Example:
      ckreg verify resnet50@best
    """
    out = session.out
    with session.open() as reg:
        with out.progress(f"verify {ref or reg.location}") as progress:
            found = reg.verify(ref, progress=progress)
        out.findings(pages.verification(found, ref or reg.location), found)
    if not found.ok:
        context.exit(_DAMAGED)


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
        plan = reg.gc(dry_run=True, grace=grace)
        if dry_run or not plan:
            out.page(pages.collection(plan), plan.to_dict())
            return
        if not yes:
            out.note(pages.collection(plan).render().rstrip("\n"))
        question = f"free {size(plan.size_bytes)} of {reg.location} for good?"
        if not session.confirm(question, yes=yes):
            raise click.Abort
        done = reg.gc(plan=plan)
        out.page(pages.collection(done), done.to_dict())
        out.registry(reg.location)
