"""A metric over epochs as a chart of characters: a line for each run, the best point marked.

Law: a point is drawn where its checkpoint says, or left out and counted; of several datasets or
models none is best, for they don't compare. Which is better, more or less, is never guessed.
plotille draws, and is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

from .formatting import count, number, visible
from .records import Checkpoint, Mode
from .terminal import COLOURS, DRAWN, Span

Axis = Literal["epoch", "step"]

_MARKS: Final = "abcdef"
"""What tells the lines apart where there is no colour."""

_BEST: Final = "*"
_HEIGHT: Final = 16
_LEAST: Final = 20


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint's place in a chart."""

    ref: str
    version: int
    x: int
    y: float


@dataclass(frozen=True, slots=True)
class Curves:
    """What a chart shows.

    Attributes:
        lines: a run's name and its points, by x; the newest run first.
        best: the best point, where it is known which is better and all compare.
        left_out: checkpoints that have the metric, and no place on the axis.
        undrawn: lines that there was no colour for.
    """

    metric: str
    axis: Axis
    lines: tuple[tuple[str, tuple[Point, ...]], ...]
    best: Point | None = None
    left_out: int = 0
    undrawn: int = 0


@dataclass(slots=True)
class _Seen:
    """What was seen of one run."""

    model: str
    dataset: str | None
    run: str | None
    at: dict[Axis, list[Point]] = field(default_factory=lambda: {"epoch": [], "step": []})


def curves(found: Iterable[Checkpoint], metric: str, mode: Mode | None) -> Curves | None:
    """Return a metric's course in some checkpoints, by run; None where none has a place.

    By epoch if one of them has an epoch, else by step.

    Args:
        found: the newest first.
        mode: which is better, or None if nobody says.
    """
    seen: dict[tuple[str, str | None, str | None], _Seen] = {}
    there = 0
    for ckpt in found:
        value = ckpt.metrics.get(metric)
        if value is None:
            continue
        there += 1
        run = None if ckpt.run is None else ckpt.run.id
        name = None if ckpt.run is None else ckpt.run.name or ckpt.run.id[:8]
        one = seen.setdefault(
            (ckpt.model, ckpt.dataset, run), _Seen(ckpt.model, ckpt.dataset, name)
        )
        places: tuple[tuple[Axis, int | None], ...] = (("epoch", ckpt.epoch), ("step", ckpt.step))
        for axis, x in places:
            if x is not None:
                one.at[axis].append(Point(ckpt.ref, ckpt.version, x, value))
    axis = "epoch" if any(one.at["epoch"] for one in seen.values()) else "step"
    drawn = [one for one in seen.values() if one.at[axis]]
    if not drawn:
        return None
    lines = [
        (name, tuple(sorted(one.at[axis], key=lambda point: (point.x, point.version))))
        for name, one in zip(_names(drawn), drawn, strict=True)
    ]
    points = [point for _, line in lines for point in line]
    comparable = len({(one.model, one.dataset) for one in drawn}) == 1
    return Curves(
        metric,
        axis,
        tuple(lines[: len(COLOURS)]),
        _best(points, mode) if comparable and mode is not None else None,
        there - len(points),
        max(0, len(lines) - len(COLOURS)),
    )


def _names(drawn: Sequence[_Seen]) -> Iterator[str]:
    """Give each run what tells it from the others."""
    several = (len({one.model for one in drawn}) > 1, len({one.dataset for one in drawn}) > 1)
    for one in drawn:
        parts = [one.model if several[0] or one.run is None else None,
                 one.dataset if several[1] else None, one.run]  # fmt: skip
        yield " · ".join(part for part in parts if part)


def _best(points: Sequence[Point], mode: Mode) -> Point:
    best = (max if mode == "max" else min)(point.y for point in points)
    return max((point for point in points if point.y == best), key=lambda point: point.version)


def chart(drawn: Curves, columns: int, *, colour: bool, letters: bool) -> Iterator[list[Span]]:
    """Give the chart's lines; the drawing in them is "drawn": it has its colours inside.

    Args:
        columns: of the terminal.
        letters: the stream has only ASCII: a point is a character, and no line is drawn.
    """
    from plotille import Canvas

    points = [point for _, line in drawn.lines for point in line]
    if drawn.best is not None and drawn.best not in points:
        points.append(drawn.best)
    left, right = _limits([point.x for point in points])
    low, high = _limits([point.y for point in points])
    ticks = {at: number(low + (high - low) * at / (_HEIGHT - 1)) for at in (0, 5, 10, 15)}
    margin = max(map(len, ticks.values()))
    across = max(_LEAST, columns - margin - 3)
    # half a character of room on each side, or what lies on the edge is cut off
    dx, dy = (right - left) / across / 2, (high - low) / _HEIGHT / 2
    canvas = Canvas(across, _HEIGHT, left - dx, low - dy, right + dx, high + dy, mode="names")
    marked = letters or (not colour and len(drawn.lines) > 1)
    for (_, line), hue, mark in zip(drawn.lines, COLOURS, _MARKS, strict=False):
        ink = hue if colour else None
        if not letters:
            for a, b in pairwise(line):
                canvas.line(a.x, a.y, b.x, b.y, color=ink)
        for point in line:
            canvas.point(point.x, point.y, color=ink, marker=mark if marked else None)
    if drawn.best is not None:
        canvas.point(drawn.best.x, drawn.best.y, marker=_BEST)
    yield [(visible(drawn.metric), "heading")]
    rows = canvas.plot(linesep="\n").replace("\u2800", " ").split("\n")
    for at, row in zip(range(_HEIGHT - 1, -1, -1), rows, strict=True):
        edge = "|" if letters else "┤" if at in ticks else "│"
        yield [(f"{ticks.get(at, ''):>{margin}} ", "dim"), (edge, "dim"), (row, DRAWN)]
    corner, bar = ("+", "-") if letters else ("└", "─")
    yield [(" " * (margin + 1) + corner + bar * across, "dim")]
    first, last, name = f"{left:g}", f"{right:g}", drawn.axis
    gap = across - len(first) - len(last) - len(name)
    yield [(" " * (margin + 2) + first + " " * (gap // 2) + name
            + " " * (gap - gap // 2) + last, "dim")]  # fmt: skip
    yield from _legend(drawn, colour=colour, marked=marked, letters=letters)


def _legend(drawn: Curves, *, colour: bool, marked: bool, letters: bool) -> Iterator[list[Span]]:
    for (name, line), hue, mark in zip(drawn.lines, COLOURS, _MARKS, strict=False):
        sign = mark if marked else "──"
        amount = count(len(line), "checkpoint")
        yield [(f"  {sign} ", hue if colour else ""), (visible(name), ""), (f"  {amount}", "dim")]
    best = drawn.best
    if best is not None:
        at = f" {drawn.axis} {best.x}: {visible(drawn.metric)} {number(best.y)}"
        yield [(f"  {_BEST} ", ""), (visible(best.ref), "ref"), ("  best, at" + at, "")]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest, made different where they are one."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = abs(low) * 0.05 or 0.5
    return low - room, high + room
