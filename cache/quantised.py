"""Activations of 8 bits: every channel of every sample (and view) has its own range, `minimum + step * code`.

A row so stays a function of its sample alone, as every promise of the file needs: nothing is calibrated over a data
set, and no row is written anew when samples come or go. It is uniform affine quantisation by channel (R.
Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, arXiv:1806.08342, 2018), whose ranges
are those of one activation. Behind a ReLU minima are 0 as a rule, and zeros come back as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from precompute.cache.columns import INT8, VIEW, channel_axis

LEVELS = np.float32(255)  # the largest code
SMALLEST = np.finfo(np.float32).tiny  # a step below it counts as 0: processors may flush such numbers to zero
Index: TypeAlias = "slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]"


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """k rows as they are stored.

    codes: (k, [V,] *shape) uint8 · scales: (k, [V,] C, 2) float32, of each channel minimum and step · channel: the axis
    of channels in `codes`, counted from the end, below 0. Of one row alone k is missing.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    channel: int

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: int | Index | tuple[Any, ...]) -> QuantisedRows:
        """Some rows, or views, by what indexes the axes in front of one activation's own."""
        return QuantisedRows(self.codes[rows], self.scales[rows], self.channel)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one activation: of one view of one sample."""
        return self.codes.shape[self.scales.ndim - 2 :]

    def values(self) -> NDArray[np.float32]:
        """What they stand for, of the shape of `codes`: in float32 the product, rounded, then the sum, rounded."""
        across = [1] * len(self.row_shape)
        across[self.channel] = self.scales.shape[-2]
        lows, steps = (self.scales[..., part].reshape(*self.scales.shape[:-2], *across) for part in (0, 1))
        found = self.codes.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # scales of a stranger
            found *= steps
            found += lows
        return found

    def finite(self) -> NDArray[np.bool_]:
        """(k,) bool: whether every value of a row is a number, and no step below 0."""
        lows, steps = (self.scales[..., part].reshape(len(self), math.prod(self.scales.shape[1:-1])) for part in (0, 1))
        with np.errstate(over="ignore", invalid="ignore"):
            good = np.isfinite(lows + LEVELS * steps) & np.isfinite(lows) & (steps >= 0)
        return np.asarray(good.all(axis=1))

    def fail(self, rows: Index) -> None:
        """Make failed rows of these: codes 0, scales NaN, so that their values are NaN."""
        self.codes[rows], self.scales[rows] = 0, np.nan

    def stored_bytes(self) -> NDArray[np.uint8]:
        """(k, bytes) what a checksum is made of: the codes of a row, then its scales, little-endian."""
        scales = np.ascontiguousarray(self.scales, dtype="<f4").reshape(len(self), -1)
        return np.concatenate([self.codes.reshape(len(self), -1), scales.view(np.uint8)], axis=1)


Rows: TypeAlias = "NDArray[np.floating[Any]] | QuantisedRows"
"""Rows as they are stored."""


def quantise(features: NDArray[np.floating[Any]], axes: Sequence[str]) -> QuantisedRows:
    """The codes nearest to `features` (k, *shape), whose axes are named by `axes`, with the scales that they need.

    A row with NaN or infinity, or a channel whose extremes are further apart than float32 goes, becomes a failed one.
    Raises ValueError where `axes` have no channels with positions.
    """
    channel = channel_axis(axes)
    if channel is None or features.ndim != 1 + len(axes):
        raise ValueError(f"8 bits are for channels with positions. Got axes {tuple(axes)}, shape {features.shape}.")
    values = features.astype(np.float32, copy=False)
    first = 1 + (axes[0] == VIEW)
    positions = tuple(axis for axis in range(first, values.ndim) if axis != values.ndim + channel)
    with np.errstate(over="ignore", invalid="ignore"):
        lows = values.min(axis=positions, keepdims=True) + np.float32(0)  # -0 becomes 0: which is found is chance
        steps = (values.max(axis=positions, keepdims=True) - lows) / LEVELS
        steps[steps < SMALLEST] = 0
        codes = values - lows
        codes /= np.where(steps > 0, steps, 1)
    np.rint(codes, out=codes)
    codes = np.nan_to_num(codes, copy=False, nan=0.0).clip(0, LEVELS, out=codes)
    scales = np.stack([lows, steps], axis=-1).reshape(*values.shape[:first], -1, 2)
    found = QuantisedRows(codes.astype(np.uint8), scales, channel)
    if not (good := found.finite()).all():
        found.fail(~good)
    return found


def fail_rows(rows: Rows, which: Index) -> None:
    """Make failed rows of some: NaN throughout."""
    if isinstance(rows, QuantisedRows):
        rows.fail(which)
    else:
        rows[which] = np.nan


def storage_dtype(storage: str, axes: Sequence[str]) -> np.dtype[Any]:
    """The dtype of a layer's dataset: with the storage int8 uint8 codes, and float16 for what has no positions."""
    if storage != INT8:
        return np.dtype(storage)
    return np.dtype(np.float16 if channel_axis(axes) is None else np.uint8)


