"""How good a head is, on samples that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import as_numpy, positions

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Scores", "evaluate", "wilson_interval"]

Z_95 = 1.959963984540054  # the 97.5th percentile of the normal distribution: 95% lie between -Z_95 and Z_95
ROW_SUM_TOLERANCE = 1e-3  # float16 probabilities of a thousand classes sum to 1 this well


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of `n` predictions; K classes.

    accuracy : share of predictions that are right
    accuracy_interval : (low, high), Wilson's 95% interval for it
    balanced_accuracy : mean recall over the classes that have samples
    macro_f1 : mean F1 over the classes that have samples (0 for a class that is never predicted)
    log_loss : mean of -ln(probability of the true class), where a probability counts as no less than its dtype's
        machine epsilon, as in scikit-learn
    confusion : (K, K) int64, [i, j] counts samples of class i predicted as class j, in the order of `classes`
    """

    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    confusion: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain ints, floats and lists, ready for JSON."""
        return {
            **asdict(self),
            "accuracy_interval": list(self.accuracy_interval),
            "confusion": self.confusion.tolist(),
        }


def evaluate(y_true: npt.ArrayLike, proba: npt.ArrayLike, classes: npt.ArrayLike) -> Scores:
    """Score probabilities `proba` (n, K) against labels `y_true` (n,); column k belongs to `classes[k]`.

    The prediction is the most probable class (the first of equals). `y_true` may lack some classes. The definitions are
    scikit-learn's, with macro F1 over the labels present in `y_true`.

    Raises ValueError for shapes that do not fit, labels outside `classes`, or rows that are no probabilities.
    """
    labels, p, names = (np.asarray(as_numpy(values)) for values in (y_true, proba, classes))
    if labels.ndim != 1 or names.ndim != 1 or p.shape != (len(labels), len(names)) or p.size == 0:
        raise ValueError(
            f"proba must have shape (n, K) for n labels and K classes, both at least 1. "
            f"Got {p.shape} for labels {labels.shape} and classes {names.shape}."
        )
    p = p if np.issubdtype(p.dtype, np.floating) else p.astype(np.float64)
    if not (p >= 0).all() or not (abs(p.sum(axis=1, dtype=np.float64) - 1) <= ROW_SUM_TOLERANCE).all():
        raise ValueError(
            "Every row of proba must hold numbers of 0 or more that sum to 1. Pass predict_proba's result."
        )
    true = positions(labels, names, what="y_true")
    k = len(names)
    confusion = np.bincount(true * k + p.argmax(axis=1), minlength=k * k).reshape(k, k).astype(np.int64)
    hits, in_class, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present = in_class > 0
    likelihood = np.clip(p[np.arange(len(true)), true].astype(np.float64), np.finfo(p.dtype).eps, 1)
    return Scores(
        n=len(true),
        accuracy=float(hits.sum() / len(true)),
        accuracy_interval=wilson_interval(int(hits.sum()), len(true)),
        balanced_accuracy=float((hits[present] / in_class[present]).mean()),
        macro_f1=float((2 * hits[present] / (in_class + predicted)[present]).mean()),
        log_loss=float(-np.log(likelihood).mean()),
        confusion=confusion,
    )


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for a share of `hits` in `n` trials (E. B. Wilson, JASA 22, 1927).

    Unlike the usual p +- 2 standard errors it stays within [0, 1] and holds its level for small `n` and for shares
    near 0 or 1 (Brown, Cai and DasGupta, Statistical Science 16, 2001).
    """
    share, z2n = hits / n, Z_95**2 / n
    centre = (share + z2n / 2) / (1 + z2n)
    half = Z_95 / (1 + z2n) * math.sqrt(share * (1 - share) / n + z2n / (4 * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding must not exclude `share`
