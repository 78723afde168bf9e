"""What a checkpoint file states about itself: weights, facts, optimizer state, our own record.

Law: facts are told by the types of values under customary keys, and taken as they stand: a running
best (`best_acc1`) is a metric under its own name, never `acc`; nothing is computed, and what isn't
understood is in `extra`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ContainerError
from .contents import Contents
from .frameworks import Layout, layout_of
from .safetensors import own_record
from .source import Sources
from .tree import AnyTensor, Opaque, TaggedDict, Tensor
from .weights import (
    WeightSet,
    choose,
    find,
    is_optimizer,
    items_of,
    keyed_by_text,
    script_weights,
)

_MODEL: Final = ("model", "arch", "model_name", "architecture")
_STEP: Final = ("step", "global_step", "iteration", "iter_num")
_CONFIG: Final = ("config", "args", "hyper_parameters", "hparams")
_SCHEDULER: Final = re.compile(r"(lr_)?scheduler(_state)?(_dict)?|lr_schedulers?|schedulers|sched")
METRIC_WORD: Final = re.compile(
    r"(?:^|[_/.\- ])"
    r"(?:acc|acc[15]|accuracy|top[15]|prec[15]?|precision|recall|loss|metric|score|map|m?iou|f1|auc|"
    r"psnr|ssim|ppl|perplexity|bleu|mae|mse|rmse|fitness|err|error|fid|wer|cer)"
    r"(?:$|[_/.\- ])"
)
_DCP_FILE: Final = re.compile(r"__(\d{1,9})_\d+\.distcp")
_MAX_RECORD_NODES: Final = 1_000_000
_CARRIES: Final = frozenset(
    {"hf-model", "safetensors-sharded", "torch-sharded", "hf-trainer", "accelerate"}
)
"""The folders that an export or a callback of ours makes; their own root keeps our record, not
their files.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint file states.

    Attributes:
        weights: raw key -> tensor, in the file's order.
        where: their dotted path in the root; "" is the root itself.
        layout: what wrote it, as far as its keys say: `lightning`, `timm`, …
        metadata: the state dict's `_metadata`.
        others: what else the state dict holds, such as `_extra_state`, tensor or not.
        unbuildable: those of `others` that stand for a tensor of a sort that isn't read (meta,
            DTensor, …).
        module: the class, where a whole module was pickled instead of its state dict.
        ema, ema_where: averaged weights beside the live ones; with `ema_where == where` there are
            no others.
        epoch, step, batch_size: as stated, never adjusted.
        strategy, world_size: how many processes of what kind saved it, as far as it tells.
        acc: what stands under exactly this key; it may be NaN, which the caller has to refuse.
        metrics: finite numbers under names that say metric, running bests among them.
        skipped_metrics: those that are no finite number: name -> text of the value.
        config: the plain data of the training script's settings; what isn't plain is left out.
        optimizers: name -> state_dict; a single one is called `optimizer`.
        partitioned: where the optimizer's state is, if it can't be had; in words.
        scheduler, rng, stateful, wrapper_state: as they stand in the file.
        rng_states: of each rank, by its number as text, where all of them wrote.
        extra: everything else at the top.
        record: what ckreg wrote under the key `ckreg`, checked to be plain data.
        notes: what was passed over, in words.
    """

    weights: Mapping[str, AnyTensor]
    where: str
    layout: str | None = None
    metadata: Mapping[str, Any] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    unbuildable: Mapping[str, Opaque] = field(default_factory=dict)
    module: str | None = None
    ema: Mapping[str, AnyTensor] | None = None
    ema_where: str | None = None
    ema_metadata: Mapping[str, Any] | None = None
    model: str | None = None
    dataset: str | None = None
    epoch: int | None = None
    step: int | None = None
    batch_size: int | None = None
    strategy: str | None = None
    world_size: int | None = None
    acc: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped_metrics: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    optimizers: Mapping[str, Any] = field(default_factory=dict)
    partitioned: str | None = None
    scheduler: Any = None
    stateful: Mapping[str, Any] = field(default_factory=dict)
    rng: Any = None
    rng_states: Mapping[str, Any] = field(default_factory=dict)
    wrapper_state: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def describe(contents: Contents, source: Sources) -> Description:
    """Return what a checkpoint file states about itself.

    Args:
        contents: the file's index.
        source: its bytes, of a folder by file name; read only for facts that were saved as
            tensors of one element.

    Raises:
        ContainerError: there are no weights, or the record is no plain data.
        AmbiguousError: there are several sets of weights, and no customary name tells which.
    """
    top = keyed_by_text(_top(contents))
    plain = contents.container == "safetensors"
    # ckreg's own layout: another program's key of that name says nothing about where weights are
    laid_out = {"state_dict": top.get("state_dict")}
    layout = layout_of(top, contents.container)
    theirs = layout.name == "lightning"  # with our record, and laid out as ever
    own = (
        not (plain or theirs)
        and _claims(top)
        and any(w.where == "state_dict" for w in find(laid_out))
    )
    carries = plain or theirs or contents.container in _CARRIES
    record = _record(top["ckreg"]) if own or (carries and _claims(top)) else None
    chosen, ema, notes = choose(laid_out) if own else _weights(contents, layout)
    # A bare state dict has no place for facts: its keys are tensors' names.
    beside = chosen.where or plain or not contents.loadable
    facts = _Facts(contents, source, layout if beside else Layout())
    if record is not None:
        facts.used.add("ckreg")
    elif "ckreg" in facts.top:
        notes = (*notes, "what stands under the key 'ckreg' is no record of ckreg's")
    for weights in (chosen, ema):
        if weights is not None:
            facts.used.update(weights.where.split(".")[:2])
    return Description(
        layout=facts.layout.name,
        weights=chosen.tensors,
        where=chosen.where,
        metadata=chosen.metadata,
        others=chosen.others,
        unbuildable={
            k: v for k, v in chosen.others.items() if isinstance(v, Opaque) and v.is_tensor
        },
        module=chosen.module,
        ema=None if ema is None else ema.tensors,
        ema_where=None if ema is None else ema.where,
        ema_metadata=None if ema is None else ema.metadata,
        model=facts.text(*_MODEL),
        dataset=facts.text("dataset"),
        epoch=facts.count("epoch"),
        step=facts.count(*_STEP),
        batch_size=facts.count("batch_size"),
        strategy=facts.layout.facts.get("strategy"),
        world_size=facts.count("world_size") or _ranks(contents),
        acc=facts.number("acc"),
        metrics=facts.metrics(),
        skipped_metrics=facts.skipped,
        config=facts.config(),
        optimizers=facts.optimizers(),
        partitioned=facts.layout.facts.get("partitioned"),
        scheduler=facts.scheduler(),
        stateful=facts.mapping("stateful") if own else {},
        rng=facts.take("rng"),
        rng_states=facts.mapping("rng_states") if own else {},
        wrapper_state=_tensors(facts.mapping("wrapper_state")) if own else {},
        extra=facts.mapping("extra") if own else facts.rest(),
        record=record,
        notes=notes,
    )


def _weights(
    contents: Contents, layout: Layout
) -> tuple[WeightSet, WeightSet | None, tuple[str, ...]]:
    if contents.container == "torchscript":
        return script_weights(contents.root), None, ()
    if not contents.loadable:
        return WeightSet("", {}), None, ()
    chosen, ema, notes = choose(contents.root, layout.live, layout.averaged)
    if layout.name == "mmengine" and ema is not None and ema.where == layout.averaged:
        chosen.tensors.pop("steps", None)  # counts what EMAHook averaged; no weight of the net
    return chosen, ema, notes


def _ranks(contents: Contents) -> int | None:
    """Return how many ranks wrote the files of a DCP folder, which are named by them."""
    ranks = [int(m[1]) for name in contents.used_files if (m := _DCP_FILE.fullmatch(name))]
    return max(ranks) + 1 if ranks else None


def _top(contents: Contents) -> dict[Any, Any]:
    if contents.container == "safetensors":
        attributes = contents.root.attributes or {}
        return _parsed(attributes.get("__metadata__") or {})
    return items_of(contents.root) or {}


def _parsed(metadata: dict[str, str]) -> dict[str, Any]:
    """Return a safetensors file's text metadata, with our own record as the JSON that it is."""
    top: dict[str, Any] = {key: text for key, text in metadata.items() if key != "ckreg"}
    record = own_record(metadata)
    return top if record is None else {**top, "ckreg": record}


