"""What a checkpoint was saved on, as hosts, devices and ranks to draw.

Law: a drawing shows what was recorded and no more: which rank was on which device is drawn only
where it is known, and of very many only so many are drawn, the rest counted. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..formatting import count, size
from ..topology import Device, Topology, short_device

MOST_HOSTS: Final = 12
MOST_BOXES: Final = 16
"""How many hosts are drawn, and how many boxes of each."""


@dataclass(frozen=True, slots=True)
class Box:
    """A device, or a process whose device isn't known.

    Attributes:
        name: the device: `cuda:3`; or what stands for it.
        what: its make and memory, or how many storages are tagged with it.
        rank: of the process on it, where that is recorded.
        wrote: whether that process wrote the file.
    """

    name: str
    what: str = ""
    rank: int | None = None
    wrote: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A host, or what is known only to have been somewhere.

    Attributes:
        name: the host's; None where it wasn't recorded.
        about: how many of what are in it.
        boxes: those that are drawn.
        more: how many others there are.
        certain: whether these very devices were recorded, and not only their number.
    """

    name: str | None
    about: str
    boxes: tuple[Box, ...]
    more: int = 0
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Drawing:
    """Places to draw, how many more there are, and what the drawing can't say."""

    places: tuple[Place, ...] = ()
    more: int = 0
    notes: tuple[str, ...] = ()


def draw(topology: Topology) -> Drawing:
    """Return the drawing of a topology; one without places where nothing was recorded."""
    if topology.ranks:
        return _by_rank(topology)
    kind = topology.device_type
    trained = [d for d in topology.devices if d.type == kind]
    if trained and kind is not None:
        return _by_device(topology, trained, kind)
    if topology.device_count and kind is not None:
        boxes, more = _alike(kind, topology.device_count)
        about = count(topology.device_count, f"{kind} device")
        place = Place(topology.hostname, about, boxes, more, certain=False)
        return Drawing((place,), notes=("how many there were is recorded, not which",))
    if topology.world_size and topology.world_size > 1:
        boxes, more = _alike("process", topology.world_size)
        about = count(topology.world_size, "process", "processes")
        place = Place(topology.hostname, about, boxes, more, certain=False)
        return Drawing((place,), notes=("on which devices isn't recorded",))
    return _by_tag(topology)


def _by_rank(topology: Topology) -> Drawing:
    made = {f"{d.type}:{d.index}": _make(d) for d in topology.devices}
    hosts = topology.hosts()
    places = []
    for host, ranks in list(hosts.items())[:MOST_HOSTS]:
        boxes = [
            Box(
                devices or "device unknown",
                made.get(devices, "") if host == topology.hostname else "",
                rank,
                rank == topology.rank,
            )
            for rank, devices in ranks[:MOST_BOXES]
        ]
        about = count(len(ranks), "rank")
        places.append(Place(host, about, tuple(boxes), len(ranks) - len(boxes)))
    return Drawing(tuple(places), len(hosts) - len(places))


def _by_device(topology: Topology, trained: Sequence[Device], kind: str) -> Drawing:
    """Return the host that wrote, with its devices, and those that were elsewhere."""
    boxes = tuple(Box(f"{d.type}:{d.index}", _make(d)) for d in trained[:MOST_BOXES])
    here = Place(
        topology.hostname, count(len(trained), f"{kind} device"), boxes, len(trained) - len(boxes)
    )
    used, processes = topology.device_count or 0, topology.world_size or 1
    notes = []
    places = [here]
    if used > len(trained):
        ghosts, more = _alike(kind, used - len(trained))
        about = count(used - len(trained), f"{kind} device")
        places.append(Place(None, about, ghosts, more, certain=False))
        notes.append("only what the rank that wrote could see is recorded by name")
    elif 0 < used < len(trained):
        notes.append(f"{used} of these {len(trained)} trained; which isn't recorded")
    if processes > 1:
        notes.append(f"which of the {processes:,} ranks was on which device isn't recorded")
    return Drawing(tuple(places), notes=tuple(notes))


def _by_tag(topology: Topology) -> Drawing:
    tags = sorted(topology.storage_tags.items(), key=lambda item: (-item[1], item[0]))
    if not tags:
        return Drawing()
    boxes = tuple(Box(tag, count(many, "storage")) for tag, many in tags[:MOST_BOXES])
    about = count(len(tags), "device tag")
    return Drawing(
        (Place(topology.hostname, about, boxes, len(tags) - len(boxes)),),
        notes=("all that the file tells: the devices that its storages are tagged with",),
    )


def _alike(name: str, many: int) -> tuple[tuple[Box, ...], int]:
    shown = min(many, MOST_BOXES)
    return (Box(name),) * shown, many - shown


def _make(device: Device) -> str:
    memory = "" if device.memory_bytes is None else size(device.memory_bytes)
    return " · ".join(filter(None, (short_device(device.name), memory)))
