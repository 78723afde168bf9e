"""Making the load plan: every decision that needs no torch, in the order in which it is refused.

Law: pure. Bad wishes first, then which weights, devices, keys, values, dtypes, and what else is
restored; nothing of the file's tensors is read and nothing of the target is touched.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from ..errors import RefusedLoadError
from ..keys import PLAIN, guess_style
from ..signature import KeyStyle
from .devices import Placement, place
from .difference import Difference, Joined
from .dtypes import check_casts, widens
from .forms import check_forms
from .inputs import Choice, Machine, Saved, SavedTensor, Target, TargetTensor, Wanted
from .join import join, known_reading, placed, written_keys
from .memory import memory_of
from .plan import LoadPlan, Move, Note
from .refusals import UNREAD_CURE, why_unread
from .restore import Restored, restore
from .text import by_hand

_ALL_FIT = Difference((), (), (), (), (), ())


def make_plan(
    saved: Saved, target: Target | None, wanted: Wanted, machine: Machine | None
) -> LoadPlan:
    """Plan a load.

    Args:
        saved: the file and its record.
        target: the net to fill; None: a state dict is wanted.
        wanted: what the caller asked for.
        machine: what there is here; None: a device is taken as said.

    Raises:
        RefusedLoadError: the load would be wrong.
        AmbiguousError: the keys fit in several ways.
        ValueError: wishes that contradict each other, or a pattern of `allow=` that covers nothing.
    """
    _check(target, wanted)
    choice, tensors = _chosen(saved, wanted)
    placement = place(saved, tensors, target, wanted.device, machine)
    known = known_reading(saved, tensors, wanted, averaged=tensors is saved.ema)
    if target is None:
        _all_readable(saved)
        joined, written, out = written_keys(saved, tensors, wanted, known)
        difference = _ALL_FIT
        moves = [
            _move(t, joined.renames[t.key], written[joined.renames[t.key]], None, placement)
            for t in tensors
            if t.key not in joined.of_wrapper
        ]
        others = tuple((raw, written[joined.renames[raw]]) for raw in saved.others)
        if not moves:
            raise RefusedLoadError(f"{saved.ref} holds no tensors to load")
    else:
        joined, difference = join(saved, tensors, target, wanted, known)
        out = target.key_style
        pairs = [*difference.matched, *difference.filled]
        check_forms(saved.ref, pairs)
        check_casts(saved.ref, pairs, wanted.cast)
        moves = [_move(s, t.canonical, t.key, t, placement) for s, t in pairs]
        others = difference.others
    saved = placed(saved, joined.reading)
    by_key = {t.key: t for t in tensors}
    _has_values(saved, [by_key[m.source] for m in moves])
    if target is not None:
        _meta(saved, target, difference)
    rest = restore(saved, target, wanted, joined, choice)
    assign = target is not None and any(t.meta for t in target.tensors)
    casts = any(m.dtype != m.to_dtype for m in moves)
    to_read = _bytes([by_key[m.source] for m in moves])
    plan = LoadPlan(
        ref=saved.ref,
        reader=saved.container,
        into_target=target is not None,
        weights=choice,
        where=(saved.ema_where or "") if tensors is saved.ema else saved.where,
        map_location=placement.map_location,
        device_reason=placement.reason,
        moves=tuple(moves),
        others=others,
        reading=joined.reading,
        out_keys=out,
        keys_from=joined.source,
        dtype="exact" if not casts or wanted.cast is None else wanted.cast,
        assign=assign,
        retie=_target_groups(target) if target is not None and assign else (),
        must_equal=_must_equal(target, difference) if target is not None else (),
        rebuild=target.nonpersistent if target is not None and assign else (),
        wrapper_state=tuple(rest.wrapper_state),
        optimizers=tuple(rest.optimizers),
        scheduler=rest.scheduler,
        stateful=rest.stateful,
        rng=rest.rng,
        ignored=(*_left(saved, tensors, choice, difference), *rest.ignored),
        kept=(*_missing(difference), *rest.kept),
        missing=difference.missing,
        unexpected=difference.unexpected,
        mismatched=tuple(t.canonical for _, t in difference.misshapen),
        bytes_to_read=to_read + rest.bytes_to_read,
        size_bytes=saved.size_bytes,
        memory=memory_of(moves, by_key, assign, target, to_read, rest.bytes_to_read),
        advice=_advice(saved, target, joined, out, choice),
        warnings=_warnings(saved, target, tensors, joined, rest),
        topology=saved.topology,
        provenance=saved.provenance,
    )
    return replace(plan, python=by_hand(plan, saved, _renamed(plan, difference), joined.of_wrapper))


def _renamed(plan: LoadPlan, difference: Difference) -> dict[str, str]:
    """Return raw key -> target key of all tensors whose names agree, those of another shape too."""
    renames: dict[str, str] = {}
    for move in plan.moves:
        renames.setdefault(move.source, move.key)
    return renames | {s.key: t.key for s, t in difference.misshapen}


def _check(target: Target | None, wanted: Wanted) -> None:
    if target is None and wanted.cast is not None:
        raise ValueError(f"cast={wanted.cast!r} needs a net that says what to cast to: into=net")
    if target is None and wanted.allow:
        raise ValueError(f"allow={wanted.allow[0]!r} needs a net to differ from: into=net")
    if target is not None and wanted.out_keys is not None:
        raise ValueError("the net decides which keys come out; out_keys is for loads without one")


def _chosen(saved: Saved, wanted: Wanted) -> tuple[Choice, tuple[SavedTensor, ...]]:
    if saved.ema is not None:
        if wanted.weights is None:
            raise RefusedLoadError(
                f"{saved.ref} holds live weights ({len(saved.tensors)} tensors) and averaged ones "
                f"({len(saved.ema)}), and nothing says which",
                hint="weights='live' to train on, weights='ema' to evaluate the average (or "
                "--weights)",
            )
        return wanted.weights, saved.ema if wanted.weights == "ema" else saved.tensors
    only: Choice = "ema" if saved.weights == "ema" else "live"
    if wanted.weights not in (None, only):
        named = {"live": "live weights", "ema": "averaged (ema) weights"}
        raise RefusedLoadError(
            f"{saved.ref} holds {named[only]} only, and weights={wanted.weights!r} asks for others",
            hint=f"leave weights= out to load its {named[only]}",
        )
    return only, saved.tensors


def _move(
    tensor: SavedTensor, canonical: str, key: str, target: TargetTensor | None, placement: Placement
) -> Move:
    to_dtype = tensor.dtype if target is None else target.dtype
    return Move(
        tensor.key,
        canonical,
        key,
        tensor.shape,
        tensor.dtype,
        to_dtype,
        placement.device_of(tensor, target),
        tensor.size_bytes,
        check_finite=tensor.dtype != to_dtype and not widens(tensor.dtype, to_dtype),
    )


def _all_readable(saved: Saved) -> None:
    if saved.unbuildable:
        key, made = next(iter(saved.unbuildable.items()))
        raise RefusedLoadError(
            f"{len(saved.unbuildable)} tensors of {saved.ref} can't be read, as {key!r}: "
            f"{why_unread(made)}",
            hint=UNREAD_CURE,
        )


def _has_values(saved: Saved, moved: Sequence[SavedTensor]) -> None:
    hollow = [t.key for t in moved if t.tag == "meta"]
    if hollow:
        raise RefusedLoadError(
            f"{len(hollow)} of {len(moved)} tensors of {saved.ref} were saved on the meta device, "
            "with shapes but no values: "
            f"{', '.join(map(repr, hollow[:3]))}{', …' if len(hollow) > 3 else ''}",
            hint="load a checkpoint that was saved after the net was filled",
        )


def _meta(saved: Saved, target: Target, difference: Difference) -> None:
    """Refuse what a meta target can't take: an older optimizer, tensors that nothing fills."""
    hollow = {t.canonical for t in target.tensors if t.meta}
    if not hollow:
        return
    if target.optimizers:
        raise RefusedLoadError(
            f"the net is on the meta device, and {', '.join(map(repr, target.optimizers))} was "
            "made before it has real parameters: the optimizer would go on training the old ones",
            hint="net.to_empty(device='cpu') first, then make the optimizer, then load",
        )
    left = [key for key in difference.keys if key in hollow]
    if left:
        raise RefusedLoadError(
            f"nothing in {saved.ref} fills "
            f"{', '.join(map(repr, left[:3]))}{', …' if len(left) > 3 else ''}, and the net is on "
            "the meta device, so there are no values to keep",
            hint="make the net on a real device, then load with the same allow=",
        )


