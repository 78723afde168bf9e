"""What stands before every page: who may ask, what may be asked, and what a browser is told.

Law: nothing but GET and HEAD goes through; nor does a request for a host of another name, by which
a page elsewhere could make the browser read for it (DNS rebinding); nor, where a token is set, one
without it. No answer may load, run or send anything beyond its own origin.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Collection
from html import escape
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

POLICY: Final = "; ".join(
    [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
        "connect-src 'self'", "font-src 'self'", "form-action 'self'", "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)  # fmt: skip

_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """The outermost layer of the application.

    Args:
        hosts: the names that a Host header may have. With a token an address does too: a name is
            what another page can point here, and an address isn't.
        token: what each request must know, by `?token=` at first, then by a cookie; or as a bearer.
        broken: makes the answer to an error that nobody expected. Starlette's own handler of those
            stands before this layer, where no header of ours would be added.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str], token: str | None,
        broken: Callable[[Request, Exception], Response],
    ) -> None:  # fmt: skip
        self._app = app
        self._broken = broken
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # no page opens one
            return

        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", _caching(scope, message))
            await send(message)

        answer = self._refused(scope) or self._entering(scope) or self._app
        try:
            await answer(scope, receive, told)
        except Exception as error:
            if not begun:
                await self._broken(Request(scope), error)(scope, receive, told)
            raise  # the server prints the traceback

    def _refused(self, scope: Scope) -> Response | None:
        """Return what to say to a request that isn't let through."""
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse(
                "the dashboard only reads\n", 405, headers={"allow": "GET, HEAD"}
            )
        headers = Headers(scope=scope)
        named = headers.getlist("host")
        if len(named) != 1 or not self._is_ours(named[0]):
            return PlainTextResponse("this host isn't served here\n", 421)
        from_elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if from_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("another site can't read this one\n", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name, closed, port = name[1:].partition("]")
            if not closed or (port and not (port[0] == ":" and port[1:].isdecimal())):
                return False
        else:
            name, colon, port = name.partition(":")
            if colon and not port.isdecimal():
                return False
        return name in self._hosts or (self._token is not None and _is_address(name))

    def _entering(self, scope: Scope) -> Response | None:
        """Return the answer to one who doesn't know the token, or who shows it for the first
        time.
        """
        if self._token is None:
            return None
        request = Request(scope)
        port = (scope.get("server") or ("", 0))[1]
        cookie = f"ckreg-{port}"  # a browser sends cookies to every port of a host
        given = parse_qsl(request.url.query, keep_blank_values=True)
        shown = [value for name, value in given if name == "token"]
        if shown and self._is_token(shown[0]):
            rest = urlencode([pair for pair in given if pair[0] != "token"])
            # No redirect: a browser that came by a link from elsewhere follows it without the
            # cookie, which SameSite=Strict keeps to requests that begin here.
            path = "/" + quote(scope["path"].lstrip("/"))
            to = escape(f"{path}?{rest}" if rest else path)
            entered = HTMLResponse(
                f'<!doctype html><meta http-equiv="refresh" content="0;url={to}">'
                f'<title>ckreg</title><a href="{to}">go on</a>'
            )
            entered.set_cookie(
                cookie, self._token, httponly=True, samesite="strict", path="/",
                secure=request.url.scheme == "https",
            )  # fmt: skip
            return entered
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        known = (request.cookies.get(cookie), bearer if scheme.lower() == "bearer" else None)
        if any(self._is_token(word) for word in known):
            return None
        return PlainTextResponse(
            "this dashboard asks for its token: open the address that ckreg ui printed\n", 401
        )

    def _is_token(self, word: str | None) -> bool:
        expected = self._token or ""
        return word is not None and hmac.compare_digest(word.encode(), expected.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _caching(scope: Scope, message: Message) -> str:
    # The URL of a static file changes with its content; a page is as new as the registry.
    still = scope["path"].startswith("/static/") and b"v=" in scope.get("query_string", b"")
    if still and message["status"] == 200:
        return "private, max-age=31536000, immutable"
    return "private, no-cache"
