"""The k-NN probe: the k most similar training images vote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.file_checks import check_arrays
from precompute.heads.base.inputs import check_features, check_number, check_training, check_validation_and_groups
from precompute.heads.base.progress import report
from precompute.heads.base.rows import RowView
from precompute.heads.base.unit import unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["KNNHead"]

QUERIES = 1024  # rows that look for neighbours at once: each such block reads all training rows
MOST_VOTES = 2**24  # of float64, rows times classes: 128 MiB


class KNNHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbours by cosine similarity, whose votes weigh exp(similarity / temperature).

    The protocol of DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; its
    eval_knn.py), after Wu et al. ("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018). Nothing is trained and nothing is chosen, so it is a quick measure of the features themselves.

    Features are scaled to length 1; a row of zeros has the similarity 0 to every other. Of training rows that are
    equally similar the first count. Training rows are read a block at a time for every 1024 rows to be classified, so
    a prediction costs n x d for each of them.

    Parameters
    ----------
    k : number of neighbours. Where there are fewer training rows, all of them vote: see `k_`.
    temperature : the smaller, the more the most similar neighbours count

    Attributes
    ----------
    classes_ : (K,), sorted
    features_ : RowView (n, d), the training features, float16, float32 or float64 as they came. Rows of a mapped file
        stay there, and the file must; everything else is copied. A saved head holds them all.
    labels_ : (n,) int32, positions in `classes_`
    k_ : int, min(k, n)
    n_features_in_ : int
    """

    _FITTED = ("k_",)

    def __init__(self, *, k: int = 20, temperature: float = 0.07) -> None:
        self.k = k
        self.temperature = temperature

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        check_number("k", self.k, whole=True, low=1)
        check_number("temperature", self.temperature, low=1e-6, high=1e6)  # beyond, exp gives only 0 and 1

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> KNNHead:
        """Keep features `X` (n, d), floats as they are (others as float64), and labels `y` (n,).

        `validation` and `groups` are those of every head. They are checked, and nothing is chosen on them.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, or a parameter out of range.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        check_validation_and_groups(self, validation, groups, len(view))
        self.features_ = view if view.mapped else RowView(view[:])
        self.labels_ = label.astype(np.int32)
        self.k_ = min(int(self.k), len(view))
        return self

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
        fewer = f" (k = {self.k}, but there are only {self.k_} training samples)" if self.k_ < self.k else ""
        return f"nothing: the {self.k_} nearest vote, at temperature {self.temperature:g}{fewer}"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return False

    def _dtype(self, view: RowView) -> np.dtype[Any]:
        """What similarities to the rows of `view` are computed in."""
        return np.result_type(view.working_dtype, self.features_.working_dtype)

    def _shares(self, view: RowView) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
        """(positions, (q, K)) of a few rows at a time."""
        n_classes = len(self.classes_)
        for rows, block in view.blocks(max(1, min(QUERIES, MOST_VOTES // n_classes))):
            similarity, label = self._neighbours(block)
            vote = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / np.float64(self.temperature))
            vote /= vote.sum(axis=1, keepdims=True)
            slot = np.arange(len(block))[:, None] * n_classes + label
            shares = np.bincount(slot.ravel(), vote.ravel(), len(block) * n_classes).astype(self._dtype(view))
            yield rows, shares.reshape(len(block), n_classes)
            report("rows compared", rows.stop, len(view))

    def _neighbours(self, block: npt.NDArray[np.floating]) -> tuple[Array, Array]:
        """Similarity (q, k_) and label position (q, k_) of the nearest training rows of `block` (q, d)."""
        queries = unit_rows(block)
        similarity: Array = np.empty((len(block), 0), np.result_type(queries, self.features_.working_dtype))
        label: Array = np.empty((len(block), 0), np.int32)
        for rows, training in self.features_.blocks():
            found = queries @ unit_rows(training).T
            similarity = np.hstack([similarity, found])
            label = np.hstack([label, np.broadcast_to(self.labels_[rows], found.shape)])
            if similarity.shape[1] > self.k_:
                nearest = _first_largest(similarity, self.k_)
                similarity, label = (np.take_along_axis(values, nearest, axis=1) for values in (similarity, label))
        return similarity, label

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: features in memory, as a mapped file cannot be sent along."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "features_" in state:
            state["features_"] = RowView(self.features_[:])
        return state

    def _arrays(self) -> dict[str, Array]:
        return {"labels": self.labels_, "features": self.features_[:]}

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        n_rows, n_features = arrays["features"].shape if getattr(arrays.get("features"), "ndim", 0) == 2 else (0, 0)
        expected = {
            "labels": ((n_rows,), ["int32"]),
            "features": ((n_rows, n_features), ["float16", "float32", "float64"]),
        }
        check_arrays(arrays, expected)
        labels, n_classes = arrays["labels"], len(self.classes_)
        if labels.min() < 0 or labels.max() >= n_classes or not np.bincount(labels, minlength=n_classes).all():
            raise ValueError(f"its array labels must hold every number from 0 to {n_classes - 1}, and no other")
        check_number("k", fitted["k"], whole=True, low=1)
        if fitted["k"] != min(self.k, n_rows):
            raise ValueError(f"its k must be {min(self.k, n_rows)} of {n_rows} rows, and is {fitted['k']}")
        self.labels_, self.features_, self.n_features_in_ = labels, RowView(arrays["features"]), n_features


def _first_largest(values: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.intp]:
    """The columns (n, k) of the k largest of each row, in ascending order; of equal ones the first.

    (argpartition would take any of the equal ones, and so depend on how rows are cut into blocks.)
    """
    least = np.partition(values, -k, axis=1)[:, -k, None]
    chosen = values > least
    equal = values == least
    chosen |= equal & (np.cumsum(equal, axis=1) <= k - chosen.sum(axis=1, keepdims=True))
    return np.nonzero(chosen)[1].reshape(len(values), k)
