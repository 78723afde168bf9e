"""What every command shares: the registry it was pointed at, its output, and how it is declared.

Law: one option order everywhere: the command's own, then output, then registry. Knows no command.
"""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Final, Literal, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import CkregError, NotFoundError
from ..formatting import visible
from . import COMMANDS

if TYPE_CHECKING:
    from ..output import Form, Output
    from ..registry import Registry

P = ParamSpec("P")
R = TypeVar("R")

_COMMAND: Final = re.compile(
    r"(?<![\w./-])ckreg (?=("
    + "|".join(sorted({*COMMANDS} - {"init", "copy", "demo", "completion"}))
    + r")\b)"
)
"""A command that stands in a text, of those that take the registry by `-r` alone."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(slots=True)
class Session:
    """One invocation of ckreg.

    Attributes:
        location: the registry that `-r` names, or None for the usual search.
        terminal: treat stdout as a terminal, or as a pipe; None looks.
        form: what `--json` or `-q` ask for, or None.
    """

    location: str | None = None
    terminal: bool | None = None
    form: Literal["json", "refs"] | None = None
    _stdin_read: bool = False

    def open(self) -> Registry:
        """Open the registry; a context manager."""
        from ..registry import Registry

        return Registry.open(self.location)

    @property
    def out(self) -> Output:
        """Where the answer goes."""
        from ..output import Output

        terminal = sys.stdout.isatty() if self.terminal is None else self.terminal
        form: Form = self.form or ("table" if terminal else "tabs")
        return Output(sys.stdout, sys.stderr, form=form)

    def refs(self, *words: str) -> list[str]:
        """Return the refs that words name: themselves, and for `-` those on stdin, one a line.

        Of a line with tabs, as `ckreg list` prints one in a pipe, the first field counts.

        Raises:
            NotFoundError: stdin has none: what should have named them found nothing, or failed.
            click.UsageError: stdin is named twice.
        """
        found: list[str] = []
        for word in words:
            found += self._from_stdin() if word == "-" else [word]
        return list(dict.fromkeys(found))

    def ref(self, word: str) -> str:
        """Return the one ref that a word names; `-` is that on stdin.

        Raises:
            NotFoundError, click.UsageError: as refs; and there are several.
        """
        found = self.refs(word)
        if len(found) > 1:
            raise click.UsageError(f"one ref is wanted here, and stdin has {len(found)}")
        return found[0]

    def _from_stdin(self) -> list[str]:
        if self._stdin_read:
            raise click.UsageError("'-' is stdin, which can be read once")
        self._stdin_read = True
        lines = (line.split("\t")[0].strip() for line in sys.stdin)
        found = [line for line in lines if line]
        if not found:
            raise NotFoundError(
                "there is no ref on stdin: nothing was done",
                hint="see what comes before the pipe: it found none, or failed",
            )
        return found

    def there(self, text: str) -> str:
        """Return a hint whose commands go to the registry that `-r` named.

        Pasted as they stand they would ask, or change, another one.
        """
        if self.location is None or not _COMMAND.search(text):
            return text
        from ..location import place

        try:
            shown = shlex.quote(str(place(self.location)))  # a URL without its password
        except (CkregError, ValueError):
            return text
        return _COMMAND.sub(lambda found: f"{found[0]}-r {shown} ", text)

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Ask before something goes away.

        Raises:
            click.UsageError: there is no terminal to ask on, and `--yes` wasn't given.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError("there is no terminal to ask on; to go ahead, add --yes")
        return click.confirm(visible(question), err=True)


def takes_session(function: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Pass the invocation's Session as the first argument."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(click.get_current_context().ensure_object(Session), *args, **kwargs)

    return call


def _set_location(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).location = value


def _set_form(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    session = context.ensure_object(Session)
    asked: Literal["json", "refs"] = "json" if parameter.name == "json" else "refs"
    if session.form not in (None, asked):
        raise click.UsageError("--json and --quiet are two forms of one answer; take one")
    session.form = asked


def registry_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add `-r`, which works before the command and after it."""
    return click.option(
        "-r",
        "--registry",
        metavar="LOCATION",
        expose_value=False,
        callback=_set_location,
        help="A folder or database URL. Default: $CKREG_REGISTRY, ./.ckreg upward, ~/.ckreg.",
    )(function)


def json_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add `--json`."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_form,
        help="Print one JSON document; an error is one too, on stderr.",
    )(function)


def quiet_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add `-q`."""
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_form,
        help="Print refs only.",
    )(function)


def answers(function: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Add the options of a command that answers with checkpoints: output, then registry."""
    return json_option(quiet_option(registry_option(takes_session(function))))


# --- NAME=VALUE -----------------------------------------------------------------------------------


def assignments(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, float]:
    """Return the metrics in `val/loss=0.21` words: a click callback.

    Raises:
        click.BadParameter: a word reads otherwise, or a name is given twice.
    """
    metrics: dict[str, float] = {}
    for word in values:
        name, _, text = word.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{word!r} should read like val/loss=0.21", context, parameter)
        if name in metrics:
            raise click.BadParameter(f"{name!r} is given twice", context, parameter)
        metrics[name] = number
    return metrics


# --- completion -----------------------------------------------------------------------------------


def _names(context: click.Context, incomplete: str, *, refs: bool) -> list[CompletionItem]:
    session = context.find_object(Session) or Session()
    try:
        with session.open() as reg:
            model, at, _ = incomplete.partition("@")
            if not at or not refs:
                return [
                    CompletionItem(m.name) for m in reg.models() if m.name.startswith(incomplete)
                ]
            found = [f"{model}@best", f"{model}@latest"]
            for ckpt in reg.find(model, limit=200):
                found += [f"{model}@{alias}" for alias in ckpt.aliases] + [ckpt.ref]
            return [CompletionItem(ref) for ref in found if ref.startswith(incomplete)]
    except Exception:  # a shell that completes has no place for a message
        return []


def complete_model(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a model's name."""
    return _names(context, incomplete, refs=False)


def complete_ref(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a ref: a model's name, and after an `@` what it has."""
    return _names(context, incomplete, refs=True)


def ref_argument(function: Callable[P, R]) -> Callable[P, R]:
    """Add the argument REF; `-` is those on stdin."""
    return click.argument("ref", metavar="REF", shell_complete=complete_ref)(function)


def dataset_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add `--dataset`, which chooses among those of a ref."""
    return click.option("--dataset", metavar="NAME", help="The dataset that is meant.")(function)
