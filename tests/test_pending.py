"""Saves in the background: the values of the call, in order, finished whatever ends first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from registry import CkregError, NoSpaceError, PendingSave, Registry, saves
from registry.pending import Queue
from registry.tensors import copying, writing

ROOT = Path(__file__).parent.parent


def net_of(value: float) -> nn.Linear:
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.fill_(value)
        net.bias.fill_(value)
    return net


def weight(reg: Registry, ref: object) -> float:
    state = reg.load(ref).state_dict  # type: ignore[arg-type]
    assert state is not None
    return float(state["weight"][0, 0])


def test_training_may_change_the_weights_while_they_are_written(reg: Registry) -> None:
    net, made = net_of(0.0), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
    for epoch in range(5):
        with torch.no_grad():
            net.weight.fill_(float(epoch))
        made.append(reg.save(net, model="net", epoch=epoch, optimizer=optimizer, wait=False))
        with torch.no_grad():
            net.weight.fill_(99.0)
    assert all(isinstance(save, PendingSave) for save in made)
    done = [save.result() for save in made]
    assert [c.version for c in done] == [1, 2, 3, 4, 5]
    assert [weight(reg, c) for c in done] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [c.parent for c in done] == [None, *(c.id for c in done[:-1])]


def test_the_file_is_the_one_that_a_waiting_save_writes(tmp_path: Path) -> None:
    """Tied weights, views and the record; everything but what names the save itself."""
    digests = []
    for wait in (True, False):
        with Registry.create(tmp_path / f"{wait}") as reg:
            torch.manual_seed(0)
            net = nn.Sequential(net_of(1.0), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))
            net.add_module("tied", net[2])
            optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, lr=0.1)
            net(torch.ones(2, 2)).sum().backward()
            optimizer.step()
            extra = {"pair": (torch.ones(2), torch.zeros(1)), "row": torch.eye(16)[1]}
            save = reg.save(net, model="net", epoch=1, optimizer=optimizer, extra=extra, wait=wait)
            made = save.result() if isinstance(save, PendingSave) else save
            state = torch.load(reg.pull(made, tmp_path / f"{wait}.pt"), weights_only=True)
            state.pop("ckreg")
            digests.append(state)
    a, b = digests
    assert a.keys() == b.keys()
    for key in a["state_dict"]:
        assert torch.equal(a["state_dict"][key], b["state_dict"][key])
    shared = {v.data_ptr() for v in b["state_dict"].values()}
    assert len(shared) == len({v.data_ptr() for v in a["state_dict"].values()})
    assert torch.equal(a["extra"]["pair"][0], b["extra"]["pair"][0])
    assert b["extra"]["row"].untyped_storage().nbytes() == 64


def test_a_snapshot_copies_each_storage_once_and_keeps_what_is_shared() -> None:
    base = torch.arange(10.0)
    tree = {"a": base[:4], "b": base[2:6], "same": base[:4], "c": torch.ones(2).conj()}
    tree["c"] = torch.tensor([1 + 2j]).conj()
    copied = copying.Snapshot(tree)
    base.zero_()
    found = copied.tree
    assert torch.equal(found["a"], torch.arange(4.0))
    assert torch.equal(found["b"], torch.arange(2.0, 6.0))
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    assert found["c"].is_conj()
    assert torch.equal(found["c"], torch.tensor([1 - 2j]))
    assert copied.tags == {}


def test_sparse_tensors_are_copied_too() -> None:
    sparse = torch.eye(3).to_sparse()
    found = copying.Snapshot({"s": sparse}).tree["s"]
    sparse._values().zero_()
    assert torch.equal(found.to_dense(), torch.eye(3))


def test_devices_of_a_snapshot_are_named_in_the_file(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    path = tmp_path / "f.pt"
    with path.open("wb") as file:
        writing.write({"w": tensor}, file, tags={tensor.untyped_storage()._cdata: "cuda:3"})
    tagged: list[str] = []
    torch.load(path, map_location=lambda storage, tag: (tagged.append(tag), storage)[1])
    assert tagged == ["cuda:3"]


# --- errors ---------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object, **__: object) -> None:
        raise NoSpaceError("no space for it")

    monkeypatch.setattr(saves, "write", write)


def test_an_error_comes_from_result(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    save = reg.save(net_of(1.0), model="net", wait=False)
    with pytest.raises(NoSpaceError, match="no space for it"):
        save.result()
    assert "failed" in repr(save)
    reg.close()  # it was seen


def test_an_error_that_nobody_saw_comes_from_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg = Registry.create(tmp_path / "reg")
    failing(monkeypatch)
    reg.save(net_of(1.0), model="net", wait=False)
    with pytest.raises(NoSpaceError, match="no space for it"):
        reg.close()
    reg.close()


def test_the_blocks_own_error_is_not_hidden_by_a_late_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch)

    def train() -> None:
        with Registry.create(tmp_path / "reg") as reg:
            reg.save(net_of(1.0), model="net", wait=False)
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        train()
    assert "no space for it" in caught.value.__notes__[0]


def test_what_is_wrong_with_the_call_is_said_at_once(reg: Registry) -> None:
    with pytest.raises(ValueError, match="epoch"):
        reg.save(net_of(1.0), model="net", epoch=-1, wait=False)
    with pytest.raises(TypeError, match=r"extra\.f"):
        reg.save(net_of(1.0), model="net", extra={"f": print}, wait=False)
    assert reg.models() == []


def test_one_failure_does_not_stop_the_next(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch)
        first = reg.save(net_of(1.0), model="net", wait=False)
        with pytest.raises(CkregError):
            first.result()
    assert reg.save(net_of(2.0), model="net", wait=False).result().version == 1


# --- the queue ------------------------------------------------------------------------------------


def test_one_waits_while_one_is_written_and_the_next_call_waits() -> None:
    queue, gate, begun = Queue(), threading.Event(), []

    def write(number: int) -> object:
        begun.append(number)
        gate.wait(10)
        return number

    for number in (1, 2):
        queue.submit(f"{number}", lambda n=number: write(n))  # type: ignore[misc]
    third = threading.Thread(target=lambda: queue.submit("3", lambda: write(3)))  # type: ignore[arg-type,return-value]
    third.start()
    time.sleep(0.2)
    assert third.is_alive()
    assert begun == [1]
    gate.set()
    third.join(10)
    queue.flush()
    assert begun == [1, 2, 3]


def test_results_can_time_out_and_go_on() -> None:
    queue, gate = Queue(), threading.Event()
    save = queue.submit("1", lambda: gate.wait(10))  # type: ignore[arg-type,return-value]
    with pytest.raises(TimeoutError):
        save.result(timeout_s=0.01)
    assert not save.done()
    gate.set()
    assert save.result(10) is True
    queue.flush()


def run(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    words = f"""
import os, sys, time, torch
from registry import Registry
reg = Registry.create({str(tmp_path / "reg")!r})
net = torch.nn.Linear(200, 200)
{code}
"""
    return subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_program_that_ends_first_finishes_its_saves_and_says_so(tmp_path: Path) -> None:
    slow = """
import registry.saves as saves
write = saves.write
saves.write = lambda *a, **k: (time.sleep(1), write(*a, **k))[1]
for i in range(2): reg.save(net, model='net', epoch=i, wait=False)
"""
    ended = run(slow, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "the program ended with 2 saves under way" in ended.stderr
    with Registry.open(tmp_path / "reg") as reg:
        assert [c.epoch for c in reg.find("net", sort="epoch")] == [0, 1]


def test_a_closed_registry_ends_in_silence(tmp_path: Path) -> None:
    ended = run("reg.save(net, model='net', wait=False)\nreg.close()", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_child_has_no_part_in_its_parents_saves(reg: Registry) -> None:
    gate = threading.Event()
    parents = reg._pending.submit("1", lambda: gate.wait(10))  # type: ignore[arg-type,return-value]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reg._pending.flush()
            reg.save(net_of(3.0), model="child", wait=False).result(60)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    assert parents.result(10) is True
    assert [m.name for m in reg.models()] == ["child"]
