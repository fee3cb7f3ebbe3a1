"""Temperature scaling: one number that makes a head's probabilities as sure as it is right.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: the logits are
divided by a temperature T, fitted on validation data. Order within a row never changes, so no prediction does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from precompute.heads.base.inputs import as_numpy, check_number

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["as_logits", "check_temperature", "scale", "temperature"]

# 1/T is looked for between these. Beyond them probabilities are 0 and 1, or all equal, as far as float32 can tell.
LEAST, MOST = 1e-4, 1e4
SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 becomes this: its logarithm must be finite


def temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The T > 0 for which softmax(logits / T) has the lowest log loss.

    `logits` (n, K), any reals that softmax turns into the head's probabilities; `labels` (n,) integers, the positions
    of the true classes. The log loss is convex in 1/T, so the root of its derivative is the minimum.

    Raises ValueError for shapes or values that do not fit, and where no T is best: where every sample is right
    (the lower T the better) or the logits are no better than chance (the higher T the better).
    """
    z, true = np.asarray(as_numpy(logits), dtype=np.float64), np.asarray(as_numpy(labels))
    if z.ndim != 2 or true.shape != (len(z),) or not z.size:
        raise ValueError(f"logits must have shape (n, K) and labels (n,). Got {z.shape} and {true.shape} instead.")
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite. Take log probabilities of no less than 1e-38.")
    if not np.issubdtype(true.dtype, np.integer) or true.min() < 0 or true.max() >= z.shape[1]:
        raise ValueError(f"labels must be positions from 0 to {z.shape[1] - 1}, as integers.")
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), true]

    def slope(log_inverse: float) -> float:
        """The derivative of the log loss by 1/T, at 1/T = exp(log_inverse)."""
        return float(((softmax(np.exp(log_inverse) * z, axis=1) * z).sum(axis=1) - own).mean())

    low, high = np.log(LEAST), np.log(MOST)
    if (own == 0).all() or slope(high) <= 0:
        raise ValueError("every sample is right, so the lower the temperature the lower the loss: none is best")
    if slope(low) >= 0:
        raise ValueError("the logits are no better than chance, so the higher the temperature the lower the loss")
    return float(np.exp(-brentq(slope, low, high)))


def check_temperature(T: Any) -> None:
    """Raise ValueError unless T is a number from 1e-4 to 1e4."""
    check_number("the temperature", T, low=LEAST, high=MOST * (1 + 1e-9))


def as_logits(proba: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logits (n, K) float64 of probabilities: their logarithms, of no less than float32's smallest number."""
    logits: npt.NDArray[np.float64] = np.log(np.maximum(np.asarray(as_numpy(proba), dtype=np.float64), SMALLEST))
    return logits


def scale(proba: npt.ArrayLike, T: Any) -> npt.NDArray[np.float64]:
    """Probabilities (n, K) float64 at temperature `T`: the softmax of log(proba) / T.

    float64, so that probabilities that differ in float32 still do, and the most probable class stays the same one.
    Raises ValueError unless T is a number between 1e-4 and 1e4.
    """
    check_temperature(T)
    scaled: npt.NDArray[np.float64] = np.exp(log_softmax(as_logits(proba) / T, axis=1))
    return scaled
