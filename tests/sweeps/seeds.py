"""Small sound checkpoints of each container kind, for the mutants to be made of."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import warnings
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def values() -> list[Any]:
    """Return what training scripts save, of the sorts that the reader has code for."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    shared = torch.arange(12.0)
    return [
        OrderedDict(model.state_dict()),
        {
            "epoch": 3, "arch": "mlp", "state_dict": model.state_dict(),
            "best_acc1": torch.tensor(7.0), "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, name="x"),
        },
        {
            "model": {
                "view": shared[3:9], "same": shared[3:9], "turned": shared.view(3, 4).t(),
                "half": torch.ones(3, dtype=torch.float16), "brain": torch.ones(2).bfloat16(),
                "flag": torch.tensor([True, False]), "long": torch.tensor(5), "none": torch.ones(0),
                "conj": torch.tensor([1 + 2j]).conj(), "sparse": torch.eye(3).to_sparse(),
                **_other_sorts(),
            },
            "acc": np.float64(0.5), "history": np.arange(4), "note": "é",
            "big": 2**40, "t": (1, None),
        },
        model,
    ]  # fmt: skip


def _other_sorts() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts in beta, and of quantisation that goes
        scales, zeros = torch.tensor([0.5, 0.25]).double(), torch.tensor([3, 0])
        return {
            "csr": torch.eye(3).to_sparse_csr(),
            "affine": torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 3, torch.quint8),
            "channels": torch.quantize_per_channel(torch.ones(2, 2), scales, zeros, 0, torch.qint8),
        }


def torch_zips() -> list[bytes]:
    """Return files of torch.save as it is today."""
    return [saved(value, zipped=True) for value in values()]


def torch_legacies() -> list[bytes]:
    """Return files of torch.save as it was before torch 1.6."""
    return [saved(value, zipped=False) for value in values()]


def saved(value: Any, *, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def safetensors_files() -> list[bytes]:
    """Return safetensors files."""
    return [
        safetensors_bytes(dict(net().state_dict()), metadata={"epoch": "3"}),
        safetensors_bytes(
            {"a": torch.ones(2, 2).bfloat16(), "b": torch.zeros(0), "c": torch.ones(())}
        ),
    ]  # fmt: skip


def pickles() -> list[bytes]:
    """Return plain pickles of numpy arrays and of torch's tensors, in several protocols."""
    arrays = {
        "model": {"w": np.random.default_rng(0).random((40, 9)), "b": np.arange(3, dtype=">f4"),
                  "f": np.asfortranarray(np.ones((2, 3))), "s": np.array(3)},
        "__author__": "x", "names": np.array(["a", None], dtype=object), "acc": np.float32(0.5),
    }  # fmt: skip
    state = net().state_dict()
    return [
        *(pickle.dumps(arrays, protocol) for protocol in (0, 2, 4, 5)),
        *(pickle.dumps(state, protocol) for protocol in (2, 4)),
    ]


def zip_parts(data: bytes) -> dict[str, bytes]:
    """Return what a torch zip holds, by the names of its entries."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(parts: dict[str, bytes]) -> bytes:
    """Return a zip of stored entries with right checksums, as small as can be."""
    out, central = b"", b""
    for name, data in parts.items():
        raw, crc, at = name.encode(), zlib.crc32(data), len(out)
        sizes = struct.pack("<3L2H", crc, len(data), len(data), len(raw), 0)
        out += struct.pack("<4s5H", b"PK\x03\x04", 0, 0, 0, 0, 0) + sizes + raw + data
        central += struct.pack("<4s6H", b"PK\x01\x02", 0, 0, 0, 0, 0, 0) + sizes
        central += struct.pack("<3H2L", 0, 0, 0, 0, at) + raw
    many = len(parts)
    return out + central + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, many, many, len(central), len(out), 0
    )  # fmt: skip
