"""How much each feature says of the targets: a group lasso over features, one group for the weights of each.

Standardised features X (n, d), targets T (n, K) less their mean, weights w (n,) that add up to 1. Sought is the matrix
B (d, K) that minimises 1/2 sum_i w_i |t_i - x_i B|^2 + lambda sum_j |B_j|, where |B_j| is the norm of all weights of
feature j: a feature is used for every class or for none (Yuan and Lin, "Model selection and estimation in regression
with grouped variables", 2006; scikit-learn's MultiTaskLasso). Head2Toe (Evci et al., ICML 2022) ranks features by these
norms. Ridge weights would do worse: of features that say the same, such as those of neighbouring layers, ridge gives
each a small share and a unique one the whole, while the group lasso takes one of them.

Features without weight are ranked too, by how near they are to having one: where all weights are optimal, feature j has
none as long as |x_j' residual| is below lambda. So the ranking is total, as one by gradient descent would be.

Solved along a path of falling lambda, on a working set of features that strong rules propose (Tibshirani et al. 2012)
and the gradient of all features completes, the most violated ones first (as in Massias et al., "Celer", ICML 2018), by
FISTA (Beck and Teboulle 2009), restarted (O'Donoghue and Candes 2015).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.float64]

__all__ = ["SHARE", "ranked", "relevance"]

SHARE = 0.1  # of the smallest lambda that leaves no feature a weight: figures in docs/heads.md
PATH = 8  # values of lambda on the way there, each starting where the one before ended
LOOSE, TIGHT = 1e-3, 1e-6  # change of a step, of the largest weight, at which a fit on the way and the last one end
SLACK = 1e-6  # of lambda, by which a gradient may exceed it in rounding
MOST_STEPS, MOST_SETS = 3000, 50  # of a fit, and working sets for one lambda
FEWEST = 50  # features that a working set takes in at once
# Of the power iteration for the largest eigenvalue, which it approaches from below.
POWER_STEPS, POWER_MARGIN = 40, 1.05
BLOCK_VALUES = 2**23  # of float64 at once


def relevance(X: Array, targets: Array, weight: Array, *, share: float = SHARE) -> Float:
    """The relevance (d,) of each feature of standardised `X` (n, d) for `targets` (n, K), with weights (n,).

    Above 0 it is the norm of the feature's weights; 0 or below, how far it is from having one. X must have weighted
    means of 0. share: lambda, as a share of the smallest at which no feature has a weight.
    Memory next to `X`: blocks of it, and a matrix (k, k) of float64 for the k features that have or may get a weight.
    """
    counts = weight / weight.sum()
    centred = targets - counts @ targets
    every = np.arange(X.shape[1])
    gradient = _products(X, every, centred, counts)
    B, pull = np.zeros(gradient.shape), _norms(gradient)
    before = largest = float(pull.max())
    if largest <= 0:
        return np.zeros(len(B))
    path = largest * np.geomspace(1, share, PATH + 1)[1:]
    for penalty in path:
        tol = TIGHT if penalty == path[-1] else LOOSE
        working = B.any(axis=1)
        missing = (pull >= 2 * penalty - before) & ~working
        for turn in range(MOST_SETS):
            # As many as have a weight, so that few are fitted in vain; all where that takes too many turns.
            more = max(FEWEST, int(B.any(axis=1).sum())) if turn <= MOST_SETS // 2 else len(every)
            working |= _largest(pull, missing, more)
            chosen = np.flatnonzero(working)
            B[chosen] = _fit(X, chosen, centred, counts, B[chosen], penalty, tol)
            pull = _norms(_products(X, every, centred - _predicted(X, chosen, B[chosen]), counts))
            missing = (pull > penalty * (1 + SLACK)) & ~working
            if not missing.any():
                break
        before = penalty
    norms = _norms(B)
    return np.where(norms > 0, norms, np.minimum(pull - before, 0))


def _largest(norms: Float, among: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """So many of the features `among` others (d,), those of the largest norms."""
    found = np.zeros_like(among)
    places = np.flatnonzero(among)
    found[places[np.argsort(-norms[places], kind="stable")[:count]]] = True
    return found


def ranked(scores: Float) -> npt.NDArray[np.intp]:
    """Features (d,), the most relevant first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")


def _blocks(X: Array, columns: Array) -> Iterator[tuple[slice, Float]]:
    """Rows of some columns of X, in float64."""
    size = max(1, BLOCK_VALUES // max(1, len(columns)))
    for start in range(0, len(X), size):
        rows = slice(start, start + size)
        part = X[rows] if len(columns) == X.shape[1] else X[rows][:, columns]
        yield rows, part.astype(np.float64)


def _products(X: Array, columns: Array, values: Float, counts: Array) -> Float:
    """X' diag(counts) values of some columns, (k, K)."""
    total = np.zeros((len(columns), values.shape[1]))
    for rows, block in _blocks(X, columns):
        total += block.T @ (values[rows] * counts[rows, None])
    return total


def _predicted(X: Array, columns: Array, B: Float) -> Float:
    found = np.empty((len(X), B.shape[1]))
    for rows, block in _blocks(X, columns):
        found[rows] = block @ B
    return found


def _fit(X: Array, columns: Array, targets: Float, counts: Array, B: Float, penalty: float, tol: float) -> Float:
    """The weights (k, K) of some columns for one penalty, from `B`."""
    gram, correlation = np.zeros((len(columns), len(columns))), np.zeros(B.shape)
    for rows, block in _blocks(X, columns):
        weighed = block * counts[rows, None]
        gram += block.T @ weighed
        correlation += weighed.T @ targets[rows]
    step = 1 / max(_largest_eigenvalue(gram), np.finfo(float).tiny)
    ahead, momentum = B, 1.0
    for _ in range(MOST_STEPS):
        moved = ahead + step * (correlation - gram @ ahead)
        shrink = np.maximum(1 - step * penalty / np.maximum(_norms(moved), np.finfo(float).tiny), 0)
        new = moved * shrink[:, None]
        change = new - B
        if float(np.vdot(ahead - new, change)) > 0:  # it overshoots: begin the momentum anew
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = new + (momentum - 1) / following * change, following
        B = new
        if float(np.abs(change).max()) <= tol * max(float(np.abs(B).max()), np.finfo(float).tiny):
            break
    return B


def _largest_eigenvalue(gram: Float) -> float:
    vector = np.random.default_rng(0).normal(size=len(gram))
    value = 0.0
    for _ in range(POWER_STEPS):
        vector = vector / max(float(np.linalg.norm(vector)), np.finfo(float).tiny)
        found = gram @ vector
        value, vector = float(vector @ found), found
    return POWER_MARGIN * value


def _norms(rows: Float) -> Float:
    found: Float = np.sqrt(np.einsum("jk,jk->j", rows, rows))
    return found
