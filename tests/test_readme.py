"""The README does what it says: its blocks run, its tables are those of the command line."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry.cli import ckreg
from registry.commands.session import Session
from registry.reference import filled

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def test_the_tables_of_commands_and_exit_codes_are_the_real_ones() -> None:
    text = README.read_text()
    assert filled(text) == text, "run: python -m registry.reference README.md"


def test_there_are_the_two_commands_that_set_up_everything() -> None:
    commands = [body for kind, body in BLOCK.findall(README.read_text()) if kind == "sh"]
    assert len(commands) == 2  # .ci/run takes the second
    assert commands[0].rstrip().endswith("ckreg demo")
    assert commands[1].rstrip().endswith("-m pytest")
    assert all(len(c.strip().splitlines()) == 1 for c in commands)


def pattern(expected: str) -> re.Pattern[str]:
    """Return what an output must match: `...` stands for anything, blanks for any number of
    blanks.
    """
    lines = [
        r"\s+".join(re.escape(word).replace(re.escape("..."), r"\S+") for word in line.split())
        for line in expected.strip().splitlines()
    ]
    text = r"[ ]*\n\s*".join(lines)
    if text.endswith(r"\S+") and expected.strip().endswith("\n..."):
        text = text.removesuffix(r"\S+") + r"(?s:.*)"
    return re.compile(text + r"\s*")


def run_blocks(path: Path) -> int:
    """Run the Python and the console blocks of a page as one session; return how many ran."""
    names: dict[str, object] = {}
    ran = 0
    for kind, body in BLOCK.findall(path.read_text()):
        if kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(body, str(path), "exec"), names)
            ran += 1
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
                command, _, expected = part.partition("\n")
                words = shlex.split(command)
                assert words.pop(0) == "ckreg"
                done = CliRunner().invoke(ckreg, words, obj=Session(terminal=True))
                assert done.exit_code == 0, (command, done.output)
                assert pattern(expected).fullmatch(done.stdout), (command, done.stdout)
                ran += 1
    return ran


def test_the_tour_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks(README) >= 10
    assert os.path.exists("best.pt")


def test_the_examples_about_questions_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks(README.parent / "docs" / "queries.md") == 4
