"""The terminal: aligned, in colour where that is wanted, and silent about it where it isn't."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_output import NASTY, checkpoint
from ttys import ROOT, on_terminal

from registry import Registry, pages, terminal
from registry.formatting import wrapped

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def two(reg: Registry, tmp_path: Path) -> Registry:
    """Return a registry with two checkpoints of one model."""
    for acc in (0.5, 0.75):
        torch.save({"state_dict": {"w": torch.tensor([acc])}, "acc": acc}, tmp_path / "w.pt")
        reg.push(tmp_path / "w.pt", model="net", dataset="cifar10", note="[bold]no markup[/bold]")
    return reg


def ckreg(reg: Registry, *words: str, **options: Any) -> tuple[int, str]:
    return on_terminal(["-m", "registry", *words, "-r", reg.location], **options)


# --- colour ---------------------------------------------------------------------------------------


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "on_tty", "in_pipe"),
    [
        ({}, True, False),
        ({"TERM": "xterm"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
    ],
)
def test_colour_is_for_terminals_and_as_the_user_wishes(
    environment: dict[str, str], on_tty: bool, in_pipe: bool
) -> None:
    assert terminal.in_colour(Tty(), environment) is on_tty
    assert terminal.in_colour(io.StringIO(), environment) is in_pipe


@pytest.mark.parametrize("words", [["list"], ["best", "net"], ["show", "net"], ["models"]])
def test_a_terminal_gets_colours_and_the_same_words_without(
    two: Registry, words: list[str]
) -> None:
    code, coloured = ckreg(two, *words)
    assert code == 0
    assert "\x1b[" in coloured
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        code, plain = ckreg(two, *words, env=env)
        assert code == 0
        assert "\x1b" not in plain
        assert _settled(ESCAPE.sub("", coloured)) == _settled(plain)


def _settled(text: str) -> str:
    """Return a text whose ages are all one, whatever room they take."""
    return re.sub(r" +", " ", re.sub(r"\b(now|\d+s)( ago)?\b", "AGE", text))


def test_errors_and_warnings_are_in_colour_where_it_is_wanted(two: Registry) -> None:
    code, said = ckreg(two, "show", "nothing")
    assert (code, said.startswith("\x1b[1;31merror: \x1b[0mno checkpoint")) == (3, True)
    assert ckreg(two, "show", "nothing", env={"NO_COLOR": "1"})[1].startswith("error: no checkp")
    assert "\x1b" not in ckreg(two, "show", "nothing", "--json")[1]


@pytest.mark.parametrize(
    "words", [["list"], ["models"], ["best", "net"], ["show", "net"], ["info"], ["list", "-q"]]
)
def test_a_pipe_imports_no_rich(two: Registry, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "registry", *words, "-r", two.location],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert not re.search(r"\|\s*(rich|plotille|pygments)\b", done.stderr)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("words", [["list", "-q"], ["list", "--json"], ["push", "{file}", "-q"]])
def test_refs_and_json_are_plain_on_a_terminal_too(
    two: Registry, tmp_path: Path, words: list[str]
) -> None:
    words = [word.format(file=tmp_path / "w.pt") for word in words]
    assert "\x1b" not in ckreg(two, *words, *(["--model", "net"] if words[0] == "push" else []))[1]


# --- what is drawn --------------------------------------------------------------------------------


def test_nothing_foreign_is_markup_or_a_control_character(two: Registry) -> None:
    assert "[bold]no markup[/bold]" in ckreg(two, "show", "net")[1]
    stream = Tty()
    ckpt = checkpoint(1, dataset=NASTY + ":smile: [red]x[/red]", note="[link=file:///x]y[/link]")
    terminal.lines(stream, pages.checkpoint(ckpt).lines(80))
    heading = terminal.Heading("X")
    terminal.table(stream, [heading], [["[red]:smile:[/red] http://x/ 'q' 1.5"]], 80)
    text = ESCAPE.sub("", stream.getvalue())
    assert "[red]x[/red]" in text
    assert ":smile: [red]" in text
    assert "[link=file:///x]y[/link]" in text
    assert [c for c in text if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("columns", [20, 40, 60, 90, 200])
def test_a_table_fits_or_keeps_its_refs_whole(columns: int) -> None:
    stream = io.StringIO()
    headings = [terminal.Heading("REF"), terminal.Heading("DATASET", gives=True)]
    rows = [[f"team/some-long-model-name@v{i}", "d" * 60] for i in range(450)]
    rows.insert(300, ["team/one-that-comes-late-and-is-longer@v1", "模型" * 20])
    terminal.table(stream, headings, rows, columns)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 452
    assert [line.split("  ")[0].rstrip() for line in lines[1:]] == [row[0] for row in rows]
    if columns >= 90:
        assert all(len(line.rstrip()) <= columns for line in lines)


def test_a_table_is_printed_as_rows_come() -> None:
    stream, seen = io.StringIO(), []

    def rows() -> Any:
        for i in range(450):
            seen.append(stream.getvalue().count("\n"))
            yield [str(i)]

    terminal.table(stream, [terminal.Heading("N")], rows(), 80)
    assert seen[-1] >= 401


def test_an_empty_table_is_nothing() -> None:
    stream = io.StringIO()
    terminal.table(stream, [terminal.Heading("N")], [], 80)
    assert stream.getvalue() == ""


def test_a_page_keeps_long_values_in_their_column() -> None:
    ckpt = checkpoint(1, note="word " * 60, command="x" * 200)
    lines = ["".join(t for t, _ in line) for line in pages.checkpoint(ckpt).lines(60)]
    noted = [line for line in lines if "word" in line]
    assert len(noted) > 3
    assert all(line[:18].strip() in ("", "note") for line in noted)
    assert all(len(line.rstrip()) <= 60 for line in noted)
    assert any("x" * 200 in line for line in lines), "a word to paste is never broken"
    assert pages.checkpoint(ckpt).render().count("word") == 60


def test_wrapping_keeps_every_word() -> None:
    assert list(wrapped("", 5)) == [""]
    assert list(wrapped("模型 模型", 4)) == ["模型", "模型"]
    assert list(wrapped("abcdefgh ij", 3)) == ["abcdefgh", "ij"]


# --- progress -------------------------------------------------------------------------------------


def drawn(call: Any, *, live: bool = True, seconds: float = 0.4, unit: str | None = None) -> str:
    """Return what a bar writes while some work goes on; it shows after a twentieth second."""
    stream = Tty()
    with terminal.Progress(stream, "push a\x1b[b", live=live, unit=unit, first_s=0.05) as bar:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            call(bar)
            time.sleep(0.01)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_progress_shows_nothing_of_work_that_is_over_soon() -> None:
    stream = Tty()
    with terminal.Progress(stream, "push", live=True) as bar:
        bar(1, 2)
    assert stream.getvalue() == ""
    assert terminal.Progress.FIRST_S == 1.0


def test_progress_shows_how_far_it_is_and_leaves_no_trace() -> None:
    text = drawn(lambda bar: bar(500_000_000, 2_000_000_000))
    assert "25% 500.0 MB of 2.0 GB" in text
    assert "left" in text
    assert "push a\\x1b[b" in ESCAPE.sub("", text)
    assert text.rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in text, "the cursor is back"


def test_progress_counts_other_things_than_bytes() -> None:
    assert "50% 2 of 4 findings" in drawn(lambda bar: bar(2, 4), unit="finding")


def test_progress_of_what_can_t_say_shows_how_long_it_goes_on() -> None:
    assert "0s" in drawn(lambda bar: None)


def test_progress_is_silent_where_nothing_can_be_redrawn(two: Registry) -> None:
    assert drawn(lambda bar: bar(1, 2), live=False) == ""


def test_what_fails_under_a_bar_leaves_no_trace_of_it() -> None:
    stream, began = Tty(), time.monotonic()

    def work(bar: terminal.Progress) -> None:
        while time.monotonic() - began < 0.3:
            bar(1, 2)
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        terminal.Progress(stream, "push", live=True, first_s=0.01) as bar,
    ):
        work(bar)
    assert stream.getvalue().rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in stream.getvalue()


def test_a_warning_under_a_bar_stands_above_it_whole() -> None:
    code = (
        "import sys, time\n"
        "from registry import terminal\n"
        "with terminal.Progress(sys.stderr, 'verify', live=True, first_s=0.05) as bar:\n"
        "    time.sleep(0.3); bar(1, 2)\n"
        "    sys.stderr.write('warning: [b]mind[/b] the gap\\n'); time.sleep(0.3)\n"
    )
    code_, said = on_terminal(["-c", code])
    assert code_ == 0
    assert any(
        line == "warning: [b]mind[/b] the gap"
        for line in re.split(r"[\r\n]+", ESCAPE.sub("", said))
    )


def test_a_command_that_takes_long_shows_a_bar_on_a_terminal_only(
    two: Registry, tmp_path: Path
) -> None:
    code = (
        "import sys, time; from registry import cli, terminal, Registry\n"
        "terminal.Progress.__init__.__kwdefaults__['first_s'] = 0.05\n"
        "real = Registry.verify\n"
        "def slow(self, *a, progress=None, **k):\n"
        "    progress(1, 4); time.sleep(0.4); progress(2, 4); time.sleep(0.2)\n"
        "    return real(self, *a, progress=progress, **k)\n"
        "Registry.verify = slow\n"
        f"sys.exit(cli.run(['verify', '-r', {two.location!r}]))"
    )
    code_, said = on_terminal(["-c", code])
    assert code_ == 0
    assert "2 B of 4 B" in said
    code_, said = on_terminal(["-c", code], env={"TERM": "dumb"})
    assert (code_, "of 4 B" in said, "\x1b" in said) == (0, False, False)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("of 4 B")) == (0, 0)


# --- questions ------------------------------------------------------------------------------------


def test_prune_asks_first_and_takes_no_for_an_answer(two: Registry) -> None:
    question = f"remove 1 checkpoint from {two.location}? [y/N]:"
    for answer in ("n\n", "\n"):
        code, said = ckreg(two, "prune", "net", "--keep-last", "1", typed=answer, columns=200)
        assert (code != 0, question in said, two.count("net")) == (True, True, 2)
    code, said = ckreg(two, "prune", "net", "--keep-last", "1", typed="y\n", columns=200)
    assert (code, question in said) == (0, True)
    assert [c.ref for c in two.find("net")] == ["net@v2"]
