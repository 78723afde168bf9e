"""Who runs, and from which code: author, command line, git commit, host.

Law: no secret leaves the process; what looks like one is masked before it is recorded, and so is
what may be one. Nothing here may fail or delay a save: what can't be had within two seconds is
None.
"""

from __future__ import annotations

import functools
import getpass
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Final

from .records import Git

MASK: Final = "***"
_HIDDEN: Final = "__masked__"  # quotes like a word; becomes the mask afterwards
_LIMIT: Final = 4096
_GIT_TIMEOUT_S: Final = 2.0

# How the parts of a name (`ACCESS_TOKEN`, `accessToken`: access, token) say that it holds a secret.
_SECRET: Final = re.compile(
    r".*(password|passwd|passphrase|passcode|secret|credential|apikey|accesskey|privatekey).*"
    r"|.*(token|pwd)s?|pass|sshpass|pw|creds?|cookies?|bearer"
    r"|sig|o?auth|authori[sz]ation|authentication|authkeys?"
)
_KEY_OF: Final = re.compile(
    r"access|account|admin|api|auth|aws|client|deploy|encryption|hmac|license|master|private|secret"
    r"|service|session|shared|signing|ssh|storage"
)
"""Before `key` or `keys`, anywhere in a name. Without one of them only a last `key` is a secret."""
_COUNTED: Final = frozenset({"max", "min", "num", "number", "n", "total", "count", "per"})
_COUNT: Final = re.compile(r"(max|min|num|n|total)(new|input|output)?tokens")

_CAMEL: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_LETTERS: Final = re.compile(r"[A-Za-z]+")
# A name, and what stands before its value: `token=`, `"token": `, `TOKEN `, `env[TOKEN]=`.
_NAMED: Final = re.compile(
    r"""(?<![\w.\-\[\]])([\w.\-\[\]]++)(?:[\\"'\])}]*\s*[:=\s]|\\*["'],)\s*"""
)
_PLURAL: Final = re.compile(r"(?i)[^s]s$")
# The user's part of a URL. A password is taken to reach up to the last @ of all: an unquoted one
# may hold anything. Where there is none, the part ends with the URL's authority (RFC 3986, 3.2).
_USER: Final = re.compile(r"(?s)://(?:([^/?#\s:]*):(.*)|[^/?#\s]*)@")


def author() -> str | None:
    """Return the user's login name, or None where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


def hostname() -> str | None:
    """Return the host's name."""
    return socket.gethostname() or None


def command(argv: Sequence[str] | None = None) -> str | None:
    """Return the command line of this process as shell text, secrets masked; at most 4096
    characters.

    Example:
        >>> command(["train.py", "--lr", "0.1", "--api-key", "abc", "db://me:pw@host/x"])
        'train.py --lr 0.1 --api-key *** db://me:***@host/x'
    """
    words = list(sys.argv if argv is None else argv)
    if not any(words):
        return None
    return mask(words)[:_LIMIT]


def mask(words: Sequence[str]) -> str:
    """Join words into shell text, masking what may be a secret.

    That is the password in a URL (or its user, where that stands alone), and the value of a name
    such as `--token`, `apiKey=` or `"password": `: the rest of the word, or the next word.
    """
    shown: list[str] = []
    hide, many = _Hide.NOTHING, False
    for word in words:
        is_value = hide is _Hide.NEXT or (hide is _Hide.VALUE and not word.startswith("-"))
        masked = _HIDDEN if is_value else _mask_values(_mask_user(word))
        shown.append(shlex.quote(masked).replace(_HIDDEN, MASK))
        hide = _hide_after(word)
        if hide is _Hide.NOTHING and is_value and many:
            hide = _Hide.VALUE
        else:  # `--tokens a b c`
            many = hide is _Hide.NEXT and bool(_PLURAL.search(word))
    return " ".join(shown)


class _Hide(Enum):
    """What a word makes a secret of the word after it."""

    NOTHING = auto()
    VALUE = auto()
    """It is one, unless it is a flag."""
    NEXT = auto()
    """It is one, whatever it looks like."""


def _hide_after(word: str) -> _Hide:
    named = list(_NAMED.finditer(word))
    if named:  # `token:`, `--password=`: is the last one's value missing?
        missing = named[-1].end() == len(word) and _is_secret(named[-1][1])
        return _Hide.NEXT if missing else _Hide.NOTHING
    if word.startswith("-"):
        return _Hide.NEXT if _is_secret(word) else _Hide.NOTHING
    # Of a file or a path only its last dotted part counts: `token.py` is no name of a secret.
    is_name = not re.search(r"[/\\]", word) and _is_secret(word.rpartition(".")[2])
    return _Hide.VALUE if is_name else _Hide.NOTHING


def _mask_user(word: str) -> str:
    end = word.rfind("@") + 1
    return _USER.sub(_hidden_user, word[:end]) + word[end:]


def _hidden_user(match: re.Match[str]) -> str:
    user, password = match[1], match[2]
    if not password or password == "x-oauth-basic":  # then GitHub's token is the user
        return f"://{_HIDDEN}@"
    return f"://{user}:{_HIDDEN}@"


def _mask_values(word: str) -> str:
    for named in _NAMED.finditer(word):
        # `https://token:***@host` is masked already, and its host may be read
        if _is_secret(named[1]) and not word.startswith(f"{_HIDDEN}@", named.end()):
            return word[: named.end()] + _HIDDEN
    return word


def _is_secret(name: str) -> bool:
    """Say whether a name may be a secret's; read both as camelCase and as it stands."""
    return any(
        _is_secret_of([part.lower() for part in split.findall(name)])
        for split in (_CAMEL, _LETTERS)
    )


def _is_secret_of(parts: Sequence[str]) -> bool:
    counts = not _COUNTED.isdisjoint(parts)
    for before, part in zip(["", *parts], parts, strict=False):
        if _COUNT.fullmatch(part) or (part == "tokens" and counts):
            continue
        if _SECRET.fullmatch(part) or (part in ("key", "keys") and _KEY_OF.fullmatch(before)):
            return True
    return bool(parts) and parts[-1].endswith("key")


def git() -> Git | None:
    """Return the commit of the code that runs (of the main script's folder, else the working
    folder).
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return _git(str(Path(main).resolve().parent if main else Path.cwd()))


@functools.lru_cache(maxsize=8)
def _git(folder: str) -> Git | None:
    # Once a process: the code that runs is the code that was imported, whatever is edited
    # meanwhile.
    deadline = time.monotonic() + _GIT_TIMEOUT_S
    commit = _run_git(folder, deadline, "rev-parse", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40,64}", commit.strip()):
        return None
    status = _run_git(folder, deadline, "status", "--porcelain", "--untracked-files=no")
    if status is None:  # neither clean nor dirty: a commit alone would claim one of them
        return None
    return Git(commit.strip(), dirty=bool(status.strip()))


def _run_git(folder: str, deadline: float, *words: str) -> str | None:
    try:
        done = subprocess.run(
            # no optional locks: never make the user's own git wait
            ["git", "--no-optional-locks", "-C", folder, *words],
            capture_output=True,
            text=True,
            timeout=max(0.0, deadline - time.monotonic()),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
