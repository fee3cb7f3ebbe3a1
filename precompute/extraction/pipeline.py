"""Samples -> features, in order, in bounded memory: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from precompute.engines.base import Engine
from precompute.errors import ImageError, SourceError
from precompute.extraction.timing import Stages
from precompute.inputs.images.decode import decode
from precompute.inputs.images.transform import Transform
from precompute.sources.folder import Listing, ascii_name, mtime_ns
from precompute.system import cores

MAX_FILE_BYTES = 2**30  # a gigabyte holds any picture below the pixel limit
BLOCK_SAMPLES = 4096  # images of known bytes and broken ones count here, too
Claim = Callable[[bytes, int], bool]


@dataclass(frozen=True)
class Decoded:
    """One sample after reading: pixels, or the error; neither where its bytes are already spoken for.

    read_seconds: waited for its bytes · decode_seconds: of processor time.
    """

    row: int
    digest: bytes
    size: int
    mtime: int
    pixels: torch.Tensor | None = None
    error: ImageError | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


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
    engine: Engine,
    transform: Transform,
    *,
    workers: int | None = None,
    claim: Claim | None = None,
    stop: Callable[[], object] | None = None,
    stages: Stages | None = None,
    keep: Callable[[int], bool] | None = None,
) -> Iterator[Block]:
    """Run the images of `rows` through the engine, a full batch at a time; blocks come in the order of `rows`.

    workers: threads that read and decode, by default one for each core.
    `claim(digest, row)` is asked by the workers before decoding; where it says False the row comes back under `same`.
    `stop()` is asked after each block; once it is true no further batch is begun, and those under way come out.
    At most two batches of decoded images wait in memory beside those in the engine. `stages` is told where the time
    goes. keep: rows whose pixels are still there when their features are.
    Raises SourceError where the whole source has gone away.
    """
    stages, stop, workers = stages or Stages(), stop or (lambda: False), workers or cores()
    stages.workers = workers
    under_way: deque[Block] = deque()
    batches = _batches(listing, rows, engine.batch_size, transform, workers, claim, stages)
    try:
        with contextlib.closing(batches) as blocks:
            for block in blocks:
                if len(under_way) == engine.depth:
                    yield _finish(under_way.popleft(), engine, stages)
                    if stop():
                        break
                _start(block, engine, stages, keep)
                under_way.append(block)
                if engine.depth == 1:  # it ran within `start`
                    yield _finish(under_way.popleft(), engine, stages)
                    if stop():
                        break
        while under_way:
            yield _finish(under_way.popleft(), engine, stages)
    finally:  # an engine that goes away while a batch is under way takes the process with it
        for block in under_way:
            _finish(block, engine, stages)


def _start(block: Block, engine: Engine, stages: Stages, keep: Callable[[int], bool] | None) -> None:
    if block.decoded:
        # With one batch at a time the forward pass itself runs within `start`
        with stages.main_thread("transfer") if engine.depth > 1 else contextlib.nullcontext():
            engine.start([item.pixels for item in block.decoded if item.pixels is not None])
        block.decoded = [  # the engine has its own copy
            item if keep is not None and keep(item.row) else replace(item, pixels=None) for item in block.decoded
        ]


def _finish(block: Block, engine: Engine, stages: Stages) -> Block:
    if block.decoded:
        began = time.perf_counter()
        block.features = engine.finish()
        stages.waited_engine += time.perf_counter() - began
    return block


def _batches(
    listing: Listing,
    rows: NDArray[np.int64],
    size: int,
    transform: Transform,
    workers: int,
    claim: Claim | None,
    stages: Stages,
) -> Generator[Block, None, None]:
    """Decoded images in blocks of `size`, with all that lies between them; the last one may have fewer.

    Where nothing is to be decoded, blocks end all the same, so that no more than BLOCK_SAMPLES wait.
    """
    block, folder = Block(), _identity(listing.root)
    with decode_threads(workers) as pool:
        pending: deque[Future[Decoded]] = deque()
        todo = iter(range(len(rows)))
        try:
            while True:
                while len(pending) < 2 * size + workers and (place := next(todo, None)) is not None:
                    pending.append(pool.submit(read, listing, int(rows[place]), transform, claim))
                if not pending:
                    break
                since = time.perf_counter()
                item = pending.popleft().result()
                stages.waited_images += time.perf_counter() - since
                stages.read += item.read_seconds
                stages.decode += item.decode_seconds
                _place(block, item, listing, folder)
                if len(block.decoded) == size or len(block) >= BLOCK_SAMPLES:
                    yield block
                    block = Block()
            if len(block):
                yield block
        finally:
            for future in pending:
                future.cancel()


def decode_threads(workers: int) -> ThreadPoolExecutor:
    """Threads that read and decode, each of which does its own work.

    Torch would resize each picture with a team of as many threads as there are cores, and those of one team spin while
    they wait: 52 ms of processor time an image in place of 2 on 16 cores. The number of threads is set for the decoding
    threads alone; `torch.set_num_threads` would set it for later threads of the program as well.
    """
    openmp = ThreadpoolController().select(user_api="openmp")

    def alone() -> None:
        torch.get_num_threads()  # sets the number of this thread, which would otherwise happen later
        openmp.limit(limits=1)

    return ThreadPoolExecutor(workers, thread_name_prefix="decode", initializer=alone)


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


def read(listing: Listing, row: int, transform: Transform, claim: Claim | None) -> Decoded:
    """Read, hash and decode one sample; what is wrong with it is returned, not raised."""
    digest, size, mtime = b"\0" * 32, int(listing.sizes[row]), int(listing.mtimes[row])
    began, waited, busy = time.perf_counter(), 0.0, 0.0
    pixels: torch.Tensor | None = None
    failed: ImageError | None = None
    try:
        data, size, mtime = read_file(listing.path(row))
        waited, busy = time.perf_counter() - began, time.thread_time()
        digest = hashlib.sha256(data).digest()
        if claim is None or claim(digest, row):
            pixels = decode(data, transform)
    except ImageError as error:
        failed = error
    busy = time.thread_time() - busy if busy else 0.0
    return Decoded(row, digest, size, mtime, pixels, failed, waited, busy)


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
            data: bytes | None = file.readall()  # None from a view of the kernel that has nothing to give just now
            if data is None:
                raise ImageError("not an ordinary file", reason="UNREADABLE")
            return data, status.st_size, mtime_ns(status)
    except OSError as error:
        reason = "VANISHED" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "UNREADABLE"
        raise ImageError(error.strerror or str(error), reason=reason) from error
