"""One checkpoint: everything that is recorded of it, its tensors, and how it would be loaded.

Law: the page is made of the record alone; the file is opened only when a plan is asked for, and no
code in it runs then either. What could be long is cut, and what was cut is counted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import pages
from ..errors import CkregError
from ..formatting import flat
from ..keys import spelled, to_raw
from ..planning.text import plan_rows
from ..records import Checkpoint
from ..signature import Signature
from . import drawing, loading, modules, views

KIN: Final = 8
"""How many ancestors, and how many children, are shown."""

EXAMPLES: Final = 5
"""How many keys are shown to tell how they are wrapped."""

_FEW: Final = 20  # rows before the rest is folded away
_MANY: Final = 500  # rows after which the rest is only counted


@dataclass(frozen=True, slots=True)
class Example:
    """A key of the live model, in segments with whether each is a wrapper's; the same tensor's
    canonical key, and its key in the file.
    """

    live: tuple[tuple[str, bool], ...]
    canonical: str
    stored: str


def checkpoint(request: Request) -> Response:
    """Show the checkpoint that a ref names; a removed one too."""
    reg = views.registry_of(request)
    found = _found(request)
    signature = reg.signature(found)
    ancestors = reg.ancestors(found, limit=KIN + 1)
    children = reg.children(found, limit=KIN + 1)
    last = ancestors[-1] if ancestors else found
    metrics = list(found.metrics.items())
    config = flat(found.config.to_dict())
    return views.render(
        request,
        "checkpoint.html",
        checkpoint=found,
        metrics=metrics[:_MANY],
        metrics_more=max(0, len(metrics) - _MANY),
        config=config[:_MANY],
        config_more=max(0, len(config) - _MANY),
        few=_FEW,
        drawing=drawing.draw(found.topology),
        placements=_placements(found),
        examples=examples(found, signature),
        level=modules.level(signature.tensors),
        size_bytes=modules.bytes_of(signature.tensors),
        ancestors=ancestors[:KIN],
        earlier=len(ancestors) > KIN,
        elsewhere=None if len(ancestors) > KIN else last.parent,
        children=children[:KIN],
        later=len(children) > KIN,
        files=found.files[:_MANY],
        files_more=max(0, len(found.files) - _MANY),
        unsafe=found.unsafe_globals[:_MANY],
        pages=pages,
        wrappers=loading.wrappers(found),
        devices=loading.DEVICES,
        choice=None,
    )


def level(request: Request) -> Response:
    """Show what lies below one module of a checkpoint."""
    reg = views.registry_of(request)
    found = _found(request)
    first = request.query_params.get("first", "0")
    if not (first.isascii() and first.isdecimal() and len(first) < 10):
        raise ValueError(f"first is a number, not {first!r}")
    tensors = reg.signature(found).tensors
    below = modules.level(tensors, request.query_params.get("module", ""), int(first))
    return views.render(
        request, "modules.html", checkpoint=found, level=below,
        size_bytes=modules.bytes_of(tensors),
    )  # fmt: skip


def plan(request: Request) -> Response:
    """Show how a checkpoint would be loaded on the device, and into the wrapper, that was chosen;
    or why it wouldn't.
    """
    reg = views.registry_of(request)
    found = _found(request)
    choice = _choice(request)
    error: tuple[str, str | None] | None = None
    made = None
    try:
        if choice.device:  # else its name is still to be typed
            made = reg.plan(
                found,
                device=choice.device,
                wrapped=None if choice.wrapper == loading.PLAIN else choice.wrapper,
                weights=choice.weights,  # type: ignore[arg-type]  # another word is refused
                keys=choice.keys,
            )
    except (CkregError, ValueError) as refused:
        error = views.said(refused)
    return views.render(
        request,
        "plan.html",
        checkpoint=found,
        error=error,
        rows=[] if made is None else plan_rows(made),
        by_hand="" if made is None else _cut(made.python),
        python=loading.python(found.ref, reg.location, choice),
        pull=loading.pull(found, reg.location, choice),
        plan=loading.plan(found.ref, reg.location, choice),
        wrappers=loading.wrappers(found),
        devices=loading.DEVICES,
        choice=choice,
    )


def _found(request: Request) -> Checkpoint:
    ref = request.query_params.get("ref", "")
    dataset = views.dataset_of(request)
    return views.registry_of(request).get(ref, dataset=dataset, include_removed=True)


def _choice(request: Request) -> loading.Choice:
    """Return what was chosen, as it is: whoever plans it refuses what means nothing."""
    device = views.word(request, "device") or "cpu"
    if device == "other":
        device = views.word(request, "other") or ""
    return loading.Choice(
        device,
        views.word(request, "wrapper") or loading.PLAIN,
        views.word(request, "weights"),
        views.word(request, "keys"),
    )


_LINES: Final = 40
_COLUMNS: Final = 400


def _cut(code: str) -> str:
    """Return code by hand as far as it is of use on a page: renames by the thousand aren't."""
    lines = code.splitlines()
    shown = [line if len(line) <= _COLUMNS else f"{line[:_COLUMNS]}…" for line in lines[:_LINES]]
    if shown != lines:
        shown.append("# … the whole of it is plan.python: print(reg.plan(…).python)")
    return "\n".join(shown)


# --- keys and placements --------------------------------------------------------------------------


def examples(found: Checkpoint, signature: Signature) -> list[Example]:
    """Return keys that show how a model was wrapped: one below each wrapper, one that has none."""
    chosen: dict[str, None] = {}
    names = [tensor.key for tensor in signature.tensors]
    for path, _ in found.key_style.wraps[:EXAMPLES]:
        prefix = f"{path}." if path else ""
        chosen |= dict.fromkeys(itertools.islice((n for n in names if n.startswith(prefix)), 1))
    plain = to_raw(names[:1000], found.key_style)
    chosen |= dict.fromkeys(itertools.islice((n for n, raw in plain.items() if n == raw), 1))
    every = max(1, len(names) // EXAMPLES)
    chosen |= dict.fromkeys(names[::every])
    keys = list(chosen)[:EXAMPLES]
    stored = to_raw(keys, found.file_keys)
    return [Example(tuple(spelled(key, found.key_style)), key, stored[key]) for key in keys]


def _placements(found: Checkpoint) -> list[tuple[str, int, float]]:
    """Return how tensors were placed: how, how many, and which part of all in percent."""
    placed = sorted(found.topology.placements.items(), key=lambda item: (-item[1], item[0]))
    total = sum(many for _, many in placed) or 1
    return [(how, many, round(100 * many / total, 2)) for how, many in placed[:_FEW]]


ROUTES: Final = [
    Route("/checkpoint", checkpoint),
    Route("/checkpoint/modules", level),
    Route("/checkpoint/plan", plan),
]
