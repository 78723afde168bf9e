"""Restoring what lies beside the weights: optimizers, scheduler, stateful things, generators.

Law: values are made and checked first; each restore can be undone. Optimizer state lands by the
plan's order, bit for bit where the parameter keeps its dtype, on its parameter's device, and `step`
where the optimizer keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ..containers import AnyTensor, Description, walk
from ..containers import Tensor as FoundTensor
from ..errors import CkregError, RefusedLoadError
from ..planning import LoadPlan, OptimizerMove
from . import fsdp1, rng
from .building import Builder, chunks_in, dtype_named
from .checks import check_cast
from .hardware import rank
from .observe import Live, optimizer_groups
from .snapshots import Undo
from .spread import box_of, is_spread, like, local_of

Restore = Callable[[Undo], None]

_OF_THE_MACHINE: Final = ("foreach", "fused", "capturable", "differentiable")
"""Options that say how an optimizer computes here, not what was trained: the target's stay."""


def prepare(
    plan: LoadPlan,
    builder: Builder,
    description: Description,
    live: Live,
    *,
    optimizers: Mapping[str, Any],
    scheduler: Any,
    stateful: Mapping[str, Any],
) -> list[Restore]:
    """Return the restores that the plan names, all their values made and checked, none begun.

    Raises:
        RefusedLoadError: state doesn't survive its parameter's cast, or isn't in torch's form.
        UntrustedError: a value needs a class that isn't trusted.
    """
    restores: list[Restore] = []
    for name, one in stateful.items():
        restores.append(
            _plain_restore(
                f"stateful {name!r}", one, builder.tree(description.stateful[name], own=True)
            )
        )
    if scheduler is not None:
        restores.append(
            _plain_restore(
                "the scheduler", scheduler, builder.tree(description.scheduler, own=True)
            )
        )
    for move in plan.optimizers:
        saved = description.optimizers[move.name]
        state = _optimizer_state(plan, move, optimizers[move.name], builder, saved, live)
        restores.append(_optimizer_restore(move.name, optimizers[move.name], state, live))
    states = rng_of(description, rank())
    if plan.rng and states is not None:
        restores.append(_rng_restore(builder.tree(states, own=True)))
    return restores


def rng_of(description: Description, rank: int) -> Any:
    """Return the random states in a file that are a rank's; those of one alone are the writer's."""
    return description.rng_states.get(str(rank), description.rng)


def _plain_restore(what: str, one: Any, state: Any) -> Restore:
    def restore(undo: Undo) -> None:
        before = copy.deepcopy(one.state_dict())
        undo.add(lambda: one.load_state_dict(before))
        _load(what, one, state)

    return restore


def _load(what: str, one: Any, state: Any) -> None:
    try:
        one.load_state_dict(state)
    except CkregError:
        raise
    except Exception as error:
        raise RefusedLoadError(
            f"load_state_dict of {what} failed: {type(error).__name__}: {error}; the target is as "
            "it was"
        ) from error


def _rng_restore(states: Mapping[str, Any]) -> Restore:
    def restore(undo: Undo) -> None:
        before = rng.capture()
        undo.add(lambda: rng.restore(before))
        rng.restore(states)

    return restore


# --- optimizers -----------------------------------------------------------------------------------


def _optimizer_state(
    plan: LoadPlan, move: OptimizerMove, optimizer: Any, builder: Builder, saved: Any, live: Live
) -> dict[str, Any]:
    """Return the state_dict to load: the target's positions and devices, the saved values."""
    try:
        if not live.spread:
            saved = builder.tree(saved)
        saved_state, saved_groups = saved["state"], builder.tree(saved["param_groups"])
        saved_ids = [i for group in saved_groups for i in group["params"]]
    except (TypeError, KeyError) as error:
        raise RefusedLoadError(
            f"the state of optimizer {move.name!r} in {plan.ref} is not in torch's form: {error!r}"
        ) from error
    names = [name for group in optimizer_groups(optimizer, live, move.name) for name in group]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own_groups = optimizer.state_dict()["param_groups"]
    own_ids = [i for group in own_groups for i in group["params"]]
    casts = {m.canonical: m.to_dtype for m in plan.casts}
    raw_of = {name: raw for raw, name in live.canonical.items()}
    rest = {k: v for k, v in saved_state.items() if k not in set(saved_ids)}
    state: dict[Any, Any] = builder.tree(rest) if live.spread else rest
    for position, (own, name, parameter) in enumerate(zip(own_ids, names, parameters, strict=True)):
        entry = saved_state.get(saved_ids[move.order[position]])
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            raise RefusedLoadError(
                f"the state of optimizer {move.name!r} in {plan.ref} is not in torch's form: for "
                f"{name} it holds a {type(entry).__name__}",
                hint="leave optimizer= out: the weights load all the same",
            )
        target = live.state[raw_of[name]] if live.spread and name in raw_of else parameter
        state[own] = {
            key: _of_part(
                value, target, parameter, builder, cast=casts.get(name),
                what=f"{move.name}: {key} of {name}",
            )
            if is_spread(target)
            else _placed(
                builder.tree(value) if live.spread else value,
                parameter,
                cast=casts.get(name),
                what=f"{move.name}: {key} of {name}",
                is_step=key == "step",
            )
            for key, value in entry.items()
        }  # fmt: skip
    groups = [_group(dict(saved_groups[move.groups[g]]), own) for g, own in enumerate(own_groups)]
    return {"state": state, "param_groups": groups}


