"""Numbers, sizes, times and foreign text as people read them.

Law: what comes from a file or a database never reaches a terminal as a control character. Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from .values import now

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB")
_AGES: Final = ((365 * 86400, "y"), (7 * 86400, "w"), (86400, "d"), (3600, "h"), (60, "m"))


def visible(text: object, *, lines: bool = False) -> str:
    r"""Return text with every control, bidi, surrogate or otherwise invisible character escaped.

    Args:
        lines: leave line feeds as they are.

    Example:
        >>> visible("a\x1b[31mb\tc")
        'a\\x1b[31mb\\tc'
    """
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def width(text: str) -> int:
    """Return how many terminal columns a text takes: wide letters two, combining marks none.

    Example:
        >>> width("résumé"), width("模型")
        (6, 4)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Return text filled with spaces to a width; longer text stays as it is."""
    fill = " " * (columns - width(text))
    return fill + text if right else text + fill


def cut(text: str, columns: int) -> str:
    """Return text no wider than some columns (at least 1), its end replaced by `…` where it was.

    Example:
        >>> cut("cifar10-corrupted", 9)
        'cifar10-…'
    """
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, columns: int) -> Iterator[str]:
    """Give a text's lines of some columns, broken between words; a longer word stays whole.

    Example:
        >>> list(wrapped("to be or not to be", 9))
        ['to be or', 'not to be']
    """
    line = ""
    for word in text.split(" "):
        if line and width(line) + 1 + width(word) > columns:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def number(value: float | None) -> str:
    """Return a metric in a few digits, `-` for none.

    Example:
        >>> [number(v) for v in (0.98611111, 93.1, 1e-7, 0.5, None)]
        ['0.9861', '93.10', '1e-07', '0.5000', '-']
    """
    if value is None:
        return "-"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def change(value: float | None) -> str:
    """Return a difference of metrics in a few digits, with its sign; `-` for none.

    Example:
        >>> [change(v) for v in (0.012, -3.5, 0.0, None)]
        ['+0.0120', '-3.50', '0.0000', '-']
    """
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def size(size_bytes: int) -> str:
    """Return a size in decimal units.

    Example:
        >>> [size(n) for n in (512, 1000, 97_800_000, 999_960)]
        ['512 B', '1.0 kB', '97.8 MB', '1.0 MB']
    """
    if size_bytes < 1000:
        return f"{size_bytes} B"
    amount = float(size_bytes)
    for unit in _UNITS:
        amount /= 1000
        if amount < 999.95 or unit == _UNITS[-1]:
            return f"{amount:.1f} {unit}"
    raise AssertionError("the last unit takes all")


def age(moment: datetime, at: datetime | None = None) -> str:
    """Return how long ago a time was, in one unit: `40s`, `3h`, `2w`; `now` for the future."""
    seconds = ((at or now()) - moment).total_seconds()
    return age_of(seconds) if seconds >= 1 else "now"


def age_of(seconds: float) -> str:
    """Return a span of time in one unit, in which it is 1 at least: `0s`, `40s`, `3h`, `2w`.

    Example:
        >>> [age_of(s) for s in (0.4, 59, 60, 7300, 86400 * 15)]
        ['0s', '59s', '1m', '2h', '2w']
    """
    for span, unit in _AGES:
        if seconds >= span:
            return f"{int(seconds // span)}{unit}"
    return f"{int(seconds)}s"


def clock(moment: datetime, at: datetime | None = None) -> str:
    """Return a time to the second, in UTC, and how long ago it was, as a page shows it."""
    since = age(moment, at)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({since if since == 'now' else f'{since} ago'})"


def count(amount: int, noun: str, plural: str | None = None) -> str:
    """Return an amount with its noun.

    Example:
        >>> count(1, "tensor"), count(1200, "tensor"), count(2, "entry", "entries")
        ('1 tensor', '1,200 tensors', '2 entries')
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def listed(words: Iterable[str], most: int = 5) -> str:
    """Return words joined by commas, the rest of a long list as a count."""
    known = list(words)
    rest = len(known) - most
    return ", ".join(known[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def field(value: object) -> str:
    """Return a value as one tab-separated field: every digit, nothing shortened, empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return visible(repr(value) if isinstance(value, float) else value)


def flat(plain: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return a JSON object as (dotted name, field) pairs, lists by index.

    Example:
        >>> flat({"acc": 0.5, "run": {"id": "ab", "name": None}, "tags": ["a", "b"]})
        [('acc', '0.5'), ('run.id', 'ab'), ('run.name', ''), ('tags.0', 'a'), ('tags.1', 'b')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in plain.items():
        path = f"{prefix}{visible(name)}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{path}.")
        elif isinstance(value, list | tuple):
            rows += flat({str(i): item for i, item in enumerate(value)}, f"{path}.")
        else:
            rows.append((path, field(value)))
    return rows
