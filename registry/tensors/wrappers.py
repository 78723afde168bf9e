"""The module tree: which modules are wrappers, and where their tokens stand in the keys.

Law: wrappers are known by their class (`isinstance`), never by an attribute's name, so a real
submodule called `module` or `model` stays. Knows modules and keys; nothing of files or plans.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from ..errors import RefusedLoadError
from ..signature import KeyStyle, Kind

CHECKPOINT_TOKEN: Final = "_checkpoint_wrapped_module"
"""checkpoint_wrapper's own hooks take it out of the keys; `_metadata` and missing keys have it."""

# A wrapper can only be in the tree if its module has been imported, so none is imported here:
# torch._dynamo alone costs a second. (module, class, the attribute that holds the wrapped module)
_WRAPPERS: Final = (
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.optim.swa_utils", "AveragedModel", "module"),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel", "_fsdp_wrapped_module"),
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
        CHECKPOINT_TOKEN,
    ),
)

FSDP1: Final = ("torch.distributed.fsdp", "FullyShardedDataParallel")
FSDP2: Final = ("torch.distributed.fsdp", "FSDPModule")
DEEPSPEED: Final = ("deepspeed.runtime.engine", "DeepSpeedEngine")
_SHARDED_TENSORS: Final = (
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed._shard.sharded_tensor", "ShardedTensor"),
)


def _class(module: str, name: str) -> type | None:
    """Return a class if its module has been imported."""
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def is_a(value: object, module: str, name: str) -> bool:
    """Return whether a value is of a class that need not have been imported."""
    cls = _class(module, name)
    return cls is not None and isinstance(value, cls)


def class_name(value: object) -> str:
    """Return the full name of a value's class: `torch.optim.adam.Adam`."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A module where it was met.

    Attributes:
        raw: its path with the wrappers' tokens, as `named_modules` has it.
        path: its canonical path.
        token: None unless it is a wrapper: then what it calls the module that it wraps.
    """

    raw: str
    path: str
    module: nn.Module
    token: str | None


def join(path: str, name: str) -> str:
    """Return the path of something in a module."""
    return f"{path}.{name}" if path else name


def walk(net: nn.Module) -> Iterator[Place]:
    """Visit every module at every path that leads to it, in registration order."""
    wrappers = [(cls, token) for home, name, token in _WRAPPERS if (cls := _class(home, name))]
    stack = [("", "", net)]
    while stack:
        raw, path, module = stack.pop()
        token = next((token for cls, token in wrappers if isinstance(module, cls)), None)
        yield Place(raw, path, module, token)
        stack.extend(
            (join(raw, name), path if name == token else join(path, name), child)
            for name, child in reversed(list(module._modules.items()))
            if child is not None
        )


