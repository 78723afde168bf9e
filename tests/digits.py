"""The jobs of the integrations' tests: a tiny net learns the digits, by every loop that people use.

Each is run in the test's own process, or killed in one of its own:
`python tests/digits.py JOB LOCATION FOLDER KILL_AT`, where KILL_AT is the epoch in the middle of
which it kills itself. What it ends with is returned: weights and optimizer state.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).resolve()
EPOCHS = 4
NEVER = -1


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 800 images of digits, each a row of 64, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data[:800] / 16, dtype=torch.float32), torch.tensor(
        found.target[:800]
    )


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return batches to train on, ten an epoch, and one batch to validate on."""
    x, y = tensors()
    return (
        DataLoader(TensorDataset(x[:600], y[:600]), batch_size=64),
        DataLoader(TensorDataset(x[600:], y[600:]), batch_size=200),
    )


def network() -> nn.Sequential:
    """Return a small net that has buffers too, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Return the validation accuracy of a net, which stays in its mode."""
    was = net.training
    x, y = tensors()
    right: float = (net.eval()(x[600:]).argmax(1) == y[600:]).float().mean().item()
    net.train(was)
    return right


@torch.no_grad()
def spoil(net: nn.Sequential, now: bool) -> None:
    """Make a net forget what it learned."""
    if now:
        net[3].weight.zero_()  # type: ignore[operator]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums of floats depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def die() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(job: str, location: Path, folder: Path, at: int) -> None:
    """Run a job in a process of its own, and see that it was killed there, not before."""
    done = alone(job, location, folder, at)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def alone(
    job: str, location: Path, folder: Path, at: int = NEVER
) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own."""
    return subprocess.run(
        [sys.executable, str(HERE), job, str(location), str(folder), str(at)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent)]),
        },
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def check_resume(job: str, tmp_path: Path, *, first: int = 0) -> None:
    """Check that a job that was killed and begun again ends as one that wasn't, bit for bit.

    Args:
        first: the number that it gives the first epoch.
    """
    from registry import Registry

    run = globals()[job]
    for name in ("whole", "killed"):
        Registry.create(tmp_path / name).close()
    whole = run(tmp_path / "whole", tmp_path / "a")
    killed(job, tmp_path / "killed", tmp_path / "b", at=2)
    with Registry.open(tmp_path / "killed") as reg:
        assert [c.epoch for c in reg.find("digits-mlp", sort="version")] == [
            first,
            first + 1,
        ]
        resumed = run(tmp_path / "killed", tmp_path / "b")
        found = list(reg.find("digits-mlp", sort="version", include_removed=True))
        assert [c.epoch for c in found] == list(range(first, first + 4))
        assert [c.parent for c in found] == [None, *(c.id for c in found[:-1])]
        assert {(c.run.name, c.dataset) for c in found if c.run} == {("a", "digits")}
        assert len({c.run.id for c in found if c.run}) == 1
    for part in ("net", "optimizer", "scheduler"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)


# --- the jobs -------------------------------------------------------------------------------------


def lightning_module() -> Any:
    """Return a LightningModule that has the net as `model`."""
    import lightning

    class Digits(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, lr: float = 0.01) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = network()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            right = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("val_acc", right, sync_dist=True)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Digits()


@one_thread()
def lightning(
    location: Path,
    folder: Path,
    kill_at: int = NEVER,
    *,
    net: Any = None,
    words: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train by Lightning's Trainer; go on where the run of this name is."""
    import lightning as pl

    from registry.integrations.lightning import CheckpointCallback

    class Killer(pl.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == kill_at and trainer.fit_loop.epoch_loop.batch_idx == 3:
                die()

    callback = CheckpointCallback(
        location, "digits-mlp", dataset="digits", run="a",
        **{"monitor": "val_acc", "mode": "max", "acc": "val_acc", **(words or {})},
    )  # fmt: skip
    trainer = pl.Trainer(
        **{"max_epochs": EPOCHS, **settings}, accelerator="cpu", default_root_dir=folder,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, Killer()],
    )  # fmt: skip
    net = net or lightning_module()
    trainer.fit(net, *loaders(), ckpt_path=callback.ckpt_path())
    return {
        "net": net.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "last": callback.last,
    }


