"""The k-NN probe: the k most similar training images vote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.file_checks import check_arrays
from precompute.heads.base.inputs import (
    LARGEST_WEIGHT,
    check_class_weight,
    check_classes_with_weight,
    check_features,
    check_number,
    check_training,
    check_validation_and_groups,
    class_weights,
    weighted_rows,
)
from precompute.heads.base.progress import report
from precompute.heads.base.rows import RowView
from precompute.heads.neighbours.nearest import Candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["KNNHead"]

QUERIES = 1024  # rows that look for neighbours at once: each such block reads all training rows
# What a prediction takes at any width, beside its result and a block of training rows (BLOCK_BYTES of float32, and its
# copies): half for the rows that look for neighbours, half for their similarities to a block. 1024 x 2048 of these fit.
AT_ONCE_BYTES = 128 * 2**20
VOTE_BYTES = 24  # of a row and a class: its slot in float64, and what becomes of it


class KNNHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbours by cosine similarity, whose votes weigh exp(similarity / temperature).

    The protocol of DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; its
    eval_knn.py), after Wu et al. ("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018). Nothing is trained and nothing is chosen, so it is a quick measure of the features themselves.

    Features are scaled to length 1; a row of zeros has the similarity 0 to every other. Of training rows that are
    equally similar the first count. Training rows are read a block at a time for every 1024 rows to be classified
    (fewer where rows are wide or classes many), so a prediction costs n x d for each of them, and memory grows with
    neither n nor the number of rows to be classified.

    Another `device` than "cpu" holds the training rows for the time of a prediction, scaled, where half of its free
    memory has room for them; otherwise they are sent in blocks. Beside them it takes at most 1 GiB for similarities,
    and on the host a prediction takes what it takes with "cpu".

    Parameters
    ----------
    k : number of neighbours. Where there are fewer training rows, all of them vote: see `k_`.
    temperature : the smaller, the more the most similar neighbours count
    class_weight : None, "balanced", or a dict from label to weight, as in scikit-learn: what the votes for a class are
        multiplied by. Which rows vote does not depend on it.
    device : where to compute, as torch names it; not part of a saved head

    Attributes
    ----------
    classes_ : (K,), sorted
    features_ : RowView (n, d), the training features, float16, float32 or float64 as they came. Rows of a mapped file
        stay there, and the file must; everything else is copied. A saved head holds them all.
    labels_ : (n,) int32, positions in `classes_`
    sample_weight_ : (n,) float64, how many of the k places a row takes, above 0; None where `fit` got no sample_weight
    class_weight_ : (K,) float64
    k_ : int, min(k, n); with sample weights a float, at most their sum
    n_features_in_ : int
    """

    _FITTED = ("k_",)
    _ADDED = ("class_weight",)

    def __init__(
        self, *, k: int = 20, temperature: float = 0.07, class_weight: Any = None, device: str = "cpu"
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.class_weight = class_weight
        self.device = device

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        check_number("k", self.k, whole=True, low=1)
        check_number("temperature", self.temperature, low=1e-6, high=1e6)  # beyond, exp gives only 0 and 1
        check_class_weight(self.class_weight)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> KNNHead:
        """Keep features `X` (n, d), floats as they are (others as float64), and labels `y` (n,).

        `validation` and `groups` are those of every head. They are checked, and nothing is chosen on them.
        `sample_weight` (n,), 0 or above: a row of weight 2 takes two of the k places and votes twice, as the row twice
        would; of the last row as much counts as there is place for; one of weight 0 is left out. The smaller the
        weights, the more rows it takes to fill k places, so weights of mean 1 keep the meaning of k.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, or weights
        that are negative or all zero; DeviceError if the machine lacks the device or the device lacks the dtype.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        check_validation_and_groups(self, validation, groups, len(view))
        given = weighted_rows(view, sample_weight, None)
        view, label = given.view, given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        arrays_on(self.device, view.working_dtype, type(self).__name__)
        self.features_ = view if view.mapped else RowView(view[:])
        self.labels_ = label.astype(np.int32)
        self._weigh(None if sample_weight is None else given.weight)
        return self

    def _weigh(self, weights: Array | None) -> None:
        """Set what follows from the weights of the rows and of their classes."""
        self.sample_weight_ = weights
        self.class_weight_ = class_weights(self.class_weight, self.classes_, self.labels_.astype(np.intp), weights)
        n_rows = len(self.labels_)
        self.k_: float = min(int(self.k), n_rows) if weights is None else float(min(self.k, weights.sum()))
        # So many rows fill k places, whichever they are.
        lightest = None if weights is None else np.cumsum(np.sort(weights))
        filled = int(self.k_) if lightest is None else int(np.searchsorted(lightest, self.k_)) + 1
        self._n_nearest = min(n_rows, filled)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The share of the votes (n, K) for each class, in the order of `classes_`, of features (n, d).

        float64 where the training features or `X` are, and else float32.

        A share of the votes is not a calibrated probability: a class without a neighbour has 0.
        """
        check_is_fitted(self)
        view = check_features(self, X)
        proba = np.empty((len(view), len(self.classes_)), self._dtype(view))
        for rows, share in self._shares(view):
            proba[rows] = share
        return proba

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`: -inf for a class without a vote."""
        proba = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            np.log(proba, out=proba)
        return proba

    def predict(self, X: Features) -> Array:
        """The label (n,) with the most votes for each row of features (n, d)."""
        check_is_fitted(self)
        view = check_features(self, X)
        best = np.empty(len(view), np.intp)
        for rows, share in self._shares(view):  # in its dtype, so that it is predict_proba's most probable one
            best[rows] = share.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

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

    def _shares(self, view: RowView) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
        """(positions, (q, K)) of a few rows at a time."""
        n_classes = len(self.classes_)
        arrays = arrays_on(self.device, self._dtype(view), type(self).__name__)
        training = Candidates.on(arrays, self.features_, AT_ONCE_BYTES // 2)
        for rows, block in view.blocks(self._queries_at_once(view)):
            similarity, nearest = training.nearest(block, self._n_nearest)
            label = self.labels_[nearest]
            vote = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / np.float64(self.temperature))
            if self.sample_weight_ is not None:
                vote *= _places(similarity, self.sample_weight_[nearest], self.k_)
            vote *= self.class_weight_[label]
            vote /= vote.sum(axis=1, keepdims=True)
            slot = np.arange(len(block))[:, None] * n_classes + label
            shares = np.bincount(slot.ravel(), vote.ravel(), len(block) * n_classes).astype(self._dtype(view))
            yield rows, shares.reshape(len(block), n_classes)
            report("rows compared", rows.stop, len(view))

    def _queries_at_once(self, view: RowView) -> int:
        """Rows of `view` that look for neighbours at once: half of AT_ONCE_BYTES is theirs."""
        itemsize, n_features = self._dtype(view).itemsize, view.shape[1]
        # The features, scaled, twice; similarities, rows and votes of the nearest; votes for classes.
        row_bytes = 3 * itemsize * n_features + 64 * self._n_nearest + VOTE_BYTES * len(self.classes_)
        return int(max(1, min(QUERIES, AT_ONCE_BYTES // 2 // row_bytes)))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: features in memory, as a mapped file cannot be sent along."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "features_" in state:
            state["features_"] = RowView(self.features_[:])
        return state

    def _arrays(self) -> dict[str, Array]:
        weights = {} if self.sample_weight_ is None else {"weights": self.sample_weight_}
        return {"labels": self.labels_, "features": self.features_[:], **weights}

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        n_rows, n_features = arrays["features"].shape if getattr(arrays.get("features"), "ndim", 0) == 2 else (0, 0)
        expected = {
            "labels": ((n_rows,), ["int32"]),
            "features": ((n_rows, n_features), ["float16", "float32", "float64"]),
            **({"weights": ((n_rows,), ["float64"])} if "weights" in arrays else {}),
        }
        check_arrays(arrays, expected)
        labels, weights, n_classes = arrays["labels"], arrays.get("weights"), len(self.classes_)
        inside = labels.min() >= 0 and labels.max() < n_classes
        # With weights, a class all of whose rows had the weight 0 has none.
        if not inside or not (weights is not None or np.bincount(labels, minlength=n_classes).all()):
            raise ValueError(f"its array labels must hold every number from 0 to {n_classes - 1}, and no other")
        if weights is not None and not (weights.min() > 0 and weights.max() <= LARGEST_WEIGHT):
            raise ValueError(f"its array weights must be above 0 and at most {LARGEST_WEIGHT:g}")
        check_number("k", fitted["k"], whole=weights is None, low=0, high=2**63, open_low=True)
        self.labels_, self.features_, self.n_features_in_ = labels, RowView(arrays["features"]), n_features
        self._weigh(weights)
        if not math.isclose(fitted["k"], self.k_, rel_tol=1e-9):
            raise ValueError(f"its k must be {self.k_:g} of {n_rows} rows, and is {fitted['k']}")


def _places(similarity: Array, weights: Array, k: float) -> Array:
    """How much of the weight (q, m) of each of the nearest rows, of these similarities, finds a place among the k."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    places = np.empty_like(ordered)
    np.put_along_axis(places, order, np.clip(k - before, 0, ordered), axis=1)
    return places
