"""Ridge heads: scikit-learn's ridge to the last digits that float32 keeps, for every shape of the problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.utils.class_weight import compute_sample_weight

from precompute.heads import RidgeHead, RidgeRegressionHead, RowView
from precompute.heads.linear import spectrum
from precompute.heads.linear.spectrum import ALPHA_GRID

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS = DIGITS / 16  # sixteenths: exact in float16
LOG_ALPHA = st.floats(-3, 5).map(lambda power: 10**power)


def problem(seed: int, n: int, d: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 3, d) + rng.normal(size=d) * 5
    return X.astype(np.float32), np.arange(n) % n_classes


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 99), st.integers(8, 40), st.integers(1, 30), st.integers(2, 4), LOG_ALPHA, st.booleans(),
    st.integers(1, 64),
)  # fmt: skip
def test_a_fit_is_that_of_scikit_learn(
    seed: int, n: int, d: int, n_classes: int, alpha: float, balanced: bool, block: int
) -> None:
    """More rows than features or fewer, two classes or more, in blocks of any size."""
    X, y = problem(seed, n, d, n_classes)
    weight = "balanced" if balanced else None
    expected = RidgeClassifier(alpha=alpha, class_weight=weight).fit(X.astype(float), y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "BLOCK_VALUES", block * d)
        head = RidgeHead(alpha=alpha, class_weight=weight).fit(X, y)
    close(head.coef_, np.atleast_2d(expected.coef_))  # some releases of scikit-learn have (d,) for two classes
    close(head.decision_function(X), expected.decision_function(X.astype(float)))
    assert (head.alpha_, head.alpha_source_, head.trials_) == (alpha, "given", [])


@pytest.mark.parametrize("n", [40, 300], ids=["fewer rows than features", "more"])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_alpha_is_the_one_that_scikit_learns_leave_one_out_chooses(n: int, n_classes: int, weight: str | None) -> None:
    kept = n_classes > LABELS
    X, y = DIGITS[kept][:n], LABELS[kept][:n]
    expected = RidgeClassifierCV(ALPHA_GRID, class_weight=weight, store_cv_results=True).fit(X, y)
    head = RidgeHead(class_weight=weight).fit(X, y)
    assert head.alpha_ == expected.alpha_
    errors = expected.cv_results_.reshape(-1, len(ALPHA_GRID)).mean(axis=0)
    np.testing.assert_allclose([trial["squared_error"] for trial in head.trials_], errors, rtol=1e-6)
    close(head.coef_, np.atleast_2d(expected.coef_))
    assert head.alpha_source_ == "leave-one-out"


@pytest.mark.rotates(3)
@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("block", [7, 10**6])
def test_groups_are_left_out_together(n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = DIGITS[:n], LABELS[:n]
    groups = np.random.default_rng(0).integers(0, n // 3, n)
    monkeypatch.setattr("precompute.heads.linear.ridge_base.BLOCK_VALUES", block * 64)
    head = RidgeHead().fit(X, y, groups=groups)
    targets = 2.0 * (y[:, None] == np.arange(10)) - 1
    for trial in head.trials_[::3]:
        left = cross_val_predict(Ridge(alpha=trial["alpha"]), X, targets, groups=groups, cv=LeaveOneGroupOut())
        assert trial["squared_error"] == pytest.approx(((left - targets) ** 2).mean(), rel=1e-6)
        assert trial["accuracy"] == pytest.approx((left.argmax(axis=1) == y).mean(), abs=1.5 / n)
    assert head.alpha_source_ == "leave-one-group-out"


def test_copies_of_a_sample_do_not_vouch_for_each_other() -> None:
    """Noise that is stored twice looks learnable to leave-one-out; to leave-one-group-out it does not."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 100)), np.arange(60) % 2
    twice, groups = np.tile(np.arange(60), 2), np.tile(np.arange(60), 2)
    fooled = RidgeHead().fit(X[twice], y[twice])
    grouped = RidgeHead().fit(X[twice], y[twice], groups=groups)
    assert min(trial["squared_error"] for trial in fooled.trials_) < 0.2
    assert min(trial["squared_error"] for trial in grouped.trials_) > 0.9
    assert grouped.alpha_ > fooled.alpha_


