"""Sample weights mean the same for every head: a weight of 2 is the row twice, one of 0 is no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.class_weight import compute_sample_weight

from precompute.heads import (
    AttentiveHead,
    CentroidHead,
    KNNHead,
    LogisticHead,
    MLPHead,
    MLPSearch,
    RidgeHead,
    RidgeRegressionHead,
    SelectedHead,
    load_head,
    save_head,
)
from precompute.heads.linear.spectrum import ALPHA_GRID

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS = DIGITS / 16
EXACT_MLP = {"hidden": (8,), "dropout": 0.0, "max_epochs": 5, "validation_fraction": 0.01, "batch_size": 10_000}
EXACT_ATTENTION = {name: EXACT_MLP[name] for name in EXACT_MLP if name != "hidden"}
HEADS: dict[str, Any] = {
    "logistic": lambda **kw: LogisticHead(**{"C": 0.1, "tol": 1e-15, **kw}),
    "logistic auto": lambda **kw: LogisticHead(**{"C": [1e-3, 1e-2, 1e-1], "tol": 1e-15, **kw}),
    "mlp": lambda **kw: MLPHead(**EXACT_MLP, **kw),
    "knn": lambda **kw: KNNHead(k=5, **kw),
    "ridge": lambda **kw: RidgeHead(**kw),
    "ridge with alpha": lambda **kw: RidgeHead(alpha=1.0, **kw),
    "mahalanobis": lambda **kw: CentroidHead(**kw),
    "cosine": lambda **kw: CentroidHead(metric="cosine", **kw),
    "euclidean": lambda **kw: CentroidHead(metric="euclidean", **kw),
    "ridge regression": lambda **kw: RidgeRegressionHead(**kw),
    "selected": lambda **kw: SelectedHead(**{"fraction": 0.4, "C": 0.1, "tol": 1e-15, **kw}),
    "attentive": lambda **kw: AttentiveHead(**EXACT_ATTENTION, **kw),
}
WEIGHED = ("logistic", "mlp", "knn", "ridge", "selected", "attentive")
BY_CLASS = [name for name in HEADS if name.startswith(WEIGHED) and "regression" not in name]


def problem(seed: int, n: int = 24, d: int = 5, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray, Any]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[y], y, rng


def part(splits: int, group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.flatnonzero(group != fold), np.flatnonzero(group == fold)) for fold in range(splits)]


def with_folds(head: Any, fold: np.ndarray) -> Any:
    """The head, with folds by what each row belongs to where it has any: copies of a row must be in one."""
    return head.set_params(cv=part(3, fold)) if "cv" in head.get_params() else head


def answers(head: Any, X: np.ndarray) -> np.ndarray:
    found: np.ndarray = head.predict_log_proba(X) if hasattr(head, "predict_log_proba") else head.predict(X)
    return found


@pytest.mark.rotates(4)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([2, 5, 40]))
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("kind", HEADS)
def test_whole_weights_are_repeated_rows(kind: str, class_weight: Any, seed: int, d: int) -> None:
    if class_weight is not None and kind not in BY_CLASS:
        return
    X, y, rng = problem(seed, d=d)
    if isinstance(class_weight, dict):
        class_weight = {**class_weight, 2: 1.0}
    options = {} if class_weight is None else {"class_weight": class_weight}
    if d > len(X) and kind in ("ridge", "ridge regression"):
        return  # the least alphas are as good as equal there, and rounding chooses
    weight = rng.integers(0, 4, len(X))
    weight[:9] = np.maximum(weight[:9], 1)  # a row of every class in every fold
    fold = np.arange(len(X)) // 3 % 3
    repeated = np.repeat(np.arange(len(X)), weight)
    order = rng.permutation(len(X)) if kind != "knn" else np.arange(len(X))  # of equally near rows the first counts
    weighted = with_folds(HEADS[kind](**options), fold[order]).fit(X[order], y[order], sample_weight=weight[order])
    expected = with_folds(HEADS[kind](**options), fold[repeated]).fit(X[repeated], y[repeated])
    new = rng.normal(size=(40, d))
    np.testing.assert_allclose(answers(weighted, new), answers(expected, new), rtol=2e-5, atol=2e-6)


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
@pytest.mark.parametrize("kind", HEADS)
def test_rows_of_weight_zero_were_never_there(kind: str, seed: int) -> None:
    """To the last bit, folds and hold-outs included."""
    X, y, rng = problem(seed, n=60)
    weight = rng.integers(0, 2, len(X)) * 0.5
    weight[:12] = 1
    kept = weight > 0
    groups = np.arange(60) // 2
    found = HEADS[kind]().fit(X, y, sample_weight=weight, groups=groups)
    expected = HEADS[kind]().fit(X[kept], y[kept], sample_weight=weight[kept], groups=groups[kept])
    assert np.array_equal(answers(found, X), answers(expected, X))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", HEADS)
def test_equal_weights_are_none(kind: str) -> None:
    X, y, _ = problem(0, n=90)
    plain, ones, scalar = (HEADS[kind]().fit(X, y, sample_weight=given) for given in (None, np.ones(90), 1))
    assert np.array_equal(answers(ones, X), answers(plain, X))
    assert np.array_equal(answers(scalar, X), answers(plain, X))


@pytest.mark.parametrize("kind", ["mlp", "attentive", "mahalanobis", "cosine", "euclidean"])
def test_only_ratios_matter_to_means_and_mean_losses(kind: str) -> None:
    X, y, rng = problem(1, n=90)
    weight = rng.uniform(0.1, 3, 90)
    for scale in (1e-25, 0.25, 1e25):
        found = HEADS[kind]().fit(X, y, sample_weight=weight * scale)
        np.testing.assert_allclose(answers(found, X), answers(HEADS[kind]().fit(X, y, weight), X), rtol=1e-6)


@pytest.mark.parametrize("head", [*HEADS, "search"])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(59), r"sample_weight must have one entry per sample, \(60,\). Got shape \(59,\)"),
        (np.ones((60, 1)), r"Got shape \(60, 1\)"),
        (np.where(np.arange(60) == 7, -0.5, 1), r"must be 0 or above. Got -0.5 for sample 7. Give 0 to leave"),
        (np.where(np.arange(60) == 7, np.nan, 1), "sample_weight contains NaN"),
        (np.where(np.arange(60) == 7, np.inf, 1), "sample_weight contains infinity"),
        (np.full(60, 1e31), "at most 1e"),
        (np.zeros(60), "sample_weight is zero for every sample"),
        (["a"] * 60, "could not convert string to float|dtype"),
    ],
)
def test_weights_that_are_none_are_refused(head: str, weight: Any, message: str) -> None:
    X, y, _ = problem(0, n=60)
    made = MLPSearch(MLPHead(**EXACT_MLP)) if head == "search" else HEADS[head]()
    with pytest.raises(ValueError, match=message):
        made.fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("kind", [*BY_CLASS, "mahalanobis"])
def test_a_class_without_weight(kind: str) -> None:
    """`classes_` are those of y; what has no weight is never predicted; a single class is no problem to learn."""
    X, y, _ = problem(0, n=60)
    with pytest.raises(ValueError, match=r"class(es)? .*weight above 0|weight above 0 of every class"):
        HEADS[kind]().fit(X, y, sample_weight=y == 1)
    if kind == "mahalanobis":
        with pytest.raises(ValueError, match="of every class, and 1 has none. Leave out the samples of that class"):
            HEADS[kind]().fit(X, y, sample_weight=y != 1)
        return
    head = HEADS[kind](class_weight="balanced").fit(X, y, sample_weight=y != 1)
    assert head.classes_.tolist() == [0, 1, 2]
    assert np.isfinite(head.predict_proba(X)).all()
    if kind in ("mlp", "attentive"):  # five steps have not yet unlearned where it started
        return
    assert set(head.predict(X)) <= {0, 2}
    without = HEADS[kind](class_weight="balanced").fit(X[y != 1], y[y != 1])
    assert np.array_equal(without.predict(X), head.predict(X))


def test_logistic_is_scikit_learns_with_weights() -> None:
    X, y = DIGITS[:300], LABELS[:300]
    weight = np.random.default_rng(0).uniform(0, 3, 300)
    for class_weight in (None, {label: 1 + label / 3 for label in range(10)}):
        expected = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000, class_weight=class_weight).fit(X, y, weight)
        head = LogisticHead(C=0.5, tol=1e-14, class_weight=class_weight).fit(X, y, weight)
        np.testing.assert_allclose(head.predict_proba(X), expected.predict_proba(X), atol=1e-5)


@pytest.mark.rotates(3)
def test_held_out_rows_are_scored_with_their_weights_and_without_those_of_classes() -> None:
    X, y = DIGITS[:200], LABELS[:200]
    weight = np.random.default_rng(0).uniform(0, 3, 200)
    splits = part(4, np.arange(200) % 4)
    head = LogisticHead(C=(0.01, 1.0), cv=splits, class_weight="balanced", tol=1e-12).fit(X, y, weight)
    for trial in head.trials_:
        losses, hits = 0.0, 0.0
        for train, test in splits:
            by_class = np.bincount(y, weight)
            balanced = weight.sum() / (10 * by_class)
            # The weights of the classes are those of all samples, as in scikit-learn's LogisticRegressionCV.
            model = LogisticRegression(C=trial["C"], tol=1e-9, max_iter=10_000)
            model.fit(X[train], y[train], (weight * balanced[y])[train])
            held = weight[test]
            losses += log_loss(y[test], model.predict_proba(X[test]), sample_weight=held, labels=range(10)) * held.sum()
            hits += held @ (model.predict(X[test]) == y[test])
        assert trial["log_loss"] == pytest.approx(losses / weight.sum(), rel=1e-4)
        assert trial["accuracy"] == pytest.approx(hits / weight.sum(), abs=0.02)
    assert head.C_source_ == "4-fold cross-validation"
    assert [trial["C"] for trial in head.trials_] == [0.01, 1.0]


@pytest.mark.parametrize("n", [40, 300], ids=["fewer rows than features", "more"])
def test_ridge_leaves_out_whole_rows_as_scikit_learn_does_with_weights(n: int) -> None:
    X, y = DIGITS[:n], LABELS[:n]
    weight = np.random.default_rng(0).uniform(0.1, 3, n)
    expected = RidgeClassifierCV(ALPHA_GRID, store_cv_results=True).fit(X, y, weight)
    head = RidgeHead().fit(X, y, weight)
    assert head.alpha_ == expected.alpha_
    np.testing.assert_allclose(head.coef_, expected.coef_, rtol=1e-5, atol=1e-8)
    given = RidgeHead(alpha=3.0, class_weight="balanced").fit(X, y, weight)
    balanced = (weight.sum() / (10 * np.bincount(y, weight)))[y]
    np.testing.assert_allclose(given.coef_, RidgeClassifier(alpha=3.0).fit(X, y, weight * balanced).coef_, atol=1e-8)


def test_groups_are_left_out_with_their_weights() -> None:
    X, y = DIGITS[:120], LABELS[:120]
    rng = np.random.default_rng(0)
    weight, groups = rng.uniform(0.1, 3, 120), rng.integers(0, 30, 120)
    targets = 2.0 * (y[:, None] == np.arange(10)) - 1
    head = RidgeHead().fit(X, y, weight, groups=groups)
    for trial in head.trials_[::3]:
        left = np.empty_like(targets)
        for group in np.unique(groups):
            kept = groups != group
            model = Ridge(alpha=trial["alpha"]).fit(X[kept], targets[kept], weight[kept])
            left[~kept] = model.predict(X[~kept])
        error = (weight[:, None] * (left - targets) ** 2).sum() / (10 * weight.sum())
        assert trial["squared_error"] == pytest.approx(error, rel=1e-6)
        assert trial["accuracy"] == pytest.approx(weight @ (left.argmax(axis=1) == y) / weight.sum())


def test_regression_is_scikit_learns_ridge_with_weights() -> None:
    X, rng = DIGITS[:100], np.random.default_rng(0)
    y, weight = rng.normal(size=(100, 2)), rng.uniform(0.1, 3, 100)
    head, expected = RidgeRegressionHead(alpha=2.0).fit(X, y, weight), Ridge(alpha=2.0).fit(X, y, weight)
    np.testing.assert_allclose(head.predict(X), expected.predict(X), rtol=1e-8)


def test_votes_have_weights_and_a_heavy_row_takes_several_places() -> None:
    X, y, _ = problem(3, n=40)
    by_class = {0: 1.0, 1: 5.0, 2: 0.2}
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = KNeighborsClassifier(7, metric="cosine").fit(X, y)
    distance, near = expected.kneighbors(X)
    votes = np.exp((1 - distance) / 0.07) * np.array([by_class[label] for label in y])[near]
    share = np.array([np.bincount(y[row], vote, 3) for row, vote in zip(near, votes, strict=True)])
    head = KNNHead(k=7, class_weight=by_class).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), share / share.sum(axis=1, keepdims=True), rtol=1e-6)
    # Half of a place is left for the second row.
    pair = KNNHead(k=2, temperature=1e5).fit(unit[[0, 1, 2]], [0, 1, 2], sample_weight=[1.5, 1.5, 1.5])
    first = np.sort(pair.predict_proba(unit[:1])[0])
    np.testing.assert_allclose(first, [0, 0.25, 0.75], atol=1e-4)
    assert pair.k_ == 2
    assert KNNHead(k=20).fit(X, y, sample_weight=np.full(40, 0.1)).k_ == pytest.approx(4)


def test_balanced_counts_weights() -> None:
    X, y = DIGITS[:300], np.minimum(LABELS[:300], 1)
    weight = np.where(y == 1, 1.0, 9.0)  # as many of the one class as of the other
    head = RidgeHead(alpha=1.0, class_weight="balanced").fit(X, y, weight)
    total = np.bincount(y, weight)
    plain = RidgeHead(alpha=1.0).fit(X, y, weight * (weight.sum() / (2 * total))[y])
    np.testing.assert_allclose(head.coef_, plain.coef_)
    balanced = RidgeHead(alpha=1.0, class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(
        balanced.coef_, RidgeHead(alpha=1.0).fit(X, y, compute_sample_weight("balanced", y)).coef_
    )


def test_a_search_trains_every_head_with_the_weights() -> None:
    X, y, rng = problem(0, n=200)
    weight = rng.uniform(0.2, 4, 200)
    grid = {"weight_decay": [1e-4, 1e-1]}
    search = MLPSearch(MLPHead(**EXACT_MLP), param_grid=grid).fit(X, y, weight, validation=(X, y))
    alone = MLPHead(**{**EXACT_MLP, **search.best_params_}).fit(X, y, weight, validation=(X, y))
    np.testing.assert_allclose(search.predict_proba(X), alone.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(np.exp(search.predict_log_proba(X)), search.predict_proba(X), atol=1e-6)


def test_the_losses_of_an_mlp_are_weighted_means() -> None:
    X, y, rng = problem(0, n=300)
    weight = rng.uniform(0.2, 4, 300)
    head = MLPHead(**{**EXACT_MLP, "max_epochs": 1, "validation_fraction": 0.001}).fit(X, y, weight)
    epoch = head.history_[-1]
    assert head.validation_source_.startswith("none")
    assert epoch["train_loss"] == pytest.approx(log_loss(y, head.predict_proba(X), sample_weight=weight), rel=1e-5)
    assert epoch["train_accuracy"] == pytest.approx(head.score(X, y, sample_weight=weight))
    mean = weight @ X / weight.sum()
    np.testing.assert_allclose(head.mean_, mean)
    np.testing.assert_allclose(head.scale_, np.sqrt(weight @ (X - mean) ** 2 / weight.sum()))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", HEADS)
def test_weights_may_be_a_tensor_or_a_list_and_stay_as_they_are(kind: str) -> None:
    X, y, rng = problem(0, n=60)
    weight = rng.integers(1, 4, 60)
    before = weight.copy()
    found = [answers(HEADS[kind]().fit(X, y, w), X) for w in (weight, weight.tolist(), torch.from_numpy(weight))]
    assert np.array_equal(weight, before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("kind", HEADS)
def test_weighted_heads_come_back_from_their_files(kind: str, tmp_path: Path) -> None:
    X, y, rng = problem(0, n=60)
    weight = rng.uniform(0, 3, 60)
    options = {"class_weight": {0: 2.0, 1: 1.0, 2: 0.5}} if kind in BY_CLASS else {}
    head = with_folds(HEADS[kind](**options), np.arange(60) // 3 % 3).fit(X, y, weight)
    save_head(tmp_path / "head", head, metadata={})
    loaded = load_head(tmp_path / "head").head
    assert np.array_equal(answers(loaded, X), answers(head, X))
    assert {name: repr(value) for name, value in loaded.get_params().items() if name != "cv"} == {
        name: repr(value) for name, value in head.get_params().items() if name != "cv"
    }
    if "cv" in head.get_params():
        for mine, theirs in zip(head.cv, loaded.cv, strict=True):
            assert [list(rows) for rows in mine] == theirs
    loaded.fit(X, y, weight)
    np.testing.assert_allclose(answers(loaded, X), answers(head, X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        ([], "at least one split"),
        ("5", "cv must be"),
        ([([0, 1],)], "every split in cv must be a pair"),
        ([([0, 1], [])], "every split in cv must be a pair"),
        ([([0.5, 1], [2])], "every split in cv must be a pair"),
        ([([0, 1], [1, 2])], "each in one part only"),
        ([([0, 1], [60])], "from 0 to 59"),
        ([([-1, 1], [2])], "from 0 to 59"),
    ],
)
@pytest.mark.parametrize("make", [LogisticHead, RidgeHead, CentroidHead, RidgeRegressionHead])
def test_splits_that_are_none_are_refused(make: Any, cv: Any, message: str) -> None:
    X, y, _ = problem(0, n=60)
    with pytest.raises(ValueError, match=message):
        make(cv=cv).fit(X, y)


def test_ridge_leaves_every_row_out_once() -> None:
    X, y, _ = problem(0, n=60)
    splits = part(3, np.arange(60) // 3 % 3)
    for wrong in (splits[:2], [*splits, splits[0]], [(train[1:], test) for train, test in splits]):
        with pytest.raises(ValueError, match="cv must test every sample in one split"):
            RidgeHead(cv=wrong).fit(X, y)
    head = RidgeHead(cv=splits).fit(X, y)
    assert head.alpha_source_ == "3-fold cross-validation"
    assert head.trials_ == RidgeHead().fit(X, y, groups=np.arange(60) // 3 % 3).trials_
