"""The head is scikit-learn's discriminant analysis or NearestCentroid, and held-out rows set its probabilities."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from precompute.heads import CentroidHead
from precompute.heads.base import rows
from precompute.heads.base.splits import folds
from precompute.heads.neighbours import centroid, moments
from precompute.heads.scoring.temperature import bounded_temperature, softmax_at

DIGITS, LABELS = load_digits(return_X_y=True)
METRICS = ["mahalanobis", "cosine", "euclidean"]


@pytest.mark.parametrize("block", [1, 50, 10**4])
@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_mahalanobis_is_scikit_learns_discriminant_of_equal_priors(
    block: int, shrinkage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
    X, y = DIGITS[:400].astype(np.float32), LABELS[:400]
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X.astype(np.float64), y)
    # Its covariance weighs classes by their priors, so those are left as they are and taken out of the scores.
    model.intercept_ = model.intercept_ - np.log(model.priors_)
    head = CentroidHead(shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(head.centroids_, model.means_, rtol=1e-5, atol=1e-6)
    expected = model.coef_ - model.coef_.mean(axis=0)
    np.testing.assert_allclose(head.directions_, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.array_equal(head.predict(DIGITS), model.predict(DIGITS))
    logits = 2 * model.decision_function(DIGITS) / head.temperature_
    np.testing.assert_allclose(head.predict_proba(DIGITS), softmax_at(logits, 1.0, np.float64), atol=1e-4)
    assert head.covariance_type_ == "full"


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(2, 4), st.integers(1, 12), st.sampled_from([0.01, 0.5, 1]))
def test_scores_are_minus_the_squared_distance_but_for_a_number_per_row(
    seed: int, n_classes: int, n_features: int, shrinkage: float
) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(4 * n_classes) % n_classes
    X = (rng.normal(size=(len(y), n_features)) + rng.normal(size=(n_classes, n_features))[y] + 5).astype(np.float32)
    for metric in ("mahalanobis", "euclidean"):
        head = CentroidHead(metric=metric, shrinkage=shrinkage).fit(X, y)
        sigma = shrunk(X, y, shrinkage) if metric == "mahalanobis" else np.eye(n_features)
        away = X[:, None].astype(np.float64) - head.centroids_
        squared = np.einsum("nki,nki->nk", away @ np.linalg.inv(sigma), away)
        difference = scores_of(head, X) + squared
        np.testing.assert_allclose(difference, difference[:, :1] @ np.ones((1, n_classes)), atol=1e-4 * squared.max())
        assert np.array_equal(head.predict_proba(X).argmax(axis=1), squared.argmin(axis=1))


def shrunk(X: np.ndarray, y: np.ndarray, shrinkage: float) -> np.ndarray:
    """The pooled within-class covariance, shrunk, as its formula reads."""
    means = np.array([X[y == label].astype(np.float64).mean(axis=0) for label in np.unique(y)])
    within = X - means[y]
    covariance = within.T @ within / len(X)
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / X.shape[1] * np.eye(X.shape[1])


def scores_of(head: CentroidHead, X: np.ndarray) -> np.ndarray:
    found = head._scores(rows.RowView(X.astype(np.float32)), head.centroids_, head.directions_)
    return np.concatenate([scores for _, scores in found])


@pytest.mark.parametrize("block", [7, 10**4])
def test_variances_alone_where_there_are_many_features(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MOST_AXES", 63)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
    X, y = DIGITS[:400].astype(np.float32), LABELS[:400]
    head = CentroidHead().fit(X, y)
    away = head.centroids_.astype(np.float64) - head.centroids_.mean(axis=0, dtype=np.float64)
    expected = away / np.diag(shrunk(X, y, 0.5))
    np.testing.assert_allclose(head.directions_, expected, rtol=1e-4, atol=1e-5)
    assert head.choices()["covariance_type"] == "diag"
    assert head.temperature_ == pytest.approx(refitted_temperature(head, X, y, None), rel=1e-3)


def test_what_sigma_is_made_of_is_told() -> None:
    full = CentroidHead(shrinkage=0.25).fit(DIGITS, LABELS)
    assert full.summary() == "nothing: the nearest class mean by mahalanobis distance, shrinkage 0.25"
    wide = np.random.default_rng(0).normal(size=(6, moments.MOST_AXES + 1))
    diagonal = CentroidHead().fit(wide, [0, 0, 0, 1, 1, 1])
    assert diagonal.covariance_type_ == "diag"
    assert diagonal.summary().endswith("(variances only: more than 4,096 features)")
    assert moments.covariance_type(moments.MOST_AXES) == "full"
    for metric in ("cosine", "euclidean"):
        plain = CentroidHead(metric=metric).fit(DIGITS, LABELS)
        assert plain.choices() == {"metric": metric, "temperature": plain.temperature_}
        assert plain.summary() == f"nothing: the nearest class mean by {metric} distance"


@pytest.mark.parametrize("copies", [1, 3])
def test_without_scatter_within_classes_it_is_euclidean(copies: int) -> None:
    """One sample a class, or the same one again, whose mean is not exact: no rounding passes for scatter."""
    X = np.repeat(np.random.default_rng(0).normal(size=(7, 5)) + 100, copies, axis=0).astype(np.float32)
    y = np.repeat(np.arange(7), copies)
    head, plain = (CentroidHead(metric=metric).fit(X, y) for metric in ("mahalanobis", "euclidean"))
    assert head.covariance_type_ == "identity"
    assert head.summary().endswith("(euclidean: no two samples of a class differ)")
    assert np.array_equal(head.directions_, plain.directions_)
    assert np.array_equal(head.predict_proba(X), plain.predict_proba(X))
    assert head.predict(X).tolist() == y.tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_features_without_any_difference_leave_all_classes_alike(metric: str) -> None:
    proba = CentroidHead(metric=metric).fit(np.full((30, 3), 0.1), np.arange(30) % 3).predict_proba([[0.1] * 3])
    np.testing.assert_allclose(proba, 1 / 3, atol=1e-3)


def test_one_constant_feature_does_not_matter() -> None:
    X = np.hstack([DIGITS, np.full((len(DIGITS), 1), 1e6)])
    found, expected = (CentroidHead(shrinkage=0.5).fit(rows, LABELS).predict(rows) for rows in (X, DIGITS))
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_features_far_from_zero_and_classes_far_apart_lose_nothing(far: float) -> None:
    """Sums about zero would cancel: scatter of 1 beside squares of 1e12."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = np.round(rng.normal(size=(60, 4)) * 16) / 4
    head = CentroidHead().fit((X + far * y[:, None]).astype(np.float32), y)
    sigma = shrunk(X, y, 0.5)
    away = head.centroids_.astype(np.float64) - head.centroids_.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(head.directions_ @ sigma, away, atol=1e-5 * far)


