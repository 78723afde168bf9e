"""The load plan: every decision of a load, with its reason, as one immutable value.

Law: a load does what its plan says and nothing else; whatever the file holds is either moved,
restored or in `ignored` with the reason. `str` is for a person (text.py), `to_dict` for a program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..keys import Reading
from ..records import Provenance
from ..signature import KeyStyle
from ..topology import Topology
from ..values import FORMAT
from .inputs import Choice

KeysFrom = Literal["recorded", "stated", "inferred", "as they are"]
"""Why the file's keys are read so: its record, the caller, the target; or they are not read."""

NOT_ASKED: Final = "not asked for"
"""How the reason begins for whatever the file holds and the caller's keywords leave out."""


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor on its way.

    Attributes:
        source: its raw key in the file. A tied name that the file lacks has its partner's source.
        canonical: its canonical key.
        key: its key in the target, or in the state dict that is returned.
        dtype, to_dtype: what it is in the file, and what it becomes.
        check_finite: the cast can lose values: each must be finite after it, or for integers equal.
    """

    source: str
    canonical: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    to_dtype: str
    device: str
    size_bytes: int
    check_finite: bool = False


@dataclass(frozen=True, slots=True)
class OptimizerMove:
    """One optimizer's state on its way.

    Attributes:
        order: per position in the target (parameters counted through all groups) the position in
            the file.
        groups: per param group of the target the group in the file.
        proof: how the order is known.
    """

    name: str
    cls: str
    order: tuple[int, ...]
    groups: tuple[int, ...]
    proof: Literal["recorded", "param_names", "shapes", "no state"]

    @property
    def reordered(self) -> bool:
        """Whether any position or group changes."""
        return self.order != tuple(range(len(self.order))) or self.groups != tuple(
            range(len(self.groups))
        )


@dataclass(frozen=True, slots=True)
class Note:
    """Something, and the reason for what happens to it."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a load needs.

    Attributes:
        devices: device -> bytes of what lands there, as it is after the load; what is one tensor
            counts once. In a net that is there already this memory is taken already.
        host_peak: the most that the host holds at once: what lands on the CPU, and the part of the
            file that is read, which is mapped and which the system may drop at need.
    """

    devices: Mapping[str, int]
    host_peak: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadPlan:
    """How a checkpoint is loaded.

    Attributes:
        ref: the checkpoint.
        reader: the kind of file, which names the reader.
        into_target: whether there is a target; else a state dict is returned.
        weights: which weights are loaded.
        where: their dotted path in the file.
        map_location: one device, `recorded`, or `each parameter's device`.
        device_reason: why.
        moves: every tensor that is loaded.
        others: entries that are no tensors: raw key in the file, canonical key.
        reading: how the file's keys are read: their wrappers, and an attribute to drop or add.
        out_keys: how the keys that come out are wrapped.
        keys_from: how the first is known.
        dtype: exact, or the cast that was allowed.
        assign: the target is on meta: its tensors are replaced, not filled.
        retie: groups of target keys to tie again after assigning.
        must_equal: groups of target keys that are one tensor in the target, and several in the
            file: their values must be compared, and the load refused if they differ.
        rebuild: buffers of a meta target that no state dict holds.
        wrapper_state: the wrapper's own tensors that are restored: name (or raw key) in the file,
            name in the target.
        optimizers, scheduler, stateful, rng: what is restored besides the weights.
        ignored: what the file holds and the load leaves.
        kept: what the target has and the file lacks, besides weights.
        missing, unexpected, mismatched: canonical keys that `allow=` excused.
        bytes_to_read: tensor bytes that the load reads.
        size_bytes: those of the whole file.
        memory: what the load needs, on the host and on each device.
        topology: what it was saved on.
        provenance: where topology and key style come from.
        python: the same by hand, with plain torch.
    """

    ref: str
    reader: str
    into_target: bool
    weights: Choice
    where: str
    map_location: str
    device_reason: str
    moves: tuple[Move, ...]
    others: tuple[tuple[str, str], ...] = ()
    reading: Reading
    out_keys: KeyStyle
    keys_from: KeysFrom
    dtype: Literal["exact", "widen", "narrow"] = "exact"
    assign: bool = False
    retie: tuple[tuple[str, ...], ...] = ()
    must_equal: tuple[tuple[str, ...], ...] = ()
    rebuild: tuple[str, ...] = ()
    wrapper_state: tuple[tuple[str, str], ...] = ()
    optimizers: tuple[OptimizerMove, ...] = ()
    scheduler: bool = False
    stateful: tuple[str, ...] = ()
    rng: bool = False
    ignored: tuple[Note, ...] = ()
    kept: tuple[Note, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    bytes_to_read: int = 0
    size_bytes: int = 0
    memory: Memory = field(default_factory=lambda: Memory({}, 0))
    advice: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    topology: Topology = field(default_factory=Topology)
    provenance: Provenance = field(default_factory=Provenance)
    python: str = ""

    @property
    def file_keys(self) -> KeyStyle:
        """How the file's keys are wrapped."""
        return self.reading.style

    @property
    def renames(self) -> dict[str, str]:
        """Raw key in the file -> target key, those that differ; a tied name's fill is no rename."""
        found: dict[str, str] = {}
        for move in self.moves:
            if move.source not in found:
                found[move.source] = move.key
        return {source: key for source, key in found.items() if source != key}

    @property
    def casts(self) -> tuple[Move, ...]:
        """The moves that change the dtype."""
        return tuple(m for m in self.moves if m.dtype != m.to_dtype)

    def __repr__(self) -> str:
        return (
            f"<LoadPlan {self.ref} {len(self.moves)} tensors, map_location={self.map_location!r}, "
            f"{len(self.renames)} renamed>"
        )

    def __str__(self) -> str:
        from .text import (
            plan_text,
        )  # text.py reads this class; an import at the top would be a circle

        return plan_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (plain dicts, lists, text and numbers)."""
        return {
            "format": FORMAT,
            "ref": self.ref,
            "reader": self.reader,
            "into_target": self.into_target,
            "weights": self.weights,
            "where": self.where,
            "map_location": self.map_location,
            "device_reason": self.device_reason,
            "moves": [
                {
                    "source": m.source, "canonical": m.canonical, "key": m.key,
                    "shape": list(m.shape), "dtype": m.dtype, "to_dtype": m.to_dtype,
                    "device": m.device, "size_bytes": m.size_bytes, "check_finite": m.check_finite,
                }
                for m in self.moves
            ],
            "others": [list(pair) for pair in self.others],
            "renames": self.renames,
            "file_keys": str(self.file_keys),
            "dropped": self.reading.drop,
            "added": self.reading.add,
            "out_keys": str(self.out_keys),
            "keys_from": self.keys_from,
            "dtype": self.dtype,
            "assign": self.assign,
            "retie": [list(group) for group in self.retie],
            "must_equal": [list(group) for group in self.must_equal],
            "rebuild": list(self.rebuild),
            "wrapper_state": [list(pair) for pair in self.wrapper_state],
            "optimizers": [
                {
                    "name": o.name, "class": o.cls, "order": list(o.order),
                    "groups": list(o.groups), "proof": o.proof,
                }
                for o in self.optimizers
            ],
            "scheduler": self.scheduler,
            "stateful": list(self.stateful),
            "rng": self.rng,
            "ignored": [{"what": n.what, "reason": n.reason} for n in self.ignored],
            "kept": [{"what": n.what, "reason": n.reason} for n in self.kept],
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": list(self.mismatched),
            "bytes_to_read": self.bytes_to_read,
            "size_bytes": self.size_bytes,
            "memory": {
                "devices": dict(self.memory.devices), "host_peak": self.memory.host_peak,
            },
            "advice": list(self.advice),
            "warnings": list(self.warnings),
            "topology": self.topology.to_dict(),
            "provenance": {
                "topology": self.provenance.topology,
                "key_style": self.provenance.key_style,
            },
            "python": self.python,
        }  # fmt: skip
