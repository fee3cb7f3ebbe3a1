"""Compiled models, kept for later processes in the user's cache folder, the oldest leaving when there are many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from precompute.system.kept_files import KeptFiles

KEPT = 16  # models; each takes about as much as its weights in fp32
MAX_BYTES = 16 * 2**30  # torchvision's largest backbone takes 2.6 GB in fp32
MODELS = KeptFiles("openvino", ".blob", largest=MAX_BYTES, most=KEPT, total=KEPT * MAX_BYTES)


def folder() -> Path:
    """`$XDG_CACHE_HOME/precompute/openvino`, by default below ~/.cache."""
    return MODELS.folder()


def read(name: str) -> NDArray[np.uint8] | None:
    """What `write` kept under `name`, (bytes,) uint8; None where there is nothing, or it is not whole."""
    return MODELS.read(name)


def discard(name: str) -> None:
    """Remove what is kept under `name`, as far as that is possible."""
    MODELS.discard(name)


def write(name: str, blob: bytes) -> None:
    """Keep `blob` under `name`, in one step; leave only the KEPT last used ones. Raises OSError."""
    MODELS.write(name, blob)
    MODELS.drop_oldest()