def _tensors(items: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in items.items() if isinstance(value, Tensor)}


class _Facts:
    """The top of a file, from which each fact is taken once; what is left is `extra`."""

    def __init__(self, contents: Contents, source: Sources, layout: Layout) -> None:
        self.contents = contents
        self.source = source
        self.layout = layout
        self.top = layout.top
        self.used: set[str] = set()
        self.skipped: dict[str, str] = {}

    def take(self, key: str) -> Any:
        self.used.add(key)
        return self.top.get(key)

    def text(self, *keys: str) -> str | None:
        for key in keys:
            if isinstance(value := self.top.get(key), str) and key not in self.used:
                self.used.add(key)
                return value
        if isinstance(value := self.layout.facts.get(keys[0]), str):
            return value
        settings = self.settings()[1]
        return next((v for key in keys if isinstance(v := settings.get(key), str) and v), None)

    def plain_number(self, value: Any) -> int | float | None:
        """Return a number that stands as such or as a tensor of one element; None for others."""
        if isinstance(value, Tensor) and value.elements == 1 and not value.dtype.startswith("q"):
            try:
                value = self.contents.scalar(self.source, value)
            except ContainerError:
                return None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def count(self, *keys: str) -> int | None:
        for key in keys:
            value = self.plain_number(self.top.get(key))
            if isinstance(value, int) and 0 <= value < 2**63:
                self.used.add(key)
                return value
        value = self.plain_number(self.layout.facts.get(keys[0]))
        return value if isinstance(value, int) and 0 <= value < 2**63 else None

    def number(self, key: str) -> float | None:
        value = self.plain_number(self.top.get(key))
        if value is None:
            return None
        self.used.add(key)
        return _float(value)

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        given = items_of(self.top.get("metrics"))
        for key, value in (given or {}).items():
            self._metric(found, key, value)
        if given is not None:
            self.used.add("metrics")
        for key, value in self.layout.metrics.items():
            self._metric(found, key, value)
        for key, value in self.top.items():
            if (
                key not in self.used
                and METRIC_WORD.search(key.lower())
                and self._metric(found, key, value)
            ):
                self.used.add(key)
        return found

    def _metric(self, found: dict[str, float], key: Any, value: Any) -> bool:
        number = self.plain_number(value)
        if number is None or not isinstance(key, str):
            return False
        if math.isfinite(as_float := _float(number)):
            found.setdefault(key, as_float)
        else:
            self.skipped[key] = str(as_float)  # a running best starts at infinity
        return True

    def config(self) -> dict[str, Any] | None:
        key, items = self.settings()
        if key is None:
            return None
        self.used.add(key)
        plain: dict[str, Any] = {}
        left = _MAX_RECORD_NODES  # for all of them: they may hold one another
        for name, value in items.items():
            nodes = _plain_nodes(value, left)
            left -= nodes or 0
            if nodes is not None:
                plain[name] = value
        return plain

    def settings(self) -> tuple[str | None, dict[str, Any]]:
        """Return the training script's settings, and the key that they lie under."""
        for key in (self.layout.config, *_CONFIG):
            items = items_of(self.top.get(key)) if key is not None else None
            if items is not None and key not in self.used:
                return key, keyed_by_text(items)
        return None, {}

    def optimizers(self) -> dict[str, Any]:
        single: dict[str, Any] = {}
        named: dict[str, Any] = {}
        for key, value in self.top.items():
            if key in self.used:
                continue
            items = items_of(value) or {}
            if is_optimizer(value):
                single[key] = value
            elif items and all(isinstance(k, str) and is_optimizer(v) for k, v in items.items()):
                named.update(items)
            elif isinstance(value, list) and value and all(map(is_optimizer, value)):
                single.update({f"{key}.{i}": v for i, v in enumerate(value)})
            else:
                continue
            self.used.add(key)
        if len(single) == 1 and not named:
            return {"optimizer": next(iter(single.values()))}
        return {**single, **named}

    def scheduler(self) -> Any:
        for key, value in self.top.items():
            if key in self.used or not _SCHEDULER.fullmatch(key):
                continue
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if isinstance(value, dict | Opaque) and value:
                self.used.add(key)
                return value
        return None

    def mapping(self, key: str) -> dict[str, Any]:
        items = items_of(self.take(key)) or {}
        return {k: v for k, v in items.items() if isinstance(k, str)}

    def rest(self) -> dict[str, Any]:
        return {key: value for key, value in self.top.items() if key not in self.used}


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def is_plain(value: Any) -> bool:
    """Say whether a value is plain data: finite numbers, text, lists, dicts of text keys, None."""
    return _plain_nodes(value, _MAX_RECORD_NODES) is not None


