"""What the frameworks' own libraries write today is recognised, its facts right, its weights equal.

Each test needs its library, and says so when it is skipped; tests/frameworks.py has the same
layouts by hand, for everywhere else.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import seeded
from reading import bits, contents_of, described
from torch.utils.data import DataLoader, TensorDataset

from registry.tensors.building import Builder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def check(path: Path, expected: dict[str, torch.Tensor], *, ema: bool = False) -> Any:
    """Check that a file's weights are bit-equal to these; return what it states."""
    found = described(path)
    weights = found.ema if ema else found.weights
    builder = Builder(contents_of(path), bytearray(path.read_bytes()))
    assert list(weights) == list(expected)
    for key, tensor in expected.items():
        assert bits(builder.tensor(weights[key])) == bits(tensor), key
    return found


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8)), batch_size=4)


@pytest.mark.parametrize("averaged", [False, True])
def test_lightning(averaged: bool, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, arch: str = "mlp") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = seeded(0)

        def training_step(self, batch: Any, _: int) -> Any:
            self.log("val_acc", torch.tensor(0.75))
            return self.model(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    callbacks = [ModelCheckpoint(dirpath=tmp_path, monitor="val_acc", mode="max")]
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[*callbacks, *([WeightAveraging()] if averaged else [])],
    )  # fmt: skip
    net = Net()
    trainer.fit(net, data())
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    whole = torch.load(tmp_path / "f.ckpt", weights_only=False)
    if averaged:
        found = check(tmp_path / "f.ckpt", whole["current_model_state"])
        check(tmp_path / "f.ckpt", whole["state_dict"], ema=True)
    else:
        found = check(tmp_path / "f.ckpt", whole["state_dict"])
        assert found.ema is None
    assert (found.layout, found.model, found.epoch, found.step) == ("lightning", "mlp", 2, 4)
    assert (found.metrics, found.acc) == ({"best_val_acc": 0.75}, None)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV2

    net = timm.create_model("resnet10t")
    ema = ModelEmaV2(net)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    saver = CheckpointSaver(
        net, torch.optim.SGD(net.parameters(), lr=0.1), model_ema=ema,
        args=argparse.Namespace(model="resnet10t", dataset="imagenet"),
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(3, 0.5)
    path = tmp_path / "model_best.pth.tar"
    found = check(path, net.state_dict())
    check(path, ema.module.state_dict(), ema=True)
    assert (found.layout, found.model, found.dataset) == ("timm", "resnet10t", "imagenet")
    assert (found.epoch, found.metrics, found.acc) == (3, {"metric": 0.5}, None)


def test_ignite(tmp_path: Path) -> None:
    pytest.importorskip("ignite")
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    net = seeded(0)
    engine = Engine(lambda engine, batch: None)
    saved = {"model": net, "optimizer": torch.optim.SGD(net.parameters()), "trainer": engine}
    handler = Checkpoint(saved, DiskSaver(tmp_path / "c", create_dir=True))
    engine.add_event_handler(Events.EPOCH_COMPLETED, handler)
    engine.run([0] * 5, max_epochs=2)
    (path,) = (tmp_path / "c").iterdir()
    found = check(path, net.state_dict())
    assert (found.layout, found.step, list(found.optimizers)) == ("ignite", 10, ["optimizer"])


def test_fvcore(tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("fvcore.common.checkpoint")
    net = seeded(0)
    saver = checkpoint.Checkpointer(
        net, str(tmp_path), optimizer=torch.optim.SGD(net.parameters(), lr=0.1)
    )
    saver.save("m", iteration=99)
    found = check(tmp_path / "m.pth", net.state_dict())
    assert (found.layout, found.step) == ("fvcore", 99)


def test_mmengine_with_its_ema_hook_that_swaps(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Net(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
            x = torch.stack(x) if isinstance(x, list) else x
            return {"loss": self.layer(x).sum()}

    runner = Runner(
        model=Net(), work_dir=str(tmp_path), train_dataloader=data(),
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        custom_hooks=[{"type": "EMAHook"}], experiment_name=f"x{os.getpid()}",
    )  # fmt: skip
    runner.train()
    live = {f"module.{key}": value for key, value in runner.model.state_dict().items()}
    found = check(tmp_path / "epoch_2.pth", live)
    assert (found.layout, found.ema_where) == ("mmengine", "state_dict")
    assert (found.epoch, found.step) == (2, 4)


def test_composer(tmp_path: Path) -> None:
    composer = pytest.importorskip("composer")

    class Net(composer.ComposerModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(4, 3)

        def forward(self, batch: Any) -> Any:
            return self.module(batch[0])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return outputs.sum()

    net = Net()
    trainer = composer.Trainer(
        model=net, optimizers=torch.optim.Adam(net.parameters()), train_dataloader=data(),
        max_duration="2ep", save_folder=str(tmp_path / "c"), device="cpu", progress_bar=False,
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    (path,) = (tmp_path / "c").glob("ep2-*.pt")
    found = check(path, net.state_dict())
    assert (found.layout, found.where) == ("composer", "state.model")
    assert (found.epoch, found.step, list(found.optimizers)) == (2, 4, ["optimizer"])


def test_ultralytics_pickled_module(tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    net = copy.deepcopy(ultralytics.YOLO("yolov8n.yaml").model).half()
    path = tmp_path / "last.pt"
    torch.save(
        {
            "epoch": 4, "best_fitness": 0.3, "model": None, "ema": net, "updates": 10,
            "optimizer": None, "scaler": {}, "train_results": {},
            "train_args": {"model": "yolov8n.yaml", "data": "coco8.yaml"},
            "train_metrics": {"metrics/mAP50(B)": 0.4},
        },
        path,
    )  # fmt: skip
    found = check(path, net.state_dict())
    assert (found.layout, found.where, found.ema_where) == ("ultralytics", "ema", "ema")
    assert found.module == "ultralytics.nn.tasks.DetectionModel"
    assert (found.epoch, found.model, found.dataset) == (4, "yolov8n.yaml", "coco8.yaml")


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(str(tmp_path / "f"), "llama")
    writer.add_block_count(32)
    writer.add_token_list(["a", "b"])
    writer.add_name("a name")
    writer.add_tensor("w", np.ones(4, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = described(tmp_path / "f")
    assert (found.model, found.weights) == ("llama", {})
    assert found.extra["general.name"] == "a name"
    assert found.extra["llama.block_count"] == 32


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph, producer_name="somebody", producer_version="1.2")
    onnx.save(model, tmp_path / "f")
    assert contents_of(tmp_path / "f").container == "onnx"
    found = described(tmp_path / "f")
    assert (found.extra["producer_name"], found.extra["producer_version"]) == ("somebody", "1.2")
