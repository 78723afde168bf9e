"""What all ranks of a process group do together, round by round, without a collective call.

Law: in each round every rank does its own work and tells rank 0, which alone decides and tells all;
where one rank fails, all do, and a rank that doesn't come in time is named. All goes through the
group's key-value store, so that a dead rank is a timeout and never a hang, and a background thread
may take part. Knows nothing of files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch

from .. import errors
from ..errors import CkregError, RefusedLoadError, RemoteError
from . import ranks

_LONGEST_PAUSE_S: Final = 0.1

T = TypeVar("T")


class Together:
    """This rank's part in one thing that all ranks do.

    Args:
        what: for messages: `save net epoch 3`.
        call: what to call on every rank, for the hint.
        facts: what tells it from others, equal on all ranks.

    Attributes:
        rank: this process's.
        writes: every rank has its part in the writing (see `ranks.Turn`).
        told: rank 0 may have what this rank told in the round.
        void: rank 0 has said that the round failed before it used what ranks told it.
    """

    def __init__(self, what: str, call: str, facts: ranks.Facts) -> None:
        self._what = what
        self._call = call
        self._store, self._key = ranks.place(facts)
        self._round = 0
        self._failed = False
        self.rank: int = 0 if self._store is None else torch.distributed.get_rank()
        self.writes = True
        self.void = False
        self.told = False

    # --- as a Turn ------------------------------------------------------------------------------

    @property
    def commits(self) -> bool:
        """Whether this rank commits the checkpoint."""
        return self.rank == 0

    def begin(self, prepare: Callable[[], T]) -> T:
        """Do what comes before a write in the background."""
        with self.whole():
            return prepare()

    def write(self, write: Callable[[], T]) -> T:
        """Do this rank's part of the writing; an error between rounds is told to the others."""
        with self.whole():
            return write()

    def wait(self) -> Any:
        """Never called: every rank writes."""
        raise AssertionError(self._what)

    # --- rounds ---------------------------------------------------------------------------------

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Tell the other ranks of an error in the block that no round told of."""
        try:
            yield
        except BaseException as error:
            if not self._failed:
                self._fail(error)
            raise

    def agree(self, work: Callable[[], T]) -> T:
        """Do this rank's part, and return its result when every rank has done its own.

        Raises:
            Exception: whatever `work` raised.
            RefusedLoadError, RemoteError: another rank's failed, or it didn't come in time.
        """
        done: list[T] = []
        self.round(lambda: done.append(work()))
        return done[0]

    def round(
        self, work: Callable[[], Any], lead: Callable[[Sequence[Any]], Any] | None = None
    ) -> Any:
        """Do this rank's part, and return what rank 0 made of all of them, as plain JSON data.

        Args:
            work: returns plain JSON data.
            lead: what rank 0 does with what all ranks told, in their order.

        Raises:
            Exception: whatever `work` or, on rank 0, `lead` raised.
            RefusedLoadError, RemoteError: it failed elsewhere, or a rank didn't come in time.
        """
        self.told = False
        try:
            value = work()
        except BaseException as error:
            self._fail(error)
            raise
        self.told = True
        try:
            if self._store is None:
                return None if lead is None else lead([value])
            if self.rank == 0:
                return self._lead(value, lead)
            self._put(f"{self.rank}", {"value": value})
            answer = self._hear()
        except BaseException:
            self._failed = True
            raise
        self._round += 1
        if "error" in answer:
            self._failed = True
            self.void = not answer["used"]
            raise self._elsewhere(answer["rank"], answer["error"])
        return answer["value"]

    def _lead(self, own: Any, lead: Callable[[Sequence[Any]], Any] | None) -> Any:
        by, used = 0, False
        try:
            told = {0: {"value": own}, **self._gather()}
            for by, one in told.items():
                if "error" in one:
                    raise self._elsewhere(by, one["error"])
            by, used = 0, True
            value = None if lead is None else lead([told[r]["value"] for r in sorted(told)])
        except BaseException as error:
            self.void = not used
            plain = one["error"] if by else _told(error)
            self._put("all", {"error": plain, "rank": by, "used": used})
            raise
        self._put("all", {"value": value})
        self._round += 1
        return value

    def _fail(self, error: BaseException) -> None:
        """Tell that this rank's part of the next round failed."""
        self._failed = True
        if self._store is None:
            return
        if self.rank == 0:
            self._put("all", {"error": _told(error), "rank": 0, "used": False})
        else:
            self._put(f"{self.rank}", {"error": _told(error)})

    # --- the store ------------------------------------------------------------------------------

    def _put(self, name: str, value: Any) -> None:
        if name == "all":
            ranks.publish(self._store, f"{self._key}/{self._round}/all", value)
            return
        try:
            self._store.set(f"{self._key}/{self._round}/{name}", json.dumps(value))
        except RuntimeError:
            return  # the store went with the rank that held it: what is heard next says so

    def _gather(self) -> dict[int, Any]:
        """Return what every other rank told, by rank; ends at the first that failed."""
        others = range(1, torch.distributed.get_world_size())
        keys = {r: f"{self._key}/{self._round}/{r}" for r in others}
        told: dict[int, Any] = {}
        deadline, pause = time.monotonic() + ranks.TIMEOUT_S, 0.005
        while True:
            for r in [r for r in others if r not in told]:
                if self._check(keys[r]):
                    told[r] = json.loads(self._get(keys[r]))
                    self._store.delete_key(keys[r])
                    if "error" in told[r]:
                        return told
            if len(told) == len(keys):
                return told
            if time.monotonic() > deadline:
                late = [r for r in others if r not in told]
                raise RemoteError(
                    f"{_named(late)} did not {self._what} within {ranks.TIMEOUT_S:g} s"
                    + ("" if self._round == 0 else " to the end, though it began"),
                    hint=f"{self._call} on every rank, also where the data ended early; if "
                    f"{_named(late)} did, look at its log",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def _hear(self) -> Any:
        """Wait for what rank 0 makes of the round; it may itself wait twice as long as this."""
        key = f"{self._key}/{self._round}/all"
        limit = 2 * ranks.TIMEOUT_S + 5
        deadline, pause = time.monotonic() + limit, 0.005
        while not self._check(key):
            if time.monotonic() > deadline:
                raise RemoteError(
                    f"rank 0 did not {self._what} within {limit:g} s, and rank {self.rank} waits "
                    "for it",
                    hint=f"{self._call} on every rank; if rank 0 did, look at its log",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        return json.loads(self._get(key))

    def _check(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError as error:
            raise self._gone(error) from error

    def _get(self, key: str) -> Any:
        try:
            return self._store.get(key)
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: RuntimeError) -> RemoteError:
        return RemoteError(
            f"rank {self.rank} lost the process group's store while it waited for the others to "
            f"{self._what}: {str(error).splitlines()[0]}",
            hint="the process that held it, mostly rank 0, is gone: look at its log; what it had "
            "committed is in: ckreg list",
        )

    def _elsewhere(self, rank: int, told: Any) -> CkregError:
        """Return the error of another rank as this one's: a refusal stays a refusal."""
        cls = RefusedLoadError if told["type"] == errors.RefusedLoadError.__name__ else RemoteError
        if told.get("of_all"):
            return cls(told["message"], hint=told.get("hint"))
        return cls(
            f"rank {rank} could not {self._what}: {told['type']}: {told['message']}",
            hint=told.get("hint"),
        )


def _told(error: BaseException) -> dict[str, Any]:
    if isinstance(error, RemoteError):
        return {**error.to_dict(), "of_all": True}
    if isinstance(error, CkregError):
        return error.to_dict()
    return {"type": type(error).__name__, "message": str(error), "hint": None}


def _named(some: Sequence[int]) -> str:
    shown = ", ".join(map(str, some[:8])) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
    return f"rank {shown}" if len(some) == 1 else f"ranks {shown}"
