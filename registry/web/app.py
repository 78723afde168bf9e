"""The application: the pages of every module behind one guard."""

from __future__ import annotations

import os
from collections.abc import Collection

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from ..registry import Registry
from . import chart, checkpoint, compare, models, storage, table, views
from .guard import LOOPBACK, Guard


def application(
    registry: Registry | str | os.PathLike[str],
    *,
    token: str | None = None,
    hosts: Collection[str] = LOOPBACK,
) -> Starlette:
    """Return the dashboard of a registry, an ASGI application.

    Args:
        registry: one, or where it is.
        token: what every visitor must know; None lets in whoever reaches it.
        hosts: the names that it is reached under.

    Raises:
        CkregError: as `Registry.open`.
    """
    pages = [chart, checkpoint, compare, models, storage, table]
    app = Starlette(
        routes=[
            *(route for page in pages for route in page.ROUTES),
            Mount("/static", StaticFiles(directory=views.STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts, token=token, broken=views.broken)],
        exception_handlers=dict(views.HANDLERS),
    )
    app.state.registry = registry if isinstance(registry, Registry) else Registry.open(registry)
    return app
