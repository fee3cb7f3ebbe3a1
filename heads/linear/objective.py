"""The objective of L2-regularised logistic regression, and an iterate on it that is evaluated along a direction.

It is scikit-learn's: 1/2 ||W||^2 + C sum_i w_i loss_i with an unpenalised intercept. One pass over the features takes
two products with them, in the features' dtype, block by block. Sums over samples are float64. All is in units of
C sum(w), so that the numbers do not depend on n or C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from precompute.system import physical_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.linear.design import Design

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.floating]

__all__ = ["Iterate", "Objective", "check_memory", "cross_entropy", "dot", "norm2"]

ABSENT = -100.0  # intercept of a class that no weighted sample has: its probability is 0 as far as rounding shows
LARGEST_PENALTY = 1e30  # float32 holds it, and coefficients are 0 long before
LOGITS_BYTES = 2**31  # of stored logits; more are computed anew, from the features, in every evaluation
# With fewer, reading features from a file takes longer than the products with them, and an iterate that stores logits
# reads them twice a step, one that does not once.
MANY_OUTPUTS = 256
LOGITS_AT_ONCE = 2**17  # of an evaluation; they stay in the processor's cache
ARRAYS = 50  # of the coefficients' size, at most, that a fit holds: L-BFGS's pairs and those of a step


class Objective:
    """The objective for `label` (n,) in 0..K-1 with sample weights `weight` (n,), 0 for samples left out.

    For two classes there is one output, as in scikit-learn's binary model.
    """

    def __init__(self, design: Design, label: Array, weight: Array, n_classes: int, C: float) -> None:
        self.design, self.label = design, label
        self.outputs = 1 if n_classes == 2 else n_classes
        total = float(weight.sum(dtype=np.float64))
        self.weight = np.asarray(weight, np.float64) / total  # 1/n in float32 would be off by 5e-8 for every sample
        self.C = C
        self.unit = float(C * total)  # of the values below
        self.penalty = float(min(1 / (self.unit * design.scale**2), LARGEST_PENALTY))

    def zeros(self) -> Float:
        """Where a fit starts: (axes + 1, outputs), intercepts last."""
        theta = np.zeros((self.design.shape[1] + 1, self.outputs), self.design.dtype)
        if self.outputs > 1:
            present = np.bincount(self.label, self.weight, minlength=self.outputs) > 0
            theta[-1, ~present] = ABSENT
        return theta

    def at(self, theta: Float) -> Iterate:
        fits = 2 * self.design.dtype.itemsize * len(self.label) * self.outputs <= LOGITS_BYTES
        pays = self.design.in_memory or self.outputs >= MANY_OUTPUTS
        return StoredLogits(self, theta) if fits and pays else Iterate(self, theta)


class Iterate:
    """Coefficients `theta` with the loss there, its `gradient` (axes + 1, outputs) and the mean `curvature` p (1 - p).

    All of the loss alone, without the penalty. `set_direction`, `evaluate` steps along it, and `accept` the step that
    was evaluated last. This one stores nothing of the samples, so every evaluation reads the features.
    """

    # Wolfe's second condition with the usual constant: how much of the slope at the start of a step its end may have.
    wolfe_c2 = 0.9

    def __init__(self, objective: Objective, theta: Float) -> None:
        self._objective, self.theta = objective, theta
        self.loss, self.gradient, self.curvature = self._read(theta)

    def set_direction(self, direction: Float) -> None:
        self._direction = direction

    def evaluate(self, step: float) -> tuple[float, float]:
        """The loss and its slope after `step` times the direction."""
        theta = self.theta + step * self._direction
        self._evaluated = theta, *self._read(theta)
        loss, gradient = self._evaluated[1:3]
        return loss, dot(self._direction, gradient) if np.isfinite(loss) else np.inf

    def accept(self) -> None:
        self.theta, self.loss, self.gradient, self.curvature = self._evaluated

    def probabilities(self) -> Iterator[tuple[slice, Array, Float, Float]]:
        """Block by block: rows, their weights, features (b, axes) and probabilities (outputs, b) at `theta`."""
        for rows, weight, block in self._blocks():
            yield rows, weight, block, _probabilities(self._logits_at(rows, block))

    def _read(self, theta: Float) -> tuple[float, Float, float]:
        """Loss, gradient and curvature."""
        gradient = np.zeros_like(theta)
        value, curvature = 0.0, 0.0
        for rows, weight, block in self._blocks():
            logits = self._logits(rows, block, theta)
            loss, spread = cross_entropy(logits, self._objective.label[rows])
            value += _weighted(loss, weight)
            curvature += _weighted(spread, weight)
            residual = logits
            residual *= weight.astype(residual.dtype)
            gradient[:-1] += block.T @ residual.T
            gradient[-1] += residual.sum(axis=1)
        return value, gradient, curvature

    def _blocks(self) -> Iterator[tuple[slice, Array, Float]]:
        for rows, block in self._objective.design.blocks(self._objective.outputs):
            weight = self._objective.weight[rows]
            if weight.any():
                yield rows, weight, block

    def _logits(self, rows: slice, block: Float, theta: Float) -> Float:  # noqa: ARG002  # rows: for StoredLogits
        """Those (outputs, b) of some samples, in memory of their own."""
        logits: Float = theta[:-1].T @ block.T
        logits += theta[-1][:, None]
        return logits

    def _logits_at(self, rows: slice, block: Float) -> Float:
        """The same at the iterate's own `theta`."""
        return self._logits(rows, block, self.theta)


