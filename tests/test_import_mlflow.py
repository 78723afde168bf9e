"""Import from MLflow: the store is made by MLflow itself, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_nets import net

from registry import Checkpoint, Registry
from registry.cli import run
from registry.errors import ContainerError, NotFoundError, RemoteError
from registry.tracking import facts
from registry.tracking.mlflow import shown
from registry.tracking.told import Point, Registered, TrackedRun, Tree

there = importlib.util.find_spec("mlflow") is not None
needs_mlflow = pytest.mark.skipif(not there, reason="mlflow is not installed")

# what MLflow and the libraries below it warn of when they are imported is not ours
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
FILL = Path(__file__).with_name("mlflow_store.py")


def fill(uri: str, folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FILL), uri, *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **SETTINGS}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlflow.db and the artifacts that it names."""
    folder = tmp_path_factory.mktemp("mlflow")
    fill(f"sqlite:///{folder}/mlflow.db", folder, f"file://{folder}/art")
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


def uri_of(store: Path) -> str:
    return f"sqlite:///{store}/mlflow.db"


def told(ckpt: Checkpoint) -> dict[str, Any]:
    return {"epoch": ckpt.epoch, "step": ckpt.step, **ckpt.metrics}


# --- the whole way --------------------------------------------------------------------------------


@needs_mlflow
@pytest.mark.filterwarnings("ignore:the file's run")  # it is of two models, so of two runs here
def test_runs_models_and_their_metrics_come_over(reg: Registry, store: Path) -> None:
    done = reg.import_mlflow(uri_of(store), acc_from="val_accuracy")

    assert [f.path for f in done.added] == [
        "vision/try-1/ckpts/epoch_0.pt", "vision/try-1/ckpts/epoch_1.pt",
        "vision/try-1/ckpts/epoch_2.pt", "vision/try-1/model/data/model.pth",
        "Odd steps!/steps/last.ckpt", "Odd steps!/steps/mid.ckpt",
    ]  # fmt: skip
    assert [(f.path, f.hint is not None) for f in done.failed] == [
        ("Odd steps!/steps/broken.pt", True)
    ]
    assert [told(c) for c in reg.find("vision", sort="version")] == [
        {"epoch": 0, "step": None, "acc": 0.5, "val_accuracy": 0.5, "loss": 8.0},
        {"epoch": 1, "step": None, "acc": 0.625, "val_accuracy": 0.625, "loss": 7.0},
        {"epoch": 2, "step": None, "acc": 0.75, "val_accuracy": 0.75, "loss": 5.5},
    ]
    first = reg.get("vision@v1")
    assert set(first.provenance.from_name) == {
        "model", "metrics.acc", "metrics.val_accuracy", "metrics.loss",
    }  # fmt: skip
    assert first.config.to_dict() == {"lr": 0.1, "batch": 32, "opt": "sgd", "v": "1.10"}
    assert first.run is not None
    assert first.run.name == "try-1"
    assert first.tags == ("team-eyes",)
    assert reg.get("vision@v2").run == first.run
    assert torch.equal(reg.load(first).state_dict["0.weight"], net().state_dict()["0.weight"])


@needs_mlflow
@pytest.mark.filterwarnings("ignore:the file's run")
def test_a_registered_model_brings_its_name_aliases_tags_and_own_metrics(
    reg: Registry, store: Path
) -> None:
    done = reg.import_mlflow(uri_of(store), experiments=["vision"])
    ckpt = reg.get("resnet@champion")
    assert told(ckpt) == {"epoch": None, "step": 2, "val_accuracy": 0.75, "loss": 5.5}
    assert set(ckpt.tags) == {"quality-good", "shipped", "team-eyes"}
    assert ckpt.provenance.from_name == ()  # MLflow links the metrics to the model
    assert any("alias 'best'" in remark for remark in done.remarks)
    into = net()
    with torch.no_grad():
        for parameter in into.parameters():
            parameter.zero_()
    reg.load(ckpt, into=into)
    assert all(
        torch.equal(a, b) for a, b in zip(into.parameters(), net().parameters(), strict=True)
    )


@needs_mlflow
def test_the_run_s_metric_epoch_tells_which_steps_are_a_checkpoint_s(
    reg: Registry, store: Path
) -> None:
    done = reg.import_mlflow(uri_of(store), experiments=["Odd steps!"])
    last, mid = reg.get("Odd-steps@v1"), reg.get("Odd-steps@v2")
    assert told(last) == {"epoch": 1, "step": None, "acc": 0.199}  # and not 0.9, of step 1
    assert told(mid) == {"epoch": 0, "step": 49, "acc": 0.049}
    assert last.provenance.from_name == ("model",)
    assert any("'odd' is nan" in remark for remark in done.remarks)


