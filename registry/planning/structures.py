"""Structures that keys betray: reparametrised, pruned, quantised and adapted layers.

Law: a structure is part of the net and never stripped or invented: these names explain a refusal
and its cure, no load looks at them. A structure is told by keys that only it has, several together
where one alone could be a parameter's own name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure that one side has and the other lacks.

    Attributes:
        name: what people call it.
        side: who has it.
        keys: those that show it, the first few.
        modules: how many modules have it.
        cure: how to bring both sides together; "" where another structure's says it.
    """

    name: str
    side: Literal["file", "net"]
    keys: tuple[str, ...]
    modules: int
    cure: str

    def __str__(self) -> str:
        has = "the file has" if self.side == "file" else "the net has"
        where = "" if self.modules == 1 else f" on {self.modules} modules"
        return f"{has} {self.name}{where}: {', '.join(map(repr, self.keys))}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a structure is known: by a key for each of `signs`, at one place.

    Attributes:
        in_file, in_net: the cure where the file or the net has it.
        family: of structures that are two forms of one.
    """

    name: str
    signs: tuple[str, ...]
    in_file: str
    in_net: str
    family: str = ""


_NAME = r"(?P<place>(?:.*\.)?[^.]+)"  # up to and with the tensor's name
_MODULE = r"(?P<place>.*?)"  # up to the module

_KINDS: Final = (
    _Kind(
        "weight_norm as a parametrization (torch.nn.utils.parametrizations.weight_norm)",
        (r"(?P<place>.*\.?)parametrizations\.[^.]+\.original0",
         r"(?P<place>.*\.?)parametrizations\.[^.]+\.original1"),
        "torch.nn.utils.parametrizations.weight_norm(layer) on the net's layers, then load; "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes them plain "
        "afterwards",
        "load into the plain net, then torch.nn.utils.parametrizations.weight_norm(layer)",
        "weight_norm",
    ),
    _Kind(
        "spectral_norm as a parametrization (torch.nn.utils.parametrizations.spectral_norm)",
        (r"(?P<place>.*\.?)parametrizations\.[^.]+\.original",
         r"(?P<place>.*\.?)parametrizations\.[^.]+\.\d+\._u"),
        "torch.nn.utils.parametrizations.spectral_norm(layer) on the net's layers, then load",
        "load into the plain net, then torch.nn.utils.parametrizations.spectral_norm(layer)",
        "spectral_norm",
    ),
    _Kind(
        "parametrizations (torch.nn.utils.parametrize)",
        (r"(?P<place>.*\.?)parametrizations\.[^.]+\.original",),
        "register the same parametrizations on the net, then load; "
        "torch.nn.utils.parametrize.remove_parametrizations makes it plain afterwards",
        "load into the plain net, then register the parametrizations",
    ),
    _Kind(
        "weight_norm of the old kind (torch.nn.utils.weight_norm)",
        (rf"{_NAME}_g", rf"{_NAME}_v"),
        "torch.nn.utils.weight_norm(layer) on the net's layers, then load; "
        "torch.nn.utils.remove_weight_norm(layer) makes them plain afterwards",
        "load into the plain net, then torch.nn.utils.weight_norm(layer)",
        "weight_norm",
    ),
    _Kind(
        "spectral_norm of the old kind (torch.nn.utils.spectral_norm)",
        (rf"{_NAME}_orig", rf"{_NAME}_u"),
        "torch.nn.utils.spectral_norm(layer) on the net's layers, then load; "
        "torch.nn.utils.remove_spectral_norm(layer) makes them plain afterwards",
        "load into the plain net, then torch.nn.utils.spectral_norm(layer)",
        "spectral_norm",
    ),
    _Kind(
        "pruning masks (torch.nn.utils.prune)",
        (rf"{_NAME}_orig", rf"{_NAME}_mask"),
        "torch.nn.utils.prune.identity(layer, 'weight') on the net's layers, then load; "
        "torch.nn.utils.prune.remove(layer, 'weight') makes the zeros final afterwards",
        "load into the plain net, then prune it",
    ),
    _Kind(
        "LoRA adapters (lora_A, lora_B)",
        (rf"{_MODULE}\.?lora_A(?:\..+)?", rf"{_MODULE}\.?lora_B(?:\..+)?"),
        "merge them where they were trained, and save that: peft's model.merge_and_unload(); or "
        "load into the net with the same adapters: get_peft_model(net, config)",
        "load into the net without adapters, then add them: get_peft_model(net, config)",
    ),
    _Kind(
        "layers that adapters wrap (base_layer)",
        (rf"{_MODULE}\.?base_layer\..+",),
        "save the net without its adapters: peft's model.merge_and_unload()",
        "load into the net without adapters, then add them: get_peft_model(net, config)",
    ),
    _Kind(
        "quantised layers (torch.ao.quantization: _packed_params)",
        (rf"{_MODULE}\.?_packed_params(?:\..+)?",),
        "quantise the net in the same way (prepare, convert), then load; floats don't come back "
        "from it without loss",
        "load into the float net, then quantise it (prepare, convert)",
        "quantised",
    ),
    _Kind(
        "quantised layers (torch.ao.quantization: scale, zero_point)",
        (rf"{_MODULE}\.?scale", rf"{_MODULE}\.?zero_point"),
        "quantise the net in the same way (prepare, convert), then load; floats don't come back "
        "from it without loss",
        "load into the float net, then quantise it (prepare, convert)",
        "quantised",
    ),
    _Kind(
        "quantisation observers (torch.ao.quantization)",
        (rf"{_MODULE}\.?(?:activation_post_process(?:_\d+)?|weight_fake_quant)\..+",),
        "prepare the net for quantisation in the same way (prepare, prepare_qat), then load",
        "load into the float net, then prepare it",
        "quantised",
    ),
    _Kind(
        "weights in 4 or 8 bits (bitsandbytes)",
        (rf"{_MODULE}\.?(?:SCB|[^.]+\.(?:absmax|quant_map|nested_absmax|quant_state\..+))",),
        "build the net with the same quantization_config, then load; or save it dequantised",
        "load into the float net, then quantise it",
    ),
    _Kind(
        "weights in few bits (GPTQ, AWQ)",
        (rf"{_MODULE}\.?qweight", rf"{_MODULE}\.?qzeros", rf"{_MODULE}\.?scales"),
        "build the net with the same quantization_config, then load",
        "load into the float net, then quantise it",
    ),
    _Kind(
        "BatchNorm's running statistics",
        (rf"{_MODULE}\.?running_mean", rf"{_MODULE}\.?running_var"),
        "make the net with BatchNorm layers that keep them (track_running_stats=True), as it was "
        "saved; SyncBatchNorm has the same keys",
        "the file is of a net whose norm layers keep none (GroupNorm, LayerNorm, FrozenBatchNorm, "
        "track_running_stats=False): make the net so",
    ),
    _Kind(
        "BatchNorm's counters (num_batches_tracked)",
        (rf"{_MODULE}\.?num_batches_tracked",),
        "allow=['*num_batches_tracked'] leaves them out; only momentum=None needs them",
        "the file is of before torch 0.4.1, or was stripped of them: allow=['*num_batches_tracked']"
        " keeps the net's own; only momentum=None needs them",
    ),
)  # fmt: skip


def structures(missing: Collection[str], unexpected: Collection[str]) -> list[Structure]:
    """Return the structures that explain keys which don't fit, those of the file first.

    Args:
        missing: canonical keys that the net has and the file lacks.
        unexpected: canonical keys that the file has and the net lacks.

    Example:
        >>> structures(["fc.weight"], ["fc.weight_orig", "fc.weight_mask"])[0].name
        'pruning masks (torch.nn.utils.prune)'
    """
    theirs = list(_found("file", unexpected))
    ours = list(_found("net", missing))
    families = {kind.family for kind, _ in theirs if kind.family}
    both = families & {kind.family for kind, _ in ours}
    # where both have it, in two forms, the net must take the file's: that cure alone is right
    ours = [(kind, replace(s, cure="") if kind.family in both else s) for kind, s in ours]
    return [s for _, s in (*theirs, *ours)]


def _found(
    side: Literal["file", "net"], keys: Collection[str]
) -> Iterable[tuple[_Kind, Structure]]:
    left = list(keys)
    for kind in _KINDS:
        signs: list[dict[str, str]] = []
        for sign in kind.signs:
            pattern = re.compile(sign)
            hits = ((pattern.fullmatch(key), key) for key in left)
            signs.append({m["place"]: key for m, key in hits if m})
        places = [place for place in signs[0] if all(place in sign for sign in signs)]
        if not places:
            continue
        shown = [sign[places[0]] for sign in signs]
        cure = kind.in_file if side == "file" else kind.in_net
        yield kind, Structure(kind.name, side, tuple(shown[:2]), len(places), cure)
        taken = {sign[place] for sign in signs for place in places}
        left = [key for key in left if key not in taken]
