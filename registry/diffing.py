"""How two checkpoints differ: facts, topology, keys, shapes, dtypes, and their numbers by module.

Law: keys are compared canonical, so that equal weights under different wrappers are equal; what
can't be compared is said, never counted as equal. Pure: the numbers come from tensors/, the sides
from whoever opened them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from . import keys
from .errors import RefusedLoadError
from .formatting import count, field, listed, pad, width
from .keys import Reading
from .records import Checkpoint
from .signature import KeyStyle, TensorSpec
from .values import FORMAT

_FACTS: Final = (
    "model", "dataset", "epoch", "step", "metrics", "config", "batch_size", "run", "weights",
    "container", "parameters", "optimizers", "scheduler", "git",
)  # fmt: skip
"""What is compared of two records: not what every save has of its own, such as id and time."""


@dataclass(frozen=True, slots=True)
class Change:
    """A fact that differs; None where a side doesn't have it."""

    name: str
    a: object
    b: object


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared of one side.

    Attributes:
        weights: the tensors under their keys in the file.
        others: entries of the state dict that are no tensors.
        views: groups of those keys that are one tensor in the file.
        ties: groups of canonical keys that are one tensor, as recorded.
    """

    checkpoint: Checkpoint
    weights: tuple[TensorSpec, ...]
    others: tuple[str, ...] = ()
    views: tuple[tuple[str, ...], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """How one side's keys were read.

    Attributes:
        ref: the side.
        source: `recorded`; `matched` to the other side's keys; or `guessed` from its own.
        live: how its live model was wrapped, as far as that is known.
        style: what was taken out of its keys, or put before them, so that they are these names.
        raw: canonical key -> key in the file; a wrapper's own counter is left out. A tied name that
            only the other side's file holds has its partner's key.
    """

    ref: str
    style: Reading
    source: str
    live: KeyStyle
    raw: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Numbers:
    """How the values of two tensors of one shape differ; sums, so that modules can be added up.

    Attributes:
        equal: every value is the same, NaN and NaN too.
        max_abs: the largest difference of two finite values.
        nonfinite: values that differ where a side is NaN or infinite; they are in no sum.
        difference2, a2, b2: the sums of (b - a)², a² and b².
        product: the sum of a·b.
    """

    equal: bool
    max_abs: float = 0.0
    nonfinite: int = 0
    difference2: float = 0.0
    a2: float = 0.0
    b2: float = 0.0
    product: float = 0.0

    @property
    def relative_norm(self) -> float | None:
        """‖b - a‖ / ‖a‖; None where a is zero and b is not."""
        if self.difference2 == 0:
            return 0.0
        return math.sqrt(self.difference2 / self.a2) if self.a2 else None

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between a and b; None where one is zero and the other isn't."""
        if self.difference2 == 0:
            return 1.0
        if not self.a2 or not self.b2:
            return None
        return max(-1.0, min(1.0, self.product / math.sqrt(self.a2) / math.sqrt(self.b2)))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "equal": self.equal, "max_abs": self.max_abs, "relative_norm": self.relative_norm,
            "cosine": self.cosine, "nonfinite": self.nonfinite,
        }  # fmt: skip


