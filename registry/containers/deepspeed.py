"""DeepSpeed folders: what is in them, and the weights that can be had without DeepSpeed.

Law: weights are taken only from a `mp_rank` file that holds all of them whole, each of the shape
that the file itself says; what is partitioned over ranks (fp32 weights and optimizer state of ZeRO,
everything of stage 3, slices of model parallelism) is named, with the way to join it, and never
put together by guess. After deepspeed 0.19.8, runtime/engine.py.

    latest                                           the name of the newest save: global_step10
    global_step10/mp_rank_00_model_states.pt         the module (all but ZeRO stage 3), and facts
    global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt   a rank's part of the optimizer
    global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt   a rank's part of the module: stage 3
    zero_to_fp32.py                                  DeepSpeed's own way to join them
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import AmbiguousError, ContainerError, DamagedError
from .contents import Contents
from .parts import Folder, Found, is_inside, missing
from .source import ByteSource
from .torch_zip import read_torch_zip
from .tree import Tensor
from .weights import items_of
from .zips import LOCAL, NotWholeError, read_directory

STATES: Final = re.compile(
    r"(?:[^/]+/)?(?:mp_rank_\d+|zero_pp_rank_\d+_mp_rank_\d+|layer_\d+)[\w-]*model_states\.pt"
)
"""Paths that make a folder one of DeepSpeed's."""

_MODULE: Final = re.compile(r"mp_rank_(?P<mp>\d+)\w*_model_states\.pt")
_PARTITION: Final = re.compile(
    r"(?:[a-z0-9]+_)?zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)\w*"
    r"_(?P<what>model|optim)_states\.pt"
)
_PIPELINE: Final = re.compile(r"layer_\d+.*model_states\.pt")
MAX_LATEST_BYTES: Final = 4_096


def read_deepspeed(folder: Folder) -> Contents:
    """Index a DeepSpeed folder: the newest save in it, or the save that it is.

    Raises:
        ContainerError: its weights are partitioned; the message says how, the hint how to join.
        DamagedError: a part is missing or cut short.
        AmbiguousError: it holds several saves and doesn't say which is the newest.
    """
    save = _save(folder)
    names = save.top()
    modules = sorted(n for n in names if _MODULE.fullmatch(n))
    partitions = [m for n in sorted(names) if (m := _PARTITION.fullmatch(n))]
    sharded = [m for m in partitions if m["what"] == "model"]
    if sharded:
        raise _stage_3(folder, save, sharded)
    if any(_PIPELINE.fullmatch(n) for n in names) or any("expert_" in n for n in names):
        raise _unread(folder, save, "its layers or experts lie in files of their own", "")
    if not modules:
        raise _unread(folder, save, "it holds no mp_rank_00_model_states.pt", "")
    root = save.part(modules[0], _read_states).root
    if not isinstance(root, dict) or not isinstance(root.get("module"), dict):
        raise ContainerError(
            f"{save.label(modules[0])!r} holds no module: the engine saved it elsewhere",
            hint=_cure(folder, save),
        )
    count = root.get("mp_world_size")
    slices = count if type(count) is int else len(modules)
    if slices > 1:
        absent = [f"mp_rank_{i:02d}_model_states.pt" for i in range(slices) if i >= len(modules)]
        if absent:
            raise missing(save, absent[:64], slices, what="part", cure=_cure(folder, save))
        raise _unread(folder, save, f"each tensor lies in {slices} slices (model parallelism)", "")
    _check_shapes(folder, save, modules[0], root)
    return save.contents(Found("deepspeed-zero", _with_facts(save, root, partitions)))


def _read_states(source: ByteSource, label: str) -> Contents:
    """Read one of DeepSpeed's files, which are torch.save's."""
    if source.pread(0, min(4, source.size)) != LOCAL:
        raise ContainerError(f"{label!r} is no zip of torch.save's, which DeepSpeed writes")
    try:
        return read_torch_zip(source, label, read_directory(source))
    except NotWholeError as error:
        raise DamagedError(f"{label!r} is cut short: {error}", hint="copy it again") from None
    except KeyError:
        raise ContainerError(f"{label!r} is no zip of torch.save's") from None


