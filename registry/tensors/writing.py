"""What `save` writes: one torch file of plain Python values and tensors, with canonical keys.

Law: `torch.load(path, weights_only=True)` reads it with no ckreg in sight; what has no plain form
is refused before a byte is written, by its path; equal state gives equal bytes in any process.
Tensors stay where they are: torch copies each storage once, while it writes, and records its
device.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import RefusedLoadError
from . import fsdp1
from .observe import Live, optimizer_groups
from .plain import Plainer
from .spread import Spread, local_of
from .views import storages_of
from .wrappers import class_name


class Writer(Protocol):
    """What a file is written into: a staged file, an `io.BytesIO`."""

    def write(self, data: bytes, /) -> int:
        """Take all of the bytes."""
        ...

    def flush(self) -> object:
        """Finish what was written so far."""
        ...


def facts_of(live: Live, *, optimizers: Mapping[str, Any], scheduler: object) -> dict[str, Any]:
    """Return the part of a file's own record that only the live objects know.

    Raises:
        RefusedLoadError: an optimizer holds a parameter that isn't the net's.
    """
    return {
        "key_style": str(live.key_style),
        "weights": "ema" if live.averaged else "live",
        "buffers": [t.key for t in live.signature.tensors if t.kind != "parameter"],
        "ties": [list(group) for group in live.ties],
        "optimizers": {
            name: {
                "class": class_name(one),
                "groups": [list(group) for group in optimizer_groups(one, live, name)],
            }
            for name, one in optimizers.items()
        },
        "scheduler": None if scheduler is None else class_name(scheduler),
    }


def contents(
    live: Live,
    *,
    epoch: int | None,
    model: str,
    dataset: str | None,
    acc: float | None,
    record: Mapping[str, Any],
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    config: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    optimizers: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    stateful: Mapping[str, Any] | None = None,
    rng: Mapping[str, Any] | None = None,
    extra: Any = None,
) -> dict[str, Any]:
    """Return the dict to write: the customary keys, what is present of the others, and the record.

    Args:
        record: the file's own record as far as the caller knows it; `facts_of` is laid under it.
        rng: the random states, under the key that they have in a file: `rng` this process's,
            `rng_states` those of ranks, by number.
        optimizers: by name; one alone called `optimizer` is written as torch's own state_dict.
        extra: anything with a plain form; None and {} are left out.

    Raises:
        TypeError, ValueError: something has no plain form; the message gives its path.
        RefusedLoadError: a tensor has no values (meta), or an optimizer holds a parameter that
            isn't the net's.
    """
    optimizers = optimizers or {}
    # Before anything slow: what an optimizer holds may be refused.
    facts = facts_of(live, optimizers=optimizers, scheduler=scheduler)
    plain = Plainer()
    tree: dict[str, Any] = {
        "epoch": epoch,
        "model": plain(model, "model"),
        "dataset": plain(dataset, "dataset"),
        "state_dict": _state_dict(live, plain),
        "acc": acc,
    }
    alone = list(optimizers) == ["optimizer"]
    states = {name: _optimizer_state(one, live, name) for name, one in optimizers.items()}
    present = {
        "step": step,
        "metrics": dict(metrics or {}),
        "config": config,
        "batch_size": batch_size,
        "optimizer": states["optimizer"] if alone else states,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "stateful": {name: one.state_dict() for name, one in (stateful or {}).items()},
        **(rng or {}),
        "extra": extra,
        "wrapper_state": {name: live.state[key] for name, key in live.wrapper_state.items()},
        "ckreg": {**facts, **record},
    }
    for key, value in present.items():
        if value is not None and value != {}:
            tree[key] = plain(value, key)
    plain.compact()
    return tree


def _optimizer_state(optimizer: Any, live: Live, name: str) -> Any:
    """Return an optimizer's state_dict; of a spread net by canonical names, as DCP has it."""
    if not live.spread:
        return optimizer.state_dict()
    if fsdp1.has(live.places):
        return fsdp1.optimizer_state(optimizer, live.places[0].module, live.canonical)
    given = optimizer.state_dict()
    groups = optimizer_groups(optimizer, live, name)
    names = {
        position: found
        for group, found_in in zip(given["param_groups"], groups, strict=True)
        for position, found in zip(group["params"], found_in, strict=True)
    }
    return {
        "state": {names.get(key, key): entry for key, entry in given["state"].items()},
        "param_groups": [
            {**group, "params": list(found)}
            for group, found in zip(given["param_groups"], groups, strict=True)
        ],
    }


def _state_dict(live: Live, plain: Plainer) -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = OrderedDict()
    for raw, name in live.canonical.items():
        value = live.state[raw]
        if isinstance(value, Tensor) and local_of(value).is_meta:
            raise RefusedLoadError(
                f"{name} is on the meta device: it has a shape and no values to save",
                hint="materialise the net first, or load a checkpoint into it",
            )
        state[sys.intern(name)] = plain(value, f"state_dict.{name}")
    if live.metadata is not None:
        # nn.Module reads it as an attribute; a pickle of an OrderedDict keeps attributes.
        metadata = OrderedDict(plain(live.metadata, "state_dict._metadata"))
        state._metadata = metadata  # type: ignore[attr-defined]
    return state


def size_bytes(tree: object) -> int:
    """Return how many tensor bytes a tree of plain values takes in the file, each storage once."""
    storages: dict[int, int] = {}
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            storages.update(storages_of(value))
        elif isinstance(value, Spread):
            stack.extend(part for _, part in value.parts)
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
    return sum(storages.values())


def write(
    tree: Mapping[str, Any], writer: Writer, *, tags: Mapping[int, str] | None = None
) -> None:
    """Write a tree of plain values as a torch zip file.

    Args:
        tags: the devices that the file names for storages, by `_cdata`, in place of their own.

    Raises:
        Exception: whatever the writer raised; torch hides it behind an error of its zip writer.
    """
    guard = _Guard(writer)
    module = _tagging(tags) if tags else pickle
    try:
        torch.save(tree, cast("IO[bytes]", guard), pickle_module=module)
    except BaseException:
        if guard.error is not None:
            raise guard.error from None
        raise


def _tagging(tags: Mapping[int, str]) -> types.ModuleType:
    """Return a pickle module for torch.save that writes tags of our choice.

    torch.save derives its pickler from `pickle_module.Pickler` and gives it a `persistent_id`,
    whose fourth item is the device (torch 2.10 to 2.13). This Pickler wraps that method in the
    derived class: nothing global changes, unlike with torch.serialization.register_package.
    """

    class Pickler(pickle.Pickler):
        def __init_subclass__(cls) -> None:
            inner = cls.persistent_id

            def persistent_id(self: Any, value: Any) -> Any:
                pid = inner(self, value)
                if pid is None:
                    return None
                kind, storage_type, key, own, elements = pid
                storage = getattr(value, "_untyped_storage", value)
                return kind, storage_type, key, tags.get(storage._cdata, own), elements

            cls.persistent_id = persistent_id  # type: ignore[method-assign]

    module = types.ModuleType("pickle_with_tag")
    module.Pickler = Pickler  # type: ignore[attr-defined]
    return module


class _Guard:
    """A writer that remembers its first error, and writes nothing more after it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        try:
            return self._writer.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._writer.flush()
