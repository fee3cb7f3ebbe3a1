"""S3 and what speaks its protocol, through s3fs: its session, credentials and event loop, and one request for a read.

Each answer says which object its bytes are of, so that a row never has the bytes of one version under the stamp of
another. Only `Store.retried` repeats a request: s3fs and botocore, which would multiply with it, are asked not to.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

from precompute.errors import SourceError
from precompute.sources.files import MAX_FILE_BYTES
from precompute.sources.remote.store import Object, Page, Store, Transient, too_large

INSTALL = "pip install 'precompute[s3]'"
PAGE_KEYS = 1000  # what S3 gives at most
CONNECTIONS = 64  # at least as many as there are threads that read
CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 20,  # a server that is held for a moment counts as one that does not answer
    "max_pool_connections": CONNECTIONS,
    "retries": {"mode": "standard", "max_attempts": 1},
}
PASSING = {
    *("SlowDown", "RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "Throttling"),
    *("ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequestsException"),
    *("PriorRequestNotComplete", "OperationAborted"),
}
"""Codes of S3 for what may be over in a moment, whatever the HTTP status."""

STOP_SECONDS = 0.5  # of an answer that does not come, after which the end of the run is asked about
REDIRECTED = "it is answered by redirections: check AWS_DEFAULT_REGION, and http or https in AWS_ENDPOINT_URL"
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
NOT_FOUND = ("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404")


class _Loops:
    """An event loop in a thread for each process. Fsspec's is not used: after a fork it is gone, and does not know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: Any = None
        self._process = 0

    def one(self) -> Any:
        """The loop of this process, which runs until its end."""
        with self._lock:
            if self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="s3", daemon=True).start()
            return self._loop


_LOOPS = _Loops()


@dataclass
class _Connection:
    """A client of one process."""

    process: int
    loop: Any
    client: Any
    system: Any = field(repr=False)  # closes the client when it goes


