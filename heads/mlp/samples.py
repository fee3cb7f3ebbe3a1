"""Samples to train on and to measure on, read a block at a time, so that features may be larger than memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from precompute.heads.base.inputs import check_validation
from precompute.heads.base.rows import BLOCK_BYTES
from precompute.heads.base.splits import held_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.inputs import Weighted
    from precompute.heads.base.rows import RowView

    Index = npt.NDArray[np.intp]
    Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

__all__ = ["Samples", "early_stopping_split", "free_bytes", "moments", "stopping_split"]

MEASURED_AT_ONCE = 1024  # rows: what the hidden layers of many heads need for them stays small
# Rows at random places of a file that is not in memory cost one disk access each: hours for an epoch of a 20 GB file on
# a hard disk. Larger features than this are shuffled as blocks of neighbours, many blocks mixed in one buffer.
SHUFFLE_BYTES = 2**30
BUFFER_BYTES = 256 * 2**20
NEIGHBOUR_BYTES = 2**20  # long enough that a disk's seek does not matter, short enough that 256 of them are mixed
# Fewer held-out samples say too little about when to stop to be worth not training on them.
MIN_HELD_OUT = 10
# One sample of each small class can be far more than the fraction asked for; then training needs them more.
MAX_TIMES_FRACTION = 2


@dataclass(frozen=True)
class Samples:
    """Some `rows` of features `X` (N, d) with label positions `label` (N,), to be worked on in `dtype`.

    Of heads for other targets `label` holds these: (N, L) or (N,), of `dtype`.

    weight: (N,) of the loss of each row, above 0; None for equal ones · resident: `X` as it is stored, with all of its
    views, on the device that batches are made on; None where they are gathered from `X`.
    """

    X: RowView
    label: npt.NDArray[Any]
    rows: Index
    dtype: np.dtype[Any]
    weight: npt.NDArray[np.float64] | None = None
    resident: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def held_by(self, device: torch.device) -> Samples:
        """These samples, with all features copied to `device` once, where half of what it has free holds them."""
        every = self.X.every()
        if every.dtype.itemsize * len(every) * every.shape[1] > free_bytes(device) // 2:
            return self
        whole = torch.empty(every.shape, dtype=getattr(torch, every.dtype.name), device=device)
        size = max(1, BLOCK_BYTES // (every.dtype.itemsize * every.shape[1]))
        for start in range(0, len(every), size):
            part = slice(start, start + size)
            whole[part] = torch.from_numpy(every[part]).to(device)
        return replace(self, resident=whole)

    def batches(self, size: int, rng: np.random.Generator, device: torch.device) -> Iterator[Batch]:
        """All samples once, shuffled, `size` at a time: features (b, d) of `dtype`, label positions (b,) int64, and
        weights (b,) of `dtype`. Of a sample with several views it is one of them, drawn anew each time.
        """
        row_bytes = self.X.dtype.itemsize * self.X.shape[1]
        if self.resident is not None or len(self) * row_bytes <= SHUFFLE_BYTES:
            order = rng.permutation(len(self))
            for start in range(0, len(self), size):
                yield self._gathered(self.rows[order[start : start + size]], device, rng)
            return
        neighbours = max(1, NEIGHBOUR_BYTES // row_bytes)
        starts = rng.permutation(np.arange(0, len(self), neighbours))
        blocks = max(1, BUFFER_BYTES // (neighbours * row_bytes))
        for first in range(0, len(starts), blocks):
            mixed = [self.rows[start : start + neighbours] for start in np.sort(starts[first : first + blocks])]
            rows = np.concatenate(mixed)
            buffer, order = self.X.every()[self.X.drawn(rows, rng)], rng.permutation(len(rows))
            for start in range(0, len(rows), size):
                chosen = order[start : start + size]
                yield self._batch(buffer[chosen], rows[chosen], device)

    def in_order(self, device: torch.device) -> Iterator[Batch]:
        """All samples in order, as `batches` gives them, by their plain views."""
        n_rows = max(1, min(MEASURED_AT_ONCE, BLOCK_BYTES // (self.dtype.itemsize * self.X.shape[1])))
        for start in range(0, len(self), n_rows):
            yield self._gathered(self.rows[start : start + n_rows], device)

    def at_most(self, n: int, rng: np.random.Generator) -> Samples:
        """These samples, or `n` of them at random."""
        if len(self) <= n:
            return self
        return replace(self, rows=np.sort(rng.choice(self.rows, n, replace=False)))

    def weights(self, rows: Index) -> npt.NDArray[np.floating]:
        """The weights (b,) of these of `X`'s rows, of `dtype`."""
        return np.ones(len(rows), self.dtype) if self.weight is None else self.weight[rows].astype(self.dtype)

    def _gathered(self, rows: Index, device: torch.device, rng: np.random.Generator | None = None) -> Batch:
        """These of `X`'s rows, from the device where it has them; with `rng` a view of each at random."""
        places = self.X.drawn(rows, rng)
        if self.resident is None:
            return self._batch(self.X.every()[places], rows, device)
        x = self.resident.index_select(0, torch.from_numpy(places).to(device)).to(getattr(torch, self.dtype.name))
        return x, *self._targets(rows, device)

    def _batch(self, features: npt.NDArray[np.floating], rows: Index, device: torch.device) -> Batch:
        """The `features` (b, d) of these of `X`'s rows, in their own memory, which torch may keep."""
        return torch.from_numpy(features.astype(self.dtype, copy=False)).to(device), *self._targets(rows, device)

    def _targets(self, rows: Index, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Label positions and weights (b,) of these of `X`'s rows."""
        return torch.from_numpy(self.label[rows]).to(device), torch.from_numpy(self.weights(rows)).to(device)


def free_bytes(device: torch.device) -> int:
    """Bytes free in the memory of the device; 0 for the CPU, which gathers from where the features are."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def moments(samples: Samples) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Weighted mean and standard deviation (d,) of each feature, summed in float64, in the dtype that is worked in.

    They are those of all views. A feature that is constant up to rounding gets scale 1, as dividing by its noise would
    blow up any other value.
    """
    scaler, dtype = StandardScaler(), samples.dtype
    for chosen, block in samples.X.take(samples.rows).every().blocks():
        rows = samples.rows[np.arange(chosen.start, chosen.stop) // samples.X.views]
        scaler.partial_fit(block, sample_weight=None if samples.weight is None else samples.weight[rows])
    mean, scale = scaler.mean_, scaler.scale_
    scale = np.where(scale <= np.finfo(dtype).eps * np.abs(mean), 1.0, scale).astype(dtype)
    return mean.astype(dtype), np.maximum(scale, np.finfo(dtype).tiny)


def early_stopping_split(
    head: Any,
    given: Weighted,
    label: npt.NDArray[np.intp],
    validation: Any,
    *,
    fraction: float,
    seed: int | None,
) -> tuple[Samples, Samples | None, str]:
    """The samples to train on, those to stop on, and where they came from in words; `head` is being fitted.

    `label` (m,) is that of the rows that are `given`.
    """
    held = None if validation is None else check_validation(head, validation, head.classes_)
    return stopping_split(given, label, label, held, fraction=fraction, seed=seed)


def stopping_split(
    given: Weighted,
    target: npt.NDArray[Any],
    strata: npt.NDArray[np.intp],
    held: tuple[RowView, npt.NDArray[Any]] | None,
    *,
    fraction: float,
    seed: int | None,
) -> tuple[Samples, Samples | None, str]:
    """The same for any `target` (m, ...) of the rows that are `given`, stratified by `strata` (m,).

    held: features and targets of a validation set, None where some of the rows are to be held out.
    """
    X, largest = given.view, given.weight.max()
    # By the largest: only ratios matter, and float32 must hold them.
    weight = None if given.weight.min() == largest else given.weight / largest
    every = Samples(X, target, np.arange(len(X)), X.working_dtype, weight)
    if held is not None:
        Xv, held_target = held
        return every, Samples(Xv, held_target, np.arange(len(Xv)), every.dtype), "given"
    out = held_out(strata, groups=given.group, fraction=fraction, seed=seed)
    if not MIN_HELD_OUT <= out.sum() <= MAX_TIMES_FRACTION * fraction * len(X):
        return every, None, "none: too few samples to hold out"
    return replace(every, rows=np.flatnonzero(~out)), replace(every, rows=np.flatnonzero(out)), "held out"
