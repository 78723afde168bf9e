"""The README does what it says: its tables are those of the command line, and its two commands are
what sets up everything. (Its blocks are run by test_docs.py.)
"""

from __future__ import annotations

import re
from pathlib import Path

import blocks
import pytest

from registry.reference import filled

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.mark.parametrize("name", ["README.md", "docs/cli.md"])
def test_what_a_page_says_of_the_command_line_is_so(name: str) -> None:
    text = (ROOT / name).read_text()
    assert filled(text) == text, "run: python -m registry.reference README.md docs/cli.md"


def test_there_are_the_two_commands_that_set_up_everything() -> None:
    commands = [block.body for block in blocks.blocks_of(README) if block.kind == "sh"]
    assert len(commands) == 2  # .ci/run takes the second
    assert commands[0].rstrip().endswith("ckreg demo")
    assert commands[1].rstrip().endswith("-m pytest -n auto")
    assert all(len(c.strip().splitlines()) == 1 for c in commands)


def test_the_tour_is_there() -> None:
    assert sum(block.kind in blocks.RUN for block in blocks.blocks_of(README)) >= 7


CHINESE = ROOT / "README.zh-CN.md"


def test_the_chinese_readme_has_the_same_blocks() -> None:
    mine, theirs = blocks.blocks_of(README), blocks.blocks_of(CHINESE)
    assert [(b.kind, b.body) for b in theirs] == [(b.kind, b.body) for b in mine]


def test_the_chinese_readme_has_the_same_commands_codes_sections_and_pages() -> None:
    english, chinese = README.read_text(encoding="utf-8"), CHINESE.read_text(encoding="utf-8")
    for what in (
        r"^\| `([\w-]+)` \| .* \| (`ckreg .*`) \|$",  # commands, with their examples
        r"^\| (\d+) \|",  # exit codes
        r"^(##) ",
        r"`(pip install .+?)`",
    ):
        found = re.findall(what, english, re.M)
        assert found, what
        assert re.findall(what, chinese, re.M) == found
    links = r"\]\((?!README)([^)]+)\)"
    assert {*re.findall(links, chinese)} == {*re.findall(links, english)}
