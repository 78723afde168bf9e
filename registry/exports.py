"""Export: a checkpoint's weights as a folder that other tools read, whole or in shards.

    model.safetensors                           one file, or with --shard-size
    model-00001-of-00003.safetensors …          shards, and which holds what:
    model.safetensors.index.json
    pytorch_model.bin …                         the same as torch files (--format pt)
    ckreg.json                                  the checkpoint, and under `ckreg` its record
    README.md                                   the model card, see cards.py

Law: names and layout are those that transformers and safetensors read (transformers 4 and 5); tied
names are never in two shards. The folder appears whole or not at all, and pushed again it is what
its record says. Imports .tensors only inside a function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from . import cards, opening
from .blobs import BlobStore, Place, Progress, Staged
from .carrying import carried
from .catalog import Catalog
from .opening import Opened, opened
from .planning import LoadPlan, Wanted, make_plan
from .records import Checkpoint, RunRecord
from .values import canonical_json

FORMATS: Final = ("safetensors", "pt")
RECORD: Final = "ckreg.json"
CARD: Final = "README.md"

_NAMES: Final = {"safetensors": ("model", "safetensors"), "pt": ("pytorch_model", "bin")}
_OURS: Final = re.compile(
    r"(model|pytorch_model)(-\d{5,}-of-\d{5,})?\.(safetensors|bin)(\.index\.json)?|ckreg\.json"
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of an export, and the keys of the state dict that go into it."""

    file: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What an export says of its weights."""

    checkpoint: Checkpoint
    run: RunRecord | None

    def in_public(self) -> Told:
        """Return it without who made it, on which machines, and by which command."""
        here = replace(self.checkpoint.topology, hostname=None, ranks=())
        run = self.run
        return Told(
            replace(self.checkpoint, topology=here, author=None, command=None),
            None if run is None else replace(run, hostname=None, author=None, command=None),
        )


def shards(
    groups: Iterable[tuple[tuple[str, ...], int]], limit: int | None, format: str
) -> tuple[Shard, ...]:
    """Return which keys go into which file: in order, each file as full as the limit lets it be.

    Args:
        groups: names that are one tensor, and its bytes; they are never parted. One that is larger
            than the limit has a file of its own.
        limit: the bytes of one file; None: one file for all.

    Example:
        >>> [s.keys for s in shards([(("a",), 6), (("b", "c"), 3), (("d",), 9)], 10, "pt")]
        [('a', 'b', 'c'), ('d',)]
    """
    parts: list[list[str]] = [[]]
    filled = 0
    for names, size in groups:
        if limit is not None and parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].extend(names)
        filled += size
    stem, suffix = _NAMES[format]
    many = len(parts)
    if many == 1:
        return (Shard(f"{stem}.{suffix}", tuple(parts[0])),)
    return tuple(
        Shard(f"{stem}-{i:05}-of-{many:05}.{suffix}", tuple(keys))
        for i, keys in enumerate(parts, 1)
    )


def _is_ours(folder: Path, name: str) -> bool:
    """Say whether an export wrote a file; a card that somebody edited is that person's."""
    if name != CARD:
        return _OURS.fullmatch(name) is not None
    try:
        return cards.is_untouched((folder / name).read_text("utf-8"))
    except (OSError, ValueError):
        return False


def export(
    store: BlobStore,
    catalog: Catalog,
    checkpoint: Checkpoint,
    dest: Path,
    want: Wanted,
    *,
    format: str,
    shard_bytes: int | None,
    public: bool,
    force: bool,
    progress: Progress | None,
) -> Path:
    """Write the folder, and return its path; see `Registry.export`."""
    with opened(store, catalog, checkpoint, verify=True) as file:
        made = make_plan(opening.saved_side(file), None, want, None)
        run = None if checkpoint.run is None else catalog.run(checkpoint.run.id)
        told = Told(checkpoint, run)
        if public:
            told = told.in_public()
        store.produce_folder(
            dest,
            lambda place: _fill(file, made, told, place, format, shard_bytes, progress),
            replaceable=partial(_is_ours, dest) if force else None,
            expect_bytes=made.bytes_to_read,
        )
    return dest


def _fill(
    file: Opened,
    made: LoadPlan,
    told: Told,
    place: Place,
    format: str,
    limit: int | None,
    progress: Progress | None,
) -> None:
    from .tensors import building, exporting

    description = file.description
    record = carried(told.checkpoint, told.run, made, description.record)
    source = description.weights
    if made.weights == "ema" and description.ema is not None:
        source = description.ema
    used = list(opening.tensors_in([source[move.source] for move in made.moves]))
    mapping = file.map(used)
    file.verify(mapping, used, progress)
    state = exporting.weights(made, building.Builder(file.contents, mapping), description)
    groups = exporting.tied(state)
    found = shards(groups, limit, format)
    alone = {"ckreg": canonical_json(record)} if len(found) == 1 else {}
    for shard in found:
        part = state if len(found) == 1 else {key: state[key] for key in shard.keys}
        place(shard.file, _writer(part, format, alone))
    if len(found) > 1:
        # of tied names a safetensors file holds the first, and an index names what is there
        there = {
            n for names, _ in groups for n in (names[:1] if format == "safetensors" else names)
        }
        index = {
            "metadata": {"total_size": sum(size for _, size in groups)},
            "weight_map": {key: s.file for s in found for key in s.keys if key in there},
        }
        stem, suffix = _NAMES[format]
        place(f"{stem}.{suffix}.index.json", _json(index))
    place(RECORD, _json({**told.checkpoint.to_dict(), "ckreg": record}))
    written = cards.Written(
        format=format,
        files=tuple(shard.file for shard in found),
        tensors=tuple(cards.Weight(*facts) for facts in exporting.summary(state)),
        keys=None if made.keys_from == "as they are" else str(made.out_keys),
        weights=made.weights if file.checkpoint.weights == "both" else None,
    )
    place(CARD, _text(cards.card(told.checkpoint, told.run, written)))


def _writer(
    state: Mapping[str, Any], format: str, facts: Mapping[str, str]
) -> Callable[[Staged], None]:
    from .tensors import exporting

    if format == "safetensors":
        return lambda staged: exporting.write_safetensors(state, staged, metadata=facts)
    return lambda staged: exporting.write_weights(state, staged)


def _json(value: Mapping[str, Any]) -> Callable[[Staged], None]:
    return _text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _text(text: str) -> Callable[[Staged], None]:
    data = text.encode()

    def write(staged: Staged) -> None:
        staged.write(data)

    return write
