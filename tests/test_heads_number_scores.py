"""Scores of predicted numbers against scikit-learn's and scipy's, their intervals and paired comparison."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics

from precompute.heads import evaluate_numbers, paired_numbers
from precompute.heads.scoring import number_scores, paired_scores
from precompute.heads.scoring.number_metrics import NumberOutcomes

NAMES = ("r2", "mae", "rmse", "spearman")


def predictions(seed: int, n: int, *, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = 10 * rng.gamma(2, size=n) + 20
    predicted = y + 8 * rng.normal(size=n)
    return (y.round(-1), predicted.round(-1)) if rounded else (y, predicted)


def by_the_book(y: np.ndarray, predicted: np.ndarray, weight: Any = None) -> dict[str, float]:
    options: dict[str, Any] = {"sample_weight": weight}
    rows = np.arange(len(y)) if weight is None else np.repeat(np.arange(len(y)), weight.astype(int))
    found = {
        "mae": metrics.mean_absolute_error(y, predicted, **options),
        "rmse": metrics.root_mean_squared_error(y, predicted, **options),
    }
    if len(set(y[rows])) > 1:
        found["r2"] = metrics.r2_score(y, predicted, **options)
        if len(set(predicted[rows])) > 1:
            found["spearman"] = spearmanr(y[rows], predicted[rows]).statistic
    return found


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=80)
@given(n=st.integers(1, 60), seed=st.integers(0, 2**32), rounded=st.booleans(), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_every_score_is_scikit_learns_and_scipys(n: int, seed: int, rounded: bool, scale: float) -> None:
    y, predicted = (scale * part for part in predictions(seed, n, rounded=rounded))
    scores, expected = evaluate_numbers(y, predicted, replicates=0), by_the_book(y, predicted)
    assert scores.n == n
    for name in NAMES:
        if name in expected:
            assert getattr(scores, name) == pytest.approx(expected[name], rel=1e-9, abs=1e-12 * scale), name
        else:
            assert getattr(scores, name) is None
            assert "all the same" in scores.undefined[name]


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=40)
@given(n=st.integers(3, 60), seed=st.integers(0, 2**32), rounded=st.booleans())
def test_weighted_scores_are_those_of_repeated_samples(n: int, seed: int, rounded: bool) -> None:
    y, predicted = predictions(seed, n, rounded=rounded)
    weights = np.random.default_rng(seed).integers(0, 4, (n, 5)).astype(float)
    weights[:2] += 1
    found = NumberOutcomes(y, predicted).scores(weights)
    for column in range(5):
        expected = by_the_book(y, predicted, weights[:, column])
        for name in NAMES:
            if name in expected:
                assert found[name][column] == pytest.approx(expected[name], rel=1e-9), name
            else:
                assert np.isnan(found[name][column])


def test_scores_survive_json_and_take_tensors() -> None:
    y, predicted = predictions(0, 50)
    scores = evaluate_numbers(torch.tensor(y), predicted.tolist())
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False)) == scores.to_dict()
    assert set(scores.to_dict()) == set(scores.__dataclass_fields__)
    assert set(scores.intervals) == set(NAMES)
    constant = evaluate_numbers(np.ones(20), predicted[:20])
    assert constant.r2 is constant.spearman is None
    assert set(constant.intervals) == {"mae", "rmse"}
    guess = evaluate_numbers(y, np.full(50, y.mean()))
    assert guess.r2 == pytest.approx(0)
    assert "predicted numbers are all the same" in guess.undefined["spearman"]
    assert json.dumps(constant.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("y", "predicted", "message"),
    [
        ([1.0, 2.0], [1.0], r"must have shape \(n,\)"),
        ([[1.0]], [[1.0]], r"must have shape \(n,\)"),
        ([], [], "minimum of 1"),
        ([1.0, np.nan], [1.0, 2.0], "y contains NaN"),
        ([1.0, 2.0], [1.0, np.inf], "predicted contains infinity"),
    ],
)
def test_what_does_not_fit_is_refused(y: Any, predicted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_numbers(y, predicted)
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        evaluate_numbers([1.0, 2.0], [1.0, 2.0], groups=[1])


def test_numbers_whose_squares_vanish_have_no_r2_and_still_survive_json() -> None:
    y = np.arange(20) * 1e-300
    scores = evaluate_numbers(y, y[::-1])
    assert scores.r2 is None
    assert "squared differences" in scores.undefined["r2"]
    assert scores.mae == pytest.approx(1e-299)
    json.dumps(scores.to_dict(), allow_nan=False)


def test_copies_drawn_together_leave_the_intervals_as_wide_as_without_them() -> None:
    y, predicted = predictions(1, 200)
    plain, four = evaluate_numbers(y, predicted), np.repeat(np.arange(200), 4)
    grouped = evaluate_numbers(y[four], predicted[four], groups=four)
    naive = evaluate_numbers(y[four], predicted[four])
    for name, (low, high) in plain.intervals.items():
        assert low <= getattr(plain, name) <= high
        assert grouped.intervals[name] == pytest.approx((low, high), abs=1e-9)
        assert np.diff(naive.intervals[name])[0] < 0.7 * (high - low)


@pytest.mark.parametrize("rounded", [False, True])
def test_derivatives_are_what_small_changes_of_the_weights_give(rounded: bool) -> None:
    y, predicted = predictions(2, 40, rounded=rounded)
    outcomes, step = NumberOutcomes(y, predicted), 1e-5
    weights = np.hstack([np.ones((40, 1)), 1 + step * np.eye(40), 1 - step * np.eye(40)])
    found = outcomes.scores(weights)
    for name, values in (("r2", outcomes.r2_first_order()), ("spearman", outcomes.spearman_first_order())):
        assert values.mean() == pytest.approx(found[name][0], abs=1e-9)
        moves = (found[name][1:41] - found[name][41:]) / (2 * step)
        np.testing.assert_allclose((values - values.mean()) / 40, moves, atol=1e-7)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_intervals_by_strata_are_near_those_of_whole_draws(
    grouped: bool, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, predicted = predictions(3, 3000, rounded=rounded)
    groups = np.arange(3000) // 2 if grouped else None
    exact = evaluate_numbers(y, predicted, groups=groups)
    monkeypatch.setattr(number_scores, "LARGE", 0)
    found = evaluate_numbers(y, predicted, groups=groups)
    for name, (low, high) in exact.intervals.items():
        assert found.intervals[name] == pytest.approx((low, high), abs=0.15 * (high - low)), name


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_intervals_hold_the_scores_of_the_population_about_19_times_in_20(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 test sets of 300 from one population of 60,000: what the intervals promise, by counting."""
    monkeypatch.setattr(number_scores, "LARGE", 10**9 if exact else 0)
    y, predicted = predictions(4, 60_000)
    whole = evaluate_numbers(y, predicted, replicates=0)
    held = dict.fromkeys(NAMES, 0)
    rng = np.random.default_rng(0)
    for _ in range(400):
        chosen = rng.choice(len(y), 300, replace=False)
        scores = evaluate_numbers(y[chosen], predicted[chosen], replicates=300)
        for name in held:
            held[name] += scores.intervals[name][0] <= getattr(whole, name) <= scores.intervals[name][1]
    assert all(0.90 <= count / 400 <= 0.985 for count in held.values()), held


