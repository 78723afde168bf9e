"""Opening a checkpoint: its file, verified as far as it is read, and what a plan must know.

Law: what was read of the structure is verified before anything is made of it, a tensor's bytes
before they are used, and bytes that aren't used are not read. Imports no torch.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .blobs import Blob, BlobFile, BlobStore, Progress, ranges
from .catalog import Catalog
from .containers import Contents, Description, Tensor, describe, walk
from .containers import read as read_container
from .drafting import Recorded, recorded
from .errors import CkregError, ContainerError, DamagedError, NotFoundError, warn
from .planning import Saved, SavedOptimizer, SavedTensor
from .records import Checkpoint


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint's file, open, its header verified and read."""

    checkpoint: Checkpoint
    file: BlobFile
    index: ranges.Index | None
    contents: Contents
    description: Description
    record: Recorded | None


@contextmanager
def opened(
    store: BlobStore, catalog: Catalog, checkpoint: Checkpoint, *, verify: bool
) -> Iterator[Opened]:
    """Open a checkpoint's file and read what it holds, without any tensor's bytes.

    Args:
        verify: check what was read (the tensors' ranges are the load's to check).

    Raises:
        NotFoundError: the file is gone.
        DamagedError: it is of another size, or its structure isn't what was recorded.
        ContainerError: the checkpoint has several files, which this version can't load.
    """
    with open_file(store, catalog, checkpoint) as (file, index_blob):
        index = _index(store, index_blob, file) if verify else None
        if verify and index is None:
            file.verify()
        contents, description = _read(file, checkpoint.ref, index)
        yield Opened(checkpoint, file, index, contents, description, _record(description))


@contextmanager
def open_file(
    store: BlobStore, catalog: Catalog, checkpoint: Checkpoint
) -> Iterator[tuple[BlobFile, Blob | None]]:
    """Open a checkpoint's one file, with the blob of its index.

    Where the blob is gone its place is looked up once more: another copy of the same bytes may have
    taken it meanwhile.
    """
    for attempt in (1, 2):
        blobs = catalog.blobs_of(checkpoint.id)
        if len(blobs) != 1:
            raise ContainerError(
                f"{checkpoint.ref} consists of {len(blobs)} files, which this version can't read"
            )
        _, blob, index_blob = blobs[0]
        try:
            file = store.open_blob(blob)
        except NotFoundError:
            if attempt == 1 and catalog.blobs_of(checkpoint.id) != blobs:
                continue
            raise
        with file:
            yield file, index_blob
        return


def _index(store: BlobStore, index_blob: Blob | None, file: BlobFile) -> ranges.Index | None:
    """Return the file's index, or None where there is none that is whole: then all is verified."""
    if index_blob is None:
        return None
    try:
        with store.open_blob(index_blob) as stored:
            stored.verify()
            index = ranges.Index.from_bytes(stored.pread(0, stored.size))
    except (NotFoundError, DamagedError) as error:
        warn(f"the whole file is verified, since its index can't be used: {error.message}")
        return None
    return index if index.digest == file.blob.digest else None


def _read(file: BlobFile, name: str, index: ranges.Index | None) -> tuple[Contents, Description]:
    """Read a file's structure, and verify it before anything is made of it."""
    try:
        contents = read_container(file, name)
        description = describe(contents, file)
    except CkregError:
        if index is not None:
            file.verify()  # damage is said as damage, not as what the reader stumbled over
        raise
    if index is not None:
        ranges.verify_structure(index, file, [(s.offset, s.size_bytes) for s in contents.storages])
    return contents, description


def _record(description: Description) -> Recorded | None:
    try:
        return recorded(description.record)
    except ValueError:
        return None  # push said so, and took the file as a foreign one


