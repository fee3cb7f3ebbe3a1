"""How far a logistic regression is from its optimum at most, from its gradient.

With the best intercepts for its coefficients W, the objective is a function of W alone, and as convex as its penalty
1/2 ||W||^2: it is at most 1/2 ||gradient||^2 above its minimum (Boyd and Vandenberghe, "Convex Optimization", 9.1.2).
All is computed in float64 from the features as they are given and the coefficients as they are kept, so that rounding
in the fit counts as well. The bound is near where the penalty is strong. Where it is weak it is far too large: it
takes all directions for as flat as the penalty alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.progress import report
from precompute.heads.linear.objective import cross_entropy, two_sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from precompute.heads.base.arrays import Arrays
    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]

__all__ = ["Certificate", "certify", "certify_labels"]

MOST_STEPS = 20  # of Newton's method for the intercepts, which start all but there
EXACT = 1e-13  # of the objective: what such a step may still gain


@dataclass(frozen=True)
class Certificate:
    """intercept: the best one for the coefficients, of their dtype · objective: scikit-learn's, with it · gap: how far
    above the smallest objective that is at most."""

    intercept: Array
    objective: float
    gap: float


def certify(
    views: Sequence[RowView], label: Array, weight: Array, coef: Array, intercept: Array, C: float, arrays: Arrays
) -> Certificate:
    """Of a fit with `coef` (K, d) and `intercept` (K,), or (1, d) and (1,) for two classes.

    label, weight: (n,) of the rows of all `views` · arrays: of float64, where to compute.
    """
    W, best = coef.astype(np.float64), intercept.astype(np.float64)
    penalty = float(np.vdot(W, W)) / 2
    present = np.ones(1, bool) if len(W) == 1 else np.bincount(label, weight, minlength=len(W)) > 0
    value, kept = np.inf, best
    for _ in range(MOST_STEPS):
        loss, gradient, of_intercept, curvature, absent = _read(views, label, weight, W, best, present, arrays)
        if penalty + C * loss > value:  # what the step before gained was less than rounding shows
            break
        value, kept = penalty + C * loss, best
        step = np.zeros_like(best)
        step[present] = np.linalg.lstsq(curvature, of_intercept[present], rcond=1e-12)[0]
        gain = C * abs(float(step @ of_intercept))
        of_weights, slope = W + C * gradient, of_intercept
        if gain <= EXACT * value:
            break
        best = best - step
    rounded = kept.astype(intercept.dtype)
    off = rounded - kept
    # What rounding the intercepts costs (a logit's curvature is 1/2 at most), twice what they may still gain, and what
    # classes without samples cost by being there.
    slack = C * (abs(float(slope @ off)) + float(weight.sum()) * float(off @ off) / 4) + 2 * gain + C * absent
    return Certificate(rounded, value, float(np.vdot(of_weights, of_weights)) / 2 + slack)


def certify_labels(
    views: Sequence[RowView], Y: Array, counts: Array, coef: Array, intercept: Array, C: float, arrays: Arrays
) -> Certificate:
    """The same of independent fits of the labels `Y` (n, L) with `coef` (L, d) and `intercept` (L,): their sums.

    counts: (n, L), or (n, 1) where all labels have the same, the weight of each loss. Every label's gap is that of one
    output, and its intercept a number, so that Newton's steps are divisions.
    """
    W, best = coef.astype(np.float64), intercept.astype(np.float64)
    penalty = (W**2).sum(axis=1) / 2
    value, kept = np.full(len(W), np.inf), best
    of_weights, slope, gain = W, np.zeros(len(W)), np.zeros(len(W))
    for _ in range(MOST_STEPS):
        loss, gradient, of_intercept, curvature = _read_labels(views, Y, counts, W, best, arrays)
        better = penalty + C * loss <= value  # else what the step before gained was less than rounding shows
        if not better.any():
            break
        value, kept = np.where(better, penalty + C * loss, value), np.where(better, best, kept)
        step = np.divide(of_intercept, curvature, out=np.zeros_like(best), where=curvature > 0)
        gain = np.where(better, C * abs(step * of_intercept), gain)
        of_weights = np.where(better[:, None], W + C * gradient, of_weights)
        slope = np.where(better, of_intercept, slope)
        if (gain <= EXACT * value).all():
            break
        best = np.where(better, best - step, best)
    rounded = kept.astype(intercept.dtype)
    off = rounded - kept
    total = counts.sum(axis=0, dtype=np.float64)
    slack = C * (abs(slope * off) + total * off**2 / 8) + 2 * gain  # a single output's curvature is 1/4 at most
    return Certificate(rounded, float(value.sum()), float((of_weights**2).sum() / 2 + slack.sum()))


def _read_labels(
    views: Sequence[RowView], Y: Array, counts: Array, coef: Array, intercept: Array, arrays: Arrays
) -> tuple[Array, Array, Array, Array]:
    """For each label (L,) the loss, its gradients for coefficients (L, d) and intercept, and its curvature for it."""
    labels, d = coef.shape
    loss, of_intercept, curvature = (arrays.zeros(labels) for _ in range(3))
    gradient = arrays.zeros(labels, d)
    W, added = arrays.put(coef), arrays.put(intercept)[:, None]
    size = max(1, arrays.block_bytes // (8 * max(d, labels)))
    start = 0
    for view in views:
        for rows, stored in view.blocks(size):
            block = arrays.put(stored, arrays.dtype)
            at = slice(start + rows.start, start + rows.stop)
            report("rows of the certificate", at.start, len(Y))
            sign = 1 - 2 * arrays.put(Y[at].T, arrays.dtype)
            weight = arrays.put(counts[at].T, arrays.dtype)
            wrong = (W @ block.T + added) * sign
            smaller, larger, losses = two_sides(wrong)
            residual = sign * arrays.xp.where(wrong > 0, larger, smaller) * weight
            loss += (losses * weight).sum(1)
            gradient += residual @ block
            of_intercept += residual.sum(1)
            curvature += (smaller * larger * weight).sum(1)
        start += len(view)
    report("rows of the certificate", len(Y), len(Y))
    found = tuple(arrays.fetch(one) for one in (loss, gradient, of_intercept, curvature))
    return found[0], found[1], found[2], found[3]


def _read(
    views: Sequence[RowView],
    label: Array,
    weight: Array,
    coef: Array,
    intercept: Array,
    present: Array,
    arrays: Arrays,
) -> tuple[float, Array, Array, Array, float]:
    """The loss, its gradients for coefficients and intercepts, its Hessian for the intercepts of classes that are
    `present`, and the loss that the others cause."""
    outputs, d = coef.shape
    loss, absent = 0.0, 0.0
    gradient, of_intercept = arrays.zeros(outputs, d), arrays.zeros(outputs)
    curvature = arrays.zeros(outputs, outputs)
    diagonal = arrays.xp.arange(outputs, device=curvature.device)
    W, added, missing = arrays.put(coef), arrays.put(intercept)[:, None], arrays.put(~present)
    size = max(1, arrays.block_bytes // (8 * max(d, outputs)))
    start = 0
    for view in views:
        for rows, stored in view.blocks(size):
            block = arrays.put(stored, arrays.dtype)
            at = slice(start + rows.start, start + rows.stop)
            report("rows of the certificate", at.start, len(label))
            logits = W @ block.T
            logits += added
            own, counts = arrays.put(label[at]), arrays.put(weight[at], arrays.dtype)
            losses, _ = cross_entropy(logits, own)
            residual = logits * counts
            loss += float(losses @ counts)
            gradient += residual @ block
            of_intercept += residual.sum(1)
            if outputs == 1:
                one = logits[0] + (own == 1)
                curvature += (one * (1 - one)) @ counts
                continue
            proba = logits
            proba[own, arrays.xp.arange(len(own), device=proba.device)] += 1
            absent += float(proba[missing].sum(0) @ counts)
            there = proba * counts
            curvature[diagonal, diagonal] += there.sum(1)
            curvature -= there @ proba.T
        start += len(view)
    report("rows of the certificate", len(label), len(label))
    found = (arrays.fetch(one) for one in (gradient, of_intercept, curvature))
    of_weights, of_intercepts, hessian = found
    return loss, of_weights, of_intercepts, hessian[present][:, present], absent
