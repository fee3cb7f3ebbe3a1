"""A head as a pipeline of scikit-learn's own classes, for programs that have scikit-learn and not precompute."""

from __future__ import annotations

import functools
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from sklearn.base import is_classifier
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import LabelBinarizer, Normalizer, StandardScaler
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.labels import MultilabelHead
from precompute.heads.persistence.kinds import kind_of
from precompute.heads.persistence.multilabel_steps import (
    knn_regression,
    mlp_regression,
    multilabel_knn,
    multilabel_linear,
    multilabel_mlp,
    scaler,
)
from precompute.heads.persistence.no_equal import no_equal
from precompute.heads.persistence.output import EXPORT
from precompute.system.output import check_output

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.persistence.kinds import Head

__all__ = ["EXPORT", "to_sklearn", "write_joblib"]

PROBES = 64  # rows on which an export is compared with its head
TOLERANCE = 1e-3  # of their probabilities, relative to 1: float32 on one side, float64 on the other
# Votes weigh exp(-distance / temperature), and cosine distances go up to 2: beyond, float64 has only zeros.
LEAST_TEMPERATURE = 2 / 700


def to_sklearn(head: Head, *, multiplied: npt.NDArray[np.floating] | None = None) -> Pipeline:
    """A fitted scikit-learn `Pipeline` of scikit-learn's own classes that predicts as `head` does.

    It takes features (n, d) as the head does, no images. `predict` agrees, but where two classes are as good as equal;
    so does `predict_proba`, which scikit-learn's RidgeClassifier and Ridge do not have. Of several labels that is a
    list of arrays (n, 2), one for each label, but (n, L) of an MLPClassifier. It holds nothing of precompute, so it can
    be pickled and loaded where only scikit-learn is. Before it is returned it is compared with the head on rows that
    resemble the training features. multiplied: (d,) what each feature is multiplied by before the head sees it, which a
    first step of the pipeline does.

    Raises HeadError where scikit-learn has no equal, naming what it lacks; NotFittedError.
    """
    check_is_fitted(head)
    try:
        steps = _STEPS[kind_of(head)](head)
    except (KeyError, AttributeError, ValueError) as error:
        raise no_equal(head, f"its parts are not those that scikit-learn knows ({error})") from error
    pipeline = make_pipeline(*steps)
    for step in steps:
        step.n_features_in_ = int(head.n_features_in_)
    _compare(head, pipeline)
    return pipeline if multiplied is None else _after_scaling(pipeline, np.asarray(multiplied, np.float64))


def _after_scaling(pipeline: Pipeline, factors: npt.NDArray[np.float64]) -> Pipeline:
    step = StandardScaler(with_mean=False)
    step.scale_, step.var_, step.mean_ = 1 / factors, 1 / factors**2, None
    step.n_features_in_, step.n_samples_seen_ = len(factors), 1
    return Pipeline([("scaling", step), *pipeline.steps])


def write_joblib(
    path: str | os.PathLike[str],
    head: Head,
    *,
    overwrite: bool = False,
    multiplied: npt.NDArray[np.floating] | None = None,
) -> Pipeline:
    """Write `to_sklearn(head, multiplied=multiplied)` with joblib; returns the pipeline.

    The file appears under its name in one step.

    Anyone who loads such a file runs the code in it: it is a pickle. Load only those that you made, or trust. For the
    same reason an older export cannot be recognised: an existing file is replaced with `overwrite` only.

    Raises HeadError where scikit-learn has no equal, or where the file cannot be written.
    """
    output = check_output(path, EXPORT, overwrite=overwrite)
    pipeline = to_sklearn(head, multiplied=multiplied)
    output.write(lambda file: joblib.dump(pipeline, file))
    return pipeline


def _logistic(head: Any) -> list[Any]:
    model = LogisticRegression(C=head.C_)
    model.classes_, model.coef_, model.intercept_ = head.classes_, head.coef_, head.intercept_
    model.n_iter_ = np.array([head.n_iter_], dtype=np.int32)
    return [model]


def _mlp(head: Any) -> list[Any]:
    weights, biases = [weight.T for weight in head.weights_], list(head.biases_)
    two = len(head.classes_) == 2
    if two:  # scikit-learn has one logit for two classes
        weights[-1] = weights[-1][:, 1:] - weights[-1][:, :1]
        biases[-1] = biases[-1][1:] - biases[-1][:1]
    model = MLPClassifier(hidden_layer_sizes=tuple(weight.shape[1] for weight in weights[:-1]), activation="relu")
    model.coefs_, model.intercepts_, model.classes_ = weights, biases, head.classes_
    model.n_layers_, model.n_outputs_ = len(weights) + 1, weights[-1].shape[1]
    model.out_activation_ = "logistic" if two else "softmax"
    model.n_iter_ = head.n_iter_
    model._label_binarizer = _binarizer(head)
    return [scaler(head), model]


def _ridge(head: Any) -> list[Any]:
    model = RidgeClassifier(alpha=head.alpha_)
    model.coef_, model.intercept_ = head.coef_, head.intercept_
    model._label_binarizer = _binarizer(head, neg_label=-1)
    if not hasattr(model, "classes_"):  # a property in some releases of scikit-learn
        model.classes_ = head.classes_
    return [model]


def _ridge_regression(head: Any) -> list[Any]:
    model = Ridge(alpha=head.alpha_)
    coef = head.coef_.astype(np.float64)  # so that nothing of the intercept is rounded
    model.coef_, model.intercept_ = coef, head.intercept_
    if head.one_target_:
        model.coef_, model.intercept_ = coef[0], float(head.intercept_[0])
    return [model]


def _centroid(head: Any) -> list[Any]:
    return [_discriminant(head)] if head.metric == "mahalanobis" else _nearest(head)


