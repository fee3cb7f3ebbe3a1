"""The forward passes of blocks of samples, which executors on one machine share."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from precompute.engines.base import Engine, Features
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.pipeline import Block, Claim
from precompute.extraction.timing import StageClock
from precompute.inputs.base import Preprocess


def computed_blocks(
    decoded: Generator[Block, None, None],
    engine: Engine,
    preprocess: Preprocess,
    clock: StageClock,
    stop: Callable[[], object],
    keep: Callable[[int], bool] | None,
) -> Generator[Block, None, None]:
    """Blocks of decoded samples with their features; see `Executor.blocks`. `decoded` is closed at the end.

    Once the next block of `decoded` is requested, the engine has its own copy of all tensors of the last one.
    """
    passes = Passes(engine, clock, keep, preprocess)
    stopped = False
    try:
        with contextlib.closing(decoded):
            for block in decoded:
                for done in passes.make_room():
                    yield done
                    stopped = stopped or bool(stop())
                if stopped:
                    break
                for done in passes.run(block):
                    yield done
                    stopped = stopped or bool(stop())
                if stopped:
                    break
        yield from passes.rest()
    finally:  # an engine that goes away while a batch is under way takes the process with it
        for _ in passes.rest():
            pass


class EngineHere(Executor):
    """An executor whose caller's thread runs the engine; how samples are read and decoded is a subclass's.

    count: of threads or processes that read and decode.
    """

    count: int

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
        """See `Executor`."""
        clock, stop = clock or StageClock(), stop or (lambda: False)
        clock.workers = self.count
        decoded = self.decoded(work, rows, claim, stop, clock, keep)
        return computed_blocks(decoded, work.decision.engine, work.backbone.preprocess, clock, stop, keep)

    @abstractmethod
    def decoded(
        self,
        work: Work,
        rows: NDArray[np.int64],
        claim: Claim | None,
        stop: Callable[[], object],
        clock: StageClock,
        keep: Callable[[int], bool] | None,
    ) -> Generator[Block, None, None]:
        """Blocks of decoded samples, see `blocks`. Once the next one is requested, the engine has its own copy."""


class Passes:
    """The forward passes of blocks, with as many in progress as the engine takes."""

    def __init__(
        self, engine: Engine, clock: StageClock, keep: Callable[[int], bool] | None, preprocess: Preprocess
    ) -> None:
        self._engine, self._clock, self._preprocess = engine, clock, preprocess
        self._keep = keep
        self._under_way: deque[tuple[Block, int, bool]] = deque()  # with its views, and whether it is the block's last
        self._parts: list[Features] = []  # of the block whose passes come out

    def make_room(self) -> Iterator[Block]:
        """What comes out so that another pass can begin."""
        if len(self._under_way) == self._engine.depth:
            yield from self._out()

    def run(self, block: Block) -> Iterator[Block]:
        """Begin all passes of `block`; what comes out meanwhile, of it or of those before it."""
        inputs = [one for item in block.decoded for one in item.inputs]
        views, size = len(inputs) // max(1, len(block.decoded)), self._engine.batch_size
        keep = self._keep
        block.decoded = [item if keep and keep(item.row) else item.without_tensors() for item in block.decoded]
        for left in range(max(1, -(-len(inputs) // size)) - 1, -1, -1):
            yield from self.make_room()
            if inputs:
                # With one batch at a time the forward pass itself runs within `start`
                apart = self._engine.depth > 1
                with self._clock.main_thread("transfer") if apart else contextlib.nullcontext():
                    self._engine.start(inputs[:size])
                del inputs[:size]  # the engine has its own copy
            self._under_way.append((block, views, not left))
            if self._engine.depth == 1:
                yield from self._out()

    def rest(self) -> Iterator[Block]:
        """Everything that is still in progress."""
        while self._under_way:
            yield from self._out()

    def _out(self) -> Iterator[Block]:
        """Finish the pass that began first; its block, where that was its last one."""
        block, views, last = self._under_way.popleft()
        if block.decoded:
            began = time.perf_counter()
            self._parts.append(self._engine.finish())
            self._clock.waited_engine += time.perf_counter() - began
        if not last:
            return
        if block.decoded:
            taps = zip(*self._parts, strict=True)
            if self._preprocess.merges:
                block.features = tuple(self._merged(tap, block) for tap in taps)
            else:
                block.features = tuple(_by_sample(tap, views) for tap in taps)
        self._parts = []
        yield block

    def _merged(self, parts: Sequence[NDArray[np.float32]], block: Block) -> NDArray[np.float32]:
        """The features of several passes, (inputs, *shape), as one row for each sample of the block."""
        whole, rows, start = np.concatenate(parts), list[NDArray[np.float32]](), 0
        for item in block.decoded:
            weights = item.weights or ()
            rows.append(self._preprocess.merge(whole[start : start + len(weights)], weights))
            start += len(weights)
        return np.stack(rows)


def _by_sample(parts: Sequence[NDArray[np.float32]], views: int) -> NDArray[np.float32]:
    """The features of several passes, (n * views, *shape), as (n, views, *shape); without that axis for one view."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole if views == 1 else whole.reshape(-1, views, *whole.shape[1:])
