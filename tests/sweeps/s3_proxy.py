"""A proxy before an object store that counts what it carries, and fails as it is told to."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
FAULTS = ("503", "500", "reset before", "reset after", "cut", "slow")
"""An answer 503 or 500 without a request made; the connection reset before the request is made, or
after it in place of the answer; half of the answer's body; a body that comes in drops."""


class Proxy:
    """One proxy, on a port of its own.

    Args:
        endpoint: the store's.
        choose: returns the fault for a request, or None, by its method and path.

    Attributes:
        sent: bytes of bodies that went to the client.
        seen: how many requests met each fault; "" for none.
    """

    def __init__(
        self, endpoint: str, choose: Callable[[str, str], Fault | None] = lambda *_: None
    ) -> None:
        self.sent = 0
        self.seen: Counter[str] = Counter()
        self.requests: list[str] = []
        self.choose = choose
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self, endpoint.removeprefix("http://")))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Chance:
    """Chooses faults by chance.

    Args:
        share: of the requests that meet one.
    """

    def __init__(self, seed: int, share: float) -> None:
        self._random = random.Random(seed)
        self._share = share
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str) -> Fault | None:
        with self._lock:
            if self._random.random() >= self._share:
                return None
            return self._random.choice(FAULTS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


def _handler(proxy: Proxy, backend: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            fault = proxy.choose(self.command, self.path)
            with proxy.lock:
                proxy.seen[fault or ""] += 1
                proxy.requests.append(f"{self.command} {self.path}")
            if fault in ("503", "500"):
                self._answer(int(fault), [], b"<Error><Code>InternalError</Code></Error>")
                return
            if fault == "skew":
                text = b"<Error><Code>RequestTimeTooSkewed</Code><Message>no</Message></Error>"
                self._answer(403, [], text)
                return
            if fault == "no such upload":
                self._answer(404, [], b"<Error><Code>NoSuchUpload</Code></Error>")
                return
            if fault == "reset before":
                self._reset()
                return
            connection = http.client.HTTPConnection(backend, timeout=60)
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if fault == "reset after":
                self._reset()
                return
            hop = ("content-length", "transfer-encoding", "connection")
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in hop]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, headers, data, fault=fault, length=length)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

        def _answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            data: bytes,
            *,
            fault: str | None = None,
            length: str | None = None,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if fault == "cut" and data:
                data = data[: len(data) // 2]
            with proxy.lock:
                proxy.sent += len(data)
            if fault == "slow":
                for start in range(0, len(data), max(1, len(data) // 5)):
                    self.wfile.write(data[start : start + max(1, len(data) // 5)])
                    time.sleep(0.01)
            elif self.command != "HEAD":
                self.wfile.write(data)
            if fault == "cut":
                self._reset()

        def _reset(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    return Handler
