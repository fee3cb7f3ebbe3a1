"""Checksums: of a row, which bind its features to the image they came from, of the table of names and labels, and of
further columns."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from precompute.cache.quantised import QuantisedRows, Rows

_HEADER = np.dtype([("digest", "u1", 32), ("size", "<i8"), ("mtime", "<i8"), ("status", "u1")])  # packed: 49 bytes


def row_checksum(digest: bytes, size: int, mtime: int, status: int, row: bytes | memoryview) -> int:
    """XXH3 (64 bits) of the row, seeded with XXH3 of (digest || size || mtime || status); 1 where that is 0.

    digest: the 32 bytes of /samples/digest · size, mtime: as 8 bytes each, little-endian · status: one byte · row: the
    stored bytes, of 8 bits codes and then scales. Size and mtime are in it because a file with both unchanged is taken
    for the one of the row.
    """
    return xxh3_64_intdigest(row, xxh3_64_intdigest(digest + struct.pack("<qqB", size, mtime, status))) or 1


def row_checksums(
    digests: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    mtimes: NDArray[np.int64],
    statuses: NDArray[np.uint8],
    rows: Rows,
) -> NDArray[np.uint64]:
    """`row_checksum` of (k, 32) digests, (k,) sizes, mtimes and statuses, and (k, ...) rows, as (k,) uint64.

    It holds the interpreter's lock, as xxhash does: threads take turns here.
    Raises ValueError where one of them is missing for some rows.
    """
    if {len(digests), len(sizes), len(mtimes), len(statuses)} - {len(rows)}:
        raise ValueError(
            f"Every row needs its digest, size, time and status. Got {len(rows)} rows, {len(digests)} digests."
        )
    headers = np.empty(len(rows), dtype=_HEADER)
    headers["digest"], headers["size"], headers["mtime"], headers["status"] = digests, sizes, mtimes, statuses
    # No line of Python between two rows: it would take as long as to hash one of them.
    seeds = map(xxh3_64_intdigest, headers.view(f"V{_HEADER.itemsize}").tolist())
    sums = np.fromiter(map(xxh3_64_intdigest, _bytes_of_each(rows), seeds), dtype=np.uint64, count=len(rows))
    sums[sums == 0] = 1
    return sums


def _bytes_of_each(stored: Rows) -> list[memoryview]:
    """The stored bytes of each row, without a copy except for those of 8 bits, which are in two places."""
    rows = stored.stored_bytes() if isinstance(stored, QuantisedRows) else stored
    data, width = bytes_of(rows), rows.nbytes // max(1, len(rows))
    return [data[start : start + width] for start in range(0, len(rows) * width, width or 1)]


def bytes_of(values: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array as they are in memory, without a copy; copied where it is not contiguous."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def table_digest(
    ids: NDArray[np.bytes_], labels: NDArray[np.int32], splits: NDArray[np.uint8], classes: NDArray[np.bytes_]
) -> str:
    """SHA-256, as 64 hexadecimal digits, of what never changes in a file: names, labels, splits and classes.

    Over one line of ASCII, `N width K width`, then the bytes of the columns as they are stored.
    """
    state = hashlib.sha256(f"{len(ids)} {ids.dtype.itemsize} {len(classes)} {classes.dtype.itemsize}\n".encode())
    for column in (ids, labels, splits, classes):
        state.update(bytes_of(column) if len(column) else b"")
    return state.hexdigest()


def column_digest(name: str, values: NDArray[Any]) -> str:
    """SHA-256, as 64 hexadecimal digits, of a further column, whose name is given without `columns/`.

    Over one line of UTF-8, `type shape name`, then its bytes as they are stored. The type is `uint8`, `int64`,
    `float32`, `float64`, or `bytes13` for strings of 13 bytes; the shape `6` or `6,2`.
    """
    kind = f"bytes{values.dtype.itemsize}" if values.dtype.kind == "S" else values.dtype.name
    state = hashlib.sha256(f"{kind} {','.join(map(str, values.shape))} {name}\n".encode())
    state.update(bytes_of(values))
    return state.hexdigest()
