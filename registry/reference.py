"""The README's tables of commands and exit codes, made from what the command line really has.

`python -m registry.reference README.md` writes them anew between their markers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from .cli import EXIT_CODES, command
from .commands import COMMANDS


def _example(command: click.Command) -> str:
    text = re.search(r"Example:\s*\n\s*(.+)", command.help or "")
    if text is None:
        raise ValueError(f"the command {command.name!r} has no example")
    return text[1].strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands_table() -> str:
    """Return the Markdown table of every command: what it does, and an example."""
    rows = ["| command | what it does | example |", "|---|---|---|"]
    for name, (_, sentence) in COMMANDS.items():
        rows.append(f"| `{name}` | {_cell(sentence)} | `{_cell(_example(command(name)))}` |")
    return "\n".join(rows)


def exit_codes_table() -> str:
    """Return the Markdown table of exit codes."""
    rows = ["| exit code | meaning |", "|---|---|"]
    rows += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(rows)


def filled(text: str) -> str:
    """Return a Markdown text with both tables written between their markers.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in (("commands", commands_table()), ("exit-codes", exit_codes_table())):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"no {begin} … {end} in the text")
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text()))