def test_a_validation_set_chooses_alpha() -> None:
    X, y, Xv, yv = DIGITS[:100], LABELS[:100], DIGITS[900:1000], LABELS[900:1000]
    head = RidgeHead().fit(X, y, validation=(Xv, yv))
    targets = 2.0 * (yv[:, None] == np.arange(10)) - 1
    errors = {
        alpha: ((RidgeClassifier(alpha=alpha).fit(X, y).decision_function(Xv) - targets) ** 2).mean()
        for alpha in ALPHA_GRID
    }
    assert head.alpha_ == min(errors, key=errors.__getitem__)
    assert head.used_validation()
    for trial in head.trials_:
        assert trial["squared_error"] == pytest.approx(errors[trial["alpha"]], rel=1e-5)


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 1, 1]])
def test_what_leaving_out_cannot_tell_is_not_chosen_by_it(groups: list[int] | None) -> None:
    """Each class is one sample, or one group: without it the class is unknown."""
    y = ["a", "b", "c", "d", "e", "f"] if groups is None else [0, 0, 0, 1, 1, 1]
    head = RidgeHead().fit(np.eye(6), y, groups=groups)
    assert (head.alpha_, head.temperature_) == (1.0, 1.0)
    assert head.alpha_source_ == "default: no class has two samples (groups)"
    assert head.predict(np.eye(6)).tolist() == y


@pytest.mark.parametrize("validation", [None, (DIGITS[:100], LABELS[:100])])
@pytest.mark.parametrize("alpha", ["auto", 1.0])
def test_a_group_may_be_of_any_size(alpha: float | str, validation: Any) -> None:
    """For example 4,097 identical placeholder pictures."""
    X, y = np.vstack([DIGITS, np.tile(DIGITS[0], (4097, 1))]), np.concatenate([LABELS, np.zeros(4097, int)])
    groups = np.concatenate([np.arange(len(DIGITS)), np.full(4097, len(DIGITS))])
    head = RidgeHead(alpha=alpha).fit(X, y, groups=groups, validation=validation)
    assert (head.predict(DIGITS) == LABELS).mean() > 0.8
    RidgeRegressionHead(alpha=alpha).fit(X, y.astype(float), groups=groups)


@pytest.mark.rotates(4)
@pytest.mark.parametrize("n", [40, 300], ids=["fewer rows than features", "more"])
@pytest.mark.parametrize("block", [7, 10**6])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_a_large_group_is_left_out_as_if_it_had_never_been_there(
    n: int, block: int, weight: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, groups = DIGITS[:n], LABELS[:n], np.minimum(np.arange(n), n // 2)
    monkeypatch.setattr(spectrum, "LARGE_GROUP", 0)
    monkeypatch.setattr(spectrum.Spectrum, "most_inverted", 5)
    monkeypatch.setattr(spectrum, "BLOCK_VALUES", block * 64)
    head = RidgeHead(class_weight=weight).fit(X, y, groups=groups)
    targets = 2.0 * (y[:, None] == np.arange(10)) - 1
    weights = compute_sample_weight(weight, y)
    for trial in head.trials_[::3]:
        left = np.empty_like(targets)
        for group in np.unique(groups):
            kept = groups != group
            model = Ridge(alpha=trial["alpha"]).fit(X[kept], targets[kept], weights[kept])
            left[~kept] = model.predict(X[~kept])
        expected = (weights[:, None] * (left - targets) ** 2).mean()
        assert trial["squared_error"] == pytest.approx(expected, rel=1e-6)
    monkeypatch.undo()
    assert RidgeHead(class_weight=weight).fit(X, y, groups=groups).temperature_ == pytest.approx(head.temperature_)


def test_probabilities_are_calibrated_better_than_scores_taken_for_logits() -> None:
    head = RidgeHead().fit(DIGITS[:600], LABELS[:600])
    proba = head.predict_proba(DIGITS[600:])
    scores = np.exp(head.decision_function(DIGITS[600:]).astype(float))
    naive = scores / scores.sum(axis=1, keepdims=True)
    assert log_loss(LABELS[600:], proba) < log_loss(LABELS[600:], naive) / 2
    accuracy = (head.predict(DIGITS[600:]) == LABELS[600:]).mean()
    assert abs(proba.max(axis=1).mean() - accuracy) < 0.05
    assert np.array_equal(proba.argmax(axis=1), head.predict(DIGITS[600:]))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.integers(3, 30), st.integers(1, 30), st.integers(0, 3), LOG_ALPHA)
def test_regression_is_that_of_scikit_learn(seed: int, n: int, d: int, n_targets: int, alpha: float) -> None:
    X, _ = problem(seed, n, d, 2)
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, n_targets) if n_targets else n) + 100
    head, expected = RidgeRegressionHead(alpha=alpha).fit(X, y), Ridge(alpha=alpha).fit(X.astype(float), y)
    close(head.predict(X), expected.predict(X.astype(float)).reshape(y.shape))
    auto, chosen = RidgeRegressionHead().fit(X, y), RidgeCV(ALPHA_GRID).fit(X.astype(float), y)
    errors = {trial["alpha"]: trial["squared_error"] for trial in auto.trials_}
    assert errors[auto.alpha_] == pytest.approx(errors[chosen.alpha_], rel=1e-6)  # the best ones can be equally good