def lightning_ddp(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train on two processes: the Trainer starts the other one."""
    lightning(location, folder, kill_at, strategy="ddp", devices=2)


def lightning_ddp_refused(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train on two processes, where what rank 0 is to save is refused; both must learn it."""
    _refused(location, folder, kill_at, words={"acc": "nope"}, strategy="ddp", devices=2)


def lightning_ddp_of_another(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train on two processes, where the run began with other settings; both must learn it."""
    words = {"config": {"lr": 0.5}}
    _refused(location, folder, kill_at, words=words, strategy="ddp", devices=2)


def lightning_fsdp2(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train a net that two processes hold in parts."""
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    net = lightning_module()
    net.configure_model = lambda: fully_shard(net.model, mesh=net.device_mesh["data_parallel"])
    strategy = ModelParallelStrategy(process_group_backend="gloo")
    lightning(location, folder, kill_at, net=net, strategy=strategy, devices=2)


def lightning_fsdp1(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train under FSDP1, whose state only a call of all ranks gives."""
    from lightning.pytorch.strategies import FSDPStrategy
    from torch.distributed.fsdp import FullyShardedDataParallel

    class OnCpu(FSDPStrategy):  # type: ignore[misc]
        def _setup_model(self, model: Any) -> Any:
            return FullyShardedDataParallel(
                model, use_orig_params=True, device_id=torch.device("cpu")
            )

    strategy = OnCpu(process_group_backend="gloo")
    _refused(location, folder, kill_at, strategy=strategy, devices=1)


def lightning_deepspeed(location: Path, folder: Path, kill_at: int = NEVER) -> None:
    """Train under DeepSpeed, as far as it goes without a GPU: its engine holds the net."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Engine(DeepSpeedEngine):  # type: ignore[misc]
        def __init__(self, net: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = net

    class Engined(SingleDeviceStrategy):  # type: ignore[misc]
        def setup(self, trainer: Any) -> None:
            super().setup(trainer)
            self.model = Engine(self.model)

    _refused(location, folder, kill_at, strategy=Engined())


def _refused(location: Path, folder: Path, kill_at: int, **words: Any) -> None:
    from registry import CkregError

    try:
        lightning(location, folder, kill_at, **words)
    except (ValueError, CkregError) as error:
        # At once: two processes write to this pipe
        os.write(1, f"\nREFUSED {type(error).__name__}: {error}\n".encode())


class Labelled(nn.Module):
    """A net as transformers' Trainer takes it: labels in, loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset[Any]):
    """Images and labels, as transformers' Trainer takes them."""

    def __init__(self, begin: int, end: int) -> None:
        x, y = tensors()
        self.rows = [{"x": x[i], "labels": y[i]} for i in range(begin, end)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@one_thread()
def transformers(
    location: Path,
    folder: Path,
    kill_at: int = NEVER,
    *,
    net: Any = None,
    words: Any = None,
    eval_sets: Any = None,
    after: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train by transformers' Trainer, which shuffles; go on where the run of this name is.

    Args:
        after: what to do with the trainer then.
    """
    import transformers as hf

    from registry.integrations.transformers import CheckpointCallback

    class Killer(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if kill_at != NEVER and state.global_step == kill_at * 10 + 3:
                die()

    callback = CheckpointCallback(
        location, "digits-mlp", dataset="digits", run="a",
        **{"acc": "eval_accuracy", **(words or {})},
    )  # fmt: skip
    args = hf.TrainingArguments(
        **{
            "output_dir": str(folder / "out"), "num_train_epochs": EPOCHS, "eval_strategy": "epoch",
            "save_strategy": "epoch", "per_device_train_batch_size": 64, "learning_rate": 0.01,
            "per_device_eval_batch_size": 200, "metric_for_best_model": "accuracy",
            "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_total_limit": 1,
            **settings,
        }
    )  # fmt: skip
    net = net or Labelled()
    trainer = hf.Trainer(
        net, args, train_dataset=Rows(0, 600), eval_dataset=eval_sets or Rows(600, 800),
        compute_metrics=lambda p: {"accuracy": (p[0].argmax(1) == p[1]).mean()},
        callbacks=[callback, Killer()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=callback.folder())
    if after is not None:
        after(trainer)
    return {
        "net": net.state_dict(), "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(), "last": callback.last,
    }  # fmt: skip


@one_thread()
def accelerate(location: Path, folder: Path, kill_at: int = NEVER) -> dict[str, Any]:
    """Train by a loop of one's own over what accelerate prepared; go on where the run is."""
    import accelerate as hf

    from registry import NotFoundError, Registry
    from registry.integrations.accelerate import load_state, save_state

    accelerator = hf.Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    x, y = tensors()
    loader = DataLoader(TensorDataset(x[:600], y[:600]), batch_size=64, shuffle=True)
    net, optimizer, loader, scheduler = accelerator.prepare(net, optimizer, loader, scheduler)
    with Registry.open(location) as reg:
        run = reg.run("digits-mlp", dataset="digits", name="a", config={"lr": 0.01})
        begin = 0
        try:
            begin = int(load_state(accelerator, reg, run.latest()).epoch or 0) + 1
        except NotFoundError:
            accelerator.print("a new run")
        last = None
        for epoch in range(begin, EPOCHS):
            for i, (images, labels) in enumerate(loader):
                if epoch == kill_at and i == 3:
                    die()
                loss = nn.functional.cross_entropy(net(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            right = accuracy(accelerator.unwrap_model(net))
            last = save_state(accelerator, reg, run, epoch=epoch, acc=right)
    accelerator.free_memory()
    return {
        "net": accelerator.unwrap_model(net).state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(), "last": last,
    }  # fmt: skip


@one_thread()
def plain(location: Path, folder: Path, kill_at: int = NEVER) -> dict[str, Any]:
    """Train by a loop of one's own, which shuffles; go on where the run of this name is."""
    from registry import Best, Last, NotFoundError, Registry

    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    x, y = tensors()
    loader = DataLoader(TensorDataset(x[:600], y[:600]), batch_size=64, shuffle=True)
    with (
        Registry.open(location) as reg,
        reg.run(
            "digits-mlp", dataset="digits", name="a", config={"lr": 0.01}, keep=Best(3) | Last(2)
        ) as run,
    ):
        begin = 0
        try:
            result = reg.load(
                run.latest(), into=net, optimizer=optimizer, scheduler=scheduler, rng=True
            )
            begin = int(result.epoch or 0) + 1
        except NotFoundError:
            print("a new run")
        for epoch in range(begin, EPOCHS):
            for i, (images, labels) in enumerate(loader):
                if epoch == kill_at and i == 3:
                    die()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
            scheduler.step()
            run.save(
                net, epoch=epoch, acc=accuracy(net), optimizer=optimizer, scheduler=scheduler,
                rng=True,
            )  # fmt: skip
    return {
        "net": net.state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }  # fmt: skip


def gloo_transformers(location: str, folder: str, kill_at: str) -> object:
    """Train by transformers' Trainer on two ranks, each of which may be killed."""
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    ended = transformers(
        Path(location), Path(folder), int(kill_at), per_device_train_batch_size=32,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    return ended["last"].id


def gloo_transformers_refused(location: str, folder: str, what: str) -> object:
    """Train on two ranks what rank 0 refuses, at the beginning or at the first save."""
    from registry import CkregError

    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    words = {"acc": "nope"} if what == "acc" else {"config": {"lr": 0.5}}
    try:
        transformers(Path(location), Path(folder), words=words)
    except (ValueError, CkregError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def gloo_accelerate(location: str) -> object:
    """Save the state that accelerate prepared on two ranks, and load it again."""
    import accelerate as hf

    from registry import Registry
    from registry.integrations.accelerate import load_state, save_state

    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    accelerator = hf.Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net, optimizer = accelerator.prepare(net, optimizer)
    x, y = tensors()
    nn.functional.cross_entropy(net(x[:64]), y[:64]).backward()
    optimizer.step()
    with Registry.open(location) as reg:
        run = reg.run("digits-mlp", name="a")
        made = save_state(accelerator, reg, run, epoch=0, acc=accuracy(net))
        before = {key: value.clone() for key, value in net.state_dict().items()}
        spoil(accelerator.unwrap_model(net), True)
        load_state(accelerator, reg, made)
    same = all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    return {"id": made.id, "same": same}


def gloo_accelerate_elsewhere(location: str, folder: str) -> object:
    """Save on two ranks, of which one writes as if it were on another machine."""
    import accelerate as hf

    from registry import CkregError, Registry
    from registry.integrations.accelerate import save_state

    os.environ["LOCAL_RANK"] = rank = os.environ["RANK"]
    accelerator = hf.Accelerator(cpu=True)
    accelerator.prepare(network())
    if rank == "1":
        save = accelerator.save_state
        accelerator.save_state = lambda _: save(folder)
    with Registry.open(location) as reg:
        try:
            save_state(accelerator, reg, reg.run("digits-mlp", name="a"), epoch=0)
        except CkregError as error:
            return f"{type(error).__name__}: {error}"
    return None


def main(job: str, location: str, folder: str, kill_at: str) -> None:
    """Run one job."""
    globals()[job](Path(location), Path(folder), int(kill_at))


if __name__ == "__main__":
    main(*sys.argv[1:])
