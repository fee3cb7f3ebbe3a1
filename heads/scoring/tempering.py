"""Scores into probabilities: softmax(score / temperature), with the temperature that explains held-out labels best.

Temperature scaling, Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

if TYPE_CHECKING:
    import numpy.typing as npt

    Float = npt.NDArray[np.float64]

__all__ = ["MOST_SCORES", "fit_temperature", "tempered"]

MOST_SCORES = 2**22  # scores (rows times classes) that a temperature is fitted on: one number needs no more
# Times the scores' own spread. The lower end is met where every held-out sample is right: sharper probabilities would
# claim more than that many samples can show.
LOWEST, HIGHEST = np.exp(-3.0), np.exp(5.0)


def fit_temperature(scores: Float, label: npt.NDArray[np.intp]) -> float:
    """The temperature with the least log loss on scores (n, K) of samples with label positions (n,).

    1.0 where there is nothing to go by: no sample, or scores without a difference.
    """
    scores = scores - scores.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(np.mean(scores**2))) if scores.size else 0.0
    if not spread > 0:
        return 1.0
    true = scores[np.arange(len(label)), label]

    def loss(log_temperature: float) -> float:
        temperature = spread * np.exp(log_temperature)
        return float((logsumexp(scores / temperature, axis=1) - true / temperature).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(spread * np.exp(found.x))


def tempered(scores: npt.NDArray[Any], temperature: float, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Probabilities (n, K) of scores (n, K), as `dtype`."""
    proba: npt.NDArray[np.floating] = softmax(scores / np.float64(temperature), axis=1).astype(dtype)
    return proba
