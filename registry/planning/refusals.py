"""Why a file doesn't fit a net, told so that the person can go on: what differs, and the cure.

Law: names the keys, never only their number; a structure that explains them is named with its own
cure. Decides nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from ..errors import RefusedLoadError
from ..keys import Reading, Way, guess_style, to_canonical
from ..signature import WRAPPER_TOKENS
from .difference import Difference, Joined
from .inputs import Saved, SavedTensor, Target
from .structures import Structure, structures


def refusal(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    target: Target,
    joined: Joined,
    difference: Difference,
    left: Sequence[str],
    *,
    tried: Sequence[Way],
    fits: Sequence[Reading],
) -> RefusedLoadError:
    """Return the error for keys that don't fit.

    Args:
        left: the canonical keys that `allow=` doesn't excuse.
        tried: the readings that were tried, for a file without a record.
        fits: other readings under which all would fit, for one whose keys are recorded or stated.
    """
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
    unread = {joined.renames[raw]: made for raw, made in saved.unbuildable.items()}
    lines += [
        f"  {name!r} is no tensor that can be read: {why_unread(made)}"
        for name, made in [i for i in unread.items() if i[0] in set(left)][:3]
    ]
    explained = structures(missing, unexpected)
    lines += [f"  {structure}" for structure in explained]
    if not explained:
        lines += _nearest(missing, unexpected)
    if tried:
        lines += _tried(tensors, target, tried)
    elif joined.reading:
        lines.append(f"  the file's keys are read as {str(joined.reading)!r} ({joined.source})")
    if left and all(key in unread for key in left):
        hint = UNREAD_CURE
    elif fits:
        lines.append(f"  under keys={str(fits[0])!r} all of them fit")
        hint = f"the net lies one attribute deeper on one side: keys={str(fits[0])!r} says so"
    elif explained:
        hint = _cures(explained)
        if not difference.matched:  # they explain a layer at most, where the whole net may differ
            hint = f"{_cure(tensors, difference, left, tried)}; or: {hint}"
    else:
        hint = _cure(tensors, difference, left, tried)
    return RefusedLoadError("\n".join(lines), hint=hint)


UNREAD_CURE: Final = (
    "save the weights as plain tensors, from a net that was filled: "
    "{k: v.detach().cpu() for k, v in net.state_dict().items()}"
)
"""What helps against tensors of a sort that isn't read."""


def why_unread(made: str) -> str:
    """Return what a tensor is, by the function that would have made it."""
    return next((why for word, why in _UNREAD if word in made), f"it is made by {made}")


_UNREAD: Final = (
    ("meta_tensor", "it was saved on the meta device, with a shape but no values"),
    ("sparse", "it is sparse, in a form that isn't known"),
    ("qtensor", "it is quantised, in a form that isn't known"),
    ("DTensor", "it is one rank's part of a DTensor"),
    ("ShardedTensor", "it is one rank's part of a ShardedTensor"),
    ("nested", "it is a nested tensor"),
)


def _cures(explained: Sequence[Structure]) -> str:
    return "; or: ".join(dict.fromkeys(s.cure for s in explained if s.cure))


def _tried(tensors: Sequence[SavedTensor], target: Target, tried: Sequence[Way]) -> list[str]:
    """Say how the file's keys were read, for a file whose record doesn't."""
    raw = [t.key for t in tensors]
    wants = {t.canonical: t.shape for t in target.tensors}
    shapes = {t.key: t.shape for t in tensors}
    guess = Reading(guess_style(raw))
    readings = list(dict.fromkeys([Reading(), *(w.reading for w in tried), guess]))
    lines = ["  how its keys are wrapped is not recorded; tried:"]
    for reading in readings[:5]:
        named = {key: reading.place(name) for key, name in to_canonical(raw, reading.style).items()}
        fit = sum(
            wants[name] == shapes[key]
            for key, name in named.items()
            if name is not None and name in wants
        )
        stated = f"keys={str(reading)!r}" + ("" if reading else " (as they are)")
        lines.append(f"    {stated}: {fit} of {len(wants)} fit")
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
