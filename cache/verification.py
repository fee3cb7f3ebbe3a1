"""Read every row once and hold it against its checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precompute.cache.checksum import row_checksums
from precompute.cache.reader import Cache
from precompute.cache.status import Status

BLOCK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Arrays hold row numbers, ascending.

    good: checksums match (ok or failed samples alike) · pending: not computed yet, or being written just now ·
    damaged: a checksum that does not match its bytes, or an ok row with NaN or infinity in it · ids_in_order: ids
    strictly ascending.
    """

    good: NDArray[np.int64]
    pending: NDArray[np.int64]
    damaged: NDArray[np.int64]
    ids_in_order: bool

    @property
    def whole(self) -> bool:
        return self.ids_in_order and not len(self.pending) and not len(self.damaged)


def verify(
    cache: Cache,
    *,
    layers: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> Verification:
    """Check every row of all layers, or of these, in parallel; also while another process writes.

    `progress` is called with the number of rows just checked, of one layer.
    """
    statuses, digests = cache.status, cache.column("samples/digest")
    sizes, mtimes = cache.column("samples/size"), cache.column("samples/mtime_ns")
    pending = statuses == Status.PENDING
    damaged = np.zeros(len(cache), dtype=bool)

    def check(layer: str, start: int, stop: int) -> tuple[slice, NDArray[np.bool_], NDArray[np.bool_]]:
        block = slice(start, stop)
        # Checksums before and after: a row that a writer is at work on meanwhile is not there yet, and not damaged.
        before = np.array(cache.column(f"checksums/{layer}")[block])
        rows, status = cache.features(layer)[block], np.array(statuses[block])
        bad = before != row_checksums(digests[block], sizes[block], mtimes[block], status, rows)
        finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        absent = (before == 0) | (before != cache.column(f"checksums/{layer}")[block])
        return block, absent, bad | (~finite & (status == Status.OK))

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for layer in cache.layers if layers is None else layers:
            height = max(1, BLOCK_BYTES // cache.layout.columns[f"features/{layer}"].row_bytes)
            starts = range(0, len(cache), height)
            blocks = pool.map(lambda start, layer=layer, height=height: check(layer, start, start + height), starts)
            for block, absent, bad in blocks:
                pending[block] |= absent
                damaged[block] |= bad
                if progress is not None:
                    progress(len(bad))
    damaged &= ~pending
    return Verification(
        good=np.flatnonzero(~pending & ~damaged),
        pending=np.flatnonzero(pending),
        damaged=np.flatnonzero(damaged),
        ids_in_order=_ascending(cache.column("samples/id")),
    )


def _ascending(ids: NDArray[np.bytes_]) -> bool:
    return bool(np.all(ids[:-1] < ids[1:]))
