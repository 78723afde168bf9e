"""From what a caller says and what a file says to a checkpoint that only lacks its version.

Law: the caller overrides the file, the file's own record overrides what its contents suggest, and
what nobody says stays unknown. Pure: knows no database, no blobs and no torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from . import keys
from .containers import Contents, Description
from .errors import RefusedLoadError
from .keys import stated_style
from .records import (
    CarriedRun,
    Checkpoint,
    File,
    Git,
    Origin,
    Provenance,
    RunRecord,
    RunRef,
    Source,
    Weights,
    brief,
    facts_digest,
    small,
)
from .signature import KeyStyle, Kind, Signature, TensorSpec
from .topology import STRATEGIES, Strategy, Topology
from .values import (
    EMPTY,
    CheckpointId,
    FrozenMap,
    checkpoint_id,
    label,
    metrics_of,
    model_name,
    now,
    one_of,
    optional_count,
    optional_text,
    plain_json,
    printable,
    table_of,
    time_text,
)

_APART: Final = ("buffers", "ties", "optimizers", "config", "metrics", "run")
"""What counts apart in a file's own record: what it says per tensor is as large as the net, and no
row repeats it; the others have limits of their own.
"""

_MOST_SAID: Final = 12
"""How many sentences `dropped` returns, before it counts the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the caller of a save or push says, checked; None and empty mean not said."""

    model: str | None = None
    dataset: str | None = None
    run: RunRecord | None = None
    epoch: int | None = None
    step: int | None = None
    metrics: FrozenMap[float] = EMPTY
    config: FrozenMap[Any] = EMPTY
    batch_size: int | None = None
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parent: CheckpointId | None = None
    note: str | None = None
    keys: KeyStyle | None = None
    strategy: Strategy | None = None
    world_size: int | None = None


UNSAID: Final = Given()
"""What nobody has said anything of."""


def check(
    *,
    model: object = None,
    dataset: object = None,
    run: RunRecord | None = None,
    epoch: object = None,
    step: object = None,
    acc: object = None,
    metrics: Mapping[str, object] | None = None,
    config: Mapping[str, object] | None = None,
    batch_size: object = None,
    tags: Iterable[str] = (),
    aliases: Iterable[str] = (),
    parent: CheckpointId | None = None,
    note: str | None = None,
    keys: str | KeyStyle | None = None,
    strategy: str | None = None,
    world_size: object = None,
) -> Given:
    """Return what a caller says, every field checked before anything slow begins.

    Raises:
        TypeError: a field is of the wrong type; the message shows the right call.
        ValueError: a field breaks its rule: a name's grammar, a number that isn't finite, a size.
    """
    for name, words in (("tags", tags), ("aliases", aliases)):
        if isinstance(words, str):
            raise TypeError(f"{name} is a list of words, not one text: {name}=[{words!r}]")
    settings = small(plain_json(dict(config or {}), "config"), "config")
    numbers = metrics_of(metrics or {}, acc)
    small([settings, dict(numbers)], "what metrics and config hold together")
    processes = optional_count(world_size, "world_size")
    if processes == 0:
        raise ValueError("world_size is the number of processes that trained, 1 or more, not 0")
    return Given(
        model=None if model is None else model_name(model),
        dataset=optional_text(dataset, "dataset"),
        run=run,
        epoch=optional_count(epoch, "epoch"),
        step=optional_count(step, "step"),
        metrics=numbers,
        config=FrozenMap(settings),
        batch_size=optional_count(batch_size, "batch_size"),
        tags=tuple(dict.fromkeys(label(t, "tag") for t in tags)),
        aliases=tuple(dict.fromkeys(label(a, "alias") for a in aliases)),
        parent=parent,
        note=brief(note, "note") or None,
        keys=stated_style(keys) if isinstance(keys, str) else keys,
        strategy=None if strategy is None else one_of(strategy, STRATEGIES, "strategy"),
        world_size=processes,
    )


@dataclass(frozen=True, slots=True)
class Recorded:
    """The record that a file saved by ckreg carries under the key `ckreg`, checked.

    Attributes:
        optimizers: name -> (class, canonical parameter names per group).
        key_style, file_keys: how the live net was wrapped, and how the file's keys are.
        provenance: where topology and key style come from; a key style that isn't recorded says
            nothing.
        buffers: canonical names that are buffers; the other tensors are parameters. None where it
            doesn't say.
        ties: canonical names that share one tensor.
    """

    given: Given
    run: CarriedRun | None
    key_style: KeyStyle
    file_keys: KeyStyle
    provenance: Provenance
    weights: Weights
    topology: Topology
    buffers: frozenset[str] | None
    ties: tuple[tuple[str, ...], ...]
    optimizers: Mapping[str, tuple[str, tuple[tuple[str, ...], ...]]]
    scheduler: str | None
    git: Git | None
    command: str | None
    author: str | None


def recorded(record: Mapping[str, Any] | None) -> Recorded | None:
    """Return a file's own record, or None where it carries none.

    Raises:
        ValueError: it carries one that breaks the rules of its fields: a damaged or foreign
            `ckreg` key.
    """
    if record is None:
        return None
    try:
        small({k: v for k, v in record.items() if k not in _APART}, "the record")
        given = check(
            model=model_name(record["model"]),
            dataset=record.get("dataset"),
            epoch=record.get("epoch"),
            step=record.get("step"),
            metrics=record.get("metrics"),
            config=table_of(record.get("config"), "config"),
            batch_size=record.get("batch_size"),
            parent=None if record.get("parent") is None else checkpoint_id(record["parent"]),
        )
        git = record.get("git")
        return Recorded(
            given=given,
            run=None if record.get("run") is None else _run(record["run"], given),
            key_style=KeyStyle.parse(record.get("key_style") or ""),
            file_keys=KeyStyle.parse(record.get("file_keys") or ""),
            provenance=Provenance.from_dict(
                {
                    "topology": "recorded",
                    "key_style": "recorded",
                    **table_of(record.get("provenance"), "provenance"),
                }
            ),
            weights=one_of(record.get("weights", "live"), ("live", "ema"), "weights"),
            topology=Topology.from_dict(record.get("topology") or {}),
            buffers=None
            if record.get("buffers") is None
            else frozenset(map(str, record["buffers"])),
            ties=tuple(tuple(map(str, group)) for group in record.get("ties") or ()),
            optimizers={
                printable(name, "optimizer"): (
                    printable(entry["class"], "optimizer"),
                    tuple(tuple(map(str, group)) for group in entry["groups"]),
                )
                for name, entry in (record.get("optimizers") or {}).items()
            },
            scheduler=optional_text(record.get("scheduler"), "scheduler"),
            git=None if git is None else Git.from_dict(git),
            command=brief(record.get("command"), "command"),
            author=brief(record.get("author"), "author"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the record under the key 'ckreg' is malformed: {error}") from error


def _run(plain: object, given: Given) -> CarriedRun:
    """Return the run that a file's record tells of; what it leaves out is the checkpoint's."""
    plain = {
        "model": given.model,
        "dataset": given.dataset,
        "created_at": time_text(now()),
        **table_of(plain, "run"),
    }
    for name in ("hostname", "command", "author"):
        brief(plain.get(name), f"the run's {name}")
    small(plain_json(table_of(plain.get("config"), "config"), "config"), "the run's config")
    return CarriedRun.from_dict(plain)


def merge(given: Given, description: Description, record: Recorded | None) -> Given:
    """Return what is known: the caller's word, then the file's record, then the file's contents."""
    said = record.given if record is not None else _contents_say(description)
    known = replace(
        given,
        model=given.model if given.model is not None else said.model,
        dataset=given.dataset if given.dataset is not None else said.dataset,
        epoch=given.epoch if given.epoch is not None else said.epoch,
        step=given.step if given.step is not None else said.step,
        metrics=FrozenMap({**said.metrics, **given.metrics}),
        config=given.config or said.config,
        batch_size=given.batch_size if given.batch_size is not None else said.batch_size,
        parent=given.parent if given.parent is not None else said.parent,
    )
    run = None if record is None else record.run
    # A run is of one model and dataset: a file that is renamed on its way in leaves it.
    if (
        given.run is None
        and run is not None
        and (run.model, run.dataset) == (known.model, known.dataset)
    ):
        known = replace(known, run=run)
    return known


