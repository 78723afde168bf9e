"""The command line: every command, its forms, its errors and its exit codes."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from backends import blobs_at

from registry import CkregError, Registry, errors, reference
from registry.cli import EXIT_CODES, ckreg, run
from registry.cli import command as command_of
from registry.commands import COMMANDS as NAMES

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Ask = Callable[..., Answer]


@pytest.fixture
def ask(reg: Registry, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return what runs a command on the registry of this test, in this process."""

    def command(*words: str, terminal: bool = False) -> Answer:
        capsys.readouterr()
        code = run([*words, "-r", reg.location], terminal=terminal)
        caught = capsys.readouterr()
        return Answer(code, caught.out, caught.err)

    return command


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Return what makes a customary checkpoint file; each call makes another one."""
    made = 0

    def make(name: str = "", **facts: object) -> str:
        nonlocal made
        made += 1
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        with torch.no_grad():
            net[0].bias.fill_(made)
        customary = {
            "epoch": made,
            "model": "net",
            "dataset": "cifar10",
            "state_dict": net.state_dict(),
            "acc": 0.9 + made / 1000,
        }
        path = tmp_path / (name or f"file-{made}.pt")
        plain = {k: v for k, v in {**customary, **facts}.items() if v is not None}
        torch.save(plain, path)
        return str(path)

    return make


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start ckreg as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "registry", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})},
        **options,
    )


# --- the grammar of commands ----------------------------------------------------------------------

COMMANDS = sorted(NAMES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_sentence_and_an_example_that_parses(name: str) -> None:
    command = command_of(name)
    sentence, *_, example = inspect.cleandoc(command.help or "").split("\n\n")
    assert NAMES[name][1] == sentence.replace("\n", " ")
    assert re.fullmatch(r"[A-Z][^.]*[^.]*\.", sentence.replace("./.ckreg", "").strip()), sentence
    assert len(sentence) <= 62, "longer ones are cut in `ckreg -h` on 80 columns"
    assert example.startswith("\b\nExample:\n  ckreg ")
    parent = click.Context(ckreg, **ckreg.context_settings)
    for line in example.splitlines()[2:]:
        program, word, *rest = shlex.split(line.split(">>")[0])
        assert (program, word) == ("ckreg", name)
        command.make_context(
            name, rest, parent=parent
        )  # a wrong option or a missing argument raises


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_example_as_it_is_typed(name: str, capsys: Any) -> None:
    assert run([name, "-h"]) == 0
    assert f"Example:\n    ckreg {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_in_one_order_output_then_registry(name: str) -> None:
    options = [p.name for p in command_of(name).params if isinstance(p, click.Option)]
    last = [o for o in options if o in ("json", "quiet", "registry")]
    assert options[len(options) - len(last) :] == last
    assert last == [o for o in ("json", "quiet", "registry") if o in last]
    if name != "completion":
        assert last[-1:] == ["registry"]


def test_every_error_class_has_an_exit_code_that_is_documented() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, CkregError)]
    assert {k.exit_code for k in kinds} | {0, 2, 20, 130, 143} == set(EXIT_CODES)


def test_the_reference_tables_name_every_command_and_code() -> None:
    text = reference.filled(
        "a <!-- commands:begin -->stale<!-- commands:end --> b\n"
        "<!-- exit-codes:begin --><!-- exit-codes:end --> c"
    )
    assert "stale" not in text
    assert all(f"| `{name}` |" in text for name in COMMANDS)
    assert all(f"\n| {code} | " in text for code in EXIT_CODES)
    assert reference.filled(text) == text
    with pytest.raises(ValueError, match="NAME one of commands, exit-codes"):
        reference.filled("no markers")


def test_no_command_shows_the_commands_in_the_order_people_meet_them(capsys: Any) -> None:
    assert run([]) == 0
    text = capsys.readouterr().out
    assert text.index("init") < text.index("push") < text.index("list") < text.index("rm")
    assert "..." not in text.split("Commands:")[1]


def test_version_is_the_package_s(capsys: Any) -> None:
    import registry

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ckreg {registry.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["lst"], "no such command 'lst'; did you mean 'list'?", "see: ckreg -h"),
        (["delete"], "no such command 'delete'; did you mean 'rm'?", "see: ckreg -h"),
        (["load", "net"], "no such command 'load'; did you mean 'pull'?", "see: ckreg -h"),
        (["list", "--foo"], "no such option", "see: ckreg list -h"),
        (["pull", "net@best", "net@v1"], "'net@v1' reads as a ref, and one is", "see: ckreg pull"),
        (["show"], "missing argument 'REF'", "see: ckreg show -h"),
        (["push", "x.pt", "--metric", "loss"], "'loss' should read like val/loss=0.21", "push -h"),
        (["push", "x.pt", "--metric", "a=1", "--metric", "a=2"], "'a' is given twice", "push -h"),
        (["push", "x.pt", "--strategy", "magic"], "'magic' is not one of 'single'", "push -h"),
        (["list", "--json", "-q"], "two forms", "list -h"),
        (["pull", "net", "a.pt", "-o", "b.pt"], "two places are named: 'a.pt' and 'b.pt'", "pull"),
    ],
)
def test_a_wrong_call_is_2_and_says_where_to_look(
    ask: Ask, words: list[str], message: str, hint: str
) -> None:
    answer = ask(*words)
    assert answer.code == 2
    if "--json" in words:
        error = json.loads(answer.err)
        assert message in error["message"]
        return
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert re.search(rf"^hint:  .*{re.escape(hint)}", answer.err, re.M)
    assert answer.out == ""


def test_an_option_without_its_value_points_to_its_command(capsys: Any) -> None:
    assert run(["prune", "net", "--keep-best"]) == 2
    assert "hint:  see: ckreg prune -h" in capsys.readouterr().err


# --- which registry -------------------------------------------------------------------------------


def test_r_works_before_the_command_and_after_it(reg: Registry, capsys: Any) -> None:
    assert run(["-r", reg.location, "models"], terminal=True) == 0
    assert run(["models", "-r", reg.location], terminal=True) == 0
    assert run(["-r", "/nowhere", "models", "-r", reg.location], terminal=True) == 0
    assert run(["-r", "/nowhere", "models"]) == 3


def test_init_makes_a_registry_here_and_prints_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/.ckreg\n"
    assert run(["list"]) == 0


def test_a_registry_path_that_is_a_file_is_a_conflict(tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "file"
    place.write_text("x")
    assert run(["list", "-r", str(place)]) == 5
    assert run(["init", str(place)]) == 5
    assert "is a file" in capsys.readouterr().err


def test_info_says_what_is_there(ask: Ask, reg: Registry, file: Any) -> None:
    ask("push", file())
    document = ask("info", "--json").json
    assert document["location"] == reg.location
    assert (document["models"], document["checkpoints"]) == (1, 1)
    assert "checkpoints" in ask("info", terminal=True).out


def test_migrate_of_a_current_registry_does_nothing(ask: Ask) -> None:
    answer = ask("migrate")
    assert answer.code == 0
    assert "current" in answer.err


# --- push, list, show -----------------------------------------------------------------------------


def test_push_reads_the_facts_and_answers_with_the_ref(ask: Ask, reg: Registry, file: Any) -> None:
    answer = ask("push", file())
    assert (answer.code, answer.out) == (0, "net@v1\n")
    assert answer.err == f"registry: {reg.location}\n"
    document = ask("show", "net@v1", "--json").json
    assert (document["dataset"], document["epoch"], document["acc"]) == ("cifar10", 1, 0.901)


def test_what_push_is_told_overrides_the_file(ask: Ask, file: Any) -> None:
    words = shlex.split(
        "--model other/net --dataset mnist --epoch 7 --step 9 --acc 0.5 --metric val/loss=0.25 "
        "--metric f1=1e-3 --run night --strategy ddp --world-size 4 --tag good --tag seen "
        "--alias prod --note 'by hand' --json"
    )
    document = ask("push", file(), *words).json
    assert document["ref"] == "other/net@v1"
    assert (document["dataset"], document["epoch"], document["step"]) == ("mnist", 7, 9)
    assert document["metrics"] == {"acc": 0.5, "val/loss": 0.25, "f1": 1e-3}
    assert document["run"]["name"] == "night"
    assert document["topology"]["strategy"] == "ddp"
    assert document["topology"]["world_size"] == 4
    assert (document["tags"], document["aliases"]) == (["good", "seen"], ["prod"])
    assert document["note"] == "by hand"


def test_push_again_gives_the_same_ref(ask: Ask, file: Any) -> None:
    path = file()
    assert ask("push", path).out == ask("push", path).out == "net@v1\n"


def test_push_move_takes_the_file_away(ask: Ask, file: Any) -> None:
    path = file()
    assert ask("push", path, "--move").code == 0
    assert not Path(path).exists()


def test_push_without_a_model_s_name_shows_the_command_to_type(ask: Ask, file: Any) -> None:
    path = file("it's mine.pt", model=None)
    answer = ask("push", path)
    assert answer.code == 2
    assert f"ckreg push {shlex.quote(path)} --model NAME" in answer.err


def test_list_is_newest_first_and_filters(ask: Ask, file: Any) -> None:
    for words in (["--tag", "good"], ["--dataset", "mnist"], ["--run", "night"]):
        ask("push", file(), *words)
    assert ask("list", "-q").lines == ["net@v3", "net@v2", "net@v1"]
    assert ask("list", "net", "-q", "--tag", "good").lines == ["net@v1"]
    assert ask("list", "-q", "--dataset", "mnist").lines == ["net@v2"]
    assert ask("list", "net", "-q", "--run", "night").lines == ["net@v3"]
    assert ask("list", "-q", "--where", "epoch >= 2 and acc < 0.903").lines == ["net@v2"]
    assert ask("list", "-q", "--sort", "epoch").lines == ["net@v1", "net@v2", "net@v3"]


def test_list_says_the_total_when_it_was_cut(ask: Ask, file: Any) -> None:
    for _ in range(3):
        ask("push", file())
    answer = ask("list", "--limit", "2", "-q", "--where", "epoch > 0")
    assert answer.lines == ["net@v3", "net@v2"]
    assert answer.err == "2 of 3 shown; all of them: --limit 0\n"
    assert ask("list", "--limit", "0").err == ""
    assert ask("list", "--limit", "3").err == ""


@pytest.mark.parametrize("limit", ["2147483648", "9223372036854775807", "1" + 30 * "0"])
def test_a_limit_that_no_database_counts_to_is_all(ask: Ask, file: Any, limit: str) -> None:
    ask("push", file())
    answer = ask("list", "--limit", limit, "-q")
    assert (answer.code, answer.lines, answer.err) == (0, ["net@v1"], "")
    assert ask("list", "--limit", "-1").code == 2


def test_a_json_list_goes_on_where_next_says(ask: Ask, file: Any) -> None:
    for _ in range(5):
        ask("push", file())
    seen, after = [], []
    for _ in range(3):
        page = ask("list", "--limit", "2", "--sort", "-acc", "--json", *after).json
        seen += [c["ref"] for c in page["checkpoints"]]
        after = ["--after", page["next"]]
    assert seen == [f"net@v{v}" for v in (5, 4, 3, 2, 1)]
    assert page["next"] is None


def test_list_shows_a_table_to_a_terminal_and_fields_to_a_pipe(ask: Ask, file: Any) -> None:
    ask("push", file())
    head, row = ask("list", terminal=True).lines
    assert head.split() == ["REF", "DATASET", "EPOCH", "ACC", "WRAPPED", "TOPOLOGY", "SIZE", "AGE"]
    assert row.startswith("net@v1  cifar10      1  0.9010")
    (line,) = ask("list").lines
    assert line.split("\t")[:4] == ["net@v1", "cifar10", "1", "0.901"]


def test_show_has_two_keys_as_examples(ask: Ask, file: Any) -> None:
    state = {f"module.{k}": v for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    ask("push", file(state_dict=state))
    page = ask("show", "net", terminal=True).out
    assert "module.bias" in page
    assert "module.weight" in page
    assert page.startswith("net@v1  cifar10 · epoch 1")


def test_show_says_of_the_best_that_it_is(ask: Ask, file: Any) -> None:
    ask("push", file(), "--acc", "0.9")
    ask("push", file(), "--acc", "0.8")
    ask("push", file(), "--acc", "0.95", "--dataset", "other")
    assert "  best            of net on cifar10\n" in ask("show", "net@v1", terminal=True).out
    assert "  best  " not in ask("show", "net@v2", terminal=True).out
    assert "  best            of net on other\n" in ask("show", "net@v3", terminal=True).out
    ask("monitor", "net", "loss", "--mode", "min")
    assert "  best  " not in ask("show", "net@v1", terminal=True).out


def test_show_in_a_pipe_is_a_field_a_line(ask: Ask, file: Any) -> None:
    ask("push", file())
    fields = dict(line.split("\t") for line in ask("show", "net").lines)
    assert (fields["ref"], fields["acc"]) == ("net@v1", "0.901")


# --- best, models, plan ---------------------------------------------------------------------------


def test_best_is_the_highest_acc_until_told_otherwise(ask: Ask, file: Any) -> None:
    ask("push", file(), "--acc", "0.5", "--metric", "loss=0.1")
    ask("push", file(), "--acc", "0.9", "--metric", "loss=0.7")
    assert ask("best", "net", "-q").lines == ["net@v2"]
    assert ask("best", "net", "--json").json["acc"] == 0.9
    answer = ask("best", "net", "--metric", "loss", "--mode", "min", terminal=True)
    assert answer.lines[0] == "net@v1  best by loss (min): 0.1"
    assert ask("best", "net", terminal=True).lines[0] == "net@v2  best by acc (max): 0.9"


@pytest.mark.parametrize("words", ["best net", "show net@best", "show net@latest"])
def test_the_command_that_names_a_dataset_runs_as_it_is_printed(
    ask: Ask, file: Any, words: str
) -> None:
    for dataset in ("my data", "your data"):
        ask("push", file(), "--dataset", dataset)
    answer = ask(*words.split())
    assert answer.code == 4
    hint = re.search(
        r"^hint:  name one: ckreg (.*); in Python: dataset='my data'$", answer.err, re.M
    )
    assert hint is not None
    assert "net@v1" in ask(*shlex.split(hint[1])).out


def test_what_a_hint_says_to_type_goes_to_the_registry_that_was_asked(
    reg: Registry, file: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CKREG_REGISTRY", str(tmp_path / "another"))
    reg.push(file())
    assert run(["rm", "net@v1", "--yes", "-r", reg.location]) == 0
    back = re.search(r"to bring back: ckreg (.*)", capsys.readouterr().err)
    assert run(["show", "net@v1", "-r", reg.location]) == 3
    hint = re.search(r"^hint:  bring it back: ckreg (.*)", capsys.readouterr().err, re.M)
    assert hint is not None
    assert back is not None
    assert hint[1] == back[1]
    assert run(shlex.split(hint[1])) == 0
    assert reg.get("net@v1").removed_at is None
    monkeypatch.setenv("CKREG_REGISTRY", reg.location)
    capsys.readouterr()
    assert run(["show", "net@v9"]) == 3
    assert "hint:  see: ckreg list net\n" in capsys.readouterr().err


def test_best_across_datasets_is_refused_and_names_them(ask: Ask, file: Any) -> None:
    ask("push", file())
    ask("push", file(), "--dataset", "mnist")
    answer = ask("best", "net")
    assert answer.code == 4
    assert "cifar10" in answer.err
    assert "mnist" in answer.err
    assert "--dataset" in answer.err
    assert ask("best", "net", "--dataset", "mnist", "-q").lines == ["net@v2"]
    assert ask("show", "net@best", "--dataset", "mnist", "-q").lines == ["net@v2"]


def test_models_lists_each_with_its_datasets(ask: Ask, file: Any) -> None:
    ask("push", file())
    ask("push", file(), "--model", "a/b", "--dataset", "mnist")
    assert ask("models", "-q").lines == ["a/b", "net"]
    assert [m["datasets"] for m in ask("models", "--json").json["models"]] == [
        ["mnist"],
        ["cifar10"],
    ]


def test_plan_is_words_and_json(ask: Ask, file: Any) -> None:
    ask("push", file())
    answer = ask("plan", "net@v1", "--device", "cpu")
    assert answer.code == 0
    assert "net@v1" in answer.out
    assert ask("plan", "net", "--device", "cpu", "--json").json["map_location"] == "cpu"
    assert ask("plan", "net", "--device", "cuda:7", "--json").json["map_location"] == "cuda:7"


def test_plan_for_a_wrapped_net_names_its_keys(ask: Ask, file: Any) -> None:
    ask("push", file(), "--keys", "")
    moves = ask("plan", "net@v1", "--wrapped", "module.", "--json").json["moves"]
    assert [m["key"] for m in moves] == [f"module.{m['canonical']}" for m in moves] != []
    plain = ask("plan", "net@v1", "--wrapped", "plain", "--json").json
    assert plain["renames"] == {}
    assert "'module.'" in ask("plan", "net@v1", "--wrapped", "module.").out
    wrong = ask("plan", "net@v1", "--wrapped", "ddp")
    assert wrong.code == 2
    assert "no key style" in wrong.err


# --- pull -----------------------------------------------------------------------------------------


def test_pull_gives_the_bytes_and_prints_the_path(ask: Ask, file: Any, tmp_path: Path) -> None:
    path = file()
    ask("push", path)
    dest = tmp_path / "out" / "copy.pt"
    dest.parent.mkdir()
    answer = ask("pull", "net@best", "-o", str(dest))
    assert (answer.code, answer.out) == (0, f"{dest}\n")
    assert dest.read_bytes() == Path(path).read_bytes()
    assert ask("pull", "net", str(dest), "--json").json["path"] == str(dest)


def test_pull_adapts_keys_and_contents(ask: Ask, file: Any, tmp_path: Path) -> None:
    ask("push", file())
    dest = tmp_path / "dp.pt"
    words = ("--device", "cpu", "--keys", "module.", "--only", "weights", "-o", str(dest))
    assert ask("pull", "net", *words).code == 0
    assert sorted(torch.load(dest, weights_only=True))[0] == "module.0.bias"


def test_pull_onto_another_file_is_a_conflict_until_forced(
    ask: Ask, file: Any, tmp_path: Path
) -> None:
    ask("push", file())
    dest = tmp_path / "mine.pt"
    dest.write_text("mine")
    assert ask("pull", "net", str(dest)).code == 5
    assert dest.read_text() == "mine"
    assert ask("pull", "net", str(dest), "--force").code == 0


# --- record, tag, alias, rm, restore --------------------------------------------------------------


def test_record_adds_metrics_and_never_changes_one(ask: Ask, file: Any) -> None:
    ask("push", file())
    assert ask("record", "net@v1", "test/acc=0.8", "test/loss=2").out == "net@v1\n"
    assert ask("show", "net", "--json").json["metrics"]["test/loss"] == 2
    assert ask("record", "net@v1", "acc=0.1").code == 5
    assert ask("record", "net@v1", "x=nan").code == 2


def test_tags_go_on_and_off(ask: Ask, file: Any) -> None:
    ask("push", file())
    assert ask("tag", "net", "good", "seen", "--json").json["tags"] == ["good", "seen"]
    assert ask("tag", "net@v1", "seen", "--remove", "--json").json["tags"] == ["good"]
    assert ask("tag", "net@v1", "best").code == 2


def test_an_alias_moves_and_says_what_it_was(ask: Ask, reg: Registry, file: Any) -> None:
    ask("push", file())
    ask("push", file())
    assert ask("alias", "net@v1", "prod").err == f"registry: {reg.location}\n"
    answer = ask("alias", "net@v2", "prod")
    assert answer.out == "net@v2\n"
    assert "net@prod was net@v1" in answer.err
    assert ask("show", "net@prod", "-q").lines == ["net@v2"]
    assert ask("alias", "net@prod", "--remove").code == 0
    assert ask("show", "net@prod").code == 3


@pytest.mark.parametrize("words", [("net", "prod", "--remove"), ("net", "--remove"), ("net",)])
def test_an_alias_call_that_could_mean_two_things_shows_the_right_one(
    ask: Ask, file: Any, words: tuple[str, ...]
) -> None:
    ask("push", file())
    answer = ask("alias", *words)
    assert answer.code == 2
    assert "ckreg alias resnet50@" in answer.err


def test_rm_without_a_terminal_needs_yes(ask: Ask, file: Any) -> None:
    ask("push", file())
    answer = ask("rm", "net@v1")
    assert answer.code == 2
    assert "--yes" in answer.err
    assert ask("list", "-q").lines == ["net@v1"]


def test_rm_goes_and_restore_comes_back(ask: Ask, file: Any) -> None:
    ask("push", file())
    ask("push", file())
    answer = ask("rm", "net@v1", "net@v2", "net@v1", "--yes")
    assert answer.lines == ["net@v1", "net@v2"]
    assert "restore net@v1 net@v2" in answer.err
    assert ask("list", "-q").lines == []
    assert len(ask("list", "--removed").lines) == 2
    assert ask("restore", "net@v1").out == "net@v1\n"
    assert ask("list", "-q").lines == ["net@v1"]


def test_rm_looks_all_up_before_the_first_goes(ask: Ask, file: Any) -> None:
    ask("push", file())
    assert ask("rm", "net@v1", "net@v9", "--yes").code == 3
    assert ask("list", "-q").lines == ["net@v1"]


def test_rm_dry_run_says_what_would_go_and_leaves_it(ask: Ask, file: Any) -> None:
    ask("push", file())
    answer = ask("rm", "net@v1", "--dry-run")
    assert (answer.code, answer.out) == (0, "net@v1\n")
    assert "would go" in answer.err
    assert ask("list", "-q").lines == ["net@v1"]


def test_rm_of_an_aliased_one_needs_force(ask: Ask, file: Any) -> None:
    ask("push", file(), "--alias", "prod")
    assert ask("rm", "net@v1", "--yes").code == 5
    assert ask("rm", "net@v1", "--yes", "--force").code == 0


@contextmanager
def asking_to_remove(reg: Registry, ref: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start an rm on a terminal of its own, and return it with our end of the terminal."""
    ours, theirs = pty.openpty()
    rm = subprocess.Popen(
        [sys.executable, "-m", "registry", "rm", ref, "-r", reg.location],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield rm, ours
    finally:
        rm.kill()
        rm.wait()
        os.close(theirs)
        os.close(ours)


@pytest.mark.parametrize(("typed", "code", "left"), [("n\n", 1, 1), ("y\n", 0, 0)])
def test_rm_asks_on_a_terminal(
    ask: Ask, reg: Registry, file: Any, typed: str, code: int, left: int
) -> None:
    ask("push", file())
    with asking_to_remove(reg, "net@v1") as (rm, terminal):
        assert b"remove net@v1" in os.read(terminal, 4096)
        os.write(terminal, typed.encode())
        assert rm.wait(timeout=60) == code
    assert len(ask("list", "-q").lines) == left


# --- errors ---------------------------------------------------------------------------------------


def test_with_json_an_error_is_one_object_on_stderr(ask: Ask, file: Any) -> None:
    ask("push", file())
    answer = ask("show", "nett@v1", "--json")
    assert (answer.code, answer.out) == (3, "")
    error = json.loads(answer.err)
    assert set(error) == {"type", "exit_code", "message", "hint"}
    assert (error["type"], error["exit_code"]) == ("NotFoundError", 3)
    assert "net" in error["hint"]


def test_an_unknown_model_is_answered_with_near_names(ask: Ask, file: Any) -> None:
    ask("push", file(), "--model", "resnet50")
    answer = ask("show", "resnt50@best")
    assert answer.code == 3
    assert "resnet50" in answer.err.split("hint:  ")[1]


def test_a_model_without_acc_is_answered_with_the_command_for_its_own_metric(
    ask: Ask, file: Any
) -> None:
    ask(
        "push",
        file(acc=None),
        "--model",
        "net",
        "--metric",
        "val/loss=0.2",
        "--metric",
        "val/acc=0.9",
    )
    answer = ask("best", "net")
    assert answer.code == 3
    assert " best net --metric val/acc --mode max (or min)" in answer.err
    assert " monitor net val/acc --mode max (or min)" in answer.err
    answer = ask("best", "net", "--metric", "loss")
    assert (answer.code, "--metric val/loss --mode" in answer.err) == (3, True)
    answer = ask("best", "net", "--metric", "val/loss")
    assert (answer.code, "(--mode)" in answer.err) == (2, True)


def test_a_monitor_that_no_checkpoint_has_is_set_and_said(ask: Ask, file: Any) -> None:
    ask("push", file(acc=None), "--model", "net", "--metric", "val/loss=0.2")
    answer = ask("monitor", "net", "val/los", "--mode", "min")
    assert answer.code == 0
    assert "no checkpoint of net has val/los yet (metrics: val/loss)" in answer.err
    assert "yet" not in ask("monitor", "net", "val/loss", "--mode", "min").err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["show", "net@bset"], "did you mean net@best? or point one"),
        (["show", "net@prodd"], "did you mean net@prod?"),
        (["show", "net@epoch7"], "did you mean net@epoch=7?"),
        (["show", "net@V1"], "did you mean net@v1?"),
        (["show", "nothing"], "all of them: ckreg "),
        (["show", "run-7/best.pt"], " push run-7/best.pt"),
        (["list", "--sort", "-accc"], "did you mean acc?"),
        (["list", "net", "--sort", "val/los"], "did you mean val/loss?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    ask: Ask, file: Any, words: list[str], meant: str
) -> None:
    ask("push", file(), "--model", "net", "--metric", "val/loss=0.2", "--alias", "prod")
    answer = ask(*words)
    assert answer.code in (2, 3)
    assert re.search(rf"^hint:  .*{re.escape(meant)}", answer.err, re.M)


