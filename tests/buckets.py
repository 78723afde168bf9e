"""The object store of the tests: one server a process, started when it is first asked for."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import uuid
from functools import cache
from pathlib import Path

from sweeps import s3_server

BUCKET = "tests"


def why_not() -> str | None:
    """Return why no object store can be tested here, or None."""
    found = _shared()
    return found if isinstance(found, str) else None


def server() -> s3_server.Server:
    """Return the server of this process."""
    found = _shared()
    assert isinstance(found, s3_server.Server), found
    return found


@cache
def _shared() -> s3_server.Server | str:
    """Return the server that all tests of this process share, or why there is none."""
    folder = Path(tempfile.mkdtemp(prefix="ckreg-s3-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        made = s3_server.start(folder)
        atexit.register(made.stop)
        made.make_bucket(BUCKET)
    except s3_server.Unavailable as error:
        return f"S3: {error}"
    return made


def prefix() -> str:
    """Return the URL of a prefix that nobody uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def environment(cache: Path) -> dict[str, str]:
    """Return the variables that lead a process to the server, with a cache of its own."""
    return {**server().environment(), "CKREG_CACHE": str(cache)}
