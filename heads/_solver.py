"""L2-regularised logistic regression by L-BFGS that starts from the features' second moments.

The objective is scikit-learn's, 1/2 ||W||^2 + C sum_i w_i loss_i with an unpenalised intercept. With K outputs and
probabilities p its Hessian is near I_K kron (C h X'X + I), where h is the mean of p (1 - p) over samples and outputs
(Boehning, "Multinomial logistic regression algorithm", 1992, bounds it by h = 1/2). The inverse of that matrix, by
Cholesky, takes the place of L-BFGS's first metric (Nocedal and Wright, "Numerical Optimization", algorithm 7.4), and
follows h as the probabilities sharpen. Steps are judged by slopes, as the objective is convex and slopes stay exact
where differences of its values drown in rounding.

One step reads the features once and takes two products with them, in float32, block by block. Sums over samples are
float64. The solver works on C sum(w) times this objective's inverse, so that its numbers do not depend on n or C.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from ._design import Design

    Array = npt.NDArray[Any]
    Float32 = npt.NDArray[np.float32]
    Found = tuple[float, Float32, float]  # value, gradient, curvature

__all__ = ["Fit", "Objective", "check_memory", "minimise"]

HISTORY = 10  # pairs of L-BFGS; 20 saved no steps
MOST_TRIES = 20  # along one direction
STEEP = 0.9  # of the slope at the start of a step may be left at its end (Wolfe's second condition, the usual value)
ADAPT = 2.0  # the metric is made anew where the mean curvature has changed by this factor
RIDGE = 1e-6  # of the diagonal, so that float32 moments stay positive definite
ABSENT = -100.0  # intercept of a class that no weighted sample has: its probability is 0 in float32
RELAXED, RELAX = 4.0**5, 4.0  # a fit from zero begins with so much too large a penalty, which falls by this factor
FOLLOWED = 0.3  # of the objective is expected from the next step at most, when it falls
LAST_GAIN = 10  # times tol, that the step before the last may have gained
ROUNDING = 1e-6  # of the objective: differences that float32 logits do not show
LARGEST_PENALTY = 1e30  # float32 holds it, and coefficients are 0 long before


@dataclass(frozen=True)
class Fit:
    """theta: (axes + 1, outputs) float32, intercepts last · value: the objective as scikit-learn defines it."""

    theta: Float32
    value: float
    n_iter: int
    converged: bool


class Objective:
    """The objective for `label` (n,) in 0..K-1 with sample weights `weight` (n,), 0 for samples left out.

    For two classes there is one output, as in scikit-learn's binary model.
    """

    def __init__(self, design: Design, label: Array, weight: Array, n_classes: int, C: float) -> None:
        self.design, self.label = design, label
        self.outputs = 1 if n_classes == 2 else n_classes
        total = float(weight.sum(dtype=np.float64))
        self.weight = (weight / total).astype(np.float32)
        self.unit = C * total  # of the values below
        self.penalty = min(1 / (self.unit * design.scale**2), LARGEST_PENALTY)

    def evaluate(self, theta: Float32, penalty: float) -> tuple[float, Float32, float]:
        """Value and gradient (axes + 1, outputs) at `penalty`, in units of `unit`, and the mean curvature p (1 - p)."""
        gradient = np.zeros_like(theta)
        value, curvature = 0.0, 0.0
        for place, block in self.design.blocks(self.outputs):
            weight = self.weight[place]
            if not weight.any():
                continue
            logits = block @ theta[:-1]
            logits += theta[-1]
            loss, spread = _cross_entropy(logits, self.label[place])
            value += float(np.dot(loss, weight.astype(np.float64)))
            curvature += float(np.dot(spread, weight))
            residual = logits
            residual *= weight[:, None]
            gradient[:-1] += block.T @ residual
            gradient[-1] += residual.sum(axis=0)
        coef = theta[:-1]
        gradient[:-1] += np.float32(penalty) * coef
        return value + penalty / 2 * _norm2(coef), gradient, curvature


def _cross_entropy(logits: Float32, label: Array) -> tuple[Float32, Float32]:
    """Loss (b,) of each sample and its mean p (1 - p); `logits` (b, outputs) become their gradients, p - y.

    1 - p of the largest probability is the sum of the others, not a difference from 1: where the penalty is weak, most
    samples are fitted so well that nothing would be left of it.
    """
    if logits.shape[1] == 1:
        sign = (1 - 2 * label).astype(np.float32)
        wrong = logits[:, 0] * sign
        missing = expit(wrong)
        logits[:, 0] = sign * missing
        return np.logaddexp(np.float32(0), wrong), missing * expit(-wrong)
    rows = np.arange(len(logits))
    top = logits.argmax(axis=1)
    logits -= logits[rows, top][:, None]
    target = logits[rows, label]
    np.exp(logits, out=logits)
    logits[rows, top] = 0
    others = logits.sum(axis=1)
    largest = 1 / (1 + others)
    missing = others * largest
    logits *= largest[:, None]
    spread = missing * (1 + largest) - np.einsum("ij,ij->i", logits, logits)
    logits[rows, top] = largest
    logits[rows, label] = np.where(label == top, -missing, logits[rows, label] - 1)
    return np.log1p(others) - target, spread / np.float32(logits.shape[1] - 1)


def zeros(objective: Objective) -> Float32:
    """Where a fit starts."""
    theta = np.zeros((objective.design.shape[1] + 1, objective.outputs), np.float32)
    if objective.outputs > 1:
        present = np.bincount(objective.label, objective.weight, minlength=objective.outputs) > 0
        theta[-1, ~present] = ABSENT
    return theta


def check_memory(n_features: int, n_classes: int) -> None:
    """Raise ValueError where what `minimise` takes at most is larger than the machine's memory."""
    outputs = 1 if n_classes == 2 else n_classes
    needed = 4 * (n_features + 1) * outputs * (2 * HISTORY + 10)  # L-BFGS's pairs and the arrays of a step
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"{n_classes:,} classes of {n_features:,} features need {needed:,} bytes for the solver, and this machine "
            f"has {memory:,}. Join classes, or take a layer with fewer features."
        )


