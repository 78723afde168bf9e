"""Joining the file's keys with the target's: its style, what fits, what is left over.

Law: a recorded or stated style is taken as it is; without one, only the target may prove it, by
exactly one way that fits. What is left over is refused, unless `allow=` names it.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import AmbiguousError, RefusedLoadError
from ..keys import (
    PLAIN,
    Way,
    guess_style,
    idle_positions,
    is_whole,
    to_canonical,
    to_raw,
    ways,
    wrapper_state,
)
from ..signature import WRAPPER_TOKENS, KeyStyle
from .inputs import Saved, SavedTensor, Target, TargetTensor, Wanted
from .plan import KeysFrom


@dataclass(frozen=True, slots=True)
class Difference:
    """How a file's canonical keys differ from a target's.

    Attributes:
        matched: pairs whose names and shapes agree, in file order.
        filled: target tensors that the file lacks under that name, with the tied tensor that fills
            each.
        others: entries that are no tensors: raw key, canonical key.
        missing, unexpected: canonical keys.
        misshapen: pairs whose names agree and shapes don't.
    """

    matched: tuple[tuple[SavedTensor, TargetTensor], ...]
    filled: tuple[tuple[SavedTensor, TargetTensor], ...]
    others: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[SavedTensor, TargetTensor], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The canonical keys that don't fit."""
        return (*self.missing, *self.unexpected, *(t.canonical for _, t in self.misshapen))


@dataclass(frozen=True, slots=True)
class Joined:
    """A file's keys, read: their style, how that is known, and the maps that follow.

    Attributes:
        renames: raw key -> canonical key, tensors and other entries.
        of_wrapper: raw key -> name of tensors that belong to the file's wrapper.
    """

    style: KeyStyle
    source: KeysFrom
    renames: Mapping[str, str]
    of_wrapper: Mapping[str, str]


def read_keys(
    saved: Saved, tensors: Sequence[SavedTensor], known: tuple[KeyStyle, KeysFrom]
) -> Joined:
    """Return the maps that follow from a style.

    Raises:
        RefusedLoadError: the keys aren't wrapped so.
    """
    raw = [t.key for t in tensors] + list(saved.others)
    style, source = known
    of_wrapper = wrapper_state(raw, style)
    return Joined(style, source, to_canonical(raw, style), of_wrapper)


def known_style(
    saved: Saved, tensors: Sequence[SavedTensor], wanted: Wanted, *, averaged: bool
) -> tuple[KeyStyle, KeysFrom] | None:
    """Return the style that was stated or recorded, or None.

    Args:
        averaged: the tensors are averaged weights that lie beside the live ones: the record is not
            about them.

    Raises:
        ValueError: the stated style names a position where the file has no keys.
    """
    if wanted.keys is not None:
        renames = to_canonical((t.key for t in tensors), wanted.keys)
        idle = idle_positions(renames.values(), wanted.keys)
        if idle:
            raise ValueError(
                f"keys={str(wanted.keys)!r} names a wrapper at {idle[0]!r}, "
                f"where {saved.ref} has no keys"
            )
        return wanted.keys, "stated"
    if saved.provenance.key_style == "recorded" and not averaged:
        return saved.file_keys, "recorded"
    return None


def join(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    target: Target,
    wanted: Wanted,
    known: tuple[KeyStyle, KeysFrom] | None,
) -> tuple[Joined, Difference]:
    """Join the file's tensors with the target's by canonical key.

    Raises:
        RefusedLoadError: nothing fits, or keys or shapes differ that `allow=` doesn't cover, or no
            style fits.
        AmbiguousError: several styles fit, each in its own way.
        ValueError: a pattern of `allow=` covers nothing.
    """
    tried: list[Way] = []
    if known is None:
        style, tried = _proved(saved, tensors, target, wanted)
        joined = read_keys(saved, tensors, (style, "inferred"))
    else:
        joined = read_keys(saved, tensors, known)
    difference = _difference(saved, tensors, target, joined)
    excused = {k for k in difference.keys if any(_globs(k, p) for p in wanted.allow)}
    left = [k for k in difference.keys if k not in excused]
    if left or not (difference.matched or difference.filled):
        raise _refusal(saved, tensors, target, joined, difference, left, tried)
    for pattern in wanted.allow:
        if not any(_globs(key, pattern) for key in difference.keys):
            fitting = sum(_globs(t.canonical, pattern) for _, t in difference.matched)
            raise ValueError(
                f"allow={pattern!r} excuses nothing: "
                + (f"the {fitting} keys that it matches fit" if fitting else "no key matches it")
            )
    return joined, difference


def _globs(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, pattern)


