"""Canonical keys and raw keys: wrapper tokens taken out and put in, and the style of a file.

Law: a wrapper holds one module and nothing else, so a token may go only where every key below that
module has it; nothing is ever stripped from some keys and left on others. Renaming is by position,
never by a prefix's length. Knows keys and shapes; nothing of files, records or devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .errors import RefusedLoadError
from .signature import WRAPPER_TOKENS, KeyStyle

Shapes = Mapping[str, tuple[int, ...] | None]
"""Keys with their shapes; None for an entry that is no tensor (`_extra_state`)."""

AVERAGED: Final = "n_averaged"
"""AveragedModel's own buffer, beside its token `module`: wrapper state, no weight of the net."""

PLAIN: Final = KeyStyle()

_MOST_WAYS: Final = 16
"""How many ways `ways` returns at most: more are as ambiguous as two."""

_Path = tuple[str, ...]


def to_canonical(raw_keys: Iterable[str], style: KeyStyle) -> dict[str, str]:
    """Return raw key -> canonical key, in the order given.

    A wrapper's own `n_averaged` becomes `<canonical position>.n_averaged`; see `wrapper_state`.

    Raises:
        RefusedLoadError: a key lacks a token where the style says that a wrapper sits, or two raw
            keys become one canonical key.

    Example:
        >>> to_canonical(["features.module.0.weight"], KeyStyle.parse("features.module."))
        {'features.module.0.weight': 'features.0.weight'}
    """
    renames: dict[str, str] = {}
    raw_of: dict[str, str] = {}
    lacking: list[str] = []
    wraps = _by_path(style)
    for raw in raw_keys:
        canonical, _ = _stripped(raw, wraps)
        if canonical is None:
            lacking.append(raw)
            continue
        twin = raw_of.setdefault(canonical, raw)
        if twin != raw:
            raise RefusedLoadError(
                f"with the key style {str(style)!r} the keys {twin!r} and {raw!r} are both "
                f"{canonical!r}: one would overwrite the other",
                hint="state the style that the file has: keys='module.' (or --keys), keys='' is "
                "plain",
            )
        renames[raw] = canonical
    if lacking:
        shown = ", ".join(map(repr, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        raise RefusedLoadError(
            f"{len(lacking)} of {len(lacking) + len(renames)} keys lack the wrapper that the key "
            f"style {str(style)!r} puts there: {shown}",
            hint="a wrapper is on all keys of its module or on none: state the style that the "
            "file has with keys='…' (or --keys); keys='' is plain",
        )
    return renames


def to_raw(canonical_keys: Iterable[str], style: KeyStyle) -> dict[str, str]:
    """Return canonical key -> raw key, in the order given: the inverse of `to_canonical`.

    Example:
        >>> to_raw(["0.weight"], KeyStyle.parse("module._orig_mod."))
        {'0.weight': 'module._orig_mod.0.weight'}
    """
    wraps = _by_path(style)
    if not wraps:
        return {key: key for key in canonical_keys}
    deepest = max(map(len, wraps))
    renames: dict[str, str] = {}
    for key in canonical_keys:
        segments = key.split(".")
        raw: list[str] = []
        for at, segment in enumerate(segments):
            if at <= deepest:
                raw.extend(wraps.get(tuple(segments[:at]), ()))
            raw.append(segment)
        renames[key] = ".".join(raw)
    return renames


def wrapper_state(raw_keys: Iterable[str], style: KeyStyle) -> dict[str, str]:
    """Return raw key -> name of those keys that belong to a wrapper itself: AveragedModel's
    counter.

    Example:
        >>> wrapper_state(["n_averaged", "module.weight"], KeyStyle.parse("module."))
        {'n_averaged': 'n_averaged'}
    """
    wraps = _by_path(style)
    found: dict[str, str] = {}
    for raw in raw_keys:
        canonical, of_wrapper = _stripped(raw, wraps)
        if of_wrapper and canonical is not None:
            found[raw] = canonical
    return found


def idle_positions(canonical_keys: Iterable[str], style: KeyStyle) -> tuple[str, ...]:
    """Return a style's positions below which no key lies: a slip, in a style stated by hand."""
    idle = set(_by_path(style))
    for key in canonical_keys:
        if not idle:
            break
        segments = tuple(key.split("."))
        idle -= {
            path for path in idle if len(path) < len(segments) and segments[: len(path)] == path
        }
    return tuple(sorted(map(".".join, idle)))


def guess_style(raw_keys: Iterable[str]) -> KeyStyle:
    """Return the style that a file's own keys suggest: a token at every module that has only that
    child.

    It is a guess (a real submodule may be called `module`): mark it inferred, show it, never load
    by it.

    Example:
        >>> str(guess_style(["features.module.0.weight", "fc.weight"]))
        'features.module.'
    """
    wraps: dict[_Path, _Path] = {}
    stack: list[tuple[_Node, _Path]] = [(_tree(dict.fromkeys(raw_keys)), ())]
    while stack:
        node, path = stack.pop()
        tokens: list[str] = []
        while (inner := _wrapped(node)) is not None:
            token, node = inner
            tokens.append(token)
        if tokens:
            wraps[path] = tuple(tokens)
        stack += [(child, (*path, name)) for name, child in node.children.items() if child.children]
    return _style(wraps)


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One way to take wrapper tokens out of a file's keys, and how it fits a target.

    Attributes:
        style: what is taken out.
        matched: raw key -> target key, where names and shapes agree.
        named: how many names agree, whatever their shapes.
    """

    style: KeyStyle
    matched: Mapping[str, str]
    named: int


def ways(raw: Shapes, target: Shapes) -> list[Way]:
    """Return the ways to take tokens out that fit a target best, none of which betters another.

    Deletions that give the same rename map are one way, named by its outermost tokens. Leaving all
    keys as they are is one of the ways. There is always at least one; at most 16 are returned.

    Args:
        raw: the file's keys.
        target: the target's canonical keys.
    """
    found = _best(_resolve(_tree(raw), _tree(target), ()))
    return [Way(_style(f.wraps), f.matched, f.named) for f in found]


def candidates(
    raw: Shapes, target: Shapes, *, ties: Sequence[Sequence[str]] = ()
) -> list[KeyStyle]:
    """Return the styles under which a file's keys are the target's, one to one and with equal
    shapes.

    The plain style is among those tried. A deletion happens at a module, and a module's branches
    keep their names, so at most one rename map can do it; the list is empty or has one element.

    Args:
        raw: the file's keys.
        target: the target's canonical keys.
        ties: groups of the target's keys that are one tensor: a file may hold just one of each
            (safetensors).
    """
    return [w.style for w in ways(raw, target) if is_whole(w, raw, target, ties)]


def is_whole(way: Way, raw: Shapes, target: Shapes, ties: Sequence[Sequence[str]] = ()) -> bool:
    """Return whether a way leaves nothing over, but for wrapper state and tied names."""
    left = set(raw) - set(way.matched)
    reached = set(way.matched.values())
    state = wrapper_state(left, way.style)
    # a net's own `n_averaged` beside the wrapper's would be two keys with one canonical name
    if left != set(state) or not reached.isdisjoint(state.values()):
        return False
    tied = {key for group in ties if not reached.isdisjoint(group) for key in group}
    return set(target) <= reached | tied


# --- styles by path -------------------------------------------------------------------------------


def _by_path(style: KeyStyle) -> dict[_Path, _Path]:
    # () is the root; a string path could not tell it from a module whose name is empty
    return {tuple(path.split(".")) if path else (): tokens for path, tokens in style.wraps}


def _style(wraps: Mapping[_Path, _Path]) -> KeyStyle:
    return KeyStyle(tuple(sorted((".".join(path), tokens) for path, tokens in wraps.items())))


def _stripped(raw: str, wraps: Mapping[_Path, _Path]) -> tuple[str | None, bool]:
    """Return the canonical key (None: a token is lacking), and whether it is a wrapper's own."""
    if not wraps:
        return raw, False
    deepest = max(map(len, wraps))
    rest = raw.split(".")
    kept: list[str] = []
    at = 0
    while at < len(rest) and len(kept) <= deepest:
        tokens = wraps.get(tuple(kept), ())
        inside = at + len(tokens)
        # a wrapper holds a module, so something must follow its tokens
        if inside >= len(rest) or tuple(rest[at:inside]) != tokens:
            outer = rest[at:-1]
            if rest[-1] == AVERAGED and (*outer, "module") == tokens[: len(outer) + 1]:
                return ".".join([*kept, AVERAGED]), True
            return None, False
        kept.append(rest[inside])
        at = inside + 1
    return ".".join([*kept, *rest[at:]]), False


# --- trees of keys --------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Node:
    """A module, or a tensor (`key` is set), or in an odd file both."""

    children: dict[str, _Node] = field(default_factory=dict)
    key: str | None = None
    shape: tuple[int, ...] | None = None


def _tree(keys: Shapes) -> _Node:
    root = _Node()
    for key, shape in keys.items():
        node = root
        for segment in key.split("."):
            node = node.children.setdefault(segment, _Node())
        node.key, node.shape = key, shape
    return root


def _wrapped(node: _Node) -> tuple[str, _Node] | None:
    """Return the token and the inner module if a node has that one child only, else None."""
    if node.key is not None:
        return None
    names = list(node.children)
    if len(names) == 2 and AVERAGED in names and "module" in names:
        if node.children[AVERAGED].children:
            return None
        names = ["module"]
    if len(names) != 1 or names[0] not in WRAPPER_TOKENS:
        return None
    inner = node.children[names[0]]
    return (names[0], inner) if inner.children and inner.key is None else None


# --- fitting one tree to another ------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Fit:
    """What a way does below a module; `lost` counts the counters read as tensors in vain."""

    wraps: dict[_Path, _Path] = field(default_factory=dict)
    matched: dict[str, str] = field(default_factory=dict)
    named: int = 0
    lost: int = 0

    def take(self, other: _Fit) -> None:
        self.wraps |= other.wraps
        self.matched |= other.matched
        self.named += other.named
        self.lost += other.lost

    def compare(self, raw: _Node, target: _Node) -> None:
        """Count one tensor against another."""
        if raw.key is not None and target.key is not None:
            self.named += 1
            if raw.shape == target.shape:
                self.matched[raw.key] = target.key

    def copy(self) -> _Fit:
        return _Fit(dict(self.wraps), dict(self.matched), self.named, self.lost)

    def wrap(self, path: _Path, token: str) -> _Fit:
        """Return the same with one more token taken out."""
        fit = self.copy()
        fit.wraps[path] = (*fit.wraps.get(path, ()), token)
        return fit

    def keep(self, raw: _Node, target: _Node) -> _Fit:
        """Return the same with a token read as a real child, a counter beside it as a tensor."""
        fit = self.copy()
        counter = raw.children.get(AVERAGED)
        if counter is not None:
            before = len(fit.matched)
            fit.compare(counter, target.children.get(AVERAGED, _Node()))
            fit.lost += before == len(fit.matched)
        return fit


def _resolve(raw: _Node, target: _Node, path: _Path) -> list[_Fit]:
    """Return the ways to fit what lies below two modules; recurses as deep as the target is."""
    # Every token of the chain is a wrapper (the target stays where it is) or a real child. Ways
    # that end at one place, with the same done to counters, are one: by the outermost tokens.
    places: dict[object, tuple[_Path, _Node, _Fit]] = {(): (path, target, _Fit())}
    while (inner := _wrapped(raw)) is not None:
        token, below = inner
        steps = [(at, node, fit.wrap(at, token)) for at, node, fit in places.values()]
        steps += [
            ((*at, token), node.children[token], fit.keep(raw, node))
            for at, node, fit in places.values()
            if token in node.children
        ]
        places = {(at, tuple(fit.matched), fit.lost): (at, node, fit) for at, node, fit in steps}
        raw = below
    return _best(
        [fit for at, node, base in places.values() for fit in _branches(raw, node, at, base)]
    )


def _branches(raw: _Node, target: _Node, path: _Path, base: _Fit) -> list[_Fit]:
    choices: list[list[_Fit]] = []
    for name, child in raw.children.items():
        twin = target.children.get(name)
        if twin is None:
            continue
        base.compare(child, twin)
        if child.children and twin.children:
            options = _resolve(child, twin, (*path, name))
            if len(options) == 1:
                base.take(options[0])
            else:
                choices.append(options)
    found: list[_Fit] = []
    for combination in itertools.islice(itertools.product(*choices), _MOST_WAYS):
        whole = base.copy()
        for part in combination:
            whole.take(part)
        found.append(whole)
    return found


def _best(fits: list[_Fit]) -> list[_Fit]:
    """Return those whose matches no other has and more; without any, no key is changed."""
    best: list[_Fit] = []
    for fit in sorted(fits, key=lambda f: (-len(f.matched), -f.named, f.lost, len(f.wraps))):
        if all(not fit.matched.items() <= other.matched.items() for other in best):
            best.append(fit)
    if not best[0].named:
        return [_Fit()]
    return best[:_MOST_WAYS]
