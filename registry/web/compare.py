"""Two checkpoints: how the second differs from the first.

Law: facts, keys and shapes come from the records at once; the numbers are read from the bytes when
they are asked for, verified, and no code in the files runs.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import diffing, pages
from ..errors import CkregError
from ..records import Checkpoint
from . import comparing, views

_MOST: Final = 400
"""How many rows of a kind are shown."""


def compare(request: Request) -> Response:
    """Show how checkpoint b differs from checkpoint a, as the records tell."""
    reg = views.registry_of(request)
    refs = _refs(request)
    error: tuple[str, str | None] | None = None
    sides: list[Checkpoint] = []
    try:
        sides = [reg.get(ref, include_removed=True) for ref in refs if ref is not None]
    except (CkregError, ValueError) as failed:
        error = views.said(failed)
    if len(sides) < 2:
        return views.render(
            request, "compare.html", status=200 if error is None else 404,
            a=refs[0], b=refs[1], error=error, sides=(),
        )  # fmt: skip
    a, b = sides
    changes = diffing.facts(a, b)
    places = diffing.topology(a, b)
    return views.render(
        request,
        "compare.html",
        a=refs[0],
        b=refs[1],
        error=None,
        sides=(a, b),
        facts=_shown(changes),
        places=_shown(places),
        tensors=comparing.tensors(reg.signature(a), reg.signature(b)),
        guessed=comparing.guessed(a, b),
        most=comparing.MOST,
        pages=pages,
    )


def numbers(request: Request) -> Response:
    """Read both checkpoints' tensors, and show by module how their values differ."""
    reg = views.registry_of(request)
    a, b = (ref or "" for ref in _refs(request))
    error: tuple[str, str | None] | None = None
    found = None
    try:
        found = reg.diff(a, b)
    except (CkregError, ValueError) as failed:
        error = views.said(failed)
    moved = [] if found is None else [module for module in found.modules if module.changed]
    uncompared = [] if found is None else [t for t in found.tensors if t.reason is not None]
    return views.render(
        request,
        "numbers.html",
        a=a,
        b=b,
        error=error,
        diff=found,
        same=0 if found is None else len(found.modules) - len(moved),
        modules=moved[:_MOST],
        modules_more=max(0, len(moved) - _MOST),
        uncompared=uncompared[:_MOST],
        most=_MOST,
        share=_share,
    )


def _refs(request: Request) -> tuple[str | None, str | None]:
    """Return what is to be compared: `a` and `b`; or two marks of one name, as a table sends."""
    marked = [ref.strip() for ref in request.query_params.getlist("ref") if ref.strip()]
    a, b = (*marked, None, None)[:2]
    return views.word(request, "a") or a, views.word(request, "b") or b


def _shown(changes: tuple[diffing.Change, ...]) -> list[tuple[str, str | None, str | None]]:
    return [(c.name, comparing.sided(c.a), comparing.sided(c.b)) for c in changes[:_MOST]]


def _share(relative: float | None) -> float:
    """Return how long the bar of a relative change is, in percent: all of it from 1 upwards."""
    return 100.0 if relative is None else round(min(100.0, 100 * relative), 2)


ROUTES: Final = [
    Route("/compare", compare),
    Route("/compare/numbers", numbers),
]
