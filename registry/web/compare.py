"""Two checkpoints: how the second differs from the first."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import views


def compare(request: Request) -> Response:
    """Show how checkpoint b differs from checkpoint a."""
    return views.render(
        request, "compare.html", a=views.word(request, "a"), b=views.word(request, "b")
    )


ROUTES: Final = [Route("/compare", compare)]
