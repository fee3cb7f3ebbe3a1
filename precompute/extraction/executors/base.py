"""An executor computes the features of a source's rows. It writes nothing; its caller does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.engines.choice import Asked, Begun, Candidates, Decision, candidates, choose
from precompute.engines.machine import Machine
from precompute.extraction.pipeline import Block, Claim
from precompute.extraction.sampling import sample_of
from precompute.extraction.timing import StageClock
from precompute.sources.base import Source


@dataclass(frozen=True)
class Work:
    """Whose rows are computed, through which network, and with which engine and precision."""

    source: Source
    backbone: Backbone
    decision: Decision


class Executor(ABC):
    """Computes rows on this machine's cores and accelerator, or on others.

    A row is a function of its sample alone, so it does not matter where it is computed, next to which others, or how
    often. One run uses an executor at a time, from one thread.

    workers: threads that read and decode, None for one for each core · waits: for other machines, perhaps for long ·
    warnings: what a user should know of where rows were computed, once some were.
    """

    workers: int | None = None
    waits: bool = False
    warnings: tuple[str, ...] = ()

    def decide(
        self, model: Backbone, asked: Asked, begun: Begun | None, source: Source
    ) -> tuple[Candidates, Callable[[], Decision]]:
        """What may run `model` where rows are computed, and what gives that which does, proved on samples of `source`.

        By default that is this machine. Raises what `engines.choice.candidates` and `choose` raise.
        """
        return decided(model, asked, begun, source, Machine.here(), self.workers)

    @abstractmethod
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
        """Read, decode and compute `rows`, ascending and each once; finished samples come in blocks, in any order.

        claim: asked with the SHA-256 of a sample's bytes and its row, from any thread, before it is decoded; where it
        says no, the row comes back under `same` · stop: asked after each block, and while no sample comes; once it is
        true nothing further is begun, and what is in the engine comes out · clock: counts the time of each stage ·
        keep: for these rows the tensors are still there when the features are.

        Bounded in memory, whatever the number of rows. Closing it early leaves no batch and no thread behind.
        A sample that cannot be read or decoded comes back under `failed`. Raises SourceError where the whole source has
        gone away.
        """

    def record(self) -> dict[str, Any] | None:
        """JSON-ready: where rows were computed, for the file's provenance; None where that is this process."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to do here
        """No more rows are wanted: release what was kept for them. By default there is nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def decided(
    model: Backbone, asked: Asked, begun: Begun | None, source: Source, machine: Machine, workers: int | None
) -> tuple[Candidates, Callable[[], Decision]]:
    """See `Executor.decide`. machine: this one, as it is to be seen."""
    most = model.preprocess.most_inputs
    found = candidates(asked, machine, begun=begun, images=len(source), module=model.module, most=most)
    images = sample_of(source, model.preprocess, workers=workers)
    return found, lambda: choose(found, model, images)
