"""Samples -> features, in order, in bounded memory: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.decode import decode
from precompute.engine import TorchEngine
from precompute.errors import ImageError, SourceError
from precompute.sources import Listing, ascii_name
from precompute.transform import Transform

MAX_FILE_BYTES = 2**30  # a gigabyte holds any picture below the pixel limit
Claim = Callable[[bytes, int], bool]


@dataclass(frozen=True)
class Decoded:
    """One sample after reading: pixels, or the error; neither where its bytes are already spoken for."""

    row: int
    digest: bytes
    size: int
    mtime: int
    pixels: torch.Tensor | None = None
    error: ImageError | None = None


@dataclass
class Block:
    """Finished samples, in order. failed: with their errors · same: rows whose bytes have been seen before."""

    decoded: list[Decoded] = field(default_factory=list)
    features: NDArray[np.float32] | None = None
    failed: list[Decoded] = field(default_factory=list)
    same: list[Decoded] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decoded) + len(self.failed) + len(self.same)


def forward(
    listing: Listing,
    rows: NDArray[np.int64],
    engine: TorchEngine,
    transform: Transform,
    *,
    workers: int,
    claim: Claim | None = None,
) -> Iterator[Block]:
    """Run the images of `rows` through the engine, a full batch at a time.

    `claim(digest, row)` is asked by the workers before decoding; where it says False the row comes back under `same`.
    At most two batches of decoded images wait in memory. Raises SourceError where the whole source has gone away.
    """
    block, folder = Block(), _identity(listing.root)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[Future[Decoded]] = deque()
        todo = iter(rows.tolist())
        try:
            while True:
                while len(pending) < 2 * engine.batch_size + workers and (row := next(todo, None)) is not None:
                    pending.append(pool.submit(read, listing, row, transform, claim))
                if not pending:
                    break
                _place(block, pending.popleft().result(), listing, folder)
                if len(block.decoded) == engine.batch_size:
                    yield _run(block, engine)
                    block = Block()
            if len(block):
                yield _run(block, engine)
        finally:
            for future in pending:
                future.cancel()


def _identity(path: bytes) -> tuple[int, int] | None:
    """Which folder or file lies there: of a disk that was unmounted only the empty mount point is left."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _place(block: Block, item: Decoded, listing: Listing, folder: tuple[int, int] | None) -> None:
    if item.error is not None:
        if item.error.reason in ("VANISHED", "UNREADABLE") and (folder is None or _identity(listing.root) != folder):
            root = ascii_name(os.fsdecode(listing.root))
            raise SourceError(
                f"The source {root} went away while it was being read.",
                hint="Everything computed so far is kept. Bring the source back and run the same command again.",
            )
        block.failed.append(item)
    elif item.pixels is None:
        block.same.append(item)
    else:
        block.decoded.append(item)


def _run(block: Block, engine: TorchEngine) -> Block:
    if block.decoded:
        block.features = engine([item.pixels for item in block.decoded if item.pixels is not None])
    return block


def read(listing: Listing, row: int, transform: Transform, claim: Claim | None) -> Decoded:
    """Read, hash and decode one sample; what is wrong with it is returned, not raised."""
    digest, size, mtime = b"\0" * 32, int(listing.sizes[row]), int(listing.mtimes[row])
    try:
        data, size, mtime = read_file(listing.path(row))
        digest = hashlib.sha256(data).digest()
        if claim is not None and not claim(digest, row):
            return Decoded(row, digest, size, mtime)
        return Decoded(row, digest, size, mtime, pixels=decode(data, transform))
    except ImageError as error:
        return Decoded(row, digest, size, mtime, error=error)


def read_file(path: bytes) -> tuple[bytes, int, int]:
    """(bytes, size, mtime in ns) of one file, the last two from before its bytes were read.

    Raises ImageError with the reason VANISHED or UNREADABLE; a FIFO or device that took the file's place is not read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not an ordinary file", reason="UNREADABLE")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(f"{status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}", reason="UNREADABLE")
            return file.readall(), status.st_size, status.st_mtime_ns
    except OSError as error:
        reason = "VANISHED" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "UNREADABLE"
        raise ImageError(error.strerror or str(error), reason=reason) from error
