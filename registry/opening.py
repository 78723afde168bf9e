"""Opening a checkpoint: its files, verified as far as they are read, and what a plan must know.

Law: what was read of the structure is verified before anything is made of it, a tensor's bytes
before they are used, and bytes that aren't used are not read: a file that a load doesn't need isn't
even opened. Imports no torch.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from .blobs import BlobFile, BlobStore, Progress, Total, ranges
from .catalog import Catalog
from .containers import (
    AnyTensor,
    Assembled,
    Contents,
    Description,
    Opaque,
    Quantised,
    Sparse,
    Tensor,
    describe,
    read_folder,
    walk,
)
from .containers import read as read_container
from .drafting import Recorded, recorded
from .errors import CkregError, DamagedError, NotFoundError, warn
from .planning import Saved, SavedOptimizer, SavedTensor
from .records import Checkpoint


class OpenFiles(Mapping[str, BlobFile]):
    """A checkpoint's files by name, each opened when it is first asked for.

    Where a blob is gone its place is looked up once more: another copy of the same bytes may have
    taken it meanwhile.

    Args:
        stack: closes what was opened.
    """

    def __init__(
        self, store: BlobStore, catalog: Catalog, checkpoint: Checkpoint, stack: ExitStack
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._checkpoint = checkpoint
        self._stack = stack
        self._open: dict[str, BlobFile] = {}
        self._indexes: dict[str, ranges.Index | None] = {}
        self._look_up()

    def _look_up(self) -> None:
        found = self._catalog.blobs_of(self._checkpoint.id)
        self._places = {name: (blob, index) for name, blob, index in found}

    def __getitem__(self, name: str) -> BlobFile:
        """Return a file, open.

        Raises:
            KeyError: the checkpoint has no such file.
            NotFoundError: its blob is gone.
            DamagedError: it is of another size.
        """
        if name not in self._open:
            blob = self._places[name][0]
            try:
                file = self._store.open_blob(blob)
            except NotFoundError:
                self._look_up()
                if self._places[name][0] == blob:
                    raise
                file = self._store.open_blob(self._places[name][0])
            self._open[name] = self._stack.enter_context(file)
            file.use(partial(self.index, name))
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def index(self, name: str) -> ranges.Index | None:
        """Return a file's index, or None where there is none that is whole: then all is
        verified.
        """
        if name not in self._indexes:
            self._indexes[name] = self._index(name)
        return self._indexes[name]

    def _index(self, name: str) -> ranges.Index | None:
        index_blob = self._places[name][1]
        if index_blob is None:
            return None
        try:
            with self._store.open_blob(index_blob) as stored:
                stored.verify()
                index = ranges.Index.from_bytes(stored.pread(0, stored.size))
        except (NotFoundError, DamagedError) as error:
            warn(f"the whole file is verified, since its index can't be used: {error.message}")
            return None
        return index if index.digest == self[name].blob.digest else None


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint's files, open, their structure verified and read.

    Attributes:
        files: by name; a lone file goes by "", as its storages say.
        indexes: of the files that are verified by ranges; the others were verified whole, or none
            is to be.
    """

    checkpoint: Checkpoint
    files: Mapping[str, BlobFile]
    contents: Contents
    description: Description
    record: Recorded | None
    indexes: Mapping[str, ranges.Index] = field(default_factory=dict)

    def map(self, used: Sequence[Tensor] | None = None) -> dict[str, mmap.mmap]:
        """Return a private mapping of each file that holds tensors, by name.

        Args:
            used: the tensors whose bytes will be read, by default all: of a file that lies
                elsewhere no others are there.
        """
        names = {s.file for s in self.contents.storages if s.data is None and s.size_bytes}
        if used is None:
            return {name: self.files[name].map() for name in sorted(names)}
        parts = self._parts(used)
        return {name: self.files[name].map(parts.get(name, ())) for name in sorted(names)}

    def _parts(self, used: Sequence[Tensor]) -> dict[str, list[tuple[int, int]]]:
        """Return where the bytes of some tensors lie, by file."""
        wanted = {t.storage.key: t.storage for t in used if t.storage.data is None}
        parts: dict[str, list[tuple[int, int]]] = {}
        for storage in wanted.values():
            if storage.size_bytes:
                parts.setdefault(storage.file, []).append((storage.offset, storage.size_bytes))
        return parts

    def verify(
        self,
        mappings: Mapping[str, mmap.mmap],
        used: Sequence[Tensor],
        progress: Progress | None = None,
    ) -> None:
        """Verify the bytes of some tensors, and no others; the structure is verified already.

        Args:
            mappings: what `map` gave: what is hashed is what is used.

        Raises:
            DamagedError: they differ from what was recorded.
        """
        there = Counter(s.file for s in self.contents.storages)
        parts = {name: p for name, p in self._parts(used).items() if name in self.indexes}
        shown = Total(sum(size for part in parts.values() for _, size in part), progress)
        for name, part in parts.items():
            file, step = self.files[name], shown.next(sum(size for _, size in part))
            if len(part) == there[name]:
                file.verify(mapping=mappings[name], progress=step)
            else:
                ranges.verify(self.indexes[name], file, part, mapping=mappings[name])

    def verify_all(
        self, mappings: Mapping[str, mmap.mmap], progress: Progress | None = None
    ) -> None:
        """Verify every byte of the files that were read. Raises DamagedError as `verify`."""
        names = self.contents.used_files or tuple(self.files)
        shown = Total(sum(self.files[name].size for name in names), progress)
        for name in names:
            file = self.files[name]
            file.verify(mapping=mappings.get(name), progress=shown.next(file.size))


