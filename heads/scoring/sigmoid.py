"""Probabilities of a label from scores of any scale: a sigmoid with a slope and an offset for each label.

J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999, with the targets that he smooths, so that scores
which separate a label do not require an infinite slope. Fitted on scores of samples that were left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

if TYPE_CHECKING:
    import numpy.typing as npt

    Float = npt.NDArray[np.float64]

__all__ = ["fit_sigmoid"]

# The slope is searched between these over the scores' own spread, so that the order of samples always stays.
LOWEST, HIGHEST = np.exp(-5.0), np.exp(5.0)
UNFITTED = (2.0, 0.0)  # as RidgeHead's probabilities of two classes at temperature 1


def fit_sigmoid(scores: Float, truth: npt.NDArray[np.bool_], weight: Float) -> tuple[float, float]:
    """The slope above 0 and the offset of the sigmoid of slope * score + offset with the lowest log loss.

    scores (n,), truth (n,) whether each sample has the label, weight (n,) above 0. (2, 0) where there is nothing to fit
    on: no sample, or scores without a difference.
    """
    total = float(weight.sum())
    centre = float(weight @ scores) / total if total else 0.0
    spread = float(np.sqrt(weight @ (scores - centre) ** 2 / total)) if total else 0.0
    if not spread > 0:
        return UNFITTED
    positives = float(weight[truth].sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (total - positives + 2))
    z = (scores - centre) / spread

    def loss(found: Float) -> tuple[float, Any]:
        slope, offset = np.exp(found[0]), found[1]
        logit = slope * z + offset
        residual = weight * (expit(logit) - target)
        value = float(weight @ (np.logaddexp(0, logit) - target * logit)) / total
        return value, np.array([slope * (residual @ z), residual.sum()]) / total

    share = float(weight @ target) / total
    start = np.array([0.0, np.log(share / (1 - share))])
    bounds = [(np.log(LOWEST), np.log(HIGHEST)), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}).x
    slope = float(np.exp(found[0])) / spread
    return slope, float(found[1]) - slope * centre
