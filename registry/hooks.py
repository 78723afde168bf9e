"""What runs when a checkpoint was committed: functions of installed packages, and one command.

Law: a hook comes after the commit and can't harm it: whatever it does, or doesn't within its time,
is a warning. It is this user's, on this machine: nothing is ever run that a registry names. Each
new checkpoint is told once, by the process that committed it; a hook's own commits tell nobody.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from .errors import warn_after
from .records import Checkpoint

GROUP: Final = "ckreg.on_commit"
"""The entry points: callables that take the record as `Checkpoint.to_dict` gives it."""

COMMAND: Final = "CKREG_ON_COMMIT"
"""The variable that holds a shell command, which gets the record as JSON on its stdin."""

LIMIT_S: Final = 10.0
"""How long each hook may take; a command is ended then, a function left to itself."""

_RUNNING: Final = "CKREG_IN_HOOK"
"""Set while a hook runs, to the process that runs it: what the hook starts calls no hook."""

_here = threading.local()


def committed(checkpoint: Checkpoint, location: str) -> None:
    """Run the hooks for a new checkpoint.

    Args:
        location: the registry; a command finds it in $CKREG_REGISTRY.
    """
    if getattr(_here, "inside", False) or os.environ.get(_RUNNING, _pid()) != _pid():
        return
    if (held := getattr(_here, "held", None)) is not None:
        held.append((checkpoint, location))
        return
    command = os.environ.get(COMMAND)
    functions = _functions()
    if not command and not functions:
        return
    record = checkpoint.to_dict()
    for name, function in functions:
        _tell(checkpoint, f"the hook {name}", partial(_call, function, record))
    if command:
        # not shown: it may hold a token
        _tell(checkpoint, f"the command of {COMMAND}", partial(_run, command, record, location))


@contextmanager
def held() -> Iterator[None]:
    """Run the hooks when the block is left: other ranks learn of a save in it, and don't wait."""
    if getattr(_here, "held", None) is not None:
        yield
        return
    waiting: list[tuple[Checkpoint, str]] = []
    _here.held = waiting
    try:
        yield
    finally:
        _here.held = None
        for checkpoint, location in waiting:
            committed(checkpoint, location)


def _tell(checkpoint: Checkpoint, what: str, call: Callable[[], str | None]) -> None:
    try:
        wrong = call()
    except Exception as error:  # no thread, no room for its stdin: the save is done all the same
        wrong = f"could not be started: {_named(error)}"
    if wrong is not None:
        warn_after(f"{checkpoint.ref} is committed, but {what} {wrong}")


@functools.cache
def _functions() -> tuple[tuple[str, Callable[[dict[str, Any]], object]], ...]:
    """Return the functions of installed packages, looked up once a process."""
    from importlib.metadata import entry_points

    found: list[tuple[str, Callable[[dict[str, Any]], object]]] = []
    for point in sorted(entry_points(group=GROUP)):
        name = f"{point.name!r} ({point.value})"
        try:
            found.append((name, point.load()))
        except (Exception, SystemExit) as error:
            warn_after(
                f"the hook {point.name!r} ({point.value}) can't be imported: {_named(error)}"
            )
    return tuple(found)


def _call(function: Callable[[dict[str, Any]], object], record: dict[str, Any]) -> str | None:
    """Call a function on a copy of the record, and return what went wrong."""
    wrong: list[str] = []

    def call() -> None:
        _here.inside = True
        try:
            function(json.loads(json.dumps(record)))
        except BaseException as error:  # SystemExit too: no hook ends a training
            wrong.append(f"failed: {_named(error)}")

    # In a thread, which can be left behind: a function that hangs must not hang the save.
    thread = threading.Thread(target=call, name="ckreg-hook", daemon=True)
    os.environ[_RUNNING] = _pid()
    try:
        thread.start()
        thread.join(LIMIT_S)
    finally:
        os.environ.pop(_RUNNING, None)
    if thread.is_alive():
        return f"isn't done after {LIMIT_S:g} s; it goes on by itself"
    return wrong[0] if wrong else None


def _run(command: str, record: dict[str, Any], location: str) -> str | None:
    """Run a command with the record as JSON on its stdin, and return what went wrong."""
    environment = {name: value for name, value in os.environ.items() if name != COMMAND}
    if "://" not in location:  # a server's has its password elsewhere
        environment["CKREG_REGISTRY"] = location
    environment[_RUNNING] = _pid()
    # Files and not pipes: who doesn't read stdin blocks nobody, and what a command leaves running
    # in the background keeps nobody waiting.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as said:
        stdin.write(json.dumps(record).encode() + b"\n")
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                command, shell=True, stdin=stdin, stdout=said, stderr=said, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"could not be started: {_named(error)}"
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"was ended: it wasn't done after {LIMIT_S:g} s"
        except BaseException:
            _end(process)
            raise
        if code == 0:
            return None
        said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
        return f"{how}{''.join(f': {line}' for line in last)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)  # its children too
    process.wait()


def _pid() -> str:
    return str(os.getpid())


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
