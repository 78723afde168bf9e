"""Folders as Hugging Face's libraries and DeepSpeed really write them, and the weights in them.

`python tests/hub_folders.py KIND FOLDER` writes the weights to `FOLDER/expected.pt`.
"""

from __future__ import annotations

import os
import sys

import torch


def _bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32, num_labels=2,
        )
    )  # fmt: skip


def transformers(folder: str):
    net = _bert()
    net.save_pretrained(f"{folder}/single")
    net.save_pretrained(f"{folder}/sharded", max_shard_size="10KB")
    return net.state_dict()


def trainer(folder: str):
    from transformers import Trainer, TrainingArguments

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, i):
            return {"input_ids": torch.arange(8) + i, "labels": torch.tensor(i % 2)}

    args = TrainingArguments(
        f"{folder}/run", num_train_epochs=1, per_device_train_batch_size=4, save_strategy="epoch",
        eval_strategy="epoch", report_to=[], use_cpu=True, logging_steps=4,
    )  # fmt: skip
    running = Trainer(_bert(), args, train_dataset=Data(), eval_dataset=Data())
    running.train()
    return running.model.state_dict()


def accelerate(folder: str):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net, optimizer, scheduler = accelerator.prepare(net, optimizer, scheduler)
    net(torch.ones(4, 5)).sum().backward()
    optimizer.step()
    scheduler.step()
    accelerator.save_state(f"{folder}/safe")
    accelerator.save_state(f"{folder}/bin", safe_serialization=False)
    return net.state_dict()


def peft(folder: str):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    net = get_peft_model(_bert(), config)
    net.save_pretrained(f"{folder}/adapter")
    return get_peft_model_state_dict(net)


def deepspeed(folder: str, stage: str):
    """Two gloo ranks; started by tests/gloo.py's way of RANK and WORLD_SIZE."""
    import deepspeed
    import torch.distributed as dist

    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 7))
    config = {
        "train_batch_size": 4,
        "zero_optimization": {"stage": int(stage)},
        "optimizer": {"type": "Adam", "params": {"torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=net, model_parameters=net.parameters(), config=config)
    engine.backward(engine(torch.ones(2, 5)).sum())
    engine.step()
    engine.save_checkpoint(folder, client_state={"epoch": 3})
    weights = {k: v.clone() for k, v in engine.module.state_dict().items()}
    dist.barrier()
    if dist.get_rank() == 0:
        torch.save(weights, f"{folder}/expected.pt")
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    kind, where, *more = sys.argv[1:]
    torch.save(globals()[kind](where, *more), f"{where}/expected.pt")
