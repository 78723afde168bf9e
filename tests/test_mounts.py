"""A registry on a network or FUSE filesystem: told, tried, and said once."""

from __future__ import annotations

import fcntl
import warnings
from pathlib import Path

import pytest
import torch

from registry import CkregWarning, NotWritableError, Registry, mounts

LINES = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:50 / {root} rw,relatime shared:1 - {kind} server:/export rw
41 40 0:51 / {root}/in\\040ner rw - tmpfs tmpfs rw
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"model": "net", "state_dict": {"w": torch.ones(3)}}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """Say that a folder lies on such a filesystem, as the kernel would."""
    table = tmp_path / "mountinfo"
    table.write_text(LINES.format(root=tmp_path.resolve(), kind=kind))
    monkeypatch.setattr(mounts, "MOUNTS", table)


def test_the_innermost_mount_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounted(monkeypatch, tmp_path, "nfs4")
    assert mounts.filesystem(tmp_path / "reg") == "nfs4"
    assert mounts.filesystem(tmp_path / "in ner" / "x") == "tmpfs"
    assert mounts.filesystem(tmp_path.parent) == "ext4"
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mounts.filesystem(tmp_path) is None


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs", "9p"])
def test_a_share_is_written_when_its_locks_pass_and_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path, kind: str
) -> None:
    Registry.create(tmp_path / "reg").close()
    mounted(monkeypatch, tmp_path, kind)
    with Registry.open(tmp_path / "reg") as reg:
        with pytest.warns(CkregWarning, match=f"lies on {kind}.*PostgreSQL") as caught:
            first = reg.push(file)
        assert len(caught) == 1
        reg.push(file, epoch=2)  # any further warning is an error here
        reg.tag(first, "good")
    assert list((tmp_path / "reg" / "tmp").iterdir()) == []


def test_reading_a_share_tries_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    mounted(monkeypatch, tmp_path, "nfs4")
    with Registry.open(tmp_path / "reg") as reg:
        assert list(reg.find()) == []


def test_a_disk_of_this_machine_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    monkeypatch.setattr(mounts, "_why_no_locks", lambda _: pytest.fail("tried"))
    mounted(monkeypatch, tmp_path, "xfs")
    with Registry.create(tmp_path / "reg") as reg:
        reg.push(file)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('free', 'held')\ninput()\nprint('free', 'free')", "a second process got a lock"),
        ("print('held', 'free')\ninput()\nprint('free', 'free')", "a second process got a lock"),
        ("print('held', 'held')\ninput()\nprint('held', 'free')", "stayed held"),
        ("raise SystemExit", "a second process got a lock"),
    ],
)
def test_locks_that_keep_nobody_out_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path, code: str, why: str
) -> None:
    Registry.create(tmp_path / "reg").close()
    mounted(monkeypatch, tmp_path, "nfs")
    monkeypatch.setattr(mounts, "_TRY", code)
    with Registry.open(tmp_path / "reg") as reg:
        with pytest.raises(NotWritableError, match=why):
            reg.push(file)
        assert list(reg.find()) == []


def test_a_filesystem_without_locks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    Registry.create(tmp_path / "reg").close()
    mounted(monkeypatch, tmp_path, "fuse.thing")

    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        Registry.open(tmp_path / "reg") as reg,
        pytest.raises(NotWritableError, match="can't be taken"),
        warnings.catch_warnings(),
    ):
        reg.push(file)


def test_the_real_locks_of_this_machine_pass(tmp_path: Path) -> None:
    assert mounts._why_no_locks(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
