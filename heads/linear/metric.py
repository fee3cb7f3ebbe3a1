"""Approximate inverses of the objective's Hessian: the first metric of L-BFGS.

With K outputs the Hessian is the sum over samples of S_i kron x_i x_i', where S_i = w_i (diag p_i - p_i p_i'), and the
penalty. `Metric` takes every S_i for the same multiple of the identity (Boehning, "Multinomial logistic regression
algorithm", 1992, bounds it by 1/2). That is near where the penalty is strong. Where it is weak, most samples are
fitted so well that they have no curvature left, and a class that is nearly separated from the others has it in a few
samples only: along all other directions its coefficients may go far, and `Metric` holds them back. `ClassMetric` has a
matrix of its own, from the curvature of all samples, for each of K orthogonal combinations of classes: those of the
eigenvectors of the mean S_i, so that two classes that are often confused have one for their difference and one for
their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precompute.heads.base.arrays import cast

if TYPE_CHECKING:
    from precompute.heads.base.arrays import Array, Arrays
    from precompute.heads.linear.design import Design
    from precompute.heads.linear.objective import Iterate, Objective
    from precompute.heads.linear.passes import Steps

__all__ = ["ClassMetric", "Metric", "metrics_at_once"]

ADAPT = 2.0  # the metric is made anew where the mean curvature has changed by this factor
ALIKE = 1.2  # or the penalty by this one; those of folds differ as their numbers of samples do
RIDGE = 1e-6  # of the diagonal, so that moments stay positive definite
CLASS_METRIC_BYTES = 2**29  # that the matrices of a ClassMetric may take
ROWS_PER_AXIS = 8  # that a matrix of a ClassMetric is made from, drawn by their curvature where there are more
DAMPING = 0.03  # of the mean curvature, everywhere: samples that have none now will have some after a long step
FLAT = 1e-6  # of the largest curvature: combinations of classes with less, such as their sum, never change
METRICS_SHARE = 0.25  # of the free memory, for the matrices of all fits that go on at the same time
READING = 20  # operations in the time that a number of two products takes to come from memory
TINY = float(np.finfo(np.float32).tiny)
FEW_FITS = 32  # at the same time where none makes a ClassMetric
NARROW = 32  # outputs: with fewer, a product takes about as long as with so many


class Metric:
    """The inverse of curvature X'X + penalty, the same for every output; for the intercepts, of curvature alone."""

    scaled = True  # L-BFGS brings it to the size of the last step's curvature

    def __init__(self, design: Design, curvature: float, penalty: float) -> None:
        self._arrays, moments = design.arrays, design.moments
        self._curvature, self._penalty = max(curvature, TINY), penalty
        self._diagonal = self._factor = None
        if moments.ndim == 1:
            self._diagonal = (self._curvature * moments + penalty)[:, None]
        else:
            self._factor = _cholesky(self._arrays, self._curvature * moments, penalty)

    @classmethod
    def near(cls, design: Design, curvature: float, penalty: float) -> Metric:
        """The last one that was made for the design and suits, so that folds share it; else a new one."""
        for made in design.metrics:
            found: Metric = made
            if found.suits(curvature, penalty):
                return found
        new = cls(design, curvature, penalty)
        design.metrics = [new, *design.metrics][: design.most_metrics]
        return new

    def suits(self, curvature: float, penalty: float) -> bool:
        of_curvature, of_penalty = self._curvature / max(curvature, TINY), self._penalty / penalty
        return 1 / ADAPT <= of_curvature <= ADAPT and 1 / ALIKE <= of_penalty <= ALIKE

    def solve(self, vector: Array) -> Array:
        solved = self._arrays.empty(*vector.shape)
        if self._factor is None:
            solved[:-1] = vector[:-1] / self._diagonal
        else:
            solved[:-1] = self._arrays.solve(self._factor, vector[:-1])
        solved[-1] = vector[-1] / self._curvature
        return solved


