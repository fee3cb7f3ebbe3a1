"""The input of a tail: the activations of one layer, from a cache or computed from pixels."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.heads.base.ahead import ahead

Rows = NDArray[np.int64]
Plan = Iterable[tuple[Rows, Rows]]
"""Pairs of the rows (B,) of a batch and the view (B,) of each."""

RELEASE_BYTES = 64 * 2**20  # of a mapped file that stay in this process's memory before they are released
FAULT_BYTES = 2 * 2**20  # what the kernel may map around one row, where the mapping has large pages


class Activations(Protocol):
    """Of N samples, a row each: those of the cache that has their ids and labels.

    shape: for one sample · views: of each sample, of which the first is the plain one · dtype: as they are stored ·
    plain: (N, *shape) of the plain views, an array or what is indexed like one.
    """

    shape: tuple[int, ...]
    views: int
    dtype: np.dtype[Any]

    @property
    def plain(self) -> Any: ...

    def batch(self, rows: Rows, views: Rows) -> torch.Tensor:
        """(B, *shape) float32 of these views (B,) of these rows (B,)."""

    def batches(self, plan: Plan) -> Generator[torch.Tensor, None, None]:
        """Those of a plan in order, read ahead; closing the generator early leaves nothing in progress."""

    def close(self) -> None: ...


class CachedActivations:
    """Activations of a cache's layer, which may be larger than memory: rows are read a batch at a time."""

    def __init__(self, cache: Cache, layer: str | None) -> None:
        self._cache = cache
        features: Any = cache.features(layer)
        self.views, self.dtype = cache.views, features.dtype
        self.shape = tuple(features.shape[2 if self.views > 1 else 1 :])
        self._features = features
        self._flat = features.reshape(len(cache) * self.views, int(np.prod(self.shape)))
        self._touched = 0

    @property
    def plain(self) -> Any:
        """(N, *shape)."""
        return self.of_view(0)

    def of_view(self, view: int) -> Any:
        """(N, *shape) of one view."""
        return self._features[:, view] if self.views > 1 else self._features

    def batch(self, rows: Rows, views: Rows) -> torch.Tensor:
        """See `Activations`. Rows in ascending order are read in the order of the file."""
        found = np.ascontiguousarray(self._flat[rows * self.views + views]).reshape(len(rows), *self.shape)
        self._release(found.nbytes, len(rows))
        return torch.from_numpy(found).float()

    def batches(self, plan: Plan) -> Generator[torch.Tensor, None, None]:
        """See `Activations`: one batch is read while the one before it is used."""
        yield from ahead(self.batch(rows, views) for rows, views in plan)

    def close(self) -> None:
        """Release what is mapped; the cache stays open."""
        self._cache.release_pages()

    def _release(self, n_bytes: int, n_rows: int) -> None:
        self._touched += n_bytes + FAULT_BYTES * n_rows  # a row may begin in one large page and end in the next
        if self._touched >= RELEASE_BYTES:
            self._touched = 0
            self._cache.release_pages()


class ActivationRows:
    """One view of some rows (n,), as something that is sliced like an array (n, *shape)."""

    def __init__(self, activations: Activations, rows: Rows, view: int = 0) -> None:
        self._activations, self._rows, self._view = activations, rows, view

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: slice) -> NDArray[np.float32]:
        rows = self._rows[chosen]
        found: NDArray[np.float32] = self._activations.batch(rows, np.full(len(rows), self._view, np.int64)).numpy()
        return found
