"""Samples -> tensors, in order, in bounded memory: what an executor does in front of its engine."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from precompute.engines.base import Features, Tensors
from precompute.errors import BackboneError, SampleError, SourceError
from precompute.extraction.read_ahead import read_ahead
from precompute.extraction.timing import StageClock
from precompute.inputs.base import Preprocess, Shape, shape_of
from precompute.sources.base import Raw, Source

STOP_SECONDS = 0.5  # of a sample that does not come, after which the end of the run is asked about
BLOCK_SAMPLES = 4096  # samples of known bytes and broken ones count here, too
MOST_PASSES = 8  # of a block, so that the inputs that wait for its last one stay few
Claim = Callable[[bytes, int], bool]


@dataclass(frozen=True)
class Decoded:
    """One sample after reading: its tensors, or the error; neither where its bytes are already spoken for.

    tensors: of its plain view · further: of each view after that, where there are several · weights: what each of these
    counts where they are not views but windows of it, see `Inputs` · read_seconds: waited for its bytes ·
    decode_seconds: of processor time · cut: its end was left out.
    """

    row: int
    digest: bytes
    size: int
    mtime: int
    tensors: Tensors | None = None
    error: SampleError | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    further: tuple[Tensors, ...] = ()
    weights: tuple[float, ...] | None = None
    cut: bool = False

    @property
    def inputs(self) -> tuple[Tensors, ...]:
        """The tensors of each of its views or windows; empty where there are none."""
        return () if self.tensors is None else (self.tensors, *self.further)

    def with_own_memory(self) -> Decoded:
        """The same, with copies of its tensors."""
        own = [tuple(one.clone() for one in each) for each in self.inputs]
        return replace(self, tensors=own[0], further=tuple(own[1:])) if own else self

    def without_tensors(self) -> Decoded:
        """The same, once an engine has its own copy."""
        return replace(self, tensors=None, further=())


@dataclass
class Block:
    """Finished samples. decoded: of one shape, a row of `features` each · failed: with their errors · same: bytes seen
    before.

    features: for each tap (n, *shape), or (n, views, *shape) where there are several views.
    """

    decoded: list[Decoded] = field(default_factory=list)
    features: Features | None = None
    failed: list[Decoded] = field(default_factory=list)
    same: list[Decoded] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decoded) + len(self.failed) + len(self.same)

    def add(self, item: Decoded, source: Source) -> None:
        """Put `item` where it belongs. Raises SourceError where it failed because all of `source` has gone away."""
        if item.error is not None:
            if item.error.reason in ("VANISHED", "UNREADABLE") and not source.alive():
                raise SourceError(
                    f"The source {source.name} disappeared while it was being read.",
                    hint="Everything computed so far is kept. Bring the source back and run the same command again.",
                )
            self.failed.append(item)
        elif item.tensors is None:
            self.same.append(item)
        else:
            self.decoded.append(item)


def decoded_blocks(
    source: Source,
    rows: NDArray[np.int64],
    size: int,
    preprocess: Preprocess,
    workers: int,
    claim: Claim | None,
    clock: StageClock,
    stop: Callable[[], object] | None = None,
) -> Generator[Block, None, None]:
    """Decoded samples in blocks for forward passes of `size` inputs each, with all that is between them.

    A block holds as many samples as fill whole passes with all of their views; the last one may have fewer. They
    come in the order of `Source.order`, read and decoded by `workers` threads; for `claim` see `Executor`. Where
    nothing is to be decoded, blocks end all the same, so that no more than BLOCK_SAMPLES wait. Where samples have
    several shapes (see `Preprocess.examples`), each shape has its own blocks, and those of a rare one come late.
    `stop` is asked while a sample does not come, as from a network that does not answer: then those that have come are
    the last.
    Raises SourceError where the whole source has gone away, BackboneError for a shape that is none of those.
    """
    blocks = OpenBlocks(preprocess, size, source)
    views = 1 if preprocess.merges else preprocess.views
    waiting = max(2 * -(-size // views) + workers, source.reads_at_once)
    windows = _Windows(MOST_PASSES * size)
    try:
        with read_ahead(source) as ahead, decode_threads(workers) as pool:
            pending: deque[Future[Decoded]] = deque()
            numbers = count()
            todo = (row for part in source.order(rows) for row in part.tolist())
            try:
                while True:
                    while len(pending) < waiting and (row := next(todo, None)) is not None:
                        ahead.begin(row)
                        pending.append(pool.submit(windows.read, next(numbers), ahead, row, preprocess, claim))
                    if not pending:
                        break
                    since = time.perf_counter()
                    item = _outcome(pending.popleft(), stop)
                    if item is None:
                        break
                    windows.taken(item)
                    clock.waited_images += time.perf_counter() - since
                    clock.read += item.read_seconds
                    clock.decode += item.decode_seconds
                    if (block := blocks.add(item)) is not None:
                        yield block
                yield from blocks.rest()
            finally:
                for future in pending:
                    future.cancel()
                windows.close()
                source.patient(False)  # what is still being read is not needed any more
    finally:
        source.patient(True)


class _Windows:
    """How many windows of decoded samples wait for a forward pass: a clip has as many as it is long.

    most: with so many waiting no further sample is read, except the next one. Samples are numbered in the
    order in which they are taken.
    """

    def __init__(self, most: int) -> None:
        self._most, self._waiting, self._next = most, 0, 0
        self._changed = threading.Condition()
        self._closed = False

    def read(self, number: int, source: Source, row: int, preprocess: Preprocess, claim: Claim | None) -> Decoded:
        """What the function `read` gives, once there is room for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < self._most or number <= self._next or self._closed)
        item = read(source, row, preprocess, claim)
        with self._changed:
            self._waiting += len(item.weights or ())
        return item

    def taken(self, item: Decoded) -> None:
        """It does not wait any more."""
        with self._changed:
            self._waiting -= len(item.weights or ())
            self._next += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody takes any more: release what waits for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class OpenBlocks:
    """Blocks that are not full yet, one for each shape that samples come in. size: inputs of a forward pass.

    full: decoded samples of a whole one, where all have as many inputs.
    """

    def __init__(self, preprocess: Preprocess, size: int, source: Source) -> None:
        self._open = {shape_of(example): Block() for example in preprocess.examples()}
        self._only = next(iter(self._open)) if len(self._open) == 1 else None
        self._merges, self._size, self._source = preprocess.merges, size, source
        self._full = samples_at_once(size, preprocess.views)

    def add(self, item: Decoded) -> Block | None:
        """Put `item` into its block; that block, once it is full. Raises SourceError, see `Block.add`."""
        shape = self._only or self._shape(item)
        block = self._open[shape]
        block.add(item, self._source)
        if not self._is_full(block) and len(block) < BLOCK_SAMPLES:
            return None
        self._open[shape] = Block()
        return block

    def _is_full(self, block: Block) -> bool:
        if not self._merges:
            return len(block.decoded) >= self._full
        inputs = sum(len(item.inputs) for item in block.decoded)
        return inputs > 0 and (inputs % self._size == 0 or inputs >= MOST_PASSES * self._size)

    def rest(self) -> Iterator[Block]:
        """Those that are not full, at the end."""
        yield from (block for block in self._open.values() if len(block))

    def _shape(self, item: Decoded) -> Shape:
        """Of a sample without tensors that of the block which will be full first, so that it does not wait for long."""
        if item.tensors is None:
            return max(self._open, key=lambda shape: len(self._open[shape].decoded))
        shape = shape_of(item.tensors)
        if shape not in self._open or any(shape_of(view) != shape for view in item.further):
            raise BackboneError(
                f"The preprocessing of the backbone made tensors of {shape} of sample {item.row}, which is none of the "
                "shapes that it names, or not that of another view.",
                hint="Let its `examples` name each shape that `host` gives.",
            )
        return shape


