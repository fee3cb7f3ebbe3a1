"""What an object store does for a source: list, look up and read. What fails is an OSError with our own text.

No text of a library goes into a message: it may hold an address with a password, or a signed request.
"""

from __future__ import annotations

import errno
import random
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, TypeVar

import xxhash

from precompute.errors import SampleError, SourceError
from precompute.sources.base import Raw
from precompute.sources.files import MAX_FILE_BYTES
from precompute.sources.remote.address import Address, address_of

RETRY_SECONDS = 60.0  # after the first failure: longer than a server takes to start again
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between two tries
PART_BYTES = 8 * 2**20  # of a large object, read at once
MAX_LISTING_BYTES = 16 * 2**30  # of a table, which is copied to a temporary file

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Object:
    """key: within the bucket · size: in bytes · stamp: int64 that changes when the object does, see `Store.stamp`."""

    key: str
    size: int
    stamp: int


@dataclass(frozen=True)
class Page:
    """Some objects in the order of the store, and prefixes that it refused to list."""

    objects: tuple[Object, ...]
    refused: tuple[str, ...] = ()


class Transient(Exception):
    """A failure that may be over in a moment, in our own words."""


@dataclass
class Store(ABC):
    """A bucket. It is used from several threads, and a copy of it may go to another process.

    started: stands instead of a stamp where the store gives none, another number in every run.
    """

    address: Address
    started: int = field(default_factory=time.time_ns)
    _silent: float = field(default=0.0, repr=False, compare=False)  # since when nothing was answered; 0: it answers
    _given_up: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "started": self.started}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # with locks and a connection of its own

    @abstractmethod
    def pages(self, prefix: str, after: str = "") -> Iterator[Page]:
        """All objects whose keys begin with `prefix`; a store whose keys come in order begins behind `after`.

        Raises OSError: FileNotFoundError for no such bucket, PermissionError, TimeoutError after RETRY_SECONDS.
        """

    @abstractmethod
    def look_up(self, key: str) -> Object:
        """One object. Raises OSError as `pages` does."""

    @abstractmethod
    def read(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, Object]:
        """Up to `size` bytes from `start` on, or all, and the object that they are of, which may have changed.

        Raises OSError as `pages` does, and for more than MAX_FILE_BYTES.
        """

    def answers(self, prefix: str) -> bool:
        """Whether anything below `prefix` can be listed now."""
        try:
            next(iter(self.pages(prefix)), None)
        except OSError:
            return False
        return True

    def patient(self, waits: bool) -> None:
        """Whether requests, those in progress too, wait for a store that does not answer, as they do at first."""
        if waits:
            self._silent = 0.0
            self._given_up.clear()
        else:
            self._given_up.set()

    def retried(self, call: Callable[[], Result]) -> Result:
        """What `call` returns. After Transient it is tried again, at growing distances.

        Raises TimeoutError where it failed for RETRY_SECONDS, or where the store answered nothing at all in that time:
        then each of many requests need not be waited for once more. Also once `patient` says not to wait.
        """
        wait, since = FIRST_WAIT, 0.0
        while True:
            try:
                result = call()
            except Transient as error:
                now = time.monotonic()
                since = since or now
                silent = self._silent = self._silent or now  # another thread may be answered in the next moment
                if now >= min(since, silent) + RETRY_SECONDS:
                    text = f"the store does not answer, for {RETRY_SECONDS:.0f} s ({error})"
                    raise TimeoutError(errno.ETIMEDOUT, text) from None
            except OSError:
                self._silent = 0.0  # a refusal is an answer
                raise
            else:
                self._silent = 0.0
                return result
            if self._given_up.wait(wait * random.uniform(0.5, 1)):  # not all threads at the same moment
                raise TimeoutError(errno.ETIMEDOUT, "the store did not answer before the run was stopped")
            wait = min(2 * wait, LONGEST_WAIT)

    def stamp(self, etag: str | None, version: str | None, modified: datetime | float | None) -> int:
        """63 bits from what a store says of an object: ETag, version, and time of modification in whole seconds.

        Where it gives neither ETag nor version it is another number in every run, so that nothing counts as unchanged.
        """
        if not (etag or version):
            return self.started
        seconds = int(modified.timestamp() if isinstance(modified, datetime) else modified or 0)
        plain = (etag or "").removeprefix("W/").strip('"')  # a listing and an answer quote it in different ways
        return xxhash.xxh3_64_intdigest(f"{plain}\0{version or ''}\0{seconds}".encode("utf-8", "surrogateescape")) >> 1


def open_store(address: Address) -> Store:
    """The bucket of an address. Raises SourceError without the packages that it needs; nothing is sent."""
    from precompute.sources.remote.generic import FsspecStore
    from precompute.sources.remote.s3 import S3Store

    store: S3Store | FsspecStore = (S3Store if address.protocol in ("s3", "s3a") else FsspecStore)(address)
    try:
        store.retried(store.connect)
    except OSError as error:
        raise source_error(address.shown, error) from None
    return store


def source_error(shown: str, error: OSError) -> SourceError:
    """Why a store could not be listed or an object of it not be had."""
    hint = "Check the address for a typing error."
    if isinstance(error, PermissionError):
        hint = "Check the credentials, and that they may list the bucket and read from it: see docs/remote.md."
    elif isinstance(error, TimeoutError):
        hint = "Nothing is lost. Run the same command again when the store answers."
    return SourceError(f"{shown} cannot be read: {error.strerror}.", hint=hint)


def read_sample(store: Store, key: str) -> Raw:
    """The bytes of one object with its stamps as they were when it was read.

    Raises SampleError with the reason VANISHED or UNREADABLE.
    """
    try:
        data, found = store.read(key)
    except OSError as error:
        reason = "VANISHED" if isinstance(error, FileNotFoundError) else "UNREADABLE"
        raise SampleError(str(error.strerror), reason=reason) from None
    return Raw(data, found.size, found.stamp)


def too_large(size: int) -> OSError:
    return OSError(errno.EFBIG, f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")


def download(name: str, shown: str) -> BinaryIO:
    """A copy of the object at the address `name`, in a file without a name. Raises SourceError."""
    address = address_of(name)
    store = open_store(address)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - handed over
    try:
        first: Object | None = None
        while first is None or file.tell() < first.size:
            data, found = store.read(address.key, file.tell(), PART_BYTES)
            if first not in (None, found) or (found.size and not data):
                raise SourceError(f"{shown} was changed while it was read.", hint="Run the same command again.")
            if found.size > MAX_LISTING_BYTES:
                raise SourceError(
                    f"{shown} has {found.size:,} bytes, more than {MAX_LISTING_BYTES:,}.", hint="Write several tables."
                )
            first = found
            file.write(data)
    except OSError as error:
        file.close()
        raise source_error(shown, error) from None
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file
