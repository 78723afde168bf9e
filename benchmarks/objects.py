"""An object store's push and pull beside its own client, on a server of this machine."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import blake3

from registry import Registry

from .speed import Fresh
from .timing import ROOT, Row, rounds

sys.path.insert(0, str(ROOT / "tests"))
_READ = 16 << 20


def push_and_pull(folder: Path, mib: int, count: int) -> list[Row]:
    """Measure them against obstore's put and get, each with one hash of the file.

    Raises:
        sweeps.s3_server.Unavailable: the server can't be started here.
    """
    import obstore
    from obstore.store import S3Store
    from sweeps import s3_server

    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        server = s3_server.start(place / "server")
        try:
            server.make_bucket("speed")
            os.environ.update(server.environment(), CKREG_CACHE=str(place / "cache"))
            path = place / "net.pt"
            raw = S3Store.from_url(
                "s3://speed/raw", client_options={"allow_http": True}, checksum_algorithm="SHA256"
            )

            def their_push() -> None:
                _hash(path)
                obstore.put(raw, "net.pt", path, chunk_size=8 << 20)

            def their_pull() -> None:
                with (place / "theirs.pt").open("wb") as file:
                    for piece in obstore.get(raw, "net.pt"):
                        file.write(piece)
                    os.fsync(file.fileno())
                _hash(place / "theirs.pt")

            with Registry.create(place / "reg", blobs="s3://speed/reg") as reg:
                size = f"{mib} MiB"
                push = Row(f"push {size} to S3", "obstore.put and a hash", 1.3)
                rounds(
                    push, lambda: reg.push(path, model="net"), their_push, count,
                    before=Fresh(path, mib),
                )  # fmt: skip

                def our_pull() -> None:
                    reg.pull("net", place / "ours.pt", force=True)

                def clear() -> None:
                    for one in ("ours.pt", "theirs.pt"):
                        (place / one).unlink(missing_ok=True)

                pull = Row(f"pull {size} from S3", "obstore.get and a hash", 1.3)
                rounds(pull, our_pull, their_pull, count, before=clear)
        finally:
            server.stop()
    return [push, pull]


def _hash(path: Path) -> str:
    found = blake3.blake3(max_threads=blake3.blake3.AUTO)
    with path.open("rb") as file:
        while piece := file.read(_READ):
            found.update(piece)
    return found.hexdigest()