def completed(known: Given, named: Given) -> tuple[Given, tuple[str, ...]]:
    """Return what is known with what a name suggests for the rest, and the facts so inferred.

    Epoch and step tell one moment: a name adds neither to a file that says one of them.
    """
    moment = known.epoch is None and known.step is None
    added = {
        name: getattr(named, name)
        for name in ("model", "epoch", "step")
        if getattr(known, name) is None
        and getattr(named, name) is not None
        and (moment or name == "model")
    }
    metrics = {k: v for k, v in named.metrics.items() if k not in known.metrics}
    whole: Given = replace(
        known,
        **added,
        metrics=FrozenMap({**metrics, **known.metrics}),
        tags=tuple(dict.fromkeys((*known.tags, *named.tags))),
    )
    return whole, (*added, *(f"metrics.{name}" for name in metrics))


def still_inferred(record: Recorded | None, given: Given) -> tuple[str, ...]:
    """Return the facts that only a name said when the record was written, and nobody says now."""

    def said(fact: str) -> bool:
        name, _, metric = fact.partition(".")
        return metric in given.metrics if metric else getattr(given, name, None) is not None

    return () if record is None else tuple(f for f in record.provenance.from_name if not said(f))


def dropped(description: Description, given: Given | None = None) -> tuple[str, ...]:
    """Return what a file says that is not recorded, and why, in sentences.

    Args:
        given: the caller's words: what they replace is not missed.
    """
    found = list(description.notes)
    with suppress(ValueError):
        if recorded(description.record) is not None:
            return tuple(found)  # its own record is taken, and its contents are not
    given = given or Given()
    for name, value in _stated(description).items():
        said = getattr(given, name) not in (None, EMPTY)
        if said or value is None or _kept(name, value) is not None:
            continue
        if name == "model":
            found.append(
                f"the file names its model {_short(value)}, which can't be a name here: "
                "give --model"
            )
        elif name == "config":
            found.append("the file's config is too large to record, or no plain data")
        else:
            found.append(f"the file's {name} {_short(value)} can't be recorded as one")
    sound, odd = _metrics(description)
    if sound and _kept("metrics", sound) is None:
        found.append(f"the file's {len(sound)} metrics are too many to record")
    found += [
        f"the file's metric {_short(name)} is {_short(value)}, and is not recorded"
        for name, value in {**odd, **description.skipped_metrics}.items()
        if name not in given.metrics
    ]
    more = len(found) - _MOST_SAID
    return (*found[:_MOST_SAID], *([f"and {more} more such"] if more > 0 else ()))


