"""Adapted copies of a checkpoint: torch or safetensors files for code that knows no ckreg.

Law: a torch file reads with `torch.load(weights_only=True)` and lands on the device that its tag
says, whether that is here or not; a safetensors file reads with the safetensors package. Values are
those of the file, bit for bit.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ..containers import Contents, Description
from ..containers.weights import items_of
from ..errors import ContainerError, UntrustedError
from ..planning import LoadPlan
from .applying import collect
from .building import Builder
from .plain import Plainer
from .views import dtype_name, form_of, size_bytes, storages_of, tie_groups
from .writing import Writer, write


def adapted(
    plan: LoadPlan,
    contents: Contents,
    builder: Builder,
    description: Description,
    *,
    only_weights: bool = False,
) -> dict[str, Any]:
    """Return what to write: the file's tree with the plan's keys, or its weights alone.

    Our own record goes along only where the keys are canonical, which is what it says of them.

    Raises:
        UntrustedError: what lies beside the weights needs code of the file.
    """
    plain = Plainer()
    state = collect(plan, builder, description, place=False)
    root = items_of(contents.root)
    if only_weights or not description.where or root is None:
        made: dict[str, Any] = plain(state, "state_dict")
    else:
        made = _Copy(plan, builder, description, plain(state, "state_dict"), plain).below(root, "")
    plain.compact()
    return made


def weights(plan: LoadPlan, builder: Builder, description: Description) -> dict[str, Any]:
    """Return the weights alone under the plan's keys, on the file's own bytes."""
    return collect(plan, builder, description, place=False)


def tied(state: Mapping[str, Any]) -> list[tuple[tuple[str, ...], int]]:
    """Return a state dict's names, those that are one tensor together, and each one's bytes."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    groups = {group[0]: group for group in tie_groups(tensors)}
    others = {name for group in groups.values() for name in group[1:]}
    return [
        (groups.get(name, (name,)), size_bytes(tensors[name]) if name in tensors else 0)
        for name in state
        if name not in others
    ]


def summary(state: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return of each tensor of a state dict its name, dtype, shape and bytes; of tied names the
    first has the bytes, and the others none.
    """
    held = {names[0]: size for names, size in tied(state)}
    return [
        (name, dtype_name(value), tuple(value.shape), held.get(name, 0))
        for name, value in state.items()
        if isinstance(value, Tensor)
    ]


@dataclass(frozen=True, slots=True)
class _Copy:
    """Copies a file's tree, with other weights in the place of its own."""

    plan: LoadPlan
    builder: Builder
    description: Description
    state: dict[str, Any]
    plain: Plainer

    def below(self, node: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """Return the copy of the dict at a path."""
        made: dict[str, Any] = {}
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            inner = items_of(value)
            if here == self.description.where:
                made[key] = self.state
            elif here == self.description.ema_where or (here == "ckreg" and self.plan.out_keys):
                continue  # weights that weren't chosen, a record of other keys
            elif inner is not None and self.description.where.startswith(f"{here}."):
                made[key] = self.below(inner, here)
            else:
                made[key] = self._beside(value, here)
        return made

    def _beside(self, value: Any, path: str) -> Any:
        try:
            return self.plain(self.builder.tree(value), path)
        except UntrustedError as error:
            raise UntrustedError(
                f"{path!r} of {self.plan.ref} can't go into a plain file: {error.message}",
                hint=f"take the weights alone: ckreg pull {self.plan.ref} --only weights",
            ) from error


# --- torch ----------------------------------------------------------------------------------------


def write_torch(tree: Mapping[str, Any], writer: Writer, *, tag: str, weights: str = "") -> None:
    """Write a torch zip file whose weights are tagged with a device, which need not be here.

    What isn't weights is tagged `cpu`: an optimizer's load_state_dict moves its state to the
    parameters, and leaves `step` on the CPU, where a plain Adam needs it.

    Args:
        tag: `cpu`, `cuda:0`, …
        weights: the key of the weights in the tree; "" is the tree itself.
    """
    state = tree[weights] if weights else tree
    weighty = {storage for t in _tensors(state) for storage in storages_of(t)}
    write(tree, writer, tags=dict.fromkeys(weighty, tag))


def write_weights(state: Mapping[str, Any], writer: Writer) -> None:
    """Write a part of a state dict as a torch file, without what else its storages hold."""
    plain = Plainer()
    tree = plain(state, "state_dict")
    plain.compact()
    write_torch(tree, writer, tag="cpu")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value.values() for t in _tensors(v)] if isinstance(value, Mapping) else []


# --- safetensors ----------------------------------------------------------------------------------

_SAFETENSORS: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
}  # fmt: skip

_CHUNK_BYTES: Final = 16 << 20


def write_safetensors(
    state: Mapping[str, Any], writer: Writer, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the tensors of a state dict as a safetensors file.

    Of tied names the first is written, and `__metadata__` says of each other one which: {'tied':
    'kept'}, as
    safetensors.torch.save_model does.

    Raises:
        ContainerError: a tensor's dtype or an entry that is no tensor has no place in a safetensors
            file.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) != len(state):
        odd = next(name for name in state if name not in tensors)
        raise ContainerError(
            f"{odd!r} is no tensor, and a safetensors file holds nothing else",
            hint="take format='pt' (or --format pt)",
        )
    for name, tensor in tensors.items():
        if form_of(tensor) != "strided":
            raise ContainerError(
                f"{name!r} is a {form_of(tensor)} tensor, and a safetensors file holds dense ones",
                hint="take format='pt' (or --format pt)",
            )
    facts = {"format": "pt", **(metadata or {})}
    for kept, *others in tie_groups(tensors):
        for name in others:
            del tensors[name]
            facts[name] = kept
    # The widest elements first, so that every tensor is aligned; by name, so that equal state gives
    # equal bytes.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": facts}
    at = 0
    for name in order:
        tensor = tensors[name]
        dtype = _SAFETENSORS.get(dtype_name(tensor))
        if dtype is None:
            raise ContainerError(
                f"{name!r} is {dtype_name(tensor)}, which safetensors has no name for",
                hint="take format='pt' (or --format pt)",
            )
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    writer.write(len(text).to_bytes(8, "little"))
    writer.write(text)
    for name in order:
        _write_bytes(tensors[name], writer)
    writer.flush()


def _write_bytes(tensor: Tensor, writer: Writer) -> None:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    size = flat.numel() * flat.element_size()
    if size == 0:
        return
    # The buffer protocol without numpy, which need not be installed; `flat` keeps the memory.
    data = memoryview((ctypes.c_char * size).from_address(flat.data_ptr())).cast("B")
    for start in range(0, size, _CHUNK_BYTES):
        writer.write(bytes(data[start : start + _CHUNK_BYTES]))
