"""The first page: the models, each with its best; and the way from a text to what it names."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from . import views

SIZE: Final = 50
"""The models of a page."""


def index(request: Request) -> Response:
    """Show the models by name, a page at a time."""
    reg = views.registry_of(request)
    text, after = views.word(request, "q"), views.word(request, "after")
    sizes = reg.sizes()
    found = [name for name in sizes if text is None or text.casefold() in name.casefold()]
    rest = [name for name in found if after is None or name > after]
    shown = rest[:SIZE]
    return views.render(
        request,
        "models.html",
        models=reg.models(shown),
        amount=len(found),
        checkpoints=sum(sizes.values()),
        standings=reg.standings(shown),
        q=text,
        next=views.url("/", q=text, after=shown[-1]) if len(rest) > SIZE else None,
        first=None if after is None else views.url("/", q=text),
        searchable=len(sizes) > 8,
    )


def go(request: Request) -> Response:
    """Lead to what a text names: a model by its whole name, else the checkpoint of a ref.

    Raises:
        NotFoundError, AmbiguousError, ValueError: as `Registry.get`.
    """
    reg, text = views.registry_of(request), views.word(request, "q")
    if text is None:
        return RedirectResponse("/", 303)
    if reg.models([text]):
        return RedirectResponse(views.url("/checkpoints", model=text), 303)
    return RedirectResponse(views.url("/checkpoint", ref=reg.get(text).id), 303)


ROUTES: Final = [Route("/", index), Route("/go", go)]
