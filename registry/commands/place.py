"""Commands about the registry itself: init, info, migrate."""

from __future__ import annotations

from typing import Literal

import click

from .. import pages
from .session import Session, json_option, registry_option, takes_session


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
@json_option
@registry_option
@takes_session
def migrate(session: Session) -> None:
    """Bring a registry that an older ckreg made up to this one.

    \b
    Example:
      ckreg migrate -r /shared/checkpoints
    """
    with session.open() as reg:
        done = reg.migrate()
    session.out.upgraded(reg.location, done)
