"""What every section is told."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """device: "cpu", "cuda" or "auto" (until the first section has looked) · photos: the user's JPEGs or None ·
    place: a temporary folder · source: below it, the distinct JPEGs that all sections read · images: how many of them,
    None for as many as the largest measurement needs · programs: labels of those that run end to end, empty for all.
    """

    device: str
    quick: bool
    backbones: tuple[str, ...]
    photos: str | None
    weights_dir: str | None
    place: str
    images: int | None = None
    programs: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return os.path.join(self.place, "photos")

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def cores(self) -> int:
        return cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
