"""The checksum of a row: it binds the features to the image they came from and to what became of it."""

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
