"""The laws at the core, on every backend: records in SQLite or on PostgreSQL, bytes in a folder or
in a bucket.

Push, save, load, pull, remove, restore, gc, verify, repair and rebuild; what the other files of the
suite hold of a catalog is the same wherever the bytes are.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from nets import equal, seeded
from stores import Held, bring_only_what_is_asked_for, hand_on

from registry import (
    Best,
    CkregWarning,
    ConflictError,
    DamagedError,
    Every,
    NotFoundError,
    Registry,
    RemoteError,
    Verification,
)
from registry.blobs import fetched
from registry.catalog import Catalog


@pytest.fixture
def hand(reg: Registry) -> Held:
    """Return a hand in the back door of the registry's store."""
    return hand_on(reg)


@pytest.fixture(autouse=True)
def _nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SMALL", "_NEAR", "_BUDGET"):  # put back what the next line changes
        monkeypatch.setattr(fetched, name, getattr(fetched, name))
    bring_only_what_is_asked_for()


def file_of(folder: Path, seed: int) -> Path:
    path = folder / f"w{seed}.pt"
    torch.save({"model": "net", "epoch": seed, "state_dict": seeded(seed).state_dict()}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return file_of(tmp_path, 1)


def kinds(found: Verification) -> list[str]:
    return sorted(one.kind for one in found.findings)


def again(reg: Registry) -> Registry:
    """Return the registry as another process would find it."""
    return Registry.open(reg.location)


# --- in and out -----------------------------------------------------------------------------------


def test_what_was_pushed_is_found_and_pulled_by_another_process(
    reg: Registry, hand: Held, file: Path, tmp_path: Path
) -> None:
    pushed = reg.push(file, acc=0.9, tags=["good"], aliases=["prod"])
    with again(reg) as other:
        assert other.get("net@prod") == pushed == other.best("net")
        assert other.pull("net", tmp_path / "out.pt").read_bytes() == file.read_bytes()
    assert len(hand.keys("blobs")) == 2  # the file and its index
    assert len(hand.keys("records")) == 1
    assert hand.staged() == []


def test_the_same_file_is_one_checkpoint_and_the_same_bytes_are_one_blob(
    reg: Registry, hand: Held, file: Path
) -> None:
    first = reg.push(file)
    assert reg.push(file).id == first.id
    other = reg.push(file, dataset="other")
    assert (other.version, other.digest) == (2, first.digest)
    assert len(hand.keys("blobs")) == 2
    assert len(hand.keys("records")) == 2


def test_a_net_and_its_optimizer_come_back_bit_for_bit(reg: Registry) -> None:
    net = seeded(1)
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    net(torch.ones(4, 6)).sum().backward()
    optimizer.step()
    scheduler.step()
    reg.save(
        net, model="net", epoch=1, optimizer=optimizer, scheduler=scheduler, rng=True,
        extra={"seen": torch.arange(9)},
    )  # fmt: skip
    drawn = torch.rand(3)
    into = seeded(2)
    other = torch.optim.Adam(into.parameters())
    its = torch.optim.lr_scheduler.StepLR(other, 3)
    with again(reg) as opened:
        assert opened.plan("net", into=into).ref == "net@v1"
        result = opened.load("net", into=into, optimizer=other, scheduler=its, rng=True)
    assert torch.equal(torch.rand(3), drawn)
    assert equal(net, into)
    assert its.state_dict() == scheduler.state_dict()
    assert torch.equal(result.extra["seen"], torch.arange(9))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_save_in_the_background_is_committed_with_what_the_net_was(reg: Registry) -> None:
    net = seeded(1)
    pending = reg.save(net, model="net", epoch=1, wait=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    saved = pending.result()
    reg.load(saved, into=(into := seeded(3)))
    assert equal(into, seeded(1))


def test_a_folder_is_pushed_and_pulled_whole(reg: Registry, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    net = seeded(1)
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": net.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    pushed = reg.push(tmp_path / "dcp", model="net")
    reg.load(pushed, into=(into := seeded(2)))
    assert equal(into, net)
    out = reg.pull(pushed, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "dcp").iterdir()
    }


def test_adapted_weights_are_written_of_them(reg: Registry, file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    reg.push(file)
    out = reg.pull("net", tmp_path / "w.safetensors", only="weights", format="safetensors")
    expected = seeded(1).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in load_file(out).items())


def test_two_checkpoints_differ_where_they_do(reg: Registry, tmp_path: Path) -> None:
    reg.push(file_of(tmp_path, 1))
    reg.push(file_of(tmp_path, 2))
    assert reg.diff("net@v1", "net@v1").equal_weights
    assert not reg.diff("net@v1", "net@v2").equal_weights


def test_pushes_at_once_get_versions_without_gap_or_duplicate(
    reg: Registry, hand: Held, tmp_path: Path
) -> None:
    files = [file_of(tmp_path, seed) for seed in range(8)]
    threads = [threading.Thread(target=lambda p=p: reg.push(p)) for p in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(c.version for c in reg.find("net")) == list(range(1, 9))
    assert not reg.gc(dry_run=True, grace=timedelta(0))
    assert reg.verify().findings == ()


def test_a_push_that_is_not_committed_leaves_nothing(
    reg: Registry, hand: Held, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: object, **__: object) -> None:
        raise RemoteError("the database is on fire")

    monkeypatch.setattr(Catalog, "add", add)
    with pytest.raises(RemoteError, match="on fire"):
        reg.push(file)
    assert hand.keys("blobs") == hand.keys("records") == hand.staged() == []


# --- away and back --------------------------------------------------------------------------------


def test_what_was_removed_is_restored_and_what_gc_took_is_not(
    reg: Registry, hand: Held, tmp_path: Path
) -> None:
    gone, kept = reg.push(file_of(tmp_path, 1)), reg.push(file_of(tmp_path, 2))
    reg.remove(gone)
    with pytest.raises(NotFoundError, match="was removed"):
        reg.get(gone.ref)
    assert reg.get(gone.ref, include_removed=True).removed_at is not None
    assert not reg.gc()  # within the grace
    reg.restore(gone)
    reg.load(gone, into=(into := seeded(3)))
    assert equal(into, seeded(1))
    reg.remove(gone)
    before = hand.keys("blobs")
    plan = reg.gc(dry_run=True, grace="0")
    assert hand.keys("blobs") == before
    assert reg.gc(plan=plan).done
    assert len(hand.keys("blobs")) == 2
    assert len(hand.keys("records")) == 2  # the facts stay
    with pytest.raises(NotFoundError, match="gc took them"):
        reg.restore(gone)
    reg.load(kept, into=into)
    assert equal(into, seeded(2))


def test_what_a_policy_lets_go_goes_and_a_job_goes_on_from_the_newest_whole(
    reg: Registry, hand: Held, tmp_path: Path
) -> None:
    made = [reg.push(file_of(tmp_path, seed), acc=seed / 10) for seed in (3, 1, 2, 4, 2)]
    assert len({c.id for c in made}) == 4  # the last is the third once more
    plan = reg.prune("net", Best(1) | Every(epochs=3), dry_run=True)
    assert [v.ref for v in plan.removed] == ["net@v3", "net@v2"]
    done = reg.prune("net", plan.policy, plan=plan)
    assert done.removed == plan.removed
    assert done.size_bytes == plan.size_bytes == reg.gc(grace="0").size_bytes
    assert len(hand.keys("blobs")) == 4
    assert reg.verify().findings == ()
    assert reg.resume_point("net") == made[3]
    _damage(reg, hand, "net@v4")
    with pytest.warns(CkregWarning, match="net@v4 is damaged, and passed over"):
        assert reg.resume_point("net") == made[0]


def test_gc_leaves_a_file_without_a_row_for_its_grace(
    reg: Registry, hand: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg._parts()[0].put_bytes(b"orphan")
    assert not reg.gc(grace="0")
    store = type(reg._parts()[0])
    real = store.clock
    monkeypatch.setattr(store, "clock", lambda self: real(self) + 3700)
    assert len(reg.gc(grace="0").orphans) == 1
    assert hand.keys("blobs") == []


def test_a_change_is_in_the_record_beside_the_bytes(reg: Registry, hand: Held, file: Path) -> None:
    pushed = reg.push(file)
    reg.tag(pushed, "good")
    reg.record(pushed, {"test/loss": 0.25})
    (key,) = hand.keys("records")
    text = hand.read(key).decode()
    assert '"good"' in text
    assert '"test/loss":0.25' in text
    assert reg.verify().findings == ()


# --- damage ---------------------------------------------------------------------------------------


def _damage(reg: Registry, hand: Held, name: str) -> bytes:
    """Flip a bit of a checkpoint's file in the store, and return what it was."""
    digest = reg.get(name).digest.removeprefix("blake3:")
    (key,) = [k for k in hand.keys("blobs") if digest[2:] in k]
    good = hand.read(key)
    hand.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    return good


def test_damage_is_found_set_aside_and_healed_by_a_push(
    reg: Registry, hand: Held, file: Path, tmp_path: Path
) -> None:
    reg.push(file)
    assert reg.verify().findings == ()
    _damage(reg, hand, "net")
    found = reg.verify()
    assert kinds(found) == ["damaged"]
    with pytest.raises(DamagedError):
        reg.pull("net", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    done = reg.repair(found)
    assert [one.kind for one, _ in done.done] == ["damaged"]
    assert len(hand.keys("quarantine")) == 1
    assert kinds(reg.verify()) == ["missing"]
    assert reg.push(file).ref == "net@v1"
    assert reg.verify().findings == ()


def test_a_missing_file_is_named_by_verify_and_by_a_load(
    reg: Registry, hand: Held, file: Path
) -> None:
    reg.push(file)
    for blob, index in [row[1:] for row in reg._parts()[1].blobs_of(reg.get("net").id)]:
        reg._parts()[0].drop(blob)
        assert index is not None
    assert kinds(reg.verify()) == ["missing"]
    with pytest.raises(NotFoundError, match="is gone"):
        reg.load("net", into=seeded(2))


def test_a_record_that_is_lost_or_wrong_is_written_anew_of_its_row(
    reg: Registry, hand: Held, tmp_path: Path
) -> None:
    reg.push(file_of(tmp_path, 1))
    reg.push(file_of(tmp_path, 2))
    first, second = hand.keys("records")
    good = hand.read(first)
    hand.put(first, good.replace(b'"epoch"', b'"epock"'))
    hand.remove(second)
    found = reg.verify()
    assert len(found.findings) == 2
    assert reg.repair(found).ok
    assert hand.read(first) == good
    assert reg.verify().findings == ()


def test_a_store_whose_marker_is_lost_or_anothers_loses_nothing(
    reg: Registry, hand: Held, file: Path
) -> None:
    reg.remove(reg.push(file))
    marker = hand.read("store.json")
    hand.put("store.json", b'{"format":1,"id":"' + b"0" * 32 + b'"}\n')
    with pytest.raises(ConflictError):
        reg.gc(grace="0")
    hand.put("store.json", b"")
    with pytest.raises(DamagedError):
        reg.gc(grace="0")
    assert len(hand.keys("blobs")) == 2
    hand.put("store.json", marker)
    assert len(reg.gc(grace="0").checkpoints) == 1


def test_a_lost_database_is_made_anew_of_the_records(
    reg: Registry, file: Path, tmp_path: Path
) -> None:
    reg.push(file, acc=0.5, tags=["good"], aliases=["prod"])
    reg.record("net", {"loss": 0.25})
    reg.save(torch.nn.Linear(3, 2), model="net", epoch=7)
    reg.remove("net@v2")
    reg.close()
    if "://" in reg.location:
        with pytest.raises(ValueError, match="not on a server"):
            Registry.rebuild(reg.location)
        return
    before = [c.to_dict() for c in reg.find(include_removed=True)]
    reg.close()
    done = Registry.rebuild(reg.location, replace=True)
    assert (done.checkpoints, done.unusable) == (2, ())
    with again(reg) as other:
        assert [c.to_dict() for c in other.find(include_removed=True)] == before
        assert other.pull("net", tmp_path / "out.pt").read_bytes() == file.read_bytes()
        assert other.verify().findings == ()
