"""How much each feature says of the targets: a group lasso over features, one group for the weights of each.

Standardised features X (n, d), targets T (n, K) less their mean, weights w (n,) that add up to 1. Sought is the matrix
B (d, K) that minimises 1/2 sum_i w_i |t_i - x_i B|^2 + lambda sum_j |B_j|, where |B_j| is the norm of all weights of
feature j: a feature is used for every class or for none (Yuan and Lin, "Model selection and estimation in regression
with grouped variables", 2006; scikit-learn's MultiTaskLasso). Head2Toe (Evci et al., ICML 2022) ranks features by these
norms. Ridge weights would do worse: of features that say the same, such as those of neighbouring layers, ridge gives
each a small share and a unique one the whole, while the group lasso takes one of them.

Features without weight are ranked too, by how near they are to having one: where all weights are optimal, feature j has
none as long as |x_j' residual| is below lambda. So the ranking is total, as one by gradient descent would be.

Solved by FISTA (Beck and Teboulle 2009) with restarts (O'Donoghue and Candes 2015), along a path of falling lambda.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.float64]

__all__ = ["SHARE", "ranked", "relevance"]

SHARE = 0.1  # of the smallest lambda that leaves no feature a weight: figures in docs/heads.md
PATH = 8  # values of lambda on the way there, each starting where the one before ended
LOOSE, TIGHT = 1e-3, 1e-7  # change of a step, of the largest weight, at which a lambda on the way and the last one end
MOST_STEPS = 3000  # in all
POWER_STEPS, POWER_MARGIN = (
    40,
    1.05,
)  # of the power iteration for the largest eigenvalue, which it approaches from below
DOUBLE_VALUES = 2**25  # features that are worked on in float64, 256 MiB of them; more stay in float32
BLOCK_ROWS = 4096


def relevance(X: Array, targets: Array, weight: Array, *, share: float = SHARE) -> Float:
    """The relevance (d,) of each feature of standardised `X` (n, d) for `targets` (n, K), with weights (n,).

    Above 0 it is the norm of the feature's weights; 0 or below, how far it is from having one. X must have weighted
    means of 0. share: lambda, as a share of the smallest at which no feature has a weight.
    Memory: min(n, d) * d float64 values at most beside `X`.
    """
    root = np.sqrt(weight / weight.sum())
    centred = (targets - weight @ targets / weight.sum()) * root[:, None]
    products, correlation = _products(X, root, centred)
    largest = _norms(correlation)
    top = float(largest.max())
    if top <= 0:
        return np.zeros(X.shape[1])
    step = 1 / max(_largest_eigenvalue(products, X.shape[1]), np.finfo(float).tiny)
    B, left = np.zeros(correlation.shape), MOST_STEPS
    path = top * np.geomspace(1, share, PATH + 1)[1:]
    for number, penalty in enumerate(path):
        B, used = _descend(products, correlation, B, penalty, step, TIGHT if number == PATH - 1 else LOOSE, left)
        left = max(1, left - used)
    norms = _norms(B)
    missing = _norms(correlation - products(B)) - path[-1]
    return np.where(norms > 0, norms, np.minimum(missing, 0))


def ranked(scores: Float) -> npt.NDArray[np.intp]:
    """Features (d,), the most relevant first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")


def _products(X: Array, root: Array, targets: Array) -> tuple[Callable[[Float], Float], Float]:
    """B -> X'WX B, and X'W t: by a matrix (d, d) where there are more rows than features, else by the rows."""
    n, d = X.shape
    correlation = np.zeros((d, targets.shape[1]))
    if d <= n:
        gram = np.zeros((d, d))
        for start in range(0, n, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = X[rows].astype(np.float64) * root[rows, None]
            gram += block.T @ block
            correlation += block.T @ targets[rows]
        return lambda B: gram @ B, correlation
    rows_of = (X * root[:, None]).astype(np.float64 if X.size <= DOUBLE_VALUES else np.float32, copy=False)
    correlation[:] = rows_of.T @ targets.astype(rows_of.dtype)
    return lambda B: (rows_of.T @ (rows_of @ B.astype(rows_of.dtype))).astype(np.float64), correlation


def _largest_eigenvalue(products: Callable[[Float], Float], d: int) -> float:
    vector = np.random.default_rng(0).normal(size=(d, 1))
    value = 0.0
    for _ in range(POWER_STEPS):
        vector = vector / max(float(np.linalg.norm(vector)), np.finfo(float).tiny)
        found = products(vector)
        value, vector = float(np.vdot(vector, found)), found
    return POWER_MARGIN * value


def _descend(
    products: Callable[[Float], Float], correlation: Float, B: Float, penalty: float, step: float, tol: float, most: int
) -> tuple[Float, int]:
    """The weights for one penalty, from `B`, and how many steps that took."""
    ahead, momentum, number = B, 1.0, 0
    while number < most:
        number += 1
        moved = ahead + step * (correlation - products(ahead))
        norms = _norms(moved)
        shrink = np.maximum(1 - step * penalty / np.maximum(norms, np.finfo(float).tiny), 0)
        new = moved * shrink[:, None]
        change = new - B
        if float(np.vdot(ahead - new, change)) > 0:  # it overshoots: begin the momentum anew
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = new + (momentum - 1) / following * change, following
        B = new
        if float(np.abs(change).max()) <= tol * max(float(np.abs(B).max()), np.finfo(float).tiny):
            break
    return B, number


def _norms(rows: Float) -> Float:
    found: Float = np.sqrt(np.einsum("jk,jk->j", rows, rows))
    return found
