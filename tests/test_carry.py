"""A file carries its own record: pushed elsewhere, what was known is known again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import blobs_at, records_at
from drafts import by_hand
from nets import WRAPS, equal, seeded

from registry import CkregWarning, ConflictError, Registry


def test_a_file_carried_into_another_registry_brings_its_record(
    reg: Registry, tmp_path: Path
) -> None:
    net = WRAPS["DP(compile)"](seeded(1))
    optimizer = torch.optim.Adam(net.parameters())
    run = reg.run("net", dataset="digits", name="try", config={"lr": 0.1}, batch_size=8)
    first = run.save(net, epoch=2, acc=0.5)
    saved = run.save(
        net, epoch=3, step=9, acc=0.75, metrics={"val/loss": 0.5}, optimizer=optimizer, note="mine"
    )
    carried = reg.pull(saved, tmp_path / "carried.pt")

    with Registry.create(tmp_path / "laptop") as laptop:
        checkpoint = laptop.push(carried)

        for fact in (
            "model", "dataset", "run", "epoch", "step", "metrics", "config", "batch_size",
            "key_style", "file_keys", "weights", "topology", "container", "signature", "tensors",
            "parameters", "digest", "size_bytes", "optimizers", "git", "command", "provenance",
        ):  # fmt: skip
            assert getattr(checkpoint, fact) == getattr(saved, fact), fact
        assert str(checkpoint.key_style) == "module._orig_mod."
        assert checkpoint.provenance.key_style == checkpoint.provenance.topology == "recorded"
        assert checkpoint.topology.strategy == "dp"
        assert checkpoint.parent == first.id
        assert (checkpoint.version, checkpoint.origin, checkpoint.note) == (1, "push", None)
        assert checkpoint.id != saved.id
        into = seeded(2)
        again = torch.optim.Adam(into.parameters())
        laptop.load(checkpoint, into=into, optimizer=again)
        assert equal(into, net)


def test_what_the_caller_says_overrides_the_record(reg: Registry, tmp_path: Path) -> None:
    carried = reg.pull(reg.save(seeded(1), model="net", epoch=1, acc=0.5), tmp_path / "c.pt")
    with Registry.create(tmp_path / "other") as other:
        checkpoint = other.push(carried, model="mine", dataset="d", epoch=7, acc=0.25)
    assert (checkpoint.model, checkpoint.dataset, checkpoint.epoch) == ("mine", "d", 7)
    assert checkpoint.acc == 0.25


def test_a_file_with_a_malformed_record_is_taken_as_a_foreign_one(
    reg: Registry, tmp_path: Path
) -> None:
    torch.save(
        {
            "model": "net",
            "state_dict": seeded(1).state_dict(),
            "ckreg": {"format": 1, "key_style": 7, "topology": []},
        },
        tmp_path / "odd.pt",
    )
    with pytest.warns(CkregWarning, match="malformed"):
        checkpoint = reg.push(tmp_path / "odd.pt")
    assert checkpoint.provenance.key_style == "inferred"
    reg.load(checkpoint, into=(into := seeded(2)))
    assert equal(into, seeded(1))


def test_a_repeated_push_is_the_live_twin_with_tags_added(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": "net", "state_dict": seeded(1).state_dict()}, path)
    first = reg.push(path, tags=["a"])
    again = reg.push(path.rename(tmp_path / "renamed.pt"), tags=["b"], aliases=["prod"])

    assert again.id == first.id
    assert (again.tags, again.aliases) == (("a", "b"), ("prod",))
    assert len(list(blobs_at(reg).glob("blobs/*/*"))) == 2  # the file and its index

    other = reg.push(tmp_path / "renamed.pt", epoch=5)
    assert other.version == 2
    assert other.digest == first.digest
    assert len(list(blobs_at(reg).glob("blobs/*/*"))) == 2  # the same bytes share the blob
    with by_hand(records_at(reg)) as db:
        indexed = db.execute("SELECT count(*) FROM files WHERE index_digest IS NOT NULL").fetchone()
    assert indexed == (2,)  # and its index, so that a partial load of either is verified in part


def test_a_removed_twin_gives_a_new_version_and_restore_beside_it_is_a_conflict(
    reg: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": "net", "state_dict": seeded(1).state_dict()}, path)
    first = reg.push(path)
    reg.remove(first)
    second = reg.push(path)
    assert (first.version, second.version) == (1, 2)
    with pytest.raises(ConflictError):
        reg.restore(first.id)
    reg.remove(second)
    assert reg.restore(first.id).removed_at is None


def test_move_unlinks_the_source_once_committed(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(seeded(1).state_dict(), path)
    reg.push(path, model="net", move=True)
    assert not path.exists()
    assert reg.load("net").state_dict is not None


def test_keys_stated_of_what_was_pushed_without_are_a_conflict_that_says_what_to_do(
    reg: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"module.w": torch.zeros(2)}, path)
    first = reg.push(path, model="net")
    assert first.provenance.key_style == "inferred"

    with pytest.raises(ConflictError, match="net@v1") as caught:
        reg.push(path, model="net", keys="module.")
    assert caught.value.hint == "ckreg rm net@v1 --yes, then push it again"
    assert reg.latest("net") == first

    reg.remove(first)
    assert reg.push(path, model="net", keys="module.").provenance.key_style == "recorded"


def test_keys_and_topology_stated_by_hand_are_recorded_as_stated(
    reg: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(torch.nn.DataParallel(seeded(1)).state_dict(), path)
    checkpoint = reg.push(path, model="net", keys="module.", strategy="ddp", world_size=4)
    assert (str(checkpoint.key_style), str(checkpoint.file_keys)) == ("module.", "module.")
    assert checkpoint.provenance.key_style == checkpoint.provenance.topology == "recorded"
    assert (checkpoint.topology.strategy, checkpoint.topology.world_size) == ("ddp", 4)
    saved = reg.save(seeded(1), model="net")
    assert saved.signature == checkpoint.signature
    assert {c.id for c in reg.fits(torch.nn.DataParallel(seeded(3)))} == {checkpoint.id, saved.id}


def test_equal_state_gives_equal_bytes_in_any_process() -> None:
    code = """
