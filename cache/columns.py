"""What a feature file is made of: names, types and places of its columns, as plain descriptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "precompute-features"
VERSION = 1
PROVENANCE_BYTES = 256 * 1024  # about 300 runs of about 800 bytes

SAMPLE = "sample"
"""The word for the first axis of every dataset of features."""
KEPT_WINDOWS = "keep"  # of `windows` in `augment`: the views are the windows of a clip, behind their mean
VIEW = "view"
"""The word for the second axis where samples have several views."""
VIEWS = "views"
"""What such a file requires of its readers."""
CHANNEL = "channel"
"""The word for the axis of channels, which have a scale each in a file of 8 bits."""
INT8 = "int8"
"""What a file of 8 bits requires of its readers, and the storage that its `spec` names."""


@dataclass(frozen=True)
class Layer:
    """How one layer's features are stored: shape of one row, dtype, what its axes are, pooling.

    dtype: float16, float32, or uint8 for codes of 8 bits · axes: one word for each axis of `shape`: `channel`,
    `height`, `width`, `token`, `view`, or `axis1` and so on where nothing is known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    pooling: str

    @property
    def scales(self) -> tuple[int, ...] | None:
        """The shape of one row's scales; None where it has none."""
        return scales_shape(self.shape, self.axes) if self.dtype == np.uint8 else None


@dataclass(frozen=True)
class Column:
    """A contiguous array in the file: `shape` elements of `dtype` from byte `offset` on."""

    name: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Samples:
    """What is known of the samples before any of them is read, one entry a row, ordered by id.

    ids: (N,) fixed-length bytes, POSIX paths relative to the source · sizes: (N,) int64, bytes · mtimes: (N,) int64,
    nanoseconds since 1970 · labels: (N,) int32, index into `classes` or -1 · splits: (N,) uint8, index into SPLITS ·
    classes: different names, ascending.
    """

    ids: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    labels: NDArray[np.int32]
    splits: NDArray[np.uint8]
    classes: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """A checked file: settings, digest of its table, where its columns lie, and which file it is (device and inode).

    layers: in the order of `spec` · further: SHA-256 of each further column by its name, such as `columns/patient`.
    """

    spec: dict[str, Any]
    key: str
    table: str
    layers: tuple[str, ...]
    columns: dict[str, Column]
    further: dict[str, str]
    file_size: int
    identity: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.columns["samples/status"].shape[0]


def column_types(samples: int, id_bytes: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each column under /samples."""
    return {
        "samples/id": ((samples,), np.dtype(f"S{id_bytes}")),
        "samples/digest": ((samples, 32), np.dtype("u1")),
        "samples/size": ((samples,), np.dtype("<i8")),
        "samples/mtime_ns": ((samples,), np.dtype("<i8")),
        "samples/label": ((samples,), np.dtype("<i4")),
        "samples/split": ((samples,), np.dtype("u1")),
        "samples/status": ((samples,), np.dtype("u1")),
    }


def channel_axis(axes: Sequence[str]) -> int | None:
    """The axis of channels of a layer that may be stored in 8 bits, counted from the end; None of any other.

    Such a layer has one axis of channels, and others next to it, which are positions; `view` is none of them.
    """
    own = tuple(axes[1:] if axes[:1] == (VIEW,) else axes)
    return own.index(CHANNEL) - len(own) if len(own) > 1 and own.count(CHANNEL) == 1 else None


def scales_shape(shape: tuple[int, ...], axes: Sequence[str]) -> tuple[int, ...] | None:
    """([V,] C, 2), of the scales of one row of this shape; None where its axes have none."""
    channel = channel_axis(axes)
    return None if channel is None else (*shape[: axes[0] == VIEW], shape[channel], 2)
