"""How good a head is, on samples that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._bootstrap import REPLICATES, intervals
from ._calibration import calibration_by_chance
from ._inputs import as_numpy, positions
from ._metrics import TOP, Outcomes

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Scores", "evaluate", "wilson_interval"]

Z_95 = 1.959963984540054  # the 97.5th percentile of the normal distribution: 95% lie between -Z_95 and Z_95
ROW_SUM_TOLERANCE = 1e-3  # float16 probabilities of a thousand classes sum to 1 this well
AUC_MOST = 2 * 10**8  # samples x classes x replicates whose areas are bootstrapped: 2 s of one core


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
        100 on as many samples; None without replicates. It takes the place of an interval: few samples look less
        calibrated than they are, and resampled ones even less, so a bootstrap's would miss the truth nearly always
    confusion : (K, K) int64, [i, j] counts samples of class i predicted as class j, in the order of `classes`
    intervals : 95% percentile intervals of a bootstrap over samples or groups, by the name of the score. For shares
        close to 0 or 1 they are too narrow, and Wilson's are not; but Wilson's know of no groups
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
    confusion: npt.NDArray[np.int64]
    intervals: dict[str, tuple[float, float]]
    undefined: dict[str, str]

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """For each class: images, predicted, precision, recall, recall_interval (Wilson's) and f1.

        None where there is nothing to divide by: precision of a class that is never predicted, recall, its interval
        and F1 of a class without samples.
        """
        rows = []
        for c, hits in enumerate(np.diag(self.confusion).tolist()):
            images, predicted = int(self.confusion[c].sum()), int(self.confusion[:, c].sum())
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

    def to_dict(self) -> dict[str, Any]:
        """The same as plain ints, floats and lists, ready for JSON, with `per_class`."""
        return {
            **asdict(self),
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy_interval": self.top5_accuracy_interval and list(self.top5_accuracy_interval),
            "confusion": self.confusion.tolist(),
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
    found = {name: float(value[0]) for name, value in outcomes.scores(np.ones((n, 1))).items()}
    confusion = np.bincount(true * k + outcomes.predicted, minlength=k * k).reshape(k, k).astype(np.int64)
    undefined = _undefined(confusion, names)
    with_auc = "auc" not in undefined and n * k * replicates <= AUC_MOST
    if not with_auc and "auc" not in undefined:
        undefined["intervals.auc"] = f"left out: {n} samples of {k} classes would take too long"
    together = None if groups is None else np.asarray(groups)
    ends = intervals(
        lambda weights: outcomes.scores(weights, auc=with_auc), n, together, replicates=replicates, seed=seed
    )
    ends.pop("calibration_error", None)
    chance = None
    if replicates:
        chance = calibration_by_chance(outcomes.confidence, together, replicates=replicates, seed=seed)
    return Scores(
        n=n,
        accuracy=found["accuracy"],
        accuracy_interval=wilson_interval(int(outcomes.hit.sum()), n),
        balanced_accuracy=found["balanced_accuracy"],
        macro_f1=found["macro_f1"],
        top5_accuracy=found.get("top5_accuracy"),
        top5_accuracy_interval=None if outcomes.in_top is None else wilson_interval(int(outcomes.in_top.sum()), n),
        log_loss=found["log_loss"],
        auc=None if "auc" in undefined else found["auc"],
        calibration_error=found["calibration_error"],
        calibration_error_by_chance=chance,
        confusion=confusion,
        intervals=ends,
        undefined=undefined,
    )


def _checked(
    labels: npt.NDArray[Any], p: npt.NDArray[Any], names: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """Where each label stands in `names`, and probabilities that are floating-point numbers."""
    if labels.ndim != 1 or names.ndim != 1 or p.shape != (len(labels), len(names)) or p.size == 0:
        raise ValueError(
            f"proba must have shape (n, K) for n labels and K classes, both at least 1. "
            f"Got {p.shape} for labels {labels.shape} and classes {names.shape}."
        )
    p = p if np.issubdtype(p.dtype, np.floating) else p.astype(np.float64)
    good = (p >= 0).all(axis=1) & (abs(p.sum(axis=1, dtype=np.float64) - 1) <= ROW_SUM_TOLERANCE)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(
            "Every row of proba must hold numbers of 0 or more that sum to 1. "
            f"Row {row} holds {np.array2string(p[row], threshold=6)}. Pass predict_proba's result."
        )
    return positions(labels, names, what="y_true"), p


def _undefined(confusion: npt.NDArray[np.int64], names: npt.NDArray[Any]) -> dict[str, str]:
    """Why scores are None, by name."""
    reasons = {}
    if len(names) <= TOP:
        reasons["top5_accuracy"] = f"needs more than {TOP} classes"
    empty = names[confusion.sum(axis=1) == 0].tolist()
    if len(empty) >= len(names) - 1:
        reasons["auc"] = "needs samples of two classes or more"
    elif empty:
        shown = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
        reasons["auc"] = f"needs samples of every class, and there are none of {shown}"
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
