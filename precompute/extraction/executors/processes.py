"""This machine alone: processes read and decode into shared memory, the caller's thread runs the engine.

Threads share one interpreter, which takes some 200 microseconds of each picture: no more than 4,000 a second, however
many cores there are. Here the process that drives the engine learns where in shared memory each sample lies, and that
is all it does. Which process decodes a sample changes no bit of it.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.extraction.executors.base import Work
from precompute.extraction.executors.crew import Crew
from precompute.extraction.executors.dispatch import TASKS_AT_ONCE, Dispatch, Result
from precompute.extraction.executors.launcher import Launcher
from precompute.extraction.executors.passes import EngineHere
from precompute.extraction.executors.slots import Layout
from precompute.extraction.pipeline import MOST_PASSES, Block, Claim, Decoded, OpenBlocks, samples_at_once
from precompute.extraction.timing import StageClock
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system import cores

TASK_INPUTS = 16  # a message for each costs the driver some 100 microseconds
TASK_BYTES = 32 * 2**20  # of samples that one process has read and not decoded yet


class ProcessExecutor(EngineHere):
    """workers: processes that read and decode, by default one for each core.

    They start with the first rows, which takes seconds, and stay for later calls with the same source and
    preprocessing, until `close`, or until nobody holds the executor any more. Source and preprocessing are pickled
    once, arrays in memory that all processes share. Blocks come in the order of `Source.order`. In memory are two tasks
    of each process, two batches, and what an unfinished block holds.
    A process that dies is replaced, and what it had is done again; a sample at which two of them died is UNDECODABLE,
    unless they were killed: that ends the run with a PrecomputeError. Raises UsageError for a source or preprocessing
    that cannot be pickled.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = self.count = workers or cores()
        self._crew: Crew | None = None
        self._launcher: Launcher | None = None

    def close(self) -> None:
        """End the processes. Rows that are requested later start others."""
        if self._crew is not None:
            self._crew.close()
        if self._launcher is not None:
            self._launcher.close()
        self._crew = self._launcher = None

    def _launch(self) -> Launcher:
        if self._launcher is None or not self._launcher.alive:
            self.close()
            self._launcher = Launcher()
            weakref.finalize(self, self._launcher.close)
        return self._launcher

    @contextlib.contextmanager
    def _crewed(self, layout: Layout, source: Source, preprocess: Preprocess, count: int) -> Iterator[Crew]:
        """`count` processes, those that are kept where they fit; kept for the next run where this one comes to its
        end."""
        launcher, whole = self._launch(), False
        crew = self._crew
        if crew is None or not crew.fits(layout, source, preprocess):
            if crew is not None:
                crew.close()
            crew = Crew(launcher, layout, source, preprocess)
        self._crew = None  # nobody else has it meanwhile
        try:
            crew.grow(count)
            yield crew
            whole = crew.at_rest and self._crew is None and self._launcher is launcher
        finally:
            if not whole:
                crew.close()
        if whole:
            self._crew = crew

    def decoded(
        self,
        work: Work,
        rows: NDArray[np.int64],
        claim: Claim | None,
        stop: Callable[[], object],
        clock: StageClock,
        keep: Callable[[int], bool] | None,
    ) -> Generator[Block, None, None]:
        """See `EngineHere`; the tensors of a block are memory of slots until the next one is requested."""
        if not len(rows):
            return
        source, preprocess, size = work.source, work.backbone.preprocess, work.decision.engine.batch_size
        examples, places = preprocess.examples(), max(TASK_INPUTS, preprocess.views)
        at_once = 1 if preprocess.merges else places // preprocess.views
        copies = preprocess.merges or len(examples) > 1  # blocks of rare shapes would hold their slots for long
        full = 0 if copies else math.ceil(2 * samples_at_once(size, preprocess.views) * preprocess.views / places) + 1
        slots = full + math.ceil(2 * size / places) + TASKS_AT_ONCE * self.count
        layout = Layout(examples, self.count, slots, places)
        most = MOST_PASSES * size if preprocess.merges else None
        blocks = OpenBlocks(preprocess, size, source)
        tasks, count = cut(source, rows, at_once), math.ceil(len(rows) / at_once)
        with (
            self._crewed(layout, source, preprocess, count) as crew,
            Dispatch(crew, tasks, claim, most, clock) as dispatch,
        ):
            lent = _Lent(dispatch, copies, keep)
            for result in dispatch.results(stop):
                for item in lent.items(result):
                    if (block := blocks.add(item)) is not None:
                        begun = lent.taken(block)
                        yield block
                        lent.over(begun)
            for block in blocks.rest():
                begun = lent.taken(block)
                yield block
                lent.over(begun)


class _Lent:
    """The slots whose memory the samples of unfinished blocks are in.

    A slot of which less than a half is used is given back at once, and its samples are copied: those of an unfinished
    block could otherwise hold all slots, and none would be left to finish it.
    """

    def __init__(self, dispatch: Dispatch, copies: bool, keep: Callable[[int], bool] | None) -> None:
        self._dispatch, self._copies, self._keep = dispatch, copies, keep
        self._slot_of: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def items(self, result: Result) -> Iterator[Decoded]:
        slot, places = result.slot, self._dispatch.crew.layout.places
        copies, count = self._copies or 2 * result.inputs < places, 0
        items = list[Decoded]()
        for row, digest, size, mtime, inputs, error, weights, cut in result.found:
            tensors = [self._tensors(slot, *one, copies=copies) for one in inputs or ()]
            plain, further = (tensors[0], tuple(tensors[1:])) if tensors else (None, ())
            items.append(Decoded(row, digest, size, mtime, plain, error, 0.0, 0.0, further, weights, cut))
            if tensors and not copies:
                self._slot_of[row] = slot
                count += 1
        if count:
            self._left[slot] = count
        else:
            self._dispatch.give_back(slot)
        return iter(items)

    def _tensors(self, slot: int, place: int, number: object, *, copies: bool) -> tuple[torch.Tensor, ...]:
        if place < 0:
            return tuple(torch.from_numpy(np.array(one)) for one in number)  # type: ignore[attr-defined]
        found = self._dispatch.crew.slots.tensors(slot, place, number)  # type: ignore[arg-type]
        return tuple(one.clone() for one in found) if copies else found

    def taken(self, block: Block) -> list[int]:
        """The slots in which the samples of `block` are, one for each; those that are kept get memory of their own."""
        if self._copies:
            return []
        if self._keep is not None:
            for place, item in enumerate(block.decoded):
                if self._keep(item.row):
                    block.decoded[place] = item.with_own_memory()
        return [slot for item in block.decoded if (slot := self._slot_of.pop(item.row, None)) is not None]

    def over(self, slots: list[int]) -> None:
        """The engine has its own copy of these samples."""
        for slot in slots:
            self._left[slot] -= 1
            if not self._left[slot]:
                del self._left[slot]
                self._dispatch.give_back(slot)


def cut(source: Source, rows: NDArray[np.int64], at_once: int) -> Iterator[list[int]]:
    """`rows` in the order of the source, in tasks of at most `at_once` samples, fewer where they are large."""
    sizes = source.table.sizes
    for part in source.order(rows):
        task, taken = list[int](), 0
        for row, size in zip(part.tolist(), sizes[part].tolist(), strict=True):
            if task and (len(task) == at_once or taken + size > TASK_BYTES):
                yield task
                task, taken = [], 0
            task.append(row)
            taken += max(0, size)
        if task:
            yield task
