"""The features as the solver reads them: centred, scaled, in blocks, and in memory only where they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._rows import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from ._rows import RowView

    Array = npt.NDArray[Any]
    Float32 = npt.NDArray[np.float32]

__all__ = ["Design"]

HELD_BYTES = 2**30  # of float32; larger features are read and centred again in every pass
LEAST_ROWS = 256  # in a block: with fewer, reading the coefficients of very many classes takes longer than the products
MOST_AXES = 8192  # whose second moments stand in a matrix (256 MiB); beyond it, their diagonal has to do
ROWS_PER_AXIS = 4  # that the second moments are taken from; all rows gave the solver no fewer steps
MOST_ROWS_AS_AXES = 4096
SMALLEST_SCALE = 1e-30  # below it features count as constant


class Design:
    """Rows (n, d) of `views`, one after the other, less their mean and divided by `scale`, one number for all of them.

    Where there are far fewer rows than features, the solver is given the rows' coordinates in the space they span,
    (n, n), by the eigenvectors of their inner products. The penalised optimum lies in that space, so the model is the
    same, and d no longer matters.

    Attributes: shape of what the solver sees · mean (d,) float32 · scale · moments: X'X / n of what the solver sees,
    (axes, axes) float32, or its diagonal (axes,).
    """

    def __init__(self, views: Sequence[RowView]) -> None:
        self._views = views
        n, d = sum(map(len, views)), views[0].shape[1]
        total, squares = np.zeros(d), 0.0
        for _, block in self._stored():
            total += block.sum(axis=0, dtype=np.float64)
            squares += float(np.einsum("ij,ij->", block, block, dtype=np.float64))
        self.mean = (total / n).astype(np.float32)
        variance = squares / n - float(((total / n) ** 2).sum())
        self.scale = float(np.sqrt(max(variance, 0) / d))
        if self.scale < SMALLEST_SCALE:
            self.scale = 1.0
        self.shape = n, d
        self._held: Float32 | None = None
        self._lift: Array | None = None
        if 4 * n * d <= HELD_BYTES:
            held = np.empty((n, d), np.float32)
            for place, block in self.blocks():
                held[place] = block
            self._held = held
            if 2 * n <= d and n <= MOST_ROWS_AS_AXES:
                self._use_rows_as_axes(held)
        if self._lift is None:
            self.moments = self._second_moments()

    @property
    def in_memory(self) -> bool:
        """Whether a pass reads memory, and no file."""
        return self._held is not None

    def blocks(self, outputs: int = 1) -> Iterator[tuple[slice, Float32]]:
        """All rows in order: (positions, (b, axes)), as many at a time as suit products with `outputs` columns."""
        n, axes = self.shape
        size = max(LEAST_ROWS, BLOCK_BYTES // (4 * max(axes, outputs)))
        if self._held is None:
            for place, block in self._stored(size):
                yield place, self._centre(block)
        else:
            for start in range(0, n, size):
                place = slice(start, min(start + size, n))
                yield place, self._held[place]

    def unfold(self, theta: Float32) -> tuple[Float32, Float32]:
        """Coefficients (K, d) and intercepts (K,) for features as they are given, of `theta` (axes + 1, K)."""
        weight: Array = theta[:-1].astype(np.float64)
        if self._lift is not None:
            weight = self._lift @ weight
            rows = np.zeros((self._views[0].shape[1], theta.shape[1]))
            for place, block in self._stored():
                rows += self._centre(block).T @ weight[place]
            weight = rows
        coef = np.ascontiguousarray((weight / self.scale).T, dtype=np.float32)
        return coef, (theta[-1] - coef.astype(np.float64) @ self.mean).astype(np.float32)

    def _stored(self, size: int | None = None) -> Iterator[tuple[slice, Float32]]:
        start = 0
        for view in self._views:
            for place, block in view.blocks(size):
                yield slice(start + place.start, start + place.stop), block
            start += len(view)

    def _centre(self, block: Float32) -> Float32:
        block -= self.mean  # views give memory of their own
        block *= np.float32(1 / self.scale)
        return block

    def _use_rows_as_axes(self, held: Float32) -> None:
        """Replace X by U S of its singular value decomposition U S V', where X = U S V' and V = X' U / S."""
        products = np.zeros((len(held), len(held)))
        for start in range(0, held.shape[1], MOST_ROWS_AS_AXES):  # float64 of some columns at a time
            part = held[:, start : start + MOST_ROWS_AS_AXES].astype(np.float64)
            products += part @ part.T
        squares, U = np.linalg.eigh(products)
        kept = squares > squares[-1] * np.finfo(np.float32).eps ** 2  # below it stands what rounding left
        squares, U = squares[kept], U[:, kept]
        self._held = (U * np.sqrt(squares)).astype(np.float32)
        self._lift = U / np.sqrt(squares)
        self.moments = (squares / len(held)).astype(np.float32)
        self.shape = len(held), int(kept.sum())

    def _second_moments(self) -> Float32:
        n, d = self.shape
        moments: Float32 = np.zeros((d, d) if d <= MOST_AXES else d, np.float32)
        # Random, since rows often come sorted or in turns; from a fixed seed, since a fit must not vary.
        some = np.sort(np.random.default_rng(0).permutation(n)[: max(LEAST_ROWS, ROWS_PER_AXIS * d)])
        start = 0
        for view in self._views:
            mine = some[(start <= some) & (some < start + len(view))] - start
            for _, block in view.take(mine).blocks():
                chosen = self._centre(block)
                moments += chosen.T @ chosen if moments.ndim == 2 else np.einsum("ij,ij->j", chosen, chosen)
            start += len(view)
        moments /= np.float32(len(some))
        return moments