def test_an_empty_list_names_the_registry_that_was_asked(
    ask: Ask, reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert ask("list").err == f"no checkpoints in {reg.location}\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CKREG_REGISTRY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(["list"]) == 0
    assert capsys.readouterr().err == (
        f"no checkpoints in {tmp_path / 'home' / '.ckreg'}, which isn't there yet\n"
    )


def test_a_folder_of_many_is_pointed_to_import(ask: Ask, file: Any, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all2").mkdir()
    for place in ("all/a.pt", "all/b.pt"):
        shutil.move(file(), tmp_path / place)
    assert f" import {tmp_path / 'all'} --dry-run" in ask("push", str(tmp_path / "all")).err
    shutil.move(tmp_path / "all", tmp_path / "all2" / "below")
    assert f" import {tmp_path / 'all2'} --dry-run" in ask("push", str(tmp_path / "all2")).err


def test_a_where_that_cannot_be_read_marks_the_place(ask: Ask) -> None:
    answer = ask("list", "--where", "acc >> 0.9")
    assert answer.code == 2
    assert "^" in answer.err


BAD: list[tuple[str, list[str], int]] = [
    ("acc is nan", ["--acc", "nan"], 2),
    ("acc is infinite", ["--acc", "inf"], 2),
    ("a name outside the grammar", ["--model", "../etc"], 2),
    ("a tag outside the grammar", ["--tag", "v1"], 2),
    ("a negative epoch", ["--epoch", "-1"], 2),
    ("no process", ["--world-size", "0"], 2),
    ("keys that are no style", ["--keys", "modul."], 2),
    ("keys that don't fit", ["--keys", "module."], 7),
]


@pytest.mark.parametrize(("words", "code"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_push_says_why_and_leaves_nothing(
    ask: Ask, reg: Registry, file: Any, words: list[str], code: int
) -> None:
    before = everything(reg)
    answer = ask("push", file(), *words)
    assert answer.code == code
    assert answer.err.startswith("error: ")
    assert everything(reg) == before
    assert ask("models", "-q").lines == []


def _truncated(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


FILES: list[tuple[str, Callable[[Path], object], int]] = [
    ("missing", lambda p: p.unlink(), 3),
    ("empty", lambda p: p.write_bytes(b""), 6),
    ("truncated", _truncated, 6),
    ("text", lambda p: p.write_text("acc 0.9\n"), 7),
    ("html", lambda p: p.write_text("<!DOCTYPE html><html></html>"), 7),
    ("folder", lambda p: (p.unlink(), p.mkdir()), 7),
]


@pytest.mark.parametrize(("spoil", "code"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_bad_file_is_named_and_leaves_nothing(
    ask: Ask, reg: Registry, file: Any, spoil: Callable[[Path], object], code: int
) -> None:
    path = file()
    spoil(Path(path))
    before = everything(reg)
    answer = ask("push", path, "--model", "net")
    assert answer.code == code, answer.err
    assert Path(path).name in answer.err
    assert everything(reg) == before


def everything(reg: Registry) -> list[str]:
    """Return the files of a registry but SQLite's own."""
    root = blobs_at(reg)
    return sorted(str(p) for p in root.rglob("*") if p.is_file() and p.name != "registry.lock")


def test_mixed_scales_are_a_warning_on_stderr(ask: Ask, file: Any) -> None:
    ask("push", file(), "--acc", "0.93")
    answer = ask("push", file(), "--acc", "93.1")
    assert answer.code == 0
    assert answer.out == "net@v2\n"
    assert answer.err.startswith("warning: ")
    assert ".py" not in answer.err


def test_with_json_a_warning_is_an_object_too(ask: Ask, file: Any) -> None:
    ask("push", file(), "--acc", "0.93")
    answer = ask("push", file(), "--acc", "93.1", "--json")
    assert answer.json["ref"] == "net@v2"
    warning = json.loads(answer.err.splitlines()[0])
    assert (warning["type"], warning["exit_code"]) == ("CkregWarning", 0)


def test_a_terminal_without_unicode_gets_escapes_and_no_crash(
    ask: Ask, reg: Registry, file: Any
) -> None:
    ask("push", file(), "--note", "naïve …")
    asking = process("show", "net", "-r", reg.location, env={"PYTHONIOENCODING": "ascii"})
    out, err = asking.communicate(timeout=60)
    assert (asking.returncode, err) == (0, "")
    assert "note\tna\\xefve \\u2026\n" in out


def test_a_path_with_control_characters_reaches_no_terminal(ask: Ask, tmp_path: Path) -> None:
    answer = ask("push", str(tmp_path / "a\x1b]0;owned\x07.pt"))
    assert answer.code == 3
    assert "\x1b" not in answer.err
    assert "\\x1b" in answer.err


def test_a_closed_pipe_is_quiet(reg: Registry, ask: Ask, file: Any) -> None:
    ask("push", file())
    listing = process("list", "-r", reg.location)
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.close()
    assert listing.stderr.read() == ""
    listing.stderr.close()
    assert listing.wait(timeout=60) == 141


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_by_its_code_and_nothing_else(
    reg: Registry, ask: Ask, file: Any, number: signal.Signals, code: int
) -> None:
    ask("push", file())
    with asking_to_remove(reg, "net@v1") as (rm, terminal):
        shown = os.read(terminal, 4096)  # the question: it waits for an answer now
        deadline = time.monotonic() + 60
        while rm.poll() is None and time.monotonic() < deadline:
            # again and again: one that comes just before the read blocks is seen after the read
            rm.send_signal(number)
            time.sleep(0.1)
        assert rm.returncode == code
        assert b"remove net@v1" in shown
        os.set_blocking(terminal, False)
        with suppress(BlockingIOError):  # nothing more was said
            assert os.read(terminal, 4096).strip() in (b"", b"^C")
    assert ask("list", "-q").lines == ["net@v1"]


# --- what a command must not import ---------------------------------------------------------------


def modules(*words: str) -> set[str]:
    """Return the modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "registry", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


def imports(*words: str) -> set[str]:
    """Return the top-level packages that a command imports."""
    return {name.split(".")[0] for name in modules(*words)}


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["push", "-h"], ["completion", "zsh"]]
)
def test_help_and_version_cost_no_database(words: list[str]) -> None:
    assert not imports(*words) & {"sqlalchemy", "alembic", "torch", "numpy", "blake3"}


def test_reading_commands_import_neither_torch_nor_alembic(
    reg: Registry, ask: Ask, file: Any, tmp_path: Path
) -> None:
    ask("push", file())
    more = file()
    for words in (
        ["list"],
        ["best", "net"],
        ["show", "net"],
        ["plan", "net"],
        ["push", more],
        ["pull", "net@v1", str(tmp_path / "out.pt")],
        ["info"],
    ):
        assert not imports(*words, "-r", reg.location) & {"torch", "alembic", "numpy"}, words


FOR_FILES_AND_WRITES = {
    *(
        f"registry.{name}"
        for name in (
            "catalog.adding", "catalog.changing", "catalog.checking", "catalog.wholes",
            "collecting", "commits", "containers", "diffing", "drafting", "exports", "importing",
            "loads", "opening", "planning", "pulls", "pushes", "repairing", "saves", "sharded",
            "surroundings", "tensors", "verifying", "where.parsing",
            "blobs.cache", "blobs.fetched", "blobs.objects", "blobs.remote",
        )
    ),
    "sqlalchemy.dialects.postgresql", "alembic", "torch", "obstore",
}  # fmt: skip


@pytest.mark.parametrize("words", [["best", "net"], ["list"], ["list", "net"], ["show", "net"]])
def test_a_question_imports_nothing_that_reads_files_or_writes(
    reg: Registry, ask: Ask, file: Any, words: list[str]
) -> None:
    ask("push", file())
    found = modules(*words, "-r", reg.location)
    assert "registry.catalog.facade" in found
    needed = {"sqlalchemy.dialects.postgresql"} if "://" in reg.location else set()
    assert found & FOR_FILES_AND_WRITES == needed


# --- completion -----------------------------------------------------------------------------------


def completed(reg: Registry, line: str) -> list[str]:
    """Return what bash would offer for the last word of a line."""
    words = line.split(" ")
    env = {
        "_CKREG_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "CKREG_REGISTRY": reg.location,
    }
    out, _ = process(env=env).communicate(timeout=60)
    return [entry.split(",", 1)[1] for entry in out.splitlines()]


def test_the_shell_completes_commands_models_and_refs(reg: Registry, ask: Ask, file: Any) -> None:
    ask("push", file(), "--alias", "prod")
    assert completed(reg, "ckreg pu") == ["push", "pull"]
    assert completed(reg, "ckreg show n") == ["net"]
    assert completed(reg, "ckreg show net@") == ["net@best", "net@latest", "net@prod", "net@v1"]
    assert completed(reg, "ckreg best n") == ["net"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_one_line_for_the_shell(shell: str, capsys: Any) -> None:
    assert run(["completion", shell]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{shell}_source" in line


# --- the demo -------------------------------------------------------------------------------------


def test_the_demo_without_scikit_learn_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')")
    demo = process("demo", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "hint:  pip install 'ckreg[demo]'" in err
    assert not (tmp_path / "ckreg-demo").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_the_demo_runs_and_a_second_run_adds_versions(tmp_path: Path) -> None:
    for versions in (4, 8):
        demo = process("demo", "--offline", "--epochs", "1", cwd=tmp_path)
        out, err = demo.communicate(timeout=240)
        assert demo.returncode == 0, out + err
        assert out.count("the same  digits-net@v") == 7
        assert "DIFFERENT" not in out
        assert "$ ckreg best digits-net" in out
        assert f"export CKREG_REGISTRY={tmp_path}/ckreg-demo" in out
        with Registry.open(tmp_path / "ckreg-demo") as reg:
            assert len(list(reg.find("digits-net"))) == versions


# --- what fits ------------------------------------------------------------------------------------


@pytest.fixture
def sizes(reg: Registry, tmp_path: Path) -> None:
    """Push three: 4000 bytes of weights, 8000, and a wrapped twin of the first."""
    for name, count, prefix in (("small", 1000, ""), ("big", 2000, ""), ("twin", 1000, "module.")):
        torch.save({f"{prefix}w": torch.zeros(count)}, tmp_path / f"{name}.pt")
        reg.push(tmp_path / f"{name}.pt", model=name)


@pytest.mark.usefixtures("sizes")
def test_loadable_lists_those_whose_weights_fit_the_memory(ask: Ask) -> None:
    def loadable(memory: str) -> list[str]:
        answer = ask("list", "--loadable", "--memory", memory, "-q")
        assert answer.code == 0, answer.err
        return sorted(answer.lines)

    assert loadable("8kB") == ["big@v1", "small@v1", "twin@v1"]
    assert loadable("7999B") == loadable("4000B") == ["small@v1", "twin@v1"]
    assert loadable("3999B") == []
    assert ask("list", "big", "--loadable", "--memory", "4kB", "-q").lines == []


@pytest.mark.usefixtures("sizes")
def test_loadable_asks_a_device_for_its_free_memory(ask: Ask) -> None:
    assert len(ask("list", "--loadable", "--device", "cpu", "-q").lines) == 3
    absent = ask("list", "--loadable", "--device", "xpu:7")
    assert (absent.code, absent.out) == (7, "")
    assert "--memory" in absent.err
    assert ask("list", "--loadable", "--device", "nonsense").code == 2


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    "words",
    [
        ["--loadable"],
        ["--memory", "1GB"],
        ["--device", "cpu"],
        ["--loadable", "--memory", "1GB", "--device", "cpu"],
        ["--loadable", "--memory", "lots"],
    ],
)
def test_loadable_needs_one_size(ask: Ask, words: list[str]) -> None:
    assert ask("list", *words).code == 2


@pytest.mark.usefixtures("sizes")
def test_fits_lists_those_with_the_same_tensors_however_wrapped(ask: Ask) -> None:
    assert sorted(ask("list", "--fits", "twin", "-q").lines) == ["small@v1", "twin@v1"]
    assert ask("list", "--fits", "big@v1", "-q").lines == ["big@v1"]
    assert ask("list", "--fits", "none").code == 3


@pytest.mark.sqlite_only("starts a process")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_stop_no_command(reg: Registry, closed: str) -> None:
    reg.save(torch.nn.Linear(2, 2), model="net")
    command = f"exec {sys.executable} -m registry -r {reg.location}"
    for words in ("list", "show net", "tag net good"):
        done = subprocess.run(
            f"{command} {words} {closed}", shell=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert reg.get("net").tags == ("good",)
