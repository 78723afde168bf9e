"""The bytes: how many each model has, and what gc and prune would free.

Law: the database alone is asked; what would need a look at every file is a command to copy. What
takes more than an index look-up comes when it is asked for, into its own place.
"""

from __future__ import annotations

import shlex
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..values import duration
from . import views

SHOWN: Final = 100
"""The models, and the checkpoints of a plan, that are listed by name."""


def storage(request: Request) -> Response:
    """Show where the bytes are, and what is asked for: `show` is models, gc or prune."""
    reg, show = views.registry_of(request), views.word(request, "show")
    return views.render(
        request,
        "storage.html",
        info=reg.info() if reg.exists else None,
        holdings=reg.holdings() if show == "models" else None,
        gc=_gc(request) if show == "gc" else None,
        grace=views.word(request, "grace") or "14d",
        at=_at(reg.location),
        most=SHOWN,
    )


def _gc(request: Request) -> dict[str, object]:
    """Return what gc would free, or what is wrong with the grace."""
    grace = views.word(request, "grace") or "14d"
    try:
        duration(grace)
    except ValueError as error:
        return {"mistake": str(error), "plan": None, "command": None}
    option = "" if grace == "14d" else f" --grace {shlex.quote(grace)}"
    return {
        "mistake": None,
        "plan": views.registry_of(request).freeable(grace=grace, most=SHOWN),
        "command": f"ckreg gc{option} --dry-run{_at(views.registry_of(request).location)}",
    }


def _at(location: str) -> str:
    """Return the words that name the registry in a command."""
    return f" -r {shlex.quote(location)}"


ROUTES: Final = [Route("/storage", storage)]
