"""The checksum of a row: it binds the features to the image they came from and to what became of it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def row_checksum(digest: bytes, status: int, row: bytes | memoryview) -> int:
    """First 8 bytes, little-endian, of SHA-256(digest || status || row); 1 where that is 0, as 0 means "not there".

    digest: the 32 bytes of /samples/digest · status: the byte of /samples/status · row: the stored bytes.
    """
    state = hashlib.sha256(digest)
    state.update(bytes((status,)))
    state.update(row)
    return int.from_bytes(state.digest()[:8], "little") or 1


def row_checksums(
    digests: NDArray[np.uint8], statuses: NDArray[np.uint8], rows: NDArray[np.floating]
) -> NDArray[np.uint64]:
    """`row_checksum` for each of (k, 32) digests, (k,) statuses and (k, ...) rows, as (k,) uint64."""
    return np.array(
        [
            row_checksum(digest.tobytes(), int(status), row.tobytes())
            for digest, status, row in zip(digests, statuses, rows, strict=True)
        ],
        dtype=np.uint64,
    )