@pytest.mark.slow
def test_a_million_numbers_have_every_interval() -> None:
    y, predicted = predictions(5, 10**6)
    scores = evaluate_numbers(y, predicted)
    assert set(scores.intervals) == set(NAMES)
    for name, (low, high) in scores.intervals.items():
        assert low < getattr(scores, name) < high


def test_the_difference_of_two_heads_is_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    y, predicted = predictions(6, 400)
    worse = predicted + 8 * np.random.default_rng(0).normal(size=400)
    found = paired_numbers(y, predicted, worse)
    a, b = (metrics.mean_absolute_error(y, one) for one in (predicted, worse))
    assert found.values == pytest.approx((a, b))
    assert found.difference == pytest.approx(a - b)
    assert found.interval[0] <= found.difference <= found.interval[1] < 0
    assert found.distinct
    assert (found.metric, found.higher_is_better, found.n) == ("mean absolute error", False, 400)
    same = paired_numbers(y, predicted, predicted)
    assert (same.difference, same.interval, same.p_value, same.distinct) == (0, (0, 0), 1, False)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    monkeypatch.setattr(paired_scores, "LARGE", 0)
    strata = paired_numbers(y, predicted, worse)
    width = found.interval[1] - found.interval[0]
    assert strata.interval == pytest.approx(found.interval, abs=0.15 * width)
    with pytest.raises(ValueError, match=r"must have shape \(n,\)"):
        paired_numbers(y, predicted, worse[:-1])


def test_pairs_of_groups_are_drawn_together() -> None:
    y, predicted = predictions(7, 100)
    other = predicted + 3 * np.random.default_rng(0).normal(size=100)
    four = np.repeat(np.arange(100), 4)
    plain, grouped = (
        paired_numbers(y, predicted, other),
        paired_numbers(y[four], predicted[four], other[four], groups=four),
    )
    assert grouped.interval == pytest.approx(plain.interval)
    assert grouped.p_value == plain.p_value


@pytest.mark.slow
def test_equal_heads_are_told_apart_one_time_in_twenty() -> None:
    distinct = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=200)
        distinct += paired_numbers(y, y + rng.normal(size=200), y + rng.normal(size=200), seed=seed).distinct
    assert 0.025 <= distinct / 500 <= 0.085, distinct
