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

PROCESSES_FROM = {"cuda": 20_000}
"""Rows from which processes repay the seconds that they take to start, by device; on others threads keep up.

With an H100 16 threads decoded 1,328 photos a second and 16 processes 4,292 (docs/performance.md), so that processes
have caught up after 2,000 photos for each second of start.
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
