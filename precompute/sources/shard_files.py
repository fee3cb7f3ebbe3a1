"""Where tar shards lie: on a disk here, in an object store in `remote.shards`."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from precompute.errors import SampleError
from precompute.sources.files import mtime_ns, read_at

WINDOW = 4096  # bytes read at once: a label and the header behind it


@dataclass(frozen=True)
class ShardState:
    """size: in bytes · stamp: int64 that changes when the file does · identity: JSON, for a kept index."""

    size: int
    stamp: int
    identity: tuple[Any, ...]


class OpenShard(ABC):
    """A shard while it is listed. window: bytes that are best read at once."""

    state: ShardState
    window: int

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; fewer at the end of the file. Raises OSError."""


class ShardFiles(ABC):
    """All files of a pattern; paths are bytes. Copies go to other processes, and threads share one."""

    local = False
    reads_at_once = 0

    @abstractmethod
    def opened(self, path: bytes) -> Any:
        """A context that gives an OpenShard. Raises OSError, and SourceError where nothing can be read any more."""

    @abstractmethod
    def part(self, path: bytes, offset: int, size: int) -> tuple[bytes, ShardState]:
        """`size` bytes from `offset` on, fewer or none where the file has become shorter, and its state when they were
        read. Raises SampleError."""

    @abstractmethod
    def alive(self, paths: Sequence[bytes]) -> bool:
        """Whether any shard is still there."""

    def patient(self, waits: bool) -> None:
        """See `Source`."""
        del waits

    @abstractmethod
    def real(self, path: bytes) -> bytes:
        """What names the file wherever a path to it starts."""


class LocalShards(ShardFiles):
    """Files on a disk, read with `pread`, each time through its own descriptor."""

    local = True

    @contextmanager
    def opened(self, path: bytes) -> Iterator[OpenShard]:
        """See `ShardFiles`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(None, "not an ordinary file")
            yield _OpenFile(descriptor, _state(status))
        finally:
            os.close(descriptor)

    def part(self, path: bytes, offset: int, size: int) -> tuple[bytes, ShardState]:
        """See `ShardFiles`."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise SampleError("the shard is not an ordinary file", reason="UNREADABLE")
                there = offset + size <= status.st_size  # asked before memory is taken
                return read_at(descriptor, size, offset) if there else b"", _state(status)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = "VANISHED" if isinstance(error, FileNotFoundError | NotADirectoryError) else "UNREADABLE"
            raise SampleError(f"the shard: {error.strerror or error}", reason=reason) from error

    def alive(self, paths: Sequence[bytes]) -> bool:
        """See `ShardFiles`."""
        return any(map(os.path.exists, paths))

    def real(self, path: bytes) -> bytes:
        """See `ShardFiles`."""
        return os.path.realpath(path)


class _OpenFile(OpenShard):
    window = WINDOW

    def __init__(self, descriptor: int, state: ShardState) -> None:
        self._descriptor, self.state = descriptor, state

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def _state(status: os.stat_result) -> ShardState:
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return ShardState(status.st_size, mtime_ns(status), identity)
