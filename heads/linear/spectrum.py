"""Ridge regression in closed form, on features read in blocks, with exact leave-one-out residuals for every alpha.

For rows x_i, targets t_i and weights w_i: the B and b that minimise sum_i w_i |t_i - x_i B - b|^2 + alpha |B|^2. The
intercept is not penalised, so it is absorbed by centring with weighted means. Let X hold the centred rows times
sqrt(w_i) and X = U sqrt(S) V' be its singular value decomposition. One eigendecomposition of the smaller of X'X (d, d)
and XX' (n, n) gives every alpha's fit, and its hat matrix H = Z (S + alpha)^-1 Z' + sqrt(w) sqrt(w)' / sum(w) with
Z = XV. A model fitted without the rows g leaves them the residuals (I - H_gg)^-1 r_g, r being those of the full fit:
the identity behind scikit-learn's RidgeCV (Rifkin and Lippert, "Notes on Regularized Least Squares", MIT 2007; for
groups of rows, Cook and Weisberg, "Residuals and Influence in Regression", 1982). Where g has more rows than X has
axes, the inverse is taken in the space of the axes (Woodbury's identity), so a group may be of any size.

All in float64: squared condition numbers are what float32 does not carry. X'X is summed over blocks of rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.unit import add_class_sums
from precompute.system import physical_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.float64]
    Index = npt.NDArray[np.intp]

__all__ = ["ALPHA_GRID", "ClassTargets", "LabelTargets", "RealTargets", "Spectrum", "chunks_of_groups"]

# One value per decade. From what suits features of length 1 to what suits a million of length 100; an end costs little.
ALPHA_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
BLOCK_VALUES = 2**21  # of float64 in one block: 16 MiB
LARGE_GROUP = 512  # rows up to which a hat matrix is inverted in any case: that is done at once
MATRICES = 5  # of min(n, d)^2 float64 at once: X'X, its eigenvectors, and what LAPACK works in
LEAST_LEFT = 1e-12  # of 1 - leverage: what rounding leaves of it where a row decides its own prediction alone


class ClassTargets:
    """One-vs-all targets as scikit-learn's RidgeClassifier has them: 1 for the class and -1 for all others.

    One column a class, or one for the second of two.
    """

    def __init__(self, label: Index, n_classes: int) -> None:
        self.label, self.n_classes = label, n_classes
        self.width = 1 if n_classes == 2 else n_classes

    def rows(self, chosen: slice | Index) -> Float:
        label = self.label[chosen]
        signs = np.full((len(label), self.n_classes), -1.0)
        signs[np.arange(len(label)), label] = 1
        return signs[:, -self.width :]

    def mean(self, weight: Float) -> Float:
        share = np.bincount(self.label, weight, self.n_classes) / weight.sum()
        mean: Float = (2 * share - 1)[-self.width :]
        return mean

    def add_products(self, total: Float, rows: Float, chosen: slice) -> None:
        """Add the products (width, d) of the targets with `rows` (n, d), whose sum over everything is 0."""
        sums = np.zeros((self.n_classes, rows.shape[1])) if self.width == 1 else total
        add_class_sums(sums, 2 * rows, self.label[chosen])  # the -1 everywhere adds -1 times a sum of 0
        if self.width == 1:
            total += sums[1:]

    def hits(self, predicted: Float, chosen: slice | Index) -> npt.NDArray[np.bool_]:
        """Which of the chosen rows (k,) are predicted right."""
        best = predicted[:, 0] > 0 if self.width == 1 else predicted.argmax(axis=1)
        right: npt.NDArray[np.bool_] = best == self.label[chosen]
        return right


class RealTargets:
    """Targets (n, width) that are numbers."""

    def __init__(self, y: Float) -> None:
        self.y, self.width = y, y.shape[1]

    def rows(self, chosen: slice | Index) -> Float:
        return self.y[chosen]

    def mean(self, weight: Float) -> Float:
        mean: Float = weight @ self.y / weight.sum()
        return mean

    def add_products(self, total: Float, rows: Float, chosen: slice) -> None:
        total += self.rows(chosen).T @ rows


class LabelTargets(RealTargets):
    """Targets (n, L) of 1 where a sample has a label and -1 where it has not, as scikit-learn's RidgeClassifier has."""

    def __init__(self, Y: npt.NDArray[np.bool_]) -> None:
        self.Y, self.width = Y, Y.shape[1]

    def rows(self, chosen: slice | Index) -> Float:
        return np.where(self.Y[chosen], 1.0, -1.0)

    def mean(self, weight: Float) -> Float:
        share = np.array([weight[own].sum() for own in self.Y.T]) / weight.sum()
        mean: Float = 2 * share - 1
        return mean

    def hits(self, predicted: Float, chosen: slice | Index) -> Float:
        """Which share of the labels of the chosen rows (k,) is predicted right."""
        right: Float = ((predicted > 0) == self.Y[chosen]).mean(axis=1)
        return right


