"""Scores of predictions that have weights, for many weightings at once: one column of weights gives the scores
themselves, a column for each resampling their bootstrap (`bootstrap.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from precompute.heads.scoring.bootstrap import BLOCK
from precompute.heads.scoring.calibration import calibration_gaps

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Values = npt.NDArray[np.float64]

__all__ = ["TOP", "Outcomes", "log_losses"]

TOP = 5  # with 5 classes or fewer every prediction has the true class among its first 5


class Outcomes:
    """What became of n predictions over K classes: true (n,) positions of the true classes, proba (n, K)."""

    def __init__(self, true: npt.NDArray[np.intp], proba: Array) -> None:
        n, self.k = proba.shape
        self.true, self.proba = true, proba
        self.predicted = proba.argmax(axis=1)
        # Sums by class are over those that occur, which are 2n at most.
        self._present, cell = np.unique(np.concatenate([true, self.predicted]), return_inverse=True)
        self._cell = cell[:n], cell[n:]
        self.hit = self.predicted == true
        self.loss = log_losses(proba, true)
        self.confidence = proba.max(axis=1)
        self.gap = calibration_gaps(self.hit, self.confidence)
        self.in_top = _rank(proba, true) < TOP if self.k > TOP else None

    def scores(self, weights: Values, *, auc: bool = True) -> dict[str, Values]:
        """Every score for `weights` (n, B), each (B,) float64.

        Balanced accuracy, macro F1 and AUC are means over the classes that have weight; AUC also needs weight
        outside the class, and is NaN where no class has both.
        """
        total = weights.sum(axis=0)
        true, guess = self._cell
        hits = _sums(weights * self.hit[:, None], true, len(self._present))
        in_class, predicted = (_sums(weights, cell, len(self._present)) for cell in (true, guess))
        found = {
            "accuracy": self.hit @ weights / total,
            "balanced_accuracy": _mean_over_classes(hits, in_class),
            "macro_f1": _mean_over_classes(2 * hits, in_class + predicted, counted=in_class > 0),
            "log_loss": self.loss @ weights / total,
            "calibration_error": _absolute_sum(self.gap.T @ weights) / total,
        }
        if self.in_top is not None:
            found["top5_accuracy"] = self.in_top @ weights / total
        if auc:
            found["auc"] = self._auc(weights, in_class, total)
        return found

    def _auc(self, weights: Values, in_class: Values, total: Values) -> Values:
        """One-vs-rest areas, averaged; with two classes the second's, as in scikit-learn."""
        of = np.flatnonzero(self._present == 1) if self.k == 2 else np.arange(len(self._present))
        areas = np.full((len(of), weights.shape[1]), np.nan)
        for row, (c, positive) in enumerate(zip(self._present[of].tolist(), in_class[of], strict=True)):
            defined = (positive > 0) & (positive < total)
            if defined.any():
                wins = _wins(self.proba[:, c], self.true == c, weights)
                areas[row, defined] = (wins / (positive * (total - positive) + ~defined))[defined]
        counted = ~np.isnan(areas)
        with np.errstate(invalid="ignore"):
            mean: Values = np.where(counted, areas, 0).sum(axis=0) / counted.sum(axis=0)
        return mean


def _absolute_sum(values: Values) -> Values:
    found: Values = abs(values).sum(axis=0)
    return found


def log_losses(proba: Array, true: npt.NDArray[np.intp]) -> Values:
    """(n,) -ln of each true class' probability, which counts as no less than its dtype's machine epsilon.

    That is scikit-learn's `log_loss` before its mean.
    """
    own = proba[np.arange(len(true)), true].astype(np.float64)
    losses: Values = -np.log(np.clip(own, np.finfo(proba.dtype).eps, 1))
    return losses


def _rank(proba: Array, true: npt.NDArray[np.intp]) -> Array:
    """(n,) how many classes come before the true one; of equal ones the first does, as in argmax."""
    n, k = proba.shape
    own = proba[np.arange(n), true]
    count = np.empty(n, np.intp)
    for start in range(0, n, max(1, BLOCK // k)):
        part = slice(start, start + max(1, BLOCK // k))
        level = own[part, None]
        before = (proba[part] > level) | ((proba[part] == level) & (np.arange(k) < true[part, None]))
        count[part] = before.sum(axis=1)
    return count


def _sums(weights: Values, cell: npt.NDArray[np.intp], n_cells: int) -> Values:
    """(n_cells, B): the weights (n, B) of the samples in each cell, added up."""
    picks = csr_array((np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(n_cells, len(cell)))
    found: Values = picks @ weights
    return found


def _mean_over_classes(above: Values, below: Values, counted: npt.NDArray[np.bool_] | None = None) -> Values:
    counted = below > 0 if counted is None else counted
    shares = np.divide(above, below, out=np.zeros_like(above), where=counted)
    mean: Values = shares.sum(axis=0) / counted.sum(axis=0)
    return mean


def _wins(score: Array, positive: npt.NDArray[np.bool_], weights: Values) -> Values:
    """(B,) weight of the pairs whose positive sample has the higher score; a tie is half a pair (Mann-Whitney)."""
    order = np.argsort(score, kind="stable")
    score, positive, weights = score[order], positive[order], weights[order]
    below = np.zeros((len(score) + 1, weights.shape[1]))  # [i] is the weight of the negatives among the first i
    np.cumsum(weights * ~positive[:, None], axis=0, out=below[1:])
    at = score[positive]
    first, last = np.searchsorted(score, at, side="left"), np.searchsorted(score, at, side="right")
    wins: Values = (weights[positive] * (below[first] + below[last])).sum(axis=0) / 2
    return wins