def _proved(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, wanted: Wanted
) -> tuple[KeyStyle, list[Way]]:
    """Return the style that fits; of none, the best, whose difference the caller refuses."""
    raw: dict[str, tuple[int, ...] | None] = {t.key: t.shape for t in tensors}
    raw.update(dict.fromkeys(saved.others))
    wants: dict[str, tuple[int, ...] | None] = {t.canonical: t.shape for t in target.tensors}
    wants.update(dict.fromkeys(target.others))
    found = ways(raw, wants)
    whole = [w for w in found if is_whole(w, raw, wants, target.ties)]
    if len(whole) == 1:  # never more, see keys.candidates
        return whole[0].style, found
    fitting = [w for w in found if w.matched and _all_excused(saved, tensors, target, w, wanted)]
    if len(fitting) > 1:
        lines = [f"  keys={str(w.style)!r}: {len(w.matched)} tensors fit" for w in fitting]
        raise AmbiguousError(
            f"how the keys of {saved.ref} are wrapped is not recorded, and with allow= several "
            "ways fit the net:\n" + "\n".join(lines),
            hint=f"state it by hand: keys={str(fitting[0].style)!r} (or --keys)",
            candidates=[str(w.style) for w in fitting],
        )
    if fitting:
        return fitting[0].style, found
    return found[0].style, found


def _all_excused(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, way: Way, wanted: Wanted
) -> bool:
    joined = read_keys(saved, tensors, (way.style, "inferred"))
    keys = _difference(saved, tensors, target, joined).keys
    return all(any(_globs(k, p) for p in wanted.allow) for k in keys)


def _difference(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, joined: Joined
) -> Difference:
    wants = {t.canonical: t for t in target.tensors}
    has = {joined.renames[t.key]: t for t in tensors if t.key not in joined.of_wrapper}
    matched: list[tuple[SavedTensor, TargetTensor]] = []
    misshapen: list[tuple[SavedTensor, TargetTensor]] = []
    for canonical, tensor in has.items():
        twin = wants.get(canonical)
        if twin is not None:
            (matched if twin.shape == tensor.shape else misshapen).append((tensor, twin))
    filled = _filled(saved, target, has, wants)
    used = {s.key for s, _ in filled}
    fills = {t.canonical for _, t in filled}
    others = [(raw, joined.renames[raw]) for raw in saved.others]
    return Difference(
        matched=tuple(matched),
        filled=tuple(filled),
        others=tuple((raw, c) for raw, c in others if c in target.others),
        missing=(
            *(c for c in wants if c not in has and c not in fills),
            *(c for c in target.others if c not in {k for _, k in others}),
        ),
        unexpected=(
            *(c for c, t in has.items() if c not in wants and t.key not in used),
            *(c for _, c in others if c not in target.others),
        ),
        misshapen=tuple(misshapen),
    )


def _filled(
    saved: Saved,
    target: Target,
    has: Mapping[str, SavedTensor],
    wants: Mapping[str, TargetTensor],
) -> list[tuple[SavedTensor, TargetTensor]]:
    """Return the target's tensors that the file holds under a tied name only."""
    found: dict[str, tuple[SavedTensor, TargetTensor]] = {}
    for group in (*target.ties, *saved.ties):
        source = next((has[name] for name in group if name in has), None)
        for name in group:
            twin = None if name in has else wants.get(name)
            if source is not None and twin is not None and twin.shape == source.shape:
                found.setdefault(name, (source, twin))
    return list(found.values())


# --- refusals -------------------------------------------------------------------------------------


def _refusal(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    target: Target,
    joined: Joined,
    difference: Difference,
    left: Sequence[str],
    tried: Sequence[Way],
) -> RefusedLoadError:
    shapes = {t.canonical: (s, t) for s, t in difference.misshapen}
    missing = [k for k in difference.missing if k in set(left) or not difference.matched]
    unexpected = [k for k in difference.unexpected if k in set(left) or not difference.matched]
    misshapen = [k for k in shapes if k in set(left) or not difference.matched]
    counts = f"{len(tensors)} tensors in the file, {len(target.tensors)} in the net"
    if difference.matched:
        parts = [
            f"{len(keys)} {what}"
            for keys, what in (
                (missing, "missing"), (unexpected, "unexpected"), (misshapen, "mis-shaped"),
            )
            if keys
        ]  # fmt: skip
        lines = [f"{saved.ref} doesn't fit the net: {', '.join(parts)} ({counts})"]
    else:
        lines = [f"no tensor of {saved.ref} fits the net ({counts})"]
    if missing:
        lines.append(f"  missing (in the net, not in the file): {_few(missing)}")
    if unexpected:
        lines.append(f"  unexpected (in the file, not in the net): {_few(unexpected)}")
    if misshapen:
        lines += [
            f"  mis-shaped: {k!r} is {there.shape} in the file, {here.shape} in the net"
            for k, (there, here) in ((k, shapes[k]) for k in misshapen[:3])
        ]
        if len(misshapen) > 3:
            lines.append(f"  … and {len(misshapen) - 3} more")
    lines += _nearest(missing, unexpected)
    if tried:
        lines += _tried(saved, tensors, target, tried)
    elif joined.style:
        lines.append(f"  the file's keys are read as {str(joined.style)!r} ({joined.source})")
    return RefusedLoadError("\n".join(lines), hint=_cure(tensors, difference, left, tried))


