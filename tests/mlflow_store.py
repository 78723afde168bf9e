"""Fills an MLflow store as people do: run as `python mlflow_store.py TRACKING_URI [ARTIFACTS]`.

A script of its own, since MLflow keeps its settings in the process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import torch
from mlflow_nets import net


def keep(state: object, name: str, place: str | None = None) -> None:
    """Log an object as a torch file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        torch.save(state, path)
        mlflow.log_artifact(str(path), place)


def vision() -> None:
    """A plain loop: metrics by epoch, a file an epoch, and the model at the end."""
    with mlflow.start_run(run_name="try-1", tags={"team": "eyes"}):
        mlflow.log_params({"lr": 0.1, "batch": 32, "opt": "sgd", "v": "1.10"})
        for epoch in range(3):
            mlflow.log_metrics(
                {"val_accuracy": 0.5 + epoch / 8, "loss": float(8 - epoch)}, step=epoch
            )
            keep({"state_dict": net().state_dict(), "epoch": epoch}, f"epoch_{epoch}.pt", "ckpts")
        mlflow.log_text("a note", "notes.txt")
        made = mlflow.pytorch.log_model(
            net(), name="model", registered_model_name="resnet", step=2,
            serialization_format="pickle", pip_requirements=[],
        )  # fmt: skip
        mlflow.log_metrics({"loss": 5.5}, step=2, model_id=made.model_id)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("resnet", "champion", "1")
    client.set_registered_model_alias("resnet", "best", "1")
    client.set_model_version_tag("resnet", "1", "quality", "good")
    client.set_model_version_tag("resnet", "1", "shipped", "true")


def odd() -> None:
    """Steps that aren't epochs, what can't be recorded, a file that is cut short."""
    with mlflow.start_run(run_name="steps"):
        for step, epoch in ((49, 0), (99, 0), (149, 1), (199, 1)):
            mlflow.log_metrics({"epoch": float(epoch), "acc": step / 1000}, step=step)
        mlflow.log_metric("acc", 0.9, step=1)  # at the first batch, not of epoch 1
        mlflow.log_metric("odd", float("nan"), step=199)
        keep({"state_dict": net().state_dict(), "epoch": 1}, "last.ckpt")
        keep({"state_dict": net().state_dict(), "epoch": 0, "global_step": 49}, "mid.ckpt")
        broken = Path("broken.pt")
        torch.save(net().state_dict(), broken)
        broken.write_bytes(broken.read_bytes()[:-200])
        mlflow.log_artifact(str(broken))
        broken.unlink()


if __name__ == "__main__":
    mlflow.set_tracking_uri(sys.argv[1])
    for name, fill in (("vision", vision), ("Odd steps!", odd)):
        root = f"{sys.argv[2]}/{name.split()[0].lower()}" if len(sys.argv) > 2 else None
        mlflow.set_experiment(experiment_id=mlflow.create_experiment(name, artifact_location=root))
        fill()
