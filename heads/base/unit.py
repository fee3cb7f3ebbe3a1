"""Rows of length 1, and sums of rows by class: what heads without a solver are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import namespace

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.arrays import Array

__all__ = ["add_class_sums", "unit_rows"]


def unit_rows(rows: Array) -> Array:
    """Each row (n, d) divided by its Euclidean norm; a row of zeros stays one. float32 stays float32.

    An array of NumPy or a tensor of torch, and what it returns is the same.
    """
    xp = namespace(rows)
    # By the largest value first: squares of large float32 values would overflow, those of small ones vanish.
    peak = xp.amax(xp.abs(rows), axis=1, keepdims=True)
    scaled = rows / xp.where(peak > 0, peak, 1)
    norm = xp.sqrt(xp.einsum("ij,ij->i", scaled, scaled))[:, None]
    scaled /= xp.where(norm > 0, norm, 1)
    return scaled


def add_class_sums(total: npt.NDArray[np.float64], rows: npt.NDArray[Any], label: npt.NDArray[np.intp]) -> None:
    """Add each of `rows` (n, d) to the row of `total` (K, d) that its label (n,) names."""
    order = np.argsort(label, kind="stable")
    present, start = np.unique(label[order], return_index=True)
    total[present] += np.add.reduceat(rows[order].astype(np.float64, copy=False), start, axis=0)
