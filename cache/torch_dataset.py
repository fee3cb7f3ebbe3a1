"""Features as a `torch.utils.data.Dataset`, for training loops of the user's own."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from precompute.cache.quantised import Features

GATHERED_BYTES = 64 * 1024
"""Rows up to this are read a batch at a time. A batch of longer ones is so large that the C library gives its memory
back after each, and to get it again takes longer than to read the rows (measured, docs/performance.md)."""


class FeatureFile(Protocol):
    """What is needed of a `Cache`; pickling it must open the file again."""

    @property
    def labels(self) -> NDArray[np.int32]: ...

    def features(self, layer: str | None = None) -> Features: ...


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """(features, label) for each of `rows`; features float32, of the layer's shape, label -1 where there is none.

    layer: None for the only one · view: the only one of several that is given, None for all there are. It is pickled
    as the cache's path and the row numbers.
    """

    def __init__(self, cache: FeatureFile, layer: str | None, rows: NDArray[np.int64], view: int | None = None) -> None:
        self._cache = cache
        self._layer = layer
        self._view = view
        features = cache.features(layer)
        self._features = features if view is None else features[:, view]
        self._labels = cache.labels
        self.rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        smallest = np.min_scalar_type(self.rows.max()) if len(self.rows) else np.uint8
        return _open_again, (self._cache, self._layer, self.rows.astype(smallest), self._view)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        return torch.from_numpy(np.array(self._features[row], dtype=np.float32)), int(self._labels[row])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """One gather for a whole batch of short rows (torch's DataLoader calls this where it exists)."""
        if 4 * math.prod(self._features.shape[1:]) > GATHERED_BYTES:
            return [self[index] for index in indices]
        rows = self.rows[indices]
        batch = torch.from_numpy(np.asarray(self._features[rows], dtype=np.float32))
        return list(zip(batch.unbind(0), self._labels[rows].tolist(), strict=True))


def _open_again(
    cache: FeatureFile, layer: str | None, rows: NDArray[np.unsignedinteger], view: int | None
) -> FeatureDataset:
    return FeatureDataset(cache, layer, rows.astype(np.int64), view)
