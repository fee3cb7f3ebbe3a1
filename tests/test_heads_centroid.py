"""The centroid head is scikit-learn's NearestCentroid, with probabilities that held-out rows have set."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from precompute.heads import CentroidHead, _rows
from precompute.heads._tempering import fit_temperature, tempered

DIGITS, LABELS = load_digits(return_X_y=True)


@pytest.mark.parametrize("block", [1, 50, 10**4])
def test_euclidean_is_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "BLOCK_BYTES", 4 * 64 * block)
    centroids, predict = nearest(DIGITS[:400])
    head = CentroidHead(metric="euclidean").fit(DIGITS[:400], LABELS[:400])
    np.testing.assert_allclose(head.centroids_, centroids, rtol=1e-6)
    assert np.array_equal(head.predict(DIGITS), predict(DIGITS))


def test_cosine_is_scikit_learns_on_rows_of_length_one() -> None:
    centroids = normalize(nearest(normalize(DIGITS[:400]))[0])
    head = CentroidHead().fit(DIGITS[:400], LABELS[:400])
    np.testing.assert_allclose(head.centroids_, centroids, rtol=1e-5)
    assert np.array_equal(head.predict(DIGITS), (normalize(DIGITS) @ centroids.T).argmax(axis=1))


def nearest(X: np.ndarray) -> tuple[np.ndarray, object]:
    """Centroids and predict of scikit-learn's, which warns of constant columns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_", UserWarning)
        model = NearestCentroid().fit(X, LABELS[: len(X)])
    return model.centroids_, model.predict


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_temperature_is_that_of_means_computed_without_the_row(metric: str, grouped: bool) -> None:
    X, y = DIGITS[:120] / 16, LABELS[:120]
    groups = np.arange(120) // 20 * 20 + np.arange(120) % 17 if grouped else np.arange(120)
    head = CentroidHead(metric=metric).fit(X, y, groups=groups)
    scores, labels = [], []
    for row in range(120):
        kept = (groups != groups[row]) | (y != y[row])
        if y[row] in y[kept]:
            other = CentroidHead(metric=metric).fit(X[kept], y[kept])
            _, one = next(iter(other._scores(_rows.RowView(X[row : row + 1].astype(np.float32)))))
            scores.append(one[0])
            labels.append(y[row])
    assert head.temperature_ == pytest.approx(fit_temperature(np.array(scores), np.array(labels)), rel=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_probabilities_are_as_sure_as_they_are_right(metric: str) -> None:
    head = CentroidHead(metric=metric).fit(DIGITS[:600], LABELS[:600])
    proba = head.predict_proba(DIGITS[600:])
    assert abs(proba.max(axis=1).mean() - (head.predict(DIGITS[600:]) == LABELS[600:]).mean()) < 0.05
    assert log_loss(LABELS[600:], proba) < 0.6


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_a_class_with_one_sample_counts_and_no_two_samples_leave_the_temperature_at_one() -> None:
    X, y = np.eye(4)[[0, 0, 1, 2]], ["a", "a", "b", "c"]
    assert CentroidHead().fit(X, y).predict(np.eye(4)[:3]).tolist() == ["a", "b", "c"]
    assert CentroidHead().fit(np.eye(3), [0, 1, 2]).temperature_ == 1.0


def test_the_fitted_temperature_has_the_least_log_loss() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 4))
    label = (scores / 0.3 + rng.gumbel(size=scores.shape)).argmax(axis=1)  # draws from softmax(scores / 0.3)
    best = fit_temperature(scores, label)
    assert best == pytest.approx(0.3, rel=0.15)
    losses = [log_loss(label, tempered(scores, best * factor)) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert fit_temperature(np.zeros((5, 3)), np.zeros(5, dtype=int)) == 1.0
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0
