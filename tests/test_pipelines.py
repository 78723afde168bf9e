"""Pipelines: refs on stdin, answers that other programs take, and gates that stop a job."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.cli import run

ROOT = Path(__file__).parent.parent

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def three(reg: Registry, tmp_path: Path) -> Registry:
    """Return a registry with net@v1 to net@v3."""
    for epoch, acc in enumerate((0.7, 0.9, 0.8)):
        torch.save({"state_dict": {"w": torch.tensor([acc])}, "acc": acc}, tmp_path / "w.pt")
        reg.push(tmp_path / "w.pt", model="net", dataset="cifar10", epoch=epoch)
    return reg


@pytest.fixture
def ask(three: Registry, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return what runs a command with some text on stdin."""

    def command(*words: str, stdin: str = "", terminal: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = run([*words, "-r", three.location], terminal=terminal)
        return code, *capsys.readouterr()

    return command


# --- refs on stdin --------------------------------------------------------------------------------

TWO = "net@v3\nnet@v1\n"


def test_tag_takes_refs_from_stdin(ask: Ask, three: Registry) -> None:
    code, out, err = ask("tag", "-", "good", "seen", stdin=TWO)
    assert (code, out) == (0, TWO)
    assert err == f"registry: {three.location}\n"
    assert [c.ref for c in three.find(tags=["good", "seen"])] == ["net@v3", "net@v1"]
    assert ask("tag", "-", "good", "--remove", stdin="net@v1\n")[0] == 0
    assert [c.ref for c in three.find(tags=["good"])] == ["net@v3"]


def test_record_takes_refs_from_stdin(ask: Ask, three: Registry) -> None:
    code, out, _ = ask("record", "-", "seen=1", "--json", stdin=TWO)
    assert code == 0
    assert [c["metrics"]["seen"] for c in json.loads(out)["checkpoints"]] == [1, 1]


def test_rm_and_restore_take_refs_from_stdin(ask: Ask, three: Registry) -> None:
    assert ask("rm", "-", "--yes", stdin=TWO)[:2] == (0, TWO)
    assert [c.ref for c in three.find()] == ["net@v2"]
    assert ask("restore", "-", stdin=TWO)[:2] == (0, TWO)
    assert len(list(three.find())) == 3


def test_rm_of_stdin_asks_nobody_and_needs_yes(ask: Ask, three: Registry) -> None:
    code, out, err = ask("rm", "-", stdin=TWO)
    assert (code, out) == (2, "")
    assert "--yes" in err
    assert len(list(three.find())) == 3


def test_show_of_stdin_is_a_list(ask: Ask) -> None:
    code, out, _ = ask("show", "-", "--json", stdin=TWO)
    document = json.loads(out)
    assert (code, document["format"], document["next"]) == (0, 1, None)
    assert [c["ref"] for c in document["checkpoints"]] == ["net@v3", "net@v1"]
    one = json.loads(ask("show", "-", "--json", stdin="net@v1\n")[1])
    assert [c["ref"] for c in one["checkpoints"]] == ["net@v1"]
    assert ask("show", "-", "-q", stdin="net@best\n")[1] == "net@v2\n"
    assert len(ask("show", "-", stdin=TWO)[1].split("\n\n")) == 2
    assert "\n\nnet@v1  cifar10" in ask("show", "-", stdin=TWO, terminal=True)[1]


def test_plan_of_stdin_is_a_list(ask: Ask) -> None:
    document = json.loads(ask("plan", "-", "--device", "cpu", "--json", stdin=TWO)[1])
    assert [p["map_location"] for p in document["plans"]] == ["cpu", "cpu"]
    assert ask("plan", "-", "--device", "cpu", "-q", stdin=TWO)[1] == TWO


def test_pull_of_stdin_writes_each_into_a_folder(ask: Ask, tmp_path: Path) -> None:
    code, _, err = ask("pull", "-", "-o", str(tmp_path / "out"), stdin=TWO)
    assert code == 2
    assert f"mkdir {tmp_path}/out" in err
    (tmp_path / "out").mkdir()
    code, out, _ = ask("pull", "-", "-o", str(tmp_path / "out"), stdin=TWO)
    assert (code, out.splitlines()) == (0, [f"{tmp_path}/out/net-v{v}.pt" for v in (3, 1)])
    assert all(Path(path).exists() for path in out.splitlines())
    document = json.loads(ask("pull", "-", str(tmp_path / "out"), "--json", stdin=TWO)[1])
    assert document["paths"] == out.splitlines()


def test_pull_of_stdin_looks_all_up_before_the_first_byte(ask: Ask, tmp_path: Path) -> None:
    assert ask("pull", "-", str(tmp_path), stdin="net@v1\nnet@v9\n")[0] == 3
    assert not (tmp_path / "net-v1.pt").exists()


def test_verify_takes_refs_from_stdin(ask: Ask) -> None:
    document = json.loads(ask("verify", "-", "--json", stdin=TWO)[1])
    assert (document["ok"], document["checked"], document["files"]) == (True, 2, 4)
    assert "net@v3, net@v1  whole" in ask("verify", "-", stdin=TWO, terminal=True)[1]


def test_verify_of_stdin_fails_when_one_is_damaged(ask: Ask, three: Registry) -> None:
    from backends import blobs_at

    size = three.get("net@v1").files[0].size_bytes
    for path in blobs_at(three).glob("blobs/*/*"):
        if path.stat().st_size == size and torch.load(path)["acc"] == 0.7:
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert ask("verify", "-", stdin="net@v3\nnet@v2\n")[0] == 0
    code, out, _ = ask("verify", "-", stdin=TWO)
    assert code == 6
    assert "damage" in out


@pytest.mark.parametrize(
    "words",
    [
        ["alias", "-", "prod"],
        ["export", "-", "-o", "{tmp}/weights"],
        ["diff", "-", "net@v2"],
        ["compare", "net@v2", "-"],
        ["list", "--fits", "-"],
    ],
)
def test_what_takes_one_ref_takes_one_from_stdin(
    ask: Ask, tmp_path: Path, words: list[str]
) -> None:
    words = [word.format(tmp=tmp_path) for word in words]
    assert ask(*words, stdin="net@best\n")[0] == 0
    code, _, err = ask(*words, stdin=TWO)
    assert code == 2
    assert "one ref is wanted here, and stdin has 2" in err


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
@pytest.mark.parametrize(
    "words",
    [["rm", "-", "--yes"], ["tag", "-", "good"], ["show", "-"], ["pull", "-"], ["verify", "-"],
     ["alias", "-", "prod"], ["restore", "-"], ["plan", "-"], ["list", "--fits", "-"]],
)  # fmt: skip
def test_an_empty_stdin_does_nothing_and_exits_with_3(
    ask: Ask, words: list[str], text: str
) -> None:
    code, out, err = ask(*words, stdin=text)
    assert (code, out) == (3, "")
    assert "there is no ref on stdin: nothing was done" in err


def test_a_ref_that_is_named_twice_counts_once(ask: Ask) -> None:
    code, out, _ = ask("tag", "-", "good", stdin="net@v2\nnet@best\nnet@v2\n\n  net@v1  \n")
    assert (code, out) == (0, "net@v2\nnet@v1\n")


def test_the_lines_of_a_list_in_a_pipe_are_refs_too(ask: Ask) -> None:
    listed = ask("list", "--sort", "version")[1]
    assert listed.count("\t") > 3
    assert ask("tag", "-", "good", stdin=listed)[1].splitlines() == ["net@v1", "net@v2", "net@v3"]


def test_nothing_is_changed_when_one_of_the_refs_is_none(ask: Ask, three: Registry) -> None:
    assert ask("tag", "-", "good", stdin="net@v1\nnet@v9\n")[0] == 3
    assert list(three.find(tags=["good"])) == []
    assert ask("tag", "-", "good", stdin="\x1b[31m\n")[0] == 2


def test_stdin_is_read_once(ask: Ask) -> None:
    code, _, err = ask("diff", "-", "-", stdin=TWO)
    assert code == 2
    code, _, err = ask("rm", "-", "-", "--yes", stdin=TWO)
    assert (code, "which can be read once" in err) == (2, True)


# --- real pipes -----------------------------------------------------------------------------------


@pytest.fixture
def shell(three: Registry, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Return what runs a line of bash where `ckreg` is this checkout's, on the registry."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "ckreg").write_text(f'#!/bin/sh\nexec {sys.executable} -m registry "$@"\n')
    (place / "ckreg").chmod(0o755)

    def line(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path, text=True, capture_output=True, timeout=120,
            env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                 "CKREG_REGISTRY": three.location},
        )  # fmt: skip

    return line


def test_a_list_goes_through_a_pipe_into_another_command(shell: Any) -> None:
    done = shell("ckreg list --where 'acc > 0.75' --sort version -q | ckreg tag - good")
    assert (done.returncode, done.stdout) == (0, "net@v2\nnet@v3\n"), done.stderr
    done = shell("ckreg list --tag good -q | ckreg rm - --yes && ckreg list -q")
    assert done.stdout.splitlines()[2:] == ["net@v1"], done.stderr


def test_best_names_what_pull_takes(shell: Any) -> None:
    done = shell('ckreg pull "$(ckreg best net -q)"')
    assert (done.returncode, done.stdout) == (0, "net-v2.pt\n"), done.stderr
    done = shell("ckreg best net -q | ckreg alias - prod && ckreg show net@prod -q")
    assert done.stdout == "net@v2\nnet@v2\n", done.stderr


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_document_of_best_is_one_that_jq_reads(shell: Any) -> None:
    assert shell("ckreg best net --json | jq -r .ref").stdout == "net@v2\n"
    assert shell("ckreg list --json | jq '.checkpoints | length'").stdout == "3\n"


# --- the example ----------------------------------------------------------------------------------

RELEASE = ROOT / "examples" / "ci" / "release.sh"


def test_the_first_release_is_made_and_a_better_one_follows(shell: Any, three: Registry) -> None:
    done = shell(f"{RELEASE} net")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "net.pt"), done.stderr
    assert "net has no release yet: net@v2 is the first" in done.stderr
    assert three.get("net@release").ref == "net@v2"
    three.record("net@v3", {"f1": 1.0})
    three.remove("net@v2", force=True)
    assert shell(f"{RELEASE} net").returncode == 0
    assert three.get("net@release").ref == "net@v3"


