"""Damaged blobs and database pages: never a byte or a fact that wasn't recorded.

Law: a damaged blob is refused by pull and by every load that reads the damaged place; a load that
doesn't read it gives the right tensors. From a damaged database a checkpoint is served as it was
recorded, or not at all; labels, which may change any day (tags, aliases, removed), are counted
apart. A damage is made from its number alone.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from registry import Checkpoint, CkregError, Registry
from registry.errors import DamagedError

_SHOWN: Final = 20
_LABELS: Final = ("tags", "aliases", "removed_at")


# --- blobs ----------------------------------------------------------------------------------------


def spoil(rng: random.Random, data: bytes) -> bytes:
    """Flip a bit, overwrite a run, or cut the end off; never give the same bytes."""
    spoiled, at = bytearray(data), rng.randrange(len(data))
    kind = rng.random()
    if kind < 0.7:
        spoiled[at] ^= 1 << rng.randrange(8)
    elif kind < 0.85:
        end = min(len(data), at + rng.randrange(1, 4097))
        spoiled[at:end] = rng.randbytes(end - at)
    else:
        del spoiled[at:]
    return spoil(rng, data) if spoiled == data else bytes(spoiled)


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 24), torch.nn.BatchNorm1d(24))


def blobs(folder: Path, start: int, count: int) -> tuple[Counter[str], list[str]]:
    """Damage a saved net's blob again and again; return what was met, and what broke the law."""
    met: Counter[str] = Counter()
    broken: list[str] = []
    net = _net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(4, 32)).square().mean().backward()
    optimizer.step()
    wanted = {key: value.clone() for key, value in net.state_dict().items()}
    with Registry.create(folder / "reg") as reg:
        saved = reg.save(net, model="net", optimizer=optimizer, epoch=1)
        (blob,) = (folder / "reg").glob(f"blobs/{saved.digest[7:9]}/{saved.digest[9:]}.*")
        data = blob.read_bytes()
        for number in range(start, start + count):
            rng = random.Random(f"blob {number}")
            _replace(blob, spoil(rng, data))
            for how, load in _loads(reg, folder).items():
                met[how] += 1
                try:
                    found = load()
                except DamagedError:
                    met[f"{how} refused"] += 1
                    continue
                except Exception as error:
                    broken.append(f"blob {number}: {how}: {type(error).__name__}: {error}")
                    continue
                if how != "weights" or found is None or not _equal(found, wanted):
                    broken.append(f"blob {number}: {how} took it")
        _replace(blob, data)
        if not all(_equal(wanted, load() or wanted) for load in _loads(reg, folder).values()):
            broken.append("the sound blob isn't read")
    return met, broken


def _loads(reg: Registry, folder: Path) -> dict[str, Callable[[], dict[str, torch.Tensor] | None]]:
    def pull() -> None:
        dest = folder / "pulled.pt"
        try:
            reg.pull("net", dest)
        finally:
            left = [p.name for p in folder.iterdir() if p.name.startswith(".ckreg-")]
            if left:
                raise AssertionError(f"{left} is left over")
        dest.unlink()

    def resume() -> dict[str, torch.Tensor]:
        net = _net()
        optimizer = torch.optim.AdamW(net.parameters())
        reg.load("net", into=net, optimizer=optimizer)
        return net.state_dict()

    def weights() -> dict[str, torch.Tensor]:
        found = reg.load("net").state_dict
        assert found is not None
        return found

    return {"pull": pull, "resume": resume, "weights": weights}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # a new file: the old one may be mapped
    path.write_bytes(data)
    path.chmod(0o444)


# --- database pages -------------------------------------------------------------------------------


def _history(folder: Path) -> Registry:
    """Make a registry of some size, with labels, runs, metrics and a tombstone."""
    reg = Registry.create(folder / "reg")
    file = folder / "in.pt"
    for model in ("net", "group/other"):
        state = {"w": torch.full((4, 4), float(len(model)))}
        torch.save({"state_dict": state}, file)
        for epoch in range(20):
            made = reg.push(
                file, model=model, dataset="cifar10" if epoch % 3 else None, epoch=epoch,
                acc=0.5 + epoch / 100, metrics={"val/loss": 1 / (1 + epoch)}, run=f"run{epoch % 2}",
                tags=["good"] if epoch % 4 == 0 else [], note=f"note {epoch}",
            )  # fmt: skip
        reg.alias(made, "prod")
        reg.record(made, {"test/acc": 0.9})
        reg.remove(f"{model}@v3")
    return reg