def _target_groups(target: Target) -> tuple[tuple[str, ...], ...]:
    key = {t.canonical: t.key for t in target.tensors}
    groups = (tuple(key[name] for name in group if name in key) for group in target.ties)
    return tuple(group for group in groups if len(group) > 1)


def _must_equal(target: Target, difference: Difference) -> tuple[tuple[str, ...], ...]:
    """Return the groups that are one tensor in the target, and several in the file."""
    source = {t.canonical: (s, t.key) for s, t in difference.matched}
    found: list[tuple[str, ...]] = []
    for group in target.ties:
        held = [source[name] for name in group if name in source]
        if len({_view(s) for s, _ in held}) > 1:
            found.append(tuple(key for _, key in held))
    return tuple(found)


def _view(tensor: SavedTensor) -> Hashable:
    return ("key", tensor.key) if tensor.tie_group is None else ("tied", tensor.tie_group)


def _bytes(moved: Sequence[SavedTensor]) -> int:
    return sum({_view(t): t.size_bytes for t in moved}.values())


def _left(
    saved: Saved, tensors: Sequence[SavedTensor], choice: Choice, difference: Difference
) -> list[Note]:
    notes: list[Note] = []
    if saved.ema is not None:
        other = "live weights" if choice == "ema" else "averaged weights"
        notes.append(Note(other, f"weights={choice!r} was asked for"))
    if difference.unexpected:
        notes.append(Note(_named(difference.unexpected), "not in the net; allow= excuses it"))
    if difference.misshapen:
        names = [t.canonical for _, t in difference.misshapen]
        notes.append(Note(_named(names), "of another shape than the net's; allow= excuses it"))
    return notes