@contextmanager
def opened(
    store: BlobStore, catalog: Catalog, checkpoint: Checkpoint, *, verify: bool
) -> Iterator[Opened]:
    """Open a checkpoint and read what it holds, without any tensor's bytes.

    Args:
        verify: check what was read (the tensors' ranges are the load's to check).

    Raises:
        NotFoundError: a file is gone.
        DamagedError: one is of another size, or its structure isn't what was recorded.
    """
    with ExitStack() as stack:
        named = OpenFiles(store, catalog, checkpoint, stack)
        files: Mapping[str, BlobFile] = named
        if not checkpoint.is_folder:
            (name,) = named
            files = {"": named[name]}
        contents, description = _read(files, checkpoint)
        indexes: dict[str, ranges.Index] = {}
        if verify:
            for name in contents.used_files or tuple(files):
                index = named.index(name or next(iter(named)))
                if index is None:
                    files[name].verify()
                else:
                    _verify_structure(index, files[name], name, contents)
                    indexes[name] = index
        yield Opened(checkpoint, files, contents, description, _record(description), indexes)


def _read(files: Mapping[str, BlobFile], checkpoint: Checkpoint) -> tuple[Contents, Description]:
    try:
        if checkpoint.is_folder:
            contents = read_folder(files, checkpoint.ref)
            return contents, describe(contents, files)
        contents = read_container(files[""], checkpoint.ref)
        return contents, describe(contents, files[""])
    except CkregError:
        for file in files.values():
            file.verify()  # damage is said as damage, not as what the reader stumbled over
        raise


def _verify_structure(index: ranges.Index, file: BlobFile, name: str, contents: Contents) -> None:
    mine = [s for s in contents.storages if s.file == name and s.data is None]
    ranges.verify_structure(index, file, [(s.offset, s.size_bytes) for s in mine])


def _record(description: Description) -> Recorded | None:
    try:
        return recorded(description.record)
    except ValueError:
        return None  # push said so, and took the file as a foreign one


