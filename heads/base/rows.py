"""Features that need not fit into memory: some rows of a memmap, read as they are requested."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Features: TypeAlias = "npt.ArrayLike | RowView"

__all__ = ["BLOCK_BYTES", "RowView", "ViewRows"]

BLOCK_BYTES = 16 * 2**20  # of float32; larger blocks were no faster, smaller ones leave matrix products waiting
MAPPED_BYTES = 512 * 2**20  # pages of the file that stay in this process's memory before they are released
FAULT_BYTES = 2 * 2**20  # what the kernel may map around one row that is read, where its page cache has large folios


class LazyArray(Protocol):
    """What is needed of features that are no array, and are computed as they are requested, by slices or integers.

    strides: bytes of the file from one row to the next, and so on · base: what is mapped from it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def base(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def reshape(self, *shape: int) -> LazyArray: ...


class RowView:
    """Rows `rows` of `features` (N, ...), each flattened, as something that heads take instead of an array.

    features: float16, float32 or float64, such as `Cache.features()`, which need be no array (see `LazyArray`) · rows:
    (n,) integers, None for all.
    Nothing is read before it is requested, and pages of a memmap are released again, so the memory it takes does not
    grow with the file.
    """

    ndim = 2
    views = 1

    def __init__(self, features: npt.NDArray[Any] | LazyArray, rows: npt.ArrayLike | None = None) -> None:
        self.features = features.reshape(len(features), math.prod(features.shape[1:]))
        self.rows = None if rows is None else np.asarray(rows, dtype=np.intp)
        self._mapping = _mapping(features)
        self._touched = 0

    def __len__(self) -> int:
        return len(self.features) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.features.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.features.dtype

    @property
    def working_dtype(self) -> np.dtype[Any]:
        """What heads compute in: float64 for float64 features, float32 for float32 and float16."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def mapped(self) -> bool:
        """Whether the rows are read from a file, and not in memory."""
        return self._mapping is not None

    def __getitem__(self, chosen: slice | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """The chosen rows, (k, d) as they are stored, in their own memory."""
        return self._read(chosen, self.dtype)

    def _read(self, chosen: slice | npt.NDArray[np.integer[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        rows = chosen if self.rows is None else self.rows[chosen]
        if isinstance(rows, np.ndarray) and len(rows) and rows[-1] - rows[0] == len(rows) - 1 and _ascending(rows):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)  # a run is copied in one piece
        if isinstance(rows, slice) or self._mapping is None:
            stored = self.features[rows]
            found = np.array(stored, dtype)
            self._touch(max(stored.nbytes, len(stored) * self.features.strides[0]))  # also what lies between the rows
            return found
        found = np.empty((len(rows), self.shape[1]), dtype)
        at_once = max(1, MAPPED_BYTES // FAULT_BYTES)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            found[start : start + at_once] = self.features[part]
            self._touch(FAULT_BYTES * len(part))
        return found

    def _touch(self, n_bytes: int) -> None:
        """Count what may have been mapped, and release it where it is much; it stays in the kernel's page cache."""
        self._touched += n_bytes
        if self._mapping is not None and min(self._touched, len(self._mapping)) > MAPPED_BYTES:
            self._touched = 0
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def take(self, chosen: npt.ArrayLike) -> RowView:
        """The view of some of its rows, by their positions."""
        positions = np.asarray(chosen, dtype=np.intp)
        return RowView(self.features, positions if self.rows is None else self.rows[positions])

    def every(self) -> RowView:
        """The rows of all views (n * views, d), see `ViewRows`: there is one."""
        return self

    def drawn(self, chosen: npt.NDArray[np.integer[Any]], rng: np.random.Generator | None) -> npt.NDArray[np.intp]:
        """For each of the `chosen` rows the position (k,) in `every()` of one of its views: at random, or the plain one
        without `rng`."""
        del rng  # there is only one
        return np.asarray(chosen, dtype=np.intp)

    def blocks(self, n_rows: int | None = None) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """All rows in order: (positions, (b, d) `working_dtype`), `n_rows` at a time, by default BLOCK_BYTES."""
        size = n_rows or max(1, BLOCK_BYTES // (4 * max(1, self.shape[1])))
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self._read(rows, self.working_dtype)


class ViewRows(RowView):
    """Rows `rows` of `features` (N, views, ...): samples of several views each.

    As an array (n, d) it is their plain views, the first ones; `drawn` gives others, `every` all of them.
    """

    def __init__(self, features: npt.NDArray[Any] | LazyArray, rows: npt.ArrayLike | None = None) -> None:
        super().__init__(features[:, 0], rows)
        self._views = features  # as they were given
        self.views = features.shape[1]
        self._of_views = features.reshape(-1, self.shape[1])  # (N * views, d)
        self._every: RowView | None = None

    def take(self, chosen: npt.ArrayLike) -> ViewRows:
        """The view of some of its samples, by their positions."""
        positions = np.asarray(chosen, dtype=np.intp)
        return ViewRows(self._views, positions if self.rows is None else self.rows[positions])

    def every(self) -> RowView:
        """All views (n * views, d), those of a sample side by side."""
        if self._every is None:
            rows = None if self.rows is None else (self.rows[:, None] * self.views + np.arange(self.views)).ravel()
            self._every = RowView(self._of_views, rows)
        return self._every

    def drawn(self, chosen: npt.NDArray[np.integer[Any]], rng: np.random.Generator | None) -> npt.NDArray[np.intp]:
        """As `RowView.drawn`."""
        view = 0 if rng is None else rng.integers(self.views, size=len(chosen))
        return np.asarray(chosen * self.views + view, dtype=np.intp)


def _ascending(rows: npt.NDArray[np.integer[Any]]) -> bool:
    return bool((np.diff(rows) == 1).all())


def _mapping(array: Any) -> mmap.mmap | None:
    """What `array` is mapped from, unless changes to it would be lost with its pages."""
    while array is not None:
        if isinstance(array, np.memmap):
            if array.mode not in ("r", "r+", "w+"):
                return None
        elif isinstance(array, mmap.mmap):
            return array
        array = getattr(array, "base", None)
    return None
