"""The objective of L2-regularised logistic regression, and an iterate on it that is evaluated along a direction.

It is scikit-learn's: 1/2 ||W||^2 + C sum_i w_i loss_i with an unpenalised intercept. One pass over the features takes
two products with them, in the features' dtype, block by block. Sums over samples are float64. All is in units of
C sum(w), so that the numbers do not depend on n or C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import cast, namespace, widened
from precompute.heads.linear.passes import Pass
from precompute.system import physical_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.base.arrays import Array
    from precompute.heads.linear.design import Design
    from precompute.heads.linear.passes import Steps

__all__ = ["USUAL_C2", "Iterate", "Objective", "check_memory", "cross_entropy", "dot", "norm2", "two_sides"]

ABSENT = -100.0  # intercept of a class that no weighted sample has: its probability is 0 as far as rounding shows
LARGEST_PENALTY = 1e30  # float32 holds it, and coefficients are 0 long before
LOGITS_SHARE = 0.25  # of the free memory, for stored logits; more are computed anew, from the features
# With fewer, reading features from a file takes longer than the products with them, and an iterate that stores logits
# reads them twice a step, one that does not once.
MANY_OUTPUTS = 256
USUAL_C2 = 0.9
ARRAYS = 50  # of the coefficients' size, at most, that a fit holds: L-BFGS's pairs and those of a step


class Objective:
    """The objective for `label` (n,) in 0..K-1 with sample weights `weight` (n,), 0 for samples left out.

    For two classes there is one output, as in scikit-learn's binary model. `fits` of them go on at the same time.
    """

    def __init__(
        self,
        design: Design,
        label: npt.NDArray[Any],
        weight: npt.NDArray[Any],
        n_classes: int,
        C: float,
        *,
        fits: int = 1,
    ) -> None:
        self.design, self.host_label = design, label
        self.outputs = 1 if n_classes == 2 else n_classes
        total = float(weight.sum(dtype=np.float64))
        self.host_weight = np.asarray(weight, np.float64) / total  # 1/n in float32 would be off by 5e-8 for each
        self.label = design.arrays.put(label)
        self.weight = design.arrays.put(self.host_weight, design.arrays.wide)
        self.C = C
        self.unit = float(C * total)  # of the values below
        self.penalty = float(min(1 / (self.unit * design.scale**2), LARGEST_PENALTY))
        # Reading a file for few outputs takes longer than the products, and stored logits need it twice a step.
        pays = design.in_memory or fits * self.outputs >= MANY_OUTPUTS
        self.stores_logits = pays and fits_at_once(design, self.outputs) >= fits

    def zeros(self) -> Array:
        """Where a fit starts: (axes + 1, outputs), intercepts last."""
        theta = self.design.arrays.zeros(self.design.shape[1] + 1, self.outputs)
        if self.outputs > 1:
            absent = np.bincount(self.host_label, self.host_weight, minlength=self.outputs) == 0
            theta[-1] = self.design.arrays.put(np.where(absent, ABSENT, 0.0), theta.dtype)
        return theta


def fits_at_once(design: Design, outputs: int) -> int:
    """Fits whose logits may be stored at the same time."""
    n_bytes = 2 * design.dtype.itemsize * design.shape[0] * outputs
    return int(LOGITS_SHARE * design.arrays.free_bytes() / n_bytes)


class Iterate:
    """Coefficients `theta` with the loss there, its `gradient` (axes + 1, outputs) and the mean `curvature` p (1 - p).

    All of the loss alone, without the penalty. `begin`, then `set_direction`, `evaluate` steps along it, and `accept`
    the step that was evaluated last.

    Where memory holds them it stores the logits (outputs, n) and how they change along the direction. So an evaluation
    costs no product with the features: with a weak penalty a good direction often has the wrong length, and a third of
    the passes over the features went into finding it. Else every evaluation reads the features.
    """

    def __init__(self, objective: Objective, theta: Array) -> None:
        self._objective, self.theta = objective, theta
        arrays, shape = objective.design.arrays, (objective.outputs, len(objective.host_label))
        self._stores = objective.stores_logits
        if self._stores:
            # Zeros, as samples without weight may never be filled in: what is undefined is not 0 times 0.
            self._current, self._change = arrays.zeros(*shape), arrays.zeros(*shape)

    @property
    def wolfe_c2(self) -> float:
        """How much of the slope at the start of a step its end may have: Wolfe's second condition.

        The usual constant, and less where evaluations are cheap: 0.9 took up to a fifth more steps there, 0.1 no fewer.
        """
        return 0.2 if self._stores else USUAL_C2

    def begin(self) -> Steps[None]:
        self.loss, self.gradient, self.curvature = yield from self._read(self.theta)

    def set_direction(self, direction: Array) -> Steps[None]:
        self._direction = direction
        if self._stores:

            def store(rows: slice, _: Array, logits: Array) -> None:
                self._change[:, rows] = logits

            yield self._pass(store, direction)

    def evaluate(self, step: float) -> Steps[tuple[float, float]]:
        """The loss and its slope after `step` times the direction."""
        if self._stores:
            self._step = step
            return self._along(step)
        theta = self.theta + step * self._direction
        self._evaluated = theta, *(yield from self._read(theta))
        loss, gradient = self._evaluated[1:3]
        return loss, dot(self._direction, gradient) if np.isfinite(loss) else np.inf

    def accept(self) -> Steps[None]:
        if self._stores:
            self.theta = self.theta + self._step * self._direction
            self.loss, self.gradient, self.curvature = yield from self._read(None)
        else:
            self.theta, self.loss, self.gradient, self.curvature = self._evaluated

    def visit_probabilities(self, visit: Callable[[slice, Array, Array], None]) -> Steps[None]:
        """`visit` is given rows, their features (b, axes) and their probabilities (outputs, b) at `theta`, block by
        block."""

        def of_logits(rows: slice, block: Array, logits: Array | None) -> None:
            visit(rows, block, _probabilities(self._current[:, rows] * 1 if logits is None else logits))

        yield self._pass(of_logits, None if self._stores else self.theta)

    def _along(self, step: float) -> tuple[float, float]:
        objective = self._objective
        xp = objective.design.arrays.xp
        size = max(1, objective.design.arrays.logits_at_once // objective.outputs)
        value, slope = 0.0, 0.0
        for start in range(0, len(objective.host_label), size):
            rows = slice(start, start + size)
            if objective.host_weight[rows].any():
                change, weight = self._change[:, rows], objective.weight[rows]
                logits = self._current[:, rows] + step * change
                value += _weighted(cross_entropy(logits, objective.label[rows])[0], weight)
                slope += _weighted(xp.einsum("ij,ij->j", logits, change), weight)
        return float(value), float(slope) if np.isfinite(float(value)) else np.inf

    def _read(self, theta: Array | None) -> Steps[tuple[float, Array, float]]:
        """Loss, gradient and curvature at `theta`, or where stored logits are after the step."""
        objective, value, curvature = self._objective, 0.0, 0.0

        def residual(rows: slice, _: Array, product: Array | None) -> Array:
            nonlocal value, curvature
            logits: Array = self._stored(rows, product) if self._stores else product
            loss, spread = cross_entropy(logits, objective.label[rows])
            weight = objective.weight[rows]
            value += _weighted(loss, weight)
            curvature += _weighted(spread, weight)
            logits *= cast(weight, logits.dtype)
            return logits

        gradient = yield self._pass(residual, theta, outputs=objective.outputs)
        return float(value), gradient, float(curvature)

    def _stored(self, rows: slice, logits: Array | None) -> Array:
        """A copy of the stored logits, once they are `logits`, or have moved by the step."""
        current = self._current[:, rows]
        if logits is None:
            current += self._step * self._change[:, rows]
        else:
            current[:] = logits
        return current * 1

    def _pass(self, visit: Any, coefficients: Array | None, outputs: int = 0) -> Pass:
        return Pass(self._objective.host_weight, visit, coefficients, outputs)


def _weighted(values: Array, weight: Array) -> Any:
    return (cast(values, weight.dtype) * weight).sum()


def cross_entropy(logits: Array, label: Array) -> tuple[Array, Array]:
    """Loss (b,) of each sample and its mean p (1 - p); `logits` (outputs, b) become their gradients, p - y.

    1 - p of the largest probability is the sum of the others, not a difference from 1: where the penalty is weak, most
    samples are fitted so well that nothing would be left of it.
    """
    xp = namespace(logits)
    if len(logits) == 1:
        sign = cast(1 - 2 * label, logits.dtype)
        wrong = logits[0] * sign
        smaller, larger, loss = two_sides(wrong)
        missing = xp.where(wrong > 0, larger, smaller)
        logits[0] = sign * missing
        return loss, smaller * larger
    columns = xp.arange(len(label), device=logits.device)
    logits -= xp.amax(logits, 0)
    target = logits[label, columns]
    xp.exp(logits, out=logits)
    top = logits == 1  # more than one where two are equal
    logits[top] = 0
    ties = cast(xp.count_nonzero(top, 0), logits.dtype) - 1
    others = logits.sum(0) + ties
    largest = 1 / (1 + others)
    missing = others * largest
    logits *= largest
    spread = missing * (1 + largest) - xp.einsum("ij,ij->j", logits, logits) - ties * largest**2
    logits += top * largest
    logits[label, columns] = xp.where(top[label, columns], -missing, logits[label, columns] - 1)
    return xp.log1p(others) - target, spread / (len(logits) - 1)


def two_sides(logit: Array) -> tuple[Array, Array, Array]:
    """The smaller and the larger of p and 1 - p of a single logit, and -log(1 - p), without a difference from 1."""
    xp = namespace(logit)
    small = xp.exp(-abs(logit))
    larger = 1 / (1 + small)
    return small * larger, larger, xp.where(logit > 0, logit, 0) + xp.log1p(small)


def _probabilities(logits: Array) -> Array:
    """`logits` (outputs, b), which are overwritten, as probabilities."""
    xp = namespace(logits)
    if len(logits) == 1:
        smaller, larger, _ = two_sides(logits)
        return xp.where(logits > 0, larger, smaller)
    logits -= xp.amax(logits, 0)
    xp.exp(logits, out=logits)
    logits /= logits.sum(0)
    return logits


def check_memory(n_features: int, n_classes: int, itemsize: int) -> None:
    """Raise ValueError where the coefficients of a fit, and its pairs, take more than the machine's memory."""
    outputs = 1 if n_classes == 2 else n_classes
    needed = itemsize * (n_features + 1) * outputs * ARRAYS
    memory = physical_memory()
    if needed > memory:
        raise ValueError(
            f"{n_classes:,} classes of {n_features:,} features need {needed:,} bytes for the solver, and this machine "
            f"has {memory:,}. Join classes, or take a layer with fewer features."
        )


def dot(a: Array, b: Array) -> float:
    return float(a.ravel() @ b.ravel())


def norm2(a: Array) -> float:
    every = widened(a.ravel())
    return float(every @ every)