def saved_side(opened: Opened) -> Saved:
    """Return what the plan must know of the saved side: the record, and the file's own index.

    Raises:
        ContainerError: the file can only be stored; the hint is the way to get its weights.
    """
    checkpoint, description, record = opened.checkpoint, opened.description, opened.record
    opened.contents.check_loadable(checkpoint.ref, checkpoint.files[0].name)
    # Averaged weights that stand alone are the weights: there is nothing to choose.
    ema = None if description.ema_where == description.where else description.ema
    return Saved(
        ref=checkpoint.ref,
        container=checkpoint.container,
        tensors=_saved_tensors(description.weights),
        ema=None if ema is None else _saved_tensors(ema),
        file_keys=checkpoint.file_keys,
        key_style=checkpoint.key_style,
        provenance=checkpoint.provenance,
        ties=() if record is None else record.ties,
        weights=checkpoint.weights,
        others=tuple(description.others),
        unbuildable={key: _made(node) for key, node in description.unbuildable.items()},
        wrapper_state=tuple(description.wrapper_state),
        optimizers={
            name: _saved_optimizer(tree, None if record is None else record.optimizers.get(name))
            for name, tree in description.optimizers.items()
        },
        partitioned=description.partitioned,
        scheduler=description.scheduler is not None,
        stateful=tuple(description.stateful),
        rng=description.rng is not None or bool(description.rng_states),
        rng_ranks=tuple(sorted(int(r) for r in description.rng_states if r.isdecimal())),
        extra=tuple(description.extra),
        topology=checkpoint.topology,
        batch_size=checkpoint.batch_size,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        size_bytes=checkpoint.size_bytes,
        unsafe_globals=checkpoint.unsafe_globals,
        where=description.where,
        ema_where=description.ema_where,
        held=description.layout == "lightning",
    )


def _made(node: Opaque) -> str:
    """Return what would have made a tensor that isn't read; a parameter's own tensor decides."""
    while node.args and isinstance(inner := node.args[0], Opaque) and inner.is_tensor:
        node = inner
    return node.name


def _saved_tensors(weights: Mapping[str, AnyTensor]) -> tuple[SavedTensor, ...]:
    views = {key: _view(t) or (key,) for key, t in weights.items()}
    shared = Counter(views.values())
    return tuple(
        SavedTensor(
            key,
            t.dtype,
            shape=t.shape,
            kind=t.kind,
            size_bytes=t.size_bytes,
            tag=_tag(t),
            tie_group=views[key] if shared[views[key]] > 1 else None,
            form=t.form,
        )
        for key, t in weights.items()
    )


def _view(found: AnyTensor) -> tuple[Hashable, ...] | None:
    """Return what two names of one tensor have in common; None for one in pieces."""
    if isinstance(found, Tensor):
        return (found.storage.key, found.offset, found.shape, found.stride)
    if isinstance(found, Sparse):
        return (found.form, found.shape, *map(_view, found.parts))
    if isinstance(found, Quantised):
        numbers = [n for n in (found.scale, found.zero_point) if not isinstance(n, Tensor)]
        return (found.form, found.axis, *numbers, *map(_view, found.parts))
    return None


def _tag(found: AnyTensor) -> str:
    """Return the device that a tensor was saved on; of one of several parts, the first one's."""
    if isinstance(found, Tensor):
        return found.storage.tag
    if isinstance(found, Assembled):
        return found.chunks[0].tensor.storage.tag if found.chunks else "cpu"
    return found.parts[0].storage.tag


def _saved_optimizer(
    tree: object, known: tuple[str, tuple[tuple[str, ...], ...]] | None
) -> SavedOptimizer:
    """Read what torch's positional optimizer state says of itself."""
    form = tree if isinstance(tree, Mapping) else {}
    groups = [g for g in form.get("param_groups") or () if isinstance(g, Mapping)]
    if not all(_are_positions(group.get("params")) for group in groups):
        groups = []  # not torch's form: the weights load, a resume is refused
    state = form.get("state")
    state = state if isinstance(state, Mapping) else {}
    positions = [position for group in groups for position in group.get("params") or ()]
    names = [group.get("param_names") for group in groups]
    if positions and all(isinstance(position, str) for position in positions):
        names = [group["params"] for group in groups]  # torch.distributed.checkpoint's form
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
        unplaced=len(state.keys() - set(positions)),
    )


def _are_positions(params: object) -> bool:
    return isinstance(params, list | tuple) and all(type(p) in (int, str) for p in params)


def _parameter_shape(entry: object) -> tuple[int, ...] | None:
    """Return the shape of a parameter as its state shows it: that of the tensor with the most
    dimensions, and of those the largest (one in pieces is larger than they).
    """
    found = [node for node in walk(entry) if isinstance(node, Tensor | Assembled)]
    shapes = [(len(t.shape), t.elements, t.shape) for t in found]
    return max(shapes)[2] if shapes else None


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield every tensor below a value, once each."""
    return (node for node in walk(tree) if isinstance(node, Tensor))