def _missing(difference: Difference) -> list[Note]:
    if not difference.missing:
        return []
    return [
        Note(_named(difference.missing), "not in the file; allow= excuses it, the net's own stays")
    ]


def _named(keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown}, … ({len(keys)} in all)"


def _advice(
    saved: Saved, target: Target | None, joined: Joined, out: KeyStyle, choice: Choice
) -> tuple[str, ...]:
    lines: list[str] = []
    guess = guess_style(joined.renames) if joined.source == "as they are" else PLAIN
    if guess:
        lines.append(
            f"the keys look wrapped ({str(guess)!r}), which nothing records: keys={str(guess)!r} "
            "states it, into= proves it"
        )
    elif target is None and out:
        lines.append(
            f"these keys fit a net that is wrapped as {str(out)!r}: wrap, then load_state_dict"
        )
    elif target is not None and target.key_style:
        lines.append(
            f"the net is wrapped ({str(target.key_style)!r}): keys are mapped, nothing to unwrap"
        )
    elif saved.key_style or saved.file_keys:
        lines.append(
            "load first, then wrap (DataParallel, DDP, compile): the keys fit the plain net"
        )
    if choice == "ema":
        lines.append("these are averaged weights: evaluate with them, don't train on")
    if target is not None and target.training:
        lines.append("the net is in training mode and stays so: net.eval() before you measure")
    return tuple(lines)


def _warnings(
    saved: Saved,
    target: Target | None,
    tensors: Sequence[SavedTensor],
    joined: Joined,
    rest: Restored,
) -> tuple[str, ...]:
    lines: list[str] = []
    if target is not None:
        if any(t.meta for t in target.tensors) and target.nonpersistent:
            lines.append(
                f"no file holds these buffers, so they are rebuilt: {_named(target.nonpersistent)}"
            )
        parted = _parted(saved, target, tensors, joined.renames)
        if parted:
            lines.append(
                f"{_named(parted)} are one tensor in the file and several in the net: equal after "
                "the load, then trained apart"
            )
    return (*lines, *rest.warnings)


def _parted(
    saved: Saved, target: Target, tensors: Sequence[SavedTensor], renames: Mapping[str, str]
) -> tuple[str, ...]:
    """Return a group that is tied in the file and not in the target, if there is one."""
    shared: dict[Hashable, list[str]] = {}
    for tensor in tensors:
        if tensor.tie_group is not None:
            shared.setdefault(tensor.tie_group, []).append(renames[tensor.key])
    here = {name: i for i, group in enumerate(target.ties) for name in group}
    names = {t.canonical for t in target.tensors}
    for group in (*saved.ties, *shared.values()):
        present = [n for n in group if n in names]
        if len(present) > 1 and (len({here.get(n) for n in present}) > 1 or present[0] not in here):
            return tuple(present)
    return ()
