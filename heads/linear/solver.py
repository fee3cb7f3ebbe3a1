"""L2-regularised logistic regression by L-BFGS that starts from an approximate inverse of the Hessian.

Every fit starts with `Metric`, which costs one factorisation. A fit that turns out to be long makes a `ClassMetric`
instead, and makes it anew, each time as many steps later as make up for it: with a weak penalty it cuts the steps to a
fifth, and where the penalty is strong a fit is over before. It replaces L-BFGS's first metric (Nocedal and
Wright, "Numerical Optimization", algorithm 7.4). Steps are judged by slopes, as the objective is convex and slopes stay
exact where differences of its values drown in rounding.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precompute.heads.base.progress import report
from precompute.heads.linear.metric import ClassMetric, Metric
from precompute.heads.linear.objective import USUAL_C2, Iterate, dot, norm2

if TYPE_CHECKING:
    from precompute.heads.base.arrays import Array
    from precompute.heads.linear.objective import Objective
    from precompute.heads.linear.passes import Steps

__all__ = ["Fit", "minimise"]

HISTORY = 20  # pairs of L-BFGS
FIRST, AGAIN = 0.5, 3.0  # times what a ClassMetric takes, in steps before the first is made, and before the next
SHORT = 10  # steps of a fit that needs none; more where each step with it takes longer
MOST_TRIES = 20  # along one direction
PATIENCE = 8  # tries until what is usual is near enough: closer, rounding may hide where the slope is
RELAXED, RELAX = 4.0**5, 4.0  # a fit from zero begins with so much too large a penalty, which falls by this factor
FOLLOWED = 0.005  # of the objective is expected from the next step at most, when it falls
LAST_GAIN = 3  # times tol, that the step before the last may have gained
MOST_BLIND = 3  # steps of a fit that the slopes alone judge, where rounding hides whether they lower the objective
ROUNDING = 8  # machine epsilons of the objective: differences that logits do not show


@dataclass(frozen=True)
class Fit:
    """theta: (axes + 1, outputs), intercepts last, in the design's arrays · value: scikit-learn's objective."""

    theta: Array
    value: float
    n_iter: int
    converged: bool


def minimise(objective: Objective, start: Array | None = None, *, tol: float, max_iter: int) -> Steps[Fit]:
    """Follow L-BFGS from `start` until its next step is expected to gain at most `tol` of the objective.

    That is a share, so a start near the optimum of a smaller C is left as any other: the objective has changed with C.

    Without a start, the penalty begins RELAXED times too large and falls as fast as the fit can follow, within the same
    run of L-BFGS. A step from zero with a weak penalty is far too long, and the next ones only find the way back.
    """
    penalty = objective.penalty if start is not None else RELAXED * objective.penalty
    iterate = Iterate(objective, objective.zeros() if start is None else start)
    yield from iterate.begin()
    value, gradient = _penalised(iterate, penalty)
    metric: Metric | ClassMetric = Metric.near(objective.design, iterate.curvature, penalty)
    made, patience = 0, _patience(objective)
    pairs: deque[Pair] = deque(maxlen=HISTORY)
    n_iter, blind, gained = 0, 0, np.inf
    while True:
        report(f"steps at C = {objective.C:g}", n_iter, max_iter)
        if penalty == objective.penalty and n_iter - made >= patience:
            metric = yield from ClassMetric.of(objective, iterate)
            made, patience = n_iter, AGAIN * ClassMetric.cost(objective, metric.rows)
        elif not metric.suits(iterate.curvature, penalty):
            metric = Metric.near(objective.design, iterate.curvature, penalty)
        direction = _direction(gradient, pairs, metric)
        slope = dot(direction, gradient)
        expected = -slope / 2  # what the next step gains if the objective is quadratic
        if penalty > objective.penalty and expected <= FOLLOWED * value:
            before, penalty = penalty, max(penalty / RELAX, objective.penalty)
            value, gradient = _penalised(iterate, penalty)
            pairs = deque((pair.with_penalty(penalty - before) for pair in pairs), maxlen=HISTORY)
            continue
        # The last step counts too: after one that was far too long, the next is expected to be tiny.
        converged = expected <= tol * value and gained <= LAST_GAIN * tol * value
        if converged or n_iter == max_iter:
            break
        hidden = float(np.finfo(objective.design.dtype).eps) * value if blind < MOST_BLIND else 0.0
        step = yield from _line_search(iterate, direction, value, slope, penalty, hidden)
        if step is None:  # rounding hides what is left
            converged = expected <= max(tol, ROUNDING * float(np.finfo(objective.design.dtype).eps)) * value
            break
        yield from iterate.accept()
        value_before, gradient_before = value, gradient
        value, gradient = _penalised(iterate, penalty)
        pair = Pair(step * direction, gradient - gradient_before)
        if pair.product > 0:
            pairs.append(pair)
        gained = value_before - value
        blind += gained <= 0
        n_iter += 1
    report(f"steps at C = {objective.C:g}", n_iter, n_iter)
    return Fit(iterate.theta, value * objective.unit, n_iter, converged)


def _patience(objective: Objective) -> float:
    """Steps before the first ClassMetric: none where it takes less than a pass, as Newton's method needs few."""
    if not ClassMetric.fits(objective):
        return np.inf
    cost = ClassMetric.cost(objective)
    return max(FIRST * cost, SHORT * (1 + ClassMetric.product_cost(objective)) ** 2) if cost > 1 else 0


