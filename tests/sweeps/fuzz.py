"""Coverage-guided fuzzing of each container reader, by atheris: an error of ours, or an index.

Law: whatever the bytes are, reading and describing them ends in a `CkregError` or a `Contents`, in
two seconds and 512 MiB, and no global of the file is ever called. Each kind runs in a process of
its own, from the sound files of seeds.py; what broke the law is left as `crash-…` in the folder
that is printed. Needs `pip install atheris`, which the tests don't bring (Linux, CPython).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

KINDS: Final = ("torch-zip", "torch-legacy", "safetensors", "pickle", "json", "any")
"""What the seeds of a run are; `any` starts from nothing, `json` is a folder's index."""

_DONE: Final = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERED: Final = re.compile(r"cov: (\d+)")


class Whole:
    """A file's bytes, all in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self._data)

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on. Raises DamagedError."""
        from registry.errors import DamagedError

        if offset < 0 or size < 0 or offset + size > len(self._data):
            raise DamagedError("the file ends before that")
        return self._data[offset : offset + size]


def write_seeds(kind: str, folder: Path) -> None:
    """Write the sound files that a run starts from."""
    from . import seeds

    made = {
        "torch-zip": seeds.torch_zips,
        "torch-legacy": seeds.torch_legacies,
        "safetensors": seeds.safetensors_files,
        "pickle": seeds.pickles,
        "json": lambda: [b'{"metadata": {}, "weight_map": {"a": "m.safetensors"}}'],
        "any": lambda: [b"PK\3\4"],
    }[kind]()
    for number, data in enumerate(made):
        (folder / f"seed-{number}").write_bytes(data)


def target(kind: str) -> None:
    """Fuzz one reader in this process; libFuzzer's own arguments are in sys.argv."""
    import atheris  # type: ignore[import-not-found]  # installed for this sweep only

    with atheris.instrument_imports(include=["registry.containers"]):
        from registry.containers import describe, read, read_folder
    from registry.errors import CkregError

    shard = Path(__file__).parent  # any folder's name: only bytes are read
    model = b"\x08\0\0\0\0\0\0\0{}      "

    def once(data: bytes) -> None:
        try:
            if kind == "json":
                files = {"model.safetensors.index.json": Whole(data), "m.safetensors": Whole(model)}
                describe(read_folder(files, shard.name), files)
            else:
                file = Whole(data)
                describe(read(file, "file"), file)
        except CkregError:
            pass

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


def sweep(kinds: list[str], count: int) -> int:
    """Fuzz each kind with so many inputs; return 1 when a law was broken."""
    failed = False
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
        corpus = folder / "corpus"
        corpus.mkdir()
        write_seeds(kind, corpus)
        words = [
            f"-runs={count}",
            "-rss_limit_mb=1024",
            "-timeout=2",
            f"-artifact_prefix={folder}/",
        ]
        code = f"from tests.sweeps.fuzz import target; target({kind!r})"
        ended = subprocess.run(
            [sys.executable, "-c", code, *words, str(corpus)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        done, covered = _DONE.search(ended.stderr), _COVERED.findall(ended.stderr)
        if ended.returncode or done is None:
            failed = True
            print(f"{kind}: broke the law; see {folder}\n{ended.stderr[-3_000:]}")
        else:
            print(f"{kind}: {done[1]} inputs in {done[2]} s, {covered[-1]} edges; none broke it")
        sys.stdout.flush()
    return int(failed)
