"""Checkpoint files in memory, and loads from them: all of the tensor code, and no registry."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from registry import drafting, loads
from registry.containers import Contents, Description, describe
from registry.containers import read as read_container
from registry.planning import LoadPlan, Wanted, make_plan
from registry.records import File
from registry.tensors import applying, building, hardware, observe, writing
from registry.tensors.rng import capture
from registry.values import FORMAT, Digest


class Bytes:
    """A file in memory, as a ByteSource."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


@dataclass
class Loaded:
    """A planned load: its plan, and the builder of the file."""

    plan: LoadPlan
    builder: building.Builder
    description: Description
    contents: Contents


def saved(net: nn.Module, *, optimizer: Any = None, rng: bool = False, **beside: Any) -> bytes:
    """Return the file that a save of a net writes."""
    live = observe.observe(net)
    tree = writing.contents(
        live,
        epoch=1,
        model="net",
        dataset=None,
        acc=None,
        record={
            "format": FORMAT,
            "model": "net",
            "topology": hardware.topology(live).to_dict(),
        },
        optimizers=observe.named_optimizers(optimizer),
        rng={"rng": capture()} if rng else None,
        **beside,
    )
    return written(tree)


def written(tree: Mapping[str, Any]) -> bytes:
    """Return the file that a tree becomes."""
    buffer = io.BytesIO()
    writing.write(tree, buffer)
    return buffer.getvalue()


def torch_saved(tree: object, **how: Any) -> bytes:
    """Return what torch.save makes of a tree."""
    buffer = io.BytesIO()
    torch.save(tree, buffer, **how)
    return buffer.getvalue()


def torch_loaded(data: bytes, **how: Any) -> Any:
    """Return what plain torch.load makes of a file, without running its code."""
    return torch.load(io.BytesIO(data), weights_only=True, **how)


def builder_of(data: bytes, **how: Any) -> tuple[building.Builder, Contents]:
    """Return a builder of a file, on a copy of its bytes as a private mapping would be."""
    contents = read_container(Bytes(data), "file.pt")
    return building.Builder(contents, bytearray(data), **how), contents


def planned(data: bytes, net: nn.Module | None = None, **wanted: Any) -> Loaded:
    """Return the planned load of a file, into a net with whatever else is to be restored."""
    beside = {k: wanted.pop(k) for k in ("optimizer", "scheduler", "stateful") if k in wanted}
    builder, contents = builder_of(data)
    source = Bytes(data)
    description = describe(contents, source)
    record = drafting.recorded(description.record)
    known = drafting.merge(drafting.check(model="net"), description, record)
    checkpoint, _ = drafting.draft(
        known, contents, description, origin="push", record=record,
        files=(File("file.pt", Digest("blake3:" + "0" * 64), len(data)),), author=None,
    )  # fmt: skip
    opened = loads.Opened(checkpoint, {}, contents, description, record)
    target = None
    if net is not None:
        target = observe.target_of(
            net,
            observe.observe(net),
            optimizers=observe.named_optimizers(beside.get("optimizer")),
            scheduler=beside.get("scheduler"),
            stateful=beside.get("stateful"),
        )
    plan = make_plan(loads.saved_side(opened), target, Wanted(**wanted), hardware.machine())
    return Loaded(plan, builder, description, contents)


def load(data: bytes, net: nn.Module, **wanted: Any) -> tuple[str, ...]:
    """Load a file into a net, and into whatever else is given; return the keys that were set."""
    made = planned(data, net, **wanted)
    return applying.apply(
        made.plan,
        made.builder,
        made.description,
        net,
        observe.observe(net),
        optimizers=observe.named_optimizers(wanted.get("optimizer")),
        scheduler=wanted.get("scheduler"),
        stateful=wanted.get("stateful"),
    )


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a net's state under canonical names."""
    live = observe.observe(net)
    return {
        name: value.clone()
        for raw, name in live.canonical.items()
        if isinstance(value := live.state[raw], torch.Tensor)
    }


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Say whether two states have the same names and the same bits."""
    from registry.tensors.checks import same_bits

    return a.keys() == b.keys() and len(a) > 0 and all(same_bits(a[k], b[k]) for k in a)
