"""A save by all ranks: each writes its own file, and rank 0 commits one checkpoint of them all.

Law: every rank's bytes are hashed and on the medium before any has a name in the store, and all
have theirs before the row; a rank that fails, or doesn't come, leaves no row, and the others drop
what is theirs. Once rank 0 has all it alone decides; what it can't commit in time is kept. Imports
.tensors only inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .blobs import Blob, BlobFile, BlobStore, Index, LocalStore
from .blobs.ranges import build as build_index
from .catalog import Catalog
from .commits import Part, commit, drop_unnamed
from .containers import describe, read_folder, stream_storages
from .drafting import Given, recorded
from .errors import BusyError, RefusedLoadError
from .postgres import Lost, Unreachable
from .records import Checkpoint
from .values import digest_of

if TYPE_CHECKING:
    from .tensors.distcp import Leaf
    from .tensors.together import Together

PATIENCE_S = 600.0
"""How long rank 0 asks again for a commit that it can't have, where it couldn't keep the files: in
a bucket. All ranks wait meanwhile; what they wrote would be lost.
"""


def write(
    store: BlobStore,
    catalog: Catalog,
    together: Together,
    tree: Mapping[str, Any],
    tags: Mapping[int, str],
    given: Given,
) -> Checkpoint:
    """Write this rank's file, and commit it with all others; see `Registry.save`.

    Returns:
        The checkpoint, the same on every rank.

    Raises:
        RefusedLoadError: the ranks hold different nets.
        RemoteError: another rank failed, or didn't come in time.
        CkregError: this one failed.
    """
    from .tensors import distcp, writing

    leaves = distcp.leaves(tree)
    own: list[Blob] = []
    placed: list[Any] = []
    streams: list[Sequence[Any]] = []
    with ExitStack() as stack:
        staged = stack.enter_context(store.stage(expect_bytes=writing.size_bytes(tree)))

        def stage() -> dict[str, Any]:
            placed.extend(distcp.write(leaves, staged, together.rank, tags))
            staged.finish()
            staged.sync()
            return {"net": digest_of(distcp.shapes(leaves)), "streams": placed}

        def check(told: Sequence[Any]) -> None:
            other = [rank for rank, one in enumerate(told) if one["net"] != told[0]["net"]]
            if other:
                raise RefusedLoadError(
                    f"rank {other[0]} saves other tensors than rank 0 (names, dtypes or shapes "
                    "differ): they hold parts of different nets",
                    hint="build net and optimizer alike on every rank",
                )
            streams.extend(one["streams"] for one in told)

        def publish() -> list[Any] | None:
            if not staged.size:
                return None
            digest, source = staged.finish(), staged.source()
            places = [(stream[3], stream[4]) for stream in placed]
            found = stream_storages(source, distcp.file_name(together.rank), places)
            storages = [(s.offset, s.size_bytes) for s in found]
            data = build_index(source, storages, digest, staged.pieces)
            own.append(store.publish(staged))
            own.append(store.put_bytes(data.to_bytes()))
            return [[blob.digest, blob.size_bytes, blob.name] for blob in own]

        def lead(told: Sequence[Any]) -> dict[str, Any]:
            blobs = {
                distcp.file_name(rank): (Blob(*one[0]), Blob(*one[1]))
                for rank, one in enumerate(told)
                if one is not None
            }
            try:
                made = _commit(store, catalog, leaves, streams, blobs, given)
            except (BusyError, Unreachable, Lost):
                raise  # they were kept, or dropped; or a row may be there that names them
            except BaseException:
                drop_unnamed(store, catalog, [blob for pair in blobs.values() for blob in pair])
                raise
            return made.to_dict()

        try:
            together.round(stage, check)
            return Checkpoint.from_dict(together.round(publish, lead))
        except BaseException:
            if together.void or not together.told:
                drop_unnamed(store, catalog, own)
            raise


def _opened(store: BlobStore, blob: Blob, index: Blob) -> BlobFile:
    """Open a rank's file; of one that lies elsewhere no more comes here than is read."""

    def find() -> Index:
        with store.open_blob(index) as stored:
            stored.verify()
            return Index.from_bytes(stored.pread(0, stored.size))

    file = store.open_blob(blob)
    file.use(find)
    return file


def _commit(
    store: BlobStore,
    catalog: Catalog,
    leaves: Sequence[Leaf],
    streams: Sequence[Sequence[Any]],
    blobs: Mapping[str, tuple[Blob, Blob]],
    given: Given,
) -> Checkpoint:
    """Write the folder's index, read the folder as anybody would, and commit it."""
    from .tensors import distcp

    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(_opened(store, blob, index))
            for name, (blob, index) in blobs.items()
        }
        parts = [
            Part(
                name, blob.digest, opened[name], blob=blob, index=index, ours=True,
                probe=None if opened[name].lies_elsewhere else opened[name].probe(),
            )
            for name, (blob, index) in blobs.items()
        ]  # fmt: skip
        staged = stack.enter_context(store.stage())
        staged.write(distcp.index(leaves, streams))
        digest, source = staged.finish(), staged.source()
        parts.insert(0, Part(distcp.METADATA, digest, source, staged, probe=source.probe()))
        files = {part.name: part.stored for part in parts}
        contents = read_folder(files, given.model or "the save")
        description = describe(contents, files)
        return commit(
            store,
            catalog,
            parts,
            known=given,
            contents=contents,
            description=description,
            origin="save",
            record=recorded(description.record),
            patience_s=0 if isinstance(store, LocalStore) else PATIENCE_S,
        )
