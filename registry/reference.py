"""What pages say of the command line, made from what it really has: the tables of commands and of
exit codes, and every command with its options.

`python -m registry.reference README.md docs/cli.md` writes them anew between their markers.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

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


def _words(parameter: click.Parameter) -> str:
    """Return how an option is written: `-r, --registry LOCATION`."""
    names = ", ".join([*sorted(parameter.opts, key=len), *parameter.secondary_opts])
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return names
    kind = parameter.type
    choices = "|".join(kind.choices) if isinstance(kind, click.Choice) else None
    return f"{names} {parameter.metavar or choices or kind.name.upper()}"


def _usage(name: str, found: click.Command) -> str:
    words = [f"ckreg {name}"]
    if any(isinstance(p, click.Option) for p in found.params):
        words.append("[OPTIONS]")
    for parameter in found.params:
        if isinstance(parameter, click.Argument):
            shown = parameter.metavar or (parameter.name or "").upper()
            many = "..." if parameter.nargs == -1 and not shown.endswith("...") else ""
            bare = shown.strip("[]")
            words.append(f"{bare}{many}" if parameter.required else f"[{bare}{many}]")
    return " ".join(words)


def options_text() -> str:
    """Return each command's section: its sentence, its words, an example, its options."""
    sections = []
    for name in COMMANDS:
        found = command(name)
        text = inspect.cleandoc(found.help or "").partition("\b\n")[0]
        rows = ["| option | what it does |", "|---|---|"]
        options = [p for p in found.params if isinstance(p, click.Option) and not p.hidden]
        rows += [f"| `{_cell(_words(p))}` | {_cell(p.help or '')} |" for p in options]
        sections += [
            f"## {name}",
            text.strip(),
            f"```text\n{_usage(name, found)}\n```",
            f"For example `{_example(found)}`.",
            *(["\n".join(rows)] if len(rows) > 2 else []),
        ]
    return "\n\n".join(sections)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "commands": commands_table,
    "exit-codes": exit_codes_table,
    "options": options_text,
}
"""What can stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""


def filled(text: str) -> str:
    """Return a Markdown text with what stands between its markers written anew.

    Raises:
        ValueError: it has no marker, or one that isn't closed.
    """
    there = [name for name in PARTS if f"<!-- {name}:begin -->" in text]
    if not there:
        raise ValueError(f"no <!-- NAME:begin --> in the text, NAME one of {', '.join(PARTS)}")
    for name in there:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not closed:
            raise ValueError(f"no {end} after {begin}")
        text = f"{head}{begin}\n{PARTS[name]()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(filled(path.read_text()))
