"""The jobs of the integrations' tests: a tiny net learns the digits, by every loop that people use.

Each is run in the test's own process, or killed in one of its own:
`python tests/digits.py JOB LOCATION FOLDER KILL_AT`, where KILL_AT is the epoch in the middle of
which it kills itself. What it ends with is returned: weights and optimizer state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
        location, "digits-mlp", dataset="digits", run="a", monitor="val_acc", mode="max",
        **{"acc": "val_acc", **(words or {})},
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


def main(job: str, location: str, folder: str, kill_at: str) -> None:
    """Run one job."""
    torch.set_num_threads(1)
    globals()[job](Path(location), Path(folder), int(kill_at))


if __name__ == "__main__":
    main(*sys.argv[1:])
