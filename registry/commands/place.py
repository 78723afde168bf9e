"""Commands about the registry itself: init, info, copy, migrate."""

from __future__ import annotations

from typing import Literal

import click

from .. import pages
from .session import Session, json_option, registry_option, takes_session

_DAMAGED = 6


@click.command()
@click.argument("location", required=False)
@click.option("--blobs", metavar="PLACE", help="Keep the bytes in this folder, or at an s3:// URL.")
@click.option("--shared", type=click.Choice(["group"]), help="The folder's group may write too.")
@json_option
@registry_option
@takes_session
def init(
    session: Session,
    location: str | None,
    *,
    blobs: str | None,
    shared: Literal["group"] | None,
) -> None:
    """Make a registry: ./.ckreg, or at a LOCATION.

    \b
    Example:
      ckreg init ~/checkpoints
    """
    from ..registry import Registry

    if location is not None and session.location not in (None, location):
        raise click.UsageError(f"two places are named: {location!r} and {session.location!r}")
    with Registry.create(
        location or session.location or ".ckreg", blobs=blobs, shared=shared
    ) as reg:
        session.out.path(reg.location)


@click.command()
@json_option
@registry_option
@takes_session
def info(session: Session) -> None:
    """Show which registry is in use, and what it holds.

    \b
    Example:
      ckreg info --json
    """
    with session.open() as reg:
        found = reg.info()
    session.out.page(pages.info(found), found)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--blobs", metavar="PLACE", help="Where DST keeps the bytes: a folder, or s3://…")
@json_option
@registry_option
@takes_session
@click.pass_context
def copy(
    context: click.Context, session: Session, source: str, destination: str, *, blobs: str | None
) -> None:
    """Copy a registry to another place; a second run goes on.

    Ids, versions, aliases and their moves, removed checkpoints, runs: all that SRC knows. DST is
    made where nothing is there; what it has of SRC already is passed over, or brought up to date.
    SRC stays as it is. Exits with 6 when something damaged was left out.

    \b
    Example:
      ckreg copy ~/.ckreg postgresql+psycopg://ckreg@db.lab/ckreg --blobs s3://models/ckreg
    """
    from ..registry import Registry

    if session.location not in (None, source):
        raise click.UsageError(f"two places are named: {source!r} and {session.location!r}")
    out = session.out
    with Registry.open(source) as reg:
        with out.progress(f"copy {reg.location}") as progress:
            done = reg.copy_to(destination, blobs=blobs, progress=progress)
        out.page(pages.copied(done), done.to_dict())
        out.registry(done.destination)
    if not done.ok:
        context.exit(_DAMAGED)


@click.command()
@json_option
@registry_option
@takes_session
def migrate(session: Session) -> None:
    """Bring a registry that an older ckreg made up to this one.

    \b
    Example:
      ckreg migrate -r /shared/checkpoints
    """
    with session.open() as reg, session.out.progress(f"migrate {reg.location}"):
        done = reg.migrate()
    session.out.upgraded(reg.location, done)
