"""Engines other than plain fp32 torch prove themselves on real images: bf16 is fine for most networks, not for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.engines.base import Engine, Tensors
from precompute.engines.torch import REFERENCE_BATCH as PART
from precompute.engines.torch import Reference
from precompute.inputs.base import Shape, shape_of

IMAGES = 32
"""How many images prove an engine, spread over the source."""
EXACT_IMAGES = 8
"""How many show that an engine computes in fp32 what fp32 torch does, apart from rounding. That shows on any image."""
EIGHT_BITS = "int8"
"""The storage of 8 bits, see cache/FORMAT.md."""
LEAST_COSINE = 0.999
"""What the worst of these images must reach between its features and those of fp32 eager torch."""


@dataclass(frozen=True)
class Trial:
    """How one engine and precision did. worst, median: cosine to fp32 eager torch over so many `images`.

    An image counts with the layer in which it is worst; layer: the one that is worst of all, "" where there is one ·
    unit: what the samples are called.
    """

    engine: str
    precision: str
    worst: float
    median: float
    images: int
    layer: str = ""
    unit: str = "images"

    @property
    def passed(self) -> bool:
        return self.worst >= LEAST_COSINE

    @property
    def words(self) -> str:
        verdict = "passes" if self.passed else f"fails (below {LEAST_COSINE})"
        return (
            f"{self.precision} with {self.engine} {verdict}: cosine to fp32 at worst {self.worst:.5f}"
            f"{f' ({self.layer})' if self.layer else ''}, median {self.median:.5f} over {self.images} {self.unit}"
            + (", where some features were nothing or no numbers as they are stored" if self.worst == -1 else "")
        )

    def to_dict(self) -> dict[str, Any]:
        fields = {name: value for name, value in asdict(self).items() if name != "unit"}
        return {**fields, "least": LEAST_COSINE, "passed": self.passed}


class Sample:
    """Images of a source, spread over it, that engines prove themselves on; read and computed once, when first needed.

    read: gives at most IMAGES of each shape, as `Preprocess.host` does. The sample's length is how many could be read.
    """

    def __init__(self, read: Callable[[], list[Tensors]]) -> None:
        self._read = read
        self._parts: list[Future[tuple[NDArray[np.float64], ...]]] = []

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def samples(self) -> list[Tensors]:
        """Their tensors, those of one shape together."""
        return [one for group in self._groups for one in group]

    @cached_property
    def _groups(self) -> list[list[Tensors]]:
        found: dict[Shape, list[Tensors]] = {}
        for one in self._read():
            found.setdefault(shape_of(one), []).append(one)
        return list(found.values())

    @cached_property
    def shapes(self) -> list[range]:
        """Which of `samples` have the same shape, for each of the shapes."""
        ends = accumulate(map(len, self._groups))
        return [range(end - len(group), end) for group, end in zip(self._groups, ends, strict=True)]

    @cached_property
    def _starts(self) -> list[int]:
        """Where parts of up to PART samples of one shape begin; of each shape first those that show fp32."""
        parts = [(place >= EXACT_IMAGES, group[place]) for group in self.shapes for place in range(0, len(group), PART)]
        return [start for _, start in sorted(parts)]

    def _part(self, start: int) -> list[Tensors]:
        group = next(one for one in self.shapes if start in one)
        return self.samples[start : min(start + PART, group.stop)]

    def begin(self, model: Backbone) -> None:
        """Begin to compute the features of fp32 torch in a thread, next to whatever the caller does next."""
        if any(part.cancelled() for part in self._parts) or not self._parts:
            reference = Reference(model.module, model.preprocess)
            pool = ThreadPoolExecutor(1, thread_name_prefix="reference")
            parts = [self._part(start) for start in self._starts]
            done = [part for part in self._parts if not part.cancelled()]
            self._parts = done + [pool.submit(reference, part) for part in parts[len(done) :]]
            pool.shutdown(wait=False)

    def enough(self) -> None:
        """No more of them are needed for now."""
        for part in self._parts:
            part.cancel()

    def features(self, model: Backbone, start: int) -> tuple[NDArray[np.float64], ...]:
        """For each tap (at most PART, everything) float64 of the images from `start` on, the first of their shape or a
        multiple of PART behind it."""
        self.begin(model)
        return self._parts[self._starts.index(start)].result()


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(at most `count`,) of `rows`, in order: the first, the last and those at equal distances between them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))]


def trial(sample: Sample, model: Backbone, engine: Engine, *, storage: str = "float32") -> Trial:
    """Compare the sample's features by `engine` with those of fp32 torch; where one falls short, no further are.

    Of each shape fp32 is compared on EXACT_IMAGES, every other precision on all. storage: the dtype of the features in
    the file. float16 makes nothing of what is below 6e-8, infinity of what is above 65504, and features of either size
    fail.
    """
    choice = engine.choice
    most = EXACT_IMAGES if choice.precision == "fp32" else len(sample)
    cosines: list[NDArray[np.float64]] = []  # one array for each image, one value for each tap
    for shape in sample.shapes:
        cosines += _cosines(sample, shape[:most], model, engine, storage)
        if not _good(cosines):
            break
    sample.enough()
    values = np.array([one.min() for one in cosines])
    tap = int(cosines[int(values.argmin())].argmin())
    layer = model.taps[tap].layer if len(model.taps) > 1 else ""
    worst, median = float(values.min()), float(np.median(values))
    return Trial(choice.engine, choice.precision, worst, median, len(values), layer, model.unit)


def _good(cosines: Sequence[NDArray[np.float64]]) -> bool:
    return all(one.min() >= LEAST_COSINE for one in cosines)


def _cosines(sample: Sample, places: range, model: Backbone, engine: Engine, storage: str) -> list[NDArray[np.float64]]:
    """For each image of `places`, which have one shape, the cosines of its taps; fewer where one falls short."""
    samples, size = sample.samples[places.start : places.stop], engine.batch_size
    cosines: list[NDArray[np.float64]] = []

    def batches() -> Iterator[list[Tensors]]:
        for start in range(0, len(samples), size):
            if _good(cosines):
                yield samples[start : start + size]

    waiting: list[tuple[NDArray[np.float64], ...]] = []  # of images, as stored
    for features in engine.map(batches()):
        waiting += zip(*(as_stored(tap, storage) for tap in features), strict=True)
        last = len(cosines) + len(waiting) == len(samples)
        while _good(cosines) and (len(waiting) >= PART or (last and waiting)):
            part, waiting = waiting[:PART], waiting[PART:]
            cosines += worst_of(part, sample.features(model, places.start + len(cosines)))
    return cosines


def worst_of(
    images: Sequence[tuple[NDArray[np.float64], ...]], reference: tuple[NDArray[np.float64], ...]
) -> list[NDArray[np.float64]]:
    """For each of k images the cosines of its taps, (taps,), to those of `reference`, k rows or more for each tap."""
    taps = zip(*images, strict=True)
    found = [cosine(np.stack(tap), other[: len(images)]) for tap, other in zip(taps, reference, strict=True)]
    return list(np.stack(found, axis=1))


def as_stored(features: NDArray[np.floating[Any]], storage: str) -> NDArray[np.float64]:
    """(n, everything) float64 of (n, *shape) features, rounded as the file rounds them.

    Not to 8 bits, whose rounding is no fault of an engine's; vectors are float16 in such a file.
    """
    if storage == EIGHT_BITS:
        storage = "float16" if features.ndim == 2 else "float32"
    with np.errstate(over="ignore"):
        return features.astype(storage).astype(np.float64).reshape(len(features), -1)


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) cosine of the angle between rows; 1 where both are zero, -1 where either holds no number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        values: NDArray[np.float64] = np.einsum("ij,ij->i", one, other) / norms
    values[~one.any(axis=1) & ~other.any(axis=1)] = 1.0
    return np.nan_to_num(np.clip(values, -1.0, 1.0), nan=-1.0)