def minimise(objective: Objective, start: Float32 | None = None, *, tol: float, max_iter: int) -> Fit:
    """Follow L-BFGS from `start` until its next step is expected to gain at most `tol` of the objective.

    That is a share, so a start near the optimum of a smaller C is left as any other: the objective has changed with C.

    Without a start, the penalty begins RELAXED times too large and falls as fast as the fit can follow, within the same
    run of L-BFGS. A step from zero with a weak penalty is far too long, and the next ones only find the way back.
    """
    penalty = objective.penalty if start is not None else RELAXED * objective.penalty
    theta = zeros(objective) if start is None else start
    value, gradient, curvature = objective.evaluate(theta, penalty)
    metric = Metric(objective.design.moments, curvature, penalty)
    pairs: deque[Pair] = deque(maxlen=HISTORY)
    n_iter, gained = 0, np.inf
    while True:
        if not metric.suits(curvature, penalty):
            metric = Metric(objective.design.moments, curvature, penalty)
        direction = _direction(gradient, pairs, metric)
        slope = _dot(direction, gradient)
        expected = -slope / 2  # what the next step gains if the objective is quadratic
        if penalty > objective.penalty and expected <= FOLLOWED * value:
            less = max(penalty / RELAX, objective.penalty) - penalty
            penalty += less
            value += less / 2 * _norm2(theta[:-1])
            gradient[:-1] += np.float32(less) * theta[:-1]
            pairs = deque((pair.at(less) for pair in pairs), maxlen=HISTORY)
            continue
        # Not without a look at the last step: after one that was far too long, the next is expected to be tiny.
        converged = expected <= tol * value and gained <= LAST_GAIN * tol * value
        if converged or n_iter == max_iter:
            break
        taken = _search(lambda theta: objective.evaluate(theta, penalty), theta, direction, value, slope)  # noqa: B023
        if taken is None:  # rounding hides what is left
            converged = expected <= max(tol, ROUNDING) * value
            break
        step, (new_value, new_gradient, curvature) = taken
        pair = Pair(np.float32(step) * direction, new_gradient - gradient)
        if pair.product > 0:
            pairs.append(pair)
        gained = value - new_value
        theta, value, gradient = theta + pair.moved, new_value, new_gradient
        n_iter += 1
    return Fit(theta, value * objective.unit, n_iter, converged)