class ClassMetric:
    """The inverse of the Hessian's diagonal blocks, for combinations of classes, with the intercepts.

    basis: (outputs, outputs), a combination in each column · roots: (outputs, axes + 1, axes + 1), R of each block with
    R'R its inverse · rows: of all blocks together, that it was made from.
    """

    scaled = False

    def __init__(self, basis: Array, roots: Array, rows: int) -> None:
        self._basis, self._roots, self.rows = basis, roots, rows

    @classmethod
    def of(cls, objective: Objective, iterate: Iterate) -> Steps[ClassMetric]:
        """That of the Hessian at `iterate`; two passes."""
        design, outputs = objective.design, objective.outputs
        arrays, axes = design.arrays, design.shape[1]
        xp = arrays.xp
        sizes, basis = np.linalg.eigh(arrays.fetch((yield from _mean_spread(objective, iterate))))
        turn = arrays.put(basis, arrays.dtype)
        blocks = arrays.zeros(outputs, axes + 1, axes + 1)
        flat = sizes <= FLAT * sizes.max()
        shares = ROWS_PER_AXIS * axes / np.where(flat, np.inf, sizes)
        squares = turn.T**2
        draws = np.random.default_rng(0)  # a fit must not vary
        n_rows = 0

        def add(rows: slice, block: Array, proba: Array) -> None:
            nonlocal n_rows
            own = squares @ proba
            own -= (turn.T @ proba) ** 2 if outputs > 1 else proba**2
            own *= cast(objective.weight[rows], own.dtype)
            for number, curvature in enumerate(own):
                if flat[number]:
                    continue
                share = xp.clip(curvature * float(shares[number]), None, 1)
                drawn = arrays.put(draws.random(len(block), np.float32)) < share
                drawn &= curvature > 0
                chosen = arrays.empty(int(xp.count_nonzero(drawn)), axes + 1)
                chosen[:, :-1], chosen[:, -1] = block[drawn], 1
                chosen *= xp.sqrt(curvature[drawn] / share[drawn])[:, None]
                blocks[number] += chosen.T @ chosen
                n_rows += len(chosen)

        yield from iterate.visit_probabilities(add)
        diagonal = xp.arange(axes, device=blocks.device)
        for number, size in enumerate(sizes):
            block = blocks[number]
            if flat[number]:
                block[diagonal, diagonal] = block[-1, -1] = max(float(sizes.max()), TINY)
            block[:-1, :-1] += DAMPING * float(size) * design.moments
            block[-1, -1] += DAMPING * max(float(size), TINY)
            block[diagonal, diagonal] += objective.penalty  # not the intercept's
            block[:] = arrays.inverse(_cholesky(arrays, block, 0))
        return cls(turn, blocks, n_rows)

    def suits(self, curvature: float, penalty: float) -> bool:  # noqa: ARG002  # as Metric
        return True

    def solve(self, vector: Array) -> Array:
        turned = vector @ self._basis
        for number, root in enumerate(self._roots):
            turned[:, number] = root.T @ (root @ turned[:, number])
        return turned @ self._basis.T

    @staticmethod
    def fits(objective: Objective) -> bool:
        """Whether its matrices stay within CLASS_METRIC_BYTES."""
        n_bytes = objective.outputs * objective.design.shape[1] ** 2 * objective.design.dtype.itemsize
        return n_bytes <= CLASS_METRIC_BYTES and objective.design.moments.ndim == 2

    @staticmethod
    def product_cost(objective: Objective) -> float:
        """What a product with it takes, which reads its matrices twice, in passes over the features."""
        n, axes = objective.design.shape
        return READING * axes * objective.outputs / (n * max(objective.outputs, NARROW))

    @staticmethod
    def cost(objective: Objective, rows: int | None = None) -> float:
        """What making one takes, from `rows` in all blocks, in passes over the features."""
        n, axes = objective.design.shape
        rows = min(2 * n, ROWS_PER_AXIS * axes * objective.outputs) if rows is None else rows
        making = 2.0 * rows * axes**2 + objective.outputs * axes**3
        return making / (4.0 * n * axes * max(objective.outputs, NARROW))


def metrics_at_once(design: Design, outputs: int) -> int:
    """Fits whose matrices, of a Metric or a ClassMetric, may be held at the same time."""
    n_bytes = outputs * design.shape[1] ** 2 * design.dtype.itemsize
    return int(METRICS_SHARE * design.arrays.free_bytes() / n_bytes) if n_bytes <= CLASS_METRIC_BYTES else FEW_FITS


def _mean_spread(objective: Objective, iterate: Iterate) -> Steps[Array]:
    """The sum over samples of w (diag p - p p'), (outputs, outputs); w p (1 - p) of a single output."""
    arrays = objective.design.arrays
    mean = arrays.zeros(objective.outputs, objective.outputs)
    mean = cast(mean, arrays.wide)
    positions = arrays.xp.arange(objective.outputs, device=mean.device)

    def add(rows: slice, _: Array, proba: Array) -> None:
        weighted = proba * cast(objective.weight[rows], proba.dtype)
        if objective.outputs == 1:
            mean[0, 0] += (weighted * (1 - proba)).sum(dtype=arrays.wide)
        else:
            mean[positions, positions] += weighted.sum(1, dtype=arrays.wide)
            mean[:] -= cast(weighted @ proba.T, arrays.wide)

    yield from iterate.visit_probabilities(add)
    return mean


def _cholesky(arrays: Arrays, matrix: Array, penalty: float) -> Array:
    """The factor of `matrix` (d, d) + penalty, with as large a ridge as rounding makes necessary."""
    diagonal = arrays.xp.arange(len(matrix), device=matrix.device)
    ridge = RIDGE
    while True:
        ridged = matrix * 1
        ridged[diagonal, diagonal] *= 1 + ridge
        ridged[diagonal, diagonal] += penalty
        factor = arrays.cholesky(ridged)
        if factor is not None:
            return factor
        ridge *= 10
