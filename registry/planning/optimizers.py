"""The optimizer re-map: PyTorch's state is positional, so positions are matched by parameter name.

Law: state never lands on a parameter that isn't proved to be its own. The proof is the record,
PyTorch's own `param_names`, or shapes that are all different; without one the resume is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from ..errors import RefusedLoadError
from .inputs import SavedOptimizer, TargetOptimizer
from .plan import OptimizerMove

_WEIGHTS_STILL: Final = "the weights load all the same: leave optimizer= out"

_MOMENTS: Final = frozenset({"step", "exp_avg", "exp_avg_sq"})
_NAMES: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "SGD": (frozenset(), frozenset({"momentum_buffer"})),
    "Adam": (_MOMENTS, frozenset({"max_exp_avg_sq"})),
    "AdamW": (_MOMENTS, frozenset({"max_exp_avg_sq"})),
    "RAdam": (_MOMENTS, frozenset()),
    "NAdam": (_MOMENTS | {"mu_product"}, frozenset()),
    "Adamax": (frozenset({"step", "exp_avg", "exp_inf"}), frozenset()),
    "RMSprop": (frozenset({"step", "square_avg"}), frozenset({"momentum_buffer", "grad_avg"})),
    "Adagrad": (frozenset({"step", "sum"}), frozenset()),
    "Adadelta": (frozenset({"step", "square_avg", "acc_delta"}), frozenset()),
}
"""What torch.optim's classes keep per parameter: always, and by option (torch 2.10)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a re-map needs to know of names.

    Attributes:
        shapes: the target's canonical key -> shape.
        renames: the file's raw key -> canonical key.
        saved_ties, target_ties: groups of canonical names that are one tensor, there and here.
    """

    shapes: Mapping[str, tuple[int, ...]]
    renames: Mapping[str, str]
    saved_ties: Sequence[Sequence[str]] = ()
    target_ties: Sequence[Sequence[str]] = ()


def remap(
    ref: str, name: str, saved: SavedOptimizer, target: TargetOptimizer, names: Names
) -> OptimizerMove:
    """Return where each position's state comes from.

    Raises:
        RefusedLoadError: another class, other parameters, or an order that can't be proved.
    """
    _same_class(ref, name, saved, target)
    if saved.unplaced and all(shape is None for shape in saved.state_shapes):
        raise RefusedLoadError(
            f"the optimizer {name!r} of {ref} keeps state for {saved.unplaced} parameters, and its "
            "param groups name none of them: all of it would be lost",
            hint=_WEIGHTS_STILL,
        )
    # Ties of either side name both: two states for one parameter, or one for two, differ in number.
    ties = (*names.saved_ties, *names.target_ties)
    wanted = _one_name(target.groups, ties)
    kept = _one_name(saved.groups, ties) if saved.groups is not None else None
    proof: Literal["recorded", "param_names", "shapes", "no state"] = "recorded"
    if kept is None:
        kept, proof = _by_param_names(saved, wanted, names), "param_names"
    if kept is None:
        return _by_shapes(ref, name, saved, target, names)
    if tuple(map(len, kept)) != saved.group_sizes:
        raise RefusedLoadError(
            f"the optimizer {name!r} of {ref} has groups of {list(saved.group_sizes)} parameters, "
            f"but its record names {[len(g) for g in kept]}",
            hint=_WEIGHTS_STILL,
        )
    order, groups = _matched(ref, name, kept, wanted)
    _same_shapes(ref, name, saved, order, target, names)
    return OptimizerMove(name, target.cls, order, groups, proof)


def _same_class(ref: str, name: str, saved: SavedOptimizer, target: TargetOptimizer) -> None:
    short = target.cls.rpartition(".")[2]
    if saved.cls is not None:
        if saved.cls == target.cls:
            return
        # torch.optim.Adam and torch.optim.adam.Adam are one class
        ours = saved.cls.startswith("torch.optim.") and target.cls.startswith("torch.optim.")
        if ours and saved.cls.rpartition(".")[2] == short:
            return
        raise RefusedLoadError(
            f"the optimizer {name!r} of {ref} is a {saved.cls}, the one to fill is a {target.cls}: "
            "the state of one means nothing to the other",
            hint="fill one of that class, or leave optimizer= out: the weights load all the same",
        )
    if (
        saved.state_names is None
        or short not in _NAMES
        or not target.cls.startswith("torch.optim.")
    ):
        return
    needed, optional = _NAMES[short]
    found = frozenset(saved.state_names)
    if found and not (needed <= found <= needed | optional):
        raise RefusedLoadError(
            f"the optimizer {name!r} of {ref} keeps {', '.join(sorted(found))} per parameter, a "
            f"{short} keeps {', '.join(sorted(needed or optional))}: it was another class",
            hint=_WEIGHTS_STILL,
        )


def _one_name(
    groups: tuple[tuple[str, ...], ...], ties: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """Call a tied parameter by the first of its names, whichever the optimizer saw."""
    first = {name: min(group) for group in ties for name in group}
    return tuple(tuple(first.get(name, name) for name in group) for group in groups)


def _by_param_names(
    saved: SavedOptimizer, wanted: tuple[tuple[str, ...], ...], names: Names
) -> tuple[tuple[str, ...], ...] | None:
    """Return PyTorch's own names as canonical ones, if they are the target's in some reading."""
    if saved.param_names is None:
        return None
    raw = saved.param_names
    ties = [*names.saved_ties, *names.target_ties]
    known = {n for group in wanted for n in group}
    readings = [tuple(tuple(names.renames.get(n, n) for n in group) for group in raw), raw]
    for reading in readings:
        canonical = _one_name(reading, ties)
        if {n for group in canonical for n in group} == known:
            return canonical
    return None


def _matched(
    ref: str, name: str, kept: tuple[tuple[str, ...], ...], wanted: tuple[tuple[str, ...], ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    groups = _same_groups([frozenset(g) for g in kept], [frozenset(g) for g in wanted])
    # lengths too: a name that a record repeats would vanish in its set
    if groups is None or sorted(map(len, kept)) != sorted(map(len, wanted)):
        _other_groups(ref, name, kept, wanted)
    position = {n: i for i, n in enumerate(n for group in kept for n in group)}
    return tuple(position[n] for group in wanted for n in group), groups


def _same_groups(kept: Sequence[Hashable], wanted: Sequence[Hashable]) -> tuple[int, ...] | None:
    free: dict[Hashable, list[int]] = {}
    for index, group in enumerate(kept):
        free.setdefault(group, []).append(index)
    found: list[int] = []
    for group in wanted:
        if not free.get(group):
            return None
        found.append(free[group].pop(0))
    return tuple(found)


def _other_groups(
    ref: str, name: str, kept: tuple[tuple[str, ...], ...], wanted: tuple[tuple[str, ...], ...]
) -> NoReturn:
    there, here = ({n for g in side for n in g} for side in (kept, wanted))
    lines = [
        (
            f"the optimizer {name!r} of {ref} has other param groups than the one to fill: "
            f"{len(kept)} groups of {[len(g) for g in kept]} parameters there, {len(wanted)} of "
            f"{[len(g) for g in wanted]} here"
        )
    ]
    for what, extra in (("only in the file", there - here), ("only here", here - there)):
        if extra:
            lines.append(f"  {what}: {_few(sorted(extra))}")
    if there == here:
        lines.append("  the parameters are the same, but grouped in another way")
    raise RefusedLoadError(
        "\n".join(lines),
        hint="group the optimizer's parameters as they were, or leave optimizer= out: the weights "
        "load all the same",
    )


def _same_shapes(
    ref: str,
    name: str,
    saved: SavedOptimizer,
    order: tuple[int, ...],
    target: TargetOptimizer,
    names: Names,
) -> None:
    if saved.groups is not None and target.cls.rpartition(".")[2] not in _NAMES:
        return  # e.g. Adafactor: what it keeps has not the parameter's shape, and names are proof
    for param, position in zip((n for g in target.groups for n in g), order, strict=True):
        was = saved.state_shapes[position] if position < len(saved.state_shapes) else None
        now = names.shapes.get(param)
        if was is not None and now is not None and was != now:
            raise RefusedLoadError(
                f"the optimizer {name!r} of {ref} has state of shape {was} for {param!r}, which is "
                f"{now} in the net",
                hint=_WEIGHTS_STILL,
            )


def _by_shapes(
    ref: str, name: str, saved: SavedOptimizer, target: TargetOptimizer, names: Names
) -> OptimizerMove:
    """Prove the order by distinct shapes, or by there being nothing to put in order."""
    params = [n for group in target.groups for n in group]
    here = [names.shapes.get(n) for n in params]
    there = saved.state_shapes
    sizes = tuple(len(g) for g in target.groups)
    if sum(sizes) == sum(saved.group_sizes):
        if len(sizes) == 1 == len(saved.group_sizes) and all(s is None for s in there):
            return OptimizerMove(name, target.cls, tuple(range(len(params))), (0,), "no state")
        distinct = None not in here and len(set(here)) == len(here)
        if distinct and len(there) == len(here) and set(there) == set(here):
            groups = _same_groups(_grouped(there, saved.group_sizes), _grouped(here, sizes))
            if groups is not None and len(sizes) == len(saved.group_sizes):
                order = tuple(there.index(shape) for shape in here)
                return OptimizerMove(name, target.cls, order, groups, "shapes")
    twins = [shape for shape, many in Counter(here).items() if many > 1 and shape is not None]
    why = f"{len(twins)} shapes occur more than once, as {twins[0]}" if twins else "shapes differ"
    raise RefusedLoadError(
        f"{ref} doesn't say which parameter each state of the optimizer {name!r} belongs to "
        f"(PyTorch keeps positions, not names), and the shapes don't prove the order: {why}",
        hint=f"{_WEIGHTS_STILL}; what reg.save writes keeps the names",
    )


def _grouped(
    shapes: Sequence[tuple[int, ...] | None], sizes: Sequence[int]
) -> list[frozenset[tuple[int, ...] | None]]:
    found: list[frozenset[tuple[int, ...] | None]] = []
    at = 0
    for size in sizes:
        found.append(frozenset(shapes[at : at + size]))
        at += size
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4])) + (f", … ({len(names)})" if len(names) > 4 else "")
