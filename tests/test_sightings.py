"""Sightings: a second import looks into no file that it knows, and never guesses which it knows."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from registry import Registry, importing, sightings
from registry.importing import ImportResult


def file(path: Path, value: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": "net", "state_dict": {"w": torch.full((3,), value)}}, path)
    return path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tree that is older than the margin, with a folder checkpoint in it."""
    root = tmp_path / "runs"
    file(root / "a" / "epoch=1.pt", 1.0)
    file(root / "a" / "epoch=2.pt", 2.0)
    (root / "notes.txt").write_text("no checkpoint")
    from safetensors.torch import save_file

    shards = root / "sharded"
    shards.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.full((2,), float(number))}, shards / name)
    (shards / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w0": names[0], "w1": names[1]}})
    )
    monkeypatch.setattr(sightings, "MARGIN_NS", 20_000_000)
    settle()
    return root


def settle() -> None:
    time.sleep(0.06)


def looked_into(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that fills with the candidates which an import looks into."""
    taken: list[str] = []
    take = importing._Job.take

    def watched(self: importing._Job, candidate: importing.Candidate, progress: None) -> object:
        taken.append(candidate.name)
        return take(self, candidate, progress)

    monkeypatch.setattr(importing._Job, "take", watched)
    return taken


def memory(reg: Registry) -> list[Path]:
    return sorted(Path(reg.location).glob("imports/*"))


def shown(done: ImportResult) -> list[tuple[str, str, str | None]]:
    return [(f.path, f.outcome, f.checkpoint and f.checkpoint.ref) for f in done.files]


def test_a_known_tree_is_looked_into_no_more_and_told_as_before(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reg.import_(tree)
    whole = [{**f.to_dict(), "outcome": "present"} for f in first.files]
    assert len(first.added) == 3
    taken = looked_into(monkeypatch)
    for dry_run in (False, True):
        again = reg.import_(tree, dry_run=dry_run)
        assert [f.to_dict() for f in again.files] == whole
        assert again.passed_over == first.passed_over == 1
    assert taken == []


def test_a_change_amid_a_file_of_the_same_size_and_time_is_looked_into(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree / "a" / "large.pt"
    torch.save({"model": "net", "state_dict": {"w": torch.zeros(100_000)}}, path)
    settle()
    reg.import_(tree)
    before = path.stat()
    with path.open("r+b") as opened:
        opened.seek(before.st_size // 2)
        opened.write(b"\1")  # between head and tail, where no probe sees it
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    taken = looked_into(monkeypatch)
    assert [f.path for f in reg.import_(tree).added] == ["a/large.pt"]
    assert taken == ["a/large.pt"]


def test_a_file_whose_stamp_lies_is_told_by_its_probe(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.import_(tree)
    (kept,) = memory(reg)
    text = kept.read_text().partition("\n")[2]
    plain = json.loads(text)
    plain["files"][0][2] = "blake3:" + "0" * 64
    text = sightings.canonical_json(plain)
    kept.write_text(f"{sightings.digest_of(text)}\n{text}")
    taken = looked_into(monkeypatch)
    assert reg.import_(tree).added == ()
    assert plain["files"][0][0].rpartition("/")[0] in (taken[0], taken[0].rpartition("/")[0])
    assert len(taken) == 1


def test_a_file_that_changed_a_moment_ago_is_not_known_again(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sightings, "MARGIN_NS", 3_600_000_000_000)
    reg.import_(tree)
    taken = looked_into(monkeypatch)
    assert {o for _, o, _ in shown(reg.import_(tree))} == {"present"}
    assert {"a/epoch=1.pt", "a/epoch=2.pt", "sharded", "notes.txt"} <= set(taken)


def test_what_was_removed_since_comes_back(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    reg.remove("net@v1")
    assert [f.path for f in reg.import_(tree).added] == ["a/epoch=1.pt"]


def test_what_is_asked_for_another_model_is_another_checkpoint(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    assert {f.checkpoint and f.checkpoint.model for f in reg.import_(tree, model="m").added} == {
        "m"
    }
    assert {ref and ref[:2] for _, _, ref in shown(reg.import_(tree, model="m"))} == {"m@"}


def test_tags_reach_what_was_known(reg: Registry, tree: Path) -> None:
    reg.import_(tree)
    done = reg.import_(tree, tags=["old"])
    assert all(f.checkpoint and f.checkpoint.tags == ("old",) for f in done.present)
    assert len(list(reg.find(tags=["old"]))) == 3


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped", "empty"])
def test_a_lost_or_damaged_memory_loses_nothing(reg: Registry, tree: Path, harm: str) -> None:
    first = reg.import_(tree)
    (kept,) = memory(reg)
    data = kept.read_bytes()
    if harm == "gone":
        kept.unlink()
    elif harm == "cut":
        kept.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        verdicts = json.loads(data.partition(b"\n")[2])["verdicts"]
        digest = next(v[1][0] for v in verdicts if len(v[1]) == 1).encode()
        damaged = data.replace(b'["' + digest + b'"]', b"[]")  # a checkpoint is none any more
        assert damaged != data
        kept.write_bytes(damaged)
    else:
        kept.write_bytes(b"")
    again = reg.import_(tree)
    assert shown(again) == [(p, "present", ref) for p, _, ref in shown(first)]
    assert memory(reg) == [kept]


def test_a_shard_that_changes_or_comes_has_its_folder_looked_into(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.import_(tree)
    (tree / "sharded" / "tokenizer.json").write_text("{}")
    taken = looked_into(monkeypatch)
    done = reg.import_(tree)
    assert taken == ["sharded"]
    assert [f.path for f in done.added] == ["sharded"]
    (tree / "sharded" / "link").symlink_to("tokenizer.json")
    taken.clear()
    reg.import_(tree)
    assert taken == ["sharded"]


def test_a_new_file_is_the_only_one_looked_into(
    reg: Registry, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.import_(tree)
    file(tree / "a" / "epoch=3.pt", 3.0)
    settle()
    taken = looked_into(monkeypatch)
    assert [f.path for f in reg.import_(tree).added] == ["a/epoch=3.pt"]
    reg.import_(tree)
    assert taken == ["a/epoch=3.pt"]


def test_the_dry_run_remembers_nothing(reg: Registry, tree: Path) -> None:
    reg.import_(tree, dry_run=True)
    assert memory(reg) == []


def test_a_memory_that_cant_be_written_stops_nothing(reg: Registry, tree: Path) -> None:
    (Path(reg.location) / "imports").write_text("in the way")
    assert len(reg.import_(tree).added) == 3
    assert len(reg.import_(tree).present) == 3
