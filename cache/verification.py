"""Read every row once and compare it with its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precompute.cache.checksum import row_checksums
from precompute.cache.quantised import QuantisedRows, Rows
from precompute.cache.reader import Cache
from precompute.cache.status import Status

BLOCK_BYTES = 1024 * 1024  # it is read twice, the second time from the processor's own cache
MAPPED_BYTES = 512 * 1024 * 1024  # of the file that may stay in this process's memory
EXPONENTS = {2: 0x7C00, 4: 0x7F800000}  # of float16 and float32: all bits set in NaN and infinity alone


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
) -> Verification:
    """Check every row of all layers, or of these; also while another process writes.

    Ids, labels, splits and classes are compared with their digest first, if they have not been yet, and without
    `layers` further columns as well. `progress` is called with the number of rows just checked, of one layer.
    Raises CacheFormatError where one of these digests does not match.
    """
    cache.check_table()
    for name in cache.columns if layers is None else ():
        cache.column(f"columns/{name}")
    statuses, digests = cache.status, cache.column("samples/digest")
    sizes, mtimes = cache.column("samples/size"), cache.column("samples/mtime_ns")
    pending = statuses == Status.PENDING
    damaged = np.zeros(len(cache), dtype=bool)
    for layer in cache.layers if layers is None else layers:
        stored, checksums = cache.stored(layer), cache.column(f"checksums/{layer}")
        height = max(1, BLOCK_BYTES // cache.row_bytes(layer))
        for start in range(0, len(cache), height):
            block = slice(start, start + height)
            # Checksums before and after: a row that a writer is at work on is not there yet, and not damaged.
            before = np.array(checksums[block])
            rows, status = stored[block], np.array(statuses[block])
            bad = before != row_checksums(digests[block], sizes[block], mtimes[block], status, rows)
            bad |= ~finite(rows) & (status == Status.OK)
            pending[block] |= (before == 0) | (before != checksums[block])
            damaged[block] |= bad
            if start // height % max(1, MAPPED_BYTES // BLOCK_BYTES) == 0:
                cache.release_pages()
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


def finite(rows: Rows) -> NDArray[np.bool_]:
    """(k,) bool of (k, ...) rows; by their bits, since NumPy's isfinite of float16 takes nine times as long."""
    if isinstance(rows, QuantisedRows):
        return rows.finite()
    exponent = EXPONENTS[rows.dtype.itemsize]
    bits = rows.reshape(len(rows), -1).view(f"<u{rows.dtype.itemsize}")
    largest: NDArray[np.unsignedinteger] = (bits & exponent).max(axis=1)
    return largest < exponent
