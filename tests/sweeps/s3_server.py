"""A real object store for the tests: OpenStack Swift with its S3 API, one node, from the index."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET, REGION = "test:tester", "testsecret", "us-east-1"

_SERVERS = ("account", "container", "object", "proxy")
_PIPELINE = (
    "catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo "
    "versioned_writes symlink proxy-server"
)
_FILTERS = (
    "catch_errors gatekeeper healthcheck listing_formats bulk copy slo dlo versioned_writes symlink"
)
_CONSTRAINTS = """[swift-hash]
swift_hash_path_suffix = ckreg
[storage-policy:0]
name = default
default = yes
[swift-constraints]
max_file_size = 5368709122
"""
_STORAGE = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {root}
devices = {root}/srv
mount_check = false
disable_fallocate = true
log_address = /dev/null
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = f"""[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {{port}}
workers = 0
user = {{user}}
swift_dir = {{root}}
[pipeline:main]
pipeline = {_PIPELINE}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET} .admin
[filter:s3api]
use = egg:swift#s3api
location = {REGION}
s3_acl = false
auth_pipeline_check = false
check_bucket_owner = false
allow_multipart_uploads = true
min_segment_size = 5242880
"""
_RUN = """import runpy, sys
import swift.common.utils as u
try:
    import swift.common.utils.config as c; c.SWIFT_CONF_FILE = {conf!r}
except ImportError: pass
u.SWIFT_CONF_FILE = {conf!r}
import swift.common.storage_policy as sp
sp.SWIFT_CONF_FILE = {conf!r}
sp.reload_storage_policies()
import swift.common.constraints as k; k.SWIFT_CONF_FILE = {conf!r}; k.reload_constraints()
sys.argv = sys.argv[1:]
name = sys.argv[0]
if name == "ring":
    from swift.cli.ringbuilder import main
    sys.exit(main(sys.argv))
from importlib import import_module
from swift.common.wsgi import run_wsgi
from swift.common.utils import parse_options
conf_file, options = parse_options()
if name == "object":
    from swift.obj.server import global_conf_callback
    options["global_conf_callback"] = global_conf_callback
sys.exit(run_wsgi(conf_file, name + "-server", **options))
"""


class Unavailable(Exception):
    """The server can't be started here; the text says why."""


@dataclass
class Server:
    """A running object store.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
    """

    endpoint: str
    processes: list[subprocess.Popen[bytes]]

    def environment(self) -> dict[str, str]:
        """Return the variables that lead a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket; obstore has no call for that."""
        status, text = request(self.endpoint, "PUT", f"/{name}")
        if status != 200:
            raise Unavailable(f"no bucket: {status} {text[:200]!r}")

    def uploads(self, bucket: str) -> int:
        """Return how many uploads in parts were begun and not finished."""
        return request(self.endpoint, "GET", f"/{bucket}", query="uploads=")[1].count(b"<Upload>")

    def stop(self) -> None:
        """End it."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(20)


def start(root: Path) -> Server:
    """Start a server in an empty folder.

    Raises:
        Unavailable: it can't be started here.
    """
    for name in ("obstore", "swift"):
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f"{name} is not installed: pip install 'ckreg[test]'")
    conf = root / "swift.conf"
    (root / "srv" / "sdb1").mkdir(parents=True)
    conf.write_text(_CONSTRAINTS)
    (root / "run.py").write_text(_RUN.format(conf=str(conf)))
    ports = dict(zip(_SERVERS, _free_ports(4), strict=True))
    user = _user()
    for name in _SERVERS[:3]:
        builder = str(root / f"{name}.builder")
        device = ["--region", "1", "--zone", "1", "--ip", "127.0.0.1", "--device", "sdb1"]
        for words in (
            ["create", "2", "1", "1"],
            ["add", *device, "--port", str(ports[name]), "--weight", "1"],
            ["rebalance"],
        ):
            done = _run(root, "ring", builder, *words)
            if done.wait(60) > 1:  # 1 is a warning
                raise Unavailable(f"swift's ring: {(root / 'ring.log').read_text()[-300:]}")
        text = _STORAGE.format(port=ports[name], user=user, root=root, name=name)
        (root / f"{name}.conf").write_text(text)
    (root / "proxy.conf").write_text(
        _PROXY.format(port=ports["proxy"], user=user, root=root)
        + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS.split())
    )
    server = Server(f"http://127.0.0.1:{ports['proxy']}", [])
    with ExitStack() as undo:
        undo.callback(server.stop)
        for name in _SERVERS:
            server.processes.append(_run(root, name, str(root / f"{name}.conf")))
        _wait_for(server, root)
        undo.pop_all()
    return server


def _run(root: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    with open(root / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(root / "run.py"), name, *words],
            stdout=log,
            stderr=log,
            cwd=root,
        )


def _wait_for(server: Server, root: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if any(process.poll() is not None for process in server.processes):
            break
        try:
            server.make_bucket("ready")
            return
        except (OSError, http.client.HTTPException, Unavailable):
            time.sleep(0.1)
    logs = "".join((root / f"{name}.log").read_text()[-300:] for name in _SERVERS)
    raise Unavailable(f"swift didn't come up: {logs}")


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in made:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in made]


def request(
    endpoint: str, method: str, path: str, *, query: str = "", body: bytes = b""
) -> tuple[int, bytes]:
    """Make a request signed as AWS wants it (Signature Version 4), and return status and body."""
    host = endpoint.removeprefix("http://")
    at = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    payload = hashlib.sha256(body).hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    headers = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": at}
    lines = [f"{name}:{value}" for name, value in headers.items()]
    canonical = "\n".join([method, path, query, *lines, "", names, payload])
    scope = f"{at[:8]}/{REGION}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{digest}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, f"{path}?{query}" if query else path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
