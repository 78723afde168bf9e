"""Every error that ckreg raises for a failing world; a bad call is a ValueError or a TypeError.

A message says what happened, with the values, and why; the hint says how to mend it, as a command
to paste. Exit codes are public: scripts branch on them. Foreign exceptions are translated once, in
the module that calls the library, with `from`.

    CkregError                     1   anything else that went wrong
    ├── NotFoundError              3   no such model, ref, file or registry (`near`: close names)
    ├── AmbiguousError             4   several answer (`candidates`)
    ├── ConflictError              5   it exists, or disagrees with what exists
    ├── DamagedError               6   bytes that are not what was recorded, cut short or empty
    ├── ContainerError             7   no checkpoint, or of a kind that can't be used so
    ├── RefusedLoadError           7   a load that would be wrong
    ├── SchemaVersionError         8   the registry is newer or older than this ckreg
    ├── BusyError                  9   somebody else holds what is needed, for too long
    ├── UntrustedError            10   the file asks for code, or breaks the limits set for safety
    ├── NoSpaceError              11   the disk or quota is full
    ├── RemoteError               12   a server or another rank is unreachable, or refused
    └── NotWritableError          13   read-only or no permission
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import ClassVar, Final

_PACKAGE: Final = __name__.partition(".")[0]


class CkregWarning(UserWarning):
    """Something that a person should know, and that stops nothing."""


def warn(text: str) -> None:
    """Warn whoever called into this package, at the line where he did."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, CkregWarning, stacklevel=level)


def warn_after(text: str) -> None:
    """Warn of what must not end a commit, or hide it: where warnings are errors (`-W error`) it is
    printed, or what was saved would be dropped, or look failed.
    """
    try:
        warn(text)
    except CkregWarning:
        print(f"warning: {text}", file=sys.stderr)


def _is_ours(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")


class CkregError(Exception):
    """The base of all ckreg errors.

    Attributes:
        message: what happened and why, one or more lines without a trailing full stop.
        hint: how to mend it, or None.
        exit_code: what the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields would be lost by the default (args only) across process borders.
        return (_revive, (type(self), self.__dict__))

    def to_dict(self) -> dict[str, object]:
        """Return the error as the one JSON object that `--json` prints on stderr."""
        return {
            "type": type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
        }


def _revive(cls: type[CkregError], state: dict[str, object]) -> CkregError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["message"],)
    return error


class NotFoundError(CkregError):
    """Nothing answers to the name; `near` holds names that are close to it."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None, near: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.near = tuple(near)


class AmbiguousError(CkregError):
    """Several answer to the name; `candidates` holds them, as refs or keys."""

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, candidates: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.candidates = tuple(candidates)


class ConflictError(CkregError):
    """Something is there already, or disagrees with what is there. Nothing was changed."""

    exit_code = 5


class DamagedError(CkregError):
    """Bytes differ from what was recorded, or a file is empty or cut short."""

    exit_code = 6


class ContainerError(CkregError):
    """A file that is no checkpoint, or of a kind that can't be used in the way asked for."""

    exit_code = 7


class RefusedLoadError(CkregError):
    """The load would have been wrong. The target is as it was."""

    exit_code = 7


class SchemaVersionError(CkregError):
    """The registry's schema is not the one that this ckreg writes."""

    exit_code = 8


class BusyError(CkregError):
    """A lock could not be had within its limit."""

    exit_code = 9


class UntrustedError(CkregError):
    """The file asks for code to run, or breaks a limit that keeps reading it safe."""

    exit_code = 10


class NoSpaceError(CkregError):
    """The disk or the quota is full. What was half-written is gone again."""

    exit_code = 11


class RemoteError(CkregError):
    """A server, or another rank of the job, is unreachable or refused."""

    exit_code = 12


class NotWritableError(CkregError):
    """The registry or the destination is read-only, or permission is missing."""

    exit_code = 13