def _save(folder: Folder) -> Folder:
    """Return the folder of the newest save."""
    if any(STATES.fullmatch(n) for n in folder.top()):
        return folder
    saves = sorted({n.partition("/")[0] for n in folder.names() if STATES.fullmatch(n)})
    if "latest" in folder.top():
        source = folder.source("latest")
        text = source.pread(0, min(source.size, MAX_LATEST_BYTES)).decode("utf-8", "replace")
        tag = text.strip()
        if not is_inside(tag) or "/" in tag:
            raise DamagedError(f"{folder.label('latest')!r} names no save: {tag[:80]!r}")
        if tag not in saves:
            raise DamagedError(
                f"{folder.label('latest')!r} names the save {tag!r}, which isn't there; there is "
                f"{', '.join(saves)}",
                hint=f"copy {tag} too, or take {folder.quoted(saves[-1])}",
            )
        folder.use("latest")
        return folder.below(tag)
    if len(saves) > 1:
        raise AmbiguousError(
            f"{folder.label()!r} holds {len(saves)} saves, and no file 'latest' that names one: "
            + ", ".join(saves[:8]),
            hint=f"take one of them: {folder.quoted(saves[-1])}",
            candidates=saves,
        )
    return folder.below(saves[0])


def _check_shapes(folder: Folder, save: Folder, name: str, root: dict[Any, Any]) -> None:
    """Check the weights against the shapes that the file states for the whole ones."""
    whole: dict[Any, Any] = {}
    shapes = root.get("param_shapes")
    for group in shapes if isinstance(shapes, list) else [shapes]:
        whole.update(items_of(group) or {})
    for key, shape in whole.items():
        tensor = root["module"].get(key)
        if isinstance(tensor, Tensor) and tensor.shape != shape:
            raise ContainerError(
                f"{save.label(name)!r} holds {key!r} as {tensor.shape}, of {shape}: it is "
                "partitioned over ranks (ZeRO stage 3)",
                hint=_cure(folder, save),
            )


def _with_facts(
    save: Folder, root: dict[Any, Any], partitions: list[re.Match[str]]
) -> dict[Any, Any]:
    """Return the root with the step under its customary name, and what is there of ZeRO."""
    config = items_of(root.get("ds_config")) or {}
    stage = (items_of(config.get("zero_optimization")) or {}).get("stage", 0)
    ranks = sorted({int(m["dp"]) for m in partitions})
    stated = root.get("dp_world_size")
    world = stated if type(stated) is int else len(ranks)
    made = dict(root)
    if type(root.get("global_steps")) is int:
        made.setdefault("global_step", root["global_steps"])
    made["zero"] = {
        "stage": stage if type(stage) is int else None,
        "data_parallel_size": world,
        "partitions": len(ranks),
    }
    if not ranks:
        return made
    if len(ranks) < world:
        absent = sorted(set(range(min(world, 4_096))) - set(ranks))
        save.warn(f"{len(ranks)} of {world} parts of the optimizer are there; ranks {absent} lack")
    return made


def _stage_3(folder: Folder, save: Folder, parts: list[re.Match[str]]) -> ContainerError:
    root = save.part(parts[0].string, _read_states).root
    stated = root.get("dp_world_size") if isinstance(root, dict) else None
    ranks = {int(m["dp"]) for m in parts}
    world = stated if type(stated) is int else max(ranks) + 1
    there = f"{len(ranks)} of {world} parts are there"
    return _unread(folder, save, "ZeRO stage 3: each tensor is partitioned over the ranks", there)


def _unread(folder: Folder, save: Folder, why: str, there: str) -> ContainerError:
    """Return the refusal of a folder whose weights only DeepSpeed can join."""
    parts = f"; {there}" if there else ""
    return ContainerError(
        f"{save.label()!r} is a DeepSpeed checkpoint whose weights aren't whole: {why}{parts}",
        hint=_cure(folder, save),
    )


def _cure(folder: Folder, save: Folder) -> str:
    top = folder if folder is not save else None
    here = folder.quoted() if top else f"the folder above {save.label()!r}"
    script = (
        "zero_to_fp32.py"
        if top is None or "zero_to_fp32.py" in folder.top()
        else "-m deepspeed.utils.zero_to_fp32"
    )
    return (
        f"join the parts with DeepSpeed, in {here}: python {script} . joined/ "
        "--safe_serialization, and take joined/"
    )
