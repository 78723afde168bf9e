"""The object store's client: requests that are tried again, and errors that say what to do.

Law: the only module that imports obstore; what leaves here is whole (its length was compared) or a
CkregError. Absence is what a request for one key says, never a listing. Knows nothing of blobs.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from ..errors import (
    CkregError,
    NotFoundError,
    NotWritableError,
    RemoteError,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta

SCHEMES: Final = ("s3", "gs", "az")
"""The kinds of store that a URL may name."""

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

PART: Final = 8 << 20
"""The smallest part of an upload in parts, and the largest upload in one."""

_PAGE: Final = 1000  # the most that S3 lists at once
_MOST_PARTS: Final = 9000  # S3 takes 10,000 in one upload
_IN_FLIGHT: Final = 256 << 20  # bytes of an upload's parts that are in memory at once
_TRIES: Final = 4
_RETRIES: Final = 5  # the client's own, of one request
_FIRST_WAIT_S: Final = 0.1
_REQUEST_S: Final = 300
_SILENCE_S: Final = 30  # without a byte of an answer
_GIVE_UP_S: Final = 90

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: its key below the store's prefix, its size, and when it was written by the
    server's clock.
    """

    key: str
    size_bytes: int
    modified_at: float


def check_url(url: str) -> str:
    """Return a store's URL with its scheme in small letters and without a slash at its end.

    Raises:
        ValueError: it is no URL of a kind that is known, or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        kinds = ", ".join(f"{s}://BUCKET/PREFIX" for s in SCHEMES)
        raise ValueError(f"blobs are kept in a folder, or at {kinds}, and not at another URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://… names a bucket and a prefix; credentials come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return parts.scheme + url[len(parts.scheme) :].rstrip("/")


class Client:
    """Requests to one bucket, below one prefix.

    Args:
        url: `s3://bucket/prefix`, `gs://…`, `az://…`; credentials and endpoint are read from the
            environment, as obstore does.
    """

    def __init__(self, url: str) -> None:
        self.url = check_url(url)
        self._pid = os.getpid()
        self._store = self._connect()

    def _connect(self) -> Any:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise CkregError(
                f"{self.url!r} needs the client of object stores, which is not installed",
                hint="pip install 'ckreg[s3]'",
            ) from error
        words: dict[str, Any] = {}
        if self.url.startswith("s3://"):
            _check_endpoints()
        if self.url.startswith("s3://") and not os.environ.get("AWS_CHECKSUM_ALGORITHM"):
            words["checksum_algorithm"] = "SHA256"
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        try:
            return from_url(
                self.url,
                client_options={
                    "allow_http": plain,  # whoever writes http:// in the endpoint means it
                    "connect_timeout": timedelta(seconds=10),
                    "read_timeout": timedelta(seconds=_SILENCE_S),
                    "timeout": timedelta(seconds=_REQUEST_S),
                },
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": timedelta(seconds=_GIVE_UP_S),
                    "backoff": {
                        "init_backoff": timedelta(seconds=_FIRST_WAIT_S),
                        "max_backoff": timedelta(seconds=5),
                        "base": 2,
                    },
                },
                **words,
            )
        except Exception as error:  # obstore has an error of its own for each wrong setting
            raise RemoteError(
                f"the client for {self.url!r} can't be made: {_first_line(error)}",
                hint="see the variables that it reads: env | grep -E '^(AWS|GOOGLE|AZURE)_'",
            ) from error

    def at(self, key: str) -> str:
        """Return an object's URL, for messages."""
        return f"{self.url}/{key}"

    # --- requests -----------------------------------------------------------------------------

    def head(self, key: str) -> Stored | None:
        """Return what is known of an object, or None where there is none."""
        import obstore

        try:
            found = self._ask("look at", key, lambda: obstore.head(self._here(), key))
        except _AbsentError:
            return None
        return _stored(found)

    def get(self, key: str, *, limit: int) -> bytes | None:
        """Return a small object whole, or None where there is none.

        Raises:
            ValueError: it is larger than `limit`.
        """
        import obstore

        def read() -> bytes:
            found = obstore.get(self._here(), key)
            size = found.meta["size"]
            if size > limit:
                raise ValueError(f"{self.at(key)!r} has {size} bytes: {limit} is the limit")
            data = bytes(found.bytes())
            if len(data) != size:
                raise _CutShort(f"{len(data)} bytes of {size} came")
            return data

        try:
            return self._ask("read", key, read)
        except _AbsentError:
            return None

    def read(self, key: str, offset: int, size: int) -> memoryview:
        """Return exactly some bytes of an object.

        Raises:
            NotFoundError: there is no such object.
            RemoteError: fewer came, whatever was tried.
        """
        import obstore

        def read() -> memoryview:
            data = memoryview(obstore.get_range(self._here(), key, start=offset, length=size))
            if len(data) != size:
                raise _CutShort(f"{len(data)} bytes of {size} came")
            return data

        return self._ask("read", key, read) if size else memoryview(b"")

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, in place of the one before."""
        import obstore

        self._ask("write", key, lambda: obstore.put(self._here(), key, data, use_multipart=False))

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless there is one, and say whether there was none.

        A create whose answer was lost is decided by what is there then.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def write() -> bool:
            try:
                obstore.put(self._here(), key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._ask("write", key, write) or self.get(key, limit=len(data)) == data

    def upload(self, key: str, source: Path, size: int) -> None:
        """Write a file as an object, in parts where it is large; a failed one leaves none.

        The client sends a SHA-256 of every part, which the server compares.
        """
        import obstore

        part = max(PART, -(-size // _MOST_PARTS))
        at_once = max(2, min(12, _IN_FLIGHT // part))

        def write() -> None:
            try:
                obstore.put(
                    self._here(), key, source, use_multipart=size > part, chunk_size=part,
                    max_concurrency=at_once,
                )  # fmt: skip
            except FileNotFoundError as error:
                # The upload is over: the answer to its joining, or to its abandoning, was lost, and
                # the client asked once more. Keys are never used twice, so what is there is ours.
                if "NoSuchBucket" in str(error):
                    raise
                found = self.head(key)
                if found is None or found.size_bytes != size:
                    raise _CutShort("the upload ended before its parts were joined") from error

        self._ask("write", key, write)

    def delete(self, key: str) -> None:
        """Remove an object; one that is gone is no error."""
        import obstore

        with suppress(_AbsentError):
            self._ask("remove", key, lambda: obstore.delete(self._here(), key))

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the store."""
        import obstore

        self._ask("copy", key, lambda: obstore.copy(self._here(), key, to))

    def below(self, folder: str) -> Iterator[Stored]:
        """Yield the objects whose keys begin with a folder's name, in the order of their keys."""
        import obstore

        def pages() -> list[Any]:
            return [found for page in obstore.list(self._here(), folder) for found in page]

        found = self._ask("list", folder, pages)
        yield from sorted(map(_stored, found), key=lambda one: one.key)

    def walk(self, folder: str) -> Iterator[Stored]:
        """Yield the same as they come, a page at a time: each is asked for when its turn comes.

        Raises:
            RemoteError: the server doesn't list keys in their order.
        """
        import obstore

        def page_after(key: str | None) -> Sequence[Any]:
            pages = obstore.list(self._here(), folder, offset=key, chunk_size=_PAGE)
            return next(iter(pages), ())

        after: str | None = None
        while True:
            page = [_stored(one) for one in self._ask("list", folder, partial(page_after, after))]
            keys = [one.key for one in page]
            if keys != sorted(keys) or (after is not None and keys[:1] and keys[0] <= after):
                raise RemoteError(f"{self.at(folder)!r} is listed out of the order of its keys")
            yield from page
            if len(page) < _PAGE:
                return
            after = keys[-1]

    def folders(self, folder: str = "") -> tuple[list[str], list[Stored]]:
        """Return the names of folders and the objects that lie directly in one."""
        import obstore

        found: Any = self._ask(
            "list", folder, lambda: obstore.list_with_delimiter(self._here(), folder or None)
        )
        return sorted(found["common_prefixes"]), [_stored(one) for one in found["objects"]]

    def _here(self) -> Any:
        """Return the client; a child made by fork needs its own connections."""
        if self._pid != os.getpid():
            self._store, self._pid = self._connect(), os.getpid()
        return self._store

    def _ask(self, doing: str, key: str, request: Callable[[], T]) -> T:
        """Do a request, again after what may pass, and translate what stays."""
        for turn in range(_TRIES):
            try:
                return request()
            except (CkregError, ValueError):
                raise
            except Exception as error:
                if turn == _TRIES - 1 or not _may_pass(error):
                    raise self._translated(error, doing, key) from error
            time.sleep(_FIRST_WAIT_S * 2**turn * (0.5 + random.random()))
        raise AssertionError("the last turn returns or raises")

    # --- errors -------------------------------------------------------------------------------

    def _translated(self, error: Exception, doing: str, key: str) -> CkregError:
        what, text = f"can't {doing} {self.at(key)!r}", str(error)
        for pattern, kind, why, hint in _MEANINGS:
            if match := pattern.search(text):
                return kind(
                    f"{what}: {why}",
                    hint=match.expand(hint).replace("BUCKET", urlsplit(self.url).netloc),
                )
        if isinstance(error, FileNotFoundError):
            return _AbsentError(f"there is no {self.at(key)!r}")
        endpoint = next((os.environ[name] for name in _ENDPOINTS if name in os.environ), None)
        hint = "see whether the server answers"
        if endpoint:
            hint += f": curl -i {endpoint}"
        elif self.url.startswith("s3://"):
            hint = (
                "AWS_ENDPOINT_URL isn't set, so AWS itself was asked; for a server of your own: "
                "export AWS_ENDPOINT_URL=https://HOST"
            )
        else:
            hint += ", and do it again"
        return RemoteError(f"{what}: {_first_line(error)}", hint=hint)