def _penalised(iterate: Iterate, penalty: float) -> tuple[float, Array]:
    """Value and gradient with the penalty, which intercepts do not have."""
    gradient = iterate.gradient * 1
    gradient[:-1] += penalty * iterate.theta[:-1]
    return iterate.loss + penalty / 2 * norm2(iterate.theta[:-1]), gradient


class Pair:
    """A step of L-BFGS, and how it changed the gradient."""

    def __init__(self, moved: Array, change: Array) -> None:
        self.moved, self.change = moved, change
        self.product = dot(moved, change)

    def with_penalty(self, more: float) -> Pair:
        """The pair as it would be with `more` penalty."""
        change = self.change
        change[:-1] += more * self.moved[:-1]
        return Pair(self.moved, change)


def _direction(gradient: Array, pairs: deque[Pair], metric: Metric | ClassMetric) -> Array:
    """Where L-BFGS goes: minus the two-loop recursion's product with the gradient."""
    q = gradient * 1
    steps = []
    for pair in reversed(pairs):
        steps.append(dot(pair.moved, q) / pair.product)
        q -= steps[-1] * pair.change
    r = metric.solve(q)
    if pairs and metric.scaled:
        last = pairs[-1]
        r *= last.product / dot(last.change, metric.solve(last.change))
    for pair, step in zip(pairs, reversed(steps), strict=True):
        r += (step - dot(pair.change, r) / pair.product) * pair.moved
    return -r


def _line_search(
    iterate: Iterate, direction: Array, value: float, slope: float, penalty: float, hidden: float
) -> Steps[float | None]:
    """A step along `direction` that lowers the objective and leaves little of its slope, the one evaluated last.

    hidden: what rounding may add to the objective. None where no step is found.
    """
    yield from iterate.set_direction(direction)
    size, across, length = norm2(iterate.theta[:-1]), dot(iterate.theta[:-1], direction[:-1]), norm2(direction[:-1])
    step, low, high = 1.0, 0.0, np.inf
    slope_low, slope_high = slope, np.inf
    for tries in range(MOST_TRIES):
        c2 = iterate.wolfe_c2 if tries < PATIENCE else USUAL_C2
        loss, left = yield from iterate.evaluate(step)
        found = loss + penalty / 2 * (size + step * (2 * across + step * length))
        left += penalty * (across + step * length)
        if left < c2 * slope:
            low, slope_low = step, left
        elif left > -c2 * slope or (left > 0 and found > value):
            high, slope_high = step, left
        else:
            return step if found < value + hidden else None
        # Where a straight line between the two slopes meets 0, not too near to either.
        share = np.clip(slope_low / (slope_low - slope_high), 0.1, 0.9)
        step = low + (high - low) * float(share) if np.isfinite(high) else 3 * step
    return None
