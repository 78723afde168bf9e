"""A proxy before a PostgreSQL server that cuts the connection before, during or after a COMMIT."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from socket import socket as Socket
from typing import Literal

Where = Literal["before", "during", "after"]


class Proxy:
    """Forwards bytes, and cuts at the n-th COMMIT that it is told to.

    Args:
        where: `before`: the COMMIT never reaches the server; `during`: it does, and both ends are
            cut at once; `after`: its answer comes, and is dropped.
        cuts: how many COMMITs are cut, from the first that is seen once `armed` is set.
    """

    def __init__(self, port: int, where: Where, *, cuts: int = 1) -> None:
        self._to = port
        self._where = where
        self._lock = threading.Lock()
        self.left = cuts
        self.armed = True
        self.down = False
        self.cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """Return a URL of the server that leads through here."""
        return url.replace(f":{self._to}/", f":{self.port}/")

    def close(self) -> None:
        """Stop to listen."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._to))
            dropping = threading.Event()
            for work in (self._forth, self._back):
                threading.Thread(target=work, args=(client, server, dropping), daemon=True).start()

    def _forth(
        self, client: socket.socket, server: socket.socket, dropping: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self._hits(data):
                    if self._where == "before":
                        break
                    if self._where == "after":
                        dropping.set()
                    server.sendall(data)
                    if self._where == "during":
                        break
                    continue
                server.sendall(data)
        if not dropping.is_set():
            _cut(client, server)

    def _hits(self, data: bytes) -> bool:
        with self._lock:
            if not self.armed or self.left < 1 or b"COMMIT" not in data:
                return False
            self.left -= 1
            self.cut += 1
            return True

    def _back(
        self, client: socket.socket, server: socket.socket, dropping: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if dropping.is_set():
                    break
                client.sendall(data)
        _cut(client, server)


def _cut(*ends: Socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
