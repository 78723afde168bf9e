"""What a visitor chooses of a load, and the same as Python and as commands to paste.

Law: every command and every line of Python that is shown runs as it stands, its words quoted for
the shell or by repr, whatever was typed. Pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..records import Checkpoint

DEVICES: Final = ("cpu", "cuda:0", "recorded")

PLAIN: Final = "plain"

WRAPPERS: Final[Mapping[str, str]] = {
    PLAIN: "not wrapped",
    "module.": "DataParallel or DDP",
    "_orig_mod.": "torch.compile",
    "module._orig_mod.": "DDP of a compiled net",
    "_orig_mod.module.": "compiled DDP",
}
"""How the net that will be loaded into is wrapped: the key style, and its name."""

_WRAPPED: Final[Mapping[str, str]] = {
    PLAIN: "{}",
    "module.": "DistributedDataParallel({})",
    "_orig_mod.": "torch.compile({})",
    "module._orig_mod.": "DistributedDataParallel(torch.compile({}))",
    "_orig_mod.module.": "torch.compile(DistributedDataParallel({}))",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        device: a device, or `recorded`.
        wrapper: a key style of WRAPPERS, or `recorded`.
        weights: which of two; None where the file has only one.
        keys: how the file's keys are wrapped, where it can't say.
    """

    device: str = "cpu"
    wrapper: str = PLAIN
    weights: str | None = None
    keys: str | None = None


def wrappers(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the wrappers to choose from; as the net was at the save comes last, if it is none of
    the others.
    """
    found = dict(WRAPPERS)
    style = str(checkpoint.key_style)
    if checkpoint.provenance.key_style == "recorded" and style and style not in found:
        found["recorded"] = "as it was saved"
    return found


def python(ref: str, location: str, choice: Choice) -> str:
    """Return the Python that loads it."""
    options = "".join(
        f", {name}={value!r}"
        for name, value in (("weights", choice.weights), ("keys", choice.keys))
        if value is not None
    )
    wrapped = _WRAPPED.get(choice.wrapper)
    imports = ["from registry import Registry"]
    if wrapped and "Distributed" in wrapped:
        imports.insert(0, "from torch.nn.parallel import DistributedDataParallel")
    if wrapped and "torch." in wrapped:
        imports.insert(0, "import torch")
    lines = [*imports, "", f"reg = Registry.open({location!r})"]
    if choice.device == "recorded" and choice.wrapper == PLAIN:
        lines.append(f"state = reg.load({ref!r}, device='recorded'{options}).state_dict")
        return "\n".join(lines)
    to = "net" if choice.device == "recorded" else f"net.to({choice.device!r})"
    if choice.wrapper == PLAIN:
        lines += [to] * (choice.device != "recorded")
    elif wrapped is None:
        lines += [f"{to}  # wrapped as it was when it was saved"]
    else:
        each = "  # on each rank its own device" if "Distributed" in wrapped else ""
        lines.append(f"net = {wrapped.format(to)}{each}")
    lines.append(f"reg.load({ref!r}, into=net{options})")
    return "\n".join(lines)


def pull(checkpoint: Checkpoint, location: str, choice: Choice) -> str | None:
    """Return the command that writes it as a file for that device and those keys; None where pull
    can't be told how the file's keys are wrapped.
    """
    if choice.keys is not None:
        return None
    words = ["ckreg", "pull", checkpoint.ref]
    if choice.device != "recorded":
        words += ["--device", choice.device]
    if choice.wrapper != PLAIN:
        words += ["--keys", choice.wrapper]
    if choice.weights is not None:
        words += ["--weights", choice.weights]
    whole = len(words) == 3 and checkpoint.is_folder
    suffix = "" if whole else _suffix(checkpoint)
    name = f"{checkpoint.model.replace('/', '-')}-v{checkpoint.version}{suffix}"
    return shlex.join([*words, "-o", name, "-r", location])


def plan(ref: str, location: str, choice: Choice) -> str:
    """Return the command that shows the plan."""
    words = ["ckreg", "plan", ref, "--device", choice.device]
    if choice.wrapper != PLAIN:
        words += ["--wrapped", choice.wrapper]
    if choice.weights is not None:
        words += ["--weights", choice.weights]
    if choice.keys is not None:
        words += ["--keys", choice.keys]
    return shlex.join([*words, "-r", location])


def _suffix(checkpoint: Checkpoint) -> str:
    return ".safetensors" if checkpoint.container.startswith("safetensors") else ".pt"
