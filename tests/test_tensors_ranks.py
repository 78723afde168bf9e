"""One save by many ranks: real gloo processes, guarded and not, and with rank 0 dead or absent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ranks

HERE = Path(__file__).resolve()


def _checkpoint(epoch: int) -> Any:
    from registry.records import Checkpoint
    from registry.values import CheckpointId, Digest, now

    digest = Digest("blake3:" + "0" * 64)
    return Checkpoint(
        id=CheckpointId(f"{epoch:032x}"), model="net", version=epoch + 1, epoch=epoch,
        container="torch-zip", signature=digest, tensors=1, files=(), created_at=now(),
        facts_digest=digest,
    )  # fmt: skip


def once(facts: Any, write: Callable[[], Any]) -> Any:
    """Save on one rank only."""
    from registry.tensors import ranks

    turn = ranks.turn(facts)
    return turn.write(write) if turn.writes else turn.wait()


def _once(epoch: int, then: Callable[[], Any] | None = None) -> int:
    """Return the version that this rank is told."""
    written = _checkpoint(epoch)
    return once(("net", None, epoch, None), then or (lambda: written)).version


# --- the jobs, each run on every rank -------------------------------------------------------------


def unguarded(rank: int) -> Any:
    return [_once(0), _once(1), _once(2)]


def guarded(rank: int) -> Any:
    told = [_once(0), _once(1)] if rank == 0 else []
    return [*told, _once(2)]  # the guarded calls put nothing out of step


def repeated(rank: int) -> Any:
    """Save twice with equal facts; the second answer is another one."""
    facts = ("net", "cifar10", 3, None)
    return [once(facts, lambda n=n: _checkpoint(n)).version for n in (7, 8)]


def slow(rank: int) -> Any:
    return _once(0, lambda: (time.sleep(1.5), _checkpoint(0))[1])


def failing(rank: int) -> Any:
    from registry.errors import NoSpaceError

    def fail() -> Any:
        raise NoSpaceError("the disk is full: 3 bytes left", hint="rm something")

    return _once(0, fail)


def surprised(rank: int) -> Any:
    return _once(0, lambda: [][1])


def absent(rank: int) -> Any:
    if rank == 0:
        time.sleep(4)
        return "rank 0 was elsewhere"
    return _once(0)


def killed(rank: int) -> Any:
    if rank == 0:
        _once(0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return _once(0)


def other_killed(rank: int) -> Any:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    return _once(0)


def main(job: str, rank: str, init: str, out: str) -> None:
    """Run one rank, and write what it was told."""
    import torch

    from registry.errors import CkregError
    from registry.tensors import ranks

    ranks.TIMEOUT_S = 2.5
    torch.distributed.init_process_group("gloo", init_method=init, rank=int(rank), world_size=2)
    torch.distributed.barrier()  # a rank that dies does so once all are connected
    answer: dict[str, Any] = {}
    began = time.monotonic()
    try:
        answer["told"] = globals()[job](int(rank))
    except CkregError as error:
        answer.update(error.to_dict())
    except Exception as error:
        answer.update(type=type(error).__name__, message=str(error))
    answer["took_s"] = time.monotonic() - began
    Path(out).write_text(json.dumps(answer))
    if job in ("unguarded", "guarded"):
        torch.distributed.destroy_process_group()
    else:
        if rank == "0":
            time.sleep(1)  # it holds the store, which the other may be reading
        os._exit(0)  # a broken group would wait for the dead


def run(job: str, tmp_path: Path, store: str = "tcp") -> list[dict[str, Any] | None]:
    """Run a job on two ranks; return what each was told, None for one that was killed."""
    init = f"file://{tmp_path}/store"
    if store == "tcp":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            init = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent)]),
    }  # fmt: skip
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE), job, str(rank), init, str(outs[rank])], env=environment
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            child.wait(timeout=60)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [json.loads(out.read_text()) if out.exists() else None for out in outs]


def told(answers: list[dict[str, Any] | None]) -> list[Any]:
    assert all(a is not None and "told" in a for a in answers), answers
    return [a["told"] for a in answers if a is not None]


@pytest.mark.parametrize("store", ["tcp", "file"])
def test_every_rank_is_told_what_rank_0_wrote(tmp_path: Path, store: str) -> None:
    assert told(run("unguarded", tmp_path, store)) == [[1, 2, 3], [1, 2, 3]]


def test_calls_guarded_by_rank_0_put_nothing_out_of_step(tmp_path: Path) -> None:
    assert told(run("guarded", tmp_path)) == [[1, 2, 3], [3]]


def test_calls_with_equal_facts_are_told_apart_by_their_order(tmp_path: Path) -> None:
    assert told(run("repeated", tmp_path)) == [[8, 9], [8, 9]]


def test_a_slow_write_is_waited_for(tmp_path: Path) -> None:
    assert told(run("slow", tmp_path)) == [1, 1]


def test_what_fails_on_rank_0_is_told_with_its_cure(tmp_path: Path) -> None:
    first, second = run("failing", tmp_path)
    assert first is not None
    assert first["type"] == "NoSpaceError"
    assert second is not None
    assert second["type"] == "RemoteError"
    assert second["exit_code"] == 12
    assert "rank 0" in second["message"]
    assert "3 bytes left" in second["message"]
    assert second["hint"] == "rm something"


def test_any_exception_of_rank_0_is_told(tmp_path: Path) -> None:
    first, second = run("surprised", tmp_path)
    assert first is not None
    assert first["type"] == "IndexError"
    assert second is not None
    assert second["type"] == "RemoteError"
    assert "IndexError" in second["message"]


def test_a_rank_0_that_never_calls_is_named_in_time(tmp_path: Path) -> None:
    _, second = run("absent", tmp_path)
    assert second is not None
    assert second["type"] == "RemoteError"
    assert "rank 0 did not save model='net', epoch=0 within 2.5 s" in second["message"]
    assert "call save on rank 0" in second["hint"]
    assert second["took_s"] < 10


@pytest.mark.parametrize("store", ["tcp", "file"])
def test_a_rank_0_killed_while_it_writes_hangs_nobody(tmp_path: Path, store: str) -> None:
    first, second = run("killed", tmp_path, store)
    assert first is None
    assert second is not None
    assert second["type"] == "RemoteError"
    assert "rank 0" in second["message"]
    assert second["took_s"] < 10


def test_rank_0_does_not_wait_for_a_dead_rank(tmp_path: Path) -> None:
    first, second = run("other_killed", tmp_path)
    assert second is None
    assert first is not None
    assert first["told"] == 1
    assert first["took_s"] < 5


def test_without_a_process_group_it_just_writes() -> None:
    assert _once(4) == 5
    with pytest.raises(IndexError):
        surprised(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
