"""Plain values and the rules for them: JSON, numbers, names, times, digests.

Law: what passes a check here can be stored, compared and printed as it is. Knows no ckreg noun.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NewType, TypeVar, cast

FORMAT: Final = 1
"""The version of every JSON document that ckreg writes; fields are only ever added."""

Digest = NewType("Digest", str)
"""`blake3:` and 64 hex digits."""

CheckpointId = NewType("CheckpointId", str)
"""32 hex digits, random."""

V = TypeVar("V")


class FrozenMap(Mapping[str, V]):
    """A mapping that can't be changed, prints like a dict, and can be hashed and pickled.

    Lists inside become tuples and dicts FrozenMaps, so that nothing below can change either; it
    equals the plain mapping that it was made from.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = {k: _frozen(v) for k, v in (items or {}).items()}

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._items == _frozen(other)._items  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._items.items())))

    def __repr__(self) -> str:
        return repr(self._items)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain dicts and lists."""
        return {k: _thawed(v) for k, v in self._items.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, FrozenMap):
        return value
    if isinstance(value, Mapping):
        return FrozenMap(value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, FrozenMap):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_thawed(v) for v in value]
    return value


EMPTY: Final[FrozenMap[Any]] = FrozenMap()


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: a number in it is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain_json(value: object, path: str) -> Any:
    """Return the value as JSON data, with numpy and tensor scalars as numbers and tuples as lists.

    Args:
        value: what the caller gave.
        path: how to call it in the error, e.g. `config`.

    Raises:
        TypeError: something in it has no JSON form; the message gives its path.
        ValueError: a number in it is NaN or infinite, or it is nested too deeply.
    """
    return _plain_json(value, path, 0)


def _plain_json(value: object, path: str, depth: int) -> Any:
    if depth > 64:
        raise ValueError(f"{path}: nested more than 64 deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of np.str_ and str enums the text alone
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return finite(value, path)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path}: the key {key!r} is {_a(key)}, and must be a string")
        return {str.__str__(k): _plain_json(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    scalar = _scalar(value)
    if scalar is not None:
        return _plain_json(scalar, path, depth + 1)
    raise TypeError(f"{path}: {_a(value)} has no JSON form (take numbers, text, lists and dicts)")


def _a(value: object) -> str:
    """Name the kind of a value for a message: `a function`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _scalar(value: object) -> bool | int | float | None:
    """Return the plain number inside a numpy or tensor scalar (anything with `item()`), or None."""
    item = getattr(value, "item", None)
    if item is None or isinstance(value, type):
        return None
    try:
        plain = item()
    except (TypeError, ValueError, RuntimeError):
        return None  # more than one element: not a scalar
    return plain if isinstance(plain, bool | int | float) else None


def finite(value: object, what: str) -> float:
    """Return a finite float from a plain, numpy or tensor scalar.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite, or has no float form.
    """
    plain = value if isinstance(value, bool | int | float) else _scalar(value)
    if plain is None or isinstance(plain, bool):
        raise TypeError(f"{what} must be a number, not {_a(value)}: {_short(value)}")
    try:
        number = float(plain)
    except OverflowError:
        raise ValueError(f"{what} is too large for a float: {_short(plain)}") from None
    if not math.isfinite(number):
        raise ValueError(
            f"{what} is {number}, and must be finite (leave it out when there is none)"
        )
    return number + 0.0  # -0.0 becomes 0.0, as it does in SQLite


def count(value: object, what: str) -> int:
    """Return an int >= 0 (below 2**63) from a plain, numpy or tensor integer.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    plain = value if isinstance(value, bool | int | float) else _scalar(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise TypeError(f"{what} must be an integer, not {_a(value)}: {_short(value)}")
    if not 0 <= plain < 2**63:
        raise ValueError(f"{what} must be between 0 and 2**63 - 1, not {_short(plain)}")
    return int(plain)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_UNITS: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def size_bytes(text: int | str) -> int:
    """Return the bytes that a size means: `5GB` is 5·10⁹, `512MiB` 512·2²⁰, a number itself.

    Raises:
        ValueError: it is no size, or zero.

    Example:
        >>> size_bytes("5GB"), size_bytes("1.5MiB"), size_bytes(4096)
        (5000000000, 1572864, 4096)
    """
    match = _SIZE.fullmatch(str(text))
    unit = None if match is None else _UNITS.get(match[2].upper())
    found = 0 if match is None or unit is None else int(float(match[1]) * unit)
    if found < 1:
        raise ValueError(f"{text!r} is no size: it should read like 5GB, 500MB or 2GiB")
    return found


_SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"\s*(\d{1,6}(?:\.\d+)?)\s*([smhdw])\s*|\s*0\s*")


def duration(text: str | timedelta) -> timedelta:
    """Return the time that a text means: `14d`, `36h`, `90m`, `0`; a timedelta itself.

    Raises:
        ValueError: it is no such time, or less than none.

    Example:
        >>> duration("14d").days, duration("1.5h").seconds
        (14, 5400)
    """
    if isinstance(text, timedelta):
        if text < timedelta(0):
            raise ValueError(f"a duration can't be less than none: {text}")
        return text
    match = _SPAN.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no duration: it should read like 14d, 36h, 90m or 0")
    return timedelta(seconds=float(match[1]) * _SPANS[match[2]] if match[1] else 0)


# --- names ----------------------------------------------------------------------------------------

_SEGMENT = re.compile(r"[^\W_][\w.\-]*")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"best|latest|v[0-9]+")


def model_name(value: object) -> str:
    """Return a model's name, NFC-normalised: `resnet50`, `vision/resnet50-d`.

    Segments of letters, digits, `.`, `_` and `-` that start with a letter or digit, joined by `/`;
    at most 255 characters.

    Raises:
        TypeError: it is no string.
        ValueError: it breaks the grammar.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"model is a name, not {_a(value)}; the network goes first: "
            'reg.save(net, model="resnet50", …)'
        )
    name = unicodedata.normalize("NFC", value)
    if not 1 <= len(name) <= 255 or not all(_SEGMENT.fullmatch(s) for s in name.split("/")):
        alone, at, _ = name.partition("@")
        fits = len(name) <= 255 and all(_SEGMENT.fullmatch(s) for s in alone.split("/"))
        hint = f"; it reads as a ref, and the name alone is {alone!r}" if at and fits else ""
        raise ValueError(
            f"{_short(value)} can't be a model's name: take letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, in segments joined by '/' (255 characters at most)"
            + hint
        )
    return name