def _discriminant(head: Any) -> LinearDiscriminantAnalysis:
    """Its probabilities are softmax(coef x + intercept), so the temperature goes into both."""
    centroids, directions = head.centroids_.astype(np.float64), head.directions_.astype(np.float64)
    coef = 2 * directions / head.temperature_
    intercept = -((centroids + centroids.mean(axis=0)) * directions).sum(axis=1) / head.temperature_
    if len(head.classes_) == 2:  # scikit-learn has one score for two classes
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=float(head.shrinkage))
    model.coef_, model.intercept_, model.classes_ = coef, intercept, head.classes_
    model.means_, model.priors_ = centroids, np.full(len(centroids), 1 / len(centroids))
    return model


def _nearest(head: Any) -> list[Any]:
    """NearestCentroid's probabilities are softmax(-(distance / deviation)^2): the deviation makes them the head's."""
    cosine = head.metric == "cosine"
    if cosine and not head.centroids_.any(axis=1).all():
        raise no_equal(head, "the mean of a class is zero, which has no angle; NearestCentroid compares distances")
    n_features, n_classes = int(head.n_features_in_), len(head.classes_)
    model = NearestCentroid(metric="euclidean")
    model.classes_, model.centroids_ = head.classes_, head.centroids_.astype(np.float64)
    # On rows of length 1 the squared distance is 2 - 2 cosine.
    deviation = math.sqrt(head.temperature_ * (2 if cosine else 1))
    model.within_class_std_dev_ = np.full(n_features, deviation)
    model.deviations_ = np.zeros((n_classes, n_features))
    model.class_prior_ = np.full(n_classes, 1 / n_classes)
    model.true_classes_ = head.classes_
    return [Normalizer(), model] if cosine else [model]


def _knn(head: Any) -> list[Any]:
    model = KNeighborsClassifier(head.k_, **_votes(head))
    with warnings.catch_warnings():
        # Not so here: scikit-learn asks whether it is, where most classes have one image.
        warnings.filterwarnings("ignore", ".*`y` could represent a regression problem", UserWarning)
        return [
            model.fit(head.features_[:].astype(head.features_.working_dtype, copy=False), head.classes_[head.labels_])
        ]


def _votes(head: Any) -> dict[str, Any]:
    """The settings of scikit-learn's neighbours with which they vote as a head's do."""
    if head.temperature < LEAST_TEMPERATURE:
        raise no_equal(head, f"a temperature below {LEAST_TEMPERATURE:.2g} gives distances no weight in float64")
    # exp(-distance / temperature) as a power: a function of NumPy, so that its pickle names nothing of precompute.
    weights = functools.partial(np.power, math.exp(-1 / head.temperature))
    return {"metric": "cosine", "weights": weights, "algorithm": "brute"}


def _attentive(head: Any) -> list[Any]:
    raise no_equal(head, "scikit-learn has no attention over positions")


def _binarizer(head: Any, **options: Any) -> LabelBinarizer:
    labels = np.repeat(head.classes_, 2)  # scikit-learn warns of labels that are all different
    return LabelBinarizer(**options).fit(labels)


_STEPS = {
    "logistic": _logistic,
    "mlp": _mlp,
    "knn": _knn,
    "ridge": _ridge,
    "centroid": _centroid,
    "selected": _logistic,
    "attentive": _attentive,
    "multilabel-logistic": multilabel_linear,
    "multilabel-ridge": multilabel_linear,
    "multilabel-knn": lambda head: multilabel_knn(head, **_votes(head)),
    "multilabel-mlp": multilabel_mlp,
    "ridge-regression": _ridge_regression,
    "knn-regression": lambda head: knn_regression(head, **_votes(head)),
    "mlp-regression": mlp_regression,
}


def _compare(head: Any, pipeline: Pipeline) -> None:
    """Raise HeadError unless both predict the same on made-up rows, also far from where the classes meet."""
    X = _probes(head)
    if isinstance(head, MultilabelHead):
        found = pipeline.predict_proba(X)
        found = np.stack([part[:, 1] for part in found], axis=1) if isinstance(found, list) else found
        expected = head.predict_proba(X)
        sure = abs(expected - head.thresholds_) > TOLERANCE
        same = np.allclose(found, expected, rtol=0, atol=TOLERANCE)
        same &= np.array_equal(pipeline.predict(X)[sure], head.predict(X)[sure])
    elif not is_classifier(head):
        expected, found = head.predict(X), pipeline.predict(X)
        same = np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))
    elif hasattr(pipeline, "predict_proba"):
        same = np.allclose(pipeline.predict_proba(X), head.predict_proba(X), rtol=0, atol=TOLERANCE)
    else:
        expected = head.decision_function(X)
        scale = max(1.0, float(np.abs(expected).max()))
        same = np.allclose(pipeline.decision_function(X), expected, rtol=0, atol=TOLERANCE * scale)
    if not same:
        raise no_equal(head, "with these parameters it does not predict as scikit-learn's class of that kind does")


def _probes(head: Any) -> Any:
    """Rows (PROBES, d) float32 around what the head knows of the features: stored rows, means, or plain noise."""
    generator = np.random.default_rng(0)
    centre: Any = 0.0
    spread: Any = 1.0
    if hasattr(head, "features_"):
        centre = head.features_[generator.integers(len(head.features_), size=PROBES)].astype(np.float32)
        spread = centre.std() / 10
    elif hasattr(head, "centroids_"):
        centre = head.centroids_[generator.integers(len(head.centroids_), size=PROBES)]
        spread = head.centroids_.std()
    elif hasattr(head, "scale_"):
        centre, spread = head.mean_, head.scale_
    noise = generator.normal(size=(PROBES, int(head.n_features_in_)))
    return (centre + spread * noise).astype(np.float32)