def _contents_say(description: Description) -> Given:
    """Take a foreign file's facts as far as they keep the rules: `dropped` tells of the others."""
    facts = {name: _kept(name, value) for name, value in _stated(description).items()}
    facts["metrics"] = _kept("metrics", _metrics(description)[0])
    return Given(**{name: value for name, value in facts.items() if value is not None})


def _stated(description: Description) -> dict[str, Any]:
    return {
        "model": description.model,
        "dataset": description.dataset,
        "epoch": description.epoch,
        "step": description.step,
        "batch_size": description.batch_size,
        "config": description.config,
    }


def _kept(name: str, value: object) -> Any:
    """Return one fact, checked, or None where it breaks its rule."""
    try:
        return getattr(check(**{name: value}), name)  # type: ignore[arg-type]  # one field by its name
    except (ValueError, TypeError):
        return None


def _metrics(description: Description) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics that keep the rules, and those that don't."""
    sound: dict[str, float] = {}
    odd: dict[str, float] = {}
    for name, value in {**description.metrics, "acc": description.acc}.items():
        if value is not None:
            (odd if _kept("metrics", {name: value}) is None else sound)[name] = value
    return sound, odd


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, slots=True)
class Keyed:
    """A file's tensors under their canonical names.

    Attributes:
        averaged: the whole net is in an AveragedModel, whose counter is no tensor of the signature.
    """

    file_keys: KeyStyle
    key_style: KeyStyle
    provenance: Source
    signature: Signature
    raw_signature: Signature | None
    averaged: bool = False


def keyed(description: Description, given: Given, record: Recorded | None) -> Keyed:
    """Work out a file's key style: stated, recorded, or inferred from the keys alone and marked so.

    Raises:
        RefusedLoadError: the stated style doesn't fit the keys.
        ValueError: the stated style names a position where the file has no keys.
    """
    raw = {key: (t.dtype, t.shape, t.kind) for key, t in description.weights.items()}
    provenance: Source
    if given.keys is not None:
        file_keys, provenance = given.keys, "recorded"
        known = record is not None and record.provenance.key_style == "recorded"
        live = record.key_style if record is not None and known else given.keys
    elif record is not None and record.provenance.key_style == "recorded":
        file_keys, live, provenance = record.file_keys, record.key_style, "recorded"
    else:
        file_keys = live = _guessed(tuple(raw))
        provenance = "inferred"
    canonical = keys.to_canonical(tuple(raw), file_keys)
    idle = keys.idle_positions(canonical.values(), file_keys) if given.keys is not None else ()
    if idle:
        raise ValueError(
            f"keys={str(file_keys)!r} names a wrapper at {idle[0]!r}, where the file has no keys"
        )
    of_wrapper = keys.wrapper_state(tuple(raw), file_keys)
    raw = {key: spec for key, spec in raw.items() if key not in of_wrapper}

    def kind(name: str, default: Kind) -> Kind:
        if record is None or record.buffers is None:
            return default
        return "buffer" if name in record.buffers else "parameter"

    signature = Signature(
        tuple(
            TensorSpec(canonical[k], d, s, kind(canonical[k], kd)) for k, (d, s, kd) in raw.items()
        )
    )
    plain = Signature(tuple(TensorSpec(k, d, s, kd) for k, (d, s, kd) in raw.items()))
    return Keyed(
        file_keys,
        live,
        provenance,
        signature,
        None if plain.digest == signature.digest else plain,
        averaged=keys.AVERAGED in of_wrapper,
    )