def _of_part(
    value: Any, target: Any, parameter: Tensor, builder: Builder, *, cast: str | None, what: str
) -> Any:
    """Return state of a spread parameter: what has its shape is spread as it is, from this rank's
    part of the file's.
    """
    if _is_parted(value, target):
        part = builder.part(value, box_of(target, what))
        return like(target, _placed(part, local_of(parameter), cast=cast, what=what, is_step=False))
    if isinstance(value, AnyTensor) and value.elements != 1:
        raise RefusedLoadError(
            f"{what} has the shape {value.shape}, and its parameter {tuple(target.shape)}: how to "
            "spread it over the ranks isn't known",
            hint="leave optimizer= out: the weights load all the same",
        )
    is_step = what.partition(": ")[2].startswith("step ")
    return _placed(builder.tree(value), local_of(parameter), cast=None, what=what, is_step=is_step)


def needed(
    plan: LoadPlan, description: Description, live: Live, optimizers: Mapping[str, Any]
) -> list[FoundTensor]:
    """Return the tensors of optimizer state that this rank's part of a spread net is read from."""
    found: list[FoundTensor] = []
    raw_of = {name: raw for raw, name in live.canonical.items()}
    for move in plan.optimizers:
        saved = description.optimizers[move.name]
        groups = optimizer_groups(optimizers[move.name], live, move.name)
        names = [name for group in groups for name in group]
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        named = {ids[at]: name for at, name in zip(move.order, names, strict=True)}
        for position, entry in saved["state"].items():
            target: Any = live.state.get(raw_of.get(named.get(position, ""), ""))
            for value in entry.values() if isinstance(entry, Mapping) else [entry]:
                if _is_parted(value, target):
                    found += chunks_in(value, box_of(target, move.name))
                else:
                    found += [node for node in walk(value) if isinstance(node, FoundTensor)]
    return found


def _is_parted(value: Any, target: Any) -> bool:
    return (
        isinstance(value, AnyTensor)
        and is_spread(target)
        and value.shape == tuple(target.shape) != ()
    )


def _group(saved: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    saved.pop("param_names", None)  # names of the saved net; the target's are the target's
    kept = {k: own[k] for k in ("params", "param_names", *_OF_THE_MACHINE) if k in own}
    # An option that the file's torch didn't know stays as the target has it.
    return {**own, **saved, **kept}


def _placed(value: Any, parameter: Tensor, *, cast: str | None, what: str, is_step: bool) -> Any:
    """Return state with memory of its own; `step` as it is, for torch to place."""

    def below(inner: Any) -> Any:
        return _placed(inner, parameter, cast=cast, what=what, is_step=is_step)

    if isinstance(value, list | tuple):
        return type(value)(map(below, value))
    if isinstance(value, dict):
        return {k: below(v) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if is_step:
        return value.clone()
    dtype = value.dtype
    if cast is not None and dtype.is_floating_point:
        dtype = dtype_named(cast)
        problem = check_cast(value, dtype)
        if problem is not None:
            raise RefusedLoadError(
                f"{what} doesn't survive the cast from {value.dtype} to {dtype}: {problem}",
                hint="keep the net in the dtype that it was saved in, or leave optimizer= out",
            )
    return value.to(device=parameter.device, dtype=dtype, copy=True)


def _optimizer_restore(name: str, optimizer: Any, state: dict[str, Any], live: Live) -> Restore:
    def restore(undo: Undo) -> None:
        nonlocal state
        if fsdp1.has(live.places):
            names = optimizer_groups(optimizer, live, name)
            state = fsdp1.load_optimizer_state(
                optimizer, live.places[0].module, state, names, live.canonical
            )
        if isinstance(optimizer, torch.optim.Optimizer):
            # load_state_dict makes new dicts and leaves the old ones alone: putting them back is
            # exact.
            old_state, old_groups = optimizer.state, optimizer.param_groups

            def back() -> None:
                optimizer.state, optimizer.param_groups = old_state, old_groups

            undo.add(back)
        else:
            before = copy.deepcopy(optimizer.state_dict())
            undo.add(lambda: optimizer.load_state_dict(before))
        _load(f"the optimizer {name!r}", optimizer, state)
        if isinstance(optimizer, torch.optim.Optimizer):
            _undo_casts(optimizer, state)

    return restore


def _undo_casts(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put back state that torch casts to its parameter's dtype (2.13): ASGD's `eta`, say."""
    ids = [i for group in state["param_groups"] for i in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for own, parameter in zip(ids, parameters, strict=True):
        for key, value in state["state"].get(own, {}).items():
            loaded = optimizer.state[parameter].get(key)
            if (
                key != "step"
                and isinstance(value, Tensor)
                and isinstance(loaded, Tensor)
                and loaded.dtype != value.dtype
            ):
                optimizer.state[parameter][key] = value
