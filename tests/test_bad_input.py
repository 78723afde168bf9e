"""Every row of bad input: its message, its exit code, and nothing left behind in the registry.

Each is tried through the API where it can only happen there, and through the command line where a
user types it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import left_behind
from nets import equal, seeded
from torch import nn
from users import as_nobody

from registry import (
    AmbiguousError,
    CkregWarning,
    ConflictError,
    DamagedError,
    NotFoundError,
    NotWritableError,
    RefusedLoadError,
    Registry,
    SchemaVersionError,
)


def ckreg(
    *words: str | Path, cwd: Path | None = None, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "registry", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        user=user,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr, done.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the customary dictionary as a file."""
    path = tmp_path / "in" / "ckpt.pt"
    path.parent.mkdir()
    torch.save(
        {
            "epoch": 12, "model": "resnet50", "dataset": "cifar10",
            "state_dict": seeded(1).state_dict(), "acc": 0.93,
            "optimizer": torch.optim.SGD(seeded(1).parameters(), lr=0.1).state_dict(),
        },
        path,
    )  # fmt: skip
    return path


# --- refs -----------------------------------------------------------------------------------------


def test_an_unknown_model_shows_near_names(reg: Registry, file: Path) -> None:
    reg.push(file)
    refused(
        ckreg("-r", reg.location, "show", "resnt50"), 3, "error: ", "'resnt50'", "hint:", "resnet50"
    )
    with pytest.raises(NotFoundError) as error:
        reg.best("resnt50")
    assert "resnet50" in error.value.near


def test_an_unknown_version_and_alias_are_not_found(reg: Registry, file: Path) -> None:
    reg.push(file)
    refused(ckreg("-r", reg.location, "show", "resnet50@v9"), 3, "version 9", "v1")
    refused(ckreg("-r", reg.location, "show", "resnet50@prod"), 3, "prod")


def test_text_that_is_no_ref_is_a_usage_error(reg: Registry) -> None:
    refused(ckreg("-r", reg.location, "show", "a b@@"), 2, "error: ")


def test_an_ambiguous_id_prefix_lists_the_candidates(reg: Registry) -> None:
    first = reg.save(seeded(1), model="net")
    second = reg.save(seeded(1), model="net")
    with sqlite3.connect(f"{reg.location}/registry.db") as db:
        for n, checkpoint in enumerate((first, second)):
            db.execute(
                "UPDATE checkpoints SET id=? WHERE id=?",
                ("abcdef" + f"{n}" * 26, checkpoint.id),
            )
    db.close()
    with pytest.raises(AmbiguousError) as error:
        reg.get("abcdef")
    assert len(error.value.candidates) == 2
    refused(ckreg("-r", reg.location, "show", "abcdef"), 4, "net@v1", "net@v2")


def test_best_across_several_datasets_is_refused(reg: Registry) -> None:
    reg.save(seeded(1), model="net", dataset="a", acc=0.5)
    reg.save(seeded(1), model="net", dataset="b", acc=0.6)
    refused(ckreg("-r", reg.location, "best", "net"), 4, "'a'", "'b'", "--dataset")
    with pytest.raises(AmbiguousError):
        reg.get("net@best")
    assert reg.best("net", dataset="a").version == 1


# --- facts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "acc", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(-np.inf)]
)
def test_an_acc_that_is_not_finite_is_refused_before_anything_is_written(
    reg: Registry, acc: Any
) -> None:
    with pytest.raises(ValueError, match="acc is"):
        reg.save(seeded(1), model="net", acc=acc)
    assert left_behind(reg) == []
    assert reg.models() == []


def test_an_acc_that_is_not_finite_is_refused_on_the_command_line(
    reg: Registry, file: Path
) -> None:
    refused(ckreg("-r", reg.location, "push", file, "--acc", "nan"), 2, "acc is nan")
    assert left_behind(reg) == []


@pytest.mark.parametrize(
    "acc",
    [np.float64(0.1), np.float32(0.1), torch.tensor(0.1), torch.tensor([0.1]), 1, np.int64(1)],
)
def test_numpy_and_tensor_scalars_are_stored_as_plain_numbers(reg: Registry, acc: Any) -> None:
    checkpoint = reg.save(seeded(1), model="net", acc=acc)
    assert type(checkpoint.acc) is float
    assert checkpoint.acc == float(acc)
    assert reg.get("net").acc == checkpoint.acc


