"""Import: a tree of files becomes checkpoints, once, with what their names say marked so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import blobs_at
from conftest import left_behind
from torch import nn

from registry import NotFoundError, NotWritableError, Registry
from registry.cli import run
from registry.filenames import suggested
from registry.importing import ImportResult

made = 0


def file(path: Path, **facts: object) -> Path:
    """Write a checkpoint whose bytes are like no other's."""
    global made
    made += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.full((3,), float(made))}, **facts}, path)
    return path


def outcomes(done: ImportResult) -> dict[str, str]:
    return {f.path: f.outcome for f in done.files}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder as trainings leave it."""
    root = tmp_path / "runs"
    file(root / "resnet50" / "epoch=2-val_acc=0.93.ckpt")
    file(root / "resnet50" / "epoch=10-val_acc=0.91.ckpt")
    file(root / "vgg" / "model_epoch_7.pth")
    file(root / "named.pt", model="stated", epoch=3, acc=0.5, dataset="cifar10")
    (root / "resnet50" / "config.json").write_text("{}")
    (root / "README.md").write_text("# runs")
    (root / "vgg" / "__init__.py").touch()
    torch.save(
        torch.optim.Adam([torch.zeros(1, requires_grad=True)]).state_dict(),
        root / "vgg" / "optimizer.pt",
    )
    return root


# --- what goes in ---------------------------------------------------------------------------------


def test_checkpoints_go_in_by_content_and_other_files_are_passed_over(
    reg: Registry, tree: Path
) -> None:
    (tree / "named.pt").rename(tree / "no_suffix_at_all")

    done = reg.import_(tree)

    assert {f.path for f in done.added} == {
        "resnet50/epoch=2-val_acc=0.93.ckpt", "resnet50/epoch=10-val_acc=0.91.ckpt",
        "vgg/model_epoch_7.pth", "no_suffix_at_all",
    }  # fmt: skip
    assert done.failed == ()
    assert done.passed_over == 4


def test_versions_follow_the_epochs_of_the_names(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    assert [(c.version, c.epoch) for c in reg.find("resnet50", sort="version")] == [(1, 2), (2, 10)]


def test_facts_of_the_name_are_recorded_and_marked(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    ckpt = reg.get("resnet50@v1")
    assert (ckpt.model, ckpt.epoch, dict(ckpt.metrics)) == ("resnet50", 2, {"val_acc": 0.93})
    assert ckpt.provenance.from_name == ("model", "epoch", "metrics.val_acc")
    assert ckpt.to_dict()["provenance"]["from_name"] == ["model", "epoch", "metrics.val_acc"]
    record = json.loads(next(blobs_at(reg).glob(f"records/*/{ckpt.id}.json")).read_text())
    assert record["checkpoint"]["provenance"]["from_name"] == ["model", "epoch", "metrics.val_acc"]


def test_the_page_of_a_checkpoint_says_what_its_name_said(
    reg: Registry, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reg.import_(tree)
    for ref, said in (("resnet50@v1", True), ("stated", False)):
        assert run(["show", ref, "-r", reg.location], terminal=True) == 0
        assert ("from its name   model, epoch, metrics.val_acc" in capsys.readouterr().out) is said


def test_what_a_file_says_itself_is_kept_and_is_no_inference(reg: Registry, tmp_path: Path) -> None:
    file(tmp_path / "t" / "epoch=9-step=80-acc=0.1.pt", model="m", epoch=3, acc=0.5)
    (added,) = reg.import_(tmp_path / "t").added
    ckpt = added.checkpoint
    assert ckpt is not None
    assert (ckpt.model, ckpt.epoch, ckpt.step, ckpt.acc) == ("m", 3, None, 0.5)
    assert ckpt.provenance.from_name == ()


def test_what_the_caller_says_comes_first(reg: Registry, tree: Path) -> None:
    done = reg.import_(tree, model="mine", dataset="d", run="r", tags=["old"])
    found = [f.checkpoint for f in done.added]
    assert {(c.model, c.dataset, c.run and c.run.name, c.tags) for c in found if c} == {
        ("mine", "d", "r", ("old",))
    }
    assert all("model" not in f.from_name for f in done.added)


def test_a_pushed_file_has_nothing_from_its_name(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.push(file(tmp_path / "epoch=9.pt"), model="m")
    assert (ckpt.epoch, ckpt.provenance.from_name) == (None, ())


def test_a_file_that_ckreg_saved_brings_its_record(reg: Registry, tmp_path: Path) -> None:
    other = Registry.create(tmp_path / "other")
    other.save(nn.DataParallel(nn.Linear(2, 2)), model="net", epoch=4, acc=0.5)
    (tmp_path / "t").mkdir()
    other.pull("net", tmp_path / "t" / "epoch=9.pt")
    (added,) = reg.import_(tmp_path / "t").added
    assert added.checkpoint is not None
    assert (added.checkpoint.epoch, added.checkpoint.acc) == (4, 0.5)
    assert str(added.checkpoint.key_style) == "module."
    assert added.from_name == ()


# --- a second run ---------------------------------------------------------------------------------


def test_a_second_run_adds_nothing_and_copies_nothing(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reg.import_(tree)
    before = left_behind(reg), [c.to_dict() for c in reg.find()]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a byte was copied")

    monkeypatch.setattr("registry.blobs.local.LocalStore.stage_file", never)
    again = reg.import_(tree)

    assert set(outcomes(again).values()) == {"present"}
    assert [f.checkpoint for f in again.files] == [f.checkpoint for f in first.files]
    assert (left_behind(reg), [c.to_dict() for c in reg.find()]) == before


def test_bytes_that_were_pushed_before_are_present(reg: Registry, tree: Path) -> None:
    ckpt = reg.push(tree / "vgg" / "model_epoch_7.pth", model="other", epoch=7)
    done = reg.import_(tree)
    (there,) = done.present
    assert there.checkpoint == ckpt


def test_a_saved_checkpoint_that_was_pulled_is_present(reg: Registry, tmp_path: Path) -> None:
    ckpt = reg.save(nn.Linear(2, 2), model="net", epoch=4, acc=0.5)
    (tmp_path / "t").mkdir()
    reg.pull(ckpt, tmp_path / "t" / "best.pt")
    (dry,) = reg.import_(tmp_path / "t", dry_run=True).files
    (there,) = reg.import_(tmp_path / "t").files
    assert (dry.outcome, there.outcome) == ("present", "present")
    assert there.checkpoint == ckpt
    assert reg.count("net") == 1


def test_another_model_or_dataset_is_another_checkpoint_of_the_same_bytes(
    reg: Registry, tree: Path
) -> None:
    reg.import_(tree)
    blobs = left_behind(reg)
    again = reg.import_(tree, model="mine")
    assert len(again.added) == 4
    assert left_behind(reg) == blobs
    assert len(reg.import_(tree, model="mine").added) == 0


def test_a_removed_checkpoint_comes_back_as_a_push_does(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    reg.remove("vgg@v1")
    assert [f.path for f in reg.import_(tree).added] == ["vgg/model_epoch_7.pth"]


def test_a_copy_in_the_tree_is_one_checkpoint_and_brings_its_tag(
    reg: Registry, tmp_path: Path
) -> None:
    root = tmp_path / "net"
    data = file(root / "epoch=5.ckpt").read_bytes()
    (root / "best.ckpt").write_bytes(data)

    done = reg.import_(root)

    assert outcomes(done) == {"epoch=5.ckpt": "added", "best.ckpt": "present"}
    ckpt = reg.get("net")
    assert (ckpt.epoch, ckpt.tags) == (5, ("named-best",))
    reg.untag(ckpt, "named-best")
    reg.import_(root)
    assert reg.get("net").tags == ()  # what was taken off stays off


# --- what goes wrong ------------------------------------------------------------------------------


def test_one_bad_file_stops_no_other_and_is_named_with_its_reason(
    reg: Registry, tree: Path
) -> None:
    data = (tree / "named.pt").read_bytes()
    (tree / "cut.pt").write_bytes(data[: len(data) // 2])
    (tree / "empty.ckpt").touch()
    (tree / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tree / "page.pth.tar").write_text("<!doctype html><html>log in</html>")

    done = reg.import_(tree)

    assert len(done.added) == 4
    reasons = {f.path: (f.reason or "", f.hint or "") for f in done.failed}
    assert set(reasons) == {"cut.pt", "empty.ckpt", "pointer.safetensors", "page.pth.tar"}
    assert "cut short" in reasons["cut.pt"][0]
    assert "0 bytes" in reasons["empty.ckpt"][0]
    assert "git lfs pull" in reasons["pointer.safetensors"][1]
    assert all(r and not r.startswith("'") for r, _ in reasons.values())


def test_two_sets_of_weights_fail_and_are_named(reg: Registry, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    w = {"w": torch.ones(2)}
    torch.save({"generator": w, "discriminator": dict(w, v=torch.ones(1))}, tmp_path / "t/gan.pt")
    (failed,) = reg.import_(tmp_path / "t").failed
    assert "2 sets of weights" in (failed.reason or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_fails_and_the_rest_goes_in(reg: Registry, tree: Path) -> None:
    (tree / "vgg").chmod(0)
    (tree / "named.pt").chmod(0)
    try:
        done = reg.import_(tree)
    finally:
        (tree / "vgg").chmod(0o755)
    assert len(done.added) == 2
    assert {f.path for f in done.failed} == {"vgg", "named.pt"}


def test_a_hostile_pickle_runs_nothing(reg: Registry, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {canary}",)

    (tmp_path / "t").mkdir()
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Evil()}, tmp_path / "t" / "evil.pt")
    (added,) = reg.import_(tmp_path / "t").added
    assert added.checkpoint is not None
    assert added.checkpoint.unsafe_globals
    assert not canary.exists()


def test_a_registry_that_takes_nothing_ends_the_import(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shut(*_: object) -> None:
        raise NotWritableError("read-only")

    monkeypatch.setattr("registry.blobs.local.LocalStore.check_writable", shut)
    with pytest.raises(NotWritableError):
        reg.import_(tree)


@pytest.mark.parametrize("what", ["missing", "file"])
def test_what_is_no_folder_is_refused(reg: Registry, tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.pt"
    if what == "file":
        file(path)
    with pytest.raises(NotFoundError, match="no folder"):
        reg.import_(path)


# --- the tree -------------------------------------------------------------------------------------


def test_symlinks_are_not_followed_out_of_the_tree_nor_round_in_circles(
    reg: Registry, tree: Path, tmp_path: Path
) -> None:
    outside = file(tmp_path / "secret" / "other.pt")
    (tree / "link.pt").symlink_to(outside)
    (tree / "linked").symlink_to(outside.parent)
    (tree / "round").symlink_to(tree)
    (tree / "dangling.pt").symlink_to(tmp_path / "nowhere")
    done = reg.import_(tree)
    assert len(done.added) == 4
    assert done.failed == ()


def test_a_registry_in_the_tree_is_not_looked_into(tree: Path) -> None:
    with Registry.create(tree / ".ckreg") as inside:
        assert len(inside.import_(tree).added) == 4
        again = inside.import_(tree)
        assert not again.added
        assert len(again.present) == 4


def test_a_pipe_in_the_tree_stops_nothing(reg: Registry, tree: Path) -> None:
    os.mkfifo(tree / "pipe.pt")
    assert len(reg.import_(tree).added) == 4


# --- the dry run ----------------------------------------------------------------------------------


def test_where_nothing_is_taken_in_no_registry_is_begun(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "net.pt").write_bytes(bytes(100))
    for folder, code in ((tmp_path / "bad", 1), (tmp_path, 1)):
        assert run(["import", str(folder)]) == code
        assert not (Path.home() / ".ckreg").exists()
    assert run(["list"]) == 0
    torch.save({"w": torch.ones(1)}, tmp_path / "good.pt")
    assert run(["import", str(tmp_path), "--model", "net"]) == 1  # the bad one is there still
    assert Registry.open().get("net@v1")


def test_the_dry_run_says_what_the_run_does_and_writes_nothing(reg: Registry, tree: Path) -> None:
    (tree / "bad.pt").write_bytes(b"PK\3\4 and no more")
    (tree / "vgg" / "best.pth").write_bytes((tree / "vgg" / "model_epoch_7.pth").read_bytes())
    before = left_behind(reg)

    dry = reg.import_(tree, dry_run=True)

    assert (left_behind(reg), list(reg.find())) == (before, [])
    done = reg.import_(tree)
    assert outcomes(dry) == outcomes(done)
    assert dry.passed_over == done.passed_over
    for would, did in zip(dry.files, done.files, strict=True):
        assert would.checkpoint is None
        if would.outcome == "added":
            assert would.known is not None
            assert did.checkpoint is not None
            assert (would.known.model, would.known.epoch) == (
                did.checkpoint.model, did.checkpoint.epoch,
            )  # fmt: skip
            assert would.from_name == did.from_name
    assert next(f.copy_of for f in dry.files if f.path == "vgg/best.pth") == "vgg/model_epoch_7.pth"


def test_the_dry_run_makes_no_registry(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with Registry.open() as reg:
        assert len(reg.import_(tree, dry_run=True).added) == 4
        assert not reg.exists


# --- the command ----------------------------------------------------------------------------------


def test_the_table_marks_what_the_name_says_and_failures_come_last(
    reg: Registry, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", str(tree), "-r", reg.location]
    assert run([*words, "--dry-run"], terminal=True) == 0
    caught = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in caught.out.splitlines()}
    assert next(iter(rows)) == "FILE"
    assert rows["vgg/model_epoch_7.pth"][1:5] == ["added", "vgg?", "-", "7?"]
    assert rows["named.pt"][1:5] == ["added", "stated", "cifar10", "3"]
    assert "4 would be added" in caught.err
    assert list(reg.find()) == []

    (tree / "empty.pt").touch()
    assert run(words, terminal=True) == 1
    caught = capsys.readouterr()
    assert "failed: empty.pt: is empty (0 bytes)" in caught.err
    assert "4 added, 0 there already, 1 failed; 4 other files passed over" in caught.err
    assert f"registry: {reg.location}" in caught.err

    (tree / "empty.pt").unlink()
    assert run([*words, "-q"]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(c.ref for c in reg.find())


def test_the_json_has_every_file(
    reg: Registry, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "empty.pt").touch()
    assert run(["import", str(tree), "--json", "-r", reg.location]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["added"], document["failed"], document["passed_over"]) == (4, 1, 4)
    by_path = {f["path"]: f for f in document["files"]}
    assert by_path["vgg/model_epoch_7.pth"]["ref"] == "vgg@v1"
    assert by_path["empty.pt"]["reason"]


def test_progress_goes_to_the_bytes_of_the_tree(reg: Registry, tree: Path) -> None:
    seen: list[tuple[int, int]] = []
    reg.import_(tree, progress=lambda done, total: seen.append((done, total)))
    total = sum(p.stat().st_size for p in tree.rglob("*") if p.is_file())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- names, pure ----------------------------------------------------------------------------------

NAMES: dict[str, tuple[str | None, int | None, int | None, dict[str, float], tuple[str, ...]]] = {
    "d/epoch=12-val_acc=0.93.ckpt": ("d", 12, None, {"val_acc": 0.93}, ()),
    "d/epoch=1-step=20-v1.ckpt": ("d", 1, 20, {}, ()),
    "d/resnet_epoch=3-val_loss=-0.2.ckpt": ("resnet", 3, None, {"val_loss": -0.2}, ()),
    "d/model_epoch_7.pth": ("d", 7, None, {}, ()),
    "runs/bert/checkpoint-500/": ("bert", None, 500, {}, ()),
    "d/step_1000.pt": ("d", None, 1000, {}, ()),
    "d/iter_5000.pth": ("d", None, 5000, {}, ()),
    "d/global_step1000/": ("d", None, 1000, {}, ()),
    "d/epoch_3/model.safetensors": ("d", 3, None, {}, ()),
    "d/best.pt": ("d", None, None, {}, ("named-best",)),
    "d/resnet50_best.pth.tar": ("resnet50", None, None, {}, ("named-best",)),
    "d/last.ckpt": ("d", None, None, {}, ("named-last",)),
    "d/vgg16-397923af.pth": ("vgg16-397923af", None, None, {}, ()),
    "d/model_10.pth": ("d", None, None, {}, ()),  # ten of what?
    "d/checkpoint-10.pth": ("d", None, None, {}, ()),  # only a folder so named is the Trainer's
    "d/yolo-loss-0.12-epoch10.pt": ("yolo", 10, None, {"loss": 0.12}, ()),
    "d/unet_val_loss_0.1234_ep12.pt": ("unet", 12, None, {"val_loss": 0.1234}, ()),
    "d/epoch=99999999999999999999.pt": ("d", None, None, {}, ()),
    "d/bert base (v2).pt": ("bert-base-v2", None, None, {}, ()),
    "a/version_0/checkpoints/epoch=1.ckpt": ("a", 1, None, {}, ()),
    "model/model.pt": ("model", None, None, {}, ()),
    "d/lr=0.1.pt": ("lr-0.1", None, None, {}, ()),  # no metric
    "d/steps.pt": ("d", None, None, {}, ()),
    "d/模型.pt": ("模型", None, None, {}, ()),
    "d/.hidden.pt": ("hidden", None, None, {}, ()),
    "!!/!!.pt": (None, None, None, {}, ()),
}


@pytest.mark.parametrize("path", NAMES)
def test_a_customary_name_says_what_its_words_say_and_no_more(path: str) -> None:
    said = suggested(path.rstrip("/").split("/"), folder=path.endswith("/"))
    assert (said.model, said.epoch, said.step, dict(said.metrics), said.tags) == NAMES[path]
