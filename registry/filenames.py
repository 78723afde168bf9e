"""What the customary names of checkpoint files and folders say: epoch, step, metrics, a model.

    epoch=12-val_acc=0.93.ckpt    Lightning           checkpoint-500/        Hugging Face Trainer
    model_epoch_7.pth             by hand             global_step1000/       DeepSpeed
    step_1000.pt, iter_5000.pth   torchtitan, mmcv    best.pt, last.ckpt     most trainers

Law: a number is a fact only beside the word that says which; a bare one (`model_10.pth`) says
nothing. What is read here is marked as inferred by whoever records it. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .containers.facts import METRIC_WORD
from .drafting import Given
from .values import FrozenMap, count, label, metrics_of, model_name

SUFFIXES: Final = (
    ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pkl", ".pickle", ".th", ".tar", ".t7",
    ".model", ".weights", ".pt2", ".onnx", ".gguf", ".distcp",
)  # fmt: skip
"""What the names of checkpoint files customarily end in."""

_NUMBER: Final = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_PAIR: Final = re.compile(rf"([A-Za-z][A-Za-z0-9_/ ]*)=({_NUMBER})(?=$|[-_ .,;])")
_COUNTED: Final = re.compile(
    r"(?<![A-Za-z])(epochs?|ep|global_?step|steps?|iterations?|iters?)[-_ ]?(\d+)(?=$|[-_ .,;])",
    re.IGNORECASE,
)
_MEASURED: Final = re.compile(
    r"(?<![A-Za-z])((?:(?:best|train|training|val|valid|validation|eval|dev|test)[-_])?"
    r"(?:accuracy|acc|loss|miou|iou|map|f1|auc|psnr|ssim|ppl|error|err|fid|mae|mse|rmse|score))"
    r"[-_ ]?(\d+\.\d+)(?=$|[-_ .,;])",
    re.IGNORECASE,
)
_TRAINER_FOLDER: Final = re.compile(r"checkpoint-(\d+)")
_EPOCHS: Final = ("epoch", "epochs", "ep")
_STEPS: Final = (
    "step", "steps", "global_step", "globalstep", "iteration", "iterations", "iter", "iters",
)  # fmt: skip

_TAGS: Final = ("best", "last", "latest", "final")
_GENERIC: Final = re.compile(
    r"(|model|models|pytorch_model|diffusion_pytorch_model|adapter_model|module|net|network|weights?"
    r"|params|state|states|state_dict|model_state(_dict|s)?|checkpoints?|ckpts?|consolidated"
    r"|snapshots?|saves?|saved|saved_models?|trained_models?|runs?|outputs?|out|results?|logs?"
    r"|lightning_logs|experiments?|exps?|default|version|v|archive|tmp|temp|epochs?|steps?"
    r")([-_. ]?\d+)?|[\d_. -]+|[0-9a-f]{12,}|\d{4}-\d\d-\d\d.*",
    re.IGNORECASE,
)
"""What says nothing of a model: the words of training loops, numbers, dates and hashes."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one name on a path says; `rest` is what remains of it."""

    rest: str
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


def suggested(names: Sequence[str], *, folder: bool = False) -> Given:
    """Return what a path's names say: its own first, then those of the folders that it lies in.

    Args:
        names: the path's parts, outermost first; the last is the checkpoint's own.
        folder: it is a folder.

    Example:
        >>> found = suggested(["resnet50", "epoch=12-val_acc=0.93.ckpt"])
        >>> found.model, found.epoch, dict(found.metrics)
        ('resnet50', 12, {'val_acc': 0.93})
        >>> suggested(["runs", "checkpoint-500"], folder=True).step
        500
    """
    *above, own = names
    parts = [_read(own if folder else _without_suffixes(own), folder=folder)]
    parts += [_read(name, folder=True) for name in reversed(above)]
    # an epoch and a step of different places on the path may be of different trainings
    said = next((p for p in parts if p.epoch is not None or p.step is not None), parts[0])
    return Given(
        model=_model(parts) or _name(names[0]),
        epoch=said.epoch,
        step=said.step,
        metrics=FrozenMap(parts[0].metrics),
        tags=parts[0].tags,
    )


def _without_suffixes(name: str) -> str:
    """Return a file's name without what its kind's name ends in, once or more: `.pth.tar`."""
    while True:
        stem, dot, suffix = name.rpartition(".")
        if not stem or f"{dot}{suffix}".lower() not in SUFFIXES:
            return name
        name = stem


def _read(name: str, *, folder: bool) -> _Part:
    if folder and (trainer := _TRAINER_FOLDER.fullmatch(name)):
        return _Part("", step=_count(trainer[1]))
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}

    def take(match: re.Match[str]) -> str:
        """Keep what a match says, and leave what stands before its word."""
        before, word = _split(match[1].strip())
        kind = "epoch" if word in _EPOCHS else "step" if word in _STEPS else None
        if kind is not None:
            number = _count(match[2])
            if number is not None:
                counts.setdefault(kind, number)
            return f"{before}-" if before else "-"
        if METRIC_WORD.search(match[1].lower()):
            try:
                metrics.update(metrics_of({match[1].strip(): float(match[2])}))
            except ValueError:
                return match[0]
            return "-"
        return match[0]

    rest = _PAIR.sub(take, name)
    rest = _MEASURED.sub(take, rest)
    rest = _COUNTED.sub(take, rest)
    words = re.split(r"[-_. ]+", rest.lower())
    tags = tuple(label(f"named-{tag}", "tag") for tag in _TAGS if tag in words)
    rest = re.sub(rf"(?i)(?<![a-z0-9])({'|'.join(_TAGS)})(?![a-z0-9])", "", rest)
    rest = re.sub(r"-v\d+$", "", rest)  # what Lightning adds to a name that is taken
    return _Part(
        re.sub(r"[-_. ]*-[-_. ]*", "-", rest).strip("-_. ,;"),
        counts.get("epoch"),
        counts.get("step"),
        metrics,
        tags,
    )


def _split(word: str) -> tuple[str, str]:
    """Return what stands before a counted word, and the word: `resnet_epoch` is both."""
    for known in (*_EPOCHS, *_STEPS):
        if word.lower() == known:
            return "", known
        if word.lower().endswith((f"_{known}", f" {known}")) and known != "step":
            return word[: -len(known) - 1], known
    if word.lower().endswith("_step"):
        before = re.sub(r"(?i)_?global$", "", word[:-5])
        return before, "step"
    return "", word


def _count(text: str) -> int | None:
    try:
        return count(int(text), "a count")
    except ValueError:  # beyond 64 bits, or `epoch=1.5`
        return None


def _model(parts: Sequence[_Part]) -> str | None:
    return next((n for p in parts if not _GENERIC.fullmatch(p.rest) and (n := _name(p.rest))), None)


def _name(text: str) -> str | None:
    """Return a text as a model's name, with what the grammar hasn't replaced by `-`."""
    kept = "".join(
        c if c.isalnum() or c in "._-" else "-" for c in unicodedata.normalize("NFC", text)
    )
    kept = re.sub(r"-{2,}", "-", kept)
    try:
        return model_name(kept.strip("._-")[:255])
    except ValueError:
        return None
