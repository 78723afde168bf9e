"""Load: a plan made from the record, and carried out on a live net or as a state dict.

Law: no target is touched before the whole plan stands and every byte that it uses is verified.
Imports .tensors only inside functions: a plan without a live net never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .blobs import Progress, Staged
from .carrying import carried
from .containers import Description, Tensor
from .errors import CkregError, RefusedLoadError
from .keys import Reading
from .opening import Opened, saved_side, tensors_in
from .planning import LoadPlan, Wanted, make_plan, trusted
from .records import Checkpoint, RunRecord
from .signature import KeyStyle
from .values import canonical_json

if TYPE_CHECKING:
    import torch

    from .tensors.building import Builder
    from .tensors.observe import Live
    from .tensors.together import Together


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load did.

    Attributes:
        checkpoint: what was loaded.
        plan: how, and why.
        state_dict: the tensors by name; None when they went into a model.
        loaded: the target's keys that were set.
        ignored: what the file holds and the load left, each with its reason.
        missing, unexpected: keys that `allow` let pass.
        extra: the file's `extra`, as plain values and objects of the classes in trust.
        epoch, step: as recorded.
    """

    checkpoint: Checkpoint
    plan: LoadPlan
    state_dict: Mapping[str, torch.Tensor] | None = None
    loaded: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    extra: Any = None

    @property
    def epoch(self) -> int | None:
        """The epoch as recorded."""
        return self.checkpoint.epoch

    @property
    def step(self) -> int | None:
        """The step as recorded."""
        return self.checkpoint.step

    def __repr__(self) -> str:
        return (
            f"<LoadResult {self.checkpoint.ref}: {len(self.loaded)} loaded, "
            f"{len(self.ignored)} ignored, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected>"
        )


def wanted(
    *,
    device: str | None,
    keys: str | Reading | None = None,
    out_keys: KeyStyle | None = None,
    weights: str | None = None,
    cast: str | None = None,
    allow: Sequence[str] = (),
    trust: Iterable[type] = (),
    rng: bool = False,
) -> Wanted:
    """Return what a caller wants, checked.

    Raises:
        ValueError, TypeError: a word is none of those that are known.
    """
    if isinstance(allow, str):
        raise TypeError(f"allow is a list of patterns, not one text: allow=[{allow!r}]")
    if weights not in (None, "live", "ema"):
        raise ValueError(f"weights={weights!r} is neither 'live' nor 'ema'")
    if cast not in (None, "widen", "narrow"):
        raise ValueError(f"cast={cast!r} is neither 'widen' nor 'narrow'")
    return Wanted(
        device=None if device is None else str(device),
        keys=Reading.parse(keys) if isinstance(keys, str) else keys,
        out_keys=out_keys,
        weights=weights,  # type: ignore[arg-type]  # checked above
        cast=cast,  # type: ignore[arg-type]
        allow=tuple(allow),
        trust=trusted(trust),
        rng=rng,
        world_size=None,
    )


@dataclass(frozen=True, slots=True)
class Objects:
    """The live objects that a load restores; all None for a state dict."""

    net: torch.nn.Module | None = None
    optimizer: Any = None
    scheduler: Any = None
    stateful: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        beside = self.stateful or any(x is not None for x in (self.optimizer, self.scheduler))
        if self.net is None and beside:
            raise TypeError(
                "an optimizer, a scheduler and other objects are restored together with their net: "
                "reg.load(ref, into=net, optimizer=optimizer)"
            )
        if self.net is not None and not hasattr(self.net, "load_state_dict"):
            raise TypeError(f"into= takes a torch.nn.Module, not {type(self.net).__name__}")
        for name, one in {"scheduler": self.scheduler, **self.stateful}.items():
            if one is not None and not hasattr(one, "load_state_dict"):
                raise TypeError(
                    f"{name} takes an object with a load_state_dict(), not {type(one).__name__}"
                )