@needs_mlflow
@pytest.mark.filterwarnings("ignore:the file's run")
def test_a_second_import_adds_nothing_and_the_dry_run_looks_the_same(
    reg: Registry, store: Path
) -> None:
    before = (store / "mlflow.db").read_bytes(), sorted(p.name for p in store.iterdir())
    dry = reg.import_mlflow(uri_of(store), dry_run=True)
    assert reg.count() == 0
    first = reg.import_mlflow(uri_of(store))
    again = reg.import_mlflow(uri_of(store))
    facts_of = ("path", "outcome", "model", "dataset", "epoch", "step", "metrics", "from_name")
    assert [{k: f.to_dict()[k] for k in facts_of} for f in dry.files] == [
        {k: f.to_dict()[k] for k in facts_of} for f in first.files
    ]
    assert dry.remarks == first.remarks
    assert (len(first.added), len(again.added), len(again.present)) == (6, 0, 6)
    assert reg.count() == 6
    assert ((store / "mlflow.db").read_bytes(), sorted(p.name for p in store.iterdir())) == before


@needs_mlflow
@pytest.mark.filterwarnings("ignore:the file's run")
def test_the_command_imports_and_says_what_failed(
    reg: Registry, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", f"mlflow:{uri_of(store)}", "--json", "-r", reg.location]) == 1
    out, err = capsys.readouterr()
    plain = json.loads(out)
    assert (plain["added"], plain["failed"], len(plain["remarks"])) == (6, 1, 2)
    assert "broken.pt: is cut short" in err
    assert run(["import", "mlflow:x", "--run", "a"]) == 2
    assert run(["import", ".", "--acc-from", "a"]) == 2


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the file's run")
def test_a_server_gives_the_same_as_its_database(
    reg: Registry, store: Path, tmp_path: Path
) -> None:
    """Artifacts go through the server: each is brought here, and gone afterwards."""
    with served(tmp_path) as uri:
        fill(uri, tmp_path)
        done = reg.import_mlflow(uri)
        assert (len(done.added), len(done.failed)) == (6, 1)
        assert len(reg.import_mlflow(uri).present) == 6
    with Registry.create(tmp_path / "other") as other:
        other.import_mlflow(uri_of(store))
        for ours in other.find(sort="version"):
            theirs = reg.get(ours.ref)
            assert (told(theirs), theirs.provenance, theirs.tags, theirs.aliases) == (
                told(ours), ours.provenance, ours.tags, ours.aliases,
            )  # fmt: skip


class served:
    """MLflow's server on this machine's loopback, until the block ends.

    Where it can't run (mlflow-skinny has none) or isn't up in time, the test is skipped, and says
    why.
    """

    def __init__(self, folder: Path, *, within_s: float = 120) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.within_s = within_s
        self.log = folder / "server.log"
        words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        places = [f"sqlite:///{folder}/served.db", str(folder / "served")]
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words, "--backend-store-uri", places[0],
                 "--artifacts-destination", places[1]],
                cwd=folder, env={**os.environ, **SETTINGS}, start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self) -> str:
        try:
            why = self._why_not_up()
            if why is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"mlflow server {why}: {''.join(last) or 'it said nothing'}")
        except BaseException:  # a block that isn't entered isn't left
            self.__exit__()
            raise
        return self.uri

    def _why_not_up(self) -> str | None:
        end = time.monotonic() + self.within_s
        while time.monotonic() < end:
            if self.server.poll() is not None:
                return f"ended with {self.server.returncode}"
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return None
            except OSError:
                time.sleep(0.25)
        return f"wasn't up within {self.within_s:g} s"

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # its workers are of its group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(15)


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_no_store_is_said_and_nothing_is_made(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no MLflow database"):
        reg.import_mlflow(f"sqlite:///{tmp_path}/typo.db")
    with pytest.raises(NotFoundError, match="not there"):
        reg.import_mlflow(str(tmp_path / "mlruns"))
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE a (b)").connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(ContainerError, match="not one of MLflow's"):
        reg.import_mlflow(f"sqlite:///{tmp_path}/other.db")
    assert (tmp_path / "other.db").read_bytes() == before
    assert not (tmp_path / "typo.db").exists()


@needs_mlflow
def test_of_a_store_whose_files_were_moved_it_says_where_they_were(
    reg: Registry, store: Path, tmp_path: Path
) -> None:
    (store / "art").rename(tmp_path / "art")
    try:
        found = reg.import_mlflow(uri_of(store))
    finally:
        (tmp_path / "art").rename(store / "art")
    assert not found.added
    assert [f.path for f in found.failed] == ["vision/try-1/model"]
    assert f"{store}/art/vision/" in str(found.failed[0].reason)
    assert len(found.remarks) == 1
    assert (
        f"none of 2 runs has a file where the store says, e.g. '{store.as_uri()}/art/"
        in (found.remarks[0])
    )


@needs_mlflow
def test_an_experiment_that_is_not_there_is_named_with_those_that_are(
    reg: Registry, store: Path
) -> None:
    with pytest.raises(NotFoundError, match="vision") as caught:
        reg.import_mlflow(uri_of(store), experiments=["visoin"])
    assert caught.value.near == ("vision",)


@needs_mlflow
def test_a_server_that_does_not_answer_is_named_without_its_password(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RemoteError) as caught:
        reg.import_mlflow("http://ann:s3cret@127.0.0.1:1")
    assert "s3cret" not in str(caught.value)
    assert "ann:***@127.0.0.1:1" in caught.value.message
    assert shown("postgresql://a:b@h/d") == "postgresql://a:***@h/d"


# --- which metrics are a checkpoint's -------------------------------------------------------------


def tree(steps: dict[str, list[tuple[int, float]]], **words: Any) -> Tree:
    metrics = {k: tuple(Point(s, i, v) for i, (s, v) in enumerate(p)) for k, p in steps.items()}
    run = TrackedRun(id="0" * 32, name="r", experiment="e", metrics=metrics)
    return Tree(title="e/r", uri="/x", files={}, run=run, **words)


BY_EPOCH = {"acc": [(0, 0.1), (1, 0.2), (2, 0.3)]}


@pytest.mark.parametrize(
    ("words", "metrics", "inferred"),
    [
        ({"epoch": None, "step": 1}, {"acc": 0.2}, {}),
        ({"epoch": 1, "step": None}, {}, {"acc": 0.2}),
        ({"epoch": 1, "step": 700}, {}, {}),  # it has a step, and nothing was logged there
        ({"epoch": 9, "step": None}, {}, {}),
        ({"epoch": None, "step": None, "only": True}, {}, {"acc": 0.3}),
        ({"epoch": None, "step": None, "only": True, "best": True}, {}, {}),
        ({"epoch": None, "step": None}, {}, {}),  # one of several: which value, nothing says
    ],
)
def test_a_metric_is_a_checkpoint_s_by_its_step(
    words: dict[str, Any], metrics: object, inferred: object
) -> None:
    said = facts.metrics_of(tree(BY_EPOCH), **{"only": False, **words})
    assert (said.metrics, said.inferred) == (metrics, inferred)


def test_of_two_values_of_a_step_the_later_counts_and_the_machine_s_own_don_t() -> None:
    said = facts.metrics_of(
        tree({"acc": [(1, 0.1), (1, 0.2)], "system/cpu": [(1, 99.0)]}),
        epoch=None, step=1, only=False,
    )  # fmt: skip
    assert said.metrics == {"acc": 0.2}


def test_a_metric_linked_to_a_model_comes_before_the_run_s() -> None:
    linked = tree(BY_EPOCH, metrics={"acc": Point(7, 0, 0.9)}, one_model=True)
    said = facts.metrics_of(linked, epoch=None, step=1, only=True)
    assert said.metrics == {"acc": 0.9}


def test_tags_and_aliases_that_cannot_be_here_are_left_out_and_said() -> None:
    from registry.drafting import Given

    version = Registered(
        model="m", version="3", tags={"a b": "c", "ok": "", "k": "v"}, aliases=("latest", "prod"),
        stage="Production",
    )  # fmt: skip
    given, said = facts.marks(Given(), [version], None)
    assert given.tags == ("ok", "k-v", "stage-production")
    assert given.aliases == ("prod",)
    assert [text.split(" is left out")[0] for text in said.left_out] == [
        "the tag 'a b-c' of m version 3", "the alias 'latest' of m version 3",
    ]  # fmt: skip
