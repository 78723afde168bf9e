"""Commands beside the registry: demo, completion."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .session import Session, registry_option, takes_session

_LINES = {
    "bash": 'eval "$(_CKREG_COMPLETE=bash_source ckreg)"',
    "zsh": 'eval "$(_CKREG_COMPLETE=zsh_source ckreg)"',
    "fish": "_CKREG_COMPLETE=fish_source ckreg | source",
}


@click.command()
@click.option("--epochs", type=click.IntRange(1, 100), default=3, metavar="N", help="Default: 3.")
@click.option("--offline", is_flag=True, help="Fetch nothing from the package index.")
@registry_option
@takes_session
def demo(session: Session, *, epochs: int, offline: bool) -> None:
    """Train, save, list, plan and load for real, in two minutes.

    \b
    Example:
      ckreg demo
    """
    from ..demo import run

    run(session.location, epochs=epochs, offline=offline)


@click.command()
@click.argument("shell", type=click.Choice(sorted(_LINES)), required=False)
def completion(shell: str | None) -> None:
    """Print the line that makes a shell complete names and refs.

    \b
    Example:
      ckreg completion bash >> ~/.bashrc
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in _LINES:
        raise click.UsageError(f"name the shell: ckreg completion {'|'.join(sorted(_LINES))}")
    click.echo(_LINES[name])
