"""Reads that wait for a network, begun before a decode thread is free for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from precompute.sources.base import Raw, Source

AHEAD_BYTES = 512 * 2**20  # of samples that wait to be decoded; what is more is read by the thread that decodes it


class ReadAhead(Source):
    """`whole`, whose rows may be requested in advance; it gives the same bytes and raises the same errors."""

    def __init__(self, whole: Source, readers: ThreadPoolExecutor | None) -> None:
        self.name, self.table = whole.name, whole.table
        self._whole, self._readers = whole, readers
        self._begun: dict[int, Future[Raw]] = {}
        self._bytes, self._lock = 0, threading.Lock()

    def begin(self, row: int) -> None:
        """Read `row` now, where the source wants that and there is room. Each row is then read once."""
        size = int(self.table.sizes[row])
        with self._lock:
            if self._readers is None or row in self._begun:
                return
            if self._bytes + size <= AHEAD_BYTES:
                self._bytes += size
                self._begun[row] = self._readers.submit(self._whole.read, row)

    def read(self, row: int) -> Raw:
        """See `Source`."""
        with self._lock:
            begun = self._begun.pop(row, None)
        if begun is None:
            return self._whole.read(row)
        try:
            return begun.result()
        finally:
            with self._lock:
                self._bytes -= int(self.table.sizes[row])


@contextmanager
def read_ahead(source: Source) -> Iterator[ReadAhead]:
    """`source` with as many threads that read as it wants; at the end no read is in progress."""
    if not source.reads_at_once:
        yield ReadAhead(source, None)
        return
    readers = ThreadPoolExecutor(source.reads_at_once, thread_name_prefix="read")
    try:
        yield ReadAhead(source, readers)
    finally:
        readers.shutdown(cancel_futures=True)
