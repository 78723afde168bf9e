"""Curves: what a cost becomes when checkpoints, bytes, tensors or files get more.

Each point stands beside the curve's first one, or beside what torch or `cp` take at the same point,
in turns. A flat curve is a column of equal ratios.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from registry import Registry

from .million import filled
from .speed import Fresh, copy
from .timing import Row, rounds, settle, told

FILES = 10_000


def growth(folder: Path, mib: int, count: int, *, at: Path | None) -> Iterator[Row]:
    """Return the curves.

    Args:
        mib: the largest file.
        at: a registry of a million, which gives the first curve its last point.
    """
    yield from _checkpoints(folder, count, at)
    yield from _sizes(folder, mib, count)
    yield from _tensors(folder, count)
    yield from _files(folder)


def _ms(row: Row) -> str:
    return f"{1000 * statistics.median(row.times):.2f} ms"


def _small(path: Path) -> Callable[[], None]:
    """Return what writes another small file."""

    def write() -> None:
        torch.save({"state_dict": {"w": torch.rand(1000)}}, path)

    return write


def _checkpoints(folder: Path, count: int, at: Path | None) -> Iterator[Row]:
    sizes = (100, 1_000, 10_000, 100_000)
    registries = {f"{size:,}": filled(folder / str(size), size) for size in sizes}
    if at is not None and (at / "registry.db").exists():
        many = Registry.open(at)
        registries[f"{many.count(include_removed=True):,}"] = many
    first = registries["100"]
    path = folder / "small.pt"

    def asked(reg: Registry) -> dict[str, Callable[[], object]]:
        return {
            "best": lambda: reg.best("resnet50", dataset="imagenet"),
            "get by version": lambda: reg.get("resnet50@v7"),
            "newest 50": lambda: list(reg.find("resnet50", limit=50)),
            "newest 10 with acc > 0.5": lambda: list(
                reg.find("resnet50", where="acc > 0.5", limit=10)
            ),
            "push of 4 kB": lambda: reg.push(path, model="resnet50"),
        }

    for what, same in asked(first).items():
        push = what.startswith("push")
        for held, reg in list(registries.items())[1:]:
            row = Row(f"{what}, {held} checkpoints", "100 checkpoints", None)
            before = _small(path) if push else lambda: None
            rounds(row, asked(reg)[what], same, 4 * count, before=before)
            row.note = _ms(row)
            yield row
    for reg in registries.values():
        reg.close()
    for size in sizes:
        shutil.rmtree(folder / str(size))


def _sizes(folder: Path, mib: int, count: int) -> Iterator[Row]:
    place, source, dest = folder / "reg", folder / "source.pt", folder / "copy.pt"
    reg = Registry.create(place)
    for size in (1, 8, 64, 512, 2048, 8192):
        if size > mib or shutil.disk_usage(folder).free < 4 * size << 20:
            continue
        fresh = Fresh(source, size)

        def clear(fresh: Fresh = fresh) -> None:
            for blob in (place / "blobs").glob("*/*"):
                blob.unlink()
            dest.unlink(missing_ok=True)
            fresh()

        row = Row(f"push of {size:,} MiB", "cp + fsync", None)
        rounds(
            row, lambda: reg.push(source, model="net"), lambda: copy(source, dest),
            count if size > 100 else 3 * count, before=clear,
        )  # fmt: skip
        row.note = f"{size / statistics.median(row.times) / 1024:.2f} GiB/s"
        yield row
    reg.close()
    shutil.rmtree(place)
    source.unlink()
    dest.unlink(missing_ok=True)


def _tensors(folder: Path, count: int) -> Iterator[Row]:
    """Save and load of 100 MB in so many tensors."""
    place, plain = folder / "reg", folder / "plain.pt"
    reg = Registry.create(place)
    for number in (10, 100, 1_000, 10_000):
        net = nn.ParameterList(torch.rand(25_000_000 // number) for _ in range(number))

        def by_hand(net: nn.Module = net) -> None:
            with plain.open("wb") as file:
                torch.save({"epoch": 1, "model": "net", "state_dict": net.state_dict()}, file)
                os.fsync(file.fileno())

        def clear() -> None:
            for blob in (place / "blobs").glob("*/*"):
                blob.unlink()
            plain.unlink(missing_ok=True)
            settle()

        row = Row(f"save of 100 MB in {number:,} tensors", "torch.save + fsync", None)
        save = _saved(reg, net)
        rounds(row, save, by_hand, count, before=clear)
        row.note = _ms(row)
        yield row
        clear()
        by_hand()
        save()
        row = Row(f"load of 100 MB in {number:,} tensors, verified", "torch.load", None)
        rounds(
            row, lambda: reg.load("net", device="cpu"),
            lambda: torch.load(plain, weights_only=True), count,
        )  # fmt: skip
        row.note = _ms(row)
        yield row
    reg.close()
    shutil.rmtree(place)
    plain.unlink()


def _saved(reg: Registry, net: nn.Module) -> Callable[[], object]:
    return lambda: reg.save(net, model="net", epoch=1)


def _files(folder: Path) -> Iterator[Row]:
    """Import many small files, and compare the last ones with the first."""
    tree, place = folder / "tree", folder / "reg"
    tree.mkdir()
    for number in range(FILES):
        torch.save({"state_dict": {"w": torch.rand(1000)}}, tree / f"net-{number:05}.pt")
    settle()
    ends: list[float] = []
    part = 0

    def progress(done: int, total: int) -> None:
        nonlocal part
        if done * FILES >= (part + 1) * 100 * total:  # a hundred files more are in
            part += 1
            ends.append(time.perf_counter())

    with Registry.create(place) as reg:
        began = time.perf_counter()
        done = reg.import_(tree, model="net", progress=progress)
    assert len(done.added) == FILES, done.failed[:3]
    taken = [(b - a) / 100 for a, b in zip([began, *ends], ends, strict=False)]
    row = Row(
        f"import of {FILES:,} small files: each of the last 1,000", "each of the first 1,000", 1.2,
        taken[-10:], taken[:10],
    )  # fmt: skip
    row.note = f"{1000 * statistics.mean(taken[:10]):.1f} ms a file, at last "
    row.note += f"{1000 * statistics.mean(taken[-10:]):.1f} ms"
    told(row)
    yield row
    shutil.rmtree(tree)
    shutil.rmtree(place)
