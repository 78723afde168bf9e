"""The table of checkpoints: filtered by the where-language, sorted by anything, paged."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import views


def checkpoints(request: Request) -> Response:
    """Show the checkpoints that match, newest first unless it is said otherwise."""
    reg = views.registry_of(request)
    page = reg.page(
        views.word(request, "model"),
        dataset=views.dataset_of(request),
        where=views.word(request, "where"),
        after=views.word(request, "after"),
    )
    return views.render(request, "checkpoints.html", page=page)


ROUTES: Final = [Route("/checkpoints", checkpoints)]