def as_read(features: NDArray[np.floating[Any]], storage: str, axes: Sequence[str]) -> NDArray[np.float32]:
    """What a file of this storage gives back of `features` (k, *shape), as float32."""
    if (kind := storage_dtype(storage, axes)) == np.uint8:
        return quantise(features, axes).values()
    return features.astype(kind).astype(np.float32)


class QuantisedFeatures:
    """The features (N, [V,] *shape) of a layer of 8 bits as float32; what is requested is computed when it is.

    By rows: `features[3]`, `features[10:20]`, `features[rows]` with integers or a mask, and integers and slices behind
    these, such as `features[rows, 0]`, give float32 arrays in their own memory. `features[:, view]`, where there are
    several views, and `reshape` to a row for each sample, or for each view of it, compute nothing yet.
    `numpy.asarray` computes all of it. Made by `Cache.features`.
    """

    dtype: np.dtype[np.float32] = np.dtype(np.float32)

    def __init__(self, stored: QuantisedRows, *, kept: int | None = None) -> None:
        self.stored = stored
        self._kept = kept  # so many axes stand in front of one that holds all others; None where they are as they are

    @property
    def _leading(self) -> tuple[int, ...]:
        """In front of the axes of one activation."""
        return self.stored.scales.shape[:-2]

    @property
    def shape(self) -> tuple[int, ...]:
        whole = self.stored.codes.shape
        return whole if self._kept is None else (*whole[: self._kept], math.prod(whole[self._kept :]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return self.stored.codes.size

    @property
    def nbytes(self) -> int:
        """Of all values as float32."""
        return self.size * self.dtype.itemsize

    @property
    def base(self) -> NDArray[np.uint8]:
        """The codes, whose pages are the file's."""
        return self.stored.codes

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes of the file from one code to the next along each axis of `base`."""
        return self.stored.codes.strides

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        return f"QuantisedFeatures({self.shape}, float32 of 8 bits)"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Features of 8 bits become float32 in new memory: there is no array without a copy.")
        return self._values(slice(None)).astype(self.dtype if dtype is None else dtype, copy=False)

    def tobytes(self) -> bytes:
        """Of all values as float32."""
        return self._values(slice(None)).tobytes()

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) and index else (index,)
        if rest and len(self._leading) == 2 and self._kept != 1 and isinstance(rest[0], int | np.integer):
            view = QuantisedFeatures(self.stored[:, rest[0]], kept=None if self._kept is None else 1)
            whole = isinstance(first, slice) and first == slice(None)
            return view if whole and len(rest) == 1 else view[(first, *rest[1:])]
        if isinstance(first, list):
            first = np.asarray(first, dtype=np.intp if not first else None)
        by_array = isinstance(first, np.ndarray) and (
            first.dtype.kind in "iu" or (first.dtype == bool and first.ndim == 1)
        )
        if not (by_array or isinstance(first, int | np.integer | slice)) or not all(
            isinstance(part, int | np.integer | slice) for part in rest
        ):
            raise IndexError(
                "Features of 8 bits are read by rows: an integer, a slice, an array of integers or a mask, and "
                "integers and slices behind it. Take rows first: features[rows]."
            )
        values = self._values(first)
        kept = first.ndim if isinstance(first, np.ndarray) else int(isinstance(first, slice))
        return values[(slice(None),) * kept + tuple(rest)] if rest else values

    def _values(self, rows: Any) -> NDArray[np.float32]:
        values = self.stored[rows].values()
        if self._kept is None:
            return values
        return values.reshape(*values.shape[: values.ndim - self.stored.codes.ndim + self._kept], self.shape[-1])

    def reshape(self, *shape: int | tuple[int, ...]) -> QuantisedFeatures:
        """The same with other axes in front of an activation, and its own as they are or flattened to one; or with a
        row of numbers for each sample.

        Raises ValueError for another shape.
        """
        given: tuple[Any, ...] = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        rest = abs(math.prod(given)) or 1  # of all but -1
        wanted = tuple(self.size // rest if extent == -1 else int(extent) for extent in given)
        one, n = self.stored.row_shape, math.prod(self._leading)
        for own, lead in ((one, wanted[: -len(one)]), ((math.prod(one),), wanted[:-1])):
            if lead and wanted == (*lead, *own) and math.prod(lead) == n:
                scales = self.stored.scales
                rows = self.stored.codes.reshape(*lead, *one), scales.reshape(*lead, *scales.shape[-2:])
                kept = None if own == one else len(lead)
                return QuantisedFeatures(QuantisedRows(*rows, self.stored.channel), kept=kept)
        if wanted == (len(self), self.size // len(self)):
            return QuantisedFeatures(self.stored, kept=1)
        raise ValueError(f"Features of 8 bits {self.shape} cannot be seen as {given}. Take rows first: features[rows].")


Features: TypeAlias = "NDArray[np.floating[Any]] | QuantisedFeatures"
"""What `Cache.features` gives."""
