"""This machine alone: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from precompute.engines.base import Engine
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.pipeline import Block, Claim, decoded_blocks
from precompute.extraction.timing import StageClock
from precompute.system import cores


class LocalExecutor(Executor):
    """workers: threads that read and decode, by default one for each core.

    Blocks come in the order of `Source.order`, a full batch at a time. At most two batches of decoded samples wait in
    memory beside those in the engine.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()

    def blocks(
        self,
        work: Work,
        rows: NDArray[np.int64],
        *,
        claim: Claim | None = None,
        stop: Callable[[], object] | None = None,
        clock: StageClock | None = None,
        keep: Callable[[int], bool] | None = None,
    ) -> Generator[Block, None, None]:
        engine, preprocess = work.decision.engine, work.backbone.preprocess
        clock, stop = clock or StageClock(), stop or (lambda: False)
        clock.workers = self.workers
        under_way: deque[Block] = deque()
        decoded = decoded_blocks(work.source, rows, engine.batch_size, preprocess, self.workers, claim, clock)
        try:
            with contextlib.closing(decoded):
                for block in decoded:
                    if len(under_way) == engine.depth:
                        yield _finish(under_way.popleft(), engine, clock)
                        if stop():
                            break
                    _start(block, engine, clock, keep)
                    under_way.append(block)
                    if engine.depth == 1:  # it ran within `start`
                        yield _finish(under_way.popleft(), engine, clock)
                        if stop():
                            break
            while under_way:
                yield _finish(under_way.popleft(), engine, clock)
        finally:  # an engine that goes away while a batch is under way takes the process with it
            for block in under_way:
                _finish(block, engine, clock)


def _start(block: Block, engine: Engine, clock: StageClock, keep: Callable[[int], bool] | None) -> None:
    if block.decoded:
        # With one batch at a time the forward pass itself runs within `start`
        with clock.main_thread("transfer") if engine.depth > 1 else contextlib.nullcontext():
            engine.start([item.tensors for item in block.decoded if item.tensors is not None])
        block.decoded = [  # the engine has its own copy
            item if keep is not None and keep(item.row) else replace(item, tensors=None) for item in block.decoded
        ]


def _finish(block: Block, engine: Engine, clock: StageClock) -> Block:
    if block.decoded:
        began = time.perf_counter()
        block.features = engine.finish()
        clock.waited_engine += time.perf_counter() - began
    return block
