"""The command line: the commands together, and how errors, signals and closed pipes end them.

Law: an expected error is one message, a hint and its own exit code, never a traceback. `main` is
the process; `run` is one command in any process. Knows no command's inside.
"""

from __future__ import annotations

import difflib
import errno
import gc
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn, TextIO

import click

from . import __version__, terminal
from .commands import COMMANDS
from .commands.session import Session, registry_option
from .errors import CkregError, CkregWarning
from .formatting import visible

EXIT_CODES: Final = {
    0: "done",
    1: "anything else that went wrong",
    2: "usage: a wrong option, name, number or expression",
    3: "not found: no such model, ref, file or registry",
    4: "ambiguous: several checkpoints answer",
    5: "conflict: it exists, or disagrees with what exists",
    6: "damaged: bytes that are not what was recorded, cut short or empty",
    7: "refused load: it would have been wrong, or the file is no usable checkpoint",
    8: "schema version: the registry is newer or older than this ckreg",
    9: "busy: somebody else holds what is needed",
    10: "untrusted content: the file asks for code, or breaks a safety limit",
    11: "no space: the disk or the quota is full",
    12: "remote: a server or another rank is unreachable, or refused",
    13: "read-only, or no permission",
    20: "a condition held: that of compare --fail-if",
    130: "interrupted",
    143: "terminated",
}
"""What ckreg exits with; scripts branch on these, so that a code never changes its meaning."""

_MEANT: Final = {
    "add": "push", "save": "push", "upload": "push", "log": "push",
    "get": "pull", "download": "pull", "load": "pull", "checkout": "pull",
    "del": "rm", "delete": "rm", "remove": "rm", "undelete": "restore", "clean": "prune",
    "ls": "list", "find": "list", "search": "list", "cat": "show", "inspect": "show",
    "check": "verify", "fsck": "verify", "upgrade": "migrate", "status": "info", "serve": "ui",
}  # fmt: skip
"""What other tools call a command: letters alone would suggest `models` for `delete`."""

_INTERRUPTED: Final = 130
_TERMINATED: Final = 143
_BROKEN_PIPE: Final = 141  # as a program that SIGPIPE ended: nobody reads on, nothing is wrong


class _Group(click.Group):
    """The commands in the order in which people meet them, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = [_MEANT[name]] if name in _MEANT else []
            near = near or difflib.get_close_matches(name, COMMANDS, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"ckreg {__version__}")
        context.exit()


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@registry_option
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Print the version.",
)  # fmt: skip
@click.pass_context
def ckreg(context: click.Context) -> None:
    """A registry for PyTorch checkpoints whose loads never guess.

    Every command takes -h, -r LOCATION, and where it answers with data, --json. A REF may be '-':
    refs from stdin, one a line.

    \b
    Example:
      ckreg demo
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def command(name: str) -> click.Command:
    """Return a command, its module imported now."""
    module, _, function = COMMANDS[name][0].partition(".")
    found = getattr(importlib.import_module(f".commands.{module}", __package__), function)
    assert isinstance(found, click.Command)
    return found


# --- one command, any process --------------------------------------------------------------------


