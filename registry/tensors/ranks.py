"""One save by many ranks, without a collective call: rank 0 writes, the others are told.

Law: people write `if rank == 0: reg.save(...)`, so no rank may depend on another one's calling.
Rank 0 publishes its result, or its error, in the process group's key-value store under a key made
of the call's own facts; a rank that calls waits for that key, never longer than `TIMEOUT_S`. Never
by a counter of calls, which guarded calls would put out of step: each rank counts only its calls
with equal facts.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch

from ..errors import CkregError, RemoteError, warn
from ..records import Checkpoint
from ..values import digest_of

TIMEOUT_S: float = 1800.0
"""How long a rank waits for rank 0: torch.distributed's own default."""

_LONGEST_PAUSE_S: Final = 0.1
_PATIENCE_S: Final = 10.0
_LINGER_S: Final = 1.0

T = TypeVar("T")

Facts = tuple[str | None, str | None, int | None, int | None]
"""Model, dataset, epoch and step of a save."""


class Turn:
    """A rank's part in one save.

    Its place among this rank's calls with equal facts is taken when it is made, so that the save
    itself may come later, in the background.
    """

    def __init__(self, store: Any, key: str, facts: Facts) -> None:
        self._store = store
        self._key = key
        self._facts = facts
        self.writes: bool = store is None or torch.distributed.get_rank() == 0

    @property
    def commits(self) -> bool:
        """Whether this rank commits the checkpoint."""
        return self.writes

    def begin(self, prepare: Callable[[], T]) -> T:
        """Do what comes before a write in the background; its error is told to the others too."""
        if self._store is None:
            return prepare()
        with _telling(self._store, self._key):
            return prepare()

    def write(self, write: Callable[[], Checkpoint]) -> Checkpoint:
        """Write the checkpoint, and tell the other ranks of it, or of the error."""
        return write() if self._store is None else _write(self._store, self._key, write)

    def wait(self) -> Checkpoint:
        """Return what rank 0 wrote.

        Raises:
            RemoteError: rank 0 failed, is gone, or didn't call within `TIMEOUT_S`.
        """
        return _await(self._store, self._key, self._facts)


def turn(facts: Facts) -> Turn:
    """Take this rank's turn in a save.

    Outside a process group, and in one of a single process, it just writes.

    Args:
        facts: what tells this save from others, equal on all ranks: model, dataset, epoch, step.
    """
    return Turn(*place(facts), facts)


def place(facts: Facts) -> tuple[Any, str]:
    """Return the group's store, and the key of this process's next call with these facts.

    Outside a process group, and in one of a single process, there is neither.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if alone or torch.distributed.get_world_size() == 1:
        return None, ""
    store = _store()
    return store, _next_key(store, facts)


def _write(store: Any, key: str, write: Callable[[], Checkpoint]) -> Checkpoint:
    with _telling(store, key):
        checkpoint = write()
    publish(store, key, {"checkpoint": checkpoint.to_dict()})
    return checkpoint


@contextmanager
def _telling(store: Any, key: str) -> Iterator[None]:
    """Tell the other ranks of an error in the block."""
    try:
        yield
    except BaseException as error:
        told = error.to_dict() if isinstance(error, CkregError) else _told(error)
        publish(store, key, {"error": told})
        raise


def _told(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error), "hint": None}


def publish(store: Any, key: str, answer: Mapping[str, Any]) -> None:
    """Put rank 0's answer in the store, and see that it stays there for a moment."""
    global _published_at
    try:
        store.set(key, json.dumps(answer))
        if _published_at == 0.0:
            atexit.register(_linger)
        _published_at = time.monotonic()
    except RuntimeError:
        # The store went with the rank that held it. What is written is written, and this rank's
        # outcome stands; the ranks that wait meet the same store and say so themselves.
        return


def _linger() -> None:
    """Keep the store a moment longer: the answer to the last save may not be fetched yet.

    Rank 0 holds the store (under mp.spawn), and its exit right after a save would take the answer
    away from the ranks that are about to look.
    """
    time.sleep(max(0.0, _LINGER_S - (time.monotonic() - _published_at)))


def _await(store: Any, key: str, facts: Facts) -> Checkpoint:
    rank = torch.distributed.get_rank()
    deadline = time.monotonic() + TIMEOUT_S
    patience = time.monotonic() + _PATIENCE_S
    pause = 0.005
    try:
        # Polled, not store.wait(): that would hold the client's lock, and no Ctrl-C would get
        # through.
        while not store.check([key]):
            if time.monotonic() > deadline:
                raise RemoteError(
                    f"rank 0 did not save {named(facts)} within {TIMEOUT_S:g} s, and rank {rank} "
                    "waits for it",
                    hint="call save on rank 0 (alone, or on every rank) with the same model, "
                    "dataset, epoch and step; if it does, look at rank 0's log",
                )
            if time.monotonic() > patience:
                warn(f"rank {rank} waits for rank 0 to save {named(facts)}")
                patience = deadline
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        answer = json.loads(store.get(key))
    except (
        RuntimeError
    ) as error:  # torch.distributed.DistError and, from some stores, its base class
        raise RemoteError(
            f"rank 0 is gone: rank {rank} lost the process group's store while it waited for "
            f"{named(facts)}: {str(error).splitlines()[0]}",
            hint="look at rank 0's log; what it had committed is in: ckreg list",
        ) from error
    if "error" in answer:
        told = answer["error"]
        raise RemoteError(
            f"rank 0 could not save {named(facts)}: {told['type']}: {told['message']}",
            hint=told.get("hint"),
        )
    return Checkpoint.from_dict(answer["checkpoint"])


def named(facts: Facts) -> str:
    """Return a save's facts for a message."""
    words = zip(("model", "dataset", "epoch", "step"), facts, strict=True)
    return ", ".join(f"{name}={value!r}" for name, value in words if value is not None)


# --- the store and this process's place in it -----------------------------------------------------

_lock: Final = threading.Lock()
_published_at = 0.0
_counted: tuple[object, dict[str, int]] = (None, {})


def _store() -> Any:
    # The one way to the group's store; torch's own elastic and checkpoint code goes it too (2.13).
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _next_key(store: object, facts: Facts) -> str:
    """Return the key of this process's next call with these facts; a new group starts anew."""
    global _counted
    base = digest_of(list(facts)).removeprefix("blake3:")
    with _lock:
        if _counted[0] is not store:
            _counted = (store, {})
        n = _counted[1].get(base, 0)
        _counted[1][base] = n + 1
    return f"ckreg/{base}/{n}"
