"""Heads of several labels, and of numbers, as scikit-learn's own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import LabelBinarizer, StandardScaler

from precompute.heads.base.labels import INITIAL_THRESHOLD
from precompute.heads.persistence.no_equal import no_equal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["knn_regression", "mlp_regression", "multilabel_knn", "multilabel_linear", "multilabel_mlp", "scaler"]


def multilabel_linear(head: Any) -> list[Any]:
    """Probabilities are sigmoids of linear scores: a logistic regression for each label, also of ridge scores."""
    slopes = np.array(getattr(head, "slopes_", [1.0] * len(head.labels_)))
    offsets = np.array(getattr(head, "offsets_", [0.0] * len(head.labels_)))
    models = []
    for coef, intercept, slope, offset in zip(head.coef_, head.intercept_, slopes, offsets, strict=True):
        model = LogisticRegression(C=getattr(head, "C_", 1.0))
        model.classes_, model.n_iter_ = np.arange(2), np.array([getattr(head, "n_iter_", 1)], np.int32)
        model.coef_, model.intercept_ = (slope * coef.astype(np.float64))[None], np.array([slope * intercept + offset])
        models.append(model)
    return [_by_label(head, models)]


def multilabel_mlp(head: Any) -> list[Any]:
    """One network; with other thresholds than 0.5 one for each label, as MLPClassifier has no thresholds."""
    weights, biases = [weight.T for weight in head.weights_], list(head.biases_)
    if (head.thresholds_ == INITIAL_THRESHOLD).all() and len(head.labels_) > 1:
        return [scaler(head), _network(head, weights, biases)]
    models = [
        _network(head, [*weights[:-1], weights[-1][:, [label]]], [*biases[:-1], biases[-1][[label]]])
        for label in range(len(head.labels_))
    ]
    return [scaler(head), _by_label(head, models)]


def _network(head: Any, weights: list[Array], biases: list[Array]) -> MLPClassifier:
    model = MLPClassifier(hidden_layer_sizes=tuple(weight.shape[1] for weight in weights[:-1]), activation="relu")
    model.coefs_, model.intercepts_ = weights, biases
    model.n_layers_, model.n_outputs_, model.out_activation_ = len(weights) + 1, len(biases[-1]), "logistic"
    model.n_iter_, model.n_features_in_ = head.n_iter_, int(head.n_features_in_)
    one = model.n_outputs_ == 1
    model.classes_ = np.arange(2 if one else model.n_outputs_)
    model._label_binarizer = LabelBinarizer().fit(np.arange(2) if one else np.eye(model.n_outputs_, dtype=int))
    return model


def multilabel_knn(head: Any, **options: Any) -> list[Any]:
    if not (head.thresholds_ == INITIAL_THRESHOLD).all():
        raise no_equal(
            head,
            "KNeighborsClassifier predicts above 0.5, and has no other thresholds (set_thresholds sets them to 0.5)",
        )
    model = KNeighborsClassifier(head.k_, **options)
    model.fit(_rows(head), head.targets_[:, 0])
    # Both values of every label: of one that all rows have, or none, scikit-learn would know one alone.
    model._y, model.classes_, model.outputs_2d_ = head.targets_.astype(np.intp), head.classes_, True
    return [model]


def knn_regression(head: Any, **options: Any) -> list[Any]:
    return [KNeighborsRegressor(head.k_, **options).fit(_rows(head), head.targets_)]


def mlp_regression(head: Any) -> list[Any]:
    weights = [weight.T.astype(np.float64) for weight in head.weights_]
    biases = [bias.astype(np.float64) for bias in head.biases_]
    weights[-1] = weights[-1] * head.target_scale_
    biases[-1] = biases[-1] * head.target_scale_ + head.target_mean_
    model = MLPRegressor(hidden_layer_sizes=tuple(weight.shape[1] for weight in weights[:-1]), activation="relu")
    model.coefs_, model.intercepts_ = weights, biases
    model.n_layers_, model.n_outputs_, model.out_activation_ = len(weights) + 1, 1, "identity"
    model.n_iter_ = head.n_iter_
    return [scaler(head), model]


def scaler(head: Any) -> StandardScaler:
    """What the features of an MLP are standardised by."""
    found = StandardScaler()
    found.mean_, found.scale_ = head.mean_.astype(np.float64), head.scale_.astype(np.float64)
    found.var_ = found.scale_**2
    return found


def _by_label(head: Any, models: Sequence[Any]) -> MultiOutputClassifier:
    """A model for each label, with its threshold."""
    fixed = []
    for model, threshold in zip(models, head.thresholds_.tolist(), strict=True):
        model.n_features_in_ = int(head.n_features_in_)
        # scikit-learn's threshold is met by a probability that equals it, and a head's is not.
        one = FixedThresholdClassifier(
            model, threshold=float(np.nextafter(threshold, 2)), pos_label=1, response_method="predict_proba"
        )
        one.estimator_, one.n_features_in_ = model, model.n_features_in_
        fixed.append(one)
    several = MultiOutputClassifier(fixed[0])
    several.estimators_, several.classes_ = fixed, head.classes_
    return several


def _rows(head: Any) -> Array:
    rows: Array = head.features_[:].astype(head.features_.working_dtype, copy=False)
    return rows