def _plain_nodes(value: Any, most: int) -> int | None:
    """Return the number of nodes of plain data, shared ones as often as they occur, or None."""
    pending, seen = [value], 0
    while pending:
        node = pending.pop()
        seen += 1
        if seen > most:
            return None
        if node is None or isinstance(node, bool | str):
            continue
        if isinstance(node, int):
            if not -(2**63) <= node < 2**64:
                return None
        elif isinstance(node, float):
            if not math.isfinite(node):
                return None
        elif isinstance(node, list | tuple | dict):
            if isinstance(node, dict) and not all(type(key) is str for key in node):
                return None
            if isinstance(node, TaggedDict) and node.attributes:
                return None
            # One that holds itself goes round until the count ends it, as does a doubled list.
            pending += node.values() if isinstance(node, dict) else node
        else:
            return None
    return seen


def _claims(top: Mapping[Any, Any]) -> bool:
    """Say whether there is something that says to be our own record."""
    record = top.get("ckreg")
    return isinstance(record, dict) and type(record.get("format")) is int


def _record(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return our own record.

    Raises:
        ContainerError: it holds what ckreg never writes.
    """
    if not is_plain(value):
        raise ContainerError(
            "its record under the key 'ckreg' holds more than plain data, which ckreg never writes"
        )
    return value
