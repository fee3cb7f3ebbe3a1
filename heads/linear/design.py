"""The features as the solver reads them: centred, scaled, in blocks, and on its device only where they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.ahead import ahead
from precompute.heads.base.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from precompute.heads.base.arrays import Array as OnDevice
    from precompute.heads.base.arrays import Arrays
    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]
    Float = npt.NDArray[np.floating]

__all__ = ["Design", "working_dtype"]

IN_MEMORY_SHARE = 0.4  # of the free memory; larger features are read and centred again in every pass
LEAST_ROWS = 256  # in a block: with fewer, reading the coefficients of very many classes takes longer than the products
MOST_AXES = 8192  # whose second moments stand in a matrix (256 MiB); beyond it, their diagonal has to do
ROWS_PER_AXIS = 4  # that the second moments are taken from; all rows gave the solver no fewer steps
MOST_ROWS_AS_AXES = 4096
SMALLEST_SCALE = 1e-30  # below it features count as constant


class Design:
    """Rows (n, d) of `views`, one after the other, less their mean and divided by `scale`, one number for all of them.

    Where there are far fewer rows than features, the solver is given the rows' coordinates in the space they span,
    (n, n), by the eigenvectors of their inner products. The penalised optimum is in that space, so the model is the
    same, and d no longer matters.

    Attributes: arrays: where the solver computes · dtype of all that follows · shape of what the solver sees · mean
    (d,) and scale, on the host · moments: X'X / n of what the solver sees, (axes, axes), or its diagonal (axes,) ·
    metrics: the last `Metric`s that were made for these features, for the next fit, `most_metrics` of them at most.
    """

    def __init__(self, views: Sequence[RowView], arrays: Arrays) -> None:
        self._views, self.arrays = views, arrays
        self.dtype = working_dtype(views)
        n, d = sum(map(len, views)), views[0].shape[1]
        total, squares = np.zeros(d), 0.0
        for _, block in self._stored():
            total += block.sum(axis=0, dtype=np.float64)
            squares += float(np.einsum("ij,ij->", block, block, dtype=np.float64))
        self.mean = (total / n).astype(self.dtype)
        variance = squares / n - float(((total / n) ** 2).sum())
        self.scale = float(np.sqrt(max(variance, 0) / d))
        if self.scale < SMALLEST_SCALE:
            self.scale = 1.0
        self.shape = n, d
        self.metrics: list[Any] = []
        self.most_metrics = 1
        self._features: OnDevice | None = None
        self._lift: Array | None = None
        n_bytes = self.dtype.itemsize * n * d
        if 2 * n <= d and n <= MOST_ROWS_AS_AXES and n_bytes <= IN_MEMORY_SHARE * (available_bytes() or np.inf):
            self._use_rows_as_axes(self._centred())
        elif n_bytes <= IN_MEMORY_SHARE * arrays.free_bytes():
            features = arrays.empty(n, d)
            for rows, block in self.blocks():
                features[rows] = block
            self._features = features
        if self._lift is None:
            self.moments = self._second_moments()

    @property
    def in_memory(self) -> bool:
        """Whether a pass reads memory, and no file."""
        return self._features is not None

    def blocks(self, outputs: int = 1) -> Iterator[tuple[slice, OnDevice]]:
        """All rows in order: (positions, (b, axes)), as many at a time as suit products with `outputs` columns.

        Those of a file are read while the ones before are worked on.
        """
        n, axes = self.shape
        size = max(LEAST_ROWS, self.arrays.block_bytes // (self.dtype.itemsize * max(axes, outputs)))
        if self._features is None:
            yield from ahead((rows, self.arrays.put(self._centre(block))) for rows, block in self._stored(size))
        else:
            for start in range(0, n, size):
                rows = slice(start, min(start + size, n))
                yield rows, self._features[rows]

    def unfold(self, fitted: OnDevice) -> tuple[Float, Float]:
        """Coefficients (K, d) and intercepts (K,) for features as they are given, of `fitted` (axes + 1, K)."""
        theta = self.arrays.fetch(fitted)
        weight: Array = theta[:-1].astype(np.float64)
        if self._lift is not None:
            weight = self._lift @ weight
            in_features = np.zeros((self._views[0].shape[1], theta.shape[1]))
            for rows, block in self._stored():
                in_features += self._centre(block).T @ weight[rows]
            weight = in_features
        coef = np.ascontiguousarray((weight / self.scale).T, dtype=self.dtype)
        return coef, (theta[-1] - coef.astype(np.float64) @ self.mean).astype(self.dtype)

    def _stored(self, size: int | None = None) -> Iterator[tuple[slice, Float]]:
        start = 0
        for view in self._views:
            for rows, block in view.blocks(size):
                yield slice(start + rows.start, start + rows.stop), block.astype(self.dtype, copy=False)
            start += len(view)

    def _centre(self, block: Float) -> Float:
        block -= self.mean  # views give memory of their own
        block *= 1 / self.scale
        return block

    def _centred(self) -> Float:
        features = np.empty(self.shape, self.dtype)
        for rows, block in self._stored():
            features[rows] = self._centre(block)
        return features

    def _use_rows_as_axes(self, features: Float) -> None:
        """Replace X by U S of its singular value decomposition U S V', where X = U S V' and V = X' U / S."""
        values, U = _singular_values(features)
        significant = values > values.max() * np.finfo(self.dtype).eps  # below it stands what rounding left
        values, U = values[significant], U[:, significant]
        self._features = self.arrays.put((U * values).astype(self.dtype))
        self._lift = U / values
        self.moments = self.arrays.put((values**2 / len(features)).astype(self.dtype))
        self.shape = len(features), int(significant.sum())

    def _second_moments(self) -> OnDevice:
        n, d = self.shape
        moments = self.arrays.zeros(d, d) if d <= MOST_AXES else self.arrays.zeros(d)
        # Random, since rows often come sorted or in turns; from a fixed seed, since a fit must not vary.
        some = np.sort(np.random.default_rng(0).permutation(n)[: max(LEAST_ROWS, ROWS_PER_AXIS * d)])
        start = 0
        for view in self._views:
            of_view = some[(start <= some) & (some < start + len(view))] - start
            for _, block in view.take(of_view).blocks():
                chosen = self.arrays.put(self._centre(block.astype(self.dtype, copy=False)))
                moments += chosen.T @ chosen if moments.ndim == 2 else (chosen * chosen).sum(0)
            start += len(view)
        moments /= len(some)
        return moments


def working_dtype(views: Sequence[RowView]) -> np.dtype[Any]:
    """What features are computed in: float64 where one of `views` is, else float32."""
    return np.result_type(*(view.working_dtype for view in views))


def _singular_values(rows: Float) -> tuple[Array, Array]:
    """S (n,) and U (n, n), both float64, of `rows` (n, d) = U S V', n being smaller than d.

    The eigenvalues of the rows' products are S squared: in float64 they have the digits of float32 rows, many times
    sooner than the decomposition of the rows themselves, which float64 rows take.
    """
    if rows.dtype == np.float64:
        U, values, _ = np.linalg.svd(rows, full_matrices=False)
        return values, U
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], MOST_ROWS_AS_AXES):  # float64 of some columns at a time
        part = rows[:, start : start + MOST_ROWS_AS_AXES].astype(np.float64)
        products += part @ part.T
    squares, U = np.linalg.eigh(products)
    return np.sqrt(np.maximum(squares, 0)), U