def check_memory(n_rows: int, n_features: int, width: int) -> None:
    """Raise ValueError where the eigendecomposition and the coefficients take more than the machine's memory."""
    axes = min(n_rows, n_features)
    needed = 8 * (MATRICES * axes**2 + 3 * (axes + n_features) * width)
    memory = physical_memory()
    if needed > memory:
        raise ValueError(
            f"Ridge on {n_rows:,} samples of {n_features:,} features needs {needed:,} bytes for a matrix of "
            f"{axes:,} x {axes:,}, and this machine has {memory:,}. Use a layer with fewer features, pool it, "
            "or train a LogisticHead."
        )


class Spectrum:
    """The eigendecomposition that every alpha's fit follows from.

    Takes MATRICES times min(n, d)^2 float64 values of memory, n d min(n, d) operations to build X'X or XX', and a few
    min(n, d)^3 more. `weight` (n,) must be above 0. Raises ValueError where memory does not hold it.
    """

    def __init__(self, view: RowView, targets: ClassTargets | RealTargets, weight: Float) -> None:
        check_memory(*view.shape, targets.width)
        self.view, self.targets = view, targets
        self.root, self.total = np.sqrt(weight), weight.sum()
        n, d = view.shape
        self.mean = np.zeros(d)
        for rows, block in self._blocks():
            self.mean += weight[rows] @ block / self.total
        self.target_mean = targets.mean(weight)
        if d <= n:
            gram, products = np.zeros((d, d)), np.zeros((targets.width, d))
            for rows, block in self._centred():
                gram += block.T @ block
                targets.add_products(products, block * self.root[rows, None], rows)
            values, self.basis = np.linalg.eigh(gram)
            self.scores: Float | None = None
            self.products: Float = self.basis.T @ products.T  # Z't, (r, width)
        else:
            kernel = np.empty((n, n))
            for rows, block in self._centred():
                for other, columns in self._centred(rows.stop):
                    kernel[rows, other] = block @ columns.T
                    kernel[other, rows] = kernel[rows, other].T
            values, self.basis = np.linalg.eigh(kernel)
            self.scores = self.basis * np.sqrt(np.maximum(values, 0))  # Z
            self.products = self.scores.T @ self._targets(slice(None))
        self.values = np.maximum(values, 0)  # S; rounding makes some of the zeros negative

    def coefficients(self, alpha: float) -> tuple[Float, Float]:
        """(width, d) and the intercept (width,)."""
        if self.scores is None:
            coef = self.basis @ (self.products / (self.values + alpha)[:, None])
        else:
            dual = self.basis @ ((self.basis.T @ self._targets(slice(None))) / (self.values + alpha)[:, None])
            coef = np.zeros((self.view.shape[1], self.targets.width))
            for rows, block in self._centred():
                coef += block.T @ dual[rows]
        return coef.T, self.target_mean - self.mean @ coef

    def is_large(self, group: Index | None) -> bool:
        """Whether the rows with these numbers of groups (k,), ascending, are one group of more rows than axes."""
        return group is not None and group[0] == group[-1] and len(group) > self.most_inverted

    @property
    def most_inverted(self) -> int:
        """Rows of a group whose hat matrix is inverted as it is."""
        return max(LARGE_GROUP, len(self.values))

    def left_out(
        self, rows: Index, group: Index | None, alphas: tuple[float, ...]
    ) -> Iterator[tuple[int, Index, Float]]:
        """What models fitted without a row predict for it: (number of alpha, some of `rows`, (k, width) for these).

        `group` (n,), ascending: rows of one group are left out together; a group must be here whole, and one that
        `is_large` alone.
        """
        if self.is_large(group):
            yield from self._without(rows, alphas)
            return
        root, targets = self.root[rows], self._targets(rows)
        scores = self._project(rows) if self.scores is None else self.scores[rows]
        bounds = np.flatnonzero(np.diff(group, prepend=-1, append=-1)) if group is not None else np.arange(0)
        several = [slice(a, b) for a, b in pairwise(bounds) if b - a > 1]
        for number, alpha in enumerate(alphas):
            shrunk = scores / (self.values + alpha)
            residual = targets - shrunk @ self.products
            leverage = np.einsum("ij,ij->i", shrunk, scores) + root**2 / self.total
            left = residual / np.maximum(1 - leverage, LEAST_LEFT)[:, None]
            for part in several:
                hat = shrunk[part] @ scores[part].T + np.outer(root[part], root[part]) / self.total
                left[part] = np.linalg.solve((1 + LEAST_LEFT) * np.eye(len(hat)) - hat, residual[part])
            yield number, rows, self.targets.rows(rows) - left / root[:, None]

    def _without(self, rows: Index, alphas: tuple[float, ...]) -> Iterator[tuple[int, Index, Float]]:
        """`left_out` of one group, a part of its rows at a time.

        With A = [Z_g, sqrt(w_g / sum(w))], the hat matrix is A D A', D holding 1 / (S + alpha) and 1 for the intercept,
        and (I - A D A')^-1 r = r + A (D^-1 - A'A)^-1 A'r.
        """
        axes, width = len(self.values) + 1, self.targets.width
        size = max(1, BLOCK_VALUES // max(axes, width, self.view.shape[1]))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        inner, products = np.zeros((axes, axes)), np.zeros((axes, width))
        for part in parts:
            A = self._with_intercept(part)
            inner += A.T @ A
            products += A.T @ self._targets(part)
        models = []
        for alpha in alphas:
            whole = np.vstack([self.products / (self.values + alpha)[:, None], np.zeros(width)])
            rest = np.diag((1 + LEAST_LEFT) * np.append(self.values + alpha, 1.0)) - inner
            models.append(whole - np.linalg.solve(rest, products - inner @ whole))
        for part in parts:
            A, targets = self._with_intercept(part), self._targets(part)
            for number, model in enumerate(models):
                left = targets - A @ model
                yield number, part, self.targets.rows(part) - left / self.root[part, None]

    def _with_intercept(self, rows: Index) -> Float:
        scores = self._project(rows) if self.scores is None else self.scores[rows]
        return np.hstack([scores, self.root[rows, None] / np.sqrt(self.total)])

    def _project(self, rows: Index) -> Float:
        block = (self.view[rows].astype(np.float64) - self.mean) * self.root[rows, None]
        projected: Float = block @ self.basis
        return projected

    def _targets(self, chosen: slice | Index) -> Float:
        return (self.targets.rows(chosen) - self.target_mean) * self.root[chosen, None]

    def _blocks(self, stop: int | None = None) -> Iterator[tuple[slice, Float]]:
        view = self.view if stop is None else self.view.take(np.arange(stop))
        for rows, block in view.blocks(max(1, BLOCK_VALUES // view.shape[1])):
            yield rows, block.astype(np.float64)

    def _centred(self, stop: int | None = None) -> Iterator[tuple[slice, Float]]:
        """Blocks of X."""
        for rows, block in self._blocks(stop):
            yield rows, (block - self.mean) * self.root[rows, None]


def chunks_of_groups(
    n_rows: int, group: Index | None, size: int, *, alone: int, step: int = 1
) -> Iterator[tuple[Index, Index | None]]:
    """All rows in chunks of about `size` that split no group: (rows, their groups in ascending order).

    alone: groups of more rows have their own chunk · step: only every `step`-th group (row).
    """
    if group is None:
        rows = np.arange(0, n_rows, step)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], None
        return
    order = np.argsort(group, kind="stable")
    order = order[group[order] % step == 0]
    ordered = group[order]
    count = np.bincount(group)
    for number in np.flatnonzero(count > alone):
        if number % step == 0:
            start, stop = np.searchsorted(ordered, [number, number + 1])
            yield order[start:stop], ordered[start:stop]
    small = count[ordered] <= alone
    order, ordered = order[small], ordered[small]
    start = 0
    while start < len(order):
        # To the end of the group that the last row of the chunk is in.
        stop = int(np.searchsorted(ordered, ordered[min(start + size, len(order)) - 1], side="right"))
        yield order[start:stop], ordered[start:stop]
        start = stop
