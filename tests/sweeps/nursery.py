"""Children that are ready to work: forked from a process that has imported all they need, stopped.

So a fault that is put into the n-th call of a name hits the operation, not Python's start-up, and
a child costs milliseconds. A child runs one of OPERATIONS as soon as it is let go, with stdout and
stderr in files, and leaves with its code. Linux only: strace attaches to it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

LIMIT_S: Final = 30.0
"""How long a child may take, before it counts as wedged."""

WEDGED: Final = "wedged"
_TRACER: Final = 0x59616D61  # PR_SET_PTRACER, for kernels where only parents may trace


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: its exit code; None where a signal ended it.
        signal: that signal; None where it left by itself.
        out: what it acknowledged.
    """

    code: int | None
    signal: int | None
    out: str
    err: str

    @property
    def ended_by(self) -> str:
        """A word for messages."""
        return f"code {self.code}" if self.signal is None else signal.Signals(self.signal).name


@dataclass(slots=True)
class Child:
    """A child that waits to be let go."""

    pid: int
    out: Path
    err: Path


class Nursery:
    """The process that forks them, and its end of the line; a context manager.

    Args:
        torch: have torch imported; without it, a child that imports it fails.
        lock_timeout_s: how long its writers wait for each other.
        blind: don't ask how much space is free, so that the disk is met when it is full.
    """

    def __init__(
        self,
        folder: Path,
        *,
        torch: bool = False,
        lock_timeout_s: float = 20.0,
        blind: bool = False,
    ) -> None:
        self._folder = folder
        self._count = 0
        how = json.dumps({"torch": torch, "lock_timeout_s": lock_timeout_s, "blind": blind})
        words = [sys.executable, "-m", "tests.sweeps.nursery", how]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            cwd=Path(__file__).parent.parent.parent,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()

    def _ask(self, question: dict[str, Any], limit_s: float) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        return json.loads(self._process.stdout.readline()) if ready else None

    def fork(self, operation: str, words: Sequence[str]) -> Child:
        """Return a new child, stopped before its first step."""
        self._count += 1
        out = self._folder / f"child{self._count}.out"
        err = self._folder / f"child{self._count}.err"
        asked = {"operation": operation, "words": list(words), "out": str(out), "err": str(err)}
        pid = self._ask(asked, LIMIT_S)
        assert pid, "the nursery doesn't answer"
        return Child(pid, out, err)

    def end(self, child: Child, *, limit_s: float = LIMIT_S) -> Outcome:
        """Wait for a child that was let go; one that takes too long is killed, and is wedged."""
        status = self._ask({"wait": child.pid}, limit_s)
        wedged = status is None
        if wedged:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            assert self._process.stdout is not None
            status = json.loads(self._process.stdout.readline())
        out, err = child.out.read_text(), child.err.read_text()
        child.out.unlink()
        child.err.unlink()
        if wedged:
            return Outcome(None, None, out, f"{err}{WEDGED}")
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code if code >= 0 else None, -code if code < 0 else None, out, err)

    def run(self, operation: str, *words: str, limit_s: float = LIMIT_S) -> Outcome:
        """Let a child do its work undisturbed."""
        child = self.fork(operation, words)
        os.kill(child.pid, signal.SIGCONT)
        return self.end(child, limit_s=limit_s)

    def traced(
        self,
        operation: str,
        words: Sequence[str],
        options: Sequence[str],
        *,
        log: str = "/dev/null",
    ) -> Outcome:
        """Let a child do its work under strace: `-e`, `inject=fsync:error=EIO:when=2`, …"""
        child = self.fork(operation, words)
        with Strace(child.pid, options, log=log):
            os.kill(child.pid, signal.SIGCONT)
            return self.end(child)


class Strace:
    """strace, attached to a child until the block or the child ends."""

    def __init__(self, pid: int, options: Sequence[str], *, log: str = "/dev/null") -> None:
        words = ["strace", "-f", "-p", str(pid), "-o", log, *options]
        self._process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if "attached" not in line:
            self._process.kill()
            raise RuntimeError(f"strace can't attach: {line}{self._process.stderr.read()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


def why_no_strace() -> str | None:
    """Return why faults can't be injected here, or None where they can."""
    if not sys.platform.startswith("linux"):
        return "strace is Linux's"
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    words = ["strace", "-o", "/dev/null", "-e", "inject=getppid:error=EIO", "true"]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace can't trace here: {tried.stderr.strip()}"


# --- the nursery's own process --------------------------------------------------------------------


def _serve(stdin: IO[str], *, torch: bool, lock_timeout_s: float, blind: bool) -> None:
    import alembic.command  # noqa: F401 - what is imported late is imported now

    import registry.pushes
    from registry.blobs import disk
    from registry.schema import Database

    from . import operations

    if torch:
        import torch as torch_

        import registry.tensors.writing  # noqa: F401

        torch_.set_num_threads(1)
    defaults = Database.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lock_timeout_s"] = lock_timeout_s
    if blind:
        disk.SPARE_BYTES = -(1 << 60)  # type: ignore[misc]
    _warm_up()
    gc.freeze()
    for line in stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(status, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _be_a_child(asked, operations, torch=torch)
        while True:  # until it has stopped itself
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "T":
                    break
            time.sleep(0.0005)
        print(pid, flush=True)


def _warm_up() -> None:
    """Do once what is only imported when it is done."""
    import importlib
    import pkgutil
    import re
    import tempfile

    import registry
    from registry import Registry

    for module in pkgutil.walk_packages(registry.__path__, "registry."):
        if not re.search(r"\.(tensors|integrations|web|__main__)\b", module.name):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as folder, Registry.create(f"{folder}/reg") as reg:
        reg.models()


def _be_a_child(asked: dict[str, Any], operations: Any, *, torch: bool) -> None:
    code = 70
    try:
        ctypes.CDLL(None).prctl(_TRACER, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(fd, number)
            os.close(fd)
        # The nursery's own words wait in no buffer: each was flushed.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
        os.kill(os.getpid(), signal.SIGSTOP)
        code = operations.OPERATIONS[asked["operation"]](asked["words"])
        if not torch:
            operations.forbid_torch()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, **json.loads(sys.argv[1]))
