"""Checkpoints as training frameworks lay them out, made by hand: the libraries aren't needed.

The keys are those of the writers at the versions named, compared with files that the libraries
themselves wrote (see test_containers_libraries.py, which does so again where they are installed).
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


def seeded(seed: int) -> torch.nn.Sequential:
    """Return a small net with a buffer of each sort."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def state(seed: int = 0, prefix: str = "") -> OrderedDict[str, torch.Tensor]:
    """Return its state dict, its keys prefixed."""
    return OrderedDict((prefix + key, value) for key, value in seeded(seed).state_dict().items())


def adam() -> dict[str, Any]:
    """Return an optimizer's state dict."""
    net = seeded(0)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


SCHEDULER = {"step_size": 1, "gamma": 0.1, "base_lrs": [0.1], "last_epoch": 2, "_last_lr": [0.01]}


def imagenet_example() -> dict[str, Any]:
    """pytorch/examples imagenet/main.py, save_checkpoint; alexnet and vgg wrap `features` only."""
    return {
        "epoch": 4, "arch": "vgg16", "state_dict": state(prefix="features.module."),
        "best_acc1": torch.tensor(71.5), "optimizer": adam(), "scheduler": SCHEDULER,
    }  # fmt: skip


def torchvision() -> dict[str, Any]:
    """torchvision references/classification/train.py; ExponentialMovingAverage's own keys."""
    args = argparse.Namespace(model="resnet50", data_path="/d", lr=0.5, model_ema=True, amp=True)
    return {
        "model": state(), "optimizer": adam(), "lr_scheduler": SCHEDULER, "epoch": 9, "args": args,
        "model_ema": {"n_averaged": torch.tensor(3), **state(1, "module.")},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
    }  # fmt: skip


def timm() -> dict[str, Any]:
    """timm 1.0, utils/checkpoint_saver.py: written as .pth.tar, which is no tar."""
    return {
        "epoch": 3, "arch": "resnet10t", "optimizer": adam(), "version": 2,
        "args": argparse.Namespace(model="resnet10t", dataset="imagenet", lr=0.1),
        "amp_scaler": {"scale": 65536.0}, "state_dict": state(), "state_dict_ema": state(1),
        "metric": np.float64(74.2),
    }  # fmt: skip


def lightning(prefix: str = "model.") -> dict[str, Any]:
    """Lightning 2.6, trainer/connectors/checkpoint_connector.py."""
    checkpointer = {
        "monitor": "val_acc", "best_model_score": torch.tensor(0.75), "best_model_path": "/a.ckpt",
        "current_score": torch.tensor(0.5), "dirpath": "/", "best_k_models": {}, "kth_value": None,
        "kth_best_model_path": "", "last_model_path": "",
    }  # fmt: skip
    return {
        "epoch": 2, "global_step": 40, "pytorch-lightning_version": "2.6.6",
        "state_dict": state(prefix=prefix), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}": {"best_score": 0.1},
            "ModelCheckpoint{'monitor': 'val_acc', 'mode': 'max'}": checkpointer,
        },
        "optimizer_states": [adam()], "lr_schedulers": [SCHEDULER], "hparams_name": "kwargs",
        "hyper_parameters": {"arch": "mlp", "dataset": "mnist", "lr": 0.1},
    }  # fmt: skip


def lightning_averaged() -> dict[str, Any]:
    """Lightning 2.6, callbacks/weight_averaging.py: state_dict is then the average."""
    return {
        **lightning(), "state_dict": state(1, "model."), "averaging_state": {"n_averaged": 4},
        "current_model_state": state(prefix="model."),
    }  # fmt: skip


def detectron2() -> dict[str, Any]:
    """detectron2 0.6, checkpoint/detection_checkpoint.py: the model zoo's .pkl, of numpy arrays."""
    return {
        "model": {key: value.numpy() for key, value in state().items()},
        "__author__": "Caffe2", "matching_heuristics": True,
    }  # fmt: skip


def fvcore() -> dict[str, Any]:
    """fvcore 0.1.5, common/checkpoint.py, as detectron2's trainer calls it."""
    return {"model": state(), "optimizer": adam(), "scheduler": SCHEDULER, "iteration": 89_999}


def mmengine() -> dict[str, Any]:
    """mmengine 0.10, runner/runner.py; its EMAHook swaps the two state dicts as it saves."""
    runtime = OrderedDict(epoch=1, iter=3, max_epochs=2, best_score=0.5, best_ckpt="/b.pth")
    return {
        "meta": {"epoch": 2, "iter": 4, "cfg": "a = 1\n", "seed": 1, "mmengine_version": "0.10.7"},
        "state_dict": state(1), "optimizer": adam(), "param_schedulers": [SCHEDULER],
        "message_hub": {"log_scalars": OrderedDict(), "runtime_info": runtime, "resumed_keys": {}},
        "ema_state_dict": OrderedDict(steps=torch.tensor(4), **state(prefix="module.")),
    }  # fmt: skip


def nanogpt() -> dict[str, Any]:
    """karpathy/nanoGPT, train.py, with compile=True; best_val_loss is a tensor."""
    return {
        "model": state(prefix="_orig_mod."), "optimizer": adam(),
        "model_args": {"n_layer": 6, "vocab_size": 65, "dropout": 0.2}, "iter_num": 5_000,
        "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char", "lr": 1e-3},
    }  # fmt: skip


def ignite() -> dict[str, Any]:
    """ignite 0.5, handlers/checkpoint.py with to_save = {model, optimizer, trainer}."""
    trainer = OrderedDict(epoch_length=5, iteration=10, max_epochs=2)
    return {"model": state(), "optimizer": adam(), "trainer": trainer}


def composer() -> dict[str, Any]:
    """Composer 0.32, utils/checkpoint.py and core/state.py."""
    return {
        "state": {
            "model": state(prefix="module."), "optimizers": {"Adam": adam()}, "schedulers": {},
            "algorithms": [], "callbacks": {"CheckpointSaver": {"saved": []}}, "run_name": "r1",
            "timestamp": {"Timestamp": {"iteration": 0, "epoch": 2, "batch": 400, "sample": 9}},
            "rank_zero_seed": 1, "integrations": {}, "metadata": {"world_size": "1"},
        },
        "rng": [{"python": (3, (1, 2), None), "torch": torch.get_rng_state()}],
    }  # fmt: skip


def ultralytics() -> dict[str, Any]:
    """ultralytics 8.4, engine/trainer.py, save_model: nothing but the average, in half."""
    return {
        "epoch": 4, "best_fitness": np.float64(0.3), "model": None, "ema": seeded(1).half(),
        "updates": 10, "optimizer": adam(), "scaler": {}, "version": "8.4.0", "license": "AGPL-3.0",
        "train_args": {"model": "yolov8n.yaml", "data": "coco8.yaml", "epochs": 5},
        "train_metrics": {"metrics/mAP50(B)": 0.4, "fitness": math.nan}, "train_results": {},
    }  # fmt: skip


def megatron() -> dict[str, Any]:
    """Megatron-LM core 0.12, training/checkpointing.py, generate_state_dict."""
    args = argparse.Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, lr=0.1)
    return {
        "args": args, "checkpoint_version": 3.0, "iteration": 100, "model": state(),
        "optimizer": {"optimizer": adam()}, "opt_param_scheduler": {"num_steps": 9},
        "rng_state": [{"random_rng_state": (3, (1, 2), None)}],
    }  # fmt: skip
