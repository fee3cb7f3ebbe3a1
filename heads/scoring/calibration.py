"""Whether a head is right as often as it is confident: the expected calibration error, and how much of it is chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from precompute.heads.scoring.bootstrap import BLOCK, group_numbers

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["BINS", "calibration_by_chance", "calibration_gaps"]

BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
CHANCE = 0.95


def calibration_gaps(hit: Array, confidence: Array) -> csr_array:
    """(n, BINS): hit - confidence of each prediction, in the bin ((m-1)/BINS, m/BINS] of its confidence.

    The sum of the absolute column sums, over n, is the expected calibration error.
    """
    values = hit - confidence.astype(np.float64)
    return csr_array((values, (np.arange(len(hit)), _bins(confidence))), shape=(len(hit), BINS))


def calibration_by_chance(confidence: Array, groups: Array | None, *, replicates: int, seed: int | None) -> float:
    """What a perfectly calibrated head with these confidences (n,) stays below 95 times in 100.

    Its predictions are right with the very probability that it reports, so whether they are is drawn `replicates` times
    (consistency resampling: Broecker and Smith, Weather and Forecasting 22, 2007). Members of a group share the draw.
    """
    n, rng = len(confidence), np.random.default_rng(seed)
    probability = confidence.astype(np.float64)[:, None]
    group = group_numbers(n, groups)
    pick = csr_array((np.ones(n), (_bins(confidence), np.arange(n))), shape=(BINS, n))
    found = []
    for start in range(0, replicates, max(1, BLOCK // n)):
        size = min(max(1, BLOCK // n), replicates - start)
        hit = rng.random((int(group.max()) + 1, size))[group] < probability
        found.append(abs(pick @ (hit - probability)).sum(axis=0) / n)
    return float(np.quantile(np.concatenate(found), CHANCE))


def _bins(confidence: Array) -> Array:
    bins: Array = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(np.intp) - 1, 0, BINS - 1)
    return bins
