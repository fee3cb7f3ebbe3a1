"""The centroid head: the class whose mean is nearest."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.file_checks import check_shapes
from precompute.heads.base.inputs import (
    check_features,
    check_groups,
    check_number,
    check_training,
    check_validation_and_groups,
)
from precompute.heads.base.splits import folds
from precompute.heads.base.unit import unit_rows
from precompute.heads.neighbours.moments import COVARIANCE_TYPES, MOST_AXES, Moments, class_moments, covariance_type
from precompute.heads.scoring.temperature import MOST_SCORES, bounded_temperature, softmax_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from precompute.heads.base.rows import Features, RowView

    Array = npt.NDArray[Any]

__all__ = ["CentroidHead"]

METRICS = ("mahalanobis", "cosine", "euclidean")
# With less, a covariance of fewer rows than features could have no inverse up to rounding.
LEAST_SHRINKAGE = 1e-6
N_FOLDS = 5


class CentroidHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Nearest class mean (Mensink et al., "Distance-Based Image Classification", TPAMI 2013), by default under the
    shrunk within-class covariance: linear discriminant analysis with all classes equally frequent (Friedman,
    "Regularized Discriminant Analysis", JASA 1989), scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr")`.
    With "euclidean" it is the classifier of prototypical networks (Snell et al., NeurIPS 2017).

    Solved at once, in float64 whatever the features are, with nothing to choose: for very many classes,
    or few images of each.

    Parameters
    ----------
    metric : "mahalanobis": the distance to the mean under Sigma = (1 - shrinkage) S + shrinkage tr(S)/d I, S being the
        pooled within-class covariance (its diagonal alone where there are more than 4,096 features; the identity in
        place of Sigma where no two samples of a class differ); "cosine": rows are scaled to length 1, averaged, and
        compared by the angle to the mean (a row or mean of zeros has the similarity 0); "euclidean": the distance to
        the mean
    shrinkage : from 1e-6 to 1, for mahalanobis. 0.5 is measured, on features of MobileNetV2 and SqueezeNet; the value
        of Ledoit and Wolf shrinks far less and was worse

    Attributes
    ----------
    classes_ : (K,), sorted
    centroids_ : (K, d) float32, float64 where `X` was: means of the rows; for cosine scaled to length 1
    directions_ : (K, d), as `centroids_`: Sigma^-1 (centroid - mean of the centroids), what a class scores rows with;
        for cosine the centroids
    covariance_type_ : "full", "diag" or "identity" (always for cosine and euclidean), what Sigma is made of
    temperature_ : float, what `predict_proba` divides scores by; 1.0 where fewer than two classes have two samples
        (groups)
    n_features_in_ : int
    """

    _FITTED = ("temperature_", "covariance_type_")

    def __init__(self, *, metric: str = "mahalanobis", shrinkage: float = 0.5) -> None:
        self.metric = metric
        self.shrinkage = shrinkage

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            raise ValueError(f"metric must be 'mahalanobis', 'cosine' or 'euclidean'. Got {self.metric!r} instead.")
        shrinkage: Any = self.shrinkage
        number = isinstance(shrinkage, Real) and not isinstance(shrinkage, bool | np.bool_)
        if not number or not LEAST_SHRINKAGE <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be a number from 1e-6 to 1. Got {shrinkage!r} instead.")

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> CentroidHead:
        """Fit on features `X` (n, d), read in blocks, and labels `y` (n,).

        `groups` (n,) says which samples are held out together where the temperature is fitted. `validation` is that of
        every head: it is checked, and nothing is chosen on it.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, or features
        so small or large that their dtype does not hold the directions.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        check_validation_and_groups(self, validation, groups, len(view))
        collected = covariance_type(view.shape[1]) if self.metric == "mahalanobis" else "identity"
        origin = self._prepare(view[np.unique(label, return_index=True)[1]])
        collect = partial(class_moments, origin=origin, covariance=collected, prepare=self._prepare)
        whole = collect(view, label)
        self.covariance_type_ = collected if whole.variance(self.shrinkage) > 0 else "identity"
        centroids, directions = self._model(whole, whole)
        with np.errstate(over="ignore"):  # reported below
            dtype = view.working_dtype
            self.centroids_, self.directions_ = centroids.astype(dtype), directions.astype(dtype)
        if not np.isfinite(self.directions_).all():
            raise ValueError(f"The directions are beyond {dtype}. Scale the features.")
        groups = check_groups(groups, len(view))
        self.temperature_ = self._fit_temperature(view, label, groups, collect, whole)
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) of features (n, d), in the order of `classes_`.

        float64 where the head or `X` is and else float32.

        softmax(score / temperature_), the score being the cosine, or minus the squared distance. The temperature is
        fitted by log loss on training rows of 5 folds, each scored by means and covariance of the other folds (Guo et
        al. 2017): one number for how sharp they are on the whole. How frequent a class is does not enter.
        """
        check_is_fitted(self)
        view = check_features(self, X)
        proba = np.empty((len(view), len(self.classes_)), np.result_type(view.working_dtype, self.centroids_))
        for rows, scores in self._scores(view, self.centroids_, self.directions_):
            proba[rows] = softmax_at(scores, self.temperature_, proba.dtype)
        return proba

    def predict(self, X: Features) -> Array:
        """The label (n,) of the nearest centroid for each row of features (n, d)."""
        check_is_fitted(self)
        view = check_features(self, X)
        best = np.empty(len(view), np.intp)
        for rows, scores in self._scores(view, self.centroids_, self.directions_):
            best[rows] = scores.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

    def choices(self) -> dict[str, Any]:
        """What the fit decided, prepare for JSON."""
        covariance = {"covariance_type": self.covariance_type_} if self.metric == "mahalanobis" else {}
        return {"metric": self.metric, **covariance, "temperature": self.temperature_}

    def summary(self) -> str:
        """The same as one line."""
        text = f"nothing: the nearest class mean by {self.metric} distance"
        if self.metric != "mahalanobis":
            return text
        why = {
            "full": "",
            "diag": f" (variances only: more than {MOST_AXES:,} features)",
            "identity": " (euclidean: no two samples of a class differ)",
        }
        return f"{text}, shrinkage {self.shrinkage:g}{why[self.covariance_type_]}"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return False

    def _prepare(self, block: Array) -> Array:
        """Rows (b, d) as float64, as they are averaged and compared."""
        rows = block.astype(np.float64)
        return unit_rows(rows) if self.metric == "cosine" else rows

    def _model(self, moments: Moments, whole: Moments) -> tuple[Array, Array]:
        """Centroids and directions (K, d) float64 from `moments`, which are all or part of the `whole`.

        What a part does not determine is taken from the whole: the mean of a class that it has no row of, and, where no
        two of its rows differ within a class, the mean variance, as scores must keep their scale.
        """
        centroids = np.where(moments.count[:, None] > 0, moments.means(), whole.means())
        if self.metric == "cosine":
            centroids = unit_rows(centroids)
            return centroids, centroids
        offsets = centroids - centroids.mean(axis=0)
        if moments.variance(self.shrinkage) > 0:
            return centroids, moments.precision_times(offsets, self.shrinkage)
        return centroids, offsets / (whole.variance(self.shrinkage) or 1.0)

    def _fit_temperature(
        self, view: RowView, label: Array, groups: Array | None, collect: Callable[..., Moments], whole: Moments
    ) -> float:
        """On evenly spaced rows of each fold, scored by what the other folds say."""
        scores, labels = [np.zeros((0, len(whole.count)))], [label[:0]]
        step = -(-len(label) * len(whole.count) // MOST_SCORES)
        for _, held in folds(label, groups=groups, n_folds=N_FOLDS, seed=0):
            rest = whole - collect(view.take(held), label[held])
            rows = held[::step]
            rows = rows[rest.count[label[rows]] > 0]  # a class that is held out whole is known from nowhere
            scores += [found for _, found in self._scores(view.take(rows), *self._model(rest, whole))]
            labels.append(label[rows])
        return bounded_temperature(np.concatenate(scores), np.concatenate(labels))

    def _scores(self, view: RowView, centroids: Array, directions: Array) -> Iterator[tuple[slice, Array]]:
        """(positions, (b, K) float64) of a few rows at a time.

        The cosine, or 2 x'v - (c + m)'v for a class with the centroid c and the direction v, m being the mean of the
        centroids: minus the squared distance, but for what is the same for all classes.
        """
        centroids, directions = centroids.astype(np.float64), directions.astype(np.float64)
        middle = 0.0 if self.metric == "cosine" else centroids.mean(axis=0)
        offset = ((centroids - middle) * directions).sum(axis=1)
        for rows, block in view.blocks(max(1, MOST_SCORES // max(directions.shape))):
            scores = (self._prepare(block) - middle) @ directions.T
            yield rows, scores if self.metric == "cosine" else 2 * scores - offset

    def _arrays(self) -> dict[str, Array]:
        return {name: getattr(self, f"{name}_") for name in self._array_names()}

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        n_features = arrays["centroids"].shape[-1] if "centroids" in arrays else 0
        check_shapes(arrays, dict.fromkeys(self._array_names(), (len(self.classes_), n_features)))
        check_number("temperature", fitted["temperature"], low=0, open_low=True)
        if fitted["covariance_type"] not in COVARIANCE_TYPES:
            raise ValueError(f"its covariance_type must be one of {', '.join(COVARIANCE_TYPES)}")
        self.centroids_, self.n_features_in_ = arrays["centroids"], n_features
        self.directions_ = arrays.get("directions", self.centroids_)

    def _array_names(self) -> tuple[str, ...]:
        """What a head file holds."""
        return ("centroids",) if self.metric == "cosine" else ("centroids", "directions")