def _tried(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, tried: Sequence[Way]
) -> list[str]:
    """Say how the file's keys were read, for a file whose record doesn't."""
    raw = [t.key for t in tensors]
    wants = {t.canonical: t.shape for t in target.tensors}
    shapes = {t.key: t.shape for t in tensors}
    styles = list(dict.fromkeys([PLAIN, *(w.style for w in tried), guess_style(raw)]))
    lines = ["  how its keys are wrapped is not recorded; tried:"]
    for style in styles[:5]:
        renames = to_canonical(raw, style)
        fit = sum(wants.get(c) == shapes[r] for r, c in renames.items())
        reading = f"keys={str(style)!r}" + ("" if style else " (as they are)")
        lines.append(f"    {reading}: {fit} of {len(wants)} fit")
    half, head = _half_wrapped(raw)
    if half:
        lines.append(
            f"    {half} of {len(raw)} keys start with {head!r}, the rest don't: no wrapper does "
            "that, so nothing is stripped"
        )
    return lines


def _half_wrapped(raw: Sequence[str]) -> tuple[int, str]:
    """Return how many keys start with a token that others lack, and the token; or 0."""
    for token in WRAPPER_TOKENS:
        many = sum(key.startswith(f"{token}.") for key in raw)
        if 0 < many < len(raw) and not guess_style(raw):
            return many, f"{token}."
    return 0, ""


def _cure(
    tensors: Sequence[SavedTensor],
    difference: Difference,
    left: Sequence[str],
    tried: Sequence[Way],
) -> str:
    if tried and difference.missing and _half_wrapped([t.key for t in tensors])[0]:
        return "write all keys of the file in one form, then push it again"
    if not difference.matched:
        if tried:
            return (
                "if it is this model's, state how its keys are wrapped: keys='module.' (or --keys)"
            )
        return "is it this model's? reg.fits(net) lists the checkpoints that fit a net"
    patterns = list(dict.fromkeys(f"{k.rpartition('.')[0]}.*" if "." in k else k for k in left))
    if len(patterns) > 4:
        patterns = list(dict.fromkeys(f"{k.partition('.')[0]}.*" if "." in k else k for k in left))
    shown = patterns if len(patterns) <= 4 else ["…"]
    return f"to load the rest and leave those as they are: allow={shown}"


def _nearest(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    pool = list(unexpected[:500])
    pairs = (
        (key, difflib.get_close_matches(key, pool, n=1, cutoff=0.6)) for key in missing[:3] if pool
    )
    return [f"  nearest to {key!r} in the file: {near[0]!r}" for key, near in pairs if near]


def _few(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys[:3])) + (
        f", … and {len(keys) - 3} more" if len(keys) > 3 else ""
    )


# --- no target ------------------------------------------------------------------------------------


def written_keys(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    wanted: Wanted,
    known: tuple[KeyStyle, KeysFrom] | None,
) -> tuple[Joined, Mapping[str, str], KeyStyle]:
    """Return the file's keys, canonical key -> key to write, and the style that comes out, without
    a target.

    Raises:
        RefusedLoadError: other keys are asked for than the file's, and how these are wrapped isn't
            known.
    """
    raw = [t.key for t in tensors] + list(saved.others)
    if known is None:
        guess = guess_style(raw)
        if wanted.out_keys is not None and guess:
            raise RefusedLoadError(
                f"how the keys of {saved.ref} are wrapped is not recorded: they look like "
                f"{str(guess)!r}, but a submodule may be called so, and a guess may cut real names",
                hint=f"state it, which records it: ckreg push FILE --keys {str(guess)!r} (--keys "
                "'' for plain); or leave the keys as they are",
            )
    joined = read_keys(saved, tensors, known or (PLAIN, "as they are"))
    out = wanted.out_keys or PLAIN
    written = to_raw(_weights_only(joined), out)
    idle = idle_positions(written, out) if out != saved.key_style else ()
    if idle:
        raise ValueError(
            f"keys={str(out)!r} names a wrapper at {idle[0]!r}, where {saved.ref} has no keys"
        )
    return joined, written, out


def _weights_only(joined: Joined) -> Iterable[str]:
    return [c for raw, c in joined.renames.items() if raw not in joined.of_wrapper]
