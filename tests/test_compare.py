"""compare: two checkpoints' metrics side by side, and a gate that never passes for lack of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_output import checkpoint

from registry import NotFoundError, Registry
from registry.cli import run
from registry.comparing import compare
from registry.values import FrozenMap
from registry.where import gate

NEW = checkpoint(2, metrics=FrozenMap({"acc": 0.90, "val/loss": 0.30}))
BASE = checkpoint(1, metrics=FrozenMap({"acc": 0.93, "val/loss": 0.25}), dataset=None)


@pytest.mark.parametrize(
    ("text", "holds", "meaning"),
    [
        ("acc < base.acc", True, "acc < 0.93"),
        ("base.acc > acc", True, "acc < 0.93"),
        ("acc >= base.acc", False, "acc >= 0.93"),
        ("acc < base.acc - 0.05", False, "acc < 0.88"),
        ("acc < base.acc - 0.03", False, "acc < 0.9"),
        ("acc<base.acc-0.02", True, "acc < 0.91"),
        ("acc < base.acc -0.02", True, "acc < 0.91"),
        ("acc < base.acc + -0.02", True, "acc < 0.91"),
        ('metrics."val/loss" > base.metrics."val/loss" * 1.1', True, 'metrics."val/loss" > 0.275'),
        ("not acc < base.acc or epoch > base.epoch", True, "not acc < 0.93 or epoch > 1"),
        ("model != base.model", False, 'model != "resnet50"'),
        ("created_at < base.created_at", True, None),
        ("dataset == null", False, "dataset == null"),
        ("acc < 0.95", True, "acc < 0.95"),
    ],
)
def test_a_condition_reads_the_base_s_facts_as_values(
    text: str, holds: bool, meaning: str | None
) -> None:
    found, expression = gate(text, NEW, BASE)
    assert found is holds
    assert meaning is None or str(expression) == meaning


@pytest.mark.parametrize(
    ("value", "by", "limit"),
    [(0.3, "- 0.1", 0.2), (0.1, "+ 0.2", 0.3), (1.1, "* 1.1", 1.21), (93.1, "- 0.1", 93.0)],
)
def test_a_sum_is_what_it_says_in_decimals(value: float, by: str, limit: float) -> None:
    base = checkpoint(1, metrics=FrozenMap({"acc": value}))
    _, expression = gate(f"acc < base.acc {by}", NEW, base)
    assert str(expression) == f"acc < {limit}"


@pytest.mark.parametrize(
    ("text", "who", "what"),
    [
        ("metrics.f1 < base.acc", "resnet50@v2", "metrics.f1"),
        ("acc < base.metrics.f1", "resnet50@v1", "metrics.f1"),
        ("dataset != base.dataset", "resnet50@v1", "dataset"),
        ("acc < 0.99 or metrics.f1 < 0.5", "resnet50@v2", "metrics.f1"),
        ("not metrics.f1 in (1, 2)", "resnet50@v2", "metrics.f1"),
    ],
)
def test_what_one_of_the_two_lacks_is_an_error_and_no_pass(text: str, who: str, what: str) -> None:
    with pytest.raises(NotFoundError, match="can't be judged") as caught:
        gate(text, NEW, BASE)
    assert f"{who} has no {what}" in caught.value.message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("acc < base", "base is a checkpoint"),
        ("acc < base.nope", "no field 'nope'"),
        ("acc < base.tags", "set of labels"),
        ("acc < base.acc -", "comes a number"),
        ("acc < base.acc - x", "comes a number"),
        ("acc < base.acc - 1 - 1", "can't stand here"),
        ("acc + 1 < base.acc", "can't stand here"),
        ("model == base.model + 1", "is no number"),
        ("acc < base.model", "acc is a number"),
        ("base.acc > 0.5", "neither side"),
        ("acc < base.acc * 1e308 * 1e308", "can't stand here"),
        ('metrics."val/loss" > base.size_bytes * 1e308', "too large"),
    ],
)
def test_what_can_t_be_read_says_where(text: str, why: str) -> None:
    with pytest.raises((ValueError, NotFoundError), match=why):
        gate(text, NEW, BASE)


@pytest.mark.parametrize(
    "text",
    [
        "config.x < 3",
        "config.x != 3",
        "not config.x == 3",
        "config.x in (1, 2)",
        "config.n like '1%'",
    ],
)
def test_what_does_not_compare_is_an_error_and_no_pass(text: str) -> None:
    new = checkpoint(2, config=FrozenMap({"x": "three", "n": 1}))
    with pytest.raises(ValueError, match="doesn't compare with"):
        gate(text, new, BASE)


def test_sums_stay_out_of_where() -> None:
    from registry.where import parse

    with pytest.raises(ValueError, match=r"^where: '\+' can't stand here"):
        parse("acc + 1 < 2")
    with pytest.raises(ValueError, match=r"^where: no field"):
        parse("base.acc < 2")


def test_metrics_stand_side_by_side_acc_first_and_a_lone_one_has_no_change() -> None:
    new = checkpoint(2, metrics=FrozenMap({"a": 1.0, "acc": 0.5, "new": 3.0}))
    base = checkpoint(1, metrics=FrozenMap({"a": 0.5, "acc": 0.75}))
    found = compare(new, base)
    assert [(m.name, m.change) for m in found.metrics] == [
        ("acc", -0.25),
        ("a", 0.5),
        ("new", None),
    ]
    assert (found.condition, found.holds) == (None, None)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def two(reg: Registry, tmp_path: Path) -> Registry:
    """Return a registry with a release and a worse newcomer."""
    for acc, loss in ((0.93, 0.25), (0.90, 0.30)):
        torch.save({"state_dict": {"w": torch.tensor([acc])}, "acc": acc}, tmp_path / "w.pt")
        reg.push(tmp_path / "w.pt", model="net", metrics={"val/loss": loss})
    reg.alias("net@v1", "release")
    return reg


@pytest.fixture
def ask(two: Registry, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    def command(*words: str, terminal: bool = False) -> tuple[int, str, str]:
        code = run(["compare", *words, "-r", two.location], terminal=terminal)
        return code, *capsys.readouterr()

    return command


def test_a_worse_one_exits_with_20_and_says_why(ask: Any) -> None:
    code, out, err = ask("net@latest", "net@release", "--fail-if", "acc < base.acc", terminal=True)
    assert code == 20
    assert [line.split() for line in out.splitlines()] == [
        ["METRIC", "NEW", "BASE", "CHANGE"],
        ["acc", "0.9000", "0.9300", "-0.0300"],
        ["val/loss", "0.3000", "0.2500", "+0.0500"],
    ]
    assert "new: net@v2  base: net@v1" in err
    assert "acc < base.acc: holds (acc < 0.93)" in err


def test_one_that_is_no_worse_exits_with_0(ask: Any) -> None:
    assert ask("net@best", "net@release", "--fail-if", "acc < base.acc")[0] == 0
    assert ask("net@v2", "net@release", "--fail-if", "acc < base.acc - 0.05")[0] == 0
    assert ask("net@v2", "net@release")[0] == 0


def test_a_gate_without_its_metric_fails_with_3(ask: Any) -> None:
    code, out, err = ask("net@v2", "net@release", "--fail-if", "metrics.f1 < base.metrics.f1")
    assert (code, out) == (3, "")
    assert "net@v1 has no metrics.f1" in err
    assert ask("net@v2", "net@nothing", "--fail-if", "acc < base.acc")[0] == 3


def test_a_gate_that_can_t_be_read_fails_with_2(ask: Any) -> None:
    code, _, err = ask("net@v2", "net@release", "--fail-if", "acc < base.")
    assert code == 2
    assert "^" in err


def test_the_answer_for_programs(ask: Any) -> None:
    code, out, _ = ask("net@v2", "net@v1", "--fail-if", "acc < base.acc", "--json")
    document = json.loads(out)
    assert (code, document["holds"], document["meaning"]) == (20, True, "acc < 0.93")
    assert document["new"]["ref"] == "net@v2"
    assert [m["name"] for m in document["metrics"]] == ["acc", "val/loss"]
    _, out, _ = ask("net@v2", "net@v1")
    assert out.splitlines()[1].split("\t")[:3] == ["val/loss", "0.3", "0.25"]
