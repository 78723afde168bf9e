"""What a live module is: its wrappers, its canonical keys, its ties, and who owns each parameter.

Law: keys are those that `state_dict()` gives; the map to canonical keys is a bijection, or the net
is refused. Changes nothing, calls no forward, and makes no collective call unless
the net is FSDP1's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RefusedLoadError
from ..planning import Target, TargetOptimizer, TargetTensor
from ..signature import KeyStyle, Signature, TensorSpec
from ..topology import Strategy
from . import fsdp1
from .spread import device_of, is_spread, local_of, placements_of
from .views import dtype_name, form_of, tie_groups
from .wrappers import FSDP2, Names, Place, class_name, is_a, join, refuse_deepspeed, walk


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A live net, seen once.

    Attributes:
        state: what `state_dict()` gave, raw key -> value; tensors share the net's memory.
        key_style: where wrappers' tokens stand in the raw keys.
        canonical: raw key -> canonical key, in state_dict order; wrapper state is not in it.
        modules: raw module path -> canonical module path, the wrapped modules only (for
            `_metadata`).
        signature: the tensors under their canonical keys.
        ties: groups of canonical keys that are one tensor.
        others: canonical keys that are no weights: what a module's get_extra_state() gave, of any
            type, and values that are no tensors.
        extra_states: raw keys of what get_extra_state() gave.
        wrapper_state: `<position>.n_averaged` -> raw key.
        averaged: whether the weights, as a whole, are an AveragedModel's.
        nonpersistent: canonical names of buffers that state_dict leaves out.
        strategy: how it is spread; None for a bare net in a job of several processes.
        device_type, device_count: the devices of this process that hold or train it.
        names: id of a parameter -> its canonical names.
        owners: raw key -> the module that holds it, and its name there; for keys that a hook made
            up, none.
        places: every module, at every path.
    """

    state: Mapping[str, object]
    key_style: KeyStyle
    canonical: Mapping[str, str]
    modules: Mapping[str, str]
    signature: Signature
    ties: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    extra_states: frozenset[str]
    wrapper_state: Mapping[str, str]
    averaged: bool
    nonpersistent: tuple[str, ...]
    strategy: Strategy | None
    device_type: str
    device_count: int
    names: Mapping[int, tuple[str, ...]]
    owners: Mapping[str, tuple[nn.Module, str]]
    places: tuple[Place, ...]

    @property
    def spread(self) -> bool:
        """Whether its ranks hold parts of it."""
        return any(map(is_spread, self.state.values()))

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The state_dict's `_metadata` (module versions) under canonical module paths, or None."""
        raw = getattr(self.state, "_metadata", None)
        if not isinstance(raw, Mapping):
            return None
        return {self.modules[p]: dict(v) for p, v in raw.items() if p in self.modules}


def observe(net: nn.Module) -> Live:
    """Return what a live net is.

    Raises:
        RefusedLoadError: it is DeepSpeed's, has parameters without a shape yet, or its keys can't
            be told apart once the wrappers' tokens are gone.
    """
    if isinstance(net, torch.jit.ScriptModule):
        raise RefusedLoadError(
            f"the net is a TorchScript module ({class_name(net)}), whose wrappers can't be seen",
            hint="save and load the module that was scripted; to keep the script: torch.jit.save",
        )
    places = tuple(walk(net))
    refuse_deepspeed(places)
    state = fsdp1.state_dict(net) if fsdp1.has(places) else net.state_dict()
    if not isinstance(state, Mapping):
        raise RefusedLoadError(
            f"state_dict() of {class_name(net)} gave {class_name(state)}, and not a dict of tensors"
        )
    named = Names(places)
    canonical = {key: name for key in state if (name := named.canonical(key)) is not None}
    _refuse_collisions(canonical)
    extra = frozenset(key for key, (_, name) in named.owners.items() if name == "_extra_state")
    weights = {k: v for k in canonical if k not in extra and isinstance(v := state[k], Tensor)}
    tensors = {canonical[k]: v for k, v in weights.items()}
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise RefusedLoadError(
                f"{name} has no shape yet: it belongs to a lazy module",
                hint="run one forward pass first, so that every parameter exists",
            )
    averaged = any(
        p.path == "" and is_a(p.module, "torch.optim.swa_utils", "AveragedModel") for p in places
    )
    device_type, device_count = _devices(places, tensors)
    return Live(
        state=state,
        key_style=named.style(),
        canonical=canonical,
        modules={p.raw: p.path for p in places if p.token is None},
        signature=Signature(
            tuple(
                TensorSpec(name, dtype_name(t), tuple(t.shape), named.kinds.get(name, "buffer"))
                for name, t in tensors.items()
            )
        ),
        ties=tie_groups(tensors),
        others=tuple(n for k, n in canonical.items() if k not in weights),
        extra_states=extra,
        wrapper_state=dict(named.wrapper_state),
        averaged=averaged,
        nonpersistent=tuple(
            dict.fromkeys(
                join(p.path, name)
                for p in places
                if p.token is None
                for name, buffer in p.module._buffers.items()
                if buffer is not None and name in p.module._non_persistent_buffers_set
            )
        ),
        strategy=_strategy(places, tensors),
        device_type=device_type,
        device_count=device_count,
        names=_parameter_names(places),
        owners=named.owners,
        places=places,
    )


