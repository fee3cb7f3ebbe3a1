"""This machine alone: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.passes import computed_blocks
from precompute.extraction.pipeline import Block, Claim, decoded_blocks
from precompute.extraction.timing import StageClock
from precompute.system import cores


class LocalExecutor(Executor):
    """workers: threads that read and decode, by default one for each core.

    Blocks come in the order of `Source.order`, a full batch at a time. At most two batches of decoded samples wait in
    memory beside those in the engine, and where samples have several shapes one more of each of the others.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers: int = workers or cores()

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
        decoded = decoded_blocks(work.source, rows, engine.batch_size, preprocess, self.workers, claim, clock, stop)
        return computed_blocks(decoded, engine, preprocess, clock, stop, keep)
