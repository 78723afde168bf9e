"""Pushes and pulls through a network that fails: each is right, or fails and leaves nothing."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from registry import Registry
from registry.errors import CkregError

from .s3_proxy import Chance, Proxy


@dataclass
class Found:
    """What a trial met: how many came out right, which failed cleanly, what was wrong."""

    right: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


def trial(
    endpoint: str, prefix: str, folder: Path, *, count: int, seed: int, share: float
) -> Found:
    """Push and pull in turn through faults, and compare all of it without them at the end.

    Args:
        share: of the requests that meet a fault.
    """
    found, chance = Found(), random.Random(seed)
    pushed: dict[str, bytes] = {}
    with Registry.create(folder / "reg", blobs=prefix) as reg:
        pass
    with Proxy(endpoint, Chance(seed, share)) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        try:
            reg = _opened(folder / "reg")
            for turn in range(count):
                if turn % 2 == 0 or not pushed:
                    _push(reg, folder, turn, chance, pushed, found)
                else:
                    _pull(reg, folder, turn, chance.choice(sorted(pushed)), pushed, found)
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
        found.faults = Counter({k: n for k, n in proxy.seen.items() if k})
    _compare(folder, pushed, found)
    return found


def _opened(place: Path) -> Registry:
    while True:
        try:
            return Registry.open(place)
        except CkregError:
            continue


def _push(
    reg: Registry,
    folder: Path,
    turn: int,
    chance: random.Random,
    pushed: dict[str, bytes],
    found: Found,
) -> None:
    path = folder / f"{turn}.pt"
    size = chance.choice((10, 1000, 300_000, 3_000_000))
    torch.save({"state_dict": {"w": torch.rand(size)}, "epoch": turn}, path)
    try:
        one = reg.push(path, model="m", epoch=turn)
        pushed[one.id] = path.read_bytes()
        found.right += 1
    except CkregError as error:
        found.failed[f"push {type(error).__name__}"] += 1
    finally:
        path.unlink()


def _pull(
    reg: Registry, folder: Path, turn: int, id: str, pushed: dict[str, bytes], found: Found
) -> None:
    dest = folder / f"{turn}.out"
    try:
        if turn % 4 == 1:
            got = reg.pull(id, dest).read_bytes() == pushed[id]
        else:
            state = reg.load(id, device="cpu").state_dict
            got = state is not None and len(state) == 1
        found.right += got
        if not got:
            found.wrong.append(f"turn {turn}: {id} came with other bytes")
    except CkregError as error:
        found.failed[f"pull {type(error).__name__}"] += 1
        if dest.exists():
            found.wrong.append(f"turn {turn}: a failed pull left {dest.name}")
    finally:
        dest.unlink(missing_ok=True)


def _compare(folder: Path, pushed: dict[str, bytes], found: Found) -> None:
    with Registry.open(folder / "reg") as reg:
        known = {one.id for one in reg.find("m", limit=None)}
        if known - pushed.keys():
            found.wrong.append(f"{len(known - pushed.keys())} pushes failed and are recorded")
        if pushed.keys() - known:
            found.wrong.append(f"{len(pushed.keys() - known)} acknowledged pushes are lost")
        found.wrong += [f"{f.kind}: {f.what} {f.where}" for f in reg.verify().findings if f.damage]
        for id, data in pushed.items():
            if reg.pull(id, folder / "last.pt", force=True).read_bytes() != data:
                found.wrong.append(f"{id} has other bytes")
    left = os.listdir(Path(os.environ["CKREG_CACHE"], "tmp"))
    if left:
        found.wrong.append(f"{len(left)} staged files are left")


def sweep(count: int, seed: int, share: float) -> int:
    """Start a server, make a trial, tell of it; 1 where something was wrong."""
    from . import s3_server

    with tempfile.TemporaryDirectory() as name:
        server = s3_server.start(Path(name, "server"))
        try:
            server.make_bucket("faults")
            os.environ.update(server.environment(), CKREG_CACHE=str(Path(name, "cache")))
            found = trial(
                server.endpoint, "s3://faults/x", Path(name), count=count, seed=seed, share=share
            )
        finally:
            server.stop()
    failed = f"{found.failed.total()} cleanly failed {dict(found.failed) or ''}".rstrip()
    print(f"{count} pushes and pulls: {found.right} right, {failed}")
    print(f"faults: {dict(found.faults)}")
    for text in found.wrong:
        print(f"WRONG: {text}")
    return int(bool(found.wrong))
