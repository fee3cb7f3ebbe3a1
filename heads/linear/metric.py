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

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, get_lapack_funcs

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.linear.objective import Iterate, Objective

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.floating]

__all__ = ["ClassMetric", "Metric"]

ADAPT = 2.0  # the metric is made anew where the mean curvature has changed by this factor
RIDGE = 1e-6  # of the diagonal, so that moments stay positive definite
CLASS_METRIC_BYTES = 2**29  # that the matrices of a ClassMetric may take
ROWS_PER_AXIS = 8  # that a matrix of a ClassMetric is made from, drawn by their curvature where there are more
DAMPING = 0.03  # of the mean curvature, everywhere: samples that have none now will have some after a long step
FLAT = 1e-6  # of the largest curvature: combinations of classes with less, such as their sum, never change
READING = 20  # operations in the time that a number of two products takes to come from memory
NARROW = 32  # outputs: with fewer, a product takes about as long as with so many


class Metric:
    """The inverse of curvature X'X + penalty, the same for every output; for the intercepts, of curvature alone."""

    scaled = True  # L-BFGS brings it to the size of the last step's curvature

    def __init__(self, moments: Float, curvature: float, penalty: float) -> None:
        self._curvature, self._penalty = max(curvature, float(np.finfo(np.float32).tiny)), penalty
        if moments.ndim == 1:
            diagonal = self._curvature * moments + penalty
            self._solve: Callable[[Float], Float] = lambda vector: vector / diagonal[:, None]
        else:
            factor = _cholesky(self._curvature * moments, penalty)
            self._solve = lambda vector: cho_solve(factor, vector, check_finite=False)

    def suits(self, curvature: float, penalty: float) -> bool:
        ratio = self._curvature / max(curvature, float(np.finfo(np.float32).tiny))
        return penalty == self._penalty and 1 / ADAPT <= ratio <= ADAPT

    def solve(self, vector: Float) -> Float:
        solved = np.empty_like(vector)
        solved[:-1] = self._solve(vector[:-1])
        solved[-1] = vector[-1] / self._curvature
        return solved


class ClassMetric:
    """The inverse of the Hessian's diagonal blocks at `iterate`, for combinations of classes, with the intercepts.

    Attributes: rows: of all blocks together, that it was made from.
    """

    scaled = False

    def __init__(self, objective: Objective, iterate: Iterate) -> None:
        axes, outputs = objective.design.shape[1], objective.outputs
        mean = np.zeros((outputs, outputs))
        for _, weight, _, proba in iterate.probabilities():
            mean += _spread(proba, weight)
        sizes, basis = np.linalg.eigh(mean)
        self._basis = basis.astype(objective.design.dtype)
        blocks = np.zeros((outputs, axes + 1, axes + 1), objective.design.dtype)
        flat = sizes <= FLAT * sizes.max()
        blocks[flat] = np.eye(axes + 1) * max(sizes.max(), np.finfo(np.float32).tiny)
        shares = ROWS_PER_AXIS * axes / np.where(flat, np.inf, sizes)
        squares = self._basis.T**2
        draws = np.random.default_rng(0)  # a fit must not vary
        self.rows = 0
        for _, weight, block, proba in iterate.probabilities():
            own = squares @ proba
            if outputs > 1:
                own -= (self._basis.T @ proba) ** 2
            else:
                own -= proba**2
            own *= weight.astype(own.dtype)
            for number, curvature in enumerate(own):
                if flat[number]:
                    continue
                share = np.minimum(curvature * shares[number], 1)
                chosen = np.flatnonzero(draws.random(len(share), np.float32) < share)
                chosen = chosen[curvature[chosen] > 0]
                self.rows += len(chosen)
                rows = np.empty((len(chosen), axes + 1), block.dtype)
                rows[:, :-1], rows[:, -1] = block[chosen], 1
                rows *= np.sqrt(curvature[chosen] / share[chosen])[:, None]
                blocks[number] += rows.T @ rows
        for number, size in enumerate(sizes):
            blocks[number, :-1, :-1] += DAMPING * size * objective.design.moments
            blocks[number, -1, -1] += DAMPING * max(size, np.finfo(np.float32).tiny)
            blocks[number].flat[: -1 : axes + 2] += objective.penalty  # not the intercept's
            blocks[number] = _inverse_root(blocks[number])
        self._roots = blocks

    def suits(self, curvature: float, penalty: float) -> bool:  # noqa: ARG002  # as Metric
        return True

    def solve(self, vector: Float) -> Float:
        turned = vector @ self._basis
        for number, root in enumerate(self._roots):
            turned[:, number] = root.T @ (root @ turned[:, number])
        solved: Float = turned @ self._basis.T
        return solved

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


def _spread(proba: Float, weight: Array) -> Array:
    """The sum over samples of w (diag p - p p'), float64, of `proba` (outputs, b); w p (1 - p) of a single output."""
    weighted = proba * weight.astype(proba.dtype)
    if len(proba) == 1:
        return np.array([[float((weighted * (1 - proba)).sum(dtype=np.float64))]])
    return np.diag(weighted.sum(axis=1, dtype=np.float64)) - (weighted @ proba.T).astype(np.float64)


def _cholesky(matrix: Float, penalty: float) -> Any:
    ridge = RIDGE
    while True:
        ridged = np.array(matrix, order="F")
        ridged.flat[:: len(ridged) + 1] *= 1 + ridge
        ridged.flat[:: len(ridged) + 1] += penalty
        try:
            return cho_factor(ridged, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            ridge *= 10


def _inverse_root(matrix: Float) -> Float:
    """R with R'R the inverse of `matrix`: for one vector, two products take a tenth of what two solves do."""
    factor, _ = _cholesky(matrix, 0)
    (trtri,) = get_lapack_funcs(("trtri",), (factor,))
    root, _ = trtri(factor, lower=True)
    return np.asarray(np.tril(root))
