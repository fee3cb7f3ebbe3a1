"""Rows go to disk with positional writes at known offsets; the structure of the file is never touched."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precompute.cache import provenance
from precompute.cache.checksum import bytes_of, row_checksums
from precompute.cache.columns import Column, Layout
from precompute.cache.key import spec_layers
from precompute.cache.provenance import Record
from precompute.cache.quantised import QuantisedRows, Rows, quantise
from precompute.cache.reader import Cache, view
from precompute.errors import naming
from precompute.system import sync_data, write_at

SYNC_SECONDS = 20.0  # at most so much work is computed again after a power cut
HASHED_BESIDE = 512 * 1024  # bytes; to hand fewer to another thread takes longer than to hash them

Runs = list[tuple[int, int, int]]  # of consecutive rows: start and stop among those given, first row in the file


class RowWriter:
    """Write finished rows into a laid-out file, checksums last.

    A row counts as there once its checksum matches its bytes, so no order of the writes on disk can fake one.
    Raises OSError as the file system gives it (ENOSPC, EIO): rows written before stay valid.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        self._path = path
        self.layout = layout
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._synced = time.monotonic()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="checksum")  # pwrite leaves it the interpreter's lock

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(
        self,
        rows: NDArray[np.int64],
        features: Mapping[str, Rows],
        *,
        digests: NDArray[np.uint8],
        statuses: NDArray[np.uint8],
        sizes: NDArray[np.int64],
        mtimes: NDArray[np.int64],
    ) -> None:
        """Write k rows: features by layer (k, *shape), digests (k, 32), and (k,) statuses, sizes and mtimes.

        Of a layer of 8 bits, floats (see `quantise`) or rows as they are stored.
        """
        runs = _runs(rows)
        stored = {layer: self._as_stored(layer, values) for layer, values in features.items()}

        def checksums() -> dict[str, NDArray[np.uint64]]:
            return {layer: row_checksums(digests, sizes, mtimes, statuses, stored[layer]) for layer in stored}

        beside = sum(values.nbytes for values in stored.values()) >= HASHED_BESIDE
        hashing = self._hasher.submit(checksums) if beside else None
        for layer, values in stored.items():
            if isinstance(values, QuantisedRows):
                self._scatter(f"features/{layer}", runs, values.codes)
                self._scatter(f"scales/{layer}", runs, values.scales)
            else:
                self._scatter(f"features/{layer}", runs, values)
        self._scatter("samples/digest", runs, digests)
        self._scatter("samples/status", runs, statuses)
        self._scatter("samples/size", runs, sizes)
        self._scatter("samples/mtime_ns", runs, mtimes)
        for layer, sums in (hashing.result() if hashing else checksums()).items():
            self._scatter(f"checksums/{layer}", runs, sums)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def _as_stored(self, layer: str, values: Rows) -> Rows:
        column: Column = self.layout.columns[f"features/{layer}"]
        if isinstance(values, QuantisedRows):
            return values
        if column.dtype == np.uint8:
            return quantise(values, spec_layers(self.layout.spec)[layer][0])
        return np.ascontiguousarray(values, dtype=column.dtype)

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Mark rows as not there, before they are computed again, so that no reader takes half of each for a row."""
        for layer in self.layout.layers:
            zeros = np.zeros(len(rows), dtype=np.uint64)
            self._scatter(f"checksums/{layer}", _runs(rows), zeros)

    def _scatter(self, name: str, runs: Runs, values: ArrayLike) -> None:
        """One write into this column for each run of consecutive rows."""
        column = self.layout.columns[name]
        data, width = bytes_of(np.asarray(values, dtype=column.dtype)), column.row_bytes
        with naming(self._path):
            for start, stop, first in runs:
                write_at(self._descriptor, data[start * width : stop * width], column.offset + first * width)

    def append_provenance(self, records: list[Record]) -> bool:
        """Add one line for each record; False where the block is full and nothing was added."""
        column = self.layout.columns["provenance"]
        _, used = provenance.parse(os.pread(self._descriptor, column.nbytes, column.offset))
        data = b"".join(map(provenance.encode, records))
        if used + len(data) > column.nbytes:
            return False
        # A NUL behind the line cuts off what a torn append may have left there.
        with naming(self._path):
            write_at(self._descriptor, (data + b"\0")[: column.nbytes - used], column.offset + used)
        return True

    @cached_property
    def view(self) -> Cache:
        """The file in its current state, for reading."""
        return view(self._path, self.layout, self._descriptor)

    def sync(self) -> None:
        """Return once everything written so far is on the disk."""
        with naming(self._path):
            sync_data(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        self._hasher.shutdown()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _runs(rows: NDArray[np.int64]) -> Runs:
    bounds = [0, *(np.flatnonzero(rows[1:] - rows[:-1] != 1) + 1).tolist(), len(rows)]
    return [(start, stop, int(rows[start])) for start, stop in pairwise(bounds) if start < stop]
