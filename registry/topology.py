"""What a checkpoint was saved on: strategy, processes, devices, versions.

Law: None means unknown, never a default. Filled from a live process by tensors/, from a file by its
reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from .values import (
    EMPTY,
    FrozenMap,
    count,
    list_of,
    optional_count,
    optional_prose,
    printable,
    table_of,
)

Strategy = Literal["single", "dp", "ddp", "fsdp1", "fsdp2", "tp", "hsdp", "deepspeed"]

STRATEGIES: Final[tuple[str, ...]] = (
    "single", "dp", "ddp", "fsdp1", "fsdp2", "tp", "hsdp", "deepspeed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device:
    """One device as its process saw it.

    Attributes:
        index: its index among the visible ones.
        type: cpu, cuda, mps, xpu, npu, …
        name: what the driver calls it, or None.
        memory_bytes: its whole memory, or None.
    """

    index: int
    type: str
    name: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Mesh:
    """A grid of devices that tensors were spread over: its sizes, and its axes' names if given."""

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, plain: object) -> Mesh:
        """Return the mesh of its JSON form. Raises as `Topology.from_dict`."""
        given = table_of(plain, "mesh")
        return cls(
            tuple(count(n, "mesh size") for n in list_of(given.get("shape"), "mesh shape")),
            tuple(printable(n, "mesh axis") for n in list_of(given.get("names"), "mesh names")),
        )


@dataclass(frozen=True, slots=True)
class Topology:
    """What a checkpoint was saved on; None where unknown.

    Attributes:
        strategy: how the model was spread, see `STRATEGIES`.
        world_size: processes.
        rank: the rank of the process that wrote it.
        backend: torch.distributed's backend, e.g. nccl.
        device_type: the type of the devices that trained.
        device_count: the devices that trained, over all processes.
        devices: every device visible to the writer.
        visible_devices: CUDA_VISIBLE_DEVICES as it was set.
        storage_tags: how many storages carry which device tag in the file, e.g. {'cuda:0': 161}.
        meshes: the grids of devices that a sharded net was spread over.
        placements: how many of its tensors lay how, e.g. {'Shard(0)': 12, 'whole': 3}.
        ranks: where each rank was: host and devices, e.g. 'node1 cuda:3'.
    """

    strategy: Strategy | None = None
    world_size: int | None = None
    rank: int | None = None
    backend: str | None = None
    device_type: str | None = None
    device_count: int | None = None
    devices: tuple[Device, ...] = ()
    visible_devices: str | None = None
    hostname: str | None = None
    torch_version: str | None = None
    cuda_version: str | None = None
    python_version: str | None = None
    storage_tags: FrozenMap[int] = EMPTY
    meshes: tuple[Mesh, ...] = ()
    placements: FrozenMap[int] = EMPTY
    ranks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise ValueError(f"strategy {self.strategy!r} is none of {', '.join(STRATEGIES)}")

    def short(self) -> str:
        """Return it in a few characters: `4 x A100 ddp`, `cpu`, `cuda:7 tags`, `-`."""
        if self.device_type is None and self.strategy is None:
            tags = [t for t in self.storage_tags if t != "cpu"]
            return (
                f"{tags[0]} tags" if len(tags) == 1 else f"{len(tags)} device tags" if tags else "-"
            )
        names = {
            short_device(d.name) for d in self.devices if d.type == self.device_type and d.name
        }
        what = (
            names.pop() if len(names) == 1 and self.device_type != "cpu" else self.device_type or ""
        )
        many = f"{self.device_count} x " if (self.device_count or 1) > 1 else ""
        how = self.strategy if self.strategy not in (None, "single") else ""
        return f"{many}{what} {how}".strip()

    def hosts(self) -> dict[str, list[tuple[int, str]]]:
        """Return the ranks by host, as they were recorded: (rank, its devices).

        Example:
            >>> Topology(ranks=("node1 cuda:0", "node1 cuda:1", "node2 cuda:0")).hosts()
            {'node1': [(0, 'cuda:0'), (1, 'cuda:1')], 'node2': [(2, 'cuda:0')]}
        """
        found: dict[str, list[tuple[int, str]]] = {}
        for rank, place in enumerate(self.ranks):
            host, _, devices = place.partition(" ")
            found.setdefault(host, []).append((rank, devices))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["devices"] = [
            {"index": d.index, "type": d.type, "name": d.name, "memory_bytes": d.memory_bytes}
            for d in self.devices
        ]
        plain["storage_tags"] = self.storage_tags.to_dict()
        plain["meshes"] = [{"shape": list(m.shape), "names": list(m.names)} for m in self.meshes]
        plain["placements"] = self.placements.to_dict()
        plain["ranks"] = list(self.ranks)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Topology:
        """Return the topology that `to_dict` wrote; unknown fields are left out.

        Raises:
            ValueError, TypeError, KeyError: a field is of the wrong type or range.
        """
        plain = table_of(plain, "topology")
        known: dict[str, Any] = {k: plain[k] for k in cls.__slots__ if plain.get(k) is not None}
        for name in ("world_size", "rank", "device_count"):
            if name in known:
                known[name] = count(known[name], name)
        for name in (
            "strategy", "backend", "device_type", "hostname",
            "torch_version", "cuda_version", "python_version",
        ):  # fmt: skip
            if name in known:
                known[name] = printable(known[name], name)
        if "visible_devices" in known:  # may be set, and empty
            optional_prose(known["visible_devices"], "visible_devices")
        known["devices"] = tuple(
            Device(
                count(d["index"], "device index"),
                printable(d["type"], "device type"),
                optional_prose(d.get("name"), "device name"),
                optional_count(d.get("memory_bytes"), "memory_bytes"),
            )
            for d in (table_of(d, "device") for d in list_of(known.get("devices"), "devices"))
        )
        for name in ("storage_tags", "placements"):
            known[name] = FrozenMap(
                {str(k): count(v, name) for k, v in table_of(known.get(name), name).items()}
            )
        known["meshes"] = tuple(map(Mesh.from_dict, list_of(known.get("meshes"), "meshes")))
        known["ranks"] = tuple(printable(r, "rank") for r in list_of(known.get("ranks"), "ranks"))
        return cls(**known)


def short_device(name: str | None) -> str:
    """Return a driver's name, shortened.

    Example:
        >>> short_device("NVIDIA A100-SXM4-80GB"), short_device(None)
        ('A100', '')
    """
    text = re.sub(r"^(NVIDIA|AMD|Intel\(R\)|Apple)\s+", "", name or "")
    text = re.sub(r"^(GeForce|Instinct|Radeon|Tesla)\s+", "", text)
    return re.sub(r"[- ](SXM\d?|PCIe?|HBM\d?e?|NVL|OAM|\d+ ?GB).*$", "", text)
