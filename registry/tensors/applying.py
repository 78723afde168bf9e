"""Doing what a load plan says to a live target: all of it, or nothing.

Law: every value is checked before the first byte of the target changes; what can still fail (other
people's load_state_dict) goes first and is undone, the weights go last. Training mode,
requires_grad and hooks stay as they are. Decides nothing: keys, devices, casts and the optimizer's
order are the plan's.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..containers import AnyTensor, Description, walk
from ..containers import Tensor as FoundTensor
from ..errors import RefusedLoadError
from ..planning import LoadPlan, Move
from . import fsdp1, resuming
from .building import Builder, chunks_in, dtype_named
from .checks import check_cast, same_bits
from .metadata import metadata_for, metadata_under, without_token
from .observe import Live
from .snapshots import Undo, foreign_code, take_snapshot
from .spread import box_of, is_spread, like, local_of
from .views import form_of, parts_of, storages_of
from .wrappers import class_name

T = TypeVar("T")


class Agree(Protocol):
    """Does a step on every rank, and returns this one's result; it fails on all, or on none."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Do this rank's part."""
        ...


def alone(work: Callable[[], T], /) -> T:
    """Do a step that is no other rank's business."""
    return work()


def apply(
    plan: LoadPlan,
    builder: Builder,
    description: Description,
    net: nn.Module,
    live: Live,
    *,
    optimizers: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    stateful: Mapping[str, Any] | None = None,
    agree: Agree = alone,
) -> tuple[str, ...]:
    """Load into a live net, and what else the plan restores; return the net's keys that were set.

    Args:
        agree: does a step on every rank, or fails on all; see `Together.agree`.
        live: the net as `observe` saw it when the plan was made.
        optimizers, scheduler, stateful: those that the plan names are filled, the others left
            alone.

    Raises:
        RefusedLoadError: a value doesn't survive its cast, tied names have different values,
            something would be left on meta, or a load_state_dict failed. The target is as it was.
        UntrustedError: what is to be restored needs a class that isn't trusted.
    """
    optimizers, stateful = optimizers or {}, stateful or {}

    def check() -> tuple[OrderedDict[str, Any], list[resuming.Restore]]:
        state = _checked(plan, builder, description, live)
        _check_writable(plan, live, state, bool(optimizers))
        restores = resuming.prepare(
            plan,
            builder,
            description,
            live,
            optimizers={o.name: optimizers[o.name] for o in plan.optimizers},
            scheduler=scheduler if plan.scheduler else None,
            stateful={name: stateful[name] for name in plan.stateful},
        )
        return state, restores

    state, restores = agree(check)
    with _all_or_nothing() as undo:

        def change() -> None:
            for restore in restores:
                restore(undo)
            _load_weights(plan, net, live, state, metadata_for(live, plan, description), undo)

        agree(change)
    return tuple(state)


def needed(
    plan: LoadPlan, description: Description, live: Live, optimizers: Mapping[str, Any]
) -> list[FoundTensor]:
    """Return the file's tensors that this rank's part of a spread net is read from, and that of its
    optimizers' state.
    """
    sources = sources_of(plan, description)
    found: list[FoundTensor] = []
    for move in plan.moves:
        target, source = live.state.get(move.key), sources[move.source]
        if is_spread(target):
            found += chunks_in(source, box_of(target, move.canonical))
        else:
            found += [node for node in walk(source) if isinstance(node, FoundTensor)]
    return found + resuming.needed(plan, description, live, optimizers)


def collect(
    plan: LoadPlan, builder: Builder, description: Description, *, place: bool = True
) -> OrderedDict[str, Any]:
    """Return the state dict that a plan without a target gives: its keys, devices and dtypes.

    Args:
        place: put the tensors on the plan's devices; else all are on the CPU (to be written, not
            used).

    Raises:
        RefusedLoadError: a value doesn't survive its cast.
    """
    state: OrderedDict[str, Any] = OrderedDict()
    sources = sources_of(plan, description)
    for move in plan.moves:
        tensor = builder.tensor(sources[move.source])
        _check_values(plan, move, tensor)
        state[move.key] = _moved(tensor, move, move.device if place else "cpu")
    for raw, name in plan.others:
        state[name] = builder.tree(description.others[raw], own=True)
    metadata = metadata_under(plan, description)
    if metadata is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    return state


def _moved(tensor: Tensor, move: Move, device: str) -> Tensor:
    """Return a tensor on a device, cast if the plan says so; quantised dtypes never are."""
    placed = tensor.to(device)
    return placed if move.dtype == move.to_dtype else placed.to(dtype_named(move.to_dtype))


def sources_of(plan: LoadPlan, description: Description) -> Mapping[str, AnyTensor]:
    """Return the chosen weights by their keys in the file."""
    if plan.weights == "ema" and description.ema is not None:
        return description.ema
    return description.weights


