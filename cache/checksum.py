"""Checksums: of a row, which bind its features to the image they came from, and of the table of names and labels."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray


def row_checksum(digest: bytes, size: int, mtime: int, status: int, row: bytes | memoryview) -> int:
    """First 8 bytes, little-endian, of SHA-256(digest || size || mtime || status || row); 1 where that is 0.

    digest: the 32 bytes of /samples/digest · size, mtime: as 8 bytes each, little-endian · status: one byte · row: the
    stored bytes. Size and mtime are in it because a file with both unchanged is taken for the one of the row.
    """
    state = hashlib.sha256(digest)
    state.update(struct.pack("<qqB", size, mtime, status))
    state.update(row)
    return int.from_bytes(state.digest()[:8], "little") or 1


def row_checksums(
    digests: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    mtimes: NDArray[np.int64],
    statuses: NDArray[np.uint8],
    rows: NDArray[np.floating],
) -> NDArray[np.uint64]:
    """`row_checksum` of (k, 32) digests, (k,) sizes, mtimes and statuses, and (k, ...) rows, as (k,) uint64."""
    columns = zip(digests, sizes.tolist(), mtimes.tolist(), statuses.tolist(), np.ascontiguousarray(rows), strict=True)
    return np.array(
        [
            row_checksum(digest.tobytes(), size, mtime, status, row.tobytes())
            for digest, size, mtime, status, row in columns
        ],
        dtype=np.uint64,
    )


def table_digest(
    ids: NDArray[np.bytes_], labels: NDArray[np.int32], splits: NDArray[np.uint8], classes: NDArray[np.bytes_]
) -> str:
    """SHA-256, as 64 hexadecimal digits, of what never changes in a file: names, labels, splits and classes.

    Over one line of ASCII, `N width K width`, then the bytes of the columns as they are stored.
    """
    state = hashlib.sha256(f"{len(ids)} {ids.dtype.itemsize} {len(classes)} {classes.dtype.itemsize}\n".encode())
    for column in (ids, labels, splits, classes):
        state.update(np.ascontiguousarray(column).view(np.uint8).data if len(column) else b"")
    return state.hexdigest()