class StoredLogits(Iterate):
    """An iterate that stores the logits (outputs, n) and how they change along the direction.

    So an evaluation costs no product with the features: with a weak penalty a good direction often has the wrong
    length, and a third of the passes over the features went into finding it.
    """

    wolfe_c2 = 0.2  # evaluations are cheap; 0.9 took up to a fifth more steps, 0.1 no fewer

    def __init__(self, objective: Objective, theta: Float) -> None:
        shape = objective.outputs, len(objective.label)
        # Zeros, as samples without weight may never be filled in: what is undefined is not 0 times 0.
        self._current, self._change = np.zeros(shape, theta.dtype), np.zeros(shape, theta.dtype)
        self._step: float | None = None
        super().__init__(objective, theta)

    def set_direction(self, direction: Float) -> None:
        self._direction = direction
        for rows, _, block in self._blocks():
            self._change[:, rows] = super()._logits(rows, block, direction)

    def evaluate(self, step: float) -> tuple[float, float]:
        self._step = step
        weight, label = self._objective.weight, self._objective.label
        size = max(1, LOGITS_AT_ONCE // self._objective.outputs)
        value, slope = 0.0, 0.0
        for start in range(0, len(label), size):
            rows = slice(start, start + size)
            if weight[rows].any():
                change = self._change[:, rows]
                logits = self._current[:, rows] + self._step * change
                value += _weighted(cross_entropy(logits, label[rows])[0], weight[rows])
                slope += _weighted(np.einsum("ij,ij->j", logits, change), weight[rows])
        return value, slope if np.isfinite(value) else np.inf

    def accept(self) -> None:
        assert self._step is not None  # an evaluation comes before each step
        self.theta = self.theta + self._step * self._direction
        self.loss, self.gradient, self.curvature = self._read(self.theta)

    def _logits(self, rows: slice, block: Float, theta: Float) -> Float:
        current = self._current[:, rows]
        if self._step is None:
            current[:] = super()._logits(rows, block, theta)
        else:
            current += self._step * self._change[:, rows]
        return current.copy()

    def _logits_at(self, rows: slice, block: Float) -> Float:  # noqa: ARG002  # block: as above
        return self._current[:, rows].copy()


def _weighted(values: Float, weight: Array) -> float:
    return float(np.dot(values.astype(np.float64), weight))


def cross_entropy(logits: Float, label: Array) -> tuple[Float, Float]:
    """Loss (b,) of each sample and its mean p (1 - p); `logits` (outputs, b) become their gradients, p - y.

    1 - p of the largest probability is the sum of the others, not a difference from 1: where the penalty is weak, most
    samples are fitted so well that nothing would be left of it.
    """
    if len(logits) == 1:
        sign = (1 - 2 * label).astype(logits.dtype)
        wrong = logits[0] * sign
        missing = expit(wrong)
        logits[0] = sign * missing
        return np.logaddexp(logits.dtype.type(0), wrong), missing * expit(-wrong)
    columns = np.arange(len(label))
    logits -= logits.max(axis=0)
    target = logits[label, columns]
    np.exp(logits, out=logits)
    top = logits == 1  # more than one where two are equal
    logits[top] = 0
    ties = np.count_nonzero(top, axis=0).astype(logits.dtype) - 1
    others = logits.sum(axis=0) + ties
    largest = 1 / (1 + others)
    missing = others * largest
    logits *= largest
    spread = missing * (1 + largest) - np.einsum("ij,ij->j", logits, logits) - ties * largest**2
    np.copyto(logits, largest, where=top)
    logits[label, columns] = np.where(top[label, columns], -missing, logits[label, columns] - 1)
    return np.log1p(others) - target, spread / (len(logits) - 1)


def _probabilities(logits: Float) -> Float:
    """`logits` (outputs, b), which are overwritten, as probabilities."""
    if len(logits) == 1:
        return np.asarray(expit(logits))
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
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


def dot(a: Float, b: Float) -> float:
    return float(np.vdot(a, b))


def norm2(a: Float) -> float:
    return float(np.einsum("ij,ij->", a, a, dtype=np.float64))