def _outcome(future: Future[Decoded], stop: Callable[[], object] | None) -> Decoded | None:
    """The sample; None where a stop is requested before it comes."""
    while True:
        try:
            return future.result(STOP_SECONDS)
        except TimeoutError:
            if future.done():  # in the last moment
                return future.result()
            if stop is not None and stop():
                return None


def samples_at_once(size: int, views: int) -> int:
    """The fewest samples whose views fill forward passes of `size` inputs, or nearly so where those would be many."""
    return min(size // math.gcd(size, views), max(1, MOST_PASSES * size // views))


def decode_threads(workers: int) -> ThreadPoolExecutor:
    """Threads that read and decode, each of which does its own work.

    Torch would resize each picture with a team of as many threads as there are cores, and those of one team spin while
    they wait: 52 ms of processor time an image instead of 2 on 16 cores. The number of threads is set for the decoding
    threads alone; `torch.set_num_threads` would set it for later threads of the program as well.
    """
    openmp = ThreadpoolController().select(user_api="openmp")

    def alone() -> None:
        torch.get_num_threads()  # sets the number of this thread, which would otherwise happen later
        openmp.limit(limits=1)

    return ThreadPoolExecutor(workers, thread_name_prefix="decode", initializer=alone)


def hashed(source: Source, row: int) -> tuple[Decoded, Raw | None]:
    """One sample read and hashed, and its bytes; where it cannot be read the error, with the stamps of the listing."""
    try:
        raw = source.read(row)
    except SampleError as error:
        return Decoded(row, b"\0" * 32, int(source.table.sizes[row]), int(source.table.mtimes[row]), error=error), None
    return Decoded(row, hashlib.sha256(raw.data).digest(), raw.size, raw.mtime), raw


def read(source: Source, row: int, preprocess: Preprocess, claim: Claim | None) -> Decoded:
    """Read, hash and decode one sample; what is wrong with it is returned, not raised."""
    digest, size, mtime = b"\0" * 32, int(source.table.sizes[row]), int(source.table.mtimes[row])
    began, waited, busy = time.perf_counter(), 0.0, 0.0
    tensors: tuple[Tensors, ...] = ()
    weights: tuple[float, ...] | None = None
    failed: SampleError | None = None
    cut = False
    try:
        raw = source.read(row)
        size, mtime = raw.size, raw.mtime
        waited, busy = time.perf_counter() - began, time.thread_time()
        digest = hashlib.sha256(raw.data).digest()
        if claim is None or claim(digest, row):
            made = preprocess.inputs(raw.data, digest)
            tensors, weights, cut = made.tensors, made.weights, made.cut
    except SampleError as error:
        failed = error
    busy = time.thread_time() - busy if busy else 0.0
    plain, further = (tensors[0], tensors[1:]) if tensors else (None, ())
    return Decoded(row, digest, size, mtime, plain, failed, waited, busy, further, weights, cut)
