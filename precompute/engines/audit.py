"""Some images of a run go through fp32 torch as well: 32 images that prove an engine do not bound the tail.

Nothing is chosen by it, so it may look at a clock: it takes at most a fiftieth of the run's time. What it finds stands
in the summary and in the file's provenance.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.engines.base import EngineChoice, Features, Tensors
from precompute.engines.guard import LEAST_COSINE, as_stored, spread, worst_of
from precompute.engines.torch import REFERENCE_BATCH, Reference

SHARE, LEAST_IMAGES = 1 / 1000, 16
TIME_SHARE = 0.02
FIRST_SECONDS = 0.05  # what each of the first images is expected to take
WAITING = 64  # images that may wait for their turn; 150 kB each at 224 x 224
NAMED = 5


@dataclass(frozen=True)
class Audited:
    """What the audit of a run found.

    images: compared with fp32 torch · worst, median: of their cosines · below: ids of those below LEAST_COSINE, the
    worst first, and how many there are · seconds: what it took · unit: what the samples are called.
    """

    images: int
    worst: float
    median: float
    below: int
    named: tuple[str, ...]
    seconds: float
    unit: str = "images"

    @property
    def words(self) -> str:
        """One line for the summary."""
        return (
            f"{self.images} {self.unit if self.images > 1 else self.unit.removesuffix('s')} also ran in fp32 torch "
            f"({self.seconds:.1f} s): "
            f"cosine at worst {self.worst:.5f}, median {self.median:.5f}"
        )

    @property
    def warning(self) -> str | None:
        """What to do about images below LEAST_COSINE; None where there are none."""
        if not self.below:
            return None
        more = ", ..." if self.below > len(self.named) else ""
        return (
            f"{self.below} of {self.images} {self.unit} compared during the run have a cosine below {LEAST_COSINE} to "
            f"fp32, at worst {self.worst:.5f}: {', '.join(self.named)}{more}. Where that matters, extract again with "
            "--precision fp32, to another output or with --overwrite."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "images": self.images,
            "worst": self.worst,
            "median": self.median,
            "below": self.below,
            "named": list(self.named),
            "least": LEAST_COSINE,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Shown:
    """A sample whose features were computed.

    name: its id · inputs: as `Preprocess.inputs` gave them, one where there are no windows · features: of each tap
    (*shape), as the engine gave them, or as they were merged · weights: of windows, see `Inputs`.
    """

    name: str
    inputs: tuple[Tensors, ...]
    features: Features
    weights: tuple[float, ...] | None = None


class EngineAudit:
    """Compares features as they are stored with those of fp32 torch, for one image in a thousand, 16 at least.

    rows: those that the run computes. `wants` says which of them to show it; it looks at them as they come, as long as
    that takes no more than TIME_SHARE of the time, and at what is left over in `finish`.
    """

    def __init__(self, model: Backbone, choice: EngineChoice, rows: NDArray[np.int64], storage: str) -> None:
        self._model = model
        here = choice.kind == "cuda" and torch.cuda.is_available()  # others may compute, on GPUs of theirs
        self._device = choice.device if here else "cpu"
        self._reference: Reference | None = None
        self._storage = storage
        self._rows = frozenset(spread(rows, max(LEAST_IMAGES, math.ceil(len(rows) * SHARE))).tolist())
        self._waiting: deque[tuple[Shown, tuple[NDArray[np.float64], ...]]] = deque()  # with features as stored
        self._cosines: list[tuple[float, str]] = []
        self._began, self._seconds = time.monotonic(), 0.0
        self._an_image = FIRST_SECONDS  # what the next one is expected to take: as long as the last

    def wants(self, row: int) -> bool:
        """Whether the pixels of `row` are to be kept until its features are there."""
        return row in self._rows

    def show(self, samples: Sequence[Shown]) -> None:
        """Wanted rows."""
        for one in samples:
            self._waiting.append((one, tuple(as_stored(tap[None], self._storage)[0] for tap in one.features)))
        while len(self._waiting) > 1 and sum(len(one.inputs) for one, _ in self._waiting) > WAITING:
            self._waiting.popleft()
        self._look(REFERENCE_BATCH)

    def finish(self) -> Audited | None:
        """What was found; None where there was no time for a single image."""
        self._look(1)
        if not self._cosines:
            return None
        ranked = sorted(self._cosines)
        below = [name for value, name in ranked if value < LEAST_COSINE]
        values = [value for value, _ in ranked]
        median, named = float(np.median(values)), tuple(below[:NAMED])
        return Audited(len(values), values[0], median, len(below), named, self._seconds, self._model.unit)

    def _look(self, least: int) -> None:
        """Compare what waits, a few at a time, from so many on; together they take less time."""
        while len(self._waiting) >= least:
            began, count = time.monotonic(), min(len(self._waiting), REFERENCE_BATCH)
            if self._seconds + count * self._an_image > TIME_SHARE * (began - self._began):
                break
            samples, features = zip(*(self._waiting.popleft() for _ in range(count)), strict=True)
            found = worst_of(features, self._expected(samples))
            for one, stored, value in zip(samples, features, found, strict=True):
                if all(np.isfinite(tap).all() for tap in stored):  # else the row has failed, which is reported as such
                    self._cosines.append((float(value.min()), one.name))
            took = time.monotonic() - began
            self._seconds, self._an_image = self._seconds + took, took / count

    def _expected(self, samples: Sequence[Shown]) -> tuple[NDArray[np.float64], ...]:
        """What fp32 torch makes of each sample, (n, everything) for each tap."""
        if self._reference is None:
            self._reference = Reference(self._model.module, self._model.preprocess, self._device)
        found = self._reference([tensors for one in samples for tensors in one.inputs])
        preprocess = self._model.preprocess.plain()
        if not preprocess.merges:
            return found
        ends = np.cumsum([len(one.inputs) for one in samples]).tolist()
        parts = [
            [
                preprocess.merge(tap[end - len(one.inputs) : end].astype(np.float32), one.weights or ())
                for one, end in zip(samples, ends, strict=True)
            ]
            for tap in found
        ]
        return tuple(np.stack(part).astype(np.float64) for part in parts)
