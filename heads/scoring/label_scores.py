"""How good a head of several labels is, on samples that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.labels import INITIAL_THRESHOLD, check_label_names, check_thresholds
from precompute.heads.scoring.bootstrap import LARGE, REPLICATES, group_numbers, intervals
from precompute.heads.scoring.label_metrics import (
    LabelCounts,
    Ranking,
    check_labels_pair,
    macro,
    macro_first_order,
    micro,
    micro_first_order,
)
from precompute.heads.scoring.strata import cell_intervals, mean_interval

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Values = npt.NDArray[np.float64]
    Index = npt.NDArray[np.intp]

__all__ = ["AREAS_MOST", "FIRST_ORDER_FROM", "LabelScores", "evaluate_labels"]

PAIRS_MOST = 5 * 10**8  # samples x labels that are ranked
# Samples x labels x replicates whose areas are computed, some seconds. Beyond these the intervals are to first order,
# where there are as many observations.
AREAS_MOST, FIRST_ORDER_FROM = 10**8, 1000
AREAS = ("mean_average_precision", "micro_average_precision", "auc", "micro_auc")


@dataclass(frozen=True, eq=False)
class LabelScores:
    """The scores of predictions for `n` samples of L labels each. docs/scores.md says how to read them.

    Predicted is what has a probability above its threshold. The definitions are scikit-learn's.

    mean_average_precision : mean of the average precisions of the labels that have positives
    micro_average_precision : average precision of all pairs of a sample and a label, in one ranking
    auc : mean area under the ROC curve of the labels that have positives and negatives · micro_auc : that of all pairs
    micro_f1 : F1 of all pairs · macro_f1 : mean F1 of the labels that have positives, 0 for one that is never predicted
    hamming_loss : share of the pairs that are wrong · subset_accuracy : share of samples of which every label is right
    per_label : for each label a dict: label, threshold, positives, predicted, average_precision, auc, precision,
        recall, f1; None where there is nothing to divide by
    intervals : 95% percentile intervals of a bootstrap over samples or groups, by the name of the score; from 20,000 on
        by strata, and those of the areas to first order where all draws would take too long
    undefined : why a score, or the interval of one, is None or missing, by its name
    """

    n: int
    mean_average_precision: float | None
    micro_average_precision: float | None
    auc: float | None
    micro_auc: float | None
    micro_f1: float | None
    macro_f1: float | None
    hamming_loss: float
    subset_accuracy: float
    per_label: list[dict[str, Any]]
    intervals: dict[str, tuple[float, float]]
    undefined: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain ints, floats and lists, ready for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "per_label": [dict(row) for row in self.per_label],
            "undefined": dict(self.undefined),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
        }


def evaluate_labels(
    Y: npt.ArrayLike,
    proba: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    thresholds: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int | None = 0,
) -> LabelScores:
    """Score probabilities `proba` (n, L) against labels `Y` (n, L) of 0 and 1; column l belongs to `labels[l]`.

    A label is predicted where its probability is above its threshold, `thresholds` (L,) or 0.5. `groups` (n,) says
    which samples are one observation, such as files with the same bytes: the bootstrap (`replicates` draws from `seed`,
    0 for none) draws them together.

    Raises ValueError for shapes that do not fit, Y that is not 0 and 1, and what is no probability.
    """
    truth, p = check_labels_pair(Y, proba)
    n, n_labels = p.shape
    names = check_label_names(labels, n_labels).tolist()
    above = np.full(n_labels, INITIAL_THRESHOLD) if thresholds is None else check_thresholds(thresholds, n_labels)
    outcomes = _Outcomes(truth, p, LabelCounts(truth, p > above))
    found, undefined = outcomes.whole(), outcomes.undefined()
    ends = {}
    if replicates:
        group = group_numbers(n, None if groups is None else np.asarray(groups))
        ends = _intervals(outcomes, group, undefined, replicates=replicates, seed=seed)
    return LabelScores(
        n=n,
        **{name: None if name in undefined else found[name] for name in (*AREAS, *COUNTED)},  # type: ignore[arg-type]
        per_label=[
            {"label": name, "threshold": float(threshold), **row}
            for name, threshold, row in zip(names, above, outcomes.by_label(), strict=True)
        ],
        intervals={name: pair for name, pair in ends.items() if name not in undefined},
        undefined=undefined,
    )


COUNTED = ("micro_f1", "macro_f1", "hamming_loss", "subset_accuracy")


class _Outcomes:
    """Probabilities (n, L) next to the truth (n, L), and what is predicted of them."""

    def __init__(self, truth: npt.NDArray[np.bool_], proba: Array, counts: LabelCounts) -> None:
        self.n, self.n_labels = truth.shape
        self.counts = counts
        self.positives = truth.sum(axis=0)
        self.ranked = truth.size <= PAIRS_MOST
        self.rankings = (
            [Ranking(score, own) for score, own in zip(proba.T, truth.T, strict=True)] if self.ranked else []
        )
        self.pooled = Ranking(proba.ravel(), truth.ravel()) if self.ranked else None
        ones = np.ones((self.n, 1))
        self.areas = [ranking.areas(ones) for ranking in self.rankings]

    def undefined(self) -> dict[str, str]:
        """Why scores are None, by name."""
        reasons: dict[str, str] = {}
        total, pairs = int(self.positives.sum()), self.n * self.n_labels
        if not total:
            reasons |= dict.fromkeys((*AREAS[:2], "macro_f1"), "needs a label that some samples have")
        if not ((self.positives > 0) & (self.positives < self.n)).any():
            reasons["auc"] = "needs a label that some samples have and others lack"
        if total in (0, pairs):
            reasons["micro_auc"] = "needs samples with labels and samples without them"
        if not total and not self.counts.predicted.any():
            reasons["micro_f1"] = "no sample has a label, and none is predicted"
        if not self.ranked:
            reasons |= dict.fromkeys(AREAS, f"left out: {self.n} samples of {self.n_labels} labels would take too long")
        return reasons

    def whole(self) -> dict[str, float]:
        """Every score of all samples, NaN where it is undefined."""
        return {name: float(values[0]) for name, values in self.scores(np.ones((self.n, 1)), areas=self.ranked).items()}

    def scores(self, weights: Values, *, areas: bool) -> dict[str, Values]:
        """Every score for `weights` (n, B), each (B,) float64."""
        found = self.counts.scores(weights)
        if areas and self.pooled is not None:
            pairs = (*macro(self.rankings, weights), *micro(self.pooled, self.n_labels, weights))
            found |= dict(
                zip(("mean_average_precision", "auc", "micro_average_precision", "micro_auc"), pairs, strict=True)
            )
        return found

    def first_order(self, name: str) -> Values:
        """What (n,) the score of this name, one of AREAS, is the mean of, to first order."""
        assert self.pooled is not None
        if name == "micro_average_precision":
            return micro_first_order(self.pooled.precision_first_order(), self.n_labels)
        if name == "micro_auc":
            return micro_first_order(self.pooled.auc_first_order(), self.n_labels)
        defined = [
            ranking
            for ranking, positives in zip(self.rankings, self.positives.tolist(), strict=True)
            if positives and (name == "mean_average_precision" or positives < self.n)
        ]
        of_labels = name == "mean_average_precision"
        return macro_first_order([r.precision_first_order() if of_labels else r.auc_first_order() for r in defined])

    def by_label(self) -> list[dict[str, Any]]:
        sums = self.counts.sums(np.ones((self.n, 1)))
        rows = []
        for number, counted in enumerate(zip(*(part[:, 0].astype(int).tolist() for part in sums), strict=True)):
            hits, positives, predicted = counted
            precision, auc = (float(area[0]) for area in self.areas[number]) if self.ranked else (np.nan, np.nan)
            rows.append(
                {
                    "positives": positives,
                    "predicted": predicted,
                    "average_precision": None if np.isnan(precision) else precision,
                    "auc": None if np.isnan(auc) else auc,
                    "precision": hits / predicted if predicted else None,
                    "recall": hits / positives if positives else None,
                    "f1": 2 * hits / (positives + predicted) if positives else None,
                }
            )
        return rows


def _intervals(
    outcomes: _Outcomes, group: Index, undefined: dict[str, str], *, replicates: int, seed: int | None
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals by name; adds to `undefined` why a score has none."""
    n, n_groups = len(group), int(group.max()) + 1
    draw: dict[str, Any] = {"replicates": replicates, "seed": seed}
    exact = outcomes.ranked and n * outcomes.n_labels * replicates <= AREAS_MOST
    if n_groups < LARGE:
        ends = intervals(lambda weights: outcomes.scores(weights, areas=exact), n, group, **draw)
    else:
        kinds, kind = outcomes.counts.unique()
        ends = cell_intervals(kinds.scores, kind, group, **draw)
    for name in AREAS:
        if name in undefined or name in ends:
            continue
        if n_groups >= FIRST_ORDER_FROM:
            ends[name] = mean_interval(outcomes.first_order(name), group, **draw)
        else:
            undefined[f"intervals.{name}"] = f"left out: {n} samples of {outcomes.n_labels} labels would take too long"
    return ends
