"""Other tools beside ckreg, in an environment of their own: `python -m benchmarks --rivals`.

Law: each does what its documentation says for keeping a file, with telemetry off, in a process that
has imported it already; what it doesn't do (hash, sync) is said beside its figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from registry import Registry

from .speed import Fresh, copy, network
from .timing import Row, child, settle, timed, told

PACKAGES = ("mlflow", "dvc", "aim", "wandb")

_PUSH = {
    "mlflow log_artifact": """
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{at}/mlflow.db")
name = "bench"
if mlflow.get_experiment_by_name(name) is None:
    mlflow.create_experiment(name, artifact_location=f"file://{at}/artifacts")
mlflow.set_experiment(name)
def act():
    with mlflow.start_run():
        mlflow.log_artifact(path)
""",
    "dvc add": """
import os, pathlib, shutil
from dvc.repo import Repo
os.chdir(at)
repo = Repo() if pathlib.Path(".dvc").exists() else Repo.init(no_scm=True)
target = f"{at}/source.pt"
if os.path.exists(target):
    os.chmod(target, 0o644)
    os.unlink(target)
shutil.copyfile(path, target)
os.sync()
def act():
    repo.add([target])
""",
    "wandb log_artifact, offline": """
import wandb
def act():
    run = wandb.init(project="bench", dir=at, settings=wandb.Settings(silent=True))
    artifact = wandb.Artifact("net", "model")
    artifact.add_file(path)
    run.log_artifact(artifact)
    run.finish()
""",
    "aim log_artifact": """
import aim
repo = aim.Repo.from_path(at, init=True)
def act():
    run = aim.Run(repo=repo)
    run.set_artifacts_uri(f"file://{at}/artifacts")
    run.log_artifact(path, "net", block=True)
    run.close()
""",
}

_LACKS = {
    "mlflow log_artifact": "neither hashed nor synced",
    "dvc add": "hashed with MD5, not synced",
    "wandb log_artifact, offline": "hashed with MD5, not synced",
    "aim log_artifact": "neither hashed nor synced",
}
"""What each leaves out, as its source and `strace -e fsync,fdatasync` show."""

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "true",
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "AIM_DISABLE_TELEMETRY": "1",
    "__AIM_TELEMETRY_ENABLED": "0", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_LOGGING_LEVEL": "ERROR",
}  # fmt: skip

_TIMED = """
import json, time
began = time.perf_counter()
act()
print(json.dumps({"s": time.perf_counter() - began}))
"""

_MLFLOW_BEST = """
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{at}/best.db")
client = mlflow.MlflowClient()
found = client.get_experiment_by_name("best")
experiment = found.experiment_id if found else client.create_experiment("best")
have = len(client.search_runs([experiment], max_results=5000))
for number in range(have, count):
    client.log_metric(client.create_run(experiment).info.run_id, "acc", number * 0.618 % 1)
def act():
    client.search_runs([experiment], order_by=["metrics.acc DESC"], max_results=1)
act()
"""

_LOAD = """
import json, time, torch
from benchmarks.speed import network
net = network(mib)
torch.load(tiny, weights_only=True, mmap=mmap)
began = time.perf_counter()
net.load_state_dict(torch.load(path, weights_only=True, mmap=mmap))
print(json.dumps({"s": time.perf_counter() - began}))
"""


def environment() -> Path:
    """Return the Python of the rivals' environment, made at first use in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "ckreg-benchmarks" / f"rivals-{sys.version_info[0]}.{sys.version_info[1]}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        print(f"installing {', '.join(PACKAGES)} in {home}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.touch()
    return python


def rivals(folder: Path, mib: int, count: int) -> Iterator[Row]:
    """Push of a file by other tools, each beside a copy; best; and plain torch with mmap."""
    python = environment()
    source, dest, tiny = folder / "source.pt", folder / "copy.pt", folder / "tiny.pt"
    fresh = Fresh(source, mib)
    for what, code in _PUSH.items():
        with tempfile.TemporaryDirectory(dir=folder) as at:
            row = Row(f"{what}, {mib} MiB", "cp + fsync", None, note=_LACKS[what])
            for number in range(count + 1):
                fresh()
                words = {"at": at, "path": str(source)}
                took = child(code + _TIMED, python=str(python), env=_QUIET, **words)["s"]
                dest.unlink(missing_ok=True)
                settle()
                copied = timed(lambda: copy(source, dest))
                if number:
                    row.times.append(took)
                    row.others.append(copied)
        told(row)
        yield row
    source.unlink()
    dest.unlink(missing_ok=True)
    yield _best(folder, python, 1_000, count)
    weights = folder / "weights.pt"
    torch.save(network(mib // 3).state_dict(), weights)
    torch.save({}, tiny)
    row = Row(f"torch.load(mmap=True) + load_state_dict, {mib // 3} MiB", "without mmap", None)
    for number in range(count + 1):
        pair = [
            child(_LOAD, mmap=mmap, path=str(weights), tiny=str(tiny), mib=mib // 3)["s"]
            for mmap in (True, False)
        ]
        if number:
            row.times.append(pair[0])
            row.others.append(pair[1])
    told(row)
    yield row
    weights.unlink()


def _best(folder: Path, python: Path, many: int, count: int) -> Row:
    row = Row(f"mlflow search_runs, the best of {many}", "Registry.best", None)
    with tempfile.TemporaryDirectory(dir=folder) as at, Registry.create(Path(at, "reg")) as reg:
        file = Path(at, "net.pt")
        for number in range(many):
            torch.save({"state_dict": {"a": torch.tensor([float(number)])}}, file)
            reg.push(file, model="net", acc=number * 0.618 % 1)
        reg.best("net")
        for _ in range(count):
            code = _MLFLOW_BEST + _TIMED
            words = {"at": at, "count": many}
            row.times.append(child(code, python=str(python), env=_QUIET, **words)["s"])
            row.others.append(timed(lambda: reg.best("net")))
    told(row)
    return row
