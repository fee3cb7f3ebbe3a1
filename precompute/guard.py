"""Engines other than plain fp32 torch prove themselves on real images: bf16 is fine for most networks, not for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.engine import Engine, EngineChoice
from precompute.engines import make_engine
from precompute.sources import Listing
from precompute.stream import read
from precompute.system import cores
from precompute.torch_engine import Normalised
from precompute.transform import Transform

IMAGES = 32
"""How many images prove an engine, spread over the source."""
LEAST_COSINE = 0.999
"""What the worst of these images must reach between its features and those of fp32 eager torch."""
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Trial:
    """How one engine and precision did.

    worst, median: cosine to fp32 eager torch · rate: images a second, warming up included.
    """

    engine: str
    precision: str
    worst: float
    median: float
    rate: float
    images: int

    @property
    def passed(self) -> bool:
        return self.worst >= LEAST_COSINE

    @property
    def words(self) -> str:
        verdict = "passes" if self.passed else f"fails (below {LEAST_COSINE})"
        return (
            f"{self.precision} with {self.engine} {verdict}: cosine to fp32 at worst {self.worst:.5f}, "
            f"median {self.median:.5f} over {self.images} images"
            + (", where some features were nothing or no numbers as they are stored" if self.worst == -1 else "")
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "least": LEAST_COSINE, "passed": self.passed}


class Reference:
    """Real images and their features from fp32 eager torch, computed when first asked for."""

    def __init__(self, module: nn.Module, transform: Transform, images: list[torch.Tensor]) -> None:
        self.module = module
        self.transform = transform
        self.images = images

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """(n, everything) float64."""
        plain, parts = Normalised(self.module, self.transform, torch.float32).eval(), []
        with torch.inference_mode():
            for start in range(0, len(self.images), REFERENCE_BATCH):
                pixels = torch.stack(self.images[start : start + REFERENCE_BATCH]).contiguous()
                parts.append(plain(pixels.permute(0, 2, 3, 1)).flatten(1).double().numpy())
        return np.concatenate(parts)


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(at most `count`,) of `rows`, in order: the first, the last and those at equal distances between them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))]


def first_images(
    listing: Listing, rows: NDArray[np.int64], transform: Transform, *, workers: int | None, count: int = IMAGES
) -> list[torch.Tensor]:
    """Up to `count` decoded images, (3, crop, crop) uint8, spread over `rows`; those that cannot be read are left out.

    Where some cannot, others nearby take their place, as far as a second look goes.
    """
    images: list[torch.Tensor] = []
    seen: set[int] = set()
    with ThreadPoolExecutor(workers or cores(), thread_name_prefix="guard") as pool:
        for wanted in (count, 4 * count):
            fresh = [row for row in spread(rows, wanted).tolist() if row not in seen]
            seen.update(fresh)
            for item in pool.map(lambda row: read(listing, row, transform, None), fresh):
                if item.pixels is not None and len(images) < count:
                    images.append(item.pixels)
            if len(images) == count:
                break
    return images


def trial(
    reference: Reference, choice: EngineChoice, *, identity: str | None, storage: str = "float32"
) -> tuple[Trial, Engine]:
    """Run the reference's images through the engine of `choice`; the engine too, ready for more.

    storage: the dtype of the features in the file. float16 makes nothing of what is below 6e-8, infinity of what is
    above 65504, and features of either size fail.
    """
    engine = make_engine(reference.module, reference.transform, choice, identity=identity)
    images, size, began = reference.images, engine.batch_size, time.perf_counter()
    parts = list(engine.map(images[start : start + size] for start in range(0, len(images), size)))
    seconds = time.perf_counter() - began
    with np.errstate(over="ignore"):
        features = np.concatenate(parts).astype(storage).astype(np.float64).reshape(len(images), -1)
    cosines = cosine(features, reference.features)
    return (
        Trial(
            choice.engine,
            choice.precision,
            float(cosines.min()),
            float(np.median(cosines)),
            len(cosines) / seconds,
            len(cosines),
        ),
        engine,
    )


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) cosine of the angle between rows; 1 where both are zero, -1 where either holds no number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        values: NDArray[np.float64] = np.einsum("ij,ij->i", one, other) / norms
    values[~one.any(axis=1) & ~other.any(axis=1)] = 1.0
    return np.nan_to_num(np.clip(values, -1.0, 1.0), nan=-1.0)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The fastest of those that pass."""
    return max((one for one in trials if one.passed), key=lambda one: one.rate, default=None)
