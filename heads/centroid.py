"""The centroid head: the class whose mean is nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ._file_checks import check_shapes
from ._inputs import check_companions, check_features, check_groups, check_number, check_training
from ._tempering import MOST_SCORES, fit_temperature, tempered
from ._unit import add_class_sums, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from ._rows import Features, RowView

    Array = npt.NDArray[Any]

__all__ = ["CentroidHead"]

METRICS = ("cosine", "euclidean")


class CentroidHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Nearest class mean (Mensink et al., "Distance-Based Image Classification", TPAMI 2013), scikit-learn's
    `NearestCentroid`; with few images a class the classifier of prototypical networks (Snell et al., NeurIPS 2017).

    One pass over the features, nothing to choose, K x d numbers: for very many classes, or one or two images of each.

    Parameters
    ----------
    metric : "cosine": rows are scaled to length 1, averaged, and compared by the angle to the mean (a row or mean of
        zeros has the similarity 0); "euclidean": the distance to the mean

    Attributes
    ----------
    classes_ : (K,), sorted
    centroids_ : (K, d) float32: means of the rows; for cosine scaled to length 1
    temperature_ : float, what `predict_proba` divides scores by; 1.0 where no class has two samples (groups)
    n_features_in_ : int
    """

    _FITTED = ("temperature_",)

    def __init__(self, *, metric: str = "cosine") -> None:
        self.metric = metric

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            raise ValueError(f"metric must be 'cosine' or 'euclidean'. Got {self.metric!r} instead.")

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> CentroidHead:
        """Fit on features `X` (n, d), read in blocks, and labels `y` (n,).

        `groups` (n,) says which samples are left out together where the temperature is fitted. `validation` is that of
        every head: it is checked, and nothing is chosen on it.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, or a parameter out of range.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        check_companions(self, validation, groups, len(view))
        sums = np.zeros((len(self.classes_), view.shape[1]))
        for place, block in view.blocks():
            add_class_sums(sums, self._ready(block), label[place])
        self.centroids_ = self._means(sums, np.bincount(label)).astype(np.float32)
        self.temperature_ = self._fit_temperature(view, label, check_groups(groups, len(view)), sums)
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.float32]:
        """Probabilities (n, K) float32 of features (n, d), in the order of `classes_`.

        softmax(score / temperature_), the score being the cosine, or minus the squared distance. The temperature is
        fitted by log loss on training rows that their own class's mean was computed without (Guo et al. 2017): one
        number for how sharp they are on the whole. No spread of a class enters, nor how frequent it is.
        """
        check_is_fitted(self)
        view = check_features(self, X)
        proba = np.empty((len(view), len(self.classes_)), np.float32)
        for place, scores in self._scores(view):
            proba[place] = tempered(scores, self.temperature_)
        return proba

    def predict(self, X: Features) -> Array:
        """The label (n,) of the nearest centroid for each row of features (n, d)."""
        check_is_fitted(self)
        view = check_features(self, X)
        best = np.empty(len(view), np.intp)
        for place, scores in self._scores(view):
            best[place] = scores.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        return {"metric": self.metric, "temperature": self.temperature_}

    def summary(self) -> str:
        """The same as one line."""
        return f"nothing: the nearest class mean by {self.metric} distance"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return False

    def _ready(self, block: Array) -> Array:
        """Rows (b, d) as float64, as they are averaged and compared."""
        rows = block.astype(np.float64)
        return unit_rows(rows) if self.metric == "cosine" else rows

    def _means(self, sums: Array, count: Array) -> Array:
        return unit_rows(sums) if self.metric == "cosine" else sums / count[:, None]

    def _scores(self, view: RowView) -> Iterator[tuple[slice, Array]]:
        """(positions, (b, K) float64) of a few rows at a time."""
        centroids = self.centroids_.astype(np.float64)
        square = (centroids**2).sum(axis=1)
        for place, block in view.blocks(max(1, MOST_SCORES // max(len(centroids), view.shape[1]))):
            rows = self._ready(block)
            scores = rows @ centroids.T
            if self.metric == "euclidean":
                scores = 2 * scores - square - (rows**2).sum(axis=1, keepdims=True)
            yield place, scores

    def _fit_temperature(self, view: RowView, label: Array, group: Array | None, sums: Array) -> float:
        """On rows of evenly spaced groups, scored by a mean of their own class without their group."""
        group = np.arange(len(label)) if group is None else group
        step = -(-len(label) * max(sums.shape) // MOST_SCORES)
        rows = np.flatnonzero(group % step == 0)
        # Rows of one group under one label are left out of that label's mean together.
        _, pair = np.unique(group[rows] * len(sums) + label[rows], return_inverse=True)
        features, own = self._ready(view[rows]), label[rows]
        together = np.zeros((pair.max() + 1, sums.shape[1]))
        add_class_sums(together, features, pair)
        rest = np.bincount(label)[own] - np.bincount(pair)[pair]
        tested = rest > 0
        features, own = features[tested], own[tested]
        mean = self._means((sums[own] - together[pair[tested]]), rest[tested])
        centroids = self.centroids_.astype(np.float64)
        scores = features @ centroids.T
        own_score = (features * mean).sum(axis=1)
        if self.metric == "euclidean":
            scores = 2 * scores - (centroids**2).sum(axis=1)
            own_score = 2 * own_score - (mean**2).sum(axis=1)
        scores[np.arange(len(own)), own] = own_score
        return fit_temperature(scores, own)

    def _arrays(self) -> dict[str, Array]:
        return {"centroids": self.centroids_}

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        n_features = arrays["centroids"].shape[-1] if "centroids" in arrays else 0
        check_shapes(arrays, {"centroids": (len(self.classes_), n_features)})
        check_number("temperature", fitted["temperature"], low=0, open_low=True)
        self.centroids_, self.n_features_in_ = arrays["centroids"], n_features
