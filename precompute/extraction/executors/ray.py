"""Many processes, on this machine or a cluster, by Ray: actors compute, this one passes on rows and takes features.

Rows go out in blocks, a few to each actor. A block counts as in progress from then until its features have been handed
on, so that neither this process nor Ray's object store ever holds more than a few blocks for each actor. An actor that
is lost costs the blocks that it had: others get them. Ray itself repeats no call (`max_task_retries` is 0), since it
would wait for the actor to come back, which may be never; it does start the process again (`max_restarts`).

Who owns bytes that several samples have is decided here alone (`claim`), between two calls for a block: `look`, which
reads and hashes it, and `compute`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.engines.choice import Asked, Begun, Candidates, Decision
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.ray_checks import check_seen, own_digests
from precompute.extraction.executors.ray_choice import Answer, Question, answered
from precompute.extraction.executors.ray_cluster import RayCluster
from precompute.extraction.executors.ray_flow import Flow
from precompute.extraction.executors.ray_pool import RayPool
from precompute.extraction.pipeline import Block, Claim
from precompute.extraction.timing import StageClock
from precompute.sources.base import Source


class RayExecutor(Executor):
    """Actors for each GPU of the cluster, up to four by its cores, or one for each node that has none.

    address: of a cluster, as `ray.init` takes it; None is the cluster of RAY_ADDRESS or, where that is not set, one on
    this machine alone, which is started and ends with the run · workers: threads of each actor that read and decode, by
    default one for each of its cores · exact: all actors must have the same model of GPU, or of processor.

    Actors keep engine and backbone until `close`, or until other work comes. What `auto` is one node decides, one with
    a GPU where there are some, so that it is the same from whatever machine the run is started; each actor verifies it.
    pool: who starts actors.
    """

    waits = True
    pool: type[RayPool] = RayPool

    def __init__(self, address: str | None = None, *, workers: int | None = None, exact: bool = False) -> None:
        self.address, self.workers, self.exact = address, workers, exact
        self._cluster: RayCluster | None = None
        self._pool: RayPool | None = None
        self._answer: Answer | None = None
        self._runs = 0

    def decide(
        self, model: Backbone, asked: Asked, begun: Begun | None, source: Source
    ) -> tuple[Candidates, Callable[[], Decision]]:
        """See `Executor`. Raises SourceError where that node cannot read what this process can."""
        self._end_pool()  # its actors have all cores, and are of other work
        cluster, own = self._joined(), own_digests(source)
        question = Question.here(asked, begun, self.workers, list(own))
        sent = cluster.sent("backbone", model), cluster.sent("source", source)
        answer: Answer = cluster.asked(answered, question, *sent, gpu=asked.device != "cpu")
        check_seen(answer.host, source, own, answer.seen)
        self._answer = answer
        return answer.found, lambda: answer.decision

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
        """See `Executor`. Raises DeviceError where no actor is left, or one cannot compute what is requested;
        SourceError where a node cannot read the source.
        """
        if not len(rows):
            return
        self._runs += 1
        pool = self._pool_for(work, stop)
        clock = clock or StageClock()
        clock.workers, clock.actors = pool.workers, max(1, len(pool.up))
        flow = Flow(pool, work, rows, self._runs, claim, keep, clock)
        try:
            yield from flow.run(stop or (lambda: False))
        finally:
            flow.end()

    def record(self) -> dict[str, Any] | None:
        """How many actors there were on which hosts, by model of device, and how their engines did."""
        return None if self._pool is None else self._pool.record()

    @property
    def warnings(self) -> tuple[str, ...]:  # type: ignore[override]
        """Models that are mixed, and precisions that fell short on some."""
        return () if self._pool is None else self._pool.warnings()

    def close(self) -> None:
        """End all actors, and a cluster that was started for them."""
        self._end_pool()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _joined(self) -> RayCluster:
        if self._cluster is None:
            self._cluster = RayCluster(self.address)
        return self._cluster

    def _pool_for(self, work: Work, stop: Callable[[], object] | None) -> RayPool:
        if self._pool is not None and not self._pool.serves(work):
            self._end_pool()
        if self._pool is None:
            answer = self._answer
            proved = answer.proved if answer is not None and answer.decision is work.decision else None
            self._pool = self.pool(self._joined(), work, workers=self.workers, exact=self.exact, proved=proved)
            try:
                self._pool.begin(stop)
            except BaseException:
                self._end_pool()
                raise
        return self._pool

    def _end_pool(self) -> None:
        if self._pool is not None and self._cluster is not None:
            self._pool.close()
            self._cluster.forget()
            self._pool = None