def test_mixed_scales_of_acc_give_a_warning(reg: Registry) -> None:
    reg.save(seeded(1), model="net", dataset="a", acc=93.1)
    with pytest.warns(CkregWarning, match=r"0\.93.*93\.1"):
        reg.save(seeded(1), model="net", dataset="a", acc=0.93)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg.save(seeded(1), model="net", dataset="b", acc=0.93)


@pytest.mark.parametrize(
    "name", ["", "a b", "-x", "a//b", "x@y", "a\x00", "a\u202eb", "n" * 256, "../x"]
)
def test_a_name_outside_the_grammar_is_refused(reg: Registry, file: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can't be a model's name"):
        reg.push(file, model=name)
    assert left_behind(reg) == []


def test_a_module_passed_as_model_shows_the_right_call(reg: Registry) -> None:
    with pytest.raises(TypeError, match=r"reg\.save\(net, model="):
        reg.save(seeded(1), model=seeded(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"reg\.save\(net, model="):
        reg.save("net", model="net")  # type: ignore[arg-type]


def test_a_ref_where_a_name_belongs_shows_the_name_in_it(reg: Registry) -> None:
    with pytest.raises(ValueError, match=r"reads as a ref, and the name alone is 'a/net'"):
        reg.best("a/net@best")


def test_a_class_or_a_state_dict_for_the_live_object_is_a_type_error(reg: Registry) -> None:
    net = seeded(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    reg.save(net, model="net")
    wrong: Any = type(net)
    with pytest.raises(TypeError, match=r"not its class: reg\.save\(Net\(…\)"):
        reg.save(wrong, model="net")
    with pytest.raises(TypeError, match=r"not its class: into=Net\(…\)"):
        reg.load("net", into=wrong)
    wrong = optimizer.state_dict()
    with pytest.raises(TypeError, match=r"not its state_dict\(\)"):
        reg.save(net, model="net", optimizer=wrong)
    wrong = "cosine"
    with pytest.raises(TypeError, match=r"scheduler takes an object with a state_dict\(\), not"):
        reg.save(net, model="net", scheduler=wrong)
    with pytest.raises(TypeError, match=r"scaler takes an object with a load_state_dict\(\), not"):
        reg.load("net", into=net, stateful={"scaler": wrong})
    wrong = net.state_dict()
    with pytest.raises(TypeError, match=r"push takes a checkpoint's path, not OrderedDict"):
        reg.push(wrong)
    assert reg.count() == 1


def test_a_net_of_another_kind_is_asked_about_before_its_norm_layers(reg: Registry) -> None:
    reg.save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), model="net")
    with pytest.raises(RefusedLoadError) as caught:
        reg.load("net", into=nn.Conv2d(3, 4, 1))
    assert str(caught.value.hint).startswith("is it this model's? reg.fits(net)")


def test_a_function_inside_extra_is_refused_by_its_path(reg: Registry) -> None:
    with pytest.raises(TypeError, match=r"extra\.args\.fn: a function"):
        reg.save(seeded(1), model="net", extra={"args": {"fn": lambda: None}})
    assert left_behind(reg) == []
    assert list(reg.find()) == []


def test_a_file_without_a_model_name_shows_the_command_to_type(
    reg: Registry, tmp_path: Path
) -> None:
    torch.save(seeded(1).state_dict(), tmp_path / "w.pt")
    refused(ckreg("-r", reg.location, "push", tmp_path / "w.pt"), 2, "--model", "ckreg push")
    assert left_behind(reg) == []


# --- files ----------------------------------------------------------------------------------------


def test_an_existing_destination_is_a_conflict_and_stays(
    reg: Registry, file: Path, tmp_path: Path
) -> None:
    reg.push(file)
    mine = tmp_path / "mine.pt"
    mine.write_text("mine")
    refused(ckreg("-r", reg.location, "pull", "resnet50", mine), 5, str(mine), "--force")
    assert mine.read_text() == "mine"
    assert ckreg("-r", reg.location, "pull", "resnet50", mine, "--force").returncode == 0
    assert mine.read_bytes() == file.read_bytes()
    assert (
        ckreg("-r", reg.location, "pull", "resnet50", mine).returncode == 0
    )  # the same bytes: done


def test_a_missing_file_is_not_found(reg: Registry, tmp_path: Path) -> None:
    refused(ckreg("-r", reg.location, "push", tmp_path / "none.pt"), 3, "none.pt")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who may not read it")
def test_an_unreadable_file_says_why(file: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        secret = Path(open_to_all) / "secret.pt"
        secret.write_bytes(file.read_bytes())
        os.chmod(secret, 0o600)
        with (
            as_nobody(),
            pytest.raises(NotWritableError, match=r"secret\.pt.*permission") as error,
        ):
            Registry.open().push(secret, model="net")
    assert error.value.exit_code == 13
    assert not (Path(os.environ["HOME"]) / ".ckreg").exists()


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", 6, "empty"),
        (b"hello, this is a text\n" * 20, 7, "is text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", 7, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", 7, "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 64, 7, "gzip"),
    ],
    ids=["empty", "text", "html", "lfs", "gzip"],
)
def test_a_file_that_is_no_checkpoint_is_named(
    reg: Registry, tmp_path: Path, content: bytes, code: int, says: str
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refused(ckreg("-r", reg.location, "push", path, "--model", "net"), code, says, "x.pt")
    assert left_behind(reg) == []
    assert list(reg.find()) == []


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_damaged(reg: Registry, file: Path, part: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    refused(ckreg("-r", reg.location, "push", file), 6, "cut short", "ckpt.pt")
    assert left_behind(reg) == []


def test_a_folder_is_named_and_refused(reg: Registry, tmp_path: Path) -> None:
    refused(ckreg("-r", reg.location, "push", tmp_path, "--model", "net"), 7, "folder")


# --- loads ----------------------------------------------------------------------------------------


def unchanged(
    net: nn.Module, attempt: Callable[[], object], match: str | None = None
) -> RefusedLoadError:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RefusedLoadError, match=match) as error:
        attempt()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    return error.value


def test_a_device_that_this_machine_lacks_is_refused(reg: Registry) -> None:
    reg.save(seeded(1), model="net")
    with pytest.raises(RefusedLoadError, match="xpu:1") as error:
        reg.load("net", device="xpu:1")
    assert error.value.exit_code == 7


def test_shapes_that_differ_are_listed_with_their_count(reg: Registry) -> None:
    reg.save(seeded(1, classes=5), model="net")
    into = seeded(2, classes=7)
    error = unchanged(into, lambda: reg.load("net", into=into), "head")
    assert "(5, 8)" in str(error)
    assert "(7, 8)" in str(error)


def test_one_missing_key_leaves_the_target_as_it_was(reg: Registry, tmp_path: Path) -> None:
    state = seeded(1).state_dict()
    del state["features.0.bias"]
    torch.save(state, tmp_path / "w.pt")
    checkpoint = reg.push(tmp_path / "w.pt", model="net")
    into = seeded(2)
    unchanged(into, lambda: reg.load(checkpoint, into=into), r"features\.0\.bias")

    result = reg.load(checkpoint, into=into, allow=["features.0.*"])
    assert result.missing == ("features.0.bias",)


def test_a_state_dict_that_would_match_nothing_is_always_refused(
    reg: Registry, tmp_path: Path
) -> None:
    torch.save({"state_dict": nn.LSTM(3, 3).state_dict()}, tmp_path / "w.pt")
    checkpoint = reg.push(tmp_path / "w.pt", model="lstm")
    into = seeded(2)
    unchanged(into, lambda: reg.load(checkpoint, into=into))
    unchanged(into, lambda: reg.load(checkpoint, into=into, allow=["*"]))


def test_an_allow_pattern_that_matches_nothing_is_an_error(reg: Registry) -> None:
    reg.save(seeded(1), model="net")
    with pytest.raises(ValueError, match="nonsense"):
        reg.load("net", into=seeded(2), allow=["nonsense.*"])


def test_damaged_bytes_are_refused_and_the_target_stays(reg: Registry) -> None:
    checkpoint = reg.save(seeded(1), model="net")
    blob = next(Path(reg.location).glob(f"blobs/{checkpoint.digest[7:9]}/{checkpoint.digest[9:]}*"))
    data = bytearray(blob.read_bytes())
    weights = seeded(1).head.weight.detach().numpy().tobytes()
    data[data.index(weights) + 5] ^= 1
    os.chmod(blob, 0o644)
    blob.write_bytes(data)
    into = seeded(2)

    with pytest.raises(DamagedError):
        reg.load("net", into=into)
    assert equal(into, seeded(2))
    assert (
        ckreg("-r", reg.location, "pull", "net", cwd=blob.parent.parent.parent.parent).returncode
        == 6
    )
    reg.load("net", into=into, verify=False)  # at the user's own word
    assert not equal(into, seeded(1))


# --- registries -----------------------------------------------------------------------------------


def test_a_registry_made_by_a_newer_ckreg_is_refused(reg: Registry, file: Path) -> None:
    import sqlite3

    reg.push(file)
    with sqlite3.connect(f"{reg.location}/registry.db") as db:
        db.execute("UPDATE ckreg_version SET version_num='9999'")
    db.close()
    with pytest.raises(SchemaVersionError):
        Registry.open(reg.location).get("resnet50")
    refused(ckreg("-r", reg.location, "list"), 8, "9999", "pip install")
    refused(ckreg("-r", reg.location, "push", file), 8, "9999")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a read-only view")
def test_a_read_only_registry_reads_and_says_why_it_does_not_write(
    reg: Registry, file: Path, tmp_path: Path
) -> None:
    reg.push(file)
    view = tmp_path / "view"
    view.mkdir()
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", reg.location, str(view)], capture_output=True, text=True
    )
    remounted = subprocess.run(
        ["mount", "-o", "remount,bind,ro", str(view)], capture_output=True, text=True
    )
    if mounted.returncode or remounted.returncode:
        pytest.skip(f"can't mount here: {mounted.stderr}{remounted.stderr}")
    try:
        listed = ckreg("-r", view, "list", "--json")
        assert json.loads(listed.stdout)["checkpoints"][0]["ref"] == "resnet50@v1"
        done = ckreg("-r", view, "pull", "resnet50", "-o", tmp_path / "out.pt")
        assert done.returncode == 0, done.stderr
        assert Registry.open(view).load("resnet50").state_dict is not None
        refused(ckreg("-r", view, "push", file, "--epoch", "13"), 13, "read-only")
        refused(ckreg("-r", view, "tag", "resnet50", "good"), 13, "read-only")
        with pytest.raises(Exception, match="read-only"):
            Registry.open(view).run("net")
    finally:
        subprocess.run(["umount", str(view)], check=True)


