"""What a person at a terminal sees: tables, pages and progress, in colour where that is wanted.

Law: rich draws, and is imported inside functions only, so that a pipe pays nothing for it. What is
drawn is text and never markup, escaped before it comes here. Colour says nothing that the words
don't say too. Knows no command and no record.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, TextIO

from .formatting import age_of, count, size, visible, width

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

Span = tuple[str, str]
"""A piece of a line, and what it is: one of `STYLES`, "" for plain text, or `DRAWN`."""

DRAWN: Final = "drawn"
"""A piece that was made for terminals, with its colours inside."""

COLOURS: Final = ("cyan", "yellow", "magenta", "green", "blue", "red")
"""What tells lines of a chart apart."""

STYLES: Final[Mapping[str, str]] = {
    "title": "bold cyan",
    "ref": "cyan",
    "summary": "bold",
    "heading": "bold",
    "name": "dim",
    "dim": "dim",
    "good": "green",
    "warning": "bold yellow",
    "error": "bold red",
    "hint": "cyan",
    **{colour: colour for colour in COLOURS},
}

_BLOCK: Final = 200  # rows that are measured together; a longer list goes on as its rows come
_LEAST: Final = 8  # columns that a shortened cell keeps


def in_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether colours are wanted on a stream.

    NO_COLOR (no-color.org) wins over FORCE_COLOR (force-color.org), and that over a TERM that can't
    and a stream that is no terminal.
    """
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environment.get("TERM") not in ("dumb", "unknown")


def _console(stream: TextIO, columns: int | None = None) -> Console:
    from rich.console import Console

    coloured = in_colour(stream)
    return Console(
        file=stream,
        width=columns,
        force_terminal=coloured or stream.isatty(),
        color_system="auto" if coloured else None,
        no_color=not coloured,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


def styled(stream: TextIO, text: str, kind: str) -> str:
    """Return a word for a stream, in the colour of what it is; without rich, for one word."""
    codes = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
    if not in_colour(stream):
        return text
    return f"\x1b[{';'.join(codes[word] for word in STYLES[kind].split())}m{text}\x1b[0m"


def lines(stream: TextIO, drawn: Iterable[Sequence[Span]]) -> None:
    """Write lines, each of spans; a line that is too long is the terminal's to wrap."""
    from rich.text import Text

    console = _console(stream)
    for spans in drawn:
        text = Text(no_wrap=True, overflow="ignore")
        for word, kind in spans:
            if kind == DRAWN:
                text.append_text(Text.from_ansi(word))
            else:
                text.append(word, STYLES.get(kind, ""))
        text.rstrip()
        console.print(text, crop=False)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heading:
    """The head of a table's column.

    Attributes:
        gives: its cells may be shortened on a narrow terminal.
        kind: what its cells are, one of `STYLES`.
    """

    name: str
    right: bool = False
    gives: bool = False
    kind: str = ""


def table(
    stream: TextIO, headings: Sequence[Heading], rows: Iterable[Sequence[str]], columns: int
) -> None:
    """Write rows under their headings, aligned, a block at a time; nothing where there are none.

    Args:
        columns: of the terminal. Wider rows are shortened where they give, and run on otherwise.
    """
    from rich.table import Table
    from rich.text import Text

    rest, first = iter(rows), True
    widths = [width(h.name) for h in headings]
    while block := list(itertools.islice(rest, _BLOCK)):
        widths = _fit(headings, [widths, *([width(c) for c in row] for row in block)], columns)
        drawn = Table(
            box=None, show_header=first, header_style=STYLES["heading"], pad_edge=False,
            padding=(0, 2, 0, 0),
        )  # fmt: skip
        for h, w in zip(headings, widths, strict=True):
            drawn.add_column(
                Text(h.name), width=w, justify="right" if h.right else "left", no_wrap=True,
                overflow="ellipsis", style=STYLES.get(h.kind, ""),
            )  # fmt: skip
        for row in block:
            drawn.add_row(*map(Text, row))
        _console(stream, sum(widths) + 2 * len(widths)).print(drawn, soft_wrap=False)
        first = False


def _fit(
    headings: Sequence[Heading], measured: Sequence[Sequence[int]], available: int
) -> list[int]:
    """Return column widths; the widest that may give is shortened until a row fits."""
    widths = [max(column) for column in zip(*measured, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > available:
        giving = [i for i, h in enumerate(headings) if h.gives and widths[i] > _LEAST]
        if not giving:
            break
        widths[max(giving, key=lambda i: widths[i])] -= 1
    return widths


# --- progress -------------------------------------------------------------------------------------


class Progress:
    """How far a slow piece of work is, on one line of a terminal; gone when it is done.

    It shows nothing in the first second: most work is over by then. Called with (done, total); work
    that can't say so shows for how long it has gone on.

    Args:
        unit: what is counted, or None for bytes.
        live: whether the stream is a terminal that can redraw a line.
    """

    FIRST_S: Final = 1.0
    _EVERY_S: Final = 0.1

    def __init__(
        self,
        stream: TextIO,
        label: str,
        *,
        live: bool,
        unit: str | None = None,
        first_s: float = FIRST_S,
    ) -> None:
        self._stream = stream
        self._label = visible(label)
        self._live = live
        self._unit = unit
        self._first_s = first_s
        self._done = self._total = 0
        self._shown_at = 0.0
        self._lock = threading.Lock()
        self._ended = False
        self._bar: RichProgress | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._live:
            self._timer = threading.Timer(self._first_s, self._begin)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._bar is None or time.monotonic() - self._shown_at < self._EVERY_S:
            return
        with self._lock:
            self._show()

    def _begin(self) -> None:
        """Draw, from now on; called by the timer's thread."""
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        with self._lock:
            if self._ended:
                return
            self._bar = RichProgress(
                SpinnerColumn("line"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[amounts]}", markup=False),
                console=_console(self._stream),
                transient=True,
                redirect_stdout=False,  # the answer; what warns on stderr comes above the bar
            )
            self._bar.add_task(self._label, total=None, amounts="")
            self._show()
            self._bar.start()

    def _show(self) -> None:
        if self._bar is None:
            return
        self._shown_at = time.monotonic()
        (task,) = self._bar.task_ids
        self._bar.update(
            task, completed=self._done, total=self._total or None, amounts=self._amounts()
        )

    def _amounts(self) -> str:
        since = time.monotonic() - self._began
        if not self._total:
            return age_of(since)
        part = min(self._done / self._total, 1.0)
        rest = f", {age_of(since / part - since)} left" if 0 < part < 1 else ""
        if self._unit is not None:
            return f"{part:.0%} {self._done:,} of {count(self._total, self._unit)}{rest}"
        speed = size(round(self._done / since)) if since else "-"
        return f"{part:.0%} {size(self._done)} of {size(self._total)}, {speed}/s{rest}"
