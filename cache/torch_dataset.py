"""Features as a `torch.utils.data.Dataset`, for training loops of the user's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """(features, label) for each of `rows`; features float32, of the layer's shape, label -1 where there is none."""

    def __init__(self, features: NDArray[np.floating], labels: NDArray[np.int32], rows: NDArray[np.int64]) -> None:
        self._features = features
        self._labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        return torch.from_numpy(np.array(self._features[row], dtype=np.float32)), int(self._labels[row])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """One gather for a whole batch (torch's DataLoader calls this where it exists)."""
        rows = self.rows[indices]
        batch = torch.from_numpy(np.asarray(self._features[rows], dtype=np.float32))
        return list(zip(batch.unbind(0), self._labels[rows].tolist(), strict=True))
