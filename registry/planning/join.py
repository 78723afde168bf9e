"""Joining the file's keys with the target's: its style, what fits, what is left over.

Law: a recorded or stated style is taken as it is; without one, only the target may prove it, by
exactly one way that fits; so too the attribute of a framework's module that held the net. What is
left over is refused, unless `allow=` names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..errors import AmbiguousError, RefusedLoadError
from ..keys import (
    PLAIN,
    Reading,
    Shapes,
    Way,
    guess_style,
    idle_positions,
    is_whole,
    prefixed_ways,
    to_canonical,
    to_raw,
    ways,
    wrapper_state,
)
from ..signature import KeyStyle
from .difference import Difference, Joined
from .inputs import Saved, SavedTensor, Target, TargetTensor, Wanted
from .plan import KeysFrom
from .refusals import refusal


def read_keys(
    saved: Saved, tensors: Sequence[SavedTensor], known: tuple[Reading, KeysFrom]
) -> Joined:
    """Return the maps that follow from a reading.

    Raises:
        RefusedLoadError: the keys aren't wrapped so, or two of them would become one.
    """
    raw = [t.key for t in tensors] + list(saved.others)
    reading, source = known
    named = to_canonical(raw, reading.style)
    states = wrapper_state(raw, reading.style)
    places = {key: reading.place(name) for key, name in named.items()}
    renames = {key: named[key] if place is None else place for key, place in places.items()}
    outside = frozenset(key for key, place in places.items() if place is None)
    if outside and len(set(renames.values())) < len(renames):
        inside = {renames[key] for key in raw if key not in outside}
        twin = next(key for key in raw if key in outside and renames[key] in inside)
        raise RefusedLoadError(
            f"{str(reading)!r} is not on all keys of {saved.ref}: {twin!r} lies outside, and a key "
            "inside would become the same",
            hint="an attribute that holds the net is on all its keys: keys='' leaves all as they "
            "are",
        )
    of_wrapper = {key: renames[key] for key in states}
    return Joined(reading, source, renames, of_wrapper, outside)


def known_reading(
    saved: Saved, tensors: Sequence[SavedTensor], wanted: Wanted, *, averaged: bool
) -> tuple[Reading, KeysFrom] | None:
    """Return how the keys are read as it was stated or recorded, or None.

    Args:
        averaged: the tensors are averaged weights that lie beside the live ones: the record is not
            about them.

    Raises:
        ValueError: the stated reading names a position or an attribute where the file has no keys.
    """
    if wanted.keys is not None:
        renames = to_canonical((t.key for t in tensors), wanted.keys.style)
        idle = idle_positions(renames.values(), wanted.keys.style)
        if idle:
            raise ValueError(
                f"keys={str(wanted.keys)!r} names a wrapper at {idle[0]!r}, "
                f"where {saved.ref} has no keys"
            )
        if all(wanted.keys.place(name) is None for name in renames.values()):
            raise ValueError(
                f"keys={str(wanted.keys)!r} drops {wanted.keys.drop!r}, "
                f"where {saved.ref} has no keys"
            )
        return wanted.keys, "stated"
    if saved.provenance.key_style == "recorded" and not averaged:
        return Reading(saved.file_keys), "recorded"
    return None


def placed(saved: Saved, reading: Reading) -> Saved:
    """Return what is saved with its recorded names (ties, optimizers' groups) as the target's."""
    if not (reading.drop or reading.add):
        return saved

    def names(group: Iterable[str]) -> tuple[str, ...]:
        return tuple(name if (p := reading.place(name)) is None else p for name in group)

    return replace(
        saved,
        ties=tuple(map(names, saved.ties)),
        optimizers={
            name: replace(o, groups=None if o.groups is None else tuple(map(names, o.groups)))
            for name, o in saved.optimizers.items()
        },
    )


def join(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    target: Target,
    wanted: Wanted,
    known: tuple[Reading, KeysFrom] | None,
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
        reading, tried = _proved(saved, tensors, target, wanted)
        joined = read_keys(saved, tensors, (reading, "inferred"))
    else:
        joined = read_keys(saved, tensors, known)
        _refuse_partial(saved, target, joined)
    difference = _difference(saved, tensors, target, joined)
    excused = {k for k in difference.keys if any(_globs(k, p) for p in wanted.allow)}
    left = [k for k in difference.keys if k not in excused]
    if left or not (difference.matched or difference.filled):
        raw, wants = _shapes(saved, tensors, target)
        if not tried:
            fits = [w for w in prefixed_ways(raw, wants) if is_whole(w, raw, wants, target.ties)]
            if known is not None and _holds(saved, known, fits):
                return join(saved, tensors, target, wanted, (fits[0].reading, "inferred"))
        raise refusal(
            saved, tensors, target, joined, difference, left,
            tried=tried, fits=[] if tried else [w.reading for w in fits],
        )  # fmt: skip
    for pattern in wanted.allow:
        if not any(_globs(key, pattern) for key in difference.keys):
            fitting = sum(_globs(t.canonical, pattern) for _, t in difference.matched)
            raise ValueError(
                f"allow={pattern!r} excuses nothing: "
                + (f"the {fitting} keys that it matches fit" if fitting else "no key matches it")
            )
    return joined, difference


def _holds(saved: Saved, known: tuple[Reading, KeysFrom], fits: Sequence[Way]) -> bool:
    """Say whether the one way that fits is the recorded one below an attribute that held the net.

    A framework's module around the net is no wrapper of torch's: the record knows its wrappers,
    and the net proves the attribute, as it does for the same file without a record.
    """
    return (
        saved.held
        and known[1] == "recorded"
        and [w.style for w in fits] == [known[0].style]
        and bool(fits[0].reading.drop)
    )


def _globs(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, pattern)


def _refuse_partial(saved: Saved, target: Target, joined: Joined) -> None:
    wants = {t.canonical for t in target.tensors}
    both = [key for key in joined.outside if joined.renames[key] in wants]
    if both:
        raise RefusedLoadError(
            f"{str(joined.reading)!r} is not on all keys of {saved.ref}: {min(both)!r} lies "
            "outside, and the net has a tensor of that name: nothing is stripped from some keys "
            "and left on others",
            hint="is the net itself under that attribute? keys='' leaves all keys as they are",
        )


def _shapes(saved: Saved, tensors: Sequence[SavedTensor], target: Target) -> tuple[Shapes, Shapes]:
    raw: dict[str, tuple[int, ...] | None] = {t.key: t.shape for t in tensors}
    raw.update(dict.fromkeys(saved.others))
    wants: dict[str, tuple[int, ...] | None] = {t.canonical: t.shape for t in target.tensors}
    wants.update(dict.fromkeys(target.others))
    return raw, wants


def _proved(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, wanted: Wanted
) -> tuple[Reading, list[Way]]:
    """Return the reading that fits, and all that were tried; of none, the best, whose difference
    the caller refuses.
    """
    raw, wants = _shapes(saved, tensors, target)
    found = ways(raw, wants)
    found += prefixed_ways(raw, wants)
    whole = [w for w in found if is_whole(w, raw, wants, target.ties)]
    fitting = whole or [
        w for w in found if w.matched and _all_excused(saved, tensors, target, w, wanted)
    ]
    if len(fitting) > 1:
        lines = [f"  keys={str(w.reading)!r}: {len(w.matched)} tensors fit" for w in fitting]
        excused = "" if whole else "with allow= "
        raise AmbiguousError(
            f"how the keys of {saved.ref} are wrapped is not recorded, and {excused}several "
            "ways fit the net:\n" + "\n".join(lines),
            hint=f"state it by hand: keys={str(fitting[0].reading)!r} (or --keys)",
            candidates=[str(w.reading) for w in fitting],
        )
    best = fitting or sorted(found, key=lambda w: -len(w.matched))
    return best[0].reading, found


def _all_excused(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, way: Way, wanted: Wanted
) -> bool:
    joined = read_keys(saved, tensors, (way.reading, "inferred"))
    keys = _difference(saved, tensors, target, joined).keys
    return all(any(_globs(k, p) for p in wanted.allow) for k in keys)


def _difference(
    saved: Saved, tensors: Sequence[SavedTensor], target: Target, joined: Joined
) -> Difference:
    wants = {t.canonical: t for t in target.tensors}
    kept = [t for t in tensors if t.key not in joined.of_wrapper]
    has = {joined.renames[t.key]: t for t in kept if t.key not in joined.outside}
    outside = [joined.renames[t.key] for t in kept if t.key in joined.outside]
    matched: list[tuple[SavedTensor, TargetTensor]] = []
    misshapen: list[tuple[SavedTensor, TargetTensor]] = []
    for canonical, tensor in has.items():
        twin = wants.get(canonical)
        if twin is not None:
            (matched if twin.shape == tensor.shape else misshapen).append((tensor, twin))
    filled = _filled(placed(saved, joined.reading), target, has, wants)
    used = {s.key for s, _ in filled}
    fills = {t.canonical for _, t in filled}
    others = [(raw, joined.renames[raw]) for raw in saved.others if raw not in joined.outside]
    outside += [joined.renames[raw] for raw in saved.others if raw in joined.outside]
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
            *outside,
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


# --- no target ------------------------------------------------------------------------------------


def written_keys(
    saved: Saved,
    tensors: Sequence[SavedTensor],
    wanted: Wanted,
    known: tuple[Reading, KeysFrom] | None,
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
    joined = read_keys(saved, tensors, known or (Reading(), "as they are"))
    if joined.outside:
        raise RefusedLoadError(
            f"{len(joined.outside)} of {len(raw)} keys of {saved.ref} lie outside of "
            f"{str(joined.reading)!r}, as {min(joined.outside)!r}: nothing is stripped from some "
            "keys and left on others",
            hint="load into the net (into=net, with allow= for the rest), or leave keys= out",
        )
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
