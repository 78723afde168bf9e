"""Which readings of a file's keys fit a target: all that could be meant, and how well each fits.

Law: nothing is stripped from some keys and left on others. A token is taken out only where a module
has that one child; an attribute is dropped only where no key outside of it names a tensor of the
target.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..errors import RefusedLoadError
from ..signature import WRAPPER_TOKENS, KeyStyle
from .readings import Reading
from .renaming import style_of, to_canonical, wrapper_state
from .trees import AVERAGED, Node, Path, Shapes, tree, wrapped

_MOST_WAYS: Final = 16
"""How many ways `ways` returns at most: more are as ambiguous as two."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One way to take wrapper tokens out of a file's keys, and how it fits a target.

    Attributes:
        reading: what is taken out, dropped or added.
        matched: raw key -> target key, where names and shapes agree.
        named: how many names agree, whatever their shapes.
    """

    reading: Reading
    matched: Mapping[str, str]
    named: int

    @property
    def style(self) -> KeyStyle:
        """The wrappers that are taken out."""
        return self.reading.style


def ways(raw: Shapes, target: Shapes) -> list[Way]:
    """Return the ways to take tokens out that fit a target best, none of which betters another.

    Deletions that give the same rename map are one way, named by its outermost tokens. Leaving all
    keys as they are is one of the ways. There is always at least one; at most 16 are returned.

    Args:
        raw: the file's keys.
        target: the target's canonical keys.
    """
    found = _best(_resolve(tree(raw), tree(target), ()))
    named = [Way(Reading(style_of(f.wraps)), f.matched, f.named) for f in found]
    return [w for w in named if _tells_apart(w.reading, raw)] or [_as_they_are(raw, target)]


def prefixed_ways(raw: Shapes, target: Shapes) -> list[Way]:
    """Return the ways by which the net lies one attribute deeper on one of the two sides, that fit
    any tensor; those that fit most come first.

    The attribute is never called like a wrapper. Keys outside of one that is dropped stay over; a
    way that would leave one which the target names too is none: that would be a partial strip.

    Args:
        raw: the file's keys.
        target: the target's canonical keys.
    """
    source, aim = tree(raw), tree(target)
    found = [
        *(w for w in _dropping(source, aim) if not _takes_apart(w.reading, raw, target)),
        *(w for w in _adding(source, aim) if _tells_apart(w.reading, raw)),
    ]
    return sorted(found, key=lambda w: -len(w.matched))[:_MOST_WAYS]


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
    state = {key: way.reading.place(n) for key, n in wrapper_state(left, way.style).items()}
    # a net's own `n_averaged` beside the wrapper's would be two keys with one canonical name
    if left != set(state) or not reached.isdisjoint(state.values()):
        return False
    tied = {key for group in ties if not reached.isdisjoint(group) for key in group}
    return set(target) <= reached | tied


# --- an attribute around the net ------------------------------------------------------------------


def _dropping(source: Node, aim: Node) -> Iterator[Way]:
    """Yield the ways that drop an attribute below the wrappers that are around everything."""
    node = source
    tokens: Path = ()
    while True:
        for name, child in node.children.items():
            if _is_attribute(name, child):
                outer: dict[Path, Path] = {(): tokens} if tokens else {}
                for fit in _resolve(child, aim, (name,)):
                    if fit.matched:
                        style = style_of({**fit.wraps, **outer})
                        yield Way(Reading(style, drop=name), fit.matched, fit.named)
        inner = wrapped(node)
        if inner is None:
            return
        node, tokens = inner[1], (*tokens, inner[0])


def _adding(source: Node, aim: Node) -> Iterator[Way]:
    for name, child in aim.children.items():
        if _is_attribute(name, child):
            for fit in _resolve(source, child, ()):
                if fit.matched:
                    yield Way(Reading(style_of(fit.wraps), add=name), fit.matched, fit.named)


def _is_attribute(name: str, node: Node) -> bool:
    return bool(name and node.children) and node.key is None and name not in WRAPPER_TOKENS


def _takes_apart(reading: Reading, raw: Shapes, target: Shapes) -> bool:
    """Return whether a key that isn't below the dropped attribute has a name that the target has,
    or that another key would get; or whether two keys would become one all the same.
    """
    if not _tells_apart(reading, raw):
        return True
    names = to_canonical(raw, reading.style).values()
    inside = {place for name in names if (place := reading.place(name)) is not None}
    outside = [name for name in names if reading.place(name) is None]
    return any(name in target or name in inside for name in outside)


def _tells_apart(reading: Reading, raw: Shapes) -> bool:
    """Return whether every key keeps a name of its own: a net's `n_averaged` may lie beside that of
    the wrapper that would be taken out.
    """
    try:
        to_canonical(raw, reading.style)
    except RefusedLoadError:
        return False
    return True


def _as_they_are(raw: Shapes, target: Shapes) -> Way:
    named = [key for key in raw if key in target]
    return Way(Reading(), {k: k for k in named if raw[k] == target[k]}, len(named))


# --- one tree and another ------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Fit:
    """What a way does below a module; `lost` counts the counters read as tensors in vain."""

    wraps: dict[Path, Path] = field(default_factory=dict)
    matched: dict[str, str] = field(default_factory=dict)
    named: int = 0
    lost: int = 0

    def take(self, other: _Fit) -> None:
        self.wraps |= other.wraps
        self.matched |= other.matched
        self.named += other.named
        self.lost += other.lost

    def compare(self, raw: Node, target: Node) -> None:
        """Count one tensor against another."""
        if raw.key is not None and target.key is not None:
            self.named += 1
            if raw.shape == target.shape:
                self.matched[raw.key] = target.key

    def copy(self) -> _Fit:
        return _Fit(dict(self.wraps), dict(self.matched), self.named, self.lost)

    def wrap(self, path: Path, token: str) -> _Fit:
        """Return the same with one more token taken out."""
        fit = self.copy()
        fit.wraps[path] = (*fit.wraps.get(path, ()), token)
        return fit

    def keep(self, raw: Node, target: Node) -> _Fit:
        """Return the same with a token read as a real child, a counter beside it as a tensor."""
        fit = self.copy()
        counter = raw.children.get(AVERAGED)
        if counter is not None:
            before = len(fit.matched)
            fit.compare(counter, target.children.get(AVERAGED, Node()))
            fit.lost += before == len(fit.matched)
        return fit


def _resolve(raw: Node, target: Node, path: Path) -> list[_Fit]:
    """Return the ways to fit what lies below two modules; recurses as deep as the target is."""
    # Every token of the chain is a wrapper (the target stays where it is) or a real child. Ways
    # that end at one place, with the same done to counters, are one: by the outermost tokens.
    places: dict[object, tuple[Path, Node, _Fit]] = {(): (path, target, _Fit())}
    while (inner := wrapped(raw)) is not None:
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


def _branches(raw: Node, target: Node, path: Path, base: _Fit) -> list[_Fit]:
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
