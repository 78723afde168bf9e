"""The code blocks of a page, and a session that runs them as a reader would: in order, in a folder.

What a block is, by the word at its fence:

    python    run, all of a page in one namespace; one that begins with `# train.py` is that file
    pycon     run as a doctest in the same namespace: what is printed or raised is compared
    console   each `$ ` line is run by a shell, and what it prints compared with what follows; where
              an `error: ` is shown, it must fail, and say so
    sh text   not run

Any block may be kept from running by `<!-- not run: why -->` on the line above it. In what is
expected `...` stands for a word, and on a line of its own for any number of lines.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry import cli

KINDS = frozenset({"python", "pycon", "console", "sh", "text"})
RUN = frozenset({"python", "pycon", "console"})

_BLOCK = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```([^\n]*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
_SHELL = re.compile(r"[|&;<>()`$*?]")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        line: where it begins in the page, counted from 1.
        not_run: why it isn't run, or None.
    """

    kind: str
    body: str
    line: int
    not_run: str | None = None


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2].strip(), found[3], text.count("\n", 0, found.start(2)) + 1, found[1])
        for found in _BLOCK.finditer(text)
    ]


@dataclass
class Session:
    """What runs a page's blocks, one after another, in the working folder.

    Attributes:
        place: where the `ckreg` that a shell finds is put.
        stands_for: what a page writes -> what it is here: a server's URL, a bucket's.
    """

    place: Path
    stands_for: Mapping[str, str] = field(default_factory=dict)
    main: types.ModuleType = field(default_factory=lambda: types.ModuleType("__main__"))
    ran: int = 0

    def run(self, block: Block, page: Path) -> None:
        """Run a block.

        Raises:
            AssertionError: it says otherwise than the page does.
        """
        if block.not_run is not None or block.kind not in RUN:
            return
        where = f"{page.name}:{block.line}"
        body = self._here(block.body)
        if block.kind == "console":
            self._console(body, where)
        elif found := _FILE.match(body):
            Path(found[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(found[1]).write_text(body, encoding="utf-8")
        else:
            with self._as_a_script():
                if block.kind == "pycon":
                    self._doctest(body, where)
                else:
                    exec(compile(body, where, "exec", dont_inherit=True), vars(self.main))
        self.ran += 1

    def _here(self, text: str) -> str:
        for written, meant in self.stands_for.items():
            text = text.replace(written, meant)
        return text

    @contextlib.contextmanager
    def _as_a_script(self) -> Iterator[None]:
        """Be `__main__`, where pickle looks for the classes of a script; and warn nobody."""
        ours = sys.modules["__main__"]
        sys.modules["__main__"] = self.main
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            sys.modules["__main__"] = ours

    def _doctest(self, body: str, where: str) -> None:
        parsed = doctest.DocTestParser().get_doctest(body, vars(self.main), where, where, 0)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        said: list[str] = []
        done = doctest.DocTestRunner(verbose=False, optionflags=flags).run(
            parsed, clear_globs=False, out=said.append
        )
        vars(self.main).update(parsed.globs)
        assert done.attempted
        assert not done.failed, "".join(said)

    def _console(self, body: str, where: str) -> None:
        parts = re.split(r"^\$ ", body.replace("\\\n", " "), flags=re.M)
        assert not parts[0].strip(), f"{where}: a console block begins with a command"
        for part in parts[1:]:
            command, _, expected = part.partition("\n")
            done, out, err = self._shell(command)
            fails = re.search(r"^error: ", expected, re.M) is not None
            told = f"{where}: $ {command}\nexit {done}\n{out}{err}"
            assert (done != 0) == fails, told
            shown = out + err if fails else out
            assert pattern(expected).fullmatch(shown), f"{told}\nexpected:\n{expected}"

    def _shell(self, command: str) -> tuple[int, str, str]:
        """Run a command; return its exit code, and what it prints on stdout and stderr."""
        bare = re.sub(r"'[^']*'", "", command)
        words = [] if _SHELL.search(bare) else shlex.split(command, comments=True)
        words = [os.path.expanduser(word) for word in words]
        if words[:1] == ["ckreg"]:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.run(words[1:], terminal=True)
            return code, out.getvalue(), err.getvalue()
        if words[:1] == ["cd"]:
            os.chdir(words[1])
            return 0, "", ""
        if words[:1] == ["export"]:
            for word in words[1:]:
                name, _, value = word.partition("=")
                os.environ[name] = value
            return 0, "", ""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PATH": self._path()},
        )
        return done.returncode, done.stdout, done.stderr

    def _path(self) -> str:
        ckreg = self.place / "ckreg"
        if not ckreg.exists():
            ckreg.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m registry "$@"\n')
            ckreg.chmod(0o755)
        beside = str(Path(sys.executable).parent)
        return os.pathsep.join([str(self.place), beside, os.environ["PATH"]])


def pattern(expected: str) -> re.Pattern[str]:
    """Return what an output must match; blanks match any number of blanks."""
    lines = []
    for line in expected.strip().splitlines():
        if line.strip() == "...":
            lines.append(r"(?s:.*)")
        else:
            words = (re.escape(word).replace(r"\.\.\.", r"\S+") for word in line.split())
            lines.append(r"[ \t]+".join(words))
    return re.compile(r"\s*" + r"\s*\n\s*".join(lines) + r"\s*")
