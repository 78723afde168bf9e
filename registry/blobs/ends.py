"""The two ends of every store on this machine: files that are taken in, files that are handed out.

Law: the same for every store, wherever its bytes lie: what goes in is a file that didn't change
meanwhile, what comes out is verified on the way and appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from ..errors import DamagedError
from . import folders, pulling
from .blob import Blob
from .ranges import merged
from .reading import BlobFile, Progress, SourceFile, Total
from .staging import Staged


class Ends:
    """What stores have in common; each says how it stages, publishes and opens, and what is its."""

    def stage(self, *, expect_bytes: int | None = None) -> Staged:
        """Return a new file to write, to be used in a `with` block."""
        raise NotImplementedError

    def publish(self, staged: Staged) -> Blob:
        """Make a staged file a blob."""
        raise NotImplementedError

    def open_blob(self, blob: Blob, *, cached: bool = True) -> BlobFile:
        """Open a blob, to be read in a `with` block."""
        raise NotImplementedError

    def _own(self) -> list[Path]:
        """Return the folders that no destination may lie in."""
        raise NotImplementedError

    def _check_dest(self, dest: Path) -> None:
        """Refuse a destination that is the store's own file."""
        raise NotImplementedError

    # --- in -----------------------------------------------------------------------------------

    def stage_file(
        self,
        source: Path | SourceFile,
        *,
        storages: Iterable[tuple[int, int]] = (),
        progress: Progress | None = None,
    ) -> Staged:
        """Return a copy of a file, staged and whole; its hash may still be under way.

        Args:
            source: a path, which is opened once; or a file that is open already.
            storages: (offset, size) of those in it: each is hashed in the same pass.

        Raises:
            NotFoundError: it is missing.
            ContainerError: it is no regular file.
            NotWritableError: it can't be read.
            ConflictError: it changed meanwhile.
            NoSpaceError: there is no room for the copy.
        """
        if isinstance(source, Path):
            with SourceFile.open(source) as opened:
                return self.stage_file(opened, storages=storages, progress=progress)
        staged = self.stage(expect_bytes=source.size)
        try:
            copied = staged.copy(source, storages=merged(storages), progress=progress)
            source.check_unchanged()
            if copied != source.size:  # without a change of size or time: the disk lied
                raise DamagedError(
                    f"{str(source.path)!r} ended after {copied} bytes of {source.size}"
                )
        except BaseException:
            staged.discard()
            raise
        return staged

    def put_bytes(self, data: bytes) -> Blob:
        """Store a small blob.

        Raises:
            CkregError: as `stage` and `publish`.
        """
        with self.stage() as staged:
            staged.write(data)
            return self.publish(staged)

    # --- out ----------------------------------------------------------------------------------

    def pull(
        self, blob: Blob, dest: Path, *, force: bool = False, progress: Progress | None = None
    ) -> None:
        """Write a blob's bytes to a path outside the store, verified on the way.

        Raises:
            ConflictError: another file is there and not `force`, or the path is the store's own.
            NotFoundError: the blob, or the folder to write in, isn't there.
            DamagedError: the blob's bytes aren't those that were stored.
            NoSpaceError, NotWritableError: it can't be written there.
        """
        dest = dest.absolute()
        self._check_dest(dest)
        with self.open_blob(blob, cached=False) as file:
            pulling.deliver(file, dest, force=force, keep_out=self._own(), progress=progress)

    def produce(
        self, dest: Path, fill: Callable[[Staged], None], *, force: bool = False, expect_bytes: int
    ) -> None:
        """Write a file that isn't a blob's to a path outside the store.

        Raises:
            ConflictError, NotFoundError, NoSpaceError, NotWritableError: as pull.
        """
        dest = dest.absolute()
        self._check_dest(dest)
        pulling.produce(dest, fill, force=force, keep_out=self._own(), expect_bytes=expect_bytes)

    def pull_folder(
        self,
        blobs: Mapping[str, Blob],
        dest: Path,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write blobs as the files of a folder, verified on the way; it appears whole or not at
        all.

        A folder that holds them already is left as it is, and may hold more.

        Args:
            blobs: by relative POSIX path in the folder.
            force: replace a folder that holds nothing but files of these names.

        Raises:
            ConflictError, NotFoundError, DamagedError, NoSpaceError, NotWritableError: as pull.
        """
        dest = dest.absolute()
        self._check_dest(dest)
        pulling.check_parent(dest, self._own())
        if dest.is_dir() and all(pulling.holds_blob(dest / n, b) for n, b in blobs.items()):
            return
        size = sum(blob.size_bytes for blob in blobs.values())
        shown = Total(size, progress)

        def fill(place: folders.Place) -> None:
            for name, blob in blobs.items():
                with self.open_blob(blob, cached=False) as file:
                    step = shown.next(file.size)
                    place(name, partial(pulling.copy_verified, file, progress=step))

        self.produce_folder(
            dest, fill, replaceable=blobs.__contains__ if force else None, expect_bytes=size
        )

    def produce_folder(
        self,
        dest: Path,
        fill: Callable[[folders.Place], None],
        *,
        replaceable: Callable[[str], bool] | None = None,
        expect_bytes: int,
    ) -> None:
        """Write a folder of files that aren't blobs' to a path outside the store.

        Args:
            replaceable: says of a name in a folder that is there whether it may be replaced.

        Raises:
            ConflictError, NotFoundError, NoSpaceError, NotWritableError: as pull.
        """
        dest = dest.absolute()
        self._check_dest(dest)
        folders.produce_folder(
            dest, fill, replaceable=replaceable, keep_out=self._own(), expect_bytes=expect_bytes
        )
