"""The logistic head's solver against scikit-learn's in float64: the same objective, as low, at any C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from precompute.heads import LogisticHead, RowView
from precompute.heads.linear import design
from precompute.heads.linear.logistic import C_GRID
from precompute.heads.linear.objective import check_memory

STRENGTHS = [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e5]


def features(n: int, d: int, classes: int, *, spread: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative float32 features with a mean, whose scales span 2 * `spread` decades, and unequal classes."""
    generator = np.random.default_rng(seed)
    y = np.minimum(generator.integers(0, classes, n), generator.integers(0, classes, n))
    y[:classes] = np.arange(classes)
    X = generator.normal(size=(n, d)) + generator.normal(size=(classes, d))[y] * 0.5
    return (np.maximum(X + 1, 0) * 10 ** np.linspace(-spread, spread, d)).astype(np.float32), y


def objective(head: Any, X: np.ndarray, y: np.ndarray, C: float, class_weight: Any = None) -> float:
    logits = X.astype(np.float64) @ head.coef_.T.astype(np.float64) + head.intercept_
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    top = logits.max(axis=1)
    losses = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(y)), y]
    weight = compute_sample_weight(class_weight, y)
    return float((head.coef_.astype(np.float64) ** 2).sum() / 2 + C * (weight * losses).sum())


@pytest.mark.rotates(6)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(
    ("n", "d", "classes", "spread"),
    [(200, 20, 2, 0), (200, 20, 5, 0), (40, 200, 2, 0), (60, 200, 5, 0), (60, 50, 4, 0), (200, 12, 3, 2)],
    ids=["binary", "many rows", "binary, few rows", "few rows", "rows as features", "ill-conditioned"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_objective_is_no_higher_than_scikit_learns(
    n: int, d: int, classes: int, spread: float, class_weight: str | None
) -> None:
    X, y = features(n, d, classes, spread=spread)
    for C in STRENGTHS:
        head = LogisticHead(C=C, tol=1e-9, class_weight=class_weight).fit(X, y)
        oracle = LogisticRegression(C=C, tol=1e-8, max_iter=3000, class_weight=class_weight).fit(X.astype(float), y)
        ours, theirs = (objective(model, X, y, C, class_weight) for model in (head, oracle))
        # Nearly without a penalty, logits are so large that float32 hides the last steps.
        assert ours <= theirs * (1 + (1e-6 if C <= 10 else 1e-4)), C
        assert head.objective_ == pytest.approx(ours, rel=1e-5), C
        assert head.coef_.shape == oracle.coef_.shape
        if C <= 1 and not spread:  # above, the objective is so flat that scikit-learn's own coefficients depend on tol
            np.testing.assert_allclose(head.coef_, oracle.coef_, atol=2e-3 * np.abs(oracle.coef_).max())


@pytest.mark.rotates(3)
@pytest.mark.parametrize("classes", [2, 4])
def test_the_default_tolerance_leaves_little(classes: int) -> None:
    X, y = features(300, 30, classes)
    for C in STRENGTHS[:6]:
        head, exact = LogisticHead(C=C).fit(X, y), LogisticHead(C=C, tol=1e-10, max_iter=5000).fit(X, y)
        assert head.converged_
        assert head.objective_ <= exact.objective_ * (1 + (5e-6 if C <= 10 else 1e-5)), C


@pytest.mark.rotates(3)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 40), d=st.integers(1, 60), classes=st.integers(2, 6), power=st.integers(-4, 3), seed=st.integers(0)
)
def test_no_shape_beats_it(n: int, d: int, classes: int, power: int, seed: int) -> None:
    """Also one feature, a class for every second sample, and rows that all but span their space."""
    classes = min(classes, n)
    X, y = features(n, d, classes, seed=seed)
    C = 10.0**power
    head = LogisticHead(C=C).fit(X, y)
    oracle = LogisticRegression(C=C, tol=1e-6, max_iter=5000).fit(X.astype(float), y)
    assert objective(head, X, y, C) <= objective(oracle, X, y, C) * (1 + 2e-5)


@pytest.mark.parametrize("offset", [0, 1e3])
@pytest.mark.parametrize("factor", [1e-15, 1.0, 1e15])
def test_neither_units_nor_offsets_matter(offset: float, factor: float) -> None:
    X, y = features(120, 10, 3)
    X = np.round(X * 64) / 64  # so that float32 holds X + offset
    C = 1.0
    expected = LogisticHead(C=C, tol=1e-9).fit(X, y)
    moved = LogisticHead(C=C / factor**2, tol=1e-9).fit((X + offset) * factor, y)
    assert np.isfinite(moved.coef_).all()
    np.testing.assert_allclose(moved.coef_ * factor, expected.coef_, atol=2e-3)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("d", [20, 500], ids=["many rows", "few rows"])
