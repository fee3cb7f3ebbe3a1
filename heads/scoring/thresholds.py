"""Thresholds of labels: from which probability on a label is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.labels import INITIAL_THRESHOLD
from precompute.heads.scoring.label_metrics import check_labels_pair

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["choose_thresholds"]


def choose_thresholds(Y: npt.ArrayLike, proba: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """For each label the threshold with the best F1: (L,), from labels `Y` (n, L) and probabilities `proba` (n, L).

    A label is predicted where its probability is above the threshold, which lies half way between two probabilities
    that occur; of equally good ones it is the nearest to 0.5. A label without positives keeps 0.5. Choose them on
    samples that the head was not fitted on: on its training samples they come out too high or too low.

    Raises ValueError for shapes that do not fit, Y that is not 0 and 1, and what is no probability.
    """
    truth, p = check_labels_pair(Y, proba)
    return np.array([_best(own, score) for own, score in zip(truth.T, p.T.astype(np.float64), strict=True)])


def _best(own: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> float:
    if not own.any():
        return INITIAL_THRESHOLD
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(score) - 1)  # of each run of equal probabilities
    hits = np.cumsum(own[order])[last]
    f1: npt.NDArray[Any] = 2 * hits / (last + 1 + own.sum())
    upper = ordered[last]
    lower = np.append(upper[1:], 0.0)  # that of the samples that are not predicted any more
    between = lower + (upper - lower) / 2
    between = np.where(between < upper, between, lower)  # neighbours in float64
    f1 = np.where(upper > 0, f1, -1)  # nothing lies below 0
    best = between[f1 >= f1.max() * (1 - 1e-12)]
    return float(best[np.abs(best - INITIAL_THRESHOLD).argmin()])