@contextmanager
def together(net: Any, ref: object, *, broadcast: bool) -> Iterator[Together | None]:
    """Return this rank's part in a load, if ranks load together, else None.

    They do where they hold parts of the net, and where one reads for all. An error in the block
    becomes every rank's.
    """
    if broadcast and net is None:
        raise TypeError("broadcast=True needs a net to fill on every rank: into=net")
    if net is None or not hasattr(net, "load_state_dict"):
        yield None
        return
    from .tensors import wrappers
    from .tensors.together import Together

    if isinstance(net, type):
        raise TypeError(f"into= takes a torch.nn.Module, not its class: into={net.__name__}(…)")
    if not broadcast and not wrappers.is_sharded(net):
        yield None
        return
    named = str(getattr(ref, "ref", ref))
    part = Together(f"load {named}", "call load", (f"load {named}", None, None, None))
    with part.whole():
        yield part


def plan(opened: Opened, objects: Objects, want: Wanted) -> LoadPlan:
    """Return the plan of a load; without a net the device is taken as said, and torch isn't
    imported.
    """
    if objects.net is None:
        return make_plan(saved_side(opened), None, want, None)
    return _plan_for(opened, objects, want)[0]


def _plan_for(opened: Opened, objects: Objects, want: Wanted) -> tuple[LoadPlan, Live | None]:
    """Return the plan for the objects that are here, on the machine that is here."""
    from .tensors import hardware, observe, wrappers

    live = target = None
    if objects.scheduler is not None and opened.record is not None:
        _check_scheduler(opened, wrappers.class_name(objects.scheduler))
    of_each = bool(opened.description.rng_states)
    if want.rng and not of_each and hardware.rank() != (opened.checkpoint.topology.rank or 0):
        # One rank's generators on every rank would make all of them draw the same numbers.
        want = replace(want, rng=False)
    if objects.net is not None:
        live = observe.observe(objects.net)
        target = observe.target_of(
            objects.net,
            live,
            optimizers=observe.named_optimizers(objects.optimizer),
            scheduler=objects.scheduler,
            stateful=objects.stateful,
        )
        if want.device is None:
            want = replace(want, device=observe.meta_device(live))
    want = replace(want, world_size=hardware.world_size(), rank=hardware.rank())
    return make_plan(saved_side(opened), target, want, hardware.machine()), live


def _check_scheduler(opened: Opened, given: str) -> None:
    assert opened.record is not None
    saved = opened.record.scheduler
    if saved is not None and saved != given:
        raise RefusedLoadError(
            f"the scheduler of {opened.checkpoint.ref} is a {saved}, and the one to fill a {given}",
            hint="make a scheduler of the recorded class, or leave scheduler= out",
        )


def load(
    opened: Opened,
    objects: Objects,
    want: Wanted,
    *,
    verify: bool,
    progress: Progress | None,
    together: Together | None = None,
    broadcast: bool = False,
) -> LoadResult:
    """Load; see `Registry.load`.

    Args:
        together: this rank's part, where the net's ranks hold parts of it.
    """
    from .tensors import applying, broadcasting, building, observe

    agree = applying.alone if together is None else together.agree
    made, live = agree(lambda: _plan_for(opened, objects, want))
    description = opened.description
    reads = not broadcast or together is None or together.rank == 0
    used = _used(made, description, live, objects, broadcast=broadcast) if reads else []
    mapping = opened.map(used)
    if verify:
        opened.verify(mapping, used, progress)
    kind = broadcasting.Broadcast if broadcast else building.Builder
    builder = agree(lambda: kind(opened.contents, mapping, trust=want.trust.values()))
    extra, left = _extra(description, builder)
    state = None
    if objects.net is None or live is None:
        state = applying.collect(made, builder, description)
        loaded = tuple(state)
    else:
        loaded = applying.apply(
            made,
            builder,
            description,
            objects.net,
            live,
            optimizers=observe.named_optimizers(objects.optimizer),
            scheduler=objects.scheduler,
            stateful=objects.stateful,
            agree=agree,
        )
    ignored: dict[str, str] = {}
    if want.rng and not made.rng and description.rng is not None and "rng" not in left:
        left["rng"] = (
            "it is another rank's, or the number of processes changed; "
            "save(…, rng='each') on every rank keeps each one's"
        )
    for what, reason in [*((n.what, n.reason) for n in made.ignored), *left.items()]:
        ignored[what] = f"{ignored[what]}; {reason}" if what in ignored else reason
    return LoadResult(
        checkpoint=opened.checkpoint,
        plan=made,
        state_dict=state,
        loaded=loaded,
        ignored=ignored,
        missing=made.missing,
        unexpected=made.unexpected,
        extra=extra,
    )