def _check_endpoints() -> None:
    """Refuse an endpoint that is no URL: obstore 0.12.1 panics on one (on an empty one too), and a
    panic is no Exception.
    """
    for name in _ENDPOINTS:
        text = os.environ.get(name)
        if text is None:
            continue
        try:
            parts = urlsplit(text)
            right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:  # a port that is no number
            right = False
        if not right:
            raise RemoteError(
                f"{name} is {text!r}, which is no URL of a server",
                hint=f"export {name}=https://HOST:PORT (http:// for one without TLS); "
                f"or for AWS itself: unset {name}",
            )


class _AbsentError(NotFoundError):
    """There is no object of that name; the bucket is there, as far as the answer says."""


class _CutShort(Exception):
    """An answer had fewer bytes than were asked for."""


_CLOCK: Final = "set this machine's clock: timedatectl set-ntp true; and see: timedatectl"
_KEYS: Final = (
    "see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL: "
    "env | grep AWS_; and whether this machine's clock is right: date -u"
)
_MEANINGS: Final[tuple[tuple[re.Pattern[str], type[CkregError], str, str], ...]] = tuple(
    (re.compile(pattern), kind, why, hint)
    for pattern, kind, why, hint in (
        (
            "RequestTimeTooSkewed",
            RemoteError,
            "this machine's clock and the server's are too far apart (RequestTimeTooSkewed)",
            _CLOCK,
        ),
        (
            "NoSuchBucket",
            NotFoundError,
            "there is no such bucket",
            "make it: aws s3 mb s3://BUCKET",
        ),
        (
            "is wrong; expecting '([^']+)'",
            RemoteError,
            "the region is wrong",
            r"export AWS_REGION=\1",
        ),
        (
            "InvalidBucketName",
            NotFoundError,
            "a bucket can't have such a name",
            "name one that is there: aws s3 ls",
        ),
        (
            "(?i)certificate|UnknownIssuer|InvalidContentType|tls handshake",
            RemoteError,
            "the server's certificate isn't trusted, or it speaks no TLS",
            "see who signed it: openssl s_client -connect HOST:443 (http:// is for one without)",
        ),
        (
            "BadScheme",
            RemoteError,
            "the endpoint is a plain http:// one",
            "name it in AWS_ENDPOINT_URL, or use https://",
        ),
        ("SignatureDoesNotMatch", RemoteError, "the secret key is wrong", _KEYS),
        ("InvalidAccessKeyId", RemoteError, "the server doesn't know the access key", _KEYS),
        (
            "ExpiredToken",
            RemoteError,
            "the credentials have expired",
            "log in again: aws sso login",
        ),
        (
            "AccessDenied|40[13] (Forbidden|Unauthorized)",
            NotWritableError,
            "the server refuses these credentials",
            _KEYS,
        ),
        (
            "(?i)error getting credentials|169.254.169.254|no credentials",
            RemoteError,
            "there are no credentials",
            _KEYS,
        ),
    )
)


def _may_pass(error: Exception) -> bool:
    """Say whether a request may succeed when it is made again: the client's own retries, which are
    of single requests that were refused or dropped, count.
    """
    if isinstance(error, _CutShort):
        return True
    text = str(error)
    if re.search(r"status code: 4(?!08|29)\d\d", text) or isinstance(error, FileNotFoundError):
        return False
    if any(pattern.search(text) for pattern, *_ in _MEANINGS):
        return False
    return re.search(r"after [1-9]\d* retries", text) is None


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n\nDebug source")[0]
    cause = re.search(r'(?:message|error): "([^"]{1,200})"', str(error))
    return " ".join(text.split())[:400] + (f" ({cause[1]})" if cause else "")


def _stored(found: ObjectMeta) -> Stored:
    return Stored(found["path"], found["size"], found["last_modified"].timestamp())