def _wrapper_tensor(
    source: str, description: Description, sources: Mapping[str, AnyTensor]
) -> AnyTensor:
    found = description.wrapper_state.get(source)
    return sources[source] if found is None else found


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[Undo]:
    undo = Undo()
    try:
        yield undo
    except BaseException:
        undo.run()
        raise


# --- what is checked first ------------------------------------------------------------------------


def _checked(
    plan: LoadPlan, builder: Builder, description: Description, live: Live
) -> OrderedDict[str, Any]:
    """Return the values by the target's raw keys, every one checked."""
    state: OrderedDict[str, Any] = OrderedDict()
    sources = sources_of(plan, description)
    for move in plan.moves:
        target, found = live.state.get(move.key), sources[move.source]
        if is_spread(target):
            tensor = builder.part(found, box_of(target, move.canonical))
        else:
            tensor = builder.tensor(found).detach()
        _check_values(plan, move, tensor)
        state[move.key] = tensor
    for group in plan.must_equal:
        first = group[0]
        for key in group[1:]:
            if not same_bits(state[first], state[key]):
                raise RefusedLoadError(
                    f"{first!r} and {key!r} are one tensor in the net, and have different "
                    f"values in {plan.ref}",
                    hint="untie them in the net, or load a checkpoint of the tied net",
                )
    for source, name in plan.wrapper_state:
        found = _wrapper_tensor(source, description, sources)
        state[live.wrapper_state[name]] = builder.tensor(found).detach()
    raw_of = {name: raw for raw, name in live.canonical.items()}
    for raw, name in plan.others:
        state[raw_of[name]] = builder.tree(description.others[raw], own=True)
    return state


def _check_values(plan: LoadPlan, move: Move, tensor: Tensor) -> None:
    if move.check_finite:
        problem = check_cast(tensor, dtype_named(move.to_dtype))
        if problem is not None:
            raise RefusedLoadError(
                f"{move.canonical!r} of {plan.ref} doesn't survive the cast from {move.dtype} to "
                f"{move.to_dtype}: {problem}",
                hint=f"keep the net in {move.dtype}, or in a type of its range",
            )


def _check_writable(
    plan: LoadPlan, live: Live, state: Mapping[str, object], has_optimizers: bool
) -> None:
    retied = {key for group in plan.retie if any(k in state for k in group) for key in group}
    meta: list[str] = []
    for key, tensor in live.state.items():
        if not isinstance(tensor, Tensor) or key in live.extra_states:
            continue
        tensor = local_of(tensor)
        if tensor.is_meta and key not in state and key not in retied:
            meta.append(key)
        if key not in state or tensor.is_meta:
            continue
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise RefusedLoadError(
                f"{key!r} of the net was made in inference mode and can't be changed outside it",
                hint="build the net outside torch.inference_mode(), or load inside it",
            )
        if tensor.layout != torch.strided:
            _check_parts(plan, key, tensor, state[key])
            continue
        if any(
            step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ):
            raise RefusedLoadError(
                f"{key!r} of the net is an expanded view: several elements are one place in memory",
                hint="give it memory of its own first: .contiguous()",
            )
    meta.extend(
        f"{p.raw}.{name}" if p.raw else name
        for p in live.places
        if not hasattr(p.module, "reset_parameters")
        for name in _hollow_buffers(p.module)
    )
    if meta:
        raise RefusedLoadError(
            f"{len(meta)} tensors would be left on meta, without values: {', '.join(meta[:5])}"
            + (", …" if len(meta) > 5 else ""),
            hint="no checkpoint holds non-persistent buffers, and a module without "
            "reset_parameters() can't rebuild them: build the net on a real device, "
            "with torch.device('cpu'): …, and load into that",
        )
    if plan.assign and has_optimizers:
        raise RefusedLoadError(
            "the net is on meta: its parameters are replaced, and the optimizer holds the old ones",
            hint="load the weights first, then make the optimizer from net.parameters() and load "
            "again with optimizer=",
        )


def _check_parts(plan: LoadPlan, key: str, target: Tensor, value: Any) -> None:
    """Refuse what torch can't copy into a compressed sparse tensor: other numbers of values."""
    if target.layout == torch.sparse_coo:
        return
    here, there = (tuple(part.shape for part in parts_of(t)) for t in (target, value))
    if here != there:
        form = form_of(target)
        raise RefusedLoadError(
            f"{key!r} of the net is a {form} tensor with values of {tuple(here[-1])}, and that of "
            f"{plan.ref} has {tuple(there[-1])}: torch copies only equal numbers of them",
            hint=f"state = reg.load({plan.ref!r}).state_dict; "
            "net.load_state_dict(state, assign=True), before the optimizer is made",
        )


