"""Some columns of features, standardised as they are read, so that a choice of features copies none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from precompute.heads.base.rows import RowView
from precompute.heads.linear.design import working_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ChosenColumns", "spread"]


class ChosenColumns(RowView):
    """The `columns` of `views`, one view after the other, less `mean` and divided by `scale`, as a view (n, k).

    mean, scale: (d,) of all columns. Rows are read as the views read them, a block at a time.
    """

    def __init__(self, views: Sequence[RowView], columns: Array, mean: Array, scale: Array) -> None:
        self._views, self._columns, self._moments = tuple(views), np.asarray(columns, np.intp), (mean, scale)
        self._starts = np.cumsum([0, *map(len, self._views)])
        self._dtype = working_dtype(self._views)
        self._mean, self._scale = (array[self._columns].astype(self._dtype) for array in self._moments)
        self.rows = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self._columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def mapped(self) -> bool:
        return any(view.mapped for view in self._views)

    def take(self, chosen: npt.ArrayLike) -> RowView:
        """Some of its rows, by their positions in ascending order of views."""
        positions = np.asarray(chosen, np.intp)
        views = [view.take(positions[inside] - first) for view, first, inside in self._inside(positions)]
        return ChosenColumns(views, self._columns, *self._moments)

    def _inside(self, positions: Array) -> Iterator[tuple[RowView, int, Array]]:
        for view, first, stop in zip(self._views, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True):
            yield view, first, (first <= positions) & (positions < stop)

    def _read(self, chosen: slice | Array, dtype: npt.DTypeLike) -> Array:
        positions = np.arange(len(self))[chosen] if isinstance(chosen, slice) else np.asarray(chosen, np.intp)
        found = np.empty((len(positions), len(self._columns)), dtype)
        size = max(1, 2**22 // max(1, self._views[0].shape[1]))  # of all columns, of which some are kept
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            for view, first, inside in self._inside(part):
                if inside.any():
                    block = view._read(part[inside] - first, self._dtype)[:, self._columns]
                    found[start : start + size][inside] = (block - self._mean) / self._scale
        return found


def spread(views: Sequence[RowView], weight: Array) -> tuple[Array, Array]:
    """Weighted mean and standard deviation (d,) of the rows of `views`, float64; 1 for a constant feature."""
    scaler, start = StandardScaler(), 0
    for view in views:
        for rows, block in view.blocks():
            scaler.partial_fit(block, sample_weight=weight[start + rows.start : start + rows.stop])
        start += len(view)
    eps = np.finfo(working_dtype(views)).eps
    mean, scale = scaler.mean_, np.sqrt(scaler.var_)
    return mean, np.where(scale <= eps * np.abs(mean), 1.0, np.maximum(scale, np.finfo(np.float32).tiny))
