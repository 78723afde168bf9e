"""Canonical keys and raw keys: wrapper tokens taken out and put in, and the style of a file.

Law: a token is taken from all keys of its module or the renaming is refused; by position, never by
a prefix's length. Knows keys; nothing of files, records or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import RefusedLoadError
from ..signature import KeyStyle
from .trees import AVERAGED, Node, Path, tree, wrapped

PLAIN: Final = KeyStyle()


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
    wraps = by_path(style)
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
    wraps = by_path(style)
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


def spelled(canonical: str, style: KeyStyle) -> list[tuple[str, bool]]:
    """Return the segments of a canonical key's raw key, each with whether it is a wrapper's.

    Example:
        >>> spelled("fc.weight", KeyStyle.parse("module."))
        [('module', True), ('fc', False), ('weight', False)]
    """
    wraps = by_path(style)
    deepest = max(map(len, wraps), default=-1)
    segments = canonical.split(".")
    found: list[tuple[str, bool]] = []
    for at, segment in enumerate(segments):
        if at <= deepest:
            found += [(token, True) for token in wraps.get(tuple(segments[:at]), ())]
        found.append((segment, False))
    return found


def wrapper_state(raw_keys: Iterable[str], style: KeyStyle) -> dict[str, str]:
    """Return raw key -> name of those keys that belong to a wrapper itself: AveragedModel's
    counter.

    Example:
        >>> wrapper_state(["n_averaged", "module.weight"], KeyStyle.parse("module."))
        {'n_averaged': 'n_averaged'}
    """
    wraps = by_path(style)
    found: dict[str, str] = {}
    for raw in raw_keys:
        canonical, of_wrapper = _stripped(raw, wraps)
        if of_wrapper and canonical is not None:
            found[raw] = canonical
    return found


def idle_positions(canonical_keys: Iterable[str], style: KeyStyle) -> tuple[str, ...]:
    """Return a style's positions below which no key lies: a slip, in a style stated by hand."""
    idle = set(by_path(style))
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
    wraps: dict[Path, Path] = {}
    stack: list[tuple[Node, Path]] = [(tree(dict.fromkeys(raw_keys)), ())]
    while stack:
        node, path = stack.pop()
        tokens: list[str] = []
        while (inner := wrapped(node)) is not None:
            token, node = inner
            tokens.append(token)
        if tokens:
            wraps[path] = tuple(tokens)
        stack += [(child, (*path, name)) for name, child in node.children.items() if child.children]
    return style_of(wraps)


# --- styles by path -------------------------------------------------------------------------------


def by_path(style: KeyStyle) -> dict[Path, Path]:
    # () is the root; a string path could not tell it from a module whose name is empty
    return {tuple(path.split(".")) if path else (): tokens for path, tokens in style.wraps}


def style_of(wraps: Mapping[Path, Path]) -> KeyStyle:
    return KeyStyle(tuple(sorted((".".join(path), tokens) for path, tokens in wraps.items())))


def _stripped(raw: str, wraps: Mapping[Path, Path]) -> tuple[str | None, bool]:
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