def meta_device(live: Live) -> str | None:
    """Return where a spread net's tensors that are on meta belong: its mesh says it."""
    hollow = (
        t
        for t in live.state.values()
        if isinstance(t, Tensor) and is_spread(t) and local_of(t).is_meta
    )
    return next(map(device_of, hollow), None)


def optimizer_groups(optimizer: Any, live: Live, name: str) -> tuple[tuple[str, ...], ...]:
    """Return an optimizer's parameters by canonical name, group by group, in its own order.

    Raises:
        RefusedLoadError: a parameter of it isn't the net's; the message names group and index.
    """
    groups: list[tuple[str, ...]] = []
    for g, group in enumerate(optimizer.param_groups):
        found: list[str] = []
        for i, parameter in enumerate(group["params"]):
            if id(parameter) not in live.names:
                raise RefusedLoadError(
                    f"{name}: the parameter {i} of group {g}, shape {tuple(parameter.shape)}, is "
                    "not the net's",
                    hint="make the optimizer from the parameters of this very net, after it is "
                    f"moved, wrapped or materialised: {type(optimizer).__name__}(net.parameters())",
                )
            found.append(live.names[id(parameter)][0])
        groups.append(tuple(found))
    return tuple(groups)


def named_optimizers(optimizer: object) -> dict[str, Any]:
    """Return the optimizers by name: one alone is called `optimizer`.

    Raises:
        TypeError: it is no optimizer, nor a mapping of names to optimizers.
    """
    if optimizer is None:
        return {}
    named = optimizer if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
    for name, one in named.items():
        if not isinstance(name, str) or not all(
            hasattr(one, a) for a in ("param_groups", "state_dict", "load_state_dict")
        ):
            raise TypeError(
                "optimizer takes an optimizer or a dict of names to optimizers, not "
                + (
                    "its state_dict()"
                    if "param_groups" in named
                    else f"{name!r}: {class_name(one)}"
                )
            )
    return dict(named)


def target_of(
    net: nn.Module,
    live: Live,
    *,
    optimizers: Mapping[str, Any],
    scheduler: object = None,
    stateful: Mapping[str, object] | None = None,
) -> Target:
    """Return what the planner needs to know of a live target.

    Raises:
        RefusedLoadError: an optimizer holds a parameter that isn't the net's.
    """
    kinds = {t.key: t.kind for t in live.signature.tensors}
    return Target(
        tensors=tuple(
            TargetTensor(
                key=key,
                canonical=name,
                dtype=dtype_name(t),
                shape=tuple(t.shape),
                device=device_of(t),
                kind=kinds[name],
                meta=local_of(t).is_meta,
                form=form_of(t),
            )
            for key, name in live.canonical.items()
            if key not in live.extra_states and isinstance(t := live.state[key], Tensor)
        ),
        key_style=live.key_style,
        ties=live.ties,
        others=live.others,
        wrapper_state=tuple(live.wrapper_state),
        training=net.training,
        optimizers={
            name: TargetOptimizer(class_name(o), optimizer_groups(o, live, name))
            for name, o in optimizers.items()
        },
        scheduler=scheduler is not None,
        stateful=tuple(stateful or ()),
        nonpersistent=live.nonpersistent,
    )


def _parameter_names(places: Sequence[Place]) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for p in places:
        for name, parameter in p.module._parameters.items():
            if parameter is not None and p.token is None:
                names[id(parameter)] = (*names.get(id(parameter), ()), join(p.path, name))
    return names


# --- what is refused, and what it runs on ---------------------------------------------------------


def _refuse_collisions(canonical: Mapping[str, str]) -> None:
    raw_of: dict[str, str] = {}
    for raw, name in canonical.items():
        if name in raw_of:
            raise RefusedLoadError(
                f"two keys of the net are one without the wrappers' tokens: {raw_of[name]!r} and "
                f"{raw!r} both become {name!r}",
                hint="rename one of the submodules",
            )
        raw_of[name] = raw


def _strategy(places: Sequence[Place], tensors: Mapping[str, Tensor]) -> Strategy | None:
    modules = [p.module for p in places]
    placed = placements_of(tensors.values())
    replicated = any(name.startswith("Replicate, Shard") for name in placed)
    if fsdp1.has(places):
        return "hsdp" if fsdp1.is_hybrid(places) or replicated else "fsdp1"
    if any(is_a(m, *FSDP2) for m in modules):
        return "hsdp" if replicated else "fsdp2"
    if any(map(is_spread, tensors.values())):
        return "tp"
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in modules):
        return "ddp"
    if any(isinstance(m, nn.DataParallel) for m in modules):
        return "dp"
    # Several processes and a bare net: it may be `ddp.module`, or synchronised by hand. Not known.
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return None if several and torch.distributed.get_world_size() > 1 else "single"


def _devices(places: Sequence[Place], tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return type and number of this process's devices that hold the net or compute with it."""
    devices = {torch.device(device_of(t)) for t in tensors.values()}
    for p in places:
        if isinstance(p.module, nn.DataParallel):
            kind = getattr(p.module, "device_type", None)
            devices |= {torch.device(kind, i) for i in p.module.device_ids if kind}
    kinds = sorted({d.type for d in devices}, key=lambda kind: (kind in ("cpu", "meta"), kind))
    if not kinds:
        return "cpu", 1
    return kinds[0], len({d for d in devices if d.type == kinds[0]})
