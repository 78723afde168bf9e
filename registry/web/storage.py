"""The bytes: how many each model has, and what gc and prune would free.

Law: the database alone is asked; what would need a look at every file is a command to copy. What
takes more than an index look-up comes when it is asked for, into its own place.
"""

from __future__ import annotations

import functools
import operator
import shlex
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import NotFoundError
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
        prune=_prune(request) if show == "prune" else None,
        model=views.word(request, "model") or "",
        best=views.word(request, "best") or ("" if show == "prune" else "3"),
        last=views.word(request, "last") or ("" if show == "prune" else "2"),
        names=[*reg.sizes()],
        grace=views.word(request, "grace") or "14d",
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


def _prune(request: Request) -> dict[str, object]:
    """Return what prune would remove, or what is wrong with what it was told to keep."""
    from ..retention import Best, Last, Policy

    reg, model = views.registry_of(request), views.word(request, "model")
    kept: list[Policy] = []
    options = ""
    try:
        if model is None:
            raise ValueError("name the model whose checkpoints are judged")
        for name, policy in (("best", Best), ("last", Last)):
            given = views.word(request, name)
            if given is not None:
                kept.append(policy(_number(given, name)))
                options += f" --keep-{name} {given}"
        if not kept:
            raise ValueError("say what to keep: how many of the best, of the newest, or both")
        plan = reg.prune(model, functools.reduce(operator.or_, kept), dry_run=True)
    except (ValueError, NotFoundError) as error:
        return {"mistake": views.said(error)[0], "plan": None, "command": None}
    command = f"ckreg prune {shlex.quote(model)}{options} --dry-run{_at(reg.location)}"
    return {"mistake": None, "plan": plan, "command": command}


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{name} is a number of checkpoints, not {text!r}")
    return int(text)


def _at(location: str) -> str:
    """Return the words that name the registry in a command."""
    return f" -r {shlex.quote(location)}"


ROUTES: Final = [Route("/storage", storage)]
