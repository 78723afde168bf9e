"""Bytes in and out: push, pull, save and load beside what a user would do without ckreg."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from registry import Registry

from .timing import Row, child, peak_kib, process, reset_peak_kib, rounds, settle, told

CKREG = [sys.executable, "-m", "registry"]


def network(mib: int) -> nn.Module:
    """Return a net of about so many MiB of float32 weights, in 146 tensors."""
    width = max(8, int((mib * 2**20 / 4 / 73) ** 0.5))
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(73)))


def trained(mib: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a net and its Adam, of about so many MiB together."""
    net = network(mib // 3)
    optimizer = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad()
    return net, optimizer


def copy(source: Path, dest: Path) -> None:
    """Copy as `cp` does, and put it on the disk."""
    with source.open("rb") as inp, dest.open("wb") as out:
        size = os.fstat(inp.fileno()).st_size
        done = 0
        while done < size:
            done += os.copy_file_range(inp.fileno(), out.fileno(), size - done)
        os.fsync(out.fileno())


class Fresh:
    """A checkpoint's file as the next epoch writes it, so that no twin of it is there; written past
    all measuring.
    """

    def __init__(self, path: Path, mib: int) -> None:
        self.path = path
        self._net, self._optimizer = trained(mib)
        self()

    def __call__(self) -> None:
        """Change a tensor, write the file anew, and settle."""
        with torch.no_grad():
            next(self._net.parameters()).add_(0.001)
        self.path.unlink(missing_ok=True)
        states = {"state_dict": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({"model": "net", **states}, self.path)
        settle()


_RSS = """
import json
from benchmarks.timing import peak_kib
import sqlalchemy
bare = peak_kib()
from registry import Registry
with Registry.open(place) as reg:
    reg.push(path, model="net") if push else reg.pull("net", dest)
print(json.dumps({"kib": peak_kib() - bare}))
"""


def in_and_out(folder: Path, mib: int, count: int) -> Iterator[Row]:
    """Push and pull of a file."""
    source, place, dest = folder / "source.pt", folder / "reg", folder / "copy.pt"
    fresh = Fresh(source, mib)
    reg = Registry.create(place)

    def clear() -> None:
        """Let no copy fill the disk, and settle."""
        for shard in (place / "blobs").iterdir():
            for blob in shard.iterdir():
                blob.unlink()
        dest.unlink(missing_ok=True)
        fresh()

    def push() -> None:
        reg.push(source, model="net")

    row = Row(f"reg.push {mib} MiB", "cp + fsync", 1.0)
    rounds(row, push, lambda: copy(source, dest), count, before=clear)
    clear()
    kib = child(_RSS, place=str(place), path=str(source), push=True, dest="")["kib"]
    row.note = f"{kib / 1024:.0f} MiB beyond a bare interpreter's with SQLAlchemy"
    row.worse = "more than 70 MiB" if kib > 70 * 1024 else ""
    yield row

    bare = process(sys.executable, "-c", "import sqlalchemy")

    def by_hand() -> None:
        copy(source, dest)
        bare()

    command = process(*CKREG, "-r", str(place), "push", str(source), "--model", "net")
    both = "cp + fsync, and python -c 'import sqlalchemy'"
    row = Row(f"ckreg push {mib} MiB, whole process", both, 1.15)
    yield rounds(row, command, by_hand, count, before=clear)

    clear()
    reg.push(source, model="net")
    out = folder / "out.pt"

    def gone() -> None:
        dest.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
        settle()

    row = Row(f"reg.pull {mib} MiB, verified", "cp + fsync", 1.0)
    rounds(row, lambda: reg.pull("net", out), lambda: copy(source, dest), count, before=gone)
    gone()
    kib = child(_RSS, place=str(place), path="", push=False, dest=str(out))["kib"]
    row.note = f"{kib / 1024:.0f} MiB beyond a bare interpreter's with SQLAlchemy"
    row.worse = "more than 70 MiB" if kib > 70 * 1024 else ""
    yield row
    gone()
    reg.close()
    shutil.rmtree(place)


def anonymous() -> int:
    """Return this process's anonymous memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def saves(folder: Path, mib: int, count: int) -> Iterator[Row]:
    """Save, waited for and not, of a large net and a small one."""
    place, plain = folder / "reg", folder / "plain.pt"
    net, optimizer = trained(mib)
    reg = Registry.create(place)

    def tree(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "epoch": 1, "model": "net", "state_dict": net.state_dict(),
            "optimizer": optimizer.state_dict(),
        }  # fmt: skip

    def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with plain.open("wb") as file:
            torch.save(tree(net, optimizer), file)
            os.fsync(file.fileno())

    def clear() -> None:
        for blob in (place / "blobs").glob("*/*"):
            blob.unlink()
        plain.unlink(missing_ok=True)
        settle()

    row = Row(f"save {mib} MiB, waited for", "torch.save + fsync", 1.1)
    rounds(
        row, lambda: reg.save(net, model="net", optimizer=optimizer),
        lambda: by_hand(net, optimizer), count, before=clear,
    )  # fmt: skip
    clear()
    before = reset_peak_kib()
    reg.save(net, model="net", optimizer=optimizer)
    more = peak_kib() - before
    row.note = f"{more / 1024:.0f} MiB more memory at its peak"
    row.worse = "more than 64 MiB" if more > 64 * 1024 else ""
    yield row

    tensors = [*net.parameters(), *(v for s in optimizer.state.values() for v in s.values())]

    def clone() -> list[torch.Tensor]:
        return [t.detach().clone() for t in tensors]

    row = Row(
        f"save {mib} MiB, wait=False: until training may go on", "cloning the tensors once", 1.2
    )
    pending: list[Any] = []

    def written() -> None:
        for save in pending:
            save.result()
        pending.clear()
        clear()

    rounds(
        row,
        lambda: pending.append(reg.save(net, model="net", optimizer=optimizer, wait=False)),
        clone, count, before=written,
    )  # fmt: skip
    written()
    yield row

    small, adam = trained(30)
    yield rounds(
        Row("save of a 10 MiB model with Adam's state, whole call", "torch.save + fsync", 1.5),
        lambda: reg.save(small, model="small", optimizer=adam),
        lambda: by_hand(small, adam), 3 * count, before=clear,
    )  # fmt: skip
    reg.close()
    shutil.rmtree(place)
    plain.unlink(missing_ok=True)


_LOAD = """
import json, os, time
import torch
from benchmarks.speed import anonymous, network
from registry import Registry
if meta:
    with torch.device("meta"):
        net = network(mib)
else:
    net = network(mib)
weights = sum(p.nbytes for p in net.parameters())

def load(name, net):
    began = time.perf_counter()
    if place:
        with Registry.open(place) as reg:
            reg.load(name, into=net, device="cpu", verify=verify)
    else:
        net.load_state_dict(torch.load(f"{plain}/{name}.pt", weights_only=True)["state_dict"])
    return time.perf_counter() - began

first = load("tiny", torch.nn.Linear(2, 2))
before = anonymous()
took = load("net", net)
print(json.dumps({"s": took, "first": first, "more": (anonymous() - before) / weights}))
"""


def loads(folder: Path, mib: int, count: int) -> Iterator[Row]:
    """Load into a net that is there, and into one on the meta device.

    Each is the first large one of a new process, as it is for those who resume or serve: memory
    that a process got for one torch.load makes its next one cheaper. A tiny one before it, on both
    sides, imports what a load needs.
    """
    place, plain = folder / "reg", folder / "plain"
    plain.mkdir()
    net, optimizer = trained(3 * mib)
    reg = Registry.create(place)
    reg.save(net, model="full", optimizer=optimizer)
    reg.save(net, model="net")
    tiny = nn.Linear(2, 2)
    reg.save(tiny, model="tiny")
    for name, one in (("net", net), ("tiny", tiny)):
        torch.save({"epoch": 1, "state_dict": one.state_dict()}, plain / f"{name}.pt")
    weights = sum(p.nbytes for p in net.parameters())
    plan = reg.plan("full", into=net)
    reg.close()
    del net, optimizer

    def once(place: Path | str, *, meta: bool = False, verify: bool = True) -> dict[str, Any]:
        return child(_LOAD, place=str(place), plain=str(plain), mib=mib, meta=meta, verify=verify)

    for what, goal, words in (
        ("load into a net, every byte verified", 0.5, {}),
        ("load into a net, verify=False", 0.2, {"verify": False}),
        ("load into a net on meta, verified", 0.3, {"meta": True}),
        ("load into a net on meta, verify=False", 0.05, {"meta": True, "verify": False}),
    ):
        row = Row(f"{what}, {mib} MiB", "torch.load + load_state_dict", goal)
        more, first = 0.0, []
        for number in range(count + 1):
            ours, theirs = once(place, **words), once("")
            if number:
                row.times.append(ours["s"])
                row.others.append(theirs["s"])
                more = max(more, ours["more"])
                first.append(ours["first"])
        row.note = f"{100 * more:.0f} % of the weights as anonymous memory more"
        if words.get("meta"):
            ms = 1000 * statistics.median(first)
            row.note += f"; a tiny first load, with its imports, {ms:.0f} ms"
        row.worse = "more than 5 %" if more > 0.05 else ""
        told(row)
        yield row

    row = Row(
        "weights only, from a file with Adam's state: bytes", "the weights' bytes", 1.02,
        [float(plan.bytes_to_read)], [float(weights)],
    )  # fmt: skip
    told(row)
    yield row
    shutil.rmtree(place)
    shutil.rmtree(plain)


def commands(folder: Path, count: int) -> Iterator[Row]:
    """Start-up of the command line, and a second import of a tree."""
    place, tree = folder / "reg", folder / "tree"
    tree.mkdir()
    for number in range(1_000):
        net = nn.Linear(30, 30)
        torch.save(
            {"model": "net", "epoch": number, "state_dict": net.state_dict()}, tree / f"{number}.pt"
        )
    time.sleep(2.5)  # what changed a moment ago is never taken for known: registry/sightings.py
    with Registry.create(place) as reg:
        reg.import_(tree)

        def probes() -> None:
            """Look at each file as a probe does: its size, and a digest of both its ends."""
            with os.scandir(tree) as entries:
                for entry in entries:
                    size = entry.stat(follow_symlinks=False).st_size
                    fd = os.open(entry.path, os.O_RDONLY)
                    edge = min(64 << 10, size)
                    found = blake3(size.to_bytes(8, "little"))
                    found.update(os.pread(fd, edge, 0))
                    found.update(os.pread(fd, edge, size - edge))
                    found.digest()
                    os.close(fd)

        row = Row("a second import of 1,000 unchanged files", "stat and one probe of each", 1.5)
        rounds(row, lambda: reg.import_(tree), probes, 10 * count)
        each = 1e6 * statistics.median(row.times) / 1_000
        began = time.perf_counter()
        told = reg.import_(tree).to_dict()
        read = 1e3 * (time.perf_counter() - began) / len(told["files"])
        row.note = f"{each:.0f} us a file; with each one's record read and told {read:.2f} ms"
        yield row
    nothing = process(sys.executable, "-c", "pass")
    sqlalchemy = process(sys.executable, "-c", "import sqlalchemy")
    at = ["-r", str(place)]
    with Registry.open(place) as reg:
        reg.record("net", {"acc": 0.5})
    for words, goal, rival, named in (
        (["--help"], 5.0, nothing, "python -c pass"),
        (["--version"], 5.0, nothing, "python -c pass"),
        ([*at, "best", "net"], 1.3, sqlalchemy, "python -c 'import sqlalchemy'"),
        ([*at, "list"], 1.3, sqlalchemy, "python -c 'import sqlalchemy'"),
        ([*at, "show", "net"], 1.3, sqlalchemy, "python -c 'import sqlalchemy'"),
    ):
        shown = " ".join(word for word in words if word not in at)
        yield rounds(Row(f"ckreg {shown}", named, goal), process(*CKREG, *words), rival, 3 * count)
    shutil.rmtree(place)
