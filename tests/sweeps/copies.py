"""A registry that moves to PostgreSQL and an object store, is killed half-way, goes on, comes back.

Law: at either end all that is known, answered and stored is the same, but for the names of files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import buckets
import clusters
import torch

from registry import AmbiguousError, NotFoundError, Registry
from registry.catalog import Inventory
from registry.values import canonical_json

_ROOT = Path(__file__).parent.parent.parent
_KILLED = """
import os, signal, sys
from registry import Registry, copying
source, destination, blobs, call, after = sys.argv[1:]
left = int(after)
home = copying if call == "write_record" else copying.Arrivals
real = getattr(home, call)
def count_down(*words):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words)
setattr(home, call, count_down)
with Registry.open(source) as reg:
    reg.copy_to(destination, blobs=blobs or None)
"""


def killed(source: str, destination: str, blobs: str, call: str, after: int) -> bool:
    """Copy in a process that is killed before its n-th call, and say whether it was."""
    words = [sys.executable, "-c", _KILLED, source, destination, blobs, call, str(after)]
    done = subprocess.run(words, cwd=_ROOT, check=False, timeout=3600)
    return done.returncode == -signal.SIGKILL


def facts(reg: Registry) -> dict[str, Any]:
    """Return all that a registry knows and answers, and the bytes of its files."""
    store, known = reg._parts()
    all_ = list(reg.find(sort="created_at", include_removed=True, limit=None))
    models = [m.name for m in reg.models()]
    held = Inventory(reg._database())
    found: dict[str, Any] = {
        "wholes": sorted(canonical_json(portable(known.whole(c.id))) for c in all_),
        "find": [c.ref for c in reg.find(sort="-created_at", limit=None)],
        "models": reg.models(),
        "best": [_best(reg, name) for name in models],
        "moves": {name: known.alias_history(name) for name in models},
        "runs": sorted(canonical_json(r.to_dict()) for m in models for r in held.runs(m)[0]),
        "bytes": {},
    }
    for one in all_:
        for name, blob, _ in known.blobs_of(one.id):
            with store.open_blob(blob, cached=False) as file:
                file.verify()
                found["bytes"][one.id, name] = blob.digest
    return found


def portable(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a whole record without what is a place's own: the names of files in its store."""
    blobs = json.loads(json.dumps(whole["blobs"]))
    for one in blobs:
        for blob in (one["blob"], one["index"]):
            del blob["name"]
    return whole | {"blobs": blobs, "seal": None}


def _best(reg: Registry, name: str) -> str | None:
    try:
        return reg.best(name).ref
    except (AmbiguousError, NotFoundError) as error:
        return type(error).__name__


# --- the sweep ------------------------------------------------------------------------------------


def _fill(reg: Registry, folder: Path, count: int) -> None:
    file = folder / "w.pt"
    for n in range(count):
        torch.save({"state_dict": {"w": torch.full((64, 64), float(n))}}, file)
        model = f"net{n % 10}"
        one = reg.push(file, model=model, epoch=n, acc=n % 97 / 97, tags=["even"] * (n % 2 == 0))
        if n % 7 == 0:
            reg.alias(one, "prod")
        elif n % 11 == 0:
            reg.remove(one)
        elif n % 13 == 0:
            reg.record(one, {"test/loss": 1 / (n + 1)})


def _timed(source: Registry, destination: str, blobs: str | None) -> Any:
    began = time.monotonic()
    done = source.copy_to(destination, blobs=blobs)
    seconds = time.monotonic() - began
    print(
        f"{source.location} -> {destination}: {done.checkpoints} copied, {done.present} there "
        f"already, {len(done.left_out)} left out, {done.blobs} files in {seconds:.1f} s",
        flush=True,
    )
    return done


def sweep(count: int) -> int:
    """Move a registry there and back and print the counts; 1 if a law was broken."""
    why = clusters.why_not()
    if why is not None:
        print(f"copy: not done: {why}")
        return 1
    with tempfile.TemporaryDirectory(prefix="ckreg-copy-") as name:
        place = Path(name)
        blobs = str(place / "blobs")
        why = buckets.why_not()
        if why is None:
            os.environ.update(buckets.environment(place / "cache"))
            blobs = buckets.prefix()
        else:
            print(f"the bytes are in a folder, not in an object store: {why}")
        return _there_and_back(place, blobs, count)


def _there_and_back(place: Path, blobs: str, count: int) -> int:
    wrong: list[str] = []
    url = clusters.cluster().database()
    try:
        with Registry.create(place / "src") as source:
            _fill(source, place, count)
            print(f"{count} checkpoints pushed", flush=True)
            if not killed(source.location, url, blobs, "put", count // 2):
                wrong.append("the first copy wasn't killed half-way")
            done = _timed(source, url, blobs)
            if (done.checkpoints, done.present) != (count - count // 2 + 1, count // 2 - 1):
                wrong.append(f"{count // 2 - 1} were there, and {done.present} were passed over")
            expected = facts(source)
            with Registry.open(url) as there:
                wrong += _differences("there", expected, there)
                if _timed(source, url, None).present != count:
                    wrong.append("a third copy did something")
                _timed(there, str(place / "back"), None)
            with Registry.open(place / "back") as back:
                wrong += _differences("back", expected, back)
    finally:
        clusters.cluster().drop(url)
    print(f"{count} checkpoints there and back: {len(wrong)} laws broken")
    for text in wrong[:20]:
        print(f"  WRONG: {text}")
    return int(bool(wrong))


def _differences(where: str, expected: dict[str, Any], reg: Registry) -> list[str]:
    found = facts(reg)
    wrong = [f"{where}: {name} differs" for name in expected if found[name] != expected[name]]
    return wrong + [f"{where}: {f.kind}: {f.what}" for f in reg.verify().findings if f.damage]