def test_directions_beyond_float32_are_refused() -> None:
    tiny = (np.random.default_rng(0).normal(size=(20, 3)) * 1e-40).astype(np.float32)
    with pytest.raises(ValueError, match=r"directions are beyond float32. Scale the features"):
        CentroidHead().fit(tiny, np.arange(20) % 2)


@pytest.mark.parametrize("block", [1, 50, 10**4])
def test_euclidean_is_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
    centroids, predict = nearest(DIGITS[:400])
    head = CentroidHead(metric="euclidean").fit(DIGITS[:400], LABELS[:400])
    np.testing.assert_allclose(head.centroids_, centroids, rtol=1e-6)
    assert np.array_equal(head.predict(DIGITS), predict(DIGITS))


def test_cosine_is_scikit_learns_on_rows_of_length_one() -> None:
    centroids = normalize(nearest(normalize(DIGITS[:400]))[0])
    head = CentroidHead(metric="cosine").fit(DIGITS[:400], LABELS[:400])
    np.testing.assert_allclose(head.centroids_, centroids, rtol=1e-5, atol=1e-7)
    assert np.array_equal(head.predict(DIGITS), (normalize(DIGITS) @ centroids.T).argmax(axis=1))


def nearest(X: np.ndarray) -> tuple[np.ndarray, object]:
    """Centroids and predict of scikit-learn's, which warns of constant columns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_", UserWarning)
        model = NearestCentroid().fit(X, LABELS[: len(X)])
    return model.centroids_, model.predict


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("block", [9, 10**4])
def test_the_temperature_is_that_of_heads_fitted_without_the_fold(
    metric: str, grouped: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
    X, y = DIGITS[:120] / 16, LABELS[:120]
    groups = np.arange(120) // 20 * 20 + np.arange(120) % 17 if grouped else None
    head = CentroidHead(metric=metric).fit(X, y, groups=groups)
    assert head.temperature_ == pytest.approx(refitted_temperature(head, X, y, groups), rel=1e-3)


def refitted_temperature(head: CentroidHead, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> float:
    scores, labels = [], []
    for kept, held in folds(y, groups=groups, n_folds=5, seed=0):
        other = CentroidHead(**head.get_params()).fit(X[kept], y[kept])
        assert np.array_equal(other.classes_, head.classes_)
        scores.append(scores_of(other, X[held]))
        labels.append(y[held])
    return bounded_temperature(np.concatenate(scores), np.concatenate(labels))


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_that_is_held_out_whole_keeps_its_mean_and_its_rows_do_not_count(metric: str) -> None:
    """Class 9 is one group, so it is in no part but its own fold; the rest is scored with its mean in place."""
    X, y = DIGITS[:120] / 16, LABELS[:120]
    groups = np.where(y == 9, 1000, np.arange(120))
    head = CentroidHead(metric=metric).fit(X, y, groups=groups)
    scores, labels = [], []
    for kept, held in folds(y, groups=groups, n_folds=5, seed=0):
        other = CentroidHead(metric=metric).fit(X[kept], y[kept])
        if len(other.classes_) == 10:
            scores.append(scores_of(other, X[held]))
            labels.append(y[held])
        else:
            known = held[y[held] < 9]
            centroids = np.vstack([other.centroids_, head.centroids_[9:]]).astype(np.float64)
            directions = centroids
            if metric != "cosine":
                within = X[kept] - other.centroids_[y[kept]]
                sigma = within.T @ within / len(kept)
                sigma = 0.5 * sigma + 0.5 * np.trace(sigma) / 64 * np.eye(64)
                directions = centroids - centroids.mean(axis=0)
                directions = directions @ np.linalg.inv(sigma) if metric == "mahalanobis" else directions
            view = rows.RowView(X[known].astype(np.float32))
            scores += [found for _, found in head._scores(view, centroids, directions)]
            labels.append(y[known])
    assert head.temperature_ == pytest.approx(bounded_temperature(np.vstack(scores), np.concatenate(labels)), rel=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_a_temperature_needs_no_more_than_some_rows(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = CentroidHead(metric=metric).fit(DIGITS, LABELS).temperature_
    monkeypatch.setattr(centroid, "MOST_SCORES", 10 * len(DIGITS) // 3)
    assert CentroidHead(metric=metric).fit(DIGITS, LABELS).temperature_ == pytest.approx(every, rel=0.2)


@pytest.mark.parametrize("metric", METRICS)
def test_probabilities_are_as_sure_as_they_are_right(metric: str) -> None:
    head = CentroidHead(metric=metric).fit(DIGITS[:600], LABELS[:600])
    proba = head.predict_proba(DIGITS[600:])
    assert abs(proba.max(axis=1).mean() - (head.predict(DIGITS[600:]) == LABELS[600:]).mean()) < 0.05
    assert log_loss(LABELS[600:], proba) < 0.6


def test_two_samples_a_class_leave_scores_on_their_scale() -> None:
    """Each fold leaves one sample a class, without scatter; the mean variance is then that of the whole."""
    rng = np.random.default_rng(0)
    y = np.arange(20) % 10
    X = rng.normal(size=(10, 8))[y] * 3 + rng.normal(size=(20, 8))
    small, large = (CentroidHead().fit(X * scale, y) for scale in (1e-3, 1e3))
    np.testing.assert_allclose(small.predict_proba(X * 1e-3), large.predict_proba(X * 1e3), atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_with_one_sample_counts_and_no_two_samples_leave_the_temperature_at_one(metric: str) -> None:
    X, y = np.eye(4)[[0, 0, 1, 2]], ["a", "a", "b", "c"]
    assert CentroidHead(metric=metric).fit(X, y).predict(np.eye(4)[:3]).tolist() == ["a", "b", "c"]
    assert CentroidHead(metric=metric).fit(np.eye(3), [0, 1, 2]).temperature_ == 1.0
    lone = CentroidHead(metric=metric).fit(DIGITS[:40], LABELS[:40], groups=LABELS[:40])
    assert lone.temperature_ == 1.0
    assert (lone.predict(DIGITS[:40]) == LABELS[:40]).mean() > 0.9


def test_the_fitted_temperature_has_the_least_log_loss() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 4))
    label = (scores / 0.3 + rng.gumbel(size=scores.shape)).argmax(axis=1)  # draws from softmax(scores / 0.3)
    best = bounded_temperature(scores, label)
    assert best == pytest.approx(0.3, rel=0.15)
    losses = [log_loss(label, softmax_at(scores, best * factor, np.float64)) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert bounded_temperature(np.zeros((5, 3)), np.zeros(5, dtype=int)) == 1.0
    assert bounded_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0
