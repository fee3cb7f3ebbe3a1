"""What a head says of rows besides labels: logarithms of probabilities, scores, coefficients, as in scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from precompute.heads import CentroidHead, KNNHead, LogisticHead, MLPHead, MLPSearch, RidgeHead

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:400] / 16, LABELS[:400]
HEADS: dict[str, Any] = {
    "logistic": lambda: LogisticHead(C=1.0),
    "mlp": lambda: MLPHead(max_epochs=3),
    "search": lambda: MLPSearch(MLPHead(max_epochs=3), param_grid={"dropout": [0.0, 0.5]}),
    "knn": KNNHead,
    "ridge": RidgeHead,
    "mahalanobis": CentroidHead,
    "cosine": lambda: CentroidHead(metric="cosine"),
    "euclidean": lambda: CentroidHead(metric="euclidean"),
}
SCORED = ["logistic", "ridge", "mahalanobis", "cosine", "euclidean"]


def fitted(name: str, n_classes: int, dtype: Any) -> tuple[Any, np.ndarray]:
    kept = n_classes > LABELS
    X = DIGITS[kept].astype(dtype)
    return HEADS[name]().fit(X, LABELS[kept]), X


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_are_those_of_the_probabilities(name: str, n_classes: int, dtype: Any) -> None:
    head, X = fitted(name, n_classes, dtype)
    proba, logs = head.predict_proba(X), head.predict_log_proba(X)
    assert (logs.dtype, logs.shape) == (proba.dtype, (len(X), n_classes))
    np.testing.assert_allclose(np.exp(logs), proba, rtol=1e-4, atol=1e-6)
    assert (logs <= 1e-12).all()


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("knn", "cosine")])
def test_a_probability_of_zero_still_has_a_logarithm(name: str) -> None:
    """Far away from all training rows; the order of the classes is there, where all but one probability are 0."""
    head, X = fitted(name, 10, np.float32)
    far = X[:20] * np.float32(1e5)
    logs = head.predict_log_proba(far)
    assert (head.predict_proba(far) == 0).any()
    assert np.isfinite(logs).all()
    assert all(len(np.unique(row)) == 10 for row in logs)


def test_a_class_without_a_vote_has_none() -> None:
    logs = KNNHead(k=1).fit(DIGITS, LABELS).predict_log_proba(DIGITS[:5])
    assert (np.isneginf(logs).sum(axis=1) == 9).all()
    assert (logs.max(axis=1) == 0).all()


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("name", SCORED)
def test_scores_have_scikit_learns_shapes_and_order(name: str, n_classes: int) -> None:
    head, X = fitted(name, n_classes, np.float64)
    scores = head.decision_function(X)
    assert scores.shape == ((len(X),) if n_classes == 2 else (len(X), n_classes))
    best = (scores > 0).astype(int) if n_classes == 2 else scores.argmax(axis=1)
    assert np.array_equal(head.classes_[best], head.predict(X))
    if name in ("mahalanobis", "logistic", "ridge"):
        assert head.coef_.shape == (1 if n_classes == 2 else n_classes, 64)
        linear = X @ head.coef_.T + head.intercept_
        np.testing.assert_allclose(linear[:, 0] if n_classes == 2 else linear, scores, atol=1e-8)
        reference = LogisticRegression() if name == "logistic" else RidgeClassifier()
        assert np.atleast_2d(reference.fit(X, head.predict(X)).coef_).shape == head.coef_.shape
    if name != "ridge" and n_classes == 10:
        np.testing.assert_allclose(log_softmax(scores, axis=1), head.predict_log_proba(X), atol=1e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_what_is_not_linear_has_no_coefficients(metric: str) -> None:
    head = CentroidHead(metric=metric).fit(DIGITS, LABELS)
    for name in ("coef_", "intercept_"):
        with pytest.raises(
            AttributeError, match=f"CentroidHead has no {name}: it is not fitted, or not by mahalanobis"
        ):
            getattr(head, name)
    assert not hasattr(CentroidHead(), "coef_")
