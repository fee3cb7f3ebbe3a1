"""What is mutated, and the file of each case by seed and number."""

from __future__ import annotations

import random
from pathlib import Path

from .caches import CacheTarget, Int8Target
from .heads import HeadTarget
from .images import ImageTarget
from .target import Target
from .weights import WeightsTarget

TARGETS: dict[str, type[Target]] = {
    "cache": CacheTarget,
    "int8": Int8Target,
    "head": HeadTarget,
    "image": ImageTarget,
    "weights": WeightsTarget,
}


def case(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{number}")


def written(target: Target, rng: random.Random) -> Path:
    """The file of one case."""
    target.mutate(rng)
    if isinstance(target, ImageTarget):
        target.path.write_bytes(target.data)
    return target.path
