"""The server of the dashboard: the address it is at, and who may reach it.

Law: the loopback interface, or a token; never an open door to the network.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlencode

import uvicorn

from ..errors import CkregError
from ..registry import Registry
from .app import application
from .guard import LOOPBACK

PORT: Final = 8420


def serve(
    registry: Registry,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    hosts: Collection[str] = (),
    announce: Callable[[str], None],
) -> None:
    """Serve a registry's dashboard until it is interrupted.

    Args:
        host: the interface. Another than the loopback's gets a token, made here unless given.
        port: 0 takes a free one.
        hosts: further names that it is reached under.
        announce: called with the address, its token included, once connections are taken.

    Raises:
        CkregError: the address can't be listened on.
        ValueError: a token too short to keep anybody out.
    """
    if token is not None and len(token) < 16:
        raise ValueError("a token has 16 characters or more; without --token one is made")
    listener = _listener(host, port)
    with listener:
        at, taken = listener.getsockname()[:2]
        if not ipaddress.ip_address(at).is_loopback:
            token = token or secrets.token_urlsafe(24)
        names = {*LOOPBACK, *hosts, host, *(() if token is None else _names())}
        shown = _reached_at(at)
        query = "" if token is None else "?" + urlencode({"token": token})
        app = application(registry, token=token, hosts=names)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", server_header=False,
            proxy_headers=False, ws="none",
        )  # fmt: skip
        announce(f"http://{f'[{shown}]' if ':' in shown else shown}:{taken}/{query}")
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections already: the address is good once it is printed."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise CkregError(
            f"{host}:{port} can't be listened on: {error.strerror or error}",
            hint="take a free port: ckreg ui --port 0",
        ) from error
    return listener


def _names() -> set[str]:
    """Return what this machine calls itself; its addresses need no name."""
    return {socket.gethostname(), socket.getfqdn()}


def _reached_at(address: str) -> str:
    """Return an address to open: one of this machine's, where all are listened on."""
    if not ipaddress.ip_address(address).is_unspecified:
        return address
    return socket.gethostname()
