"""Files that are parts of a folder, met alone: which part of how many, and where the rest belongs.

Law: such a file is refused, never taken for a whole model. What its bytes don't say (a shard of
safetensors looks like any other) its name does, as the libraries give it.
"""

from __future__ import annotations

import math
import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import Any, Final

from ..errors import CkregError, ContainerError
from .contents import Contents
from .dcp_metadata import DISTCP, MAX_METADATA_BYTES, parse_metadata
from .parts import MAX_JSON_BYTES, parse_json
from .shards import SHARD, weight_map
from .source import ByteSource
from .tree import Opaque, Tensor, walk

_SHARDED_CLASSES: Final = {
    "DTensor": "FSDP2 or tensor parallelism",
    "ShardedTensor": "FSDP1's sharded state dict",
}
_ZERO: Final = re.compile(r".*zero_pp_rank_(\d+)_mp_rank_(\d+).*")
_WHOLE: Final = (
    "gather it on the ranks that saved it, and save it whole: get_model_state_dict(net, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True)); or save a folder with "
    "torch.distributed.checkpoint.save, and take that"
)


@dataclass(frozen=True, slots=True)
class RankPart:
    """A file in which tensors are one rank's pieces.

    Attributes:
        cls: the class of the sharded tensors.
        rank: whose pieces, or None where the file doesn't say.
        ranks: of how many ranks.
        tensors: how many tensors are in pieces.
    """

    cls: str
    rank: int | None
    ranks: int
    tensors: int


def check_whole(contents: Contents, name: str) -> None:
    """Refuse a file that was read and is a part.

    Raises:
        ContainerError: it is a shard, or one rank's.
    """
    base = posixpath.basename(name)
    if (shard := SHARD.fullmatch(base)) and int(shard["n"]) > 1:
        raise ContainerError(
            f"{name!r} is shard {int(shard['k'])} of {int(shard['n'])}: part of a model's weights",
            hint=_folder_cure(
                name, f"with all shards and {shard['stem']}.{shard['ext']}.index.json"
            ),
        )
    if DISTCP.fullmatch(base):
        raise refuse_part("dcp", None, name)
    part = rank_part(contents)
    if part is not None:
        which = "one part" if part.rank is None else f"part {part.rank + 1}"
        who = "" if part.rank is None else f", that of rank {part.rank}"
        held = f"{part.tensors} tensors" if part.tensors > 1 else "a tensor"
        raise ContainerError(
            f"{name!r} is {which} of {part.ranks} of a model{who}: it holds pieces of {held} "
            f"({part.cls}: {_SHARDED_CLASSES[part.cls]})",
            hint=_WHOLE,
        )


def rank_part(contents: Contents) -> RankPart | None:
    """Return whose part of how many a file is, by the sharded tensors in it; None for a whole one.

    A DTensor that is split over one rank only makes no part, nor one that isn't split: that is read
    as the tensor that it is.
    """
    if not any(n.rpartition(".")[2] in _SHARDED_CLASSES for n in contents.unsafe_globals):
        return None
    found: RankPart | None = None
    for node in walk(contents.root):
        if not isinstance(node, Opaque) or not node.is_tensor:
            continue
        cls = node.name.rpartition(".")[2]
        place = {"DTensor": _dtensor, "ShardedTensor": _sharded_tensor}.get(cls)
        if place is None or not node.name.startswith("torch.distributed."):
            continue
        rank, ranks = place(node)
        if ranks > 1:
            count = found.tensors + 1 if found else 1
            found = RankPart(cls, rank, ranks, count)
    return found


def _dtensor(node: Opaque) -> tuple[int | None, int]:
    """Return the rank and the number of ranks over which a DTensor is split."""
    spec = _fields(_fields(node.state).get("_spec"))
    mesh = _fields(spec.get("mesh"))
    placements = spec.get("placements")
    names = [p.name for p in placements or () if isinstance(p, Opaque)]
    if names and all(name.endswith("Replicate") for name in names):
        return None, 1
    rank = mesh.get("_rank")
    for listed in (mesh.get("_flatten_rank_map"), mesh.get("_flatten_mesh_list")):
        if isinstance(listed, tuple | list) and listed:  # torch 2.13, and before
            return _in(rank, len(listed)), len(listed)
    ranks = mesh.get("mesh") or mesh.get("_rank_map")
    size = math.prod(ranks.shape) if isinstance(ranks, Tensor) else 2
    return _in(rank, size), size


