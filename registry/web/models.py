"""The first page: the models, each with its best."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from . import views


def index(request: Request) -> Response:
    """Show every model."""
    reg = views.registry_of(request)
    return views.render(request, "models.html", models=reg.models())


def go(request: Request) -> Response:
    """Lead to what a text names: a model by its whole name, else the checkpoint of a ref.

    Raises:
        NotFoundError, AmbiguousError, ValueError: as `Registry.get`.
    """
    reg, text = views.registry_of(request), views.word(request, "q")
    if text is None:
        return RedirectResponse("/", 303)
    if any(model.name == text for model in reg.models()):
        return RedirectResponse(views.url("/checkpoints", model=text), 303)
    return RedirectResponse(views.url("/checkpoint", ref=reg.get(text).id), 303)


ROUTES: Final = [Route("/", index), Route("/go", go)]