def _guessed(raw: tuple[str, ...]) -> KeyStyle:
    """Return the style that keys suggest, as far as it can be written down and applied."""
    style = keys.guess_style(raw)
    try:
        keys.to_canonical(raw, style)
        return style if KeyStyle.parse(str(style)) == style else KeyStyle()
    except (ValueError, RefusedLoadError):
        return KeyStyle()


def _topology(description: Description, record: Recorded | None) -> Topology:
    if record is not None:
        return record.topology
    said = description.strategy
    return Topology(
        strategy=None if said is None else one_of(said, STRATEGIES, "strategy"),
        world_size=description.world_size,
    )


def _source(topology: Topology) -> Source:
    said = topology.strategy is not None or topology.world_size is not None
    return "inferred" if said else "unknown"


def draft(
    known: Given,
    contents: Contents,
    description: Description,
    *,
    origin: Origin,
    record: Recorded | None,
    files: tuple[File, ...],
    author: str | None,
    from_name: tuple[str, ...] = (),
) -> tuple[Checkpoint, tuple[Signature, ...]]:
    """Return the checkpoint, version 0 until the database counts it up, and its signatures.

    Args:
        known: what `merge` gave, with a model's name.
        from_name: the facts of it that only the file's name says.
    """
    assert known.model is not None
    style = keyed(description, known, record)
    topology = _topology(description, record)
    weights: Weights = "ema" if style.averaged else "live"
    if record is not None:
        weights = record.weights
    if description.ema:
        weights = "ema" if description.ema_where == description.where else "both"
    stated = known.strategy is not None or known.world_size is not None
    topology = replace(
        topology,
        strategy=known.strategy or topology.strategy,
        world_size=known.world_size if known.world_size is not None else topology.world_size,
        storage_tags=FrozenMap(dict(contents.storage_tags)),
    )
    checkpoint = Checkpoint(
        id=CheckpointId(secrets.token_hex(16)),
        model=known.model,
        version=0,
        run=None if known.run is None else RunRef(known.run.id, known.run.name),
        dataset=known.dataset,
        epoch=known.epoch,
        step=known.step,
        metrics=known.metrics,
        config=known.config,
        batch_size=known.batch_size,
        key_style=style.key_style,
        file_keys=style.file_keys,
        weights=weights,
        topology=topology,
        provenance=Provenance(
            "recorded"
            if stated
            else _source(topology)
            if record is None
            else record.provenance.topology,
            style.provenance,
            from_name,
        ),
        container=contents.container,
        signature=style.signature.digest,
        raw_signature=None if style.raw_signature is None else style.raw_signature.digest,
        tensors=len(style.signature.tensors),
        parameters=style.signature.parameters,
        files=files,
        optimizers=FrozenMap(
            {name: cls for name, (cls, _) in record.optimizers.items()}
            if record is not None
            else {}
        ),
        scheduler=None if record is None else record.scheduler,
        unsafe_globals=contents.unsafe_globals,
        tags=known.tags,
        aliases=known.aliases,
        parent=known.parent,
        note=known.note,
        author=author if record is None or origin == "save" else record.author or author,
        git=None if record is None else record.git,
        command=None if record is None else record.command,
        origin=origin,
        created_at=now(),
        facts_digest=facts_digest(
            model=known.model,
            dataset=known.dataset,
            run=None if known.run is None else known.run.id,
            epoch=known.epoch,
            step=known.step,
            metrics=known.metrics,
            parent=known.parent,
            key_style=style.key_style,
            file_keys=style.file_keys,
            strategy=topology.strategy,
            world_size=topology.world_size,
            files=files,
        ),
    )
    return checkpoint, (style.signature,) + (
        () if style.raw_signature is None else (style.raw_signature,)
    )