def _sharded_tensor(node: Opaque) -> tuple[int | None, int]:
    for item in node.state if isinstance(node.state, tuple) else ():
        fields = _fields(item)
        if "global_world_size" in fields and type(fields["global_world_size"]) is int:
            size = fields["global_world_size"]
            return _in(fields.get("global_rank"), size), size
    return None, 2


def _in(rank: Any, size: int) -> int | None:
    return rank if type(rank) is int and 0 <= rank < size else None


def _fields(node: Any) -> dict[Any, Any]:
    """Return an object's fields, from whichever form of state it has."""
    state = node.state if isinstance(node, Opaque) else node
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = state[1]
    return state if isinstance(state, dict) else {}


# --- kinds of files that are parts ----------------------------------------------------------------


def refuse_part(kind: str, source: ByteSource | None, name: str) -> ContainerError:
    """Return the refusal of a file whose kind says that it is a part.

    Args:
        kind: `dcp`, `deepspeed` or `sharded-safetensors`, as sniffing.py names them.
        source: its bytes; None where nothing more is to be learned from them.
        name: how to call the file.
    """
    base = posixpath.basename(name)
    if kind == "sharded-safetensors":
        return _index_alone(source, name)
    if kind == "deepspeed":
        ranks = _ZERO.fullmatch(base)
        who = f"the part of data-parallel rank {int(ranks[1])}" if ranks else "one rank's part"
        return ContainerError(
            f"{name!r} is {who} of a DeepSpeed checkpoint",
            hint=_folder_cure(name, "with 'latest' and all ranks' files")
            + "; if its weights are partitioned (ZeRO stage 3), join them first with the "
            "zero_to_fp32.py that DeepSpeed left there",
        )
    part = DISTCP.fullmatch(base)
    if part:
        what = f"is what rank {int(part['rank'])} wrote (its file {int(part['part']) + 1})"
        many = "; of how many files, only '.metadata' says"
        return _dcp(name, f"{what} of a DCP checkpoint{many}")
    if source is not None and source.pread(0, min(2, source.size))[:1] == b"\x80":
        return _dcp(name, f"is the index of a DCP checkpoint{_count(source, name)}, without them")
    return _dcp(name, "is a part of a DCP checkpoint (torch.distributed.checkpoint)")


def _dcp(name: str, what: str) -> ContainerError:
    return ContainerError(
        f"{name!r} {what}",
        hint=_folder_cure(name, "with .metadata and all .distcp files"),
    )


def _count(source: ByteSource, name: str) -> str:
    if source.size > MAX_METADATA_BYTES:
        return ""
    try:
        metadata = parse_metadata(source.pread(0, source.size), name)
    except CkregError:
        return ""
    files = {item.file for item in metadata.items.values()}
    return f" in {len(files)} files"


def _index_alone(source: ByteSource | None, name: str) -> ContainerError:
    shards: list[str] = []
    if source is not None and source.size <= MAX_JSON_BYTES:
        try:
            index = parse_json(source.pread(0, source.size), name)
            shards = list(dict.fromkeys(weight_map(index, name).values()))
        except CkregError:
            shards = []
    many = f"{len(shards)} files" if shards else "several files"
    shown = f" ({', '.join(shards[:3])}{', …' if len(shards) > 3 else ''})" if shards else ""
    return ContainerError(
        f"{name!r} is the index of a model in {many}{shown}, without them",
        hint=_folder_cure(name, "with the index and all shards"),
    )


def _folder_cure(name: str, contents: str) -> str:
    folder = posixpath.dirname(name) or "."
    return f"push its whole folder, {contents}: ckreg push {shlex.quote(folder)}"
