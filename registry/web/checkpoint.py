"""One checkpoint: everything that is recorded of it, and how it would be loaded."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import views


def checkpoint(request: Request) -> Response:
    """Show the checkpoint that a ref names."""
    reg = views.registry_of(request)
    found = reg.get(request.query_params.get("ref", ""), dataset=views.dataset_of(request))
    return views.render(request, "checkpoint.html", checkpoint=found)


ROUTES: Final = [Route("/checkpoint", checkpoint)]
