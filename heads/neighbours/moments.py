"""Means of classes and the scatter around them, from sums over blocks of rows that a fold can be taken out of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from precompute.heads.base.unit import add_class_sums

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]

__all__ = ["COVARIANCE_TYPES", "MOST_AXES", "Moments", "class_moments", "covariance_type"]

COVARIANCE_TYPES = ("full", "diag", "identity")
# A covariance of 4,096 features (VGG's) has 134 MB in float64, a fit holds about four such, and its time grows with
# the square of the features, from a point on with their cube.
MOST_AXES = 4096
# Sums of a million products in float64 are good to about that. What is smaller beside what was summed is no scatter.
ROUNDING = 1e-13


def covariance_type(n_features: int) -> str:
    return "full" if n_features <= MOST_AXES else "diag"


@dataclass(frozen=True)
class Moments:
    """Of rows less the origin of their class, each with its weight, all float64.

    origin: (K, d), the first row of each class, so that little cancels and rows that are alike have no scatter to the
    last bit · rows: (K,), how many · count: (K,), their weights · sums: (K, d) · second: the sum over all rows of their
    outer product, (d, d), or of its diagonal alone, (d,), empty where no scatter is requested · seen: the trace of
    `second` before parts were taken out.
    """

    origin: Array
    rows: Array
    count: Array
    sums: Array
    second: Array
    seen: float

    def __sub__(self, part: Moments) -> Moments:
        """Without the rows of `part`, which has the same origin."""
        rest = {name: getattr(self, name) - getattr(part, name) for name in ("rows", "count", "sums", "second")}
        rest["count"] = np.where(rest["rows"] > 0, rest["count"], 0)  # what rounding leaves of weights is no row
        return replace(self, **rest)

    def means(self) -> Array:
        """(K, d); the origin for a class without rows."""
        means: Array = self.origin + self.sums / self._divisor[:, None]
        return means

    @property
    def _divisor(self) -> Array:
        """The count (K,), 1 for a class without rows."""
        return np.where(self.count > 0, self.count, 1)

    def variance(self, shrinkage: float) -> float:
        """The within-class variance of a feature, averaged over features; 0 where none stands out from rounding."""
        moved = (self.sums**2).sum(axis=1) / self._divisor
        scatter = float(_diagonal(self.second).sum() - moved.sum())
        n_features = self.sums.shape[1]
        # So `shrinkage` times the mean variance, what keeps the covariance positive definite, is above rounding.
        there = scatter * shrinkage / n_features > ROUNDING * self.seen
        return scatter / (float(self.count.sum()) * n_features) if there else 0.0

    def precision_times(self, directions: Array, shrinkage: float) -> Array:
        """Sigma^-1 v for each row v of `directions` (K, d), where `variance` is above 0.

        Sigma = (1 - shrinkage) S + shrinkage tr(S)/d I, S being the pooled within-class covariance.
        """
        scaled = self.sums / np.sqrt(self._divisor)[:, None]
        full = self.second.ndim == 2
        # In place from here on: the covariance is what takes the memory.
        covariance = scaled.T @ scaled if full else (scaled**2).sum(axis=0)
        np.subtract(self.second, covariance, out=covariance)
        covariance *= (1 - shrinkage) / self.count.sum()
        diagonal = _diagonal(covariance)
        diagonal += shrinkage * self.variance(shrinkage)
        if not full:
            quotient: Array = directions / covariance
            return quotient
        factor = cho_factor(covariance.T, lower=True, overwrite_a=True, check_finite=False)
        product: Array = cho_solve(factor, directions.T, check_finite=False).T
        return product


def class_moments(
    view: RowView,
    label: Array,
    weight: Array,
    origin: Array,
    covariance: str,
    prepare: Callable[[Array], Array],
) -> Moments:
    """Of the rows of `view` (n, d), each block as `prepare` makes it, (b, d) float64; `label` (n,) says their class and
    `weight` (n,) how often a row counts.

    covariance: which second moments to collect, one of COVARIANCE_TYPES. They are read in blocks.
    """
    n_features = view.shape[1]
    sums = np.zeros_like(origin)
    second = np.zeros({"full": (n_features, n_features), "diag": (n_features,), "identity": (0,)}[covariance])
    for chosen, block in view.blocks():
        rows = prepare(block)
        rows -= origin[label[chosen]]
        each = weight[chosen, None]
        equal = bool((each == 1).all())
        add_class_sums(sums, rows if equal else rows * each, label[chosen])
        if not equal:
            rows *= np.sqrt(each)
        if covariance == "full":
            second += rows.T @ rows
        elif covariance == "diag":
            second += (rows**2).sum(axis=0)
    number, count = (np.bincount(label, weights, len(origin)) for weights in (None, weight))
    return Moments(origin, number, count, sums, second, float(_diagonal(second).sum()))


def _diagonal(moments: Array) -> Array:
    """The diagonal of (d, d) as a view, or (d,) itself."""
    return np.einsum("ii->i", moments) if moments.ndim == 2 else moments