def test_regression_checks_what_it_is_given() -> None:
    X, y = DIGITS[:50], DIGITS[:50, 20]
    fit = RidgeRegressionHead().fit
    with pytest.raises(ValueError, match="Input y contains NaN"):
        fit(X, np.where(np.arange(50) == 3, np.nan, y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fit(X, y[:-1])
    with pytest.raises(ValueError, match="NaN"):
        fit(np.where(np.arange(64) == 3, np.nan, X), y)
    with pytest.raises(ValueError, match=r"validation must be a pair \(X, y\)"):
        fit(X, y, validation=X)
    with pytest.raises(ValueError, match="validation has 2 targets, and y has 1"):
        fit(X, y, validation=(X, X[:, :2]))
    with pytest.raises(ValueError, match="expecting 64 features"):
        fit(X, y, validation=(X[:, :3], y))
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        fit(X, y, groups=[1])
    with pytest.raises(ValueError, match="1 sample"):
        fit(X[:1], y[:1])
    with pytest.raises(ValueError, match="0 sample"):
        fit(X[:0], y[:0])
    with pytest.raises(ValueError, match="beyond float32"):
        RidgeRegressionHead(alpha=1.0).fit(X.astype(np.float32), y * 1e60)
    alone = fit(X, y, groups=np.zeros(50))
    assert (alone.alpha_, alone.alpha_source_) == (1.0, "default: all samples are one group")
    assert fit(X, y, validation=(X, y)).alpha_source_ == "validation"
    same = (fit(RowView(X.astype(dtype)), y).predict(X) for dtype in (np.float16, np.float32))
    assert np.array_equal(*same)


@pytest.mark.parametrize("make", [RidgeHead, RidgeRegressionHead])
def test_a_matrix_that_memory_does_not_hold_is_refused_before_it_is_taken(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = DIGITS[:100], LABELS[:100]
    monkeypatch.setattr(spectrum, "physical_memory", lambda: 100_000)
    message = (
        r"Ridge on 100 samples of 64 features needs [\d,]+ bytes for a matrix of 64 x 64, and this machine has 100,000"
    )
    with pytest.raises(ValueError, match=message):
        make().fit(X, y)
    monkeypatch.undo()
    wide = np.broadcast_to(np.float32(0), (3_000_000, 3_000_000))  # takes no memory itself
    with pytest.raises(ValueError, match="Use a layer with fewer features, pool it, or train a LogisticHead"):
        spectrum.Spectrum(RowView(wide), spectrum.RealTargets(np.zeros((3_000_000, 1))), np.ones(3_000_000))