def test_a_worse_one_fails_with_20_and_leaves_the_release(
    shell: Any, three: Registry, tmp_path: Path
) -> None:
    three.alias("net@v2", "release")
    three.monitor("net", "order", "max")
    three.record("net@v3", {"order": 3.0})
    done = shell(f"{RELEASE} net")
    assert done.returncode == 20, done.stderr
    assert "acc < base.acc: holds (acc < 0.9)" in done.stderr
    assert three.get("net@release").ref == "net@v2"
    assert not (tmp_path / "net.pt").exists()
    assert shell(f"{RELEASE} net 'acc < base.acc - 0.2'").returncode == 0
    assert three.get("net@release").ref == "net@v3"
    assert "acc" not in torch.load(tmp_path / "net.pt"), "the weights alone"


def test_the_release_fails_as_ckreg_does_where_there_is_nothing_to_release(shell: Any) -> None:
    assert shell(f"{RELEASE} nothing").returncode == 3
    assert shell(f"CKREG_REGISTRY=/nowhere {RELEASE} net").returncode == 3
    assert shell(str(RELEASE)).returncode != 0


def test_the_workflow_runs_the_script() -> None:
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((ROOT / "examples" / "ci" / "release.yml").read_text())
    steps = document["jobs"]["release"]["steps"]
    (script,) = [s for s in steps if "release.sh" in s.get("run", "")]
    program, *words = script["run"].split()
    assert (ROOT / program) == RELEASE
    assert os.access(RELEASE, os.X_OK)
    assert words == ['"$MODEL"', '"$CONDITION"'], "an input is a variable, never text of a script"
    assert set(script["env"]) == {"MODEL", "CONDITION"}
