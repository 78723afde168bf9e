"""Where in a tree of values the weights are: state dicts and pickled modules.

Law: a state dict is a dict whose keys are text and whose values are tensors, wherever it lies;
names only decide between several, and then only customary ones. More than one answer is an error
that lists them, never a choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import AmbiguousError, ContainerError, UntrustedError
from ..signature import Kind
from .tree import AnyTensor, Array, Opaque, Quantised, Sparse, TaggedDict, Tensor

CUSTOMARY: Final = (
    "state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights",
    "params",
)  # fmt: skip
"""Where weights customarily lie, best first."""

_EMA: Final = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|shadow|polyak)(?:$|[._])")
_NEVER: Final = re.compile(
    r"rng|wrapper_state|stateful|extra|.*rng_states?|random_state|.*optim.*|.*sched.*|.*scaler|amp"
    r"|callbacks|loops|metrics|config|args|hyper_parameters|ckreg"
)
_GROUPS: Final[tuple[tuple[str, Kind], ...]] = (
    ("_parameters", "parameter"),
    ("_buffers", "buffer"),
)
_MAX_DEPTH: Final = 4
_MAX_NODES: Final = 10_000
_MAX_MODULES: Final = 100_000
_MAX_MODULE_DEPTH: Final = 100


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights.

    Attributes:
        where: its dotted path in the root; "" is the root itself.
        tensors: by raw key, in the file's order.
        others: what else its dict holds (`_extra_state`, tensors of sorts that aren't read).
        metadata: the state dict's `_metadata`, or None.
        module: the class, where a whole module was pickled, else None.
    """

    where: str
    tensors: dict[str, AnyTensor]
    others: dict[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    module: str | None = None

    @property
    def is_ema(self) -> bool:
        """Whether its path says that it holds averaged weights."""
        return _EMA.search(self.where.lower()) is not None


def items_of(node: Any) -> dict[Any, Any] | None:
    """Return what a dict-like node holds, an unknown class's items included; None for others."""
    if isinstance(node, dict):
        return node
    return node.items if isinstance(node, Opaque) and node.items else None


def keyed_by_text(node: Any) -> dict[str, Any]:
    """Return what a dict-like node holds under keys that are text; nothing for other nodes."""
    return {key: value for key, value in (items_of(node) or {}).items() if isinstance(key, str)}


def is_optimizer(node: Any) -> bool:
    """Say whether a node is an optimizer's state_dict: `state` and `param_groups`."""
    items = items_of(node)
    return (
        items is not None
        and isinstance(items.get("param_groups"), list)
        and items_of(items.get("state", 0)) is not None
    )


def choose(
    root: Any, live: str | None = None, averaged: str | None = None
) -> tuple[WeightSet, WeightSet | None, tuple[str, ...]]:
    """Return the weights, the averaged ones beside them, and notes on what was passed over.

    A file with nothing but averaged weights gives them as both.

    Args:
        live, averaged: where they lie, for a framework whose names mislead.

    Raises:
        ContainerError: there are none; the message says what there is.
        AmbiguousError: there are several, and no customary name tells which.
    """
    found = find(root)
    if not found:
        raise ContainerError(
            f"no weights were found in it: {_summary(root)}",
            hint="a checkpoint holds a state_dict, itself or under a key: "
            "torch.save({'state_dict': net.state_dict(), …}, FILE)",
        )
    by_place = {weights.where: weights for weights in found}
    if averaged in by_place:
        ema: WeightSet | None = by_place[averaged]
        chosen = by_place.get(live or averaged, by_place[averaged])
    else:
        emas = [weights for weights in found if weights.is_ema]
        others = [weights for weights in found if not weights.is_ema]
        chosen = _customary(others or emas)
        ema = emas[0] if len(emas) == 1 else None
        if not others:
            ema = chosen
    _refuse_nested(root, chosen)
    passed = [
        w
        for w in found
        if w is not chosen and w is not ema and any(t.elements != 1 for t in w.tensors.values())
    ]
    notes = tuple(
        f"{len(w.tensors)} tensors at {w.where!r} are not taken for weights" for w in passed
    )
    return chosen, ema, notes


def _refuse_nested(root: Any, chosen: WeightSet) -> None:
    """Refuse a state dict of dicts: the tensors around the inner one would be lost."""
    node, path = root, ""
    for key in chosen.where.split(".")[:-1] if chosen.where else ():
        node, path = (items_of(node) or {}).get(key), f"{path}.{key}" if path else key
        beside = [k for k, v in (items_of(node) or {}).items() if isinstance(v, AnyTensor)]
        if beside:
            raise ContainerError(
                f"the weights at {path!r} are nested: {len(beside)} tensors beside those at "
                f"{chosen.where!r}, e.g. {beside[0]!r}",
                hint="save one flat dict of tensors: net.state_dict()",
            )


def _customary(found: list[WeightSet]) -> WeightSet:
    if len(found) == 1:
        return found[0]
    for part in (0, -1):  # `model` before `state.model`
        for name in CUSTOMARY:
            named = [w for w in found if w.where.split(".")[part] == name]
            if len(named) == 1:
                return named[0]
    places = [f"{w.where} ({len(w.tensors)} tensors)" for w in found]
    raise AmbiguousError(
        f"it holds {len(found)} sets of weights: {', '.join(places[:8])}",
        hint="save the one that is meant in a file of its own: "
        f"torch.save(torch.load(FILE)[{found[0].where.split('.')[0]!r}], 'one.pt')",
        candidates=[w.where for w in found],
    )


def find(root: Any) -> list[WeightSet]:
    """Return all sets of weights in a tree, in its order, those at the top first."""
    found: list[WeightSet] = []
    level: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    for _ in range(_MAX_DEPTH + 1):
        below: list[tuple[str, Any]] = []
        for where, node in level:
            if id(node) in seen or len(seen) > _MAX_NODES:
                continue
            seen.add(id(node))
            weights = _module(where, node) or _state_dict(where, node)
            if weights is not None:
                found.append(weights)
            elif not is_optimizer(node):
                below += _inside(where, node)
        level = below
    return found


def _inside(where: str, node: Any) -> list[tuple[str, Any]]:
    return [
        (f"{where}.{key}" if where else key, value)
        for key, value in (items_of(node) or {}).items()
        if isinstance(key, str)
        and isinstance(value, dict | Opaque)
        and not _NEVER.fullmatch(key.lower())
    ]


def is_extra_state(key: str) -> bool:
    """Say whether a key of a state dict is what a module's get_extra_state() gave, of any type."""
    return key.rpartition(".")[2] == "_extra_state"


def _state_dict(where: str, node: Any) -> WeightSet | None:
    items = items_of(node)
    if not items or not all(type(key) is str for key in items):
        return None
    tensors = {
        key: tensor
        for key, value in items.items()
        if not is_extra_state(key) and (tensor := _tensor(value)) is not None
    }
    others = {key: value for key, value in items.items() if key not in tensors}
    metadata = None
    if isinstance(node, TaggedDict) and node.attributes:
        metadata = items_of(node.attributes.get("_metadata"))
    strange = [
        key
        for key, value in others.items()
        if value is not None
        and not is_extra_state(key)
        and not (isinstance(value, Opaque) and value.is_tensor)
    ]
    has_tensor = bool(tensors) or len(strange) < sum(v is not None for v in others.values())
    # A dict that carries `_metadata` came from Module.state_dict(), whatever else modules put in
    # it.
    if not has_tensor or (strange and metadata is None):
        return None
    return WeightSet(where, tensors, others, metadata)


def _tensor(value: Any) -> AnyTensor | None:
    """Return the tensor that a value is or, in a plain pickle, that its array stands for."""
    if isinstance(value, AnyTensor):
        return value
    return value.tensor if isinstance(value, Array) else None


def _module(where: str, node: Any) -> WeightSet | None:
    """Return the weights of a pickled nn.Module, named as its state_dict() would name them."""
    if not _is_module(node):
        return None
    weights = WeightSet(where, {}, module=node.name)
    visits = 0
    pending: list[tuple[str, Opaque]] = [("", node)]
    while pending:
        prefix, module = pending.pop()
        visits += 1
        if visits > _MAX_MODULES or prefix.count(".") > _MAX_MODULE_DEPTH:
            raise UntrustedError(
                "the pickled module has no end: one of its submodules holds itself, or is used "
                f"more than {_MAX_MODULES} times"
            )
        state = module.state
        hidden = state.get("_non_persistent_buffers_set")
        for group, kind in _GROUPS:
            for name, value in (items_of(state.get(group)) or {}).items():
                if value is None or (
                    kind == "buffer" and isinstance(hidden, set) and name in hidden
                ):
                    continue
                tensor = _tensor(value)
                if isinstance(tensor, Tensor | Sparse | Quantised):
                    weights.tensors[f"{prefix}{name}"] = replace(tensor, kind=kind)
                else:
                    weights.others[f"{prefix}{name}"] = value
        children = [
            (f"{prefix}{name}.", child)
            for name, child in (items_of(state.get("_modules")) or {}).items()
            if _is_module(child)
        ]
        pending += reversed(children)
    return weights


def script_weights(root: Any) -> WeightSet:
    """Return the tensors of a TorchScript archive's module, by the paths of its attributes.

    Plain attributes that are tensors are among them: only the archive's code tells them apart.
    """
    weights = WeightSet("", {}, module=root.name if _is_script(root) else None)
    visits = 0
    pending: list[tuple[str, Any]] = [("", root)] if _is_script(root) else []
    while pending:
        prefix, module = pending.pop()
        visits += 1
        if visits > _MAX_MODULES or prefix.count(".") > _MAX_MODULE_DEPTH:
            raise UntrustedError("the scripted module holds itself")
        below: list[tuple[str, Any]] = []
        for name, value in keyed_by_text(module.state).items():
            if isinstance(value, Tensor):
                kind: Kind = "parameter" if value.requires_grad else "tensor"
                weights.tensors[f"{prefix}{name}"] = replace(value, kind=kind)
            elif _is_script(value):
                below.append((f"{prefix}{name}.", value))
        pending += reversed(below)
    return weights


def _is_script(node: Any) -> bool:
    """Say whether a node is an object of a class that the archive's own code defines."""
    return (
        isinstance(node, Opaque)
        and node.name.startswith("__torch__.")
        and isinstance(node.state, dict)
    )


def _is_module(node: Any) -> bool:
    return (
        isinstance(node, Opaque)
        and isinstance(node.state, dict)
        and isinstance(node.state.get("_modules"), dict)
        and isinstance(node.state.get("_parameters"), dict)
    )


def _summary(root: Any) -> str:
    items = items_of(root)
    if items is None:
        return f"it is {_kind(root)}"
    shown = [f"{str(key)[:40]!r}: {_kind(value)}" for key, value in list(items.items())[:12]]
    more = f", and {len(items) - 12} more" if len(items) > 12 else ""
    return f"a dict of {len(items)}: {', '.join(shown)}{more}" if shown else "an empty dict"


def _kind(value: Any) -> str:
    if isinstance(value, AnyTensor):
        return f"a {value.dtype} tensor of shape {value.shape}"
    if isinstance(value, Opaque):
        return f"an object of {value.name[:80]}"
    if isinstance(value, dict | list | tuple | set):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