def _extra(description: Description, builder: Builder) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what else the file holds, as far as it is data, and why the rest stays in it."""
    extra: dict[str, Any] = {}
    left: dict[str, str] = {}
    for key, value in description.extra.items():
        try:
            extra[key] = builder.tree(value, own=True)
        except CkregError as error:
            cure = f"; {error.hint}" if error.hint else ""
            left[f"extra.{key}"] = f"it is no plain data: {error.message}{cure}"
    return extra, left


def export(
    opened: Opened,
    want: Wanted,
    target: Staged,
    *,
    run: RunRecord | None,
    format: str,
    only_weights: bool,
    progress: Progress | None,
) -> None:
    """Write the file anew, adapted: its keys, its device tag, its format; see `Registry.pull`.

    Args:
        run: the whole of the checkpoint's run.
    """
    from .tensors import building, exporting

    made = make_plan(saved_side(opened), None, want, None)
    description = opened.description
    mapping = opened.map()
    opened.verify_all(mapping, progress)
    builder = building.Builder(opened.contents, mapping)
    only_weights = only_weights or format == "safetensors"
    tree = exporting.adapted(made, opened.contents, builder, description, only_weights=only_weights)
    if format == "safetensors":
        record = carried(opened.checkpoint, run, made, description.record)
        exporting.write_safetensors(tree, target, metadata={"ckreg": canonical_json(record)})
    else:
        weights = "" if only_weights else description.where.partition(".")[0]
        exporting.write_torch(tree, target, tag=made.map_location, weights=weights)


def _used(
    made: LoadPlan,
    description: Description,
    live: Live | None,
    objects: Objects,
    *,
    broadcast: bool,
) -> list[Tensor]:
    """Return the tensors whose bytes this rank will use: of a spread net, those of its part."""
    from .tensors import applying, observe

    beside = _beside(made, description)
    if live is not None and live.spread and not broadcast:
        named = observe.named_optimizers(objects.optimizer)
        return beside + applying.needed(made, description, live, named)
    return beside + _weights_and_optimizers(made, description)


def _weights_and_optimizers(made: LoadPlan, description: Description) -> list[Tensor]:
    """Return the tensors of the weights and of optimizer state whose bytes the load will use."""
    weights = description.weights
    if made.weights == "ema" and description.ema is not None:
        weights = description.ema
    return [
        *tensors_in([weights[move.source] for move in made.moves]),
        *tensors_in([description.optimizers[move.name] for move in made.optimizers]),
    ]


def _beside(made: LoadPlan, description: Description) -> list[Tensor]:
    """Return the other tensors whose bytes the load will use."""
    weights = description.weights
    if made.weights == "ema" and description.ema is not None:
        weights = description.ema
    trees: list[object] = [
        [description.wrapper_state.get(name) or weights[name] for name, _ in made.wrapper_state],
        [description.others[raw] for raw, _ in made.others],
        [description.stateful[name] for name in made.stateful],
        description.scheduler if made.scheduler else None,
        [description.rng, *description.rng_states.values()] if made.rng else None,
        list(description.extra.values()),
    ]
    return list(tensors_in(trees))
