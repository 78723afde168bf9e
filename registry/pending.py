"""Saves that go on in the background: one thread writes them, in the order in which they came.

Law: what was handed in is written, in order, even when the program ends first; an error is raised
at `result()` or, if nobody asked, when the registry is closed; at most one snapshot waits while
another is written, so that memory is bounded and training waits instead. A forked child has no
part in its parent's. Knows no torch.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from .errors import warn
from .records import Checkpoint

_WAITING: Final = 1
"""Snapshots that may wait while one is written."""


class PendingSave:
    """A save that goes on in the background."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._future: Future[Checkpoint] = Future()
        self._asked = False

    def result(self, timeout_s: float | None = None) -> Checkpoint:
        """Wait for the save, and return the checkpoint.

        Raises:
            TimeoutError: it isn't done within `timeout_s` seconds; it goes on.
            CkregError: as `Registry.save`.
        """
        try:
            return self._future.result(timeout_s)
        finally:
            self._asked = self._future.done()

    def done(self) -> bool:
        """Say whether it has ended, well or not."""
        return self._future.done()

    def error(self) -> BaseException | None:
        """Return why it failed; None while it goes on, or when it went well."""
        return self._future.exception() if self._future.done() else None

    def __repr__(self) -> str:
        state = "failed" if self.error() else "done" if self.done() else "pending"
        return f"<PendingSave {self._what}: {state}>"


class Queue:
    """The saves of one registry that are under way."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[PendingSave, Callable[[], Checkpoint]]] = deque()
        self._thread: threading.Thread | None = None
        self._unseen: list[PendingSave] = []

    def submit(self, what: str, write: Callable[[], Checkpoint]) -> PendingSave:
        """Hand in a save; waits while there is one under way and one in the queue.

        Args:
            what: names it in messages.
            write: writes and commits it, in the background.
        """
        if self._pid != os.getpid():
            self._begin()
        save = PendingSave(what)
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _WAITING or self._thread is None)
            self._waiting.append((save, write))
            went_well = [s for s in self._unseen if s.done() and s.error() is None]
            self._unseen = [s for s in self._unseen if s not in went_well] + [save]
            if self._thread is None:
                # Not a daemon: the program doesn't end before what was handed in is written.
                self._thread = threading.Thread(target=self._work, name="ckreg-save")
                self._thread.start()
        return save

    def _work(self) -> None:
        late = 0
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    break
                save, write = self._waiting.popleft()
                self._changed.notify_all()
            try:
                save._future.set_result(write())
            except BaseException as error:  # an interrupt too is the caller's to see
                save._future.set_exception(error)
            late += not threading.main_thread().is_alive()
            del write  # and with it the snapshot
        if late:
            self._tell_late(late)

    def _tell_late(self, late: int) -> None:
        failed = [save for save in self._unseen if save.error() is not None and not save._asked]
        warn(
            f"the program ended with {late} saves under way: they were finished first"
            + "".join(f"; {save._what} failed: {save.error()}" for save in failed)
            + ". Close the registry, or ask each for its result(), to see to it yourself"
        )

    def flush(self) -> None:
        """Wait for all saves, and raise the first error that nobody has seen.

        Raises:
            CkregError: a save failed, and its result was never asked for.
        """
        if self._pid != os.getpid():
            return
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None and not self._waiting)
            saves, self._unseen = self._unseen, []
        for save in saves:
            error = save.error()
            if error is not None and not save._asked:
                save._asked = True
                raise error
