"""This machine alone: threads read and decode, the caller's thread runs the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from precompute.extraction.executors.base import Work
from precompute.extraction.executors.passes import EngineHere
from precompute.extraction.pipeline import Block, Claim, decoded_blocks
from precompute.extraction.timing import StageClock
from precompute.system import cores


class LocalExecutor(EngineHere):
    """workers: threads that read and decode, by default one for each core.

    Blocks come in the order of `Source.order`, a full batch at a time. At most two batches of decoded samples wait in
    memory next to those in the engine, and where samples have several shapes one more of each of the others.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = self.count = workers or cores()

    def decoded(
        self,
        work: Work,
        rows: NDArray[np.int64],
        claim: Claim | None,
        stop: Callable[[], object],
        clock: StageClock,
        keep: Callable[[int], bool] | None,
    ) -> Generator[Block, None, None]:
        """See `EngineHere`."""
        del keep  # each sample has memory of its own
        size, preprocess = work.decision.engine.batch_size, work.backbone.preprocess
        return decoded_blocks(work.source, rows, size, preprocess, self.count, claim, clock, stop)