def asked(reg: Registry) -> dict[str, Callable[[], list[Checkpoint]]]:
    """Return questions of every kind."""
    models = ("net", "group/other")

    def every(**words: Any) -> Callable[[], list[Checkpoint]]:
        return lambda: list(reg.find(**words))

    asking: dict[str, Callable[[], list[Checkpoint]]] = {
        "list": every(include_removed=True),
        "list by acc": every(sort="-acc"),
        "where": every(where='acc > 0.55 and dataset == "cifar10"'),
        "where metric": every(where='metrics."val/loss" < 0.2'),
        "tags": every(tags=["good"]),
    }
    for model in models:
        asking[f"best of {model}"] = lambda m=model: [  # type: ignore[misc]
            reg.best(m, dataset="cifar10"),
            reg.best(m, dataset="cifar10", metric="val/loss", mode="min"),
        ]
        asking[f"latest of {model}"] = lambda m=model: [reg.latest(m, dataset="cifar10")]  # type: ignore[misc]
        for ref in (f"{model}@v1", f"{model}@v20", f"{model}@prod", f"{model}@epoch=7"):
            asking[ref] = lambda r=ref: [reg.get(r)]  # type: ignore[misc]
    return asking


def pages(folder: Path, start: int, count: int) -> tuple[Counter[str], list[str]]:
    """Flip bits of the database, and ask; return what was met, and what broke the law."""
    met: Counter[str] = Counter()
    broken: list[str] = []
    with _history(folder) as reg:
        path = folder / "reg/registry.db"
        data = path.read_bytes()
        known = {c.id: c.to_dict() for c in reg.find(include_removed=True)}
        right = {name: [c.id for c in ask()] for name, ask in asked(reg).items()}
        for number in range(start, start + count):
            rng = random.Random(f"page {number}")
            spoiled = bytearray(data)
            spoiled[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(spoiled)
            seen = set()
            for name, ask in asked(reg).items():
                met["questions"] += 1
                try:
                    answer = ask()
                except CkregError:
                    seen.add("refused")
                    continue
                except Exception as error:
                    broken.append(f"page {number}: {name}: {type(error).__name__}: {error}")
                    continue
                for checkpoint in answer:
                    seen.add(_judge(checkpoint, known, f"page {number}: {name}", broken))
                if [c.id for c in answer] != right[name]:
                    seen.add("another answer, of sound rows")
            for kind in seen - {"right"}:
                met[f"databases: {kind}"] += 1
            met["databases"] += 1
        path.write_bytes(data)
    return met, broken


def _judge(
    checkpoint: Checkpoint, known: dict[Any, dict[str, Any]], where: str, broken: list[str]
) -> str:
    said, recorded = checkpoint.to_dict(), known.get(checkpoint.id)
    if said == recorded:
        return "right"
    if recorded is not None:
        wrong = [key for key in recorded if said.get(key) != recorded[key]]
        if set(wrong) <= set(_LABELS):
            return f"wrong labels ({', '.join(wrong)})"
    broken.append(f"{where}: {checkpoint.ref} is served with wrong facts")
    return "wrong facts"


def sweep(kinds: list[str], start: int, count: int) -> int:
    """Do the damage of each kind, and print what became of it; 1 if the law was broken."""
    warnings.simplefilter("ignore")
    failed = False
    for kind in kinds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ckreg-damage-") as place:
            met, broken = KINDS[kind](Path(place), start, count)
        print(
            f"{kind}: {count} damaged, {time.monotonic() - began:.0f} s, {len(broken)} laws broken"
        )
        for what, times in sorted(met.items()):
            print(f"  {times:7} {what}")
        for line in broken[:_SHOWN]:
            print(f"  {line}")
        sys.stdout.flush()
        failed |= bool(broken)
    return int(failed)


KINDS: Final = {"blobs": blobs, "pages": pages}
