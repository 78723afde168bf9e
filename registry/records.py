"""The nouns that a registry keeps, as immutable values: runs, models, files, checkpoints.

Law: a record that exists is valid. Whatever comes from a caller, a file or a database row goes
through the checks of values.py first. Knows nothing of SQL, of torch or of files; `to_dict` is the
public JSON form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, Self

from .signature import KeyStyle
from .topology import Topology
from .values import (
    EMPTY,
    FORMAT,
    CheckpointId,
    Digest,
    FrozenMap,
    canonical_json,
    checkpoint_id,
    count,
    digest,
    digest_of,
    label,
    list_of,
    metrics_of,
    model_name,
    now,
    one_of,
    optional_count,
    optional_prose,
    optional_text,
    parse_time,
    plain_json,
    printable,
    table_of,
    time_text,
)

Source = Literal["recorded", "inferred", "unknown"]
Weights = Literal["live", "ema", "both"]
Mode = Literal["max", "min"]
Origin = Literal["save", "push"]

SOURCES: Final = ("recorded", "inferred", "unknown")

TEXT_LIMIT: Final = 4096
"""How many characters a note, an author or a command line may have."""

JSON_LIMIT: Final = 1 << 20
"""How many bytes the config and metrics of a checkpoint, or a file's own record, may have."""

RECORD_LIMIT: Final = 2 << 20
"""How many bytes a checkpoint's whole record may have: every list reads it."""


def brief(value: object, what: str) -> str | None:
    """Return free text as it is, or None for None.

    Raises:
        TypeError: it is no text.
        ValueError: it is longer than `TEXT_LIMIT`.
    """
    text = optional_prose(value, what)
    if text is not None and len(text) > TEXT_LIMIT:
        raise ValueError(f"{what} has {len(text)} characters, and may have {TEXT_LIMIT}")
    return text


def small(value: Any, what: str, limit: int = JSON_LIMIT) -> Any:
    """Return JSON data as it is.

    Raises:
        ValueError: its text is longer than the limit.
    """
    size = len(canonical_json(value))
    if size > limit:
        raise ValueError(f"{what} has {size} bytes as JSON, and may have {limit}")
    return value


