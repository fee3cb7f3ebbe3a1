"""Every random draw of a training is a function of the seed, the epoch and the step alone.

So a training that is resumed in the middle of an epoch draws what it would have drawn, and needs no state of a
generator for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.finetuning.activations import Rows

ORDER, VIEWS, DROPOUT = range(3)  # what is drawn


def n_batches(n: int, batch_size: int) -> int:
    """Batches of `n` samples; the last may be smaller."""
    return math.ceil(n / batch_size)


def batches_of(rows: Rows, views: int, batch_size: int, seed: int, epoch: int) -> list[tuple[Rows, Rows]]:
    """The batches of an epoch: all `rows` (n,) once, shuffled, each with one of its views at random.

    The rows of a batch are in ascending order, so that a file is read forwards.
    """
    order = np.random.default_rng([seed, epoch, ORDER]).permutation(np.asarray(rows, np.int64))
    drawn = np.random.default_rng([seed, epoch, VIEWS]).integers(views, size=len(order), dtype=np.int64)
    found = []
    for start in range(0, len(order), batch_size):
        chosen = start + np.argsort(order[start : start + batch_size], kind="stable")
        found.append((order[chosen], drawn[chosen]))
    return found


def in_order(rows: Rows, size: int) -> Iterator[tuple[Rows, Rows]]:
    """All `rows` in their order by their plain views, `size` at a time."""
    for start in range(0, len(rows), size):
        part = np.asarray(rows[start : start + size], np.int64)
        yield part, np.zeros(len(part), np.int64)


def dropout_of(shape: tuple[int, ...], share: float, seed: int, epoch: int, step: int) -> torch.Tensor | None:
    """What features (B, d) are multiplied by in a step, 0 or 1 / (1 - share); None without dropout."""
    if not share:
        return None
    drawn: NDArray[Any] = np.random.default_rng([seed, epoch, step, DROPOUT]).random(shape, np.float32)
    return torch.from_numpy((drawn >= share).astype(np.float32) / np.float32(1 - share))