def run(args: Sequence[str], *, terminal: bool | None = None) -> int:
    """Run one command and return its exit code; expected errors are printed, never raised.

    Args:
        args: the words after `ckreg`.
        terminal: print as to a terminal, or as to a pipe; None looks at stdout.
    """
    as_json = "--json" in args
    group: click.Context | None = None
    with _warnings(as_json):
        try:
            with ckreg.make_context("ckreg", [*args], obj=Session(terminal=terminal)) as group:
                ckreg.invoke(group)
            sys.stdout.flush()
        except click.exceptions.Exit as leave:
            return leave.exit_code
        except click.exceptions.Abort as error:
            # click makes one of both: Ctrl-C at a question, and the answer no
            return _interrupted() if isinstance(error.__context__, KeyboardInterrupt) else 1
        except click.UsageError as error:
            message = error.format_message().rstrip(".")
            where = error.ctx.command_path if error.ctx is not None else _called(group)
            return _fail("UsageError", 2, _lower(message), f"see: {where} -h", as_json)
        except click.ClickException as error:
            return _fail("UsageError", 2, _lower(error.format_message()), None, as_json)
        except CkregError as error:
            hint = _session(group).there(error.hint or "") or None
            return _fail(type(error).__name__, error.exit_code, error.message, hint, as_json)
        except (ValueError, TypeError) as error:
            if sys.flags.dev_mode:  # python -X dev -m registry …: a developer wants the place
                raise
            message, _, words = str(error).partition("\nhint: ")
            hint = _session(group).there(words) or None
            return _fail(type(error).__name__, 2, message, hint, as_json)
        except BrokenPipeError:
            # Python flushes stdout once more as it leaves; that must not fail again
            _stop_writing()
            return _BROKEN_PIPE
        except OSError as error:
            code = 11 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
            return _fail(type(error).__name__, code, str(error), None, as_json)
        except KeyboardInterrupt:
            return _interrupted()
    return 0


def _called(group: click.Context | None) -> str:
    """Return the command that was called: click's error of an option without its value (`prune
    --keep-best`) doesn't say (8.4)."""
    name = None if group is None else group.invoked_subcommand
    return "ckreg" if name is None else f"ckreg {name}"


def _session(group: click.Context | None) -> Session:
    return Session() if group is None else group.ensure_object(Session)


def _interrupted() -> int:
    if sys.stderr.isatty():
        sys.stderr.write("\n")  # the shell's prompt goes on a line of its own
    return _INTERRUPTED


def _fail(kind: str, code: int, message: str, hint: str | None, as_json: bool) -> int:
    _say("error: ", kind, code, message, hint, as_json)
    return code


def _say(label: str, kind: str, code: int, message: str, hint: str | None, as_json: bool) -> None:
    if as_json:
        document = {"type": kind, "exit_code": code, "message": message, "hint": hint}
        text = json.dumps(document)
    else:
        text = _block(label, label.strip(": "), message)
        if hint:
            text += "\n" + _block("hint:  ", "hint", hint)
    sys.stderr.write(text + "\n")


def _block(label: str, kind: str, text: str) -> str:
    first, *rest = visible(text, lines=True).splitlines() or [""]
    begin = terminal.styled(sys.stderr, label, kind)
    return "\n".join([begin + first, *(" " * len(label) + line for line in rest)])


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


@contextmanager
def _warnings(as_json: bool) -> Iterator[None]:
    """Show ckreg's own warnings as the command line speaks, all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CkregWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, CkregWarning):
                _say("warning: ", type(message).__name__, 0, str(message), None, as_json)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _stop_writing() -> None:
    with suppress(OSError, ValueError):  # stdout is no file: nothing will be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- the process ---------------------------------------------------------------------------------


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that what is half-written is cleaned up on the way out; and a second
    # signal on that way must not end the process by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(_TERMINATED)


def _open_closed() -> None:
    """Open standard streams that the caller closed (`>&-`): else the next file that is opened, a
    database among them, takes their place and gets what is printed.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process


def main() -> NoReturn:
    """Be the process `ckreg`."""
    # What is imported stays: looking for garbage in it at each 700 new objects frees nothing. Long
    # work is still collected.
    gc.set_threshold(50_000, 20, 20)
    signal.signal(signal.SIGTERM, _terminate)
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # an ASCII terminal shows an ellipsis as \u2026, and goes on
            stream.reconfigure(errors="backslashreplace")
    if "_CKREG_COMPLETE" in os.environ:
        ckreg.main(prog_name="ckreg", complete_var="_CKREG_COMPLETE")
    code = run(sys.argv[1:])
    if code == _INTERRUPTED:
        # a second Ctrl-C on the way out would end the process by the signal, and not by its code
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Or the interpreter walks every object once more to end (30 ms with SQLAlchemy). What is still
    # pending is finished, and what is open is closed and flushed, as ever.
    gc.freeze()
    sys.exit(code)
