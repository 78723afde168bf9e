"""The bytes: how many each model has, and what gc and prune would free."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import views


def storage(request: Request) -> Response:
    """Show where the bytes are."""
    return views.render(request, "storage.html", info=views.registry_of(request).info())


ROUTES: Final = [Route("/storage", storage)]
