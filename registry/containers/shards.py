"""A model in several files with an index: every shard and every key is accounted for.

Law: a shard that the index names and the folder lacks, a key that isn't where the index says, a key
or a shard that the index doesn't know: each is refused by name. `total_size` is not checked: tools
that write it disagree on tied weights.

    model.safetensors.index.json      {"metadata": {…}, "weight_map": {key: shard}}
    model-00001-of-00002.safetensors  a shard
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import ContainerError, DamagedError, UntrustedError
from .parts import Folder, is_inside, missing
from .tree import Opaque, TaggedDict

INDEX: Final = re.compile(
    r"(?P<stem>.+)\.(?P<ext>safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json"
)
SHARD: Final = re.compile(
    r"(?P<stem>.+)-(?P<k>\d{5,6})-of-(?P<n>\d{5,6})(?P<variant>\.[^.]+)?\.(?P<ext>safetensors|bin)"
)
_SHARDED_BY_DCP: Final = "DCP_SHARDING_INFO"


def read_shards(folder: Folder, index: str) -> TaggedDict:
    """Return the weights of a model in several files, in the index's order.

    Args:
        index: the index's name.

    Raises:
        DamagedError: a shard or a key is missing.
        ContainerError: a shard or a key isn't in the index.
        UntrustedError: the index names a file elsewhere.
    """
    places = weight_map(folder.json(index), folder.label(index))
    shards = list(dict.fromkeys(places.values()))
    absent = [shard for shard in shards if shard not in folder.names()]
    if absent:
        raise missing(folder, absent, len(shards), what="shard", cure=_fetch(folder, absent))
    _refuse_others(folder, index, shards)
    found = {shard: _read_shard(folder, shard) for shard in shards}
    for shard, held in found.items():
        _check_keys(folder, index, shard, held, {k for k, s in places.items() if s == shard})
    return TaggedDict((key, found[shard][key]) for key, shard in places.items())


def weight_map(index: dict[str, Any], label: str) -> dict[str, str]:
    """Return the shard of each key, as an index says it.

    Raises:
        DamagedError: it is no index.
        UntrustedError: it names a file elsewhere.
    """
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DamagedError(f"{label!r} has no weight_map, which says where each tensor is")
    for key, shard in places.items():
        if not is_inside(shard):
            raise UntrustedError(
                f"{label!r} says that {key!r} is in {shard!r}, which is no file of this folder"
            )
    return places


def _read_shard(folder: Folder, shard: str) -> dict[Any, Any]:
    root: object = folder.part(shard).root
    if not isinstance(root, dict):
        what = root.name if isinstance(root, Opaque) else type(root).__name__
        raise ContainerError(f"{folder.label(shard)!r} holds a {what}, and no weights by name")
    if isinstance(root, TaggedDict) and root.attributes:
        texts = root.attributes.get("__metadata__")
        if isinstance(texts, dict) and _SHARDED_BY_DCP in texts:
            raise ContainerError(
                f"{folder.label(shard)!r} holds one rank's pieces of tensors, as "
                "HuggingFaceStorageWriter writes them, and no whole ones",
                hint="join them with consolidate_safetensors_files (torch.distributed.checkpoint."
                "_consolidate_hf_safetensors), or save with enable_consolidation=True",
            )
    return root


def _check_keys(
    folder: Folder, index: str, shard: str, held: dict[Any, Any], listed: set[str]
) -> None:
    absent = sorted(listed - held.keys())
    if absent:
        raise DamagedError(
            f"{folder.label(shard)!r} lacks {_keys(absent)}, which {index!r} says it holds",
            hint="the index and the shard are of two saves: get both again, or save again",
        )
    extra = sorted(str(key) for key in held.keys() - listed)
    if extra:
        raise ContainerError(
            f"{folder.label(shard)!r} holds {_keys(extra)}, which {index!r} doesn't place there",
            hint="the index and the shard are of two saves: get both again, or save again",
        )


def _refuse_others(folder: Folder, index: str, shards: list[str]) -> None:
    """Refuse shards of the same series that the index doesn't name: another save's leftovers."""
    series = {(m["stem"], m["ext"]) for s in shards if (m := SHARD.fullmatch(s))}
    extra = sorted(
        name
        for name in folder.top() - set(shards)
        if (m := SHARD.fullmatch(name)) and (m["stem"], m["ext"]) in series
    )
    if extra:
        raise ContainerError(
            f"{folder.label()!r} holds {', '.join(map(repr, extra[:6]))}, of which {index!r} "
            "knows nothing: two saves lie in one folder",
            hint="if the index is right, move them away: mv "
            + " ".join(folder.quoted(name) for name in extra[:6])
            + " /elsewhere",
        )


def refuse_without_index(folder: Folder, names: list[str]) -> DamagedError:
    """Return the error for shards whose index is missing.

    Args:
        names: the shards that are there, at least one.
    """
    first = SHARD.fullmatch(names[0])
    assert first is not None
    total = int(first["n"])
    index = f"{first['stem']}.{first['ext']}.index.json"
    return DamagedError(
        f"{folder.label()!r} holds {len(names)} of {total} shards, and lacks {index!r}, which says "
        "where each tensor is",
        hint=f"copy or download {index} too, into {folder.quoted()}",
    )


def _keys(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:6])
    return shown + (f" and {len(keys) - 6} more keys" if len(keys) > 6 else "")


def _fetch(folder: Folder, absent: list[str]) -> str:
    return f"copy or download {', '.join(absent[:6])} into {folder.quoted()}"
