"""list --plot: each point where its checkpoint says, a line for each run, best only where known."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_output import NASTY, checkpoint
from ttys import ROOT, on_terminal

from registry import Registry, plotting
from registry.cli import run
from registry.output import Output
from registry.records import Checkpoint, RunRef
from registry.values import FrozenMap


def saved(version: int, epoch: int | None, acc: float, run: str = "a", **more: Any) -> Checkpoint:
    ref = RunRef(f"{sum(map(ord, run)):032x}", run)
    metrics = FrozenMap({"acc": acc})
    return checkpoint(version, **{"epoch": epoch, "metrics": metrics, "run": ref, **more})


def drawn(curves: plotting.Curves, columns: int = 60, **how: bool) -> list[str]:
    lines = plotting.chart(curves, columns, **{"colour": False, "letters": False, **how})
    return ["".join(text for text, _ in line).rstrip() for line in lines]


COURSE = [saved(v + 1, v, acc) for v, acc in enumerate((0.5, 0.75, 0.9, 0.8))]


def test_points_are_in_order_of_their_epochs_and_runs_apart() -> None:
    found = plotting.curves([*reversed(COURSE), saved(9, 1, 0.6, "b")], "acc", "max")
    assert found is not None
    assert [name for name, _ in found.lines] == ["a", "b"]
    assert [(p.x, p.y) for p in found.lines[0][1]] == [(0, 0.5), (1, 0.75), (2, 0.9), (3, 0.8)]
    assert found.best is not None
    assert found.best.ref == "resnet50@v3"


@pytest.mark.parametrize(("mode", "ref"), [("max", "resnet50@v5"), ("min", "resnet50@v4")])
def test_of_equals_the_newest_is_best(mode: Any, ref: str) -> None:
    ckpts = [saved(v, e, y) for v, e, y in [(5, 0, 0.9), (4, 1, 0.1), (3, 2, 0.9), (2, 3, 0.1)]]
    found = plotting.curves(ckpts, "acc", mode)
    assert found is not None
    assert found.best is not None
    assert found.best.ref == ref


def test_nothing_is_best_where_nobody_says_which_is_better_or_they_don_t_compare() -> None:
    for mode, more in ((None, {}), ("max", {"dataset": "other"}), ("max", {"model": "other"})):
        found = plotting.curves([*COURSE, saved(9, 0, 0.95, **more)], "acc", mode)  # type: ignore[arg-type]
        assert found is not None
        assert found.best is None
        assert not any("best" in line for line in drawn(found))
    assert [name for name, _ in found.lines] == ["resnet50 · a", "other · a"]


def test_without_epochs_steps_are_the_axis_and_what_has_no_place_is_counted() -> None:
    steps = [saved(v, None, v / 10, step=100 * v) for v in (1, 2)]
    found = plotting.curves([*steps, saved(3, None, 0.9)], "acc", "max")
    assert found is not None
    assert (found.axis, found.left_out) == ("step", 1)
    found = plotting.curves([*steps, *COURSE], "acc", "max")
    assert found is not None
    assert (found.axis, found.left_out) == ("epoch", 2)
    assert plotting.curves([saved(1, None, 0.9)], "acc", "max") is None
    assert plotting.curves(COURSE, "other", "max") is None


def test_no_more_runs_are_drawn_than_can_be_told_apart() -> None:
    runs = [saved(v, v, 0.5, f"run-{v}") for v in range(1, 11)]
    found = plotting.curves(runs, "acc", "max")
    assert found is not None
    assert (len(found.lines), found.undrawn) == (6, 4)
    assert [name for name, _ in found.lines] == [f"run-{v}" for v in range(1, 7)]


@pytest.mark.parametrize("columns", [1, 20, 30, 60, 200])
@pytest.mark.parametrize("letters", [True, False])
def test_a_chart_fits_its_terminal(columns: int, letters: bool) -> None:
    found = plotting.curves([*COURSE, saved(9, 1, 0.6, "b")], "acc", "max")
    assert found is not None
    lines = drawn(found, columns, letters=letters)
    assert all(len(line) <= max(columns, 30) for line in lines[:19])
    assert sum(line.count("*") for line in lines[1:17]) == 1
    assert lines[1].lstrip().startswith("0.9000")
    assert "epoch" in lines[18]
    if letters:
        assert all(line.isascii() for line in lines[:20])


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-9, 1e9], [-5.0, 5.0], [93.1, 93.1]])
def test_any_range_can_be_drawn(values: list[float]) -> None:
    found = plotting.curves([saved(v + 1, v, y) for v, y in enumerate(values)], "acc", "max")
    assert found is not None
    assert len(drawn(found)) == 21


def test_without_colour_runs_are_told_apart_by_letters() -> None:
    found = plotting.curves([*COURSE, saved(9, 1, 0.6, "b")], "acc", None)
    assert found is not None
    picture = "\n".join(drawn(found)[1:17])
    assert (picture.count("a"), picture.count("b")) == (4, 1)
    assert drawn(found)[-2:] == ["  a a  4 checkpoints", "  b b  1 checkpoint"]


def test_names_from_files_are_escaped() -> None:
    ckpts = [saved(1, 1, 0.5, NASTY), saved(2, 1, 0.6, "b")]
    found = plotting.curves(ckpts, "acc", "max")
    assert found is not None
    out, err = io.StringIO(), io.StringIO()
    Output(out, err, form="table", columns=80).chart(found)
    assert [c for c in out.getvalue() if not c.isprintable() and c != "\n"] == []


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def course(reg: Registry, tmp_path: Path) -> Registry:
    """Return a registry with 60 checkpoints of one run."""
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "w.pt")
    for epoch in range(60):
        reg.push(
            tmp_path / "w.pt", model="net", run="try", epoch=epoch,
            metrics={"acc": epoch / 100, "val/loss": 1 / (epoch + 1)},
        )  # fmt: skip
    return reg


def test_plot_draws_all_that_match_and_not_one_page(course: Registry, capsys: Any) -> None:
    def plotted(*words: str) -> tuple[int, str, str]:
        return run(["list", *words, "-r", course.location], terminal=True), *capsys.readouterr()

    code, out, _ = plotted("net", "--plot")
    assert code == 0
    assert "try  60 checkpoints" in out
    assert "net@v60  best, at epoch 59: acc 0.5900" in out
    assert "try  10 checkpoints" in plotted("net", "--plot", "--limit", "10")[1]
    assert "try  5 checkpoints" in plotted("net", "--plot", "--where", "epoch < 5")[1]
    assert "best" not in plotted("net", "--plot", "val/loss")[1], "nobody said which is better"
    course.monitor("net", "val/loss", "min")
    assert "net@v60  best, at epoch 59: val/loss 0.0167" in plotted("net", "--plot", "val/loss")[1]


def test_plot_of_what_is_not_there_says_so(course: Registry, capsys: Any) -> None:
    def failed(*words: str) -> tuple[int, str]:
        return run(["list", *words, "-r", course.location]), capsys.readouterr().err

    code, err = failed("net", "--plot", "f1")
    assert (code, "'f1'" in err) == (3, True)
    code, err = failed("--plot", "net")
    assert (code, "list net --plot" in err) == (3, True)
    assert failed("--plot", "--json")[0] == 2
    assert failed("net", "--plot", "-q")[0] == 2


def test_plot_is_coloured_on_a_terminal_and_plain_in_a_pipe(course: Registry) -> None:
    words = ["-m", "registry", "list", "net", "--plot", "-r", course.location]
    code, said = on_terminal(words)
    assert (code, "\x1b[36m" in said) == (0, True)
    code, said = on_terminal(words, env={"NO_COLOR": "1"})
    assert (code, "\x1b" in said, "try  60" in said) == (0, False, True)
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        text = done.stdout.decode(encoding)
        assert "\x1b" not in text
        assert "\\u" not in text
        assert "try  60 checkpoints" in text
