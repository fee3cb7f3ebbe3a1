"""How good a head is, on samples that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.sparse import coo_array, csr_array

from precompute.heads.base.inputs import as_numpy, positions
from precompute.heads.scoring.bootstrap import LARGE, REPLICATES, group_numbers, intervals
from precompute.heads.scoring.calibration import calibration_by_chance
from precompute.heads.scoring.metrics import TOP, Outcomes
from precompute.heads.scoring.strata import auc_interval, cell_intervals, mean_interval

if TYPE_CHECKING:
    import numpy.typing as npt

    Confusion: TypeAlias = "npt.NDArray[np.int64] | csr_array"

__all__ = ["Scores", "evaluate", "wilson_interval"]

Z_95 = 1.959963984540054  # the 97.5th percentile of the normal distribution: 95% lie between -Z_95 and Z_95
ROW_SUM_TOLERANCE = 1e-3  # float16 probabilities of a thousand classes sum to 1 this well
# Samples x classes whose areas are computed, a minute of one core, and times replicates whose areas are, 2 s. Beyond
# these the interval is to first order, where there are as many observations: what that leaves out has about
# 1 / observations of the variance.
AUC_MOST, AUC_INTERVAL_MOST, AUC_LINEAR_FROM = 5 * 10**8, 2 * 10**8, 1000
MOST_DENSE = 1000  # classes whose confusion matrix is an array, of 8 MB; that of 100,000 would have 80 GB


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of `n` predictions; K classes. docs/scores.md says how to read them.

    accuracy : share of predictions that are right
    accuracy_interval : (low, high), Wilson's 95% interval for it
    balanced_accuracy : mean recall over the classes that have samples; the same number as mean per-class accuracy
    macro_f1 : mean F1 over the classes that have samples (0 for a class that is never predicted)
    top5_accuracy : share whose true class is among the 5 most probable; None below 6 classes
    top5_accuracy_interval : Wilson's 95% interval for it
    log_loss : mean of -ln(probability of the true class), where a probability counts as no less than its dtype's
        machine epsilon, as in scikit-learn
    auc : area under the ROC curve, one class against the rest, averaged over classes; with two classes that of the
        second. None where a class has no samples, or all
    calibration_error : expected calibration error over 15 bins of equal width (Guo et al., ICML 2017)
    calibration_error_by_chance : what a perfectly calibrated head with the same confidences stays below 95 times in
        100 on as many samples; None without replicates. It replaces an interval: few samples look less
        calibrated than they are, and resampled ones even less, so a bootstrap's would miss the truth nearly always
    confusion : (K, K) int64, [i, j] counts samples of class i predicted as class j, in the order of `classes`; for more
        than 1,000 classes a scipy.sparse.csr_array, which `confusion.toarray()` makes dense where memory allows
    intervals : 95% percentile intervals of a bootstrap over samples or groups, by the name of the score. For shares
        close to 0 or 1 they are too narrow, and Wilson's are not; but Wilson's know of no groups. From 20,000 samples
        or groups on they are drawn by strata, those of the AUC to first order (`strata.py` says what that changes)
    undefined : why a score, or the interval of one, is None or missing, by its name
    """

    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    top5_accuracy: float | None
    top5_accuracy_interval: tuple[float, float] | None
    log_loss: float
    auc: float | None
    calibration_error: float
    calibration_error_by_chance: float | None
    confusion: Confusion
    intervals: dict[str, tuple[float, float]]
    undefined: dict[str, str]

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """For each class: images, predicted, precision, recall, recall_interval (Wilson's) and f1.

        None where there is nothing to divide by: precision of a class that is never predicted, recall, its interval
        and F1 of a class without samples.
        """
        rows = []
        counts = (self.confusion.diagonal(), self.confusion.sum(axis=1), self.confusion.sum(axis=0))
        for hits, images, predicted in zip(*(values.tolist() for values in counts), strict=True):
            rows.append(
                {
                    "images": images,
                    "predicted": predicted,
                    "precision": hits / predicted if predicted else None,
                    "recall": hits / images if images else None,
                    "recall_interval": list(wilson_interval(hits, images)) if images else None,
                    "f1": 2 * hits / (images + predicted) if images else None,
                }
            )
        return rows

    def confusions(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The cells of `confusion` above 0, row by row: class, predicted class, samples."""
        cells = coo_array(self.confusion)
        order = np.lexsort((cells.col, cells.row))
        return cells.row[order], cells.col[order], cells.data[order]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain ints, floats and lists, ready for JSON, with `per_class`.

        `confusion` is a list of K lists; for more than 1,000 classes an object of three lists, "true", "predicted"
        (both positions in `classes`) and "count", of the cells above 0.
        """
        if isinstance(self.confusion, np.ndarray):
            confusion: Any = self.confusion.tolist()
        else:
            confusion = {
                name: values.tolist()
                for name, values in zip(("true", "predicted", "count"), self.confusions(), strict=True)
            }
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy_interval": self.top5_accuracy_interval and list(self.top5_accuracy_interval),
            "confusion": confusion,
            "undefined": dict(self.undefined),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "per_class": self.per_class,
        }


