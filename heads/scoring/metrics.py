"""Scores of predictions that have weights, for many weightings at once: one column of weights gives the scores
themselves, a column for each resampling their bootstrap (`bootstrap.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from precompute.heads.scoring.bootstrap import BLOCK
from precompute.heads.scoring.calibration import calibration_gaps

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Values = npt.NDArray[np.float64]

__all__ = ["TOP", "Cells", "Outcomes", "log_losses"]

TOP = 5  # with 5 classes or fewer every prediction has the true class among its first 5


@dataclass(frozen=True)
class Cells:
    """Samples, or kinds of them, as scores that only count see them.

    true, predicted: (m,) positions of the classes · in_top: (m,) whether the true class is among the TOP most probable
    ones, None where there are no more classes.
    """

    true: npt.NDArray[np.intp]
    predicted: npt.NDArray[np.intp]
    in_top: npt.NDArray[np.bool_] | None

    @cached_property
    def hit(self) -> npt.NDArray[np.bool_]:
        """(m,) whether the prediction is right."""
        found: npt.NDArray[np.bool_] = self.predicted == self.true
        return found

    @cached_property
    def _places(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int]:
        """`true` and `predicted` among the classes that occur, which are 2m at most, and how many these are."""
        present, place = np.unique(np.concatenate([self.true, self.predicted]), return_inverse=True)
        return place[: len(self.true)], place[len(self.true) :], len(present)

    def scores(self, weights: Values) -> dict[str, Values]:
        """Accuracy, balanced accuracy, macro F1 and top-5 accuracy for `weights` (m, B), each (B,) float64.

        Balanced accuracy and macro F1 are means over the classes that have weight.
        """
        total = weights.sum(axis=0)
        true, guess, n_present = self._places
        hits = _sums(weights * self.hit[:, None], true, n_present)
        in_class, predicted = (_sums(weights, place, n_present) for place in (true, guess))
        found = {
            "accuracy": self.hit @ weights / total,
            "balanced_accuracy": _mean_over_classes(hits, in_class),
            "macro_f1": _mean_over_classes(2 * hits, in_class + predicted, counted=in_class > 0),
        }
        if self.in_top is not None:
            found["top5_accuracy"] = self.in_top @ weights / total
        return found

    def unique(self) -> tuple[Cells, npt.NDArray[np.intp]]:
        """Those that differ, and which of them each is, (m,)."""
        rows = [self.true, self.predicted] + ([] if self.in_top is None else [self.in_top])
        order = np.lexsort(rows)
        ordered = np.stack([row[order] for row in rows])
        new = np.append(True, (ordered[:, 1:] != ordered[:, :-1]).any(axis=0))
        which = np.empty(len(order), np.intp)
        which[order] = np.cumsum(new) - 1
        first = order[new]
        return Cells(
            self.true[first], self.predicted[first], None if self.in_top is None else self.in_top[first]
        ), which


class Outcomes:
    """What became of n predictions over K classes: true (n,) positions of the true classes, proba (n, K)."""

    def __init__(self, true: npt.NDArray[np.intp], proba: Array) -> None:
        self.k = proba.shape[1]
        self.true, self.proba = true, proba
        self.predicted = proba.argmax(axis=1)
        self.cells = Cells(true, self.predicted, _rank(proba, true) < TOP if self.k > TOP else None)
        self.loss = log_losses(proba, true)
        self.confidence = proba.max(axis=1)
        self.gap = calibration_gaps(self.cells.hit, self.confidence)

    @cached_property
    def ranked(self) -> npt.NDArray[np.intp]:
        """The classes whose areas the AUC averages: those that occur; of two the second, as in scikit-learn."""
        present = np.unique(np.concatenate([self.true, self.predicted]))
        found: npt.NDArray[np.intp] = present[present == 1] if self.k == 2 else present
        return found

    def scores(self, weights: Values, *, auc: bool = True) -> dict[str, Values]:
        """Every score for `weights` (n, B), each (B,) float64.

        Balanced accuracy, macro F1 and AUC are means over the classes that have weight; AUC also needs weight
        outside the class, and is NaN where no class has both.
        """
        total = weights.sum(axis=0)
        found = {
            **self.cells.scores(weights),
            "log_loss": self.loss @ weights / total,
            "calibration_error": _absolute_sum(self.gap.T @ weights) / total,
        }
        if auc:
            found["auc"] = self._auc(weights, total)
        return found

    def _auc(self, weights: Values, total: Values) -> Values:
        """One-vs-rest areas, averaged."""
        areas = np.full((len(self.ranked), weights.shape[1]), np.nan)
        in_class = _sums(weights, self.true, self.k)[self.ranked]
        for row, (c, positive) in enumerate(zip(self.ranked.tolist(), in_class, strict=True)):
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
