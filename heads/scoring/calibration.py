"""Whether a head is right as often as it is confident: the expected calibration error, and how much of it is chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from precompute.heads.scoring.bootstrap import BLOCK, LARGE, group_numbers

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["BINS", "calibration_by_chance", "calibration_gaps", "reliability"]

BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
FINE = 256  # lots in a bin
CHANCE = 0.95


def calibration_gaps(hit: Array, confidence: Array) -> csr_array:
    """(n, BINS): hit - confidence of each prediction, in the bin ((m-1)/BINS, m/BINS] of its confidence.

    The sum of the absolute column sums, over n, is the expected calibration error.
    """
    values = hit - confidence.astype(np.float64)
    return csr_array((values, (np.arange(len(hit)), _bins(confidence))), shape=(len(hit), BINS))


def reliability(hit: Array, confidence: Array) -> tuple[Array, Array, Array]:
    """For each of BINS bins, whose edges are those of `calibration_gaps`: how many predictions (int64), how many of
    them are right (int64), and the sum of their confidences (float64)."""
    bins = _bins(confidence)
    count = np.bincount(bins, minlength=BINS)
    right = np.bincount(bins[np.asarray(hit, bool)], minlength=BINS)
    return count, right, np.bincount(bins, weights=confidence.astype(np.float64), minlength=BINS)


def calibration_by_chance(confidence: Array, groups: Array | None, *, replicates: int, seed: int | None) -> float:
    """What a perfectly calibrated head with these confidences (n,) stays below 95 times in 100.

    Its predictions are right with the very probability that it reports, so whether they are is drawn `replicates` times
    (consistency resampling: Broecker and Smith, Weather and Forecasting 22, 2007). Members of a group share the draw.

    From LARGE groups on, samples that are alone in theirs are drawn by lots of nearly equal confidence, a 256th of a
    bin wide: a binomial number of each lot is right, at its mean confidence. That has the same mean and at least the
    variance of single draws (W. Hoeffding, Annals of Mathematical Statistics 27, 1956); at most 1 part in 1,000 more.
    """
    n, rng = len(confidence), np.random.default_rng(seed)
    probability, bins, group = confidence.astype(np.float64), _bins(confidence), group_numbers(n, groups)
    size = np.bincount(group)
    alone = (size == 1)[group] & (len(size) >= LARGE)
    fine, count, mean = _alike(probability[alone], bins[alone])
    shared = np.flatnonzero(~alone)
    members = np.unique(group[shared], return_inverse=True)[1]
    level = probability[shared, None]
    pick = _into_bins(bins[shared])
    pick_fine = _into_bins(fine)
    found = []
    n_drawn = int(members.max(initial=-1)) + 1
    at_once = max(1, BLOCK // max(1, len(shared), len(count)))
    for start in range(0, replicates, at_once):
        drawn = min(at_once, replicates - start)
        hit = rng.random((n_drawn, drawn))[members] < level
        gap = pick @ (hit - level)
        if len(count):
            gap += pick_fine @ (rng.binomial(count, mean, size=(drawn, len(count))) - count * mean).T
        found.append(abs(gap).sum(axis=0) / n)
    return float(np.quantile(np.concatenate(found), CHANCE))


def _alike(probability: Array, bins: Array) -> tuple[Array, Array, Array]:
    """Samples of nearly equal confidence: the bin, the number and the mean probability of each lot of them."""
    within = np.ceil(probability * BINS * FINE).astype(np.intp) - 1 - bins * FINE
    lot, of, count = np.unique(bins * FINE + within.clip(0, FINE - 1), return_inverse=True, return_counts=True)
    mean = np.bincount(of, weights=probability, minlength=len(lot)) / count
    return lot // FINE, count, mean.clip(0, 1)


def _into_bins(bins: Array) -> csr_array:
    return csr_array((np.ones(len(bins)), (bins, np.arange(len(bins)))), shape=(BINS, len(bins)))


def _bins(confidence: Array) -> Array:
    bins: Array = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(np.intp) - 1, 0, BINS - 1)
    return bins