@dataclass(frozen=True, slots=True)
class Git:
    """The commit that the training code was at, and whether tracked files differed from it."""

    commit: str
    dirty: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"commit": self.commit, "dirty": self.dirty}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Git:
        """Return what `to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is no such form, or a field breaks its rule.
        """
        plain = table_of(plain, "git")
        if not isinstance(plain["dirty"], bool):
            raise TypeError(f"git's dirty must be true or false, not {plain['dirty']!r}")
        return cls(printable(plain["commit"], "commit"), plain["dirty"])


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where topology and key style come from: seen live or stated, worked out, or unknown.

    Attributes:
        from_name: the facts that only the file's name said: `epoch`, `metrics.val_acc`.
    """

    topology: Source = "unknown"
    key_style: Source = "unknown"
    from_name: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "topology": self.topology,
            "key_style": self.key_style,
            "from_name": list(self.from_name),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Provenance:
        """Return what `to_dict` wrote.

        Raises:
            ValueError, TypeError: it is no such form.
        """
        return cls(
            one_of(plain.get("topology", "unknown"), SOURCES, "provenance"),
            one_of(plain.get("key_style", "unknown"), SOURCES, "provenance"),
            tuple(printable(n, "a fact") for n in list_of(plain.get("from_name"), "facts")),
        )


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One training job, all its ranks.

    Attributes:
        id: 32 hex digits.
        name: as given; the same name continues it.
    """

    id: str
    model: str
    name: str | None = None
    dataset: str | None = None
    config: FrozenMap[Any] = EMPTY
    batch_size: int | None = None
    hostname: str | None = None
    command: str | None = None
    git: Git | None = None
    author: str | None = None
    created_at: datetime = field(default_factory=now)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "id": self.id,
            "model": self.model,
            "name": self.name,
            "dataset": self.dataset,
            "config": self.config.to_dict(),
            "batch_size": self.batch_size,
            "hostname": self.hostname,
            "command": self.command,
            "git": None if self.git is None else self.git.to_dict(),
            "author": self.author,
            "created_at": time_text(self.created_at),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Return the run that `to_dict` wrote, every field checked anew.

        Raises:
            ValueError, TypeError, KeyError: it is no such form, or a field breaks its rule.
        """
        plain = table_of(plain, "a run")
        git = plain.get("git")
        return cls(
            id=checkpoint_id(plain["id"]),
            model=model_name(plain["model"]),
            name=optional_text(plain.get("name"), "run"),
            dataset=optional_text(plain.get("dataset"), "dataset"),
            config=FrozenMap(plain_json(table_of(plain.get("config"), "config"), "config")),
            batch_size=optional_count(plain.get("batch_size"), "batch_size"),
            hostname=optional_prose(plain.get("hostname"), "hostname"),
            command=optional_prose(plain.get("command"), "command"),
            git=None if git is None else Git.from_dict(git),
            author=optional_prose(plain.get("author"), "author"),
            created_at=parse_time(plain["created_at"]),
        )


@dataclass(frozen=True, slots=True)
class CarriedRun(RunRecord):
    """A run as a file tells of it: in this registry its name, or even its id, may be another's."""


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run as its checkpoints name it."""

    id: str
    name: str | None = None


FOLDERS: Final = frozenset(
    {
        "safetensors-sharded", "torch-sharded", "hf-model", "hf-trainer", "accelerate", "peft",
        "dcp", "lightning-sharded", "deepspeed-zero",
    }
)  # fmt: skip
"""Containers that are folders, even where one file is all that they hold."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint: its name in the checkpoint, and its blob."""

    name: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the registry knows it.

    Attributes:
        versions: how many versions were ever given; the next is one more.
        checkpoints: how many of them live.
        metric, mode: the monitor, which is what best means for this model.
    """

    name: str
    versions: int
    checkpoints: int
    datasets: tuple[str | None, ...]
    metric: str
    mode: Mode
    created_at: datetime


# --- the checkpoint -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Checkpoint:
    """One recorded save. Immutable; a later `record`, tag or alias gives a new value of it.

    Attributes:
        id: 32 hex digits; any unique prefix of 6 or more is a ref.
        version: 1, 2, … within the model, without gaps, never reused.
        run: the run that it belongs to, or None for a push that names none.
        acc: the metric `acc`, on whatever scale the training script used.
        key_style: how the live model was wrapped.
        file_keys: how the keys in the file are wrapped (`""` in what save writes).
        weights: whether the file holds live weights, averaged ones (ema), or both.
        signature: the digest of its canonical keys, shapes and dtypes.
        raw_signature: the same over the file's keys as they stand, where these differ; else None.
        tensors: how many tensors the weights have.
        parameters: trainable elements; None where the file can't say.
        size_bytes: all files together.
        optimizers: name -> class, e.g. {'optimizer': 'torch.optim.adam.Adam'}.
        scheduler: the scheduler's class, or None.
        origin: save or push.
        facts_digest: covers the facts that identify it; fixed at creation.
    """

    id: CheckpointId
    model: str
    version: int
    run: RunRef | None = None
    dataset: str | None = None
    epoch: int | None = None
    step: int | None = None
    metrics: FrozenMap[float] = EMPTY
    config: FrozenMap[Any] = EMPTY
    batch_size: int | None = None
    key_style: KeyStyle = field(default_factory=KeyStyle)
    file_keys: KeyStyle = field(default_factory=KeyStyle)
    weights: Weights = "live"
    topology: Topology = field(default_factory=Topology)
    provenance: Provenance = Provenance()
    container: str
    signature: Digest
    raw_signature: Digest | None = None
    tensors: int
    parameters: int | None = None
    files: tuple[File, ...]
    optimizers: FrozenMap[str] = EMPTY
    scheduler: str | None = None
    unsafe_globals: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parent: CheckpointId | None = None
    note: str | None = None
    author: str | None = None
    git: Git | None = None
    command: str | None = None
    origin: Origin = "save"
    created_at: datetime
    removed_at: datetime | None = None
    facts_digest: Digest

    @property
    def acc(self) -> float | None:
        """The metric `acc`, or None."""
        return self.metrics.get("acc")

    @property
    def ref(self) -> str:
        """The short handle, `resnet50@v3`."""
        return f"{self.model}@v{self.version}"

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files, even of one, and not a lone file."""
        return len(self.files) > 1 or self.container in FOLDERS

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(f.size_bytes for f in self.files)

    @property
    def digest(self) -> Digest:
        """The one file's digest; of several, the digest of their names and digests."""
        if len(self.files) == 1:
            return self.files[0].digest
        return digest_of([[f.name, f.digest] for f in self.files])

    def __repr__(self) -> str:
        shown: dict[str, object] = {
            "dataset": self.dataset, "epoch": self.epoch, "acc": self.acc,
            "key_style": str(self.key_style) or None, "topology": self.topology.short(),
            "id": self.id[:8],
        }  # fmt: skip
        facts = ", ".join(f"{k}={v!r}" for k, v in shown.items() if v is not None)
        return f"<Checkpoint {self.ref} {facts}{' REMOVED' if self.removed_at else ''}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the public JSON form (plain dicts, lists, text and numbers)."""
        return {
            "format": FORMAT,
            "id": self.id,
            "ref": self.ref,
            "model": self.model,
            "version": self.version,
            "run": None if self.run is None else {"id": self.run.id, "name": self.run.name},
            "dataset": self.dataset,
            "epoch": self.epoch,
            "step": self.step,
            "acc": self.acc,
            "metrics": self.metrics.to_dict(),
            "config": self.config.to_dict(),
            "batch_size": self.batch_size,
            "key_style": str(self.key_style),
            "file_keys": str(self.file_keys),
            "weights": self.weights,
            "topology": self.topology.to_dict(),
            "provenance": self.provenance.to_dict(),
            "container": self.container,
            "signature": self.signature,
            "raw_signature": self.raw_signature,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            "digest": self.digest,
            "files": [
                {"name": f.name, "digest": f.digest, "size_bytes": f.size_bytes} for f in self.files
            ],
            "optimizers": self.optimizers.to_dict(),
            "scheduler": self.scheduler,
            "tags": list(self.tags),
            "aliases": list(self.aliases),
            "parent": self.parent,
            "note": self.note,
            "author": self.author,
            "git": None if self.git is None else self.git.to_dict(),
            "command": self.command,
            "origin": self.origin,
            "created_at": time_text(self.created_at),
            "removed_at": None if self.removed_at is None else time_text(self.removed_at),
            "unsafe_globals": list(self.unsafe_globals),
            "facts_digest": self.facts_digest,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint that `to_dict` wrote, every field checked anew.

        Raises:
            ValueError, TypeError, KeyError: it is no such form, or a field breaks its rule.
        """
        plain = table_of(plain, "a checkpoint")
        run, git = plain.get("run"), plain.get("git")
        provenance = table_of(plain.get("provenance"), "provenance")
        return cls(
            id=checkpoint_id(plain["id"]),
            model=model_name(plain["model"]),
            version=count(plain["version"], "version"),
            run=None
            if run is None
            else RunRef(checkpoint_id(run["id"]), optional_text(run.get("name"), "run")),
            dataset=optional_text(plain.get("dataset"), "dataset"),
            epoch=optional_count(plain.get("epoch"), "epoch"),
            step=optional_count(plain.get("step"), "step"),
            metrics=metrics_of(table_of(plain.get("metrics"), "metrics")),
            config=FrozenMap(plain_json(table_of(plain.get("config"), "config"), "config")),
            batch_size=optional_count(plain.get("batch_size"), "batch_size"),
            key_style=KeyStyle.parse(plain.get("key_style") or ""),
            file_keys=KeyStyle.parse(plain.get("file_keys") or ""),
            weights=one_of(plain.get("weights", "live"), ("live", "ema", "both"), "weights"),
            topology=Topology.from_dict(table_of(plain.get("topology"), "topology")),
            provenance=Provenance.from_dict(provenance),
            container=printable(plain["container"], "container"),
            signature=digest(plain["signature"]),
            raw_signature=None
            if plain.get("raw_signature") is None
            else digest(plain["raw_signature"]),
            tensors=count(plain["tensors"], "tensors"),
            parameters=optional_count(plain.get("parameters"), "parameters"),
            files=tuple(
                File(
                    printable(f["name"], "file"),
                    digest(f["digest"]),
                    count(f["size_bytes"], "size_bytes"),
                )
                for f in (table_of(f, "file") for f in list_of(plain["files"], "files"))
            ),
            optimizers=FrozenMap(
                {
                    str(k): printable(v, "optimizer")
                    for k, v in table_of(plain.get("optimizers"), "optimizers").items()
                }
            ),
            scheduler=optional_text(plain.get("scheduler"), "scheduler"),
            unsafe_globals=tuple(map(str, list_of(plain.get("unsafe_globals"), "unsafe_globals"))),
            tags=tuple(label(t, "tag") for t in list_of(plain.get("tags"), "tags")),
            aliases=tuple(label(a, "alias") for a in list_of(plain.get("aliases"), "aliases")),
            parent=None if plain.get("parent") is None else checkpoint_id(plain["parent"]),
            note=optional_prose(plain.get("note"), "note"),
            author=optional_prose(plain.get("author"), "author"),
            git=None if git is None else Git.from_dict(git),
            command=optional_prose(plain.get("command"), "command"),
            origin=one_of(plain.get("origin", "save"), ("save", "push"), "origin"),
            created_at=parse_time(plain["created_at"]),
            removed_at=None if plain.get("removed_at") is None else parse_time(plain["removed_at"]),
            facts_digest=digest(plain["facts_digest"]),
        )


def facts_digest(
    *,
    model: str,
    dataset: str | None,
    run: str | None,
    epoch: int | None,
    step: int | None,
    metrics: Mapping[str, float],
    parent: str | None,
    key_style: KeyStyle,
    file_keys: KeyStyle,
    strategy: str | None,
    world_size: int | None,
    files: Sequence[File],
) -> Digest:
    """Return the digest of the facts that make a checkpoint what it is, as they were at creation.

    Not id, version, time, author, host, git, command line, note, tags and aliases: two pushes of
    one file that differ in those alone are twins.
    """
    return digest_of(
        {
            "model": model, "dataset": dataset, "run": run, "epoch": epoch, "step": step,
            "metrics": dict(metrics), "parent": parent, "key_style": str(key_style),
            "file_keys": str(file_keys), "strategy": strategy, "world_size": world_size,
            # one file is what it is under any name
            "files": [files[0].digest] if len(files) == 1 else [[f.name, f.digest] for f in files],
        }
    )  # fmt: skip


def facts_of(checkpoint: Checkpoint) -> Digest:
    """Return the digest of a checkpoint's facts; of one as it was made it is its `facts_digest`."""
    return facts_digest(
        model=checkpoint.model,
        dataset=checkpoint.dataset,
        run=None if checkpoint.run is None else checkpoint.run.id,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        metrics=checkpoint.metrics,
        parent=checkpoint.parent,
        key_style=checkpoint.key_style,
        file_keys=checkpoint.file_keys,
        strategy=checkpoint.topology.strategy,
        world_size=checkpoint.topology.world_size,
        files=checkpoint.files,
    )