def test_a_registry_path_that_is_a_file_is_a_conflict(tmp_path: Path) -> None:
    path = tmp_path / "reg"
    path.write_text("x")
    refused(ckreg("-r", path, "list"), 5, "is a file")
    refused(ckreg("-r", path, "init"), 5, "is a file")
    with pytest.raises(ConflictError, match="is a file"):
        Registry.create(path)
    assert path.read_text() == "x"


def test_a_folder_of_other_things_is_not_made_a_registry(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConflictError, match=r"thesis\.tex"):
        Registry.create(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_named_registry_that_is_not_there_is_never_made_by_a_push(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(ckreg("-r", tmp_path / "typo", "push", file), 3, "typo", "init")
    monkeypatch.setenv("CKREG_REGISTRY", str(tmp_path / "typo"))
    refused(ckreg("push", file), 3, "typo", "CKREG_REGISTRY")
    assert not (tmp_path / "typo").exists()


def test_a_refused_push_does_not_even_make_the_default_registry(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    refused(ckreg("push", tmp_path / "x.pt", "--model", "net", cwd=tmp_path), 6, "empty")
    assert not (Path(os.environ["HOME"]) / ".ckreg").exists()


def test_errors_are_one_json_object_on_stderr_when_asked(reg: Registry) -> None:
    done = ckreg("-r", reg.location, "show", "nothing", "--json")
    error = json.loads(done.stderr)
    assert (done.returncode, error["exit_code"], error["type"]) == (3, 3, "NotFoundError")
    assert {"message", "hint"} <= set(error)
