"""The centroid head: the class whose mean is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.file_checks import check_shapes
from precompute.heads.base.inputs import (
    check_features,
    check_number,
    check_training,
    check_validation_and_groups,
    weighted_rows,
)
from precompute.heads.base.splits import check_cv, folds, given_splits
from precompute.heads.base.unit import unit_rows
from precompute.heads.neighbours.moments import COVARIANCE_TYPES, MOST_AXES, Moments, class_moments, covariance_type
from precompute.heads.scoring.temperature import MOST_SCORES, bounded_temperature, log_softmax_at, softmax_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from precompute.heads.base.inputs import Weighted
    from precompute.heads.base.rows import Features, RowView

    Array = npt.NDArray[Any]

__all__ = ["CentroidHead"]

METRICS = ("mahalanobis", "cosine", "euclidean")
# With less, a covariance of fewer rows than features could have no inverse up to rounding.
LEAST_SHRINKAGE = 1e-6


class CentroidHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Nearest class mean (Mensink et al., "Distance-Based Image Classification", TPAMI 2013), by default under the
    shrunk within-class covariance: linear discriminant analysis with all classes equally frequent (Friedman,
    "Regularized Discriminant Analysis", JASA 1989), scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr")`.
    With "euclidean" it is the classifier of prototypical networks (Snell et al., NeurIPS 2017).

    Solved at once, in float64 whatever the features are, with nothing to choose: for very many classes,
    or few images of each. There is no class_weight, as all classes count the same however many rows they have.

    Parameters
    ----------
    metric : "mahalanobis": the distance to the mean under Sigma = (1 - shrinkage) S + shrinkage tr(S)/d I, S being the
        pooled within-class covariance (its diagonal alone where there are more than 4,096 features; the identity in
        place of Sigma where no two samples of a class differ); "cosine": rows are scaled to length 1, averaged, and
        compared by the angle to the mean (a row or mean of zeros has the similarity 0); "euclidean": the distance to
        the mean
    shrinkage : from 1e-6 to 1, for mahalanobis. 0.5 is measured, on features of MobileNetV2 and SqueezeNet; the value
        of Ledoit and Wolf shrinks far less and was worse
    cv : number of folds that the temperature is fitted on, or a list of splits (train, test), positions of rows

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
    _ADDED = ("cv",)

    def __init__(self, *, metric: str = "mahalanobis", shrinkage: float = 0.5, cv: Any = 5) -> None:
        self.metric = metric
        self.shrinkage = shrinkage
        self.cv = cv

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            raise ValueError(f"metric must be 'mahalanobis', 'cosine' or 'euclidean'. Got {self.metric!r} instead.")
        shrinkage: Any = self.shrinkage
        number = isinstance(shrinkage, Real) and not isinstance(shrinkage, bool | np.bool_)
        if not number or not LEAST_SHRINKAGE <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be a number from 1e-6 to 1. Got {shrinkage!r} instead.")
        check_cv(self.cv, default=5)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> CentroidHead:
        """Fit on features `X` (n, d), read in blocks, and labels `y` (n,).

        `groups` (n,) says which samples are held out together where the temperature is fitted. `validation` is that of
        every head: it is checked, and nothing is chosen on it. `sample_weight` (n,), 0 or above, weighs means, scatter
        and the loss that the temperature is fitted by: a weight of 2 is the row twice, both in one group, and 0 leaves
        it out. Only their ratios matter.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, features
        so small or large that their dtype does not hold the directions, weights that are negative, or a class whose
        weights are all zero, as it has no mean.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        n_rows = len(view)
        check_validation_and_groups(self, validation, groups, n_rows)
        collected = covariance_type(view.shape[1]) if self.metric == "mahalanobis" else "identity"
        given = weighted_rows(view, sample_weight, groups)
        view, label, weight = given.view, given.of(label), given.weight
        self._check_every_class(label)
        origin = self._prepare(view[np.unique(label, return_index=True)[1]])
        collect = partial(
            class_moments,
            origin=origin,
            covariance=collected,
            prepare=self._prepare,
        )
        whole = collect(view, label, weight)
        self.covariance_type_ = collected if whole.variance(self.shrinkage) > 0 else "identity"
        centroids, directions = self._model(whole, whole)
        with np.errstate(over="ignore"):  # reported below
            dtype = view.working_dtype
            self.centroids_, self.directions_ = centroids.astype(dtype), directions.astype(dtype)
        if not np.isfinite(self.directions_).all():
            raise ValueError(f"The directions are beyond {dtype}. Scale the features.")
        self.temperature_ = self._fit_temperature(given, label, n_rows, collect, whole)
        return self

    def _check_every_class(self, label: Array) -> None:
        """Raise ValueError unless each class has one of the rows with a weight, whose labels (m,) these are."""
        count = np.bincount(label, minlength=len(self.classes_))
        if not count.all():
            raise ValueError(
                f"{type(self).__name__} needs a sample with a weight above 0 of every class, and "
                f"{self.classes_.tolist()[count.argmin()]!r} has none. Leave out the samples of that class."
            )

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

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`, finite also where a probability is too small for its dtype."""
        scores, dtype = self._all_scores(X)
        return log_softmax_at(scores, self.temperature_, dtype)

    def decision_function(self, X: Features) -> npt.NDArray[np.floating]:
        """Scores (n, K) of features (n, d), the largest for the nearest centroid; for two classes (n,), positive for
        `classes_[1]`.

        What `predict_proba` is the softmax of. For mahalanobis, as in scikit-learn's LinearDiscriminantAnalysis, linear
        in the features: minus the squared distance except for a number that is the same for all classes of a row; for
        euclidean minus the squared distance; for cosine the cosine less 1. All divided by `temperature_`, and the
        latter two less 2 ln K, as in its NearestCentroid of equal priors. dtypes as in `predict_proba`.
        """
        scores, dtype = self._all_scores(X)
        if self.metric == "cosine":
            scores -= 1
        elif self.metric == "euclidean":
            middle = self.centroids_.mean(axis=0, dtype=np.float64)
            for rows, block in check_features(self, X).blocks():
                scores[rows] -= ((block - middle) ** 2).sum(axis=1, keepdims=True)
        scores /= self.temperature_
        if self.metric != "mahalanobis":
            scores -= 2 * np.log(len(self.classes_))
        found: npt.NDArray[np.floating] = scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores
        return found.astype(dtype)

    @property
    def coef_(self) -> Array:
        """(K, d), or (1, d) for two classes: with `intercept_` what `decision_function` is linear with.

        As `centroids_`. Raises AttributeError for cosine and euclidean, whose scores are not linear in the features.
        """
        coef, _ = self._linear("coef_")
        return coef

    @property
    def intercept_(self) -> Array:
        """(K,), or (1,) for two classes, as `coef_`."""
        _, intercept = self._linear("intercept_")
        return intercept

    def _linear(self, name: str) -> tuple[Array, Array]:
        """Coefficients and intercepts; `name` is what they are requested as."""
        if self.metric != "mahalanobis" or not hasattr(self, "directions_"):
            raise AttributeError(f"{type(self).__name__} has no {name}: it is not fitted, or not by mahalanobis.")
        centroids, directions = self.centroids_.astype(np.float64), self.directions_.astype(np.float64)
        coef = 2 * directions / self.temperature_
        intercept = -((centroids + centroids.mean(axis=0)) * directions).sum(axis=1) / self.temperature_
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        return coef.astype(self.centroids_.dtype), intercept.astype(self.centroids_.dtype)

    def _all_scores(self, X: Features) -> tuple[Array, np.dtype[Any]]:
        """(n, K) float64, and the dtype that results have."""
        check_is_fitted(self)
        view = check_features(self, X)
        scores = np.empty((len(view), len(self.classes_)))
        for rows, found in self._scores(view, self.centroids_, self.directions_):
            scores[rows] = found
        return scores, np.result_type(view.working_dtype, self.centroids_)

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
        self, given: Weighted, label: Array, n_rows: int, collect: Callable[..., Moments], whole: Moments
    ) -> float:
        """On evenly spaced rows of each fold, scored by what its training part says; `fit` got `n_rows`."""
        scores, chosen = [np.zeros((0, len(whole.count)))], [np.zeros(0, np.intp)]
        step = -(-len(label) * len(whole.count) // MOST_SCORES)
        for held, rest in self._parts(given, label, n_rows, collect, whole):
            rows = held[::step]
            rows = rows[rest.count[label[rows]] > 0]  # a class that is held out whole is known from nowhere
            scores += [found for _, found in self._scores(given.view.take(rows), *self._model(rest, whole))]
            chosen.append(rows)
        rows = np.concatenate(chosen)
        return bounded_temperature(np.concatenate(scores), label[rows], given.weight[rows])

    def _parts(
        self, given: Weighted, label: Array, n_rows: int, collect: Callable[..., Moments], whole: Moments
    ) -> Iterable[tuple[Array, Moments]]:
        """For each fold the rows that are held out, and the moments of its training part."""

        def of(rows: Array) -> Moments:
            return collect(given.view.take(rows), label[rows], given.weight[rows])

        if isinstance(self.cv, Sequence):
            return ((test, of(train)) for train, test in given_splits(self.cv, given.rows, n_rows))
        tests = [test for _, test in folds(label, groups=given.group, n_folds=self.cv, seed=0)]
        return ((test, whole - of(test)) for test in tests)

    def _scores(self, view: RowView, centroids: Array, directions: Array) -> Iterator[tuple[slice, Array]]:
        """(positions, (b, K) float64) of a few rows at a time.

        The cosine, or 2 x'v - (c + m)'v for a class with the centroid c and the direction v, m being the mean of the
        centroids: minus the squared distance, except for what is the same for all classes.
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
