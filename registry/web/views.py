"""What every page shares: how it is rendered, what its request means, how its errors read.

Law: templates escape everything, and characters that would hide or reorder text are shown as
escapes, as on a terminal. A page is rendered whole: who asks for a part takes it out of the whole.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from .. import formatting
from ..errors import (
    AmbiguousError,
    BusyError,
    CkregError,
    ConflictError,
    ContainerError,
    NotFoundError,
    RefusedLoadError,
    RemoteError,
    SchemaVersionError,
)
from ..registry import Registry

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"

NO_DATASET: Final = " "
"""The value of `dataset` that means those without one: no dataset's name is blank."""

_STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (NotFoundError, 404),
    (AmbiguousError, 409),
    (ConflictError, 409),
    (ContainerError, 422),
    (RefusedLoadError, 422),
    (BusyError, 503),
    (SchemaVersionError, 503),
    (RemoteError, 502),
    (CkregError, 500),
    (ValueError, 400),
    (TypeError, 400),
)


def registry_of(request: Request) -> Registry:
    """Return the registry that is shown. It holds no connection: any thread may ask it."""
    registry = request.app.state.registry
    assert isinstance(registry, Registry)
    return registry


def word(request: Request, name: str) -> str | None:
    """Return a query's value without blanks around it, or None where it is absent or empty."""
    return request.query_params.get(name, "").strip() or None


def dataset_of(request: Request) -> str | None:
    """Return which dataset a query means, as the registry takes it: None any, "" those without."""
    given = request.query_params.get("dataset", "")
    return "" if given and not given.strip() else given.strip() or None


def as_dataset(name: str | None) -> str:
    """Return the value of `dataset` that means a checkpoint's."""
    return NO_DATASET if name is None else name


def url(path: str, **query: object) -> str:
    """Return a link; what is None or empty is left out.

    Example:
        >>> url("/compare", a="net@v1", b=None)
        '/compare?a=net%40v1'
    """
    said = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(said)}" if said else path


def static(name: str) -> str:
    """Return the link of a static file; it changes with the file, which a browser may so keep."""
    path = STATIC / name
    return f"/static/{name}?v={_digest(path, path.stat().st_mtime_ns)}"


@functools.lru_cache(maxsize=64)
def _digest(path: Path, _mtime_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def render(request: Request, name: str, *, status: int = 200, **context: object) -> HTMLResponse:
    """Return a page.

    Args:
        name: of its template, which extends base.html.
        context: what the template shows, beside `request` and `registry`.
    """
    page = _templates().get_template(name)
    text = page.render(request=request, registry=registry_of(request), **context)
    return HTMLResponse(text, status)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"url": url, "static": static, "as_dataset": as_dataset}
    environment.filters |= {
        "age": formatting.age,
        "clock": formatting.clock,
        "size": formatting.size,
        "number": formatting.number,
        "count": formatting.count,
        "listed": formatting.listed,
    }
    return environment


def _shown(value: Any) -> Any:
    """Return what a template prints of a value: text with its invisible characters escaped."""
    if value is None:
        return ""
    if isinstance(value, str) and not hasattr(value, "__html__") and not value.isprintable():
        return formatting.visible(value, lines=True)
    return value


# --- errors ---------------------------------------------------------------------------------------


def failed(request: Request, error: Exception) -> HTMLResponse:
    """Return the page of an error: what happened, and how to mend it."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    message, hint = said(error)
    return render(request, "error.html", status=status, message=message, hint=hint)


def said(error: Exception) -> tuple[str, str | None]:
    """Return an error's message and its hint."""
    if isinstance(error, CkregError):
        return error.message, error.hint
    message, _, hint = str(error).partition("\nhint: ")
    return message, hint or None


def nowhere(request: Request, _: Exception) -> HTMLResponse:
    """Return the page for a path that there isn't."""
    return render(
        request, "error.html", status=404,
        message=f"there is no page {request.url.path!r}", hint=None,
    )  # fmt: skip


def broken(request: Request, error: Exception) -> HTMLResponse:
    """Return the page for an error of ours. What it says may hold a path or a password: it goes to
    the terminal, with the traceback.
    """
    return render(
        request, "error.html", status=500, message=f"ckreg failed: {type(error).__name__}",
        hint="the terminal of ckreg ui has the traceback",
    )  # fmt: skip


HANDLERS: Final[Mapping[Any, Any]] = {
    CkregError: failed,
    ValueError: failed,
    TypeError: failed,
    404: nowhere,
}