def verify_used(
    opened: Opened, mapping: mmap.mmap, used: Sequence[Tensor], progress: Progress | None
) -> None:
    """Verify the bytes that the load will use, and no others; the header is verified already.

    Raises:
        DamagedError: they differ from what was recorded.
    """
    if opened.index is None:
        return  # the whole file was verified when it was opened
    storages = {t.storage.key: t.storage for t in used}
    if len(storages) == len(opened.contents.storages):
        opened.file.verify(mapping=mapping, progress=progress)
    else:
        ranges.verify(
            opened.index,
            opened.file,
            [(s.offset, s.size_bytes) for s in storages.values()],
            mapping=mapping,
        )


def saved_side(opened: Opened) -> Saved:
    """Return what the plan must know of the saved side: the record, and the file's own index."""
    checkpoint, description, record = opened.checkpoint, opened.description, opened.record
    return Saved(
        ref=checkpoint.ref,
        container=checkpoint.container,
        tensors=_saved_tensors(description.weights),
        ema=None if description.ema is None else _saved_tensors(description.ema),
        file_keys=checkpoint.file_keys,
        key_style=checkpoint.key_style,
        provenance=checkpoint.provenance,
        ties=() if record is None else record.ties,
        weights=checkpoint.weights,
        others=tuple(description.others),
        wrapper_state=tuple(description.wrapper_state),
        optimizers={
            name: _saved_optimizer(tree, None if record is None else record.optimizers.get(name))
            for name, tree in description.optimizers.items()
        },
        scheduler=description.scheduler is not None,
        stateful=tuple(description.stateful),
        rng=description.rng is not None,
        extra=tuple(description.extra),
        topology=checkpoint.topology,
        batch_size=checkpoint.batch_size,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        size_bytes=checkpoint.size_bytes,
        unsafe_globals=checkpoint.unsafe_globals,
        where=description.where,
        ema_where=description.ema_where,
    )


def _saved_tensors(weights: Mapping[str, Tensor]) -> tuple[SavedTensor, ...]:
    views = {key: (t.storage.key, t.offset, t.shape, t.stride) for key, t in weights.items()}
    shared = Counter(views.values())
    return tuple(
        SavedTensor(
            key,
            t.dtype,
            shape=t.shape,
            kind=t.kind,
            size_bytes=t.size_bytes,
            tag=t.storage.tag,
            tie_group=views[key] if shared[views[key]] > 1 else None,
        )
        for key, t in weights.items()
    )


def _saved_optimizer(
    tree: object, known: tuple[str, tuple[tuple[str, ...], ...]] | None
) -> SavedOptimizer:
    """Read what torch's positional optimizer state says of itself."""
    form = tree if isinstance(tree, Mapping) else {}
    groups = [g for g in form.get("param_groups") or () if isinstance(g, Mapping)]
    state = form.get("state")
    state = state if isinstance(state, Mapping) else {}
    positions = [position for group in groups for position in group.get("params") or ()]
    names = [group.get("param_names") for group in groups]
    return SavedOptimizer(
        None if known is None else known[0],
        None if known is None else known[1],
        group_sizes=tuple(len(group.get("params") or ()) for group in groups),
        state_shapes=tuple(_parameter_shape(state.get(position)) for position in positions),
        size_bytes=sum({t.storage.key: t.storage.size_bytes for t in tensors_in(state)}.values()),
        param_names=tuple(tuple(map(str, n)) for n in names if isinstance(n, list | tuple))
        if names and all(isinstance(n, list | tuple) for n in names)
        else None,
        state_names=tuple(
            sorted(
                {str(k) for entry in state.values() if isinstance(entry, Mapping) for k in entry}
            )
        ),
    )


def _parameter_shape(entry: object) -> tuple[int, ...] | None:
    """Return the shape of a parameter as its state shows it: that of the tensor with the most
    dimensions.
    """
    return max((t.shape for t in tensors_in(entry)), key=len, default=None)


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield every tensor below a value, once each."""
    return (node for node in walk(tree) if isinstance(node, Tensor))
