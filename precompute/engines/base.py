"""What an engine is: a network that runs over batches of one fixed shape, or of one of a few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Tensors = tuple[torch.Tensor, ...]
Features = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class EngineChoice:
    """What will run, and in words why where `auto` decided.

    compiled: whether torch.compile is used.
    """

    engine: str
    device: str
    precision: str
    batch_size: int
    compiled: bool = False
    why: str = ""

    @property
    def kind(self) -> str:
        """The device without its number: cpu, cuda, ..."""
        return self.device.partition(":")[0]


class Engine(ABC):
    """Runs one frozen network over batches of one shape each; up to `depth` batches may be in progress.

    notes: what is worth telling the user about it.

    For one shape the kernels are the same for every batch, so a row does not depend on who shares its batch, nor on
    its place in it. `Preprocess.examples` gives the shapes. Used from one thread.
    """

    depth: int = 1

    def __init__(self, choice: EngineChoice) -> None:
        self.choice = choice
        self.notes: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        return self.choice.batch_size

    @abstractmethod
    def start(self, samples: Sequence[Tensors]) -> None:
        """Take at most `batch_size` samples of one shape, as `Preprocess.host` gives them; the engine makes its own
        copy."""

    @abstractmethod
    def finish(self) -> Features:
        """The features of the batch that was started first and not finished yet: for each tap (n, *shape) float32."""

    def __call__(self, samples: Sequence[Tensors]) -> Features:
        """Start and finish one batch, with no other in progress."""
        self.start(samples)
        return self.finish()

    def map(self, batches: Iterable[Sequence[Tensors]]) -> Iterator[Features]:
        """The features of each batch, in order, with as many in progress as there may be. See `start`, `finish`."""
        under_way = 0
        for batch in batches:
            if under_way == self.depth:
                yield self.finish()
                under_way -= 1
            self.start(batch)
            under_way += 1
        for _ in range(under_way):
            yield self.finish()


def fill(buffers: Sequence[torch.Tensor], samples: Sequence[Tensors]) -> None:
    """Copy the tensors of each sample into the first places of `buffers`, (batch, *shape) each.

    In one call for each: every call of torch gives up the interpreter's lock, and with 16 decoding threads waiting for
    it a call a sample took longer than the network did. By this thread alone: those of a team would spin for longer
    than the copy takes, on cores that decode or compute.
    """
    torch.get_num_threads()  # sets the number of this thread, which would otherwise happen later
    with _openmp().limit(limits=1):
        for place, buffer in enumerate(buffers):
            torch.stack([sample[place] for sample in samples], out=buffer[: len(samples)])


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


def buffers_of(example: Tensors, batch_size: int, *, pin_memory: bool = False) -> tuple[torch.Tensor, ...]:
    """Memory for a batch of samples like `example`, zeros."""
    return tuple(torch.zeros((batch_size, *one.shape), dtype=one.dtype, pin_memory=pin_memory) for one in example)
