"""What the kNN heads share: the training rows, which of them are near, and how much each of these votes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.file_checks import check_arrays
from precompute.heads.base.inputs import LARGEST_WEIGHT, check_number
from precompute.heads.base.progress import report
from precompute.heads.base.rows import RowView
from precompute.heads.neighbours.nearest import Candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Votes = tuple[slice, npt.NDArray[np.intp], npt.NDArray[np.float64]]

__all__ = ["NeighboursBase", "mean_of"]

QUERIES = 1024  # rows that look for neighbours at once: each such block reads all training rows
# What a prediction takes at any width, beside its result and a block of training rows (BLOCK_BYTES of float32, and its
# copies): half for the rows that look for neighbours, half for their similarities to a block. 1024 x 2048 of these fit.
AT_ONCE_BYTES = 128 * 2**20
VOTE_BYTES = 24  # of a row and an output: its slot in float64, and what becomes of it
TARGETS_AT_ONCE = 2**20  # of neighbours, whose mean is taken


class NeighboursBase(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Parameters `k`, `temperature` and `device`; fitted `features_`, `sample_weight_`, `k_`."""

    _FITTED: tuple[str, ...] = ("k_",)
    k: int
    temperature: float
    device: str

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        check_number("k", self.k, whole=True, low=1)
        check_number("temperature", self.temperature, low=1e-6, high=1e6)  # beyond, exp gives only 0 and 1

    def _keep(self, view: RowView) -> None:
        """Keep the training rows, once the device has shown that it can compare them."""
        arrays_on(self.device, view.working_dtype, type(self).__name__)
        self.features_ = view if view.mapped else RowView(view[:])

    def _weigh(self, weights: Array | None) -> None:
        """Set what follows from the weights of the rows."""
        n_rows = len(self.features_)
        self.sample_weight_ = weights
        self.k_: float = min(int(self.k), n_rows) if weights is None else float(min(self.k, weights.sum()))
        # So many rows fill k places, whichever they are.
        lightest = None if weights is None else np.cumsum(np.sort(weights))
        filled = int(self.k_) if lightest is None else int(np.searchsorted(lightest, self.k_)) + 1
        self._n_nearest = min(n_rows, filled)

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        return {"k": self.k_, "k_asked": int(self.k), "temperature": float(self.temperature)}

    def summary(self) -> str:
        """The same as one line."""
        fewer = f" (k = {self.k}, but there are only {self.k_:g} training samples)" if self.k_ < self.k else ""
        return f"nothing: the {self.k_:g} nearest vote, at temperature {self.temperature:g}{fewer}"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return False

    def _dtype(self, view: RowView) -> np.dtype[Any]:
        """What similarities to the rows of `view` are computed in."""
        return np.result_type(view.working_dtype, self.features_.working_dtype)

    def _votes(self, view: RowView, outputs: int) -> Iterator[Votes]:
        """(positions, (q, m) nearest training rows, (q, m) their votes) of a few rows at a time.

        The largest vote of a row is 1 where no weights lower it. outputs: numbers that are predicted for a row.
        """
        arrays = arrays_on(self.device, self._dtype(view), type(self).__name__)
        training = Candidates.on(arrays, self.features_, AT_ONCE_BYTES // 2)
        for rows, block in view.blocks(self._queries_at_once(view, outputs)):
            similarity, nearest = training.nearest(block, self._n_nearest)
            vote = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / np.float64(self.temperature))
            if self.sample_weight_ is not None:
                vote *= _places(similarity, self.sample_weight_[nearest], self.k_)
            yield rows, nearest, vote
            report("rows compared", rows.stop, len(view))

    def _queries_at_once(self, view: RowView, outputs: int) -> int:
        """Rows of `view` that look for neighbours at once: half of AT_ONCE_BYTES is theirs."""
        itemsize, n_features = self._dtype(view).itemsize, view.shape[1]
        # The features, scaled, twice; similarities, rows and votes of the nearest; votes for outputs.
        row_bytes = 3 * itemsize * n_features + 64 * self._n_nearest + VOTE_BYTES * outputs
        return int(max(1, min(QUERIES, AT_ONCE_BYTES // 2 // row_bytes)))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: features in memory, as a mapped file cannot be sent along."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "features_" in state:
            state["features_"] = RowView(self.features_[:])
        return state

    def _arrays_with(self, **targets: Array) -> dict[str, Array]:
        weights = {} if self.sample_weight_ is None else {"weights": self.sample_weight_}
        return {**targets, "features": self.features_[:], **weights}

    def _restore_rows(
        self, arrays: dict[str, Array], fitted: dict[str, Any], name: str, shape: tuple[int, ...], dtype: str
    ) -> Array:
        """Use the training rows from `arrays`, which must hold nothing but them, their weights, and targets.

        name, shape, dtype: of the targets, without their first dimension. Returns these. Raises ValueError.
        """
        n_rows, n_features = arrays["features"].shape if getattr(arrays.get("features"), "ndim", 0) == 2 else (0, 0)
        expected = {
            name: ((n_rows, *shape), [dtype]),
            "features": ((n_rows, n_features), ["float16", "float32", "float64"]),
            **({"weights": ((n_rows,), ["float64"])} if "weights" in arrays else {}),
        }
        check_arrays(arrays, expected)
        weights = arrays.get("weights")
        if weights is not None and not (weights.min() > 0 and weights.max() <= LARGEST_WEIGHT):
            raise ValueError(f"its array weights must be above 0 and at most {LARGEST_WEIGHT:g}")
        check_number("k", fitted["k"], whole=weights is None, low=0, high=2**63, open_low=True)
        self.features_, self.n_features_in_ = RowView(arrays["features"]), n_features
        self._weigh(weights)
        if not math.isclose(fitted["k"], self.k_, rel_tol=1e-9):
            raise ValueError(f"its k must be {self.k_:g} of {n_rows} rows, and is {fitted['k']}")
        return arrays[name]


def mean_of(targets: Array, nearest: Array, vote: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean (q, t) of the `targets` (n, t) of the `nearest` rows (q, m), each of the weight of its `vote` (q, m)."""
    share = vote / vote.sum(axis=1, keepdims=True)
    found = np.empty((len(nearest), targets.shape[1]))
    size = max(1, TARGETS_AT_ONCE // max(1, nearest.shape[1] * targets.shape[1]))
    for start in range(0, len(nearest), size):
        part = slice(start, start + size)
        found[part] = (share[part, None, :] @ targets[nearest[part]].astype(np.float64))[:, 0]
    return found


def _places(similarity: Array, weights: Array, k: float) -> Array:
    """How much of the weight (q, m) of each of the nearest rows, of these similarities, finds a place among the k."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    places = np.empty_like(ordered)
    np.put_along_axis(places, order, np.clip(k - before, 0, ordered), axis=1)
    return places
