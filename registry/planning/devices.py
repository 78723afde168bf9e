"""Where tensors go: from the target, the wish, the recorded tags and what this machine has.

Law: with a target each tensor goes to its parameter's device; an absent device is refused before a
byte is read; nothing falls back to the CPU but `auto`, which says so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import RefusedLoadError
from .inputs import Machine, Saved, SavedTensor, Target, TargetTensor

RECORDED: Final = "recorded"
PER_PARAMETER: Final = "each parameter's device"

_TYPES: Final = frozenset(
    {"cpu", "cuda", "mps", "xpu", "npu", "hpu", "mtia", "xla", "hip", "ipu", "maia", "mlu", "musa",
     "vulkan", "privateuseone"}
)  # fmt: skip
"""torch.device's types whose tensors a file may hold (torch 2.13, c10/core/DeviceType.h), and the
names that backends outside of PyTorch give to `privateuseone`."""

_DEVICE = re.compile(r"(?P<type>[a-z][a-z0-9_]*)(?::(?P<index>\d{1,4}))?")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where tensors go, and why.

    Attributes:
        map_location: one device, `recorded`, or `each parameter's device`.
        fixed: the device of whatever no parameter decides; None: where it was saved.
    """

    map_location: str
    reason: str
    fixed: str | None

    def device_of(self, saved: SavedTensor, target: TargetTensor | None) -> str:
        """Return the device that one tensor goes to."""
        if target is not None and not target.meta:
            return target.device
        return self.fixed if self.fixed is not None else saved.tag or "cpu"


def place(
    saved: Saved,
    tensors: Iterable[SavedTensor],
    target: Target | None,
    device: str | None,
    machine: Machine | None,
) -> Placement:
    """Return where the chosen tensors go.

    Raises:
        ValueError: device is no device's name.
        RefusedLoadError: this machine lacks it, or it isn't where the target is.
    """
    if device is not None and device not in (RECORDED, "auto"):
        here = () if machine is None else machine.devices
        _check_type(device, _TYPES.union(here, (t.tag.partition(":")[0] for t in tensors)))
    tags = sorted({t.tag or "cpu" for t in tensors} - {"meta"})
    living = sorted({t.device for t in target.tensors if not t.meta}) if target else []
    if target is not None and not any(t.meta for t in target.tensors):
        return _beside_parameters(saved, tags, living, device)
    free = _free(saved, tags, device, machine)
    whole = {*living, *(tags if free.fixed is None else [free.fixed])}
    if not living or len(whole) == 1:
        return free
    return Placement(PER_PARAMETER, f"those on meta: {free.reason}", free.fixed)


def _beside_parameters(
    saved: Saved, tags: list[str], living: list[str], device: str | None
) -> Placement:
    wanted = tags if device == RECORDED else [] if device in (None, "auto") else [str(device)]
    strangers = [w for w in wanted if not any(_agree(w, d) for d in living)]
    strangers += [d for d in living if wanted and not any(_agree(w, d) for w in wanted)]
    if strangers:
        raise RefusedLoadError(
            f"device={device!r} would put the tensors of {saved.ref} on {', '.join(wanted)}, but "
            f"the net is on {', '.join(living)}: with a target each tensor goes to its parameter's "
            "device",
            hint=f"leave device= out, or move the net first: net.to({wanted[0]!r})",
        )
    if len(living) == 1:
        return Placement(living[0], "where the net's parameters are", living[0])
    return Placement(PER_PARAMETER, f"the net is on {', '.join(living) or 'no device'}", "cpu")


def _free(saved: Saved, tags: list[str], device: str | None, machine: Machine | None) -> Placement:
    unchecked = "" if machine is not None else ", as said; not checked here"
    if device is None:
        return Placement("cpu", "no device= was given, and no parameter says where", "cpu")
    if device == RECORDED:
        for tag in tags:
            _present(tag, machine, f"device='recorded': {saved.ref} was saved on {tag!r}")
        return Placement(
            RECORDED, f"device='recorded': {', '.join(tags) or 'cpu'}{unchecked}", None
        )
    if device == "auto":
        kind = _recorded_kind(saved, tags)
        if kind is None or kind == "cpu":
            return Placement("cpu", f"device='auto': saved on {kind or 'an unknown device'}", "cpu")
        if machine is not None and not machine.devices.get(kind, 0):
            return Placement("cpu", f"device='auto': saved on {kind}, which isn't here", "cpu")
        return Placement(kind, f"device='auto': saved on {kind}{unchecked}", kind)
    _present(device, machine, f"device={device!r}")
    return Placement(device, f"device={device!r}{unchecked}", device)


def _recorded_kind(saved: Saved, tags: list[str]) -> str | None:
    if saved.topology.device_type is not None:
        return saved.topology.device_type
    kinds = sorted({tag.partition(":")[0] for tag in tags} - {"cpu"})
    return kinds[0] if len(kinds) == 1 else "cpu" if tags and not kinds else None


def _present(device: str, machine: Machine | None, asked: str) -> None:
    if machine is None:
        return
    kind, index = _parsed(device)
    there = machine.devices.get(kind, 0)
    if index < there:
        return
    raise RefusedLoadError(
        f"{asked}, but this machine has {devices_text(machine.devices)}",
        hint="take device='cpu', or device='auto' for the recorded kind where it is here",
    )


def devices_text(devices: Mapping[str, int]) -> str:
    """Return what a machine has, for a message: `cpu, cuda:0, cuda:1`."""
    shown: list[str] = []
    for kind, many in sorted(devices.items()):
        if kind == "cpu" or (kind == "mps" and many):
            shown.append(kind)
        elif many > 4:
            shown.append(f"{kind}:0 … {kind}:{many - 1}")
        else:
            shown += [f"{kind}:{i}" for i in range(many)]
    return ", ".join(shown) or "nothing"


def _parsed(device: str) -> tuple[str, int]:
    match = _DEVICE.fullmatch(device)
    if match is None or match["type"] == "meta":
        raise ValueError(
            f"device {device!r} is none: take 'cpu', 'cuda', 'cuda:1', 'recorded' or 'auto'"
        )
    return match["type"], int(match["index"] or 0)


def _check_type(device: str, known: frozenset[str]) -> None:
    kind = _parsed(device)[0]
    if kind not in known:
        # by letters alone `gpu` is nearest to `xpu`
        near = ["cuda"] if kind in ("gpu", "nvidia") else difflib.get_close_matches(kind, known, 1)
        raise ValueError(
            f"device {device!r} is none: {kind!r} is no type of device; "
            + (f"did you mean {near[0] + device[len(kind) :]!r}? " if near else "")
            + "there are cpu, cuda, mps, xpu, npu, hpu, …, with a number: 'cuda:1'"
        )


def _agree(wanted: str, device: str) -> bool:
    """Return whether `cuda` or `cuda:1` means the device that a parameter is on."""
    if ":" not in wanted:
        return device.partition(":")[0] == wanted
    return _parsed(wanted) == _parsed(device)
