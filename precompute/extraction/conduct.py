"""How a run behaves, and how far it is: what changes no feature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precompute.errors import UsageError
from precompute.extraction.executors.names import AUTO, check_executor

if TYPE_CHECKING:
    from precompute.extraction.executors.base import Executor  # which loads torch

ON_ERROR = ("skip", "stop")


@dataclass(frozen=True)
class Progress:
    """How far a run is. done and total count samples; computed counts forward passes; seconds since they began.

    unit: what the samples are called.
    """

    done: int
    total: int
    computed: int
    failures: int
    seconds: float
    unit: str = "images"

    @property
    def rate(self) -> float:
        """Samples through the backbone each second."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to go; None as long as there is nothing to go by."""
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass(frozen=True)
class Conduct:
    """workers: threads that read and decode, by default one for each core · on_error: "skip" or "stop" · progress:
    called after each batch · stop: asked after each batch, and of a source in a network while no sample comes; a
    signal's number ends the run, resumable · executor: who computes the rows, or its name (see
    `executors.names`), `AutoExecutor(workers)` by default · exact: of several machines only such as have the same GPU
    or processor · join: rows are copied from other files alone, and one that is in none of them is an error.

    Raises UsageError for values out of range.
    """

    workers: int | None = None
    on_error: str = "skip"
    progress: Callable[[Progress], None] | None = None
    stop: Callable[[], int] | None = None
    executor: Executor | str | None = None
    exact: bool = False
    join: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise UsageError(
                f"on_error must be one of {', '.join(ON_ERROR)}. Got {self.on_error!r} instead.",
                hint="See --on-error.",
            )
        if self.executor is None or isinstance(self.executor, str):
            check_executor(self.executor or AUTO, exact=self.exact)
        elif self.exact:
            raise UsageError("exact is for executors that are named.", hint="Give it to the executor itself.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1. Got {self.workers} instead.", hint="See --workers.")
