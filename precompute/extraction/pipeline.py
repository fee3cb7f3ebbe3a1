"""Samples -> features, in order, in bounded memory: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from precompute.engines.base import Engine, Features, Tensors
from precompute.errors import ImageError, SourceError
from precompute.extraction.timing import Stages
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system import cores

BLOCK_SAMPLES = 4096  # images of known bytes and broken ones count here, too
Claim = Callable[[bytes, int], bool]


@dataclass(frozen=True)
class Decoded:
    """One sample after reading: its tensors, or the error; neither where its bytes are already spoken for.

    read_seconds: waited for its bytes · decode_seconds: of processor time.
    """

    row: int
    digest: bytes
    size: int
    mtime: int
    tensors: Tensors | None = None
    error: ImageError | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass
class Block:
    """Finished samples, in order. failed: with their errors · same: rows whose bytes have been seen before."""

    decoded: list[Decoded] = field(default_factory=list)
    features: Features | None = None
    failed: list[Decoded] = field(default_factory=list)
    same: list[Decoded] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decoded) + len(self.failed) + len(self.same)


def forward(
    source: Source,
    rows: NDArray[np.int64],
    engine: Engine,
    preprocess: Preprocess,
    *,
    workers: int | None = None,
    claim: Claim | None = None,
    stop: Callable[[], object] | None = None,
    stages: Stages | None = None,
    keep: Callable[[int], bool] | None = None,
) -> Iterator[Block]:
    """Run the samples of `rows` through the engine, a full batch at a time; blocks come in the order of `Source.order`.

    workers: threads that read and decode, by default one for each core.
    `claim(digest, row)` is asked by the workers before decoding; where it says False the row comes back under `same`.
    `stop()` is asked after each block; once it is true no further batch is begun, and those under way come out.
    At most two batches of decoded images wait in memory beside those in the engine. `stages` is told where the time
    goes. keep: rows whose tensors are still there when their features are.
    Raises SourceError where the whole source has gone away.
    """
    stages, stop, workers = stages or Stages(), stop or (lambda: False), workers or cores()
    stages.workers = workers
    under_way: deque[Block] = deque()
    batches = _batches(source, rows, engine.batch_size, preprocess, workers, claim, stages)
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
            engine.start([item.tensors for item in block.decoded if item.tensors is not None])
        block.decoded = [  # the engine has its own copy
            item if keep is not None and keep(item.row) else replace(item, tensors=None) for item in block.decoded
        ]


def _finish(block: Block, engine: Engine, stages: Stages) -> Block:
    if block.decoded:
        began = time.perf_counter()
        block.features = engine.finish()
        stages.waited_engine += time.perf_counter() - began
    return block


def _batches(
    source: Source,
    rows: NDArray[np.int64],
    size: int,
    preprocess: Preprocess,
    workers: int,
    claim: Claim | None,
    stages: Stages,
) -> Generator[Block, None, None]:
    """Decoded images in blocks of `size`, with all that lies between them; the last one may have fewer.

    Where nothing is to be decoded, blocks end all the same, so that no more than BLOCK_SAMPLES wait.
    """
    block = Block()
    with decode_threads(workers) as pool:
        pending: deque[Future[Decoded]] = deque()
        todo = (row for part in source.order(rows) for row in part.tolist())
        try:
            while True:
                while len(pending) < 2 * size + workers and (row := next(todo, None)) is not None:
                    pending.append(pool.submit(read, source, row, preprocess, claim))
                if not pending:
                    break
                since = time.perf_counter()
                item = pending.popleft().result()
                stages.waited_images += time.perf_counter() - since
                stages.read += item.read_seconds
                stages.decode += item.decode_seconds
                _place(block, item, source)
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


def _place(block: Block, item: Decoded, source: Source) -> None:
    if item.error is not None:
        if item.error.reason in ("VANISHED", "UNREADABLE") and not source.alive():
            raise SourceError(
                f"The source {source.name} went away while it was being read.",
                hint="Everything computed so far is kept. Bring the source back and run the same command again.",
            )
        block.failed.append(item)
    elif item.tensors is None:
        block.same.append(item)
    else:
        block.decoded.append(item)


def read(source: Source, row: int, preprocess: Preprocess, claim: Claim | None) -> Decoded:
    """Read, hash and decode one sample; what is wrong with it is returned, not raised."""
    digest, size, mtime = b"\0" * 32, int(source.table.sizes[row]), int(source.table.mtimes[row])
    began, waited, busy = time.perf_counter(), 0.0, 0.0
    tensors: Tensors | None = None
    failed: ImageError | None = None
    try:
        raw = source.read(row)
        size, mtime = raw.size, raw.mtime
        waited, busy = time.perf_counter() - began, time.thread_time()
        digest = hashlib.sha256(raw.data).digest()
        if claim is None or claim(digest, row):
            tensors = preprocess.host(raw.data)
    except ImageError as error:
        failed = error
    busy = time.thread_time() - busy if busy else 0.0
    return Decoded(row, digest, size, mtime, tensors, failed, waited, busy)
