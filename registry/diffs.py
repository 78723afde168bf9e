"""Diff: two checkpoints opened side by side and compared.

Law: what is compared is verified first, and nothing else is read; no code of the files runs.
Imports .tensors only inside a function.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .blobs import BlobStore, Progress
from .catalog import Catalog
from .diffing import Diff, Read, Side, TensorDiff, facts, read_keys, topology
from .errors import ContainerError
from .opening import Opened, opened, saved_side, tensors_in
from .records import Checkpoint
from .signature import TensorSpec

if TYPE_CHECKING:
    import torch


def diff(
    store: BlobStore,
    catalog: Catalog,
    a: Checkpoint,
    b: Checkpoint,
    *,
    progress: Progress | None = None,
) -> Diff:
    """Compare two checkpoints; see `Registry.diff`."""
    with (
        opened(store, catalog, a, verify=True) as file_a,
        opened(store, catalog, b, verify=True) as file_b,
    ):
        read_a, read_b = read_keys(_side(file_a), _side(file_b))
        both = [
            name for name in read_a.raw if _tensor_in_both(name, read_a, file_a, read_b, file_b)
        ]
        tensors = tuple(_compared(both, (file_a, read_a), (file_b, read_b), progress))
    return Diff(
        a=read_a,
        b=read_b,
        facts=facts(a, b),
        topology=topology(a, b),
        only_a=tuple(name for name in read_a.raw if name not in read_b.raw),
        only_b=tuple(name for name in read_b.raw if name not in read_a.raw),
        tensors=tensors,
        notes=(*_notes(file_a), *_notes(file_b)),
    )


def _side(file: Opened) -> Side:
    saved = saved_side(file)
    views: dict[object, list[str]] = {}
    for tensor in saved.tensors:
        if tensor.tie_group is not None:
            views.setdefault(tensor.tie_group, []).append(tensor.key)
    return Side(
        file.checkpoint,
        tuple(TensorSpec(t.key, t.dtype, t.shape, t.kind) for t in saved.tensors),
        tuple(saved.others),
        tuple(map(tuple, views.values())),
        saved.ties,
    )


def _tensor_in_both(name: str, read_a: Read, file_a: Opened, read_b: Read, file_b: Opened) -> bool:
    return (
        name in read_b.raw
        and read_a.raw[name] in file_a.description.weights
        and read_b.raw[name] in file_b.description.weights
    )


def _notes(file: Opened) -> Iterator[str]:
    ref, description = file.checkpoint.ref, file.description
    if description.ema is not None and description.ema_where != description.where:
        yield f"of {ref} the live weights are compared, not the averaged ones beside them"
    if description.others:
        yield f"of {ref} entries that are no tensors are compared by name only"


# --- numbers --------------------------------------------------------------------------------------


def _compared(
    names: list[str],
    a: tuple[Opened, Read],
    b: tuple[Opened, Read],
    progress: Progress | None,
) -> Iterator[TensorDiff]:
    from .tensors.comparing import compare

    pairs = []
    for name in names:
        found_a = a[0].description.weights[a[1].raw[name]]
        found_b = b[0].description.weights[b[1].raw[name]]
        spec_a = TensorSpec(name, found_a.dtype, found_a.shape, found_a.kind)
        spec_b = TensorSpec(name, found_b.dtype, found_b.shape, found_b.kind)
        pairs.append((spec_a, spec_b, found_a, found_b))
    like = [(x, y) for spec_a, spec_b, x, y in pairs if spec_a.shape == spec_b.shape]
    tensors_a = _Tensors(a[0], _verified(a[0], [x for x, _ in like], progress))
    tensors_b = _Tensors(b[0], _verified(b[0], [y for _, y in like], progress))
    for spec_a, spec_b, found_a, found_b in pairs:
        if spec_a.shape != spec_b.shape:
            yield TensorDiff(spec_a, spec_b, reason="the shapes differ")
            continue
        try:
            numbers = compare(tensors_a.of(found_a), tensors_b.of(found_b))
        except ContainerError as error:
            yield TensorDiff(spec_a, spec_b, reason=error.message)
        else:
            yield TensorDiff(spec_a, spec_b, numbers)


@dataclass(slots=True)
class _Tensors:
    """One side's tensors, on its mapped bytes, one at a time.

    A builder keeps the copies that it must make of misaligned storages, so that it goes when the
    next storage comes: there is never a copy of the whole file.
    """

    file: Opened
    mappings: dict[str, mmap.mmap]
    storage: object = None
    builder: Any = None

    def of(self, found: Any) -> torch.Tensor:
        from .tensors.building import Builder

        storage = getattr(found, "storage", found)  # one that lies in pieces has none of its own
        if self.builder is None or storage is not self.storage:
            self.builder = Builder(self.file.contents, self.mappings)
            self.storage = storage
        tensor: torch.Tensor = self.builder.tensor(found)
        return tensor


def _verified(file: Opened, used: list[Any], progress: Progress | None) -> dict[str, mmap.mmap]:
    """Return the files' bytes, those of the tensors verified."""
    tensors = list(tensors_in(used))
    mappings = file.map(tensors) if used else {}
    file.verify(mappings, tensors, progress)
    return mappings
