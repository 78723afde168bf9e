"""What a plan is made from: the saved file, the target, what is wanted, what the machine has.

Law: values only, filled by others (containers/ describes the file, tensors/ the live net). Names
are canonical unless a field says raw. None means unknown, never a default.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from ..keys import Reading
from ..records import Provenance, Weights
from ..signature import KeyStyle, Kind
from ..topology import Topology

Cast = Literal["widen", "narrow"]
Choice = Literal["live", "ema"]


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One tensor of the file.

    Attributes:
        key: its raw key in the file.
        size_bytes: what must be read for it.
        tag: the device that its storage was saved on: `cuda:3`, `cpu`, `meta`; `""` where a format
            keeps none.
        tie_group: equal for two tensors that are the very same view (storage, offset, shape,
            stride); None for a tensor that shares nothing. Two views of one flat storage are not
            tied.
        form: what sort of tensor: `strided`, `sparse_coo`, `per_tensor_affine`, …
    """

    key: str
    dtype: str
    _: KW_ONLY
    shape: tuple[int, ...]
    kind: Kind = "tensor"
    size_bytes: int = 0
    tag: str = "cpu"
    tie_group: Hashable = None
    form: str = "strided"


@dataclass(frozen=True, slots=True)
class SavedOptimizer:
    """One optimizer's state in the file. A position counts parameters through all groups.

    Attributes:
        cls: its class, e.g. `torch.optim.adam.Adam`; None if not recorded.
        groups: per param group the parameters' names, in order; None if not recorded.
        group_sizes: per param group how many parameters it has.
        state_shapes: per position the shape of its parameter as the state shows it (exp_avg's), or
            None.
        param_names: per param group the raw names that PyTorch kept (`param_names`), or None.
        state_names: the names of the state's entries (`exp_avg`, `step`), over all parameters; None
            if not read.
        unplaced: how many entries of the state belong to no position.
    """

    cls: str | None
    groups: tuple[tuple[str, ...], ...] | None
    _: KW_ONLY
    group_sizes: tuple[int, ...]
    state_shapes: tuple[tuple[int, ...] | None, ...] = ()
    size_bytes: int = 0
    param_names: tuple[tuple[str, ...], ...] | None = None
    state_names: tuple[str, ...] | None = None
    unplaced: int = 0


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint's file, as its record and its index show it.

    Attributes:
        ref: how messages name it: `resnet50@v3`.
        tensors: the weights, in file order. Of a file that holds averaged weights only, these.
        ema: averaged weights that lie beside them, with their own raw keys; None if there are none.
        file_keys: how the file's keys are wrapped; to be trusted only when provenance says
            recorded.
        key_style: how the live model was wrapped.
        ties: recorded groups of names that are one tensor.
        weights: what `tensors` and `ema` are.
        others: raw keys of entries of the state dict that are no weights (`_extra_state`).
        unbuildable: those of `others` that stand for a tensor of a sort that isn't read, and what
            would have made it: `torch._utils._rebuild_meta_tensor_no_storage`.
        wrapper_state: names of the wrapper's own tensors (`n_averaged`), kept beside the state
            dict.
        partitioned: where the optimizer's state is, if it can't be had; in words.
        rng_ranks: the ranks whose random states it holds, where each rank's were saved.
        extra: names of whatever else the file holds.
        where, ema_where: the dotted path of the weights in the file, `""` for its root.
        held: the weights are those of a framework's module that may hold the net as an attribute.
    """

    ref: str
    container: str
    _: KW_ONLY
    tensors: tuple[SavedTensor, ...]
    ema: tuple[SavedTensor, ...] | None = None
    file_keys: KeyStyle = field(default_factory=KeyStyle)
    key_style: KeyStyle = field(default_factory=KeyStyle)
    provenance: Provenance = field(default_factory=Provenance)
    ties: tuple[tuple[str, ...], ...] = ()
    weights: Weights = "live"
    others: tuple[str, ...] = ()
    unbuildable: Mapping[str, str] = field(default_factory=dict)
    wrapper_state: tuple[str, ...] = ()
    optimizers: Mapping[str, SavedOptimizer] = field(default_factory=dict)
    partitioned: str | None = None
    scheduler: bool = False
    stateful: tuple[str, ...] = ()
    rng: bool = False
    rng_ranks: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    topology: Topology = field(default_factory=Topology)
    held: bool = False
    batch_size: int | None = None
    epoch: int | None = None
    step: int | None = None
    size_bytes: int = 0
    unsafe_globals: tuple[str, ...] = ()
    where: str = "state_dict"
    ema_where: str | None = None


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target's state dict: its raw key there, its canonical key, what it is.

    Attributes:
        form: as a `SavedTensor`'s.
    """

    key: str
    canonical: str
    _: KW_ONLY
    dtype: str
    shape: tuple[int, ...]
    device: str = "cpu"
    kind: Kind = "parameter"
    meta: bool = False
    form: str = "strided"


@dataclass(frozen=True, slots=True)
class TargetOptimizer:
    """The optimizer to fill: its class, and per param group its parameters' names, in order."""

    cls: str
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The net to fill, and what else the caller gave to be restored.

    Attributes:
        ties: groups of names that are one tensor.
        others: names of entries of its state dict that are no weights (`_extra_state`).
        wrapper_state: names of its wrapper's own tensors (`n_averaged`).
        optimizers, scheduler, stateful: what the caller asked to restore.
        nonpersistent: names of buffers that are never in a state dict.
    """

    tensors: tuple[TargetTensor, ...]
    key_style: KeyStyle = field(default_factory=KeyStyle)
    _: KW_ONLY
    ties: tuple[tuple[str, ...], ...] = ()
    others: tuple[str, ...] = ()
    wrapper_state: tuple[str, ...] = ()
    training: bool = False
    optimizers: Mapping[str, TargetOptimizer] = field(default_factory=dict)
    scheduler: bool = False
    stateful: tuple[str, ...] = ()
    nonpersistent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller asked for.

    Attributes:
        device: a device, `recorded`, `auto`, or None.
        keys: how the file's keys are read, stated by hand: its wrappers, and an attribute to drop
            or add.
        out_keys: how the keys shall be wrapped where there is no target; None: canonical where the
            file's style is known, else as they are in the file.
        weights: which of live and averaged weights; None where the file has only one of them.
        allow: globs over canonical keys that may be missing, unexpected or mis-shaped.
        trust: the classes whose objects may come back, by the names that files give them.
        rng: restore the random number generators.
        world_size: how many processes there are now; None: not said, nothing is compared.
        rank: this process's among them.
    """

    device: str | None = None
    keys: Reading | None = None
    out_keys: KeyStyle | None = None
    weights: Choice | None = None
    cast: Cast | None = None
    allow: tuple[str, ...] = ()
    trust: Mapping[str, type] = field(default_factory=dict)
    rng: bool = False
    world_size: int | None = None
    rank: int = 0


def trusted(classes: Iterable[type]) -> dict[str, type]:
    """Return classes by the names that files give them: `module.Class`.

    Raises:
        TypeError: one is no class.
    """
    if isinstance(classes, type):
        raise TypeError(f"trust is a list of classes: trust=[{classes.__qualname__}]")
    found: dict[str, type] = {}
    for cls in classes:
        if not isinstance(cls, type):
            raise TypeError(f"trust takes classes, not {cls!r}: functions are never called")
        found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return found


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has: device type -> how many, e.g. {'cpu': 1, 'cuda': 2}."""

    devices: Mapping[str, int]
