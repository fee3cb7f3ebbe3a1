"""The blocks of one run over actors of Ray: which rows go out to whom, what comes back, and what goes out again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import DeviceError, PrecomputeError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.ray_actor import Computed
from precompute.extraction.executors.ray_pool import Member, RayPool
from precompute.extraction.pipeline import STOP_SECONDS, Block, Claim, Decoded, samples_at_once
from precompute.extraction.timing import StageClock
from precompute.sources.base import Source

UNDER_WAY = 3  # blocks of one actor: one that is computed, one that is read, one whose features are fetched
MOST_BATCHES = 16  # of a block: its first batch is decoded and its last computed with nothing beside them
LEAST_BLOCKS = 8  # of each actor, where there are so many batches, so that all end at about the same time
FEATURE_BYTES, SAMPLE_BYTES = 32 * 2**20, 128 * 2**20  # of a block, unless one batch has more
MOST_LOSSES = 8  # of one block, by actors that died with it
CLOSE_SECONDS = 60.0


@dataclass
class _Part:
    """Rows that go out together. losses: how often with an actor that died · looked: their bytes are known · forget:
    rows that were looked at with them and are not wanted.
    """

    rows: NDArray[np.int64]
    losses: int = 0
    looked: bool = False
    forget: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """One that is in progress."""

    member: Member
    part: _Part


class Flow:
    """The blocks of one run."""

    def __init__(
        self,
        pool: RayPool,
        work: Work,
        rows: NDArray[np.int64],
        number: int,
        claim: Claim | None,
        keep: Callable[[int], bool] | None,
        clock: StageClock,
    ) -> None:
        self._pool, self._source, self._number = pool, work.source, number
        self._claim, self._keep, self._clock = claim, keep, clock
        self._fresh = parts(work, rows, len(pool.members))
        self._again: deque[_Part] = deque()  # of actors that were lost
        self._calls: dict[Any, _Call] = {}
        self._halted = False

    def run(self, stop: Callable[[], object]) -> Iterator[Block]:
        """Finished blocks, until there are no more, or `stop()` is true and what was in progress has come out."""
        while True:
            self._pool.look_around()
            if not self._pool.up:
                self._ask(stop)
            if not self._halted:
                self._hand_out()
            if not self._calls:
                if self._halted or not self._waiting():
                    return
                self._pool.wait()  # for actors that start; raises where there are none
            for ref in self._pool.done(list(self._calls), STOP_SECONDS):
                yield from self._outcome(ref)
                self._ask(stop)
            self._ask(stop)

    def end(self) -> None:
        """Nothing is in progress any more."""
        if self._calls:
            self._halt()
            self._pool.settle(list(self._calls), CLOSE_SECONDS)
            self._calls.clear()
        for member in self._pool.members:
            member.under_way = 0

    def _ask(self, stop: Callable[[], object]) -> None:
        if not self._halted and stop():
            self._halt()

    def _halt(self) -> None:
        self._halted = True
        for member in self._pool.up:
            member.call("halt", self._number)

    def _waiting(self) -> bool:
        """Whether rows are left to pass on."""
        if not self._again and (part := next(self._fresh, None)) is not None:
            self._again.append(part)
        return bool(self._again)

    def _hand_out(self) -> None:
        """Blocks to actors that have fewer than they may, those with the fewest first."""
        while ready := [one for one in self._pool.up if one.under_way < UNDER_WAY]:
            if not self._waiting():
                return
            member = min(ready, key=lambda one: one.under_way)
            member.under_way += 1
            part = self._again.popleft()
            if self._claim is None:
                self._compute(member, part)
            else:
                self._calls[member.call("look", part.rows, self._number)] = _Call(member, part)

    def _compute(self, member: Member, part: _Part) -> None:
        kept = [] if self._keep is None else [row for row in part.rows.tolist() if self._keep(row)]
        ref = member.call("compute", part.rows, part.forget, kept, self._number, part.looked)
        self._calls[ref] = _Call(member, part)

    def _outcome(self, ref: Any) -> Iterator[Block]:
        """What has become of a call. Raises what it raised."""
        call = self._calls.pop(ref)
        member, part = call.member, call.part
        try:
            value = self._pool.value(ref)
        except self._pool.losses as error:
            member.lost()
            part.losses += 1
            self._check_losses(part, error)
            self._again.append(_Part(part.rows, part.losses))
            return
        if isinstance(value, PrecomputeError):
            raise value
        if isinstance(value, Computed):
            member.under_way = max(0, member.under_way - 1)
            if not value.ready:
                member.lost()
            if value.missing:  # the process was started again behind our back
                self._again.append(_Part(np.array(value.missing, dtype=np.int64), part.losses + 1))
            if value.stages is not None:
                self._clock.add(value.stages)
            yield from value.blocks
            return
        if self._halted:
            member.under_way = max(0, member.under_way - 1)
            return
        yield from self._claimed(member, part, value)

    def _claimed(self, member: Member, part: _Part, found: list[Decoded]) -> Iterator[Block]:
        """Have those computed whose bytes nobody else has; the others are done."""
        assert self._claim is not None  # that is what they were looked at for
        block, wanted = Block(), list[int]()
        for item in found:
            if item.error is None and self._claim(item.digest, item.row):
                wanted.append(item.row)
            else:
                block.add(item, self._source)
        rest = [item.row for item in block.same]
        if wanted:
            self._compute(member, _Part(np.array(wanted, dtype=np.int64), part.losses, looked=True, forget=rest))
        else:
            member.call("forget", rest)
            member.under_way = max(0, member.under_way - 1)
        if len(block):
            yield block

    def _check_losses(self, part: _Part, error: Exception) -> None:
        if part.losses >= MOST_LOSSES:
            first, last = (self._source.sample_name(int(part.rows[place])) for place in (0, -1))
            raise DeviceError(
                f"{part.losses} actors were lost one after the other with the samples from {first} to {last}: "
                f"{type(error).__name__}.",
                hint="Everything computed so far is kept. If the nodes are well, these samples may need more memory "
                "than they have: look at them, or take fewer --workers or a smaller --batch-size.",
            )


def parts(work: Work, rows: NDArray[np.int64], actors: int) -> Iterator[_Part]:
    """`rows` in blocks of whole batches, in the order in which the source is read best."""
    views = 1 if work.backbone.preprocess.merges else work.backbone.preprocess.views
    batch = samples_at_once(work.decision.choice.batch_size, views)
    row_bytes = 4 * sum(math.prod(tap.shape) for tap in work.backbone.stored)
    fair = len(rows) // (max(1, actors) * LEAST_BLOCKS * batch)
    most = batch * max(1, min(MOST_BATCHES, fair, FEATURE_BYTES // max(1, row_bytes * batch)))
    for part in _pieces(work.source, rows, most, batch):
        yield _Part(np.sort(part))


def _pieces(source: Source, rows: NDArray[np.int64], most: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Pieces of `most` rows, or of fewer batches where their samples are large; only the last is no whole number."""
    waiting = np.array([], dtype=np.int64)
    for part in source.order(rows):
        waiting = np.concatenate([waiting, part]) if len(waiting) else part
        while len(waiting) >= most:
            count = most
            while count > batch and int(source.table.sizes[waiting[:count]].sum()) > SAMPLE_BYTES:
                count = max(batch, (count // batch // 2) * batch)
            yield waiting[:count]
            waiting = waiting[count:]
    for start in range(0, len(waiting), batch):
        yield waiting[start : start + batch]