def together(parts: Iterable[Numbers]) -> Numbers:
    """Return the numbers of several tensors taken as one."""
    found = list(parts)
    return Numbers(
        all(n.equal for n in found),
        max((n.max_abs for n in found), default=0.0),
        sum(n.nonfinite for n in found),
        math.fsum(n.difference2 for n in found),
        math.fsum(n.a2 for n in found),
        math.fsum(n.b2 for n in found),
        math.fsum(n.product for n in found),
    )


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor that both sides have.

    Attributes:
        a, b: the two, under their canonical key.
        numbers: None where the shapes differ, or the values can't be compared.
        reason: why there are none, or None.
    """

    a: TensorSpec
    b: TensorSpec
    numbers: Numbers | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """The canonical key."""
        return self.a.key

    @property
    def equal(self) -> bool:
        """Whether shape, dtype and every value are the same."""
        return self.a.dtype == self.b.dtype and self.numbers is not None and self.numbers.equal

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "key": self.key,
            "shape": [list(self.a.shape), list(self.b.shape)],
            "dtype": [self.a.dtype, self.b.dtype],
            "equal": self.equal,
            "numbers": None if self.numbers is None else self.numbers.to_dict(),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class ModuleDiff:
    """A module's own tensors, taken together.

    Attributes:
        path: the module's canonical path; `""` is the root.
        tensors: how many both sides have.
        changed: how many of them aren't equal.
        numbers: of those that could be compared.
    """

    path: str
    tensors: int
    changed: int
    numbers: Numbers

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "path": self.path, "tensors": self.tensors, "changed": self.changed,
            **self.numbers.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diff:
    """How checkpoint b differs from checkpoint a.

    Attributes:
        a, b: how each side's keys were read.
        facts, topology: what differs in the records.
        only_a, only_b: canonical keys that one side has alone, entries that are no tensors too.
        tensors: those that both have, in a's order.
        notes: what was left out of the comparison.
    """

    a: Read
    b: Read
    facts: tuple[Change, ...]
    topology: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal_weights(self) -> bool:
        """Whether both have the same tensors, value for value, however they are wrapped."""
        return not self.only_a and not self.only_b and all(t.equal for t in self.tensors)

    @property
    def modules(self) -> tuple[ModuleDiff, ...]:
        """The tensors summed by the module that owns them, in a's order."""
        groups: dict[str, list[TensorDiff]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.key.rpartition(".")[0], []).append(tensor)
        return tuple(
            ModuleDiff(
                path,
                len(group),
                sum(not t.equal for t in group),
                together(t.numbers for t in group if t.numbers is not None),
            )
            for path, group in groups.items()
        )

    def __repr__(self) -> str:
        changed = sum(not t.equal for t in self.tensors)
        return (
            f"<Diff {self.a.ref} {self.b.ref}: {changed} of {len(self.tensors)} tensors differ, "
            f"{len(self.only_a)} only in the first, {len(self.only_b)} only in the second>"
        )

    def __str__(self) -> str:
        return _text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (plain dicts, lists, text and numbers)."""
        return {
            "format": FORMAT,
            "a": _read_dict(self.a),
            "b": _read_dict(self.b),
            "equal_weights": self.equal_weights,
            "facts": [{"name": c.name, "a": c.a, "b": c.b} for c in self.facts],
            "topology": [{"name": c.name, "a": c.a, "b": c.b} for c in self.topology],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "modules": [m.to_dict() for m in self.modules],
            "tensors": [t.to_dict() for t in self.tensors],
            "notes": list(self.notes),
        }


def _read_dict(read: Read) -> dict[str, Any]:
    return {
        "ref": read.ref,
        "file_keys": str(read.style),
        "file_keys_source": read.source,
        "key_style": str(read.live),
    }


# --- records --------------------------------------------------------------------------------------


def facts(a: Checkpoint, b: Checkpoint) -> tuple[Change, ...]:
    """Return the facts that differ, nested ones by their dotted names."""
    ours, theirs = a.to_dict(), b.to_dict()
    return _changes({name: ours[name] for name in _FACTS}, {name: theirs[name] for name in _FACTS})


def topology(a: Checkpoint, b: Checkpoint) -> tuple[Change, ...]:
    """Return what differs in what the two were saved on."""
    return _changes(a.topology.to_dict(), b.topology.to_dict())


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    ours, theirs = dict(_leaves(a)), dict(_leaves(b))
    return tuple(
        Change(name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    )


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested JSON data; a list of plain values is one value."""
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            yield from _leaves({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# --- keys -----------------------------------------------------------------------------------------


def read_keys(a: Side, b: Side) -> tuple[Read, Read]:
    """Return how each side's keys are read: as recorded, else so that they are the other's.

    Where neither the records nor the other side's keys say it, a side's own keys suggest it.

    Raises:
        RefusedLoadError: a recorded style doesn't fit the side's keys.
    """
    style_a, style_b = _recorded(a), _recorded(b)
    source_a = source_b = "recorded"
    if style_a is None:
        style_a, source_a = _matched(a, b, style_b)
    if style_b is None:
        style_b, source_b = _matched(b, a, style_a)
    read_a, read_b = _read(a, style_a, source_a), _read(b, style_b, source_b)
    ties = (*a.ties, *b.ties, *_named(a.views, read_a), *_named(b.views, read_b))
    return _filled(read_a, read_b, ties), _filled(read_b, read_a, ties)


def _named(views: Iterable[Sequence[str]], read: Read) -> list[tuple[str, ...]]:
    """Return groups of keys in the file under their canonical names."""
    names = {key: name for name, key in read.raw.items()}
    return [tuple(names[key] for key in group if key in names) for group in views]


def _filled(read: Read, other: Read, ties: Iterable[Sequence[str]]) -> Read:
    """Return the side with the tied names that its file holds under another name only."""
    raw = dict(read.raw)
    for group in ties:
        held = next((raw[name] for name in group if name in raw), None)
        if held is not None:
            raw |= {name: held for name in group if name not in raw and name in other.raw}
    return replace(read, raw=raw)


def _recorded(side: Side) -> Reading | None:
    ckpt = side.checkpoint
    return Reading(ckpt.file_keys) if ckpt.provenance.key_style == "recorded" else None


def _matched(side: Side, other: Side, reading: Reading | None) -> tuple[Reading, str]:
    """Return how a side's keys are to be read to be the other's, else what they suggest.

    Wrappers come first; then an attribute that held the net (Lightning's `model.`), where all of
    one side's tensors are the other's.
    """
    guesses = (Reading(other.checkpoint.file_keys), Reading()) if reading is None else (reading,)
    raw = {t.key: t.shape for t in side.weights}
    for prefixed in (False, True):
        for target in dict.fromkeys(guesses):
            found = _readings(raw, other, target, prefixed=prefixed)
            if len(found) == 1:
                return found[0], "matched"
    return Reading(side.checkpoint.file_keys), "guessed"


def _readings(raw: keys.Shapes, other: Side, target: Reading, *, prefixed: bool) -> list[Reading]:
    """Return the readings under which keys are the other side's, as `target` reads those."""
    try:
        names = _names([t.key for t in other.weights], target)
    except RefusedLoadError:
        return []
    wants = {names[t.key]: t.shape for t in other.weights}
    ties = [*other.ties, *([names[key] for key in group] for group in other.views)]
    if not prefixed:
        return [Reading(style) for style in keys.candidates(raw, wants, ties=ties)]
    return [
        way.reading
        for way in keys.prefixed_ways(raw, wants)
        if keys.is_whole(way, raw, wants, ties) or len(way.matched) in (len(raw), len(wants))
    ]


def _names(raw: Iterable[str], reading: Reading) -> dict[str, str]:
    """Return raw key -> name; one outside of an attribute that is dropped keeps its own."""
    canonical = keys.to_canonical(raw, reading.style)
    return {key: reading.place(name) or name for key, name in canonical.items()}


def _read(side: Side, style: Reading, source: str) -> Read:
    raw = [t.key for t in side.weights] + list(side.others)
    of_wrapper = keys.wrapper_state(raw, style.style)
    canonical = _names((key for key in raw if key not in of_wrapper), style)
    return Read(
        side.checkpoint.ref,
        style,
        source,
        side.checkpoint.key_style,
        {name: key for key, name in canonical.items()},
    )


# --- text -----------------------------------------------------------------------------------------

_MOST: Final = 12


def _text(diff: Diff) -> str:
    """Return the page: what differs, by module, in lines that a person reads."""
    lines = [f"{diff.a.ref} -> {diff.b.ref}", f"  {'weights':12}  {_weights(diff)}"]
    for heading, changes in (("facts", diff.facts), ("saved on", diff.topology)):
        lines += _section(heading, [[c.name, _shown(c.a), "->", _shown(c.b)] for c in changes])
    lines += _section("keys", _keys(diff))
    odd = [t for t in diff.tensors if t.a.shape != t.b.shape or t.a.dtype != t.b.dtype]
    lines += _section(
        "shapes and dtypes",
        [[t.key, _spec(t.a), "->", _spec(t.b)] for t in odd[:_MOST]] + _rest(odd, "tensor"),
    )
    changed = [m for m in diff.modules if m.changed]
    if changed:
        head = ["module", "changed", "max |Δ|", "‖Δ‖/‖a‖", "cosine"]
        lines += _section("changed", [head, *([*_module(m)] for m in changed)])
    lines += _section("notes", [[note] for note in diff.notes])
    return "\n".join(lines)


def _weights(diff: Diff) -> str:
    if diff.equal_weights:
        return f"equal: {count(len(diff.tensors), 'tensor')}, value for value"
    changed = sum(not t.equal for t in diff.tensors)
    parts = [f"{changed:,} of {count(len(diff.tensors), 'tensor')} differ"]
    if not diff.tensors:
        parts = ["none has a name that both have"]
    parts += [f"{len(diff.only_a):,} only in {diff.a.ref}"] if diff.only_a else []
    parts += [f"{len(diff.only_b):,} only in {diff.b.ref}"] if diff.only_b else []
    return ", ".join(parts)


def _section(heading: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a heading and its rows in columns; nothing without rows."""
    if not rows:
        return []
    many = max(map(len, rows))
    widths = [max((width(r[i]) for r in rows if len(r) == many), default=0) for i in range(many)]
    lines = ["", heading]
    for row in rows:
        cells = row if len(row) < many else [pad(c, w) for c, w in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _keys(diff: Diff) -> list[list[str]]:
    rows = []
    if diff.a.style or diff.b.style or diff.a.live != diff.b.live:
        rows += [
            [r.ref, f"wrapped {str(r.live)!r}, in the file {str(r.style)!r} ({r.source})"]
            for r in (diff.a, diff.b)
        ]
    for read, only in ((diff.a, diff.only_a), (diff.b, diff.only_b)):
        if only:
            rows.append([f"only in {read.ref}", listed(only, _MOST)])
    return rows


def _rest(items: Sequence[object], noun: str) -> list[list[str]]:
    more = len(items) - _MOST
    return [[f"… and {count(more, f'{noun} more', f'{noun}s more')}"]] if more > 0 else []


def _spec(spec: TensorSpec) -> str:
    return f"{spec.dtype} {'x'.join(map(str, spec.shape)) or 'scalar'}"


def _shown(value: object) -> str:
    return "-" if value is None else field(value)


def _module(module: ModuleDiff) -> tuple[str, ...]:
    numbers = module.numbers
    odd = f"  {count(numbers.nonfinite, 'value')} not finite" if numbers.nonfinite else ""
    return (
        module.path or "(root)",
        f"{module.changed} of {module.tensors}",
        f"{numbers.max_abs:.3g}",
        _or_dash(numbers.relative_norm, ".3g"),
        _or_dash(numbers.cosine, ".6f") + odd,
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
