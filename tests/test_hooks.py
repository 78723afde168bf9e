"""Hooks: told once of each new checkpoint, after it is committed, and unable to harm it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch

from registry import Checkpoint, CkregWarning, Registry, hooks
from registry.cli import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_functions_are_remembered() -> Iterator[None]:
    hooks._functions.cache_clear()
    yield
    hooks._functions.cache_clear()


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a command write each record that it gets as a line of a file; return the file."""
    place = tmp_path / "seen.jsonl"
    monkeypatch.setenv("CKREG_ON_COMMIT", f"cat >> '{place}'")
    return place


def records(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def push(reg: Registry, tmp_path: Path, **facts: Any) -> Checkpoint:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"w": torch.zeros(2)}}, path)
    return reg.push(path, **{"model": "net", **facts})


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Install a package whose function `told` is a hook."""
    (folder / "hooked-1.0.dist-info").mkdir(parents=True)
    info = folder / "hooked-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hooked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckreg.on_commit]\nmine = hooked_by_test:told\n")
    (folder / "hooked_by_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "hooked_by_test", raising=False)


# --- who is told ----------------------------------------------------------------------------------


def test_save_push_and_import_tell_the_record_once_each(
    reg: Registry, tmp_path: Path, seen: Path
) -> None:
    saved = reg.save(torch.nn.Linear(2, 2), model="net", epoch=1, acc=0.5)
    pushed = push(reg, tmp_path, acc=0.25)
    torch.save({"w": torch.ones(3)}, tmp_path / "tree.pt")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree.pt").rename(tmp_path / "tree" / "other.pt")
    imported = reg.import_(tmp_path / "tree").added[0].checkpoint
    assert imported is not None
    assert records(seen) == [c.to_dict() for c in (saved, pushed, imported)]


def test_a_repeated_push_and_a_later_change_tell_nobody(
    reg: Registry, tmp_path: Path, seen: Path
) -> None:
    first = push(reg, tmp_path)
    assert push(reg, tmp_path, tags=["again"]).id == first.id
    reg.tag("net", "good")
    reg.record("net", {"acc": 0.5})
    reg.remove("net")
    reg.restore("net@v1")
    assert [r["ref"] for r in records(seen)] == ["net@v1"]


def test_a_save_in_the_background_tells_too(reg: Registry, seen: Path) -> None:
    saved = reg.save(torch.nn.Linear(2, 2), model="net", epoch=1, wait=False).result()
    assert [r["id"] for r in records(seen)] == [saved.id]


def test_what_could_not_be_committed_tells_nobody(
    reg: Registry, tmp_path: Path, seen: Path
) -> None:
    with pytest.raises(ValueError, match="acc"):
        push(reg, tmp_path, acc=float("nan"))
    assert records(seen) == []


def test_a_hook_sees_the_checkpoint_committed_and_knows_the_registry(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shown"
    command = f"{sys.executable} -m registry show net@latest -q > '{place}'"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CKREG_ON_COMMIT", command)
    push(reg, tmp_path)
    assert place.read_text() == "net@v1\n"


def test_a_function_of_a_package_is_told_a_copy_of_the_record(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "seen = []\ndef told(record): seen.append(dict(record)); record.clear()\n"
    install(tmp_path / "site", monkeypatch, code)
    ckpt = push(reg, tmp_path)
    import hooked_by_test  # type: ignore[import-not-found]

    assert hooked_by_test.seen == [ckpt.to_dict()]


def test_a_hook_s_own_commits_tell_nobody(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Path
) -> None:
    code = (
        "from registry import Registry\n"
        "def told(record):\n"
        f"    with Registry.open({reg.location!r}) as reg:\n"
        f"        reg.push({str(tmp_path / 'w.pt')!r}, model='copy-of-' + record['model'])\n"
    )
    install(tmp_path / "site", monkeypatch, code)
    push(reg, tmp_path)
    assert [m.name for m in reg.models()] == ["copy-of-net", "net"]
    assert [r["model"] for r in records(seen)] == ["net"]

    shell = f"{sys.executable} -m registry push '{tmp_path / 'w.pt'}' --model third"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CKREG_ON_COMMIT", shell)
    push(reg, tmp_path, epoch=2)
    assert len(list(reg.find("third"))) == 1


# --- what can't harm the save ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo quota >&2; exit 3", "ended with 3: quota"),
        ("echo at last; exit 1", "ended with 1: at last"),
        ("no-such-program-at-all", "ended with 127: "),
        ("kill -9 $$", "was ended by signal 9"),
        ("printf 'a\\033[31mb'; exit 1", "ended with 1: a"),
    ],
)
def test_a_command_that_fails_is_a_warning(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, why: str
) -> None:
    monkeypatch.setenv("CKREG_ON_COMMIT", command)
    with pytest.warns(CkregWarning, match="net@v1 is committed, but the command of") as caught:
        push(reg, tmp_path)
    assert why in str(caught[0].message)
    assert reg.get("net@v1").version == 1
    assert reg.verify().ok


@pytest.mark.parametrize("call", ["tempfile.TemporaryFile", "threading.Thread.start"])
def test_a_machine_that_can_start_no_hook_keeps_the_save(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, path)
    monkeypatch.setenv("CKREG_ON_COMMIT", "true")
    monkeypatch.setattr(hooks, "_functions", functools.cache(lambda: (("mine", print),)))
    monkeypatch.setattr(f"registry.hooks.{call}", fails)
    with pytest.warns(CkregWarning, match="could not be started: .*No space left"):
        reg.push(path, model="net")
    assert reg.latest("net").version == 1


def test_a_command_that_hangs_is_ended_with_its_children(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "pid"
    monkeypatch.setattr(hooks, "LIMIT_S", 0.3)
    monkeypatch.setenv("CKREG_ON_COMMIT", f"sleep 600 & echo $! > '{place}'; wait")
    with pytest.warns(CkregWarning, match="wasn't done after 0.3 s"):
        push(reg, tmp_path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(int(place.read_text())):
        time.sleep(0.05)
    assert not _runs(int(place.read_text()))


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_what_a_command_leaves_in_the_background_keeps_nobody_waiting(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "pid"
    monkeypatch.setenv("CKREG_ON_COMMIT", f"sleep 600 & echo $! > '{place}'")
    push(reg, tmp_path)  # a warning that it timed out would be an error
    os.kill(int(place.read_text()), 9)


def test_a_command_that_reads_nothing_is_no_failure(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKREG_ON_COMMIT", "true")
    push(reg, tmp_path, note="x" * 4000)


@pytest.mark.parametrize("raised", ["ValueError('no')", "SystemExit(3)", "KeyboardInterrupt()"])
def test_a_function_that_raises_is_a_warning(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str
) -> None:
    install(tmp_path / "site", monkeypatch, f"def told(record): raise {raised}\n")
    with pytest.warns(CkregWarning, match=r"'mine' \(hooked_by_test:told\) failed: "):
        push(reg, tmp_path)
    assert reg.get("net@v1").version == 1


def test_a_function_that_hangs_is_left_behind(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "LIMIT_S", 0.2)
    install(
        tmp_path / "site", monkeypatch,
        "import threading\ngo = threading.Event()\ndef told(record): go.wait()\n",
    )  # fmt: skip
    with pytest.warns(CkregWarning, match="isn't done after 0.2 s"):
        push(reg, tmp_path)
    import hooked_by_test

    hooked_by_test.go.set()


def test_a_package_that_can_t_be_imported_is_a_warning_once(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, "import no_such_module\n")
    with pytest.warns(CkregWarning, match="can't be imported: ModuleNotFoundError"):
        push(reg, tmp_path)
    push(reg, tmp_path, epoch=2)


def test_what_fails_after_the_commit_is_printed_where_warnings_are_errors(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("CKREG_ON_COMMIT", "exit 3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = push(reg, tmp_path)
    assert made == reg.get("net@v1")
    assert "warning: net@v1 is committed, but the command of CKREG_ON_COMMIT ended with 3" in (
        capsys.readouterr().err
    )


def test_a_process_that_a_function_starts_tells_nobody(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = tmp_path / "depth"
    code = (
        "import pathlib, subprocess, sys\n"
        "def told(record):\n"
        f"    depth = pathlib.Path({str(depth)!r})\n"
        "    deep = len(depth.read_text()) if depth.exists() else 0\n"
        "    if deep < 3:\n"
        "        depth.write_text('x' * (deep + 1))\n"
        f"        words = ['push', {str(tmp_path / 'w.pt')!r}, '--model', 'copy' + str(deep)]\n"
        f"        words += ['-r', {reg.location!r}]\n"
        "        subprocess.run([sys.executable, '-m', 'registry', *words], check=True)\n"
    )
    install(tmp_path / "site", monkeypatch, code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "site")]))
    push(reg, tmp_path)
    assert [m.name for m in reg.models()] == ["copy0", "net"]
    push(reg, tmp_path, epoch=2)  # and afterwards it is told again
    assert [m.name for m in reg.models()] == ["copy0", "copy1", "net"]


@pytest.mark.ranks
@pytest.mark.parametrize("job", ["hooked_ddp", "hooked_fsdp2"])
def test_other_ranks_do_not_wait_for_a_hook(job: str, tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    returned = tmp_path / "returned"
    command = f"for i in $(seq 80); do test -e {returned} && exit 0; sleep 0.1; done; exit 7"
    ended = gloo.run(
        f"strategies:{job}", str(tmp_path / "reg"), str(returned), env={"CKREG_ON_COMMIT": command}
    )
    assert [one.code for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "ended with 7" not in ended[0].stderr


def test_the_answer_of_a_command_stays_the_ref_alone(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("CKREG_ON_COMMIT", "echo loud; echo louder >&2; exit 1")
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")
    assert run(["push", str(tmp_path / "w.pt"), "--model", "net", "-r", reg.location]) == 0
    out, err = capfd.readouterr()
    assert out == "net@v1\n"
    assert "warning: net@v1 is committed, but the command of CKREG_ON_COMMIT ended with 1" in err


def test_questions_look_for_no_hook(reg: Registry, tmp_path: Path) -> None:
    push(reg, tmp_path)
    for words in (["list"], ["show", "net"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "registry", *words, "-r", reg.location],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert "registry.hooks" not in done.stderr