import hashlib, io, torch
from nets import seeded
from registry.tensors import observe, writing
net = seeded(1)
out = io.BytesIO()
facts = dict(epoch=1, model="net", dataset=None, acc=0.5, record={"command": "train"})
live = observe.observe(net)
writing.write(writing.contents(live, **facts), out)
print(hashlib.sha256(out.getvalue()).hexdigest())
"""
    here = Path(__file__).parent
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


def test_a_pushed_file_is_recorded_by_what_it_says(reg: Registry, tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(
        {
            "epoch": 12, "model": "resnet50", "dataset": "cifar10",
            "state_dict": torch.nn.DataParallel(seeded(1)).state_dict(), "acc": 0.93,
            "optimizer": torch.optim.SGD(seeded(1).parameters(), lr=0.1).state_dict(),
            "best_acc1": torch.tensor(95.5),
        },
        path,
    )  # fmt: skip
    checkpoint = reg.push(path)
    assert (checkpoint.model, checkpoint.dataset, checkpoint.epoch) == ("resnet50", "cifar10", 12)
    assert checkpoint.metrics.to_dict() == {"acc": 0.93, "best_acc1": 95.5}
    assert str(checkpoint.key_style) == "module."
    assert (checkpoint.provenance.key_style, checkpoint.provenance.topology) == (
        "inferred",
        "unknown",
    )


def test_weights_are_pulled_in_the_format_that_the_file_is_named_for(
    reg: Registry, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    net = seeded(1)
    saved = reg.save(net, model="net", epoch=1)
    there = reg.pull(saved, tmp_path / "w.safetensors", only="weights")
    assert {*load_file(there), "tied.weight"} == {*net.state_dict()}  # a tied one is there once
    pushed = reg.push(there, model="other")
    assert pushed.container == "safetensors"
    back = reg.pull(pushed, tmp_path / "back.pt", only="weights")
    state = torch.load(back, weights_only=True)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert load_file(reg.pull(pushed, tmp_path, only="weights")).keys() <= state.keys()
    with pytest.raises(ValueError, match="'meta' has no values"):
        reg.pull(pushed, tmp_path / "meta.pt", device="meta")