def _hollow_buffers(module: nn.Module) -> list[str]:
    """Return a module's own non-persistent buffers that are on meta."""
    return [
        name
        for name in sorted(module._non_persistent_buffers_set)
        if (buffer := module._buffers.get(name)) is not None and buffer.is_meta
    ]


# --- the weights ----------------------------------------------------------------------------------


def _load_weights(
    plan: LoadPlan,
    net: nn.Module,
    live: Live,
    state: Mapping[str, Any],
    metadata: OrderedDict[str, Any] | None,
    undo: Undo,
) -> None:
    foreign = foreign_code(live)
    take_snapshot(live, undo, values=foreign is not None)
    if plan.assign:
        _rebuild(plan, live)
    assigned: OrderedDict[str, Any] = OrderedDict()
    filled: OrderedDict[str, Any] = OrderedDict()
    moves = {move.key: move for move in plan.moves}
    handed_out: set[int] = set()
    for key, value in state.items():
        target = live.state.get(key)
        if is_spread(target):
            assert isinstance(target, Tensor)
            meta = local_of(target).is_meta
            (assigned if meta else filled)[key] = _spread(value, moves[key], target)
        elif isinstance(target, Tensor) and target.is_meta and key not in live.extra_states:
            assigned[key] = _materialised(value, moves.get(key), handed_out)
        else:
            filled[key] = value
    with torch.no_grad():
        for part, assign in ((filled, False), (assigned, True)):
            if part:
                _load(plan, net, live, part, metadata, assign=assign, foreign=foreign)
    for group in plan.retie:
        _retie(live, group)


def _rebuild(plan: LoadPlan, live: Live) -> None:
    """Let modules make their non-persistent buffers anew, by reset_parameters() as torch has it."""
    device = next((m.device for m in plan.moves if m.device != "meta"), "cpu")
    for place in live.places:
        if not _hollow_buffers(place.module):
            continue
        place.module.to_empty(device=device, recurse=False)
        with torch.no_grad():
            place.module.reset_parameters()  # type: ignore[operator]  # checked to be there
        hollow = _hollow_buffers(place.module)
        if hollow:
            raise RefusedLoadError(
                f"{class_name(place.module)}.reset_parameters() left {', '.join(hollow)} on meta",
                hint="make it fill the buffers that it owns, or build the net on a real device",
            )


def _materialised(value: Tensor, move: Move | None, handed_out: set[int]) -> Tensor:
    """Return the tensor to assign; no two get one storage, since only the plan's ties are made."""
    if move is not None:
        value = _moved(value, move, move.device)
    storages = storages_of(value)
    if handed_out & storages.keys():
        return value.clone()
    handed_out.update(storages)
    return value


def _spread(part: Tensor, move: Move, target: Tensor) -> Tensor:
    """Return a spread tensor from this rank's part, in memory of its own where it is to stay."""
    placed = _moved(part, move, move.device)
    if (
        local_of(target).is_meta
        and placed.untyped_storage()._cdata == part.untyped_storage()._cdata
    ):
        placed = placed.clone(memory_format=torch.contiguous_format)
    return like(target, placed.contiguous())


def _load(
    plan: LoadPlan,
    net: nn.Module,
    live: Live,
    part: OrderedDict[str, Any],
    metadata: OrderedDict[str, Any] | None,
    *,
    assign: bool,
    foreign: str | None,
) -> None:
    given = OrderedDict(part)
    if metadata is not None:
        own = OrderedDict((k, dict(v)) for k, v in metadata.items())  # torch writes into it
        given._metadata = own  # type: ignore[attr-defined]
    try:
        if fsdp1.has(live.places):
            result = fsdp1.load_state_dict(net, given)
        else:
            result = net.load_state_dict(given, strict=False, assign=assign)
    except Exception as error:
        by = f" (it runs code of {foreign})" if foreign else ""
        raise RefusedLoadError(
            f"the net's load_state_dict failed{by}: {error}; the net is as it was"
        ) from error
    left = {without_token(k) for k in getattr(result, "missing_keys", ())} & set(part)
    strange = list(getattr(result, "unexpected_keys", ()))
    if left or strange:
        by = f": code of {foreign} changes the keys" if foreign else ""
        raise RefusedLoadError(
            f"load_state_dict of {class_name(net)} did other than planned{by}; "
            f"not loaded: {sorted(left)[:5]}, not taken: {strange[:5]}",
            hint="make the net's hooks accept the keys of its own state_dict()",
        )


def _retie(live: Live, group: Sequence[str]) -> None:
    """Make the names of a group one object again, as they were before the assigning."""
    held = [live.owners[key] for key in group]
    loaded = next((h for h in held if not getattr(*h).is_meta), None)
    if loaded is None:
        return
    tensor = getattr(*loaded)
    for module, name in held:
        slot = module._parameters if name in module._parameters else module._buffers
        slot[name] = tensor
