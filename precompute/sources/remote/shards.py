"""Tar shards in an object store: listed by one pass in large parts, then read by ranges, one request for an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import translate

from precompute.errors import SampleError, SourceError
from precompute.sources.braces import expand_braces
from precompute.sources.remote.address import Address, address_of
from precompute.sources.remote.folder import READS_AT_ONCE
from precompute.sources.remote.store import PART_BYTES, Object, Store, open_store, source_error
from precompute.sources.shard_files import OpenShard, ShardFiles, ShardState

MAGIC = re.compile(r"[*?\[]")


class RemoteShards(ShardFiles):
    """Objects of a bucket. Paths are their addresses."""

    reads_at_once = READS_AT_ONCE

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = f"{store.address.root}/"

    @contextmanager
    def opened(self, path: bytes) -> Iterator[OpenShard]:
        """See `ShardFiles`."""
        try:
            yield _OpenObject(self._store, self._store.look_up(self._key(path)))
        except TimeoutError as error:
            raise source_error(os.fsdecode(path), error) from None

    def part(self, path: bytes, offset: int, size: int) -> tuple[bytes, ShardState]:
        """See `ShardFiles`."""
        try:
            data, found = self._store.read(self._key(path), offset, size)
        except OSError as error:
            reason = "VANISHED" if isinstance(error, FileNotFoundError) else "UNREADABLE"
            raise SampleError(f"the shard: {error.strerror}", reason=reason) from None
        return data, _state(found)

    def alive(self, paths: Sequence[bytes]) -> bool:
        """See `ShardFiles`."""
        return any(self._store.answers(self._key(path)) for path in paths[:1])

    def patient(self, waits: bool) -> None:
        """See `ShardFiles`."""
        self._store.patient(waits)

    def real(self, path: bytes) -> bytes:
        """See `ShardFiles`."""
        return path

    def _key(self, path: bytes) -> str:
        return os.fsdecode(path).removeprefix(self._root)


class _OpenObject(OpenShard):
    window = PART_BYTES

    def __init__(self, store: Store, found: Object) -> None:
        self._store, self._found, self.state = store, found, _state(found)

    def read(self, offset: int, size: int) -> bytes:
        if offset >= self._found.size:
            return b""
        data, found = self._store.read(self._found.key, offset, size)
        if found != self._found:
            raise OSError(None, "changed while it was listed")
        return data


def _state(found: Object) -> ShardState:
    return ShardState(found.size, found.stamp, (found.size, found.stamp))


def find_remote(pattern: str) -> tuple[Address, list[str], RemoteShards]:
    """The prefix that shards are named relative to, their addresses, and how they are read. Raises SourceError.

    A `*` stands for anything but `/`, and `**/` for any folders, as in a folder of shards.
    """
    address = address_of(pattern)
    store = open_store(address)
    fixed = re.split(r"[*?\[{]", address.key, maxsplit=1)[0].rpartition("/")[0]
    base = Address(address.protocol, address.bucket, fixed)
    paths: list[str] = []
    for key in expand_braces(address.key):
        if MAGIC.search(key):
            keys = _matching(store, key, base)
            paths += [f"{address.root}/{name}" for name in keys]
        else:
            paths.append(f"{address.root}/{key}")
    if not paths:
        raise SourceError(f"{address.shown} matches no object.", hint="Check the address for a typing error.")
    return base, paths, RemoteShards(store)


def _matching(store: Store, pattern: str, base: Address) -> list[str]:
    """Keys that match, ascending."""
    wanted = re.compile("".join(map(_expression, re.split(r"(\*\*/|[*?]|\[[^]]+\])", pattern))))
    prefix = MAGIC.split(pattern, maxsplit=1)[0]
    try:
        keys = [one.key for page in store.pages(prefix) for one in page.objects]
    except OSError as error:
        raise source_error(base.shown, error) from None
    return sorted(key for key in keys if wanted.fullmatch(key) and not {"", ".", ".."} & set(key.split("/")))


def _expression(part: str) -> str:
    if part == "**/":
        return "(?:[^/.][^/]*/)*"
    if part in ("*", "?"):
        return r"[^/]*" if part == "*" else "[^/]"
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        return translate(part).removeprefix("(?s:").removesuffix(r")\Z")
    return re.escape(part)
