"""Nets that no rank holds whole: saved by all ranks, loaded on any number, or refused by all.

The whole matrix is `python -m tests.sweeps matrix`.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import gloo
import pytest
import strategies
import torch

from registry import Registry, UntrustedError

pytestmark = pytest.mark.ranks

NAMES = list(strategies.STRATEGIES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a registry, which holds the net of each strategy, saved by 2 ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    Registry.create(folder / "reg").close()
    ended = gloo.run("strategies:save", str(folder / "reg"), str(folder), *NAMES, ranks=2)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert ended[0].answer == ended[1].answer  # every rank got the same checkpoints
    return folder


def _reg(place: Path) -> Registry:
    return Registry.open(place / "reg")


def _answers(job: str, *words: str, ranks: int = 2) -> list[Any]:
    ended = gloo.run(f"strategies:{job}", *words, ranks=ranks)
    assert all(rank.code == 0 for rank in ended), "\n".join(rank.stderr for rank in ended)
    return [rank.answer for rank in ended]


def test_what_2_ranks_saved_3_ranks_load_under_every_strategy(place: Path) -> None:
    pairs = {*(f"{name.lower()}-2:FSDP2" for name in NAMES), *(f"fsdp2-2:{name}" for name in NAMES)}
    for answer in _answers("load", str(place / "reg"), str(place), *sorted(pairs), ranks=3):
        assert len(answer) == len(pairs)
        assert all(many == 27 and not wrong for many, wrong in answer.values()), answer


@pytest.mark.parametrize("name", NAMES)
def test_what_2_ranks_saved_loads_without_a_process_group(place: Path, name: str) -> None:
    found = strategies.load(str(place / "reg"), str(place), f"{name.lower()}-2:plain")
    assert found == {f"{name.lower()}-2 into plain": [27, []]}


def test_each_ranks_file_and_the_index_are_one_checkpoint_with_its_topology(place: Path) -> None:
    with _reg(place) as reg:
        saved = reg.get("hsdp-2")
        assert [f.name for f in reg.get("fsdp2-2").files] == [
            ".metadata", "__0_0.distcp", "__1_0.distcp",
        ]  # fmt: skip
        topology = saved.topology
        assert (topology.strategy, topology.world_size) == ("hsdp", 2)
        assert [(m.shape, m.names) for m in topology.meshes] == [((2, 1), ("replicate", "shard"))]
        assert dict(topology.placements) == {"Replicate, Shard(0)": 6, "whole": 3}
        assert [text.split()[-1] for text in topology.ranks] == ["cpu", "cpu"]
        assert reg.get("tp-2").topology.strategy == "tp"
        assert reg.get("fsdp1-2").topology.strategy == "fsdp1"
        assert saved.signature == reg.get("plain-2").signature
        assert reg.verify("fsdp2-2").ok


def test_a_bucket_takes_and_gives_what_a_folder_does(prefix: str, tmp_path: Path) -> None:
    where = str(tmp_path / "reg")
    Registry.create(where, blobs=prefix).close()
    first, second = _answers("save", where, str(tmp_path), "FSDP2")
    assert first == second
    pairs = [f"fsdp2-2:{into}" for into in ("FSDP2", "TP")]
    caches = {"CKREG_CACHE": str(tmp_path / "another")}  # nothing is there yet
    ended = gloo.run("strategies:load_in_parts", where, str(tmp_path), *pairs, env=caches)
    for rank in ended:
        assert rank.answer == {pair.replace(":", " into "): [27, []] for pair in pairs}, rank.stderr
    assert strategies.load(where, str(tmp_path), "fsdp2-2:plain") == {
        "fsdp2-2 into plain": [27, []]
    }
    with Registry.open(where) as reg:
        assert reg.verify().ok


def test_torch_reads_the_folder(place: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with _reg(place) as reg:
        folder = reg.pull("fsdp2-2", tmp_path / "pulled")
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    read = torch.load(tmp_path / "whole.pt", weights_only=True)
    expected = torch.load(place / "fsdp2-2.pt")
    assert read["epoch"] == 3
    for key, value in read["state_dict"].items():
        assert torch.equal(value, expected[f"net.{key}"])
    moment = read["optimizer"]["state"]["down.weight"]["exp_avg"]
    assert torch.equal(moment, expected["adam.down.weight.exp_avg"])


def test_a_pushed_copy_of_the_folder_comes_back_as_recorded(place: Path, tmp_path: Path) -> None:
    with _reg(place) as reg, Registry.create(tmp_path / "other") as other:
        saved = reg.get("fsdp2-2")
        copy = other.push(reg.pull(saved, tmp_path / "pulled"))
    for name in ("model", "epoch", "metrics", "topology", "provenance", "signature", "optimizers"):
        assert getattr(copy, name) == getattr(saved, name), name
    assert copy.run is not None
    assert saved.run is not None
    assert copy.run.id == saved.run.id


def test_a_pulled_copy_of_the_folder_is_known_again_by_an_import(
    place: Path, tmp_path: Path
) -> None:
    with _reg(place) as reg:
        saved = reg.get("fsdp2-2")
        reg.pull(saved, tmp_path / "pulled")
        (there,) = reg.import_(tmp_path).files
    assert (there.outcome, there.checkpoint) == ("present", saved)


def _changed(place: Path, tmp_path: Path, old: bytes, new: bytes, name: str) -> Path:
    with _reg(place) as reg:
        folder = reg.pull("fsdp2-2", tmp_path / "pulled")
    file = folder / name
    data = file.read_bytes()
    assert old in data
    file.chmod(0o600)
    file.write_bytes(data.replace(old, new))
    return folder


def test_a_path_out_of_the_folder_is_refused(place: Path, tmp_path: Path, reg: Registry) -> None:
    folder = _changed(place, tmp_path, b"__1_0.distcp", b"../_0.distcp", ".metadata")
    with pytest.raises(UntrustedError, match="no file of this folder"):
        reg.push(folder, model="m")


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_a_hostile_byte_item_in_a_shard_runs_nothing(tmp_path: Path, reg: Registry) -> None:
    import torch.distributed.checkpoint as dcp

    state = {"state_dict": strategies.plain(1).state_dict(), "epoch": 3, "hostile": _Hostile()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(SystemExit):
        pickle.loads(pickle.dumps(_Hostile()))
    saved = reg.push(tmp_path / "dcp", model="m")
    net = strategies.plain(2)
    result = reg.load(saved, into=net)
    assert strategies.differing(net.state_dict(), strategies.plain(1).state_dict()) == []
    assert "exec" in json.dumps(dict(result.ignored))


def test_what_one_rank_gets_wrong_every_rank_refuses(tmp_path: Path) -> None:
    reg = Registry.create(tmp_path / "reg")
    first, second = _answers("refused", str(tmp_path / "reg"))
    assert first["fails"]["type"] == "RemoteError"
    assert "rank 1 could not save model='bad', epoch=1: OSError" in first["fails"]["message"]
    assert second["fails"] == {"type": "OSError", "message": "the sampler is broken"}
    assert "rank 1 did not save model='bad', epoch=2" in first["absent"]["message"]
    assert "call save on every rank" in first["absent"]["hint"]
    assert first["absent"]["took_s"] < 10
    for answer in (first, second):
        assert answer["load"]["type"] == answer["other"]["type"] == "RefusedLoadError"
        assert "SGD" in answer["load"]["message"]
        assert answer["touched"] == []
        assert answer["again"] == 2  # and all goes on
    assert first["load"]["message"].startswith("rank 1 could not load")
    assert [m.name for m in reg.models()] == ["good"]
    assert not reg.gc(dry_run=True, grace=timedelta(0))


@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_rank_that_is_killed_while_it_writes_leaves_nothing_and_hangs_nobody(
    tmp_path: Path, victim: str
) -> None:
    reg = Registry.create(tmp_path / "reg")
    ended = gloo.run("strategies:killed", str(tmp_path / "reg"), victim, ranks=2 + int(victim))
    assert ended[int(victim)].code == -9
    for rank, one in enumerate(ended):
        if rank != int(victim):
            assert one.answer["type"] == "RemoteError", one.stderr
            assert one.answer["took_s"] < 20
            if victim == "1":
                assert "rank 1 did not save" in one.answer["message"]
    assert reg.models() == []
    assert list((tmp_path / "reg" / "blobs").glob("*/*")) == []


def test_what_finds_the_registry_busy_is_kept_whole_and_its_hint_finishes_it(
    tmp_path: Path,
) -> None:
    place = tmp_path / "a place"
    reg = Registry.create(place)
    (first, after), (second, _) = _answers("busy", str(place), "net")
    assert (first["type"], second["type"]) == ("BusyError", "RemoteError")
    assert "rank 0 could not save" in second["message"]
    assert first["hint"] == second["hint"]
    (kept,) = (place / "kept").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp",
    ]  # fmt: skip
    assert not reg.gc(dry_run=True, grace=timedelta(0))  # which leaves it, and finds no blob of it
    verified = reg.verify()
    (finding,) = verified.findings
    assert (verified.ok, finding.kind, finding.where) == (True, "kept", f"kept/{kept.name}")
    assert shlex.split(finding.mend) == ["ckreg", "push", str(kept), "--move"]

    command = first["hint"].partition("the checkpoint is safe; finish with: ")[2]
    ckreg = f'ckreg() {{ "{sys.executable}" -m registry "$@"; }}; '
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(["bash", "-c", ckreg + command], env=env, check=True)

    found = reg.get("net")
    assert (found.epoch, found.acc, found.tags, found.note) == (3, 0.5, ("good",), "a b")
    assert found.run is not None
    assert found.topology.to_dict() == after["topology"]
    assert [*(place / "kept").iterdir()] == []
    assert reg.verify().findings == ()
    state, later = reg.load(found).state_dict, reg.load("after").state_dict
    assert state is not None
    assert later is not None
    assert strategies.differing(dict(state), dict(later)) == []


def test_in_a_bucket_a_busy_registry_is_asked_again_and_in_the_end_said_to_keep_nothing(
    prefix: str, tmp_path: Path
) -> None:
    reg = Registry.create(tmp_path / "reg", blobs=prefix)
    (first, _), (second, _) = _answers("busy", str(tmp_path / "reg"), "net", "patient")
    assert first["hint"] == second["hint"]
    assert first["hint"] == "nothing of it was kept: save it again; see who holds it"
    assert not reg.gc(dry_run=True, grace=timedelta(0))
    assert [m.name for m in reg.models()] == ["after"]


def test_random_states_are_each_ranks_own_and_a_net_on_meta_is_filled(tmp_path: Path) -> None:
    place = str(tmp_path / "reg")
    Registry.create(place).close()
    first, second = _answers("resumed", place)
    for answer in (first, second):
        drawn, again = answer["drawn"]
        assert drawn == again
        assert answer["meta"] == []
    assert first["drawn"] != second["drawn"]
    a, b, c = _answers("rng_of_fewer", place, ranks=3)
    assert [a[0], b[0]] == [first["drawn"][0], second["drawn"][0]]
    assert "rank 2 had none: 2 processes saved it" in c[1]["rng"]
    assert any("the resumed run will differ" in text for text in c[2])
    with Registry.open(place) as reg:
        result = reg.load("rng", into=strategies.plain(1), rng=True)
    assert torch.rand(3).tolist() == first["drawn"][0]
    assert "1 process" in result.ignored["rng of rank 1"]


def test_a_net_is_sharded_when_its_parameters_are_gathered_too(tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    assert _answers("measured", str(tmp_path / "reg")) == [[1, []]] * 2


def test_ranks_of_a_replicated_net_wait_for_no_one_but_rank_0(tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    ended = gloo.run("strategies:killed_in_a_crowd", str(tmp_path / "reg"), ranks=4)
    assert ended[2].code == -9
    for rank, one in enumerate(ended):
        if rank != 2:
            assert one.answer == [[1, 2, 3, 5], None], one.stderr
