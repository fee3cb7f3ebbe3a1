"""Temperature scaling: one number that makes a head's probabilities as confident as the head is right.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: the logits are
divided by a temperature T, fitted on held-out data. Order within a row never changes, so no prediction does.

Two functions fit T by the same log loss, as their callers need different answers where no T is best:

- `temperature` calibrates a trained head on a validation split. It finds the exact minimum, by the root of the
  derivative, and raises where there is none: the caller reports why the head was left as it is.
- `bounded_temperature` is part of the fit of heads whose scores are no logits and have any scale (ridge, centroid).
  Such a head has no probabilities without a temperature, so it always gets one: T is searched between bounds relative
  to the spread of the scores, and the lower bound is where every held-out sample is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from precompute.heads.base.inputs import as_numpy, check_number

if TYPE_CHECKING:
    import numpy.typing as npt

    Float = npt.NDArray[np.float64]

__all__ = [
    "MOST_SCORES",
    "as_logits",
    "bounded_temperature",
    "check_temperature",
    "log_softmax_at",
    "scale",
    "softmax_at",
    "temperature",
]

# `temperature` searches 1/T between these. Beyond them float32 probabilities are 0 and 1, or all equal.
LEAST, MOST = 1e-4, 1e4
SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 becomes this: its logarithm must be finite
# `bounded_temperature` searches T between these times the scores' own spread. The lower one is met where every held-out
# sample is right: sharper probabilities would claim more than that many samples can show.
LOWEST, HIGHEST = np.exp(-3.0), np.exp(5.0)
MOST_SCORES = 2**22  # scores (rows times classes) that a head fits its temperature on: one number needs no more


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


def bounded_temperature(scores: Float, label: npt.NDArray[np.intp], weight: Float | None = None) -> float:
    """The T with the lowest log loss of softmax(scores / T), between LOWEST and HIGHEST times the scores' spread.

    `scores` (n, K) float64 of any scale; `label` (n,) positions of the true classes; `weight` (n,) above 0, None for
    equal ones, weighs the loss and the spread. 1.0 where there is nothing to fit on: no sample, or scores without a
    difference.
    """
    scores = scores - scores.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(np.average((scores**2).mean(axis=1), weights=weight))) if scores.size else 0.0
    if not spread > 0:
        return 1.0
    true = scores[np.arange(len(label)), label]

    def loss(log_temperature: float) -> float:
        T = spread * np.exp(log_temperature)
        return float(np.average(logsumexp(scores / T, axis=1) - true / T, weights=weight))

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(spread * np.exp(found.x))


def softmax_at(scores: npt.NDArray[Any], T: float, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Probabilities (n, K) of scores (n, K) at temperature `T`, computed in float64, as `dtype`."""
    proba: npt.NDArray[np.floating] = softmax(scores / np.float64(T), axis=1).astype(dtype)
    return proba


def log_softmax_at(scores: npt.NDArray[Any], T: float, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Their logarithms (n, K), computed from the scores, so that no probability is too small for one."""
    logs: npt.NDArray[np.floating] = log_softmax(scores / np.float64(T), axis=1).astype(dtype)
    return logs


def check_temperature(T: Any) -> None:
    """Raise ValueError unless T is a number from 1e-4 to 1e4."""
    check_number("the temperature", T, low=LEAST, high=MOST * (1 + 1e-9))


def as_logits(proba: npt.ArrayLike) -> Float:
    """Logits (n, K) float64 of probabilities: their logarithms, of no less than float32's smallest number."""
    logits: Float = np.log(np.maximum(np.asarray(as_numpy(proba), dtype=np.float64), SMALLEST))
    return logits


def scale(proba: npt.ArrayLike, T: Any) -> Float:
    """Probabilities (n, K) float64 at temperature `T`: the softmax of log(proba) / T.

    float64, so that probabilities that differ in float32 still do, and the most probable class stays the same one.
    Raises ValueError unless T is a number between 1e-4 and 1e4.
    """
    check_temperature(T)
    scaled: Float = np.exp(log_softmax(as_logits(proba) / T, axis=1))
    return scaled
