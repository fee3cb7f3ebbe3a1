"""For each scored row the training row most like it: every pair is compared, in blocks.

Products of float32 unit rows are a filter. Each is within a proven distance of the cosine, and only pairs that could be
the best of their row, and reach the least similarity requested, are computed again in float64. So the result is that of
a float64 search of all pairs, at the price of a float32 one. The error of a sum of products is bounded for any order of
summation (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, section 3.1; without its
terms of second order: C.-P. Jeannerod and S. M. Rump, SIAM J. Matrix Analysis and Applications 34, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from precompute.heads import RowView
from precompute.heads.base.unit import unit_rows

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Index = NDArray[np.intp]
Progress = Callable[[int, int], None]

BLOCK = 2048  # rows a side, whose float32 products take 16 MB
BLOCK_BYTES = 32 * 2**20  # of float64 rows in a block: fewer than BLOCK rows where they are long
HOLD_BYTES = 256 * 2**20  # of float32 scored rows, which are compared with each training block as it is read
# Features summed in one product. The error grows with the terms of a sum, so long rows are summed in parts.
PART = 2048
FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53  # largest relative error of one operation


def nearest(
    scored: RowView, train: RowView, least: float = -math.inf, progress: Progress | None = None
) -> tuple[Doubles, Index]:
    """For each scored row the highest cosine to a training row, (n,) float64, and that row's position (n,).

    Both are taken less the mean of the training rows. The cosines are those of float64 arithmetic, and of training rows
    whose cosines differ by no more than its rounding the first is named. `least`: a row to which no training row is as
    similar has the cosine -inf and position 0; so has one that holds NaN or infinity, and such training rows are left
    out. A row that is the mean itself has the cosine 0 to every other.

    The features may be larger than memory: they are read in blocks, the training rows once for every HOLD_BYTES of
    scored rows. Takes half a GiB at most, beyond the features, while a row is shorter than a million features.
    progress: called after each block with (done, n) in scored rows, where one compared with half of the training rows
    counts half.
    """
    mean = _mean(train)
    best, which = np.full(len(scored), -math.inf), np.zeros(len(scored), np.intp)
    if mean is None:
        return best, which
    width = train.shape[1]
    size, hold = min(BLOCK, max(1, BLOCK_BYTES // (8 * width))), max(1, HOLD_BYTES // (4 * width))
    for start in range(0, len(scored), hold):
        held = scored.take(np.arange(start, min(start + hold, len(scored))))
        search = _Search(held, mean, size, least)
        done = 0
        for position, other in _units(train, mean, size):
            search.compare(position, other)
            done += len(position)
            if progress is not None:
                progress(start + len(held) * done // len(train), len(scored))
        if progress is not None:  # training rows that are left out count as well
            progress(start + len(held), len(scored))
        best[start : start + hold], which[start : start + hold] = search.best, search.which
    return best, which


class _Search:
    """Scored rows that are in memory, and the best training row seen so far for each."""

    def __init__(self, scored: RowView, mean: Doubles, size: int, least: float) -> None:
        self.scored, self.mean, self.size = scored, mean, size
        n, width = scored.shape
        self.unit = np.zeros((n, width), np.float32)
        self.best, self.which = np.full(n, -math.inf), np.zeros(n, np.intp)
        self.tie = rounding(width)
        self.margin = margin(width)
        # What a cosine must reach to be computed: `least` to within rounding, so that copies reach 1; never for NaN.
        self.least = np.full(n, math.inf)
        for position, rows in _units(scored, mean, size):
            self.unit[position] = rows
            self.least[position] = least - self.tie

    def compare(self, position: Index, other: Doubles) -> None:
        """Compare with the training rows `other`, unit rows that are at `position`, in order."""
        single = other.astype(np.float32)
        for start in range(0, len(self.unit), self.size):
            rows = np.arange(start, min(start + self.size, len(self.unit)))
            cosine = _products(self.unit[rows[0] : rows[-1] + 1], single)
            top = cosine.max(axis=1).astype(np.float64)
            needed = np.maximum(self.best[rows], self.least[rows]) - self.margin
            open_ = np.flatnonzero(top >= needed)
            if not len(open_):
                continue
            needed = np.maximum(needed, top - 2 * self.margin)[open_]
            columns = np.flatnonzero((cosine[open_] >= needed[:, None].astype(np.float32)).any(axis=0))
            self._settle(rows[open_], position[columns], other[columns])

    def _settle(self, rows: Index, position: Index, other: Doubles) -> None:
        """Compute the cosines of all these pairs in float64, and keep those that are better."""
        exact = _centred_units(self.scored[rows], self.mean) @ other.T
        top = exact.max(axis=1)
        better = (top > self.best[rows] + self.tie) & (top >= self.least[rows])
        first = (exact >= (top - self.tie)[:, None]).argmax(axis=1)
        self.best[rows[better]] = top[better]
        self.which[rows[better]] = position[first[better]]


def rounding(width: int) -> float:
    """By how much two float64 cosines of the same rows of `width` features may differ, for any order of summation."""
    return 2 * (1.001 * width + 8) * FLOAT64


def margin(width: int) -> float:
    """By how much a product of float32 rows may differ from the float64 cosine, with all roundings on the way.

    Both rows are rounded to float32, each part is a sum of PART products at most, and the parts are added. The row of
    float32 numbers that a cosine is compared with is rounded as well.
    """
    terms = min(width, PART) + math.ceil(width / PART)
    return (1.001 * terms + 8) * FLOAT32 + 2 * rounding(width)


def _products(left: Floats, right: Floats) -> Floats:
    total: Floats = left[:, :PART] @ right[:, :PART].T
    for start in range(PART, left.shape[1], PART):
        total += left[:, start : start + PART] @ right[:, start : start + PART].T
    return total


def _units(rows: RowView, mean: Doubles, size: int) -> Iterator[tuple[Index, Doubles]]:
    """In blocks, the positions of the finite rows, and these less the mean and of length 1."""
    for place, block in rows.blocks(size):
        finite = _finite(block)
        position = np.arange(place.start, place.stop)[finite]
        if len(position):
            yield position, _centred_units(block if finite.all() else block[finite], mean)


def _centred_units(rows: NDArray[np.floating], mean: Doubles) -> Doubles:
    centred: Doubles = unit_rows(rows - mean)
    return centred


def _finite(block: NDArray[np.floating]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(block.sum()):  # quick, and true of nearly every block
            return np.ones(len(block), bool)
    found: NDArray[np.bool_] = np.isfinite(block).all(axis=1)
    return found


def _mean(train: RowView) -> Doubles | None:
    """The mean (d,) of the finite rows, exact where all are the same; None where there are none."""
    first: Doubles | None = None
    total: Doubles = np.zeros(train.shape[1])
    count = 0
    for _, block in train.blocks():
        rows = block[_finite(block)]
        if not len(rows):
            continue
        if first is None:
            first = rows[0].astype(np.float64)
        total += (rows - first).sum(axis=0)  # differences: a large offset costs no digits
        count += len(rows)
    return None if first is None else first + total / count