@pytest.mark.parametrize("classes", [2, 7])
def test_features_too_large_to_hold_are_read_in_blocks(
    d: int, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = features(200, d, classes)
    X.astype(np.float16).tofile(tmp_path / "features")
    view = RowView(np.memmap(tmp_path / "features", np.float16, "r", shape=X.shape))
    held = LogisticHead(C=0.1, tol=1e-9).fit(view, y)
    monkeypatch.setattr(design, "IN_MEMORY_SHARE", 0)
    monkeypatch.setattr(design, "LEAST_ROWS", 7)
    monkeypatch.setattr("precompute.heads.base.arrays._NumPy.block_bytes", 1)
    streamed = LogisticHead(C=0.1, tol=1e-9).fit(view, y)
    np.testing.assert_allclose(streamed.coef_, held.coef_, atol=1e-3 * np.abs(held.coef_).max())
    assert streamed.objective_ == pytest.approx(held.objective_, rel=1e-6)
    # As where features are too many for a matrix of second moments.
    monkeypatch.setattr(design, "MOST_AXES", 1)
    diagonal = LogisticHead(C=0.1, tol=1e-9).fit(view, y)
    assert diagonal.objective_ == pytest.approx(held.objective_, rel=1e-5)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("classes", [2, 4])
def test_logits_too_many_to_hold_are_computed_again(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = features(300, 30, classes)
    monkeypatch.setattr(design, "LEAST_ROWS", 16)
    monkeypatch.setattr(
        "precompute.heads.base.arrays._NumPy.block_bytes", 1
    )  # so that whole blocks belong to the samples that choose C
    given: dict[str, Any] = {"validation": (X[200:], y[200:])}
    held = LogisticHead(C=[0.01, 1.0, 100.0], tol=1e-9).fit(X[:200], y[:200], **given)
    monkeypatch.setattr("precompute.heads.linear.objective.LOGITS_SHARE", 0)
    again = LogisticHead(C=[0.01, 1.0, 100.0], tol=1e-9).fit(X[:200], y[:200], **given)
    assert again.C_ == held.C_
    for one, other in zip(held.trials_, again.trials_, strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-5)
        assert one["log_loss"] == pytest.approx(other["log_loss"], rel=1e-2)
    assert again.objective_ == pytest.approx(held.objective_, rel=1e-6)


@pytest.mark.rotates(3)
def test_constant_features_leave_the_intercept() -> None:
    y = np.repeat([0, 1, 2], [30, 20, 10])
    for X in (np.full((60, 4), 7.0), np.zeros((60, 4))):
        for C in (1.0, "auto"):
            head = LogisticHead(C=C).fit(X, y)
            assert np.abs(head.coef_).max() < 1e-6
            np.testing.assert_allclose(head.predict_proba(X[:1])[0], [0.5, 1 / 3, 1 / 6], atol=1e-3)


def test_more_classes_than_memory_holds_are_refused_with_the_bytes_they_need() -> None:
    with pytest.raises(ValueError, match=r"200,000 classes of 1,000,000 features need [\d,]+ bytes .* Join classes"):
        check_memory(1_000_000, 200_000, 4)


@pytest.mark.rotates(3)
def test_classes_may_be_many_and_have_two_samples_each() -> None:
    X = np.random.default_rng(0).normal(size=(300, 8))
    head = LogisticHead().fit(X, np.arange(300) // 2)
    assert head.C_source_ == "2-fold cross-validation"
    assert head.coef_.shape == (150, 8)


@pytest.mark.rotates(3)
def test_a_budget_ends_the_path_after_at_least_one_value() -> None:
    X, y = features(100, 5, 3)
    whole = LogisticHead(C=list(C_GRID), choose_by="accuracy").fit(X, y)
    assert (whole.stopped_early_, len(whole.trials_)) == (False, 45)
    short = LogisticHead(time_budget=0).fit(X, y)
    assert (short.stopped_early_, len(short.trials_)) == (True, 1)
    assert [trial["C"] for trial in short.trials_] == [short.C_]
    enough = LogisticHead(choose_by="accuracy", time_budget=3600).fit(X, y)
    assert (enough.stopped_early_, len(enough.trials_)) == (False, 45)
    assert enough.C_ == whole.C_


@pytest.mark.rotates(3)
def test_the_values_to_choose_from_can_be_given() -> None:
    X, y = features(200, 10, 3)
    for values in ([0.1, 10.0], (10, 0.1), np.array([0.1, 10.0])):
        head = LogisticHead(C=values).fit(X, y)
        assert [trial["C"] for trial in head.trials_] == [0.1, 10.0]
        assert head.C_ in (0.1, 10.0)
    for bad, message in (([], "at least one value"), ([1.0, -1.0], "every C must be"), (["a"], "every C must be")):
        with pytest.raises(ValueError, match=message):
            LogisticHead(C=bad).fit(X, y)


def test_after_a_choice_on_a_validation_set_it_is_fitted_on_both() -> None:
    X, y = features(200, 10, 3)
    head = LogisticHead().fit(X[:150], y[:150], validation=(X[150:], y[150:]))
    both = LogisticHead(C=head.C_).fit(X, y)
    np.testing.assert_allclose(head.coef_, both.coef_, atol=1e-3 * np.abs(both.coef_).max())
    assert head.objective_ == pytest.approx(both.objective_, rel=1e-6)
    with pytest.raises(ValueError, match="0 sample"):
        LogisticHead().fit(X, y, validation=(X[:0], y[:0]))
