"""A head given float64 computes in float64: it agrees with computations by NumPy and scikit-learn that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from precompute.heads import (
    CentroidHead,
    KNNHead,
    LogisticHead,
    MLPHead,
    MLPSearch,
    RidgeHead,
    RidgeRegressionHead,
    load_head,
    save_head,
)

DIGITS, LABELS = load_digits(return_X_y=True)
# Offsets that float32 rounds to 1/16, twice the spread of a feature, and scales that no power of two divides.
DIGITS = DIGITS[:400] / 16 * np.linspace(0.1, 0.7, 64) + np.linspace(-1e6, 1e6, 64)
LABELS = LABELS[:400]
HEADS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticHead(C=1.0),
    "logistic, C chosen": lambda: LogisticHead(C=[0.1, 1.0]),
    "mlp": lambda: MLPHead(hidden=(16,), max_epochs=5, batch_norm=True),
    "search": lambda: MLPSearch(MLPHead(max_epochs=5), param_grid={"hidden": [(8,), ()]}),
    "knn": KNNHead,
    "ridge": RidgeHead,
    "regression": RidgeRegressionHead,
    "mahalanobis": CentroidHead,
    "cosine": lambda: CentroidHead(metric="cosine"),
    "euclidean": lambda: CentroidHead(metric="euclidean"),
}


def outputs(head: Any, X: np.ndarray) -> dict[str, np.ndarray]:
    names = ("predict_proba", "decision_function") if hasattr(head, "classes_") else ("predict",)
    return {name: getattr(head, name)(X) for name in names if hasattr(head, name)}


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    # Seen from 1e6 away all rows have the same angle, which is no question of how heads compute.
    X = DIGITS - DIGITS[0] + 1 if name in ("knn", "cosine") else DIGITS
    head = HEADS[name]().fit(X, LABELS)
    order = np.random.default_rng(0).permutation(len(X))
    alone = [outputs(head, X[[row]]) for row in range(20)]
    for method, found in outputs(head, X).items():
        assert found.dtype == np.float64, method
        np.testing.assert_allclose(outputs(head, X[order])[method], found[order], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(np.concatenate([one[method] for one in alone]), found[:20], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("knn", "cosine", "search")])
def test_an_offset_that_float32_does_not_carry_loses_nothing(name: str) -> None:
    near = DIGITS - np.linspace(-1e6, 1e6, 64)
    head, expected = HEADS[name]().fit(DIGITS, LABELS), HEADS[name]().fit(near, LABELS)
    for method, found in outputs(head, DIGITS).items():
        np.testing.assert_allclose(found, outputs(expected, near)[method], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [40, 400], ids=["fewer rows than features", "more"])
def test_ridge_is_scikit_learns(n: int) -> None:
    X, y = DIGITS[:n] - DIGITS[0], LABELS[:n]
    head, expected = RidgeHead(alpha=1.0).fit(X, y), RidgeClassifier(alpha=1.0, solver="svd").fit(X, y)
    np.testing.assert_allclose(head.decision_function(X), expected.decision_function(X), atol=1e-9)
    np.testing.assert_allclose(head.coef_, expected.coef_, atol=1e-9)
    targets = X[:, :2] + y[:, None]
    numbers, expected = RidgeRegressionHead(alpha=1.0).fit(X, targets), Ridge(alpha=1.0, solver="svd").fit(X, targets)
    np.testing.assert_allclose(numbers.predict(X), expected.predict(X), atol=1e-9)


def test_centroids_are_scikit_learns() -> None:
    X = DIGITS - DIGITS[0]
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(X, LABELS)
    model.intercept_ = model.intercept_ - np.log(model.priors_)
    head = CentroidHead(shrinkage=0.5).fit(X, LABELS)
    logits = 2 * model.decision_function(X) / head.temperature_
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(head.predict_proba(X), expected / expected.sum(axis=1, keepdims=True), atol=1e-9)
    plain = CentroidHead(metric="euclidean").fit(X, LABELS)
    means = np.array([X[label == LABELS].mean(axis=0) for label in range(10)])
    np.testing.assert_allclose(plain.centroids_, means, atol=1e-12)


def test_neighbours_are_those_of_numpy() -> None:
    X = DIGITS - DIGITS[0] + 1
    head = KNNHead(k=7).fit(X[:300], LABELS[:300])
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    similarity = unit[300:] @ unit[:300].T
    expected = np.zeros((100, 10))
    for row, values in enumerate(similarity):
        nearest = np.argsort(-values, kind="stable")[:7]
        np.add.at(expected[row], LABELS[nearest], np.exp(values[nearest] / 0.07))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X[300:]), expected, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("n", [30, 400], ids=["fewer rows than features", "more"])
def test_a_logistic_head_goes_as_near_to_the_optimum_as_it_is_asked_to(n: int, n_classes: int) -> None:
    chosen = np.flatnonzero(n_classes > LABELS)[:n]
    X, y = DIGITS[chosen] - DIGITS[0], LABELS[chosen]
    head = LogisticHead(C=1.0, tol=1e-15).fit(X, y)
    expected = LogisticRegression(C=1.0, tol=1e-10, max_iter=10**4, solver="newton-cg").fit(X, y)
    np.testing.assert_allclose(head.coef_, expected.coef_, atol=1e-6)
    np.testing.assert_allclose(head.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_the_layers_of_an_mlp_are_float64() -> None:
    head = HEADS["mlp"]().fit(DIGITS, LABELS)
    (first, second), (bias, last) = head.weights_, head.biases_
    hidden = np.maximum((DIGITS - head.mean_) / head.scale_ @ first.T + bias, 0)
    logits = hidden @ second.T + last
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(head.predict_proba(DIGITS), expected / expected.sum(axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "search"])
def test_a_file_keeps_float64(name: str, tmp_path: Path) -> None:
    head = HEADS[name]().fit(DIGITS, LABELS)
    save_head(tmp_path / "head", head, metadata={})
    for method, found in outputs(load_head(tmp_path / "head").head, DIGITS).items():
        assert np.array_equal(found, outputs(head, DIGITS)[method]), method


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_narrower_is_worked_on_in_float32(name: str, dtype: type) -> None:
    X = (DIGITS - np.linspace(-1e6, 1e6, 64)).astype(dtype)
    head = HEADS[name]().fit(X, LABELS)
    for method, found in outputs(head, X).items():
        assert found.dtype == (np.float64 if method == "predict" else np.float32), method  # a regression's are float64
    for method, found in outputs(head, X.astype(np.float64)).items():
        assert found.dtype == np.float64, method
        np.testing.assert_allclose(found, outputs(head, X)[method], rtol=1e-2, atol=1e-2)


def test_a_validation_set_may_be_of_another_dtype() -> None:
    X = DIGITS - np.linspace(-1e6, 1e6, 64)
    for one, other in ((np.float32, np.float64), (np.float64, np.float32)):
        for make in HEADS.values():
            make().fit(X[:300].astype(one), LABELS[:300], validation=(X[300:].astype(other), LABELS[300:]))