def printable(value: object, what: str) -> str:
    """Return a dataset's, metric's or run's name, NFC-normalised.

    It has 1 to 255 printable characters, and no blanks around them.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, or holds control characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {_a(value)}: {_short(value)}")
    text = unicodedata.normalize("NFC", value)
    if not 1 <= len(text) <= 255 or not text.isprintable() or text != text.strip():
        raise ValueError(
            f"{what} {_short(value)} must be 1 to 255 printable characters, "
            "with no blanks around them"
        )
    return text


def label(value: object, what: str) -> str:
    """Return a tag or an alias: a letter, then up to 63 letters, digits, `.`, `_`, `-`.

    Raises:
        TypeError: it is no string.
        ValueError: it breaks the grammar, or is a word that refs use (best, latest, v12).
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {_a(value)}")
    if not _LABEL.fullmatch(value):
        raise ValueError(
            f"{what} {_short(value)} must be a letter followed by at most 63 letters, digits, "
            "'.', '_', '-'"
        )
    if _RESERVED.fullmatch(value):
        raise ValueError(f"{what} {value!r} is a word that refs use (best, latest, v12)")
    return value


def metrics_of(values: Mapping[str, object], acc: object = None) -> FrozenMap[float]:
    """Return checked metrics, `acc` among them.

    Raises:
        TypeError: a name is no text or a value no number.
        ValueError: a value is not finite, a name breaks its rule or is given twice in two Unicode
            forms, or acc is given twice and differs.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"metrics are a dict of names and numbers, not {_a(values)}")
    found = {printable(k, "metric"): finite(v, str(k)) for k, v in values.items()}
    if len(found) != len(values):
        raise ValueError("one metric is given twice, its name in two Unicode forms")
    if acc is not None:
        number = finite(acc, "acc")
        if found.setdefault("acc", number) != number:
            raise ValueError(f"acc is given twice: {number!r}, and {found['acc']!r} in metrics")
    return FrozenMap(found)


# --- time -----------------------------------------------------------------------------------------


def now() -> datetime:
    """Return the present, in UTC."""
    return datetime.now(UTC)


def time_text(moment: datetime) -> str:
    """Return a time as RFC 3339 UTC text of fixed width, so that text order is time order.

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"the time {moment} names no time zone")
    # Not strftime: its %Y drops the leading zeros of the years before 1000.
    naive = moment.astimezone(UTC).replace(tzinfo=None)
    return naive.isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """Return the UTC time that `time_text` wrote, or that any RFC 3339 text means.

    Raises:
        TypeError: it is no text.
        ValueError: it is no such text, names no time zone, or lies outside the years 1 to 9999.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} names no time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"the time {text!r} lies outside the years 1 to 9999") from None


# --- ids, digests, fields --------------------------------------------------------------------


def digest_of(value: object) -> Digest:
    """Return the BLAKE3 digest of a value's canonical JSON."""
    import blake3

    return Digest("blake3:" + blake3.blake3(canonical_json(value).encode()).hexdigest())


def checkpoint_id(value: object) -> CheckpointId:
    """Return a whole id. Raises ValueError unless it is 32 hex digits."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
        raise ValueError(f"{_short(value)} is no id: an id is 32 hex digits")
    return CheckpointId(value)


def digest(value: object) -> Digest:
    """Return a digest. Raises ValueError unless it is `blake3:` and 64 hex digits."""
    if not isinstance(value, str) or not re.fullmatch(r"blake3:[0-9a-f]{64}", value):
        raise ValueError(f"{_short(value)} is no digest: a digest is 'blake3:' and 64 hex digits")
    return Digest(value)


def optional_text(value: object, what: str) -> str | None:
    """Return what `printable` does, or None for None."""
    return None if value is None else printable(value, what)


def optional_count(value: object, what: str) -> int | None:
    """Return what `count` does, or None for None."""
    return None if value is None else count(value, what)


def optional_prose(value: object, what: str) -> str | None:
    """Return any text as it is, or None for None. Raises TypeError for anything else."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {_a(value)}: {_short(value)}")
    return value


def table_of(value: object, what: str) -> Mapping[str, Any]:
    """Return a mapping as it is, or an empty one for None. Raises TypeError for anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a table, not {_a(value)}: {_short(value)}")
    return value or {}


def list_of(value: object, what: str) -> Sequence[Any]:
    """Return a list or tuple as it is, or an empty one for None. Raises TypeError for others."""
    if value is not None and not isinstance(value, list | tuple):
        raise TypeError(f"{what} must be a list, not {_a(value)}: {_short(value)}")
    return value or ()


def one_of(value: object, allowed: Sequence[str], what: str) -> Any:
    """Return the value, which must be one of the allowed. Raises ValueError for others."""
    if value not in allowed:
        raise ValueError(f"{what} {_short(value)} is none of {', '.join(allowed)}")
    return cast("Any", value)
