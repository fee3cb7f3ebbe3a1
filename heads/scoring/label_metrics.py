"""Scores of several labels a sample for predictions that have weights, for many weightings at once (`metrics.py`), and
to first order in the weights.

First order: a score moves by about sum_j (w_j - 1) g_j where sample j is drawn w_j times, g being its derivatives. So
the replicates are means of the numbers n g_j + score, which strata give for any number of samples (`strata.py`). For
the AUC g are the placement values; for average precision, the mean over positives i of TP_i / N_i (positives and
samples that score no less), they are sums over the positives that score no more than j.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.inputs import as_numpy
from precompute.heads.base.labels import check_indicators
from precompute.heads.scoring.strata import placements

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Values = npt.NDArray[np.float64]
    Indicators = npt.NDArray[np.bool_]

__all__ = [
    "LabelCounts",
    "Ranking",
    "check_labels_pair",
    "check_probabilities",
    "macro",
    "macro_first_order",
    "micro",
    "micro_first_order",
]


def check_labels_pair(Y: Any, proba: Any) -> tuple[Indicators, Array]:
    """Labels and probabilities (n, L) both. Raises ValueError for other shapes, and for what is neither."""
    p = check_probabilities(np.asarray(as_numpy(proba)))
    truth = check_indicators(Y, len(p))
    if truth.shape != p.shape:
        raise ValueError(f"Y and proba must have the same shape. Got {truth.shape} and {p.shape} instead.")
    return truth, p


def check_probabilities(proba: Array) -> Array:
    """`proba` (n, L) as floating-point numbers. Raises ValueError unless all are from 0 to 1."""
    if proba.ndim != 2 or not proba.size:
        raise ValueError(f"proba must have shape (n, L), both at least 1. Got shape {proba.shape} instead.")
    proba = proba if np.issubdtype(proba.dtype, np.floating) else proba.astype(np.float64)
    wrong = ~((proba >= 0) & (proba <= 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"proba must hold numbers from 0 to 1. Got {proba[row, column]} for sample {row} and label {column}. "
            "Pass predict_proba's result."
        )
    return proba


@dataclass(frozen=True)
class LabelCounts:
    """Samples, or kinds of them, as scores that only count see them: truth, predicted: (m, L) bool."""

    truth: Indicators
    predicted: Indicators

    def unique(self) -> tuple[LabelCounts, npt.NDArray[np.intp]]:
        """The kinds of samples, with other labels or predictions each, and (m,) which kind each sample is of."""
        packed = np.ascontiguousarray(np.packbits(np.hstack([self.truth, self.predicted]), axis=1))
        rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, first, kind = np.unique(rows, return_index=True, return_inverse=True)
        return LabelCounts(self.truth[first], self.predicted[first]), kind.ravel()

    @cached_property
    def _columns(self) -> tuple[Values, Values, Values]:
        """(L, m) hits, positives and predictions."""
        return tuple(  # type: ignore[return-value]  # of three
            np.ascontiguousarray(part.T, np.float64)
            for part in (self.truth & self.predicted, self.truth, self.predicted)
        )

    @cached_property
    def _exact(self) -> Values:
        """(m,) 1 where every label is right."""
        right: Values = (self.truth == self.predicted).all(axis=1).astype(np.float64)
        return right

    def sums(self, weights: Values) -> tuple[Values, Values, Values]:
        """(L, B) each, for `weights` (m, B): hits, positives and predictions of each label."""
        hits, positives, predicted = (part @ weights for part in self._columns)
        return hits, positives, predicted

    def scores(self, weights: Values) -> dict[str, Values]:
        """Micro and macro F1, Hamming loss and subset accuracy for `weights` (m, B), each (B,) float64.

        Macro F1 is the mean over the labels that have positives with weight. NaN where nothing is to be divided by.
        """
        hits, positives, predicted = self.sums(weights)
        total = weights.sum(axis=0)
        marked = positives + predicted
        with np.errstate(invalid="ignore"):
            micro_f1 = 2 * hits.sum(axis=0) / marked.sum(axis=0)
            counted = positives > 0.5
            macro_f1 = (2 * hits / np.where(counted, marked, 1) * counted).sum(axis=0) / counted.sum(axis=0)
        return {
            "micro_f1": micro_f1,
            "macro_f1": macro_f1,
            "hamming_loss": (marked - 2 * hits).sum(axis=0) / (len(hits) * total),
            "subset_accuracy": self._exact @ weights / total,
        }


class Ranking:
    """The samples of one label, `own` (n,) its positives, in the order of their `score` (n,)."""

    def __init__(self, score: Array, own: Indicators) -> None:
        self.score, self.own = score, own
        self.order = np.argsort(score, kind="stable")
        ordered = score[self.order]
        bounds = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        starts, ends = np.append(0, bounds), np.append(bounds, len(score))
        # For each place the first and the end of its run of equal scores.
        self.first, self.last = (np.repeat(part, ends - starts) for part in (starts, ends))
        self.positive = own[self.order]
        self.up_to = np.append(0, np.cumsum(self.positive))  # positives among the first so many

    def areas(self, weights: Values) -> tuple[Values, Values]:
        """Average precision and AUC for `weights` (n, B), (B,) each; NaN without weight of positives (and negatives).

        Average precision is scikit-learn's: the sum over thresholds of precision times the recall gained there.
        """
        ordered = weights[self.order]
        own = ordered[self.positive]
        every, positives = (np.zeros((len(part) + 1, part.shape[1])) for part in (ordered, own))
        np.cumsum(ordered, axis=0, out=every[1:])
        np.cumsum(own, axis=0, out=positives[1:])
        first, last = self.first[self.positive], self.last[self.positive]
        all_below, own_below = every[first], positives[self.up_to[first]]
        negatives = (all_below - own_below + every[last] - positives[self.up_to[last]]) / 2
        total, P = every[-1], positives[-1]
        precision = np.divide(P - own_below, total - all_below, out=np.zeros_like(own), where=own > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (own * precision).sum(axis=0) / P, (own * negatives).sum(axis=0) / (P * (total - P))

    def precision_first_order(self) -> tuple[float, Values]:
        """Average precision, and its derivatives (n,) by the weights of the samples, at equal weights of 1."""
        n, P = len(self.own), self.up_to[-1]
        at_least, hits = n - self.first, P - self.up_to[self.first]
        precision = hits / at_least
        value = float(precision[self.positive].mean())
        gained, lost = (
            np.append(0, np.cumsum(np.where(self.positive, part, 0)))[self.last]
            for part in (1 / at_least, precision / at_least)
        )
        found = np.empty(n)
        found[self.order] = (np.where(self.positive, precision + gained - value, 0) - lost) / P
        return value, found

    def auc_first_order(self) -> tuple[float, Values]:
        """The AUC, and its derivatives (n,), likewise."""
        values = placements(self.score, self.own)
        value = float(values[self.own].mean())
        return value, (values - value) / np.where(self.own, self.own.sum(), (~self.own).sum())


def macro(rankings: list[Ranking], weights: Values) -> tuple[Values, Values]:
    """Mean average precision and mean AUC over the labels for which they are defined, (B,) each, for (n, B)."""
    sums, counts = np.zeros((2, weights.shape[1])), np.zeros((2, weights.shape[1]))
    for ranking in rankings:
        areas = np.array(ranking.areas(weights))
        defined = ~np.isnan(areas)
        sums += np.where(defined, areas, 0)
        counts += defined
    with np.errstate(invalid="ignore"):
        precision, auc = sums / counts
    return precision, auc


def micro(pooled: Ranking, n_labels: int, weights: Values) -> tuple[Values, Values]:
    """Average precision and AUC of all pairs of a sample and a label, sample by sample in `pooled`."""
    return pooled.areas(np.repeat(weights, n_labels, axis=0))


def macro_first_order(derived: list[tuple[float, Values]]) -> Values:
    """What the mean (n,) of the scores of several labels is the mean of, by their values and derivatives."""
    values = [value + len(moves) * moves for value, moves in derived]
    mean: Values = np.mean(values, axis=0)
    return mean


def micro_first_order(derived: tuple[float, Values], n_labels: int) -> Values:
    """The same (n,) of a score of all pairs."""
    value, moves = derived
    of_samples = moves.reshape(-1, n_labels).sum(axis=1)
    found: Values = value + len(of_samples) * of_samples
    return found
