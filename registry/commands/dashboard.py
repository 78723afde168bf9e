"""The command that shows a registry in a browser: ui."""

from __future__ import annotations

import sys

import click

from .session import Session, registry_option, takes_session


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8420,
    metavar="N",
    help="Default: 8420; 0 takes a free one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Another interface than the loopback's asks every visitor for a token.",
)
@click.option(
    "--token",
    envvar="CKREG_UI_TOKEN",
    metavar="TEXT",
    help="The token to ask for, best by $CKREG_UI_TOKEN: `ps` shows options to others. By default "
    "one is made.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="A further name that this machine is reached under.",
)
@registry_option
@takes_session
def ui(
    session: Session, *, port: int, host: str, token: str | None, names: tuple[str, ...]
) -> None:
    """Show the registry in a browser: a dashboard that only reads.

    \b
    Example:
      ckreg ui --port 8421
    """
    from .. import web

    web.check_installed()
    from ..web import serving

    out = session.out

    def announce(address: str) -> None:
        out.path(address)
        sys.stdout.flush()  # who started it in a pipe waits for it
        out.note("Ctrl-C ends it")

    with session.open() as reg:
        out.registry(reg.location)
        serving.serve(reg, host=host, port=port, token=token, hosts=names, announce=announce)
