"""The state dict that a DCP folder's flat names make, and where its weights are.

Law: names nest as the planner says, and nothing is lost: neither the numbers among a dict's keys,
which DCP writes as text, nor an optimizer's empty state, which it leaves out. Where the model's
tensors stand at the top beside all else, as torchtitan saves them, they become `model`, and an
optimizer that was flattened by parameter becomes `optimizer` again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import DamagedError
from .dcp_metadata import Path
from .tree import AnyTensor
from .weights import CUSTOMARY, find


class _Level(dict[Any, Any]):
    """A dict or a list of the state dict while it is put together."""


def nest(values: Mapping[str, Any], paths: Mapping[str, Path], label: str) -> dict[str, Any]:
    """Return the nested state dict.

    Args:
        values: by flat name.
        paths: where each belongs; a name without one stands at the top.
        label: how to call `.metadata` in errors.

    Raises:
        DamagedError: two values belong at one place, or a list has holes.
    """
    top = _Level()
    for name, value in values.items():
        path = paths.get(name, (name,))
        level = top
        for part in path[:-1]:
            level = level.setdefault(part, _Level())
            if type(level) is not _Level:
                raise DamagedError(f"{label!r} puts {name!r} inside another value")
        if path[-1] in level:
            raise DamagedError(f"{label!r} puts two values at {path!r}")
        level[path[-1]] = value
    made = _settled(top, label)
    if not isinstance(made, dict):
        raise DamagedError(f"{label!r} describes a list, and no state dict")
    return made


def _settled(level: _Level, label: str) -> dict[Any, Any] | list[Any]:
    items = {k: _settled(v, label) if type(v) is _Level else v for k, v in level.items()}
    numbers = [key for key in items if type(key) is int]
    if not numbers:
        return _with_numbers(items)
    if len(numbers) != len(items) or sorted(numbers) != list(range(len(items))):
        raise DamagedError(f"{label!r} describes a list with holes")
    return [items[i] for i in range(len(items))]


def _with_numbers(items: dict[Any, Any]) -> dict[Any, Any]:
    """Return a dict as it was before DCP made its keys text and left out what was empty
    (torch/distributed/checkpoint/_traverse.py, 2.6 to 2.13: `path + (str(k),)`).

    Numbers are keys in an optimizer's state, by the positions that its groups name, and in a
    MultiStepLR's `milestones`.
    """
    groups, milestones = items.get("param_groups"), items.get("milestones")
    if isinstance(groups, list) and groups and all(_is_group(group) for group in groups):
        positions = {str(i): i for group in groups for i in group["params"] if type(i) is int}
        state = items.get("state", {})
        if isinstance(state, dict):
            items = {**items, "state": {positions.get(k, k): v for k, v in state.items()}}
    if isinstance(milestones, dict) and all(str(key).isdecimal() for key in milestones):
        items = {**items, "milestones": {int(key): many for key, many in milestones.items()}}
    return items


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("params"), list)


def arrange(root: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with its model and optimizer under names of their own."""
    app = root.get("app")  # as PyTorch's own recipe for DCP calls it
    if isinstance(app, dict) and any(name in app for name in CUSTOMARY):
        rest = {key: value for key, value in root.items() if key != "app"}
        if not rest.keys() & app.keys():
            root = {**app, **rest}
    root, optimizer = _take_optimizer(root)
    tensors = {key: v for key, v in root.items() if isinstance(v, AnyTensor)}
    if tensors and (optimizer is not None or _are_weights(root, tensors)):
        name = "model" if "model" not in root else "state_dict"
        root = {name: tensors, **{key: v for key, v in root.items() if key not in tensors}}
    trained = root.get("train_state")  # torchtitan's: step and ntokens_seen
    if isinstance(trained, dict) and "step" in trained:
        root.setdefault("step", trained["step"])
    return root if optimizer is None else {**root, "optimizer": optimizer}


def _are_weights(root: dict[str, Any], tensors: dict[str, AnyTensor]) -> bool:
    """Say whether the tensors at the top are the weights, rather than a dict of tensors below."""
    if len(tensors) == len(root):
        return False  # a state dict as it is
    below = find({k: v for k, v in root.items() if k not in tensors})
    if any(w.where.split(".")[0] in CUSTOMARY for w in below):
        return False
    most = max((sum(t.elements for t in w.tensors.values()) for w in below), default=0)
    return sum(t.elements for t in tensors.values()) >= most


_STATE: Final = "state."
_GROUPS: Final = "param_groups."


def _take_optimizer(root: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Split off an optimizer that `flatten_optimizer_state_dict` spread over the top.

    `state.NAME.SLOT` and `param_groups.NAME.OPTION`, for each parameter
    (torch/distributed/checkpoint/state_dict.py). Parameters whose options are all equal make a
    group again; the groups' order is that of their first parameters.
    """
    options: dict[str, dict[str, Any]] = {}
    for key, value in root.items():
        if key.startswith(_GROUPS):
            name, _, option = key.removeprefix(_GROUPS).rpartition(".")
            options.setdefault(name, {})[option] = value
    if not options or not options.keys() <= root.keys() or "optimizer" in root:
        return root, None
    state: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    for key, value in root.items():
        if key.startswith(_GROUPS):
            continue
        name, _, slot = key.removeprefix(_STATE).rpartition(".")
        if key.startswith(_STATE) and name in options:
            state.setdefault(name, {})[slot] = value
        else:
            rest[key] = value
    groups: list[dict[str, Any]] = []
    for name, given in options.items():
        for group in groups:
            if _same({k: v for k, v in group.items() if k != "params"}, given):
                group["params"].append(name)
                break
        else:
            groups.append({**given, "params": [name]})
    return rest, {"state": state, "param_groups": groups}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Say whether two sets of options are equal; those that hold tensors never are."""
    try:
        return a.keys() == b.keys() and all(_is_option(v) for v in a.values()) and a == b
    except RecursionError:
        return False


def _is_option(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple) or value is None