@dataclass
class S3Store(Store):
    """See `Store`."""

    _connection: _Connection | None = field(default=None, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def connect(self) -> _Connection:
        """The client of this process. Raises SourceError without s3fs, and OSError for wrong settings."""
        with self._lock:
            if self._connection is None or self._connection.process != os.getpid():
                self._connection = _connect(self.address)
            return self._connection

    def pages(self, prefix: str, after: str = "") -> Iterator[Page]:
        token = None
        while True:
            asked = {"Prefix": prefix, "MaxKeys": PAGE_KEYS}
            if token is not None:
                asked["ContinuationToken"] = token
            elif after:
                asked["StartAfter"] = after
            answer = self._ask(_plain, "list_objects_v2", asked)
            yield Page(tuple(self._object(one["Key"], one["Size"], one) for one in answer.get("Contents", ())))
            following = answer.get("NextContinuationToken")
            if not answer.get("IsTruncated"):
                return
            if following is None or following == token:
                raise OSError(errno.EIO, "the store lists the same page forever")
            token = following

    def look_up(self, key: str) -> Object:
        answer = self._ask(_plain, "head_object", {"Key": key})
        return self._object(key, answer["ContentLength"], answer)

    def read(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, Object]:
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        try:
            data, answer = self._ask(_body, "get_object", {"Key": key, **part})
        except _BehindTheEndError:
            return b"", self.look_up(key)
        if size is None:
            return data, self._object(key, len(data), answer)
        total = answer.get("ContentRange", "").rpartition("/")[2]
        if not total.isdecimal():
            raise OSError(errno.EIO, "the store gives no parts of objects")
        return data, self._object(key, int(total), answer)

    def _object(self, key: str, size: int, answer: dict[str, Any]) -> Object:
        # A listing says nothing of versions, so that they can be no part of the stamp
        return Object(key, size, self.stamp(answer.get("ETag"), None, answer.get("LastModified")))

    def _ask(self, how: Callable[..., Any], method: str, arguments: dict[str, Any]) -> Any:
        """What the store answers. Raises OSError."""

        def once() -> Any:
            connection = self.connect()
            request = how(getattr(connection.client, method), {"Bucket": self.address.bucket, **arguments})
            under_way = asyncio.run_coroutine_threadsafe(request, connection.loop)
            while not wait((under_way,), STOP_SECONDS).done:
                if self._given_up.is_set():
                    under_way.cancel()
                    raise Transient("nothing")
            try:
                return under_way.result()
            except _failures() as error:
                raise _translated(error) from None

        return self.retried(once)


class _BehindTheEndError(OSError):
    """A part was requested that begins behind the end of the object."""


async def _plain(call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return await call(**arguments)


async def _body(call: Callable[..., Any], arguments: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    answer = await call(**arguments)
    body = answer["Body"]
    try:
        if answer["ContentLength"] > MAX_FILE_BYTES:  # asked before memory is taken
            raise too_large(answer["ContentLength"])
        data = await body.read()
    finally:
        body.close()
    if len(data) != answer["ContentLength"]:
        raise Transient("an answer was truncated")
    return data, answer


def _connect(address: Any) -> _Connection:
    try:
        import s3fs
        from fsspec.asyn import sync
    except ImportError as error:
        raise SourceError(f"{address.shown} needs s3fs.", hint=f"Install it: {INSTALL}") from error
    try:
        loop = _LOOPS.one()
        system = s3fs.S3FileSystem(loop=loop, use_listings_cache=False, skip_instance_cache=True, config_kwargs=CONFIG)
        client = sync(loop, system.set_session)
    except _failures() as error:
        raise _translated(error) from None
    return _Connection(os.getpid(), loop, client, system)


def _failures() -> tuple[type[Exception], ...]:
    """What s3fs and the libraries below it raise."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError, RecursionError)


def _translated(error: Exception) -> Exception:  # noqa: PLR0911 - a table
    """The error in our own words: Transient, or an OSError for good."""
    import aiohttp
    from botocore import exceptions as wrong

    if isinstance(error, wrong.ClientError):
        return _refusal(error)
    if isinstance(error, RecursionError):  # botocore follows a redirection to a region by asking for it, and so on
        return PermissionError(errno.EACCES, REDIRECTED)
    if isinstance(error, wrong.NoCredentialsError | wrong.PartialCredentialsError):
        return PermissionError(errno.EACCES, "no credentials were found")
    if isinstance(error, wrong.SSLError):
        return OSError(errno.EIO, "its certificate cannot be verified")
    passing = (wrong.ConnectionError, wrong.HTTPClientError, wrong.IncompleteReadError, aiohttp.ClientError)
    if isinstance(error, passing):
        return Transient(type(error).__name__)
    if isinstance(error, wrong.BotoCoreError):  # a profile that is missing, a region that is none, ...
        return PermissionError(errno.EACCES, f"its settings cannot be used ({type(error).__name__})")
    if isinstance(error, OSError) and error.errno != errno.EFBIG:
        return Transient(type(error).__name__)
    return error


def _refusal(error: Any) -> Exception:
    answer = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    named = code if code.isalnum() else f"HTTP {status}"
    if code in PASSING or (status >= 500 and status != 501) or status == 429:
        return Transient(named)
    if code == "InvalidRange" or status == 416:
        return _BehindTheEndError(errno.EINVAL, "it has become shorter")
    if code in NOT_FOUND or status == 404:
        what = "the bucket does not exist" if code == "NoSuchBucket" else "No such object"
        return FileNotFoundError(errno.ENOENT, what)
    if 301 <= status <= 308 and status != 304:
        return PermissionError(errno.EACCES, REDIRECTED)
    if status in (400, 401, 403):
        what = "the credentials have expired" if code in EXPIRED else f"the store refuses it ({named})"
        return PermissionError(errno.EACCES, what)
    return OSError(errno.EIO, f"the store answers {named}")
