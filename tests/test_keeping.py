"""The commands that keep a registry: what they print, ask and exit with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from backends import blobs_at
from nets import seeded

from registry import Registry
from registry.blobs.local import LocalStore
from registry.cli import run


@pytest.fixture
def blob(reg: Registry, tmp_path: Path) -> Path:
    """Return the file of the one checkpoint's bytes."""
    torch.save({"model": "net", "state_dict": seeded(1).state_dict()}, tmp_path / "w.pt")
    digest = reg.push(tmp_path / "w.pt").digest
    (found,) = blobs_at(reg).glob(f"blobs/{digest[7:9]}/{digest[9:]}.*")
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def ask(reg: Registry, *words: str, terminal: bool = True) -> int:
    return run([*words, "-r", reg.location], terminal=terminal)


def test_verify_of_a_whole_registry_says_so_and_exits_with_0(
    reg: Registry, blob: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(reg, "verify") == 0
    out = capsys.readouterr().out
    assert "whole · 1 checkpoint · 2 files" in out
    assert ask(reg, "verify", "net@v1", terminal=False) == 0
    assert capsys.readouterr().out == ""


def test_verify_of_damage_names_it_and_the_way_to_mend_it_and_exits_with_6(
    reg: Registry, blob: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(blob)
    assert ask(reg, "verify") == 6
    out = capsys.readouterr().out
    assert "DAMAGED: 1 finding" in out
    assert "net@v1: its bytes have the digest" in out
    assert "mend: push the same file again" in out
    assert ask(reg, "verify", terminal=False) == 6
    fields = capsys.readouterr().out.rstrip("\n").split("\t")
    assert fields[:3] == ["damaged", "damage", f"blobs/{blob.parent.name}/{blob.name}"]
    assert ask(reg, "verify", "--json") == 6
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], [f["kind"] for f in found["findings"]]) == (False, ["damaged"])


def test_verify_with_remarks_alone_exits_with_0(
    reg: Registry, blob: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob.chmod(0o644)
    assert ask(reg, "verify") == 0
    assert "writable" in capsys.readouterr().out


def test_gc_shows_a_plan_and_takes_it_when_told_to(
    reg: Registry, blob: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reg.remove("net@v1")
    assert ask(reg, "gc") == 0
    assert "nothing to free" in (shown := capsys.readouterr().out)
    assert "1 removed or without a row for less than the grace of 14 days\n" in shown
    assert ask(reg, "gc", "--grace", "0", "--dry-run") == 0
    assert "net@v1" in capsys.readouterr().out
    assert ask(reg, "gc", "--grace", "0") == 2  # no terminal to ask on
    assert "--yes" in capsys.readouterr().err
    assert blob.exists()
    assert ask(reg, "gc", "--grace", "0", "--yes", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["done"], [c["ref"] for c in done["checkpoints"]]) == (True, ["net@v1"])
    assert not blob.exists()
    assert ask(reg, "restore", "net@v1") == 3
    assert "gc took them on" in capsys.readouterr().err


def test_gc_takes_a_grace_that_reads_like_a_time(
    reg: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore.open(blobs_at(reg))
    path = store.path_of(store.put_bytes(b"nobody's"))
    os.utime(path, (path.stat().st_mtime - 7200,) * 2)
    assert ask(reg, "gc", "--grace", "3h", "--yes") == 0
    assert path.exists()
    assert ask(reg, "gc", "--grace", "90m", "--yes") == 0
    assert not path.exists()
    assert ask(reg, "gc", "--grace", "soon") == 2
    assert "should read like 14d" in capsys.readouterr().err
