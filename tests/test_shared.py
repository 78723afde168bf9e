"""A registry that a group shares: everybody in it may write, whatever anybody's umask."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from registry import ConflictError, NotWritableError, Registry

GROUP, ANN, BOB, EVE = 54_000, 54_001, 54_002, 54_003

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def save(path: Path, value: float) -> Path:
    torch.save({"model": "net", "state_dict": {"w": torch.full((3,), value)}}, path)
    path.chmod(0o644)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def as_user(user: int, groups: list[int], act: Callable[[], None]) -> str:
    """Do something as another user in a child, and return the error that it raised, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            act()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode()[-4_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_all_that_is_made_is_the_groups_whatever_the_umask(tmp_path: Path) -> None:
    place = tmp_path / "reg"
    with Registry.create(place, shared="group") as reg:
        first = reg.push(save(tmp_path / "a.pt", 1.0))
        reg.tag(first, "good")
    for path in [place, *place.rglob("*")]:
        if path.is_dir():
            assert mode(path) == 0o2775, path
        elif path.parent.parent.name == "blobs":
            assert mode(path) == 0o444, path
        else:
            assert mode(path) == 0o664, path


def test_a_private_one_is_its_owners_alone(tmp_path: Path) -> None:
    os.umask(0)
    with Registry.create(tmp_path / "reg") as reg:
        reg.push(save(tmp_path / "a.pt", 1.0))
    assert mode(tmp_path / "reg") == 0o700


def test_a_private_one_is_not_shared_by_asking_again(tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    with pytest.raises(ConflictError, match="not shared") as caught:
        Registry.create(tmp_path / "reg", shared="group")
    hint = str(caught.value.hint).removeprefix("as its owner: ")
    assert os.system(hint.replace("chmod -R a-w", "true")) == 0
    Registry.create(tmp_path / "reg", shared="group").close()


@as_root
def test_members_of_the_group_write_in_turn_and_others_do_not(tmp_path: Path) -> None:
    for folder in tmp_path.parents:
        if mode(folder) & 0o055 != 0o055 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    place = tmp_path / "reg"
    os.mkdir(place)
    os.chown(place, 0, GROUP)
    files = [save(tmp_path / f"{i}.pt", float(i)) for i in range(4)]
    with Registry.create(place, shared="group") as reg:  # imports now what is imported late
        reg.push(files[0])

    def add(file: Path) -> Callable[[], None]:
        def act() -> None:
            with Registry.open(place) as reg:
                reg.push(file)
                reg.tag("net@v1", f"by-{os.getuid()}")  # another's record is replaced

        return act

    assert as_user(BOB, [BOB, GROUP], add(files[1])) == ""
    assert as_user(ANN, [ANN, GROUP], add(files[2])) == ""
    with Registry.open(place) as reg:
        assert sorted(c.version for c in reg.find("net")) == [1, 2, 3]
        assert set(reg.get("net@v1").tags) == {f"by-{ANN}", f"by-{BOB}"}
    refused = as_user(EVE, [EVE], add(files[3]))
    assert NotWritableError.__name__ in refused.splitlines()[-2], refused


def test_a_members_dead_writer_is_swept_by_another(tmp_path: Path) -> None:
    with Registry.create(tmp_path / "reg", shared="group"):
        left = tmp_path / "reg" / "tmp" / "0f8fad5b-d9cb-469f-a165-70867728950e"
        left.write_bytes(b"half")
        left.chmod(0o660)
    with Registry.open(tmp_path / "reg") as reg:
        reg.push(save(tmp_path / "a.pt", 1.0))
    assert not left.exists()


def test_an_older_schema_of_a_shared_registry_is_never_upgraded_in_passing(tmp_path: Path) -> None:
    with Registry.create(tmp_path / "reg", shared="group") as reg:
        assert reg._parts()[1].setting("shared") == "group"