class Pair:
    """A step of L-BFGS, and how it changed the gradient."""

    def __init__(self, moved: Float32, change: Float32) -> None:
        self.moved, self.change = moved, change
        self.product = _dot(moved, change)

    def at(self, more: float) -> Pair:
        """The pair as it would be with `more` penalty."""
        change = self.change
        change[:-1] += np.float32(more) * self.moved[:-1]
        return Pair(self.moved, change)


def _direction(gradient: Float32, pairs: deque[Pair], metric: Metric) -> Float32:
    """Where L-BFGS goes: minus the two-loop recursion's product with the gradient."""
    q = gradient.copy()
    steps = []
    for pair in reversed(pairs):
        steps.append(_dot(pair.moved, q) / pair.product)
        q -= np.float32(steps[-1]) * pair.change
    r = metric.solve(q)
    if pairs:
        last = pairs[-1]
        r *= np.float32(last.product / _dot(last.change, metric.solve(last.change)))
    for pair, step in zip(pairs, reversed(steps), strict=True):
        r += np.float32(step - _dot(pair.change, r) / pair.product) * pair.moved
    return -r


def _search(
    evaluate: Callable[[Float32], Found], theta: Float32, direction: Float32, value: float, slope: float
) -> tuple[float, Found] | None:
    """A step along `direction` that lowers the objective and leaves little of its slope, and what stands there."""
    step, low, high = 1.0, 0.0, np.inf
    slope_low, slope_high = slope, np.inf
    for _ in range(MOST_TRIES):
        found = evaluate(theta + np.float32(step) * direction)
        left = _dot(direction, found[1]) if np.isfinite(found[0]) else np.inf
        if left < STEEP * slope:
            low, slope_low = step, left
        elif left > -STEEP * slope or (left > 0 and found[0] > value):
            high, slope_high = step, left
        else:
            return (step, found) if found[0] < value else None
        # Where a straight line between the two slopes meets 0, not too near to either.
        share = np.clip(slope_low / (slope_low - slope_high), 0.1, 0.9)
        step = low + (high - low) * float(share) if np.isfinite(high) else 3 * step
    return None


class Metric:
    """The inverse of curvature X'X + penalty, the same for every output; for the intercepts, of curvature alone."""

    def __init__(self, moments: Float32, curvature: float, penalty: float) -> None:
        self._curvature, self._penalty = max(curvature, float(np.finfo(np.float32).tiny)), penalty
        if moments.ndim == 1:
            diagonal = np.float32(self._curvature) * moments + np.float32(penalty)
            self._solve: Callable[[Float32], Float32] = lambda vector: vector / diagonal[:, None]
        else:
            factor = _cholesky(np.float32(self._curvature) * moments, penalty)
            self._solve = lambda vector: cho_solve(factor, vector, check_finite=False)

    def suits(self, curvature: float, penalty: float) -> bool:
        ratio = self._curvature / max(curvature, float(np.finfo(np.float32).tiny))
        return penalty == self._penalty and 1 / ADAPT <= ratio <= ADAPT

    def solve(self, vector: Float32) -> Float32:
        solved = np.empty_like(vector)
        solved[:-1] = self._solve(vector[:-1])
        solved[-1] = vector[-1] / np.float32(self._curvature)
        return solved


def _cholesky(matrix: Float32, penalty: float) -> Any:
    ridge = RIDGE
    while True:
        ridged = np.array(matrix, order="F")
        ridged.flat[:: len(ridged) + 1] *= np.float32(1 + ridge)
        ridged.flat[:: len(ridged) + 1] += np.float32(penalty)
        try:
            return cho_factor(ridged, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            ridge *= 10


def _dot(a: Float32, b: Float32) -> float:
    return float(np.vdot(a, b))


def _norm2(a: Float32) -> float:
    return float(np.einsum("ij,ij->", a, a, dtype=np.float64))
