"""This machine, as its device wants it: threads read and decode, or processes where a GPU would wait for threads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import UsageError
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.executors.processes import ProcessExecutor
from precompute.extraction.pipeline import Block

PROCESSES_FROM = {"cuda": 5_000}
"""Rows from which processes repay the seconds that they take to start, by device; on others threads keep up.

With an H200 and 16 cores threads made 8,192 photos in 8.7 s and processes in 6.8 s, and after the start 1,495 and 3,988
a second (docs/performance.md): processes have caught up after some 3,500.
"""


class AutoExecutor(Executor):
    """workers: threads or processes that read and decode, by default one for each core.

    Processes for as many rows as `PROCESSES_FROM` says, unless pixels are decoded on the device. A source or
    preprocessing that cannot be sent to processes is left to threads, with a warning.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._processes: ProcessExecutor | None = None

    def blocks(self, work: Work, rows: NDArray[np.int64], **options: Any) -> Generator[Block, None, None]:
        """See `Executor`, whose options these are."""
        repaid = PROCESSES_FROM.get(work.decision.choice.kind, math.inf)
        if len(rows) >= repaid and not work.backbone.preprocess.uses_device:
            self._processes = self._processes or ProcessExecutor(self.workers)
            blocks = self._processes.blocks(work, rows, **options)
            with contextlib.closing(blocks):
                try:
                    first = next(blocks, None)
                except UsageError as error:
                    self.warnings = (
                        f"{error.message} Threads do that, which may keep {work.decision.choice.device} waiting.",
                    )
                else:
                    if first is not None:
                        yield first
                    yield from blocks
                    return
        yield from LocalExecutor(self.workers).blocks(work, rows, **options)

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.close()
