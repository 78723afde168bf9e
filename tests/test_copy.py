"""Copy: a registry in another place is the same registry, and a copy that was cut off goes on."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import clusters
import pytest
from drafts import by_hand
from faults import fail_at
from sweeps.copies import facts, killed
from test_verifying import blob_path, file_of, fill, full, overwrite, snapshot, template

from registry import CkregError, CkregWarning, ConflictError, Registry
from registry.cli import run

__all__ = ["full", "template"]


def enrich(reg: Registry, folder: Path) -> Registry:
    """Add what `fill` lacks: a model without checkpoints, moves away, a removed one without files,
    a run without checkpoints.
    """
    reg.push(file_of(folder, 3), model="gone")
    reg.remove("gone@v1")
    reg.gc(grace="0")
    reg.push(file_of(folder, 4), model="gone", tags=["t1", "t2"], aliases=["once"])
    reg.push(file_of(folder, 5), model="gone", aliases=["once", "other"])
    reg.unalias("gone", "once")
    reg.remove("gone@v2")
    reg.run("planned", name="later", config={"lr": 0.5}, monitor="val/loss", mode="min")
    return reg


@pytest.fixture
def source(full: Registry, tmp_path: Path) -> Registry:
    return enrich(full, tmp_path)


# --- the same registry ----------------------------------------------------------------------------


def test_a_copy_knows_and_answers_all_that_the_source_does(
    source: Registry, tmp_path: Path
) -> None:
    before = snapshot(source)
    done = source.copy_to(tmp_path / "dst")
    assert (done.ok, done.checkpoints, done.present, done.updated) == (True, 8, 0, ())
    assert snapshot(source) == before
    with Registry.open(tmp_path / "dst") as copied:
        assert facts(copied) == facts(source)
        assert copied.verify().findings == source.verify().findings == ()
        assert copied.push(file_of(tmp_path, 7), model="gone").version == 4
        with copied.run("planned", name="later", config={"lr": 0.5}) as again:
            assert again.id in "".join(facts(source)["runs"])


def test_bytes_are_copied_once_for_each_digest(source: Registry, tmp_path: Path) -> None:
    source.push(file_of(tmp_path, 3), model="twice")
    source.push(file_of(tmp_path, 3), model="thrice")
    done = source.copy_to(tmp_path / "dst")
    known = {p.name[:62] for p in (tmp_path / "dst").glob("blobs/*/*")}
    assert done.blobs == len(list((tmp_path / "dst").glob("blobs/*/*"))) == len(known)


def test_a_second_copy_brings_what_is_new_or_has_changed_and_the_source_wins(
    source: Registry, tmp_path: Path
) -> None:
    source.copy_to(tmp_path / "dst")
    assert source.copy_to(tmp_path / "dst").present == 8
    source.tag("saved@v1", "later")
    source.record("saved@v2", {"again": 2.0})
    source.remove("net@v2")
    source.alias("saved@v2", "prod")
    source.monitor("saved", "acc", "max")
    new = source.push(file_of(tmp_path, 9), model="new")
    with Registry.open(tmp_path / "dst") as copied:
        copied.tag("named@v1", "only-there")
        copied.alias("named@v1", "own")
        done = source.copy_to(tmp_path / "dst")
        assert (done.checkpoints, done.present) == (1, 4)
        assert set(done.updated) == {"saved@v1", "saved@v2", "net@v2", "named@v1"}
        assert copied.get(new.id).ref == new.ref
        assert copied.get("saved@prod").ref == "saved@v2"
        assert copied.get("named@own").tags == ()
        copied.unalias("named", "own")
        mine, theirs = facts(source), facts(copied)
        for name in ("find", "models", "best", "runs", "bytes"):
            assert theirs[name] == mine[name], name
        assert copied.verify().findings == ()
        assert source.copy_to(tmp_path / "dst").updated == ()


def test_of_twins_the_one_that_is_live_at_the_source_is_live_in_the_copy(
    source: Registry, tmp_path: Path
) -> None:
    file = file_of(tmp_path, 30)
    source.push(file, model="twin")
    source.remove("twin@v1")
    source.push(file, model="twin")
    source.copy_to(tmp_path / "dst")
    source.remove("twin@v2")
    source.restore("twin@v1")
    assert source.copy_to(tmp_path / "dst").updated == ("twin@v2", "twin@v1")
    with Registry.open(tmp_path / "dst") as copied:
        assert facts(copied) == facts(source)


# --- places ---------------------------------------------------------------------------------------


@pytest.fixture
def empty() -> Iterator[str]:
    """Return the URL of a database that holds nothing."""
    url = clusters.cluster().database()
    yield url
    clusters.cluster().drop(url)


@pytest.mark.skipif(clusters.why_not() is not None, reason=str(clusters.why_not()))
@pytest.mark.parametrize("bytes_in", ["folder", "s3"])
def test_a_registry_goes_to_postgresql_and_back(
    source: Registry,
    empty: str,
    bytes_in: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    blobs = tmp_path / "blobs" if bytes_in == "folder" else request.getfixturevalue("prefix")
    assert source.copy_to(empty, blobs=blobs).checkpoints == 8
    expected = facts(source)
    with Registry.open(empty) as there:
        assert facts(there) == expected
        assert there.verify().findings == ()
        assert source.copy_to(empty).present == 8
        assert there.copy_to(tmp_path / "back").checkpoints == 8
    with Registry.open(tmp_path / "back") as back:
        assert facts(back) == expected
        assert back.verify().findings == ()


# --- cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "after"),
    [("put_model", 2), ("put", 4), ("write_record", 6), ("put_moves", 4)],
)
def test_a_copy_that_was_killed_goes_on_and_ends_the_same(
    source: Registry, tmp_path: Path, call: str, after: int
) -> None:
    """Kill before the n-th call; of a record, when its rows are committed."""
    assert killed(source.location, str(tmp_path / "dst"), "", call, after)
    with Registry.open(tmp_path / "dst") as half:
        there = len(list(half.find(include_removed=True)))
    rest = source.copy_to(tmp_path / "dst")
    assert (rest.ok, rest.checkpoints, rest.present) == (True, 8 - there, there)
    with Registry.open(tmp_path / "dst") as copied:
        assert facts(copied) == facts(source)
        assert [f for f in copied.verify().findings if f.kind != "orphan"] == []


def test_a_full_disk_is_an_error_that_leaves_nothing_and_the_next_copy_goes_on(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        reg.push(file_of(tmp_path, n))
    Registry.create(tmp_path / "all").close()
    with monkeypatch.context() as patch:
        made = fail_at(patch, -1, _no_space)
        reg.copy_to(tmp_path / "all")
        calls = len(made)
    for n in range(4):
        place = tmp_path / f"dst{n}"
        Registry.create(place).close()
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", CkregWarning)  # a record that couldn't be written
            fail_at(patch, calls * (2 * n + 1) // 8, _no_space)
            with suppress(CkregError):
                reg.copy_to(place)
        with Registry.open(place) as half:
            kinds = {f.kind for f in half.verify().findings}
            assert kinds <= {"row", "record"}, "nothing without a row is left"
        assert reg.copy_to(place).ok
        with Registry.open(place) as copied:
            assert facts(copied) == facts(reg)
            assert copied.verify().findings == ()


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- what can't be copied -------------------------------------------------------------------------


def test_a_destination_that_holds_other_checkpoints_is_refused_and_stays_as_it_was(
    source: Registry, tmp_path: Path
) -> None:
    with Registry.create(tmp_path / "dst") as other:
        fill(other, tmp_path)
        before = snapshot(other)
        with pytest.raises(ConflictError, match=r"@v1 is [0-9a-f]{8} there.*Nothing was"):
            source.copy_to(tmp_path / "dst")
        after = snapshot(other)
    assert {n: v[3] for n, v in after.items()} == {n: v[3] for n, v in before.items()}


def test_a_destination_with_another_run_of_the_same_name_is_refused(
    source: Registry, tmp_path: Path
) -> None:
    with Registry.create(tmp_path / "dst") as other:
        other.run("planned", name="later")
    with pytest.raises(ConflictError, match="the run 'later' of 'planned'"):
        source.copy_to(tmp_path / "dst")


def test_a_registry_is_not_copied_to_itself(source: Registry) -> None:
    with pytest.raises(ConflictError, match="are one registry"):
        source.copy_to(source.location)


def test_one_place_for_two_stores_is_refused(
    source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKREG_BLOBS", source.location)
    with pytest.raises(ValueError, match="unset CKREG_BLOBS"):
        source.copy_to(tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_left_out_and_comes_when_it_is_whole(
    source: Registry, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = blob_path(source, "saved@v2")
    good = path.read_bytes()
    if damage == "flipped":
        overwrite(path, lambda data: data.__setitem__(5, data[5] ^ 1))
    elif damage == "cut":
        overwrite(path, lambda data: data.__delitem__(slice(100, None)))
    else:
        path.unlink()
    words = ["copy", source.location, str(tmp_path / "dst"), "--json"]
    before = snapshot(source)
    assert run(words) == 6
    assert snapshot(source) == before
    done = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in done["left_out"]] == ["saved@v2", "saved@prod"]
    assert (done["checkpoints"], done["ok"]) == (7, False)
    with Registry.open(tmp_path / "dst") as copied:
        found = [f"{f.kind}: {f.where}" for f in copied.verify().findings]
        assert [f for f in found if "saved" not in f] == []
        assert copied.push(file_of(tmp_path, 11), model="saved").version == 3
        if path.exists():
            path.chmod(0o644)
        path.write_bytes(good)
        path.chmod(0o444)
        assert run(words) == 0
        assert copied.get("saved@prod").ref == "saved@v1"
        assert facts(copied)["moves"]["saved"] == facts(source)["moves"]["saved"]


def test_what_is_damaged_and_given_up_goes_along_as_a_record_alone(
    source: Registry, tmp_path: Path
) -> None:
    path = blob_path(source, "net@v2")
    overwrite(path, lambda data: data.__setitem__(5, data[5] ^ 1))
    assert [one.what for one in source.copy_to(tmp_path / "dst").left_out] == ["net@v2"]
    source.remove("net@v2")
    source.gc(grace="0")
    assert source.copy_to(tmp_path / "dst").ok
    with Registry.open(tmp_path / "dst") as copied:
        assert facts(copied) == facts(source)
        assert copied.gc(grace="0").checkpoints == ()


def test_a_damaged_row_is_named_and_left_out(source: Registry, tmp_path: Path) -> None:
    with by_hand(Path(source.location) / "registry.db") as db:
        db.execute("UPDATE checkpoints SET epoch = 99 WHERE id = ?", (source.get("net@v2").id,))
    done = source.copy_to(tmp_path / "dst")
    assert [one.what for one in done.left_out] == ["net@v2"]
    assert done.checkpoints == 7


# --- the command ----------------------------------------------------------------------------------


def test_the_command_copies_and_says_what_it_did(
    source: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["copy", source.location, str(tmp_path / "dst")]
    assert run(words, terminal=True) == 0
    shown = capsys.readouterr()
    assert "8 checkpoints copied, 0 there already, 0 updated, 0 left out" in shown.out
    assert f"registry: {tmp_path / 'dst'}" in shown.err
    assert run(words, terminal=True) == 0
    assert "0 checkpoints copied, 8 there already" in capsys.readouterr().out
    assert run([*words, "-r", "/elsewhere"]) == 2
    assert run(["copy", str(tmp_path / "nothing"), str(tmp_path / "dst")]) == 3


def test_progress_ends_at_all_bytes_and_never_goes_back(source: Registry, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source.copy_to(tmp_path / "dst", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)
