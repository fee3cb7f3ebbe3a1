"""Files that may come from anyone: opened without waiting, and asked whether their size is what they hold."""

from __future__ import annotations

import os

SPARSE_BYTES, SPARSE_SHARE = 2**30, 8  # a file above the first, of which the disk holds less than this part


def open_without_waiting(path: str, flags: int) -> int:
    """For `open`: a named pipe opens at once, to be refused, instead of waiting for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def is_sparse(status: os.stat_result) -> bool:
    """Whether a large file claims bytes that were never written: it would take memory and time that it did not cost."""
    return status.st_size > SPARSE_BYTES and status.st_blocks * 512 * SPARSE_SHARE < status.st_size