def evaluate(
    y_true: npt.ArrayLike,
    proba: npt.ArrayLike,
    classes: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int | None = 0,
) -> Scores:
    """Score probabilities `proba` (n, K) against labels `y_true` (n,); column k belongs to `classes[k]`.

    The prediction is the most probable class (the first of equals). `y_true` may lack some classes. The definitions are
    scikit-learn's, with macro F1 over the labels present in `y_true`. `groups` (n,) says which samples are one
    observation, such as files with the same bytes: the bootstrap (`replicates` draws from `seed`, 0 for none) draws
    them together.

    Raises ValueError for shapes that do not fit, labels outside `classes`, or rows that are no probabilities.
    """
    labels, p, names = (np.asarray(as_numpy(values)) for values in (y_true, proba, classes))
    true, p = _checked(labels, p, names)
    outcomes, n, k = Outcomes(true, p), len(true), len(names)
    undefined = _undefined(true, names)
    defined = "auc" not in undefined
    found = {name: float(value[0]) for name, value in outcomes.scores(np.ones((n, 1)), auc=defined).items()}
    together = None if groups is None else np.asarray(groups)
    ends = {}
    if replicates:
        ends = _intervals(outcomes, group_numbers(n, together), defined, undefined, replicates=replicates, seed=seed)
    chance = None
    if replicates:
        chance = calibration_by_chance(outcomes.confidence, together, replicates=replicates, seed=seed)
    in_top = outcomes.cells.in_top
    return Scores(
        n=n,
        accuracy=found["accuracy"],
        accuracy_interval=wilson_interval(int(outcomes.cells.hit.sum()), n),
        balanced_accuracy=found["balanced_accuracy"],
        macro_f1=found["macro_f1"],
        top5_accuracy=found.get("top5_accuracy"),
        top5_accuracy_interval=None if in_top is None else wilson_interval(int(in_top.sum()), n),
        log_loss=found["log_loss"],
        auc=found.get("auc"),
        calibration_error=found["calibration_error"],
        calibration_error_by_chance=chance,
        confusion=_confusion(true, outcomes.predicted, k),
        intervals=ends,
        undefined=undefined,
    )


def _intervals(
    outcomes: Outcomes,
    group: npt.NDArray[np.intp],
    defined: bool,
    undefined: dict[str, str],
    *,
    replicates: int,
    seed: int | None,
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals by name. defined: whether there is an AUC; adds to `undefined` why it has no interval."""
    n, k, n_groups = len(group), outcomes.k, int(group.max()) + 1
    draw: dict[str, Any] = {"replicates": replicates, "seed": seed}
    if n_groups < LARGE:
        exact = defined and n * k * replicates <= AUC_INTERVAL_MOST
        ends = intervals(lambda weights: outcomes.scores(weights, auc=exact), n, group, **draw)
        ends.pop("calibration_error")
    else:
        cells, cell = outcomes.cells.unique()
        ends = cell_intervals(cells.scores, cell, group, **draw)
        ends["log_loss"] = mean_interval(outcomes.loss, group, **draw)
    if defined and "auc" not in ends:
        found = auc_interval(outcomes, group, **draw) if n_groups >= AUC_LINEAR_FROM else None
        if found is None:
            undefined["intervals.auc"] = f"left out: {n} samples of {k} classes would take too long"
        else:
            ends["auc"] = found
    return ends


def _checked(
    labels: npt.NDArray[Any], p: npt.NDArray[Any], names: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """Where each label is in `names`, and probabilities that are floating-point numbers."""
    if labels.ndim != 1 or names.ndim != 1 or p.shape != (len(labels), len(names)) or p.size == 0:
        raise ValueError(
            f"proba must have shape (n, K) for n labels and K classes, both at least 1. "
            f"Got {p.shape} for labels {labels.shape} and classes {names.shape}."
        )
    p = p if np.issubdtype(p.dtype, np.floating) else p.astype(np.float64)
    good = (p.min(axis=1) >= 0) & (abs(p.sum(axis=1, dtype=np.float64) - 1) <= ROW_SUM_TOLERANCE)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(
            "Every row of proba must hold numbers of 0 or more that sum to 1. "
            f"Row {row} holds {np.array2string(p[row], threshold=6)}. Pass predict_proba's result."
        )
    return positions(labels, names, what="y_true"), p


def _confusion(true: npt.NDArray[np.intp], predicted: npt.NDArray[np.intp], k: int) -> Confusion:
    if k <= MOST_DENSE:
        return np.bincount(true * k + predicted, minlength=k * k).reshape(k, k).astype(np.int64)
    counts = csr_array((np.ones(len(true), np.int64), (true, predicted)), shape=(k, k))
    counts.sum_duplicates()  # scipy 1.13 does not do it unasked
    return counts


def _undefined(true: npt.NDArray[np.intp], names: npt.NDArray[Any]) -> dict[str, str]:
    """Why scores are None, by name."""
    reasons = {}
    if len(names) <= TOP:
        reasons["top5_accuracy"] = f"needs more than {TOP} classes"
    empty = names[np.bincount(true, minlength=len(names)) == 0].tolist()
    if len(empty) >= len(names) - 1:
        reasons["auc"] = "needs samples of two classes or more"
    elif empty:
        shown = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
        reasons["auc"] = f"needs samples of every class, and there are none of {shown}"
    elif len(true) * len(names) > AUC_MOST:
        reasons["auc"] = f"left out: {len(true)} samples of {len(names)} classes would take too long"
    return reasons


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for a share of `hits` in `n` trials (E. B. Wilson, JASA 22, 1927).

    Unlike the usual p +- 2 standard errors it stays within [0, 1] and holds its level for small `n` and for shares
    near 0 or 1 (Brown, Cai and DasGupta, Statistical Science 16, 2001).
    """
    share, z2n = hits / n, Z_95**2 / n
    centre = (share + z2n / 2) / (1 + z2n)
    half = Z_95 / (1 + z2n) * math.sqrt(share * (1 - share) / n + z2n / (4 * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding must not exclude `share`