class Names:
    """Follows state_dict keys down the module tree, and notes where wrappers' tokens stood.

    Args:
        places: what `walk` gave, the root first.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._root = places[0].module
        self._tokens = {id(p.module): p.token for p in places if p.token is not None}
        self.kinds: dict[str, Kind] = {}
        self.wrapper_state: dict[str, str] = {}
        self.owners: dict[str, tuple[nn.Module, str]] = {}
        # (canonical path, how many wrappers stand above it there) -> token -> one key with and one
        # without it
        self._seen: dict[tuple[str, int], tuple[str, dict[bool, str]]] = {}

    def canonical(self, key: str) -> str | None:
        """Return the canonical name of a raw key, or None for a wrapper's own state.

        checkpoint_wrapper's own hooks take its token out of the keys (and put it back on loading),
        so a token may be missing; whether it is, is seen in each key, and must be the same in all.
        """
        segments = key.split(".")
        node: nn.Module | None = self._root
        path: list[str] = []
        depth = 0
        while segments and node is not None:
            token = self._tokens.get(id(node))
            if token is None:
                child = node._modules.get(segments[0])
                if child is None:
                    self._note(node, key, path, segments)
                    break
                path.append(segments.pop(0))
                node, depth = child, 0
                continue
            wrapped = node._modules[token]
            has_token = len(segments) > 1 and segments[0] == token
            its_own = segments[0] in node._parameters or segments[0] in node._buffers
            if not has_token and (its_own or not self._leads_into(wrapped, token, segments[0])):
                self._own(node, key, path, segments)
                return None
            where = (".".join(path), depth)
            self._seen.setdefault(where, (token, {}))[1].setdefault(has_token, key)
            if has_token:
                segments.pop(0)
            node, depth = wrapped, depth + 1
        return ".".join([*path, *segments])

    def _note(self, node: nn.Module, key: str, path: list[str], segments: list[str]) -> None:
        name = ".".join([*path, *segments])
        if segments[0] in node._parameters:
            self.kinds[name] = "parameter"
        elif segments[0] in node._buffers:
            self.kinds[name] = "buffer"
        elif segments != ["_extra_state"]:
            return  # a hook made it up: nobody holds it
        self.owners[key] = (node, segments[0])

    def _own(self, wrapper: nn.Module, key: str, path: list[str], segments: list[str]) -> None:
        if is_a(wrapper, "torch.optim.swa_utils", "AveragedModel") and segments == ["n_averaged"]:
            name = ".".join([*path, "n_averaged"])
            if self.wrapper_state.setdefault(name, key) != key:
                raise RefusedLoadError(f"two AveragedModels are nested: {name!r} is ambiguous")
            self.owners[key] = (wrapper, "n_averaged")
            return
        raise RefusedLoadError(
            f"the key {key!r} belongs to the wrapper {class_name(wrapper)}, not to its net",
            hint="keep parameters and buffers in the wrapped module",
        )

    def _leads_into(self, module: nn.Module | None, token: str, name: str) -> bool:
        """Return whether a key that lacks a wrapper's token can be the wrapped module's."""
        if token == CHECKPOINT_TOKEN or name == "_extra_state":
            return True
        while module is not None and (token := self._tokens.get(id(module), "")):
            if name == token:
                return True
            module = module._modules[token]
        return module is not None and any(
            name in held for held in (module._modules, module._parameters, module._buffers)
        )

    def style(self) -> KeyStyle:
        """Return where tokens stood. Raises RefusedLoadError where one stood in some keys only."""
        wraps: dict[str, tuple[str, ...]] = {}
        for (path, _), (token, keys) in sorted(self._seen.items()):
            if len(keys) > 1:
                raise RefusedLoadError(
                    f"state_dict() mixes keys with and without {token!r}: {keys[True]!r}, "
                    f"{keys[False]!r}",
                    hint="a state_dict hook or override of the net renames some keys only: "
                    "make it treat all alike",
                )
            if True in keys:
                wraps[path] = (*wraps.get(path, ()), token)
        return KeyStyle(tuple(sorted(wraps.items())))


def is_sharded(net: nn.Module) -> bool:
    """Say whether a net's ranks hold parts of it, so that they have to save and load together.

    A forward without a backward, as in validation, leaves FSDP2's parameters gathered (torch 2.13):
    they are no DTensors until the net is asked for its state. So the modules are asked as well.
    """
    return any(
        is_a(p.module, *FSDP1)
        or is_a(p.module, *FSDP2)
        or any(
            is_a(tensor, home, name)
            for held in (p.module._parameters, p.module._buffers)
            for tensor in held.values()
            for home, name in _SHARDED_TENSORS
        )
        for p in walk(net)
    )


def refuse_deepspeed(places: Sequence[Place]) -> None:
    """Refuse a net that DeepSpeed has taken over.

    Raises:
        RefusedLoadError: one of the modules is its engine.
    """
    for p in places:
        if is_a(p.module, *DEEPSPEED):
            raise RefusedLoadError(
                f"the net is DeepSpeed's (strategy 'deepspeed') at {p.raw or 'its root'!r}, which "
                "keeps its parameters in a way of its own",
                hint="let it save: engine.save_checkpoint(DIR), then: ckreg push DIR",
            )
