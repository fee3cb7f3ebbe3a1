"""Scores of several labels against scikit-learn's metrics, their intervals, thresholds and paired comparison."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from precompute.heads import choose_thresholds, evaluate_labels, paired_labels
from precompute.heads.scoring import label_scores, paired_scores
from precompute.heads.scoring.label_metrics import LabelCounts, Ranking

RATES = np.array([0.05, 0.14, 0.23, 0.32, 0.41, 0.5])
AREAS = ("mean_average_precision", "micro_average_precision", "auc", "micro_auc")
COUNTED = ("micro_f1", "macro_f1", "hamming_loss", "subset_accuracy")


def predictions(seed: int, n: int, rates: Any = RATES, *, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that know something of them; rounded ones tie often."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, len(rates))) < rates
    logits = rng.normal(size=truth.shape) + 1.5 * truth - 1
    proba = 1 / (1 + np.exp(-logits))
    return truth.astype(int), proba.round(1) if rounded else proba


def by_scikit_learn(Y: np.ndarray, p: np.ndarray, thresholds: Any, weight: Any = None) -> dict[str, float]:
    options: dict[str, Any] = {"sample_weight": weight}
    guess, counted = p > thresholds, Y.any(axis=0) if weight is None else (Y * weight[:, None]).any(axis=0)
    total = len(Y) if weight is None else weight.sum()
    positives = Y.sum(axis=0) if weight is None else weight @ Y
    both = counted & (positives < total)
    flat = {"sample_weight": None if weight is None else np.repeat(weight, Y.shape[1])}
    found = {
        "micro_f1": metrics.f1_score(Y.ravel(), guess.ravel(), zero_division=0, **flat),
        "hamming_loss": metrics.hamming_loss(Y, guess, **options),
        "subset_accuracy": metrics.accuracy_score(Y, guess, **options),
    }
    if counted.any():
        found["macro_f1"] = metrics.f1_score(
            Y[:, counted],
            guess[:, counted],
            average="macro" if counted.sum() > 1 else "binary",
            zero_division=0,
            **options,
        )
        found["mean_average_precision"] = metrics.average_precision_score(Y[:, counted], p[:, counted], **options)
        found["micro_average_precision"] = metrics.average_precision_score(Y.ravel(), p.ravel(), **flat)
    if both.any():
        found["auc"] = metrics.roc_auc_score(Y[:, both], p[:, both], **options)
    if 0 < positives.sum() < total * Y.shape[1]:
        found["micro_auc"] = metrics.roc_auc_score(Y.ravel(), p.ravel(), **flat)
    return found


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 60), labels=st.integers(1, 5), seed=st.integers(0, 2**32), rounded=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]), strict=st.booleans(),
)  # fmt: skip
def test_every_score_is_scikit_learns(n: int, labels: int, seed: int, rounded: bool, dtype: Any, strict: bool) -> None:
    rng = np.random.default_rng(seed)
    Y, p = predictions(seed, n, rng.choice([0, 0.1, 0.5, 0.9, 1], labels), rounded=rounded)
    p = p.astype(dtype)
    thresholds = rng.random(labels) if strict else np.full(labels, 0.5)
    scores = evaluate_labels(Y, p, np.arange(labels), thresholds=thresholds, replicates=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_scikit_learn(Y, p, thresholds)
    assert scores.n == n
    for name in (*AREAS, *COUNTED):
        value = getattr(scores, name)
        if value is None:
            assert name in scores.undefined
            assert name not in expected or name == "micro_f1"
        else:
            assert value == pytest.approx(expected[name], abs=1e-12), name
    for number, row in enumerate(scores.per_label):
        own, guess = Y[:, number], p[:, number] > thresholds[number]
        assert (row["positives"], row["predicted"]) == (own.sum(), guess.sum())
        assert (row["label"], row["threshold"]) == (number, thresholds[number])
        if own.any():
            assert row["average_precision"] == pytest.approx(metrics.average_precision_score(own, p[:, number]))
            assert row["recall"] == pytest.approx(metrics.recall_score(own, guess))
            assert row["f1"] == pytest.approx(metrics.f1_score(own, guess, zero_division=0))
        else:
            assert row["average_precision"] is row["recall"] is row["f1"] is None
        if guess.any():
            assert row["precision"] == pytest.approx(metrics.precision_score(own, guess))
        else:
            assert row["precision"] is None
        assert (row["auc"] is None) == (own.all() or not own.any())


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=20)
@given(n=st.integers(8, 60), seed=st.integers(0, 2**32), rounded=st.booleans())
def test_weighted_scores_are_scikit_learns(n: int, seed: int, rounded: bool) -> None:
    """A resampling is a weighting: the bootstrap is as right as these are."""
    Y, p = predictions(seed, n, rounded=rounded)
    weights = np.random.default_rng(seed).integers(0, 4, (n, 5)).astype(float)
    weights[0] += 1
    outcomes = label_scores._Outcomes(Y > 0, p, LabelCounts(Y > 0, p > 0.5))
    found = outcomes.scores(weights, areas=True)
    for column in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = by_scikit_learn(Y, p, 0.5, weights[:, column])
        for name, value in expected.items():
            if not np.isnan(found[name][column]):
                assert found[name][column] == pytest.approx(value, abs=1e-12), name


def test_scores_survive_json_and_take_tensors() -> None:
    Y, p = predictions(0, 50)
    scores = evaluate_labels(torch.tensor(Y), torch.tensor(p), list("abcdef"), thresholds=torch.full((6,), 0.4))
    restored = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert restored == scores.to_dict()
    assert set(restored) == set(scores.__dataclass_fields__)
    assert [row["label"] for row in restored["per_label"]] == list("abcdef")
    assert set(scores.intervals) == {*AREAS, *COUNTED}
    empty = evaluate_labels(np.zeros((5, 2)), np.zeros((5, 2)), ["a", "b"])
    assert json.dumps(empty.to_dict(), allow_nan=False)
    assert set(empty.undefined) == {*AREAS, "micro_f1", "macro_f1"}
    assert set(empty.intervals) == {"hamming_loss", "subset_accuracy"}
    assert empty.hamming_loss == 0


@pytest.mark.parametrize(
    ("Y", "proba", "labels", "message"),
    [
        ([[1, 0]], [[0.5]], "a", "same shape"),
        ([[1, 0]], [[0.5, 1.5]], "ab", "from 0 to 1. Got 1.5 for sample 0 and label 1"),
        ([[1, 0]], [[0.5, np.nan]], "ab", "from 0 to 1. Got nan"),
        ([[1, 2]], [[0.5, 0.5]], "ab", "must hold 0 and 1"),
        ([1, 0], [[0.5], [0.5]], "a", r"Y must have shape \(n, L\)"),
        ([[1, 0]], [0.5, 0.5], "ab", r"proba must have shape \(n, L\)"),
        ([[1, 0]], [[0.5, 0.5]], "a", "one name per label"),
        ([[1, 0]], [[0.5, 0.5]], "aa", "must all differ"),
        (np.empty((0, 2)), np.empty((0, 2)), "ab", "both at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(Y: Any, proba: Any, labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_labels(Y, proba, list(labels))


def test_thresholds_and_groups_are_checked() -> None:
    Y, p = predictions(0, 50)
    with pytest.raises(ValueError, match="thresholds must have one number per label"):
        evaluate_labels(Y, p, range(6), thresholds=[0.5])
    with pytest.raises(ValueError, match="thresholds must be numbers from 0 to 1"):
        evaluate_labels(Y, p, range(6), thresholds=[2] * 6)
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        evaluate_labels(Y, p, range(6), groups=[1])


# ---- intervals


@pytest.mark.rotates(3)
def test_copies_drawn_together_leave_the_intervals_as_wide_as_without_them() -> None:
    Y, p = predictions(1, 200)
    plain, four = evaluate_labels(Y, p, range(6)), np.repeat(np.arange(200), 4)
    grouped = evaluate_labels(Y[four], p[four], range(6), groups=four)
    naive = evaluate_labels(Y[four], p[four], range(6))
    for name, (low, high) in plain.intervals.items():
        assert low <= getattr(plain, name) <= high
        assert grouped.intervals[name] == pytest.approx((low, high), abs=1e-9), name
        assert np.diff(naive.intervals[name])[0] < 0.7 * (high - low)


def test_a_seed_decides_the_intervals() -> None:
    Y, p = predictions(2, 100)
    first, same, other = (evaluate_labels(Y, p, range(6), seed=seed).intervals for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize("rounded", [False, True])
def test_derivatives_are_what_small_changes_of_the_weights_give(rounded: bool) -> None:
    Y, p = predictions(3, 40, rounded=rounded)
    ranking = Ranking(p[:, 5], Y[:, 5] > 0)
    for at, (value, moves) in enumerate((ranking.precision_first_order(), ranking.auc_first_order())):
        step = 1e-6
        weights = np.ones((40, 81))
        weights[:, 1:41] += step * np.eye(40)
        weights[:, 41:] -= step * np.eye(40)
        found = ranking.areas(weights)[at]
        assert found[0] == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose((found[1:41] - found[41:]) / (2 * step), moves, atol=1e-7)
        assert moves.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("grouped", [False, True])
def test_first_order_intervals_are_near_those_of_whole_draws(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Y, p = predictions(4, 3000)
    groups = np.arange(3000) // 2 if grouped else None
    exact = evaluate_labels(Y, p, range(6), groups=groups)
    monkeypatch.setattr(label_scores, "AREAS_MOST", 0)
    monkeypatch.setattr(label_scores, "LARGE", 0)
    found = evaluate_labels(Y, p, range(6), groups=groups)
    for name, (low, high) in exact.intervals.items():
        width = high - low
        assert found.intervals[name] == pytest.approx((low, high), abs=(0.25 if name in AREAS else 0.15) * width), name


@pytest.mark.rotates(3)
def test_intervals_too_expensive_are_left_out_and_said_so() -> None:
    Y, p = predictions(5, 300)
    scores = evaluate_labels(Y, p, range(6), replicates=10**5)
    assert scores.mean_average_precision is not None
    assert not set(AREAS) & set(scores.intervals)
    assert "left out: 300 samples of 6 labels" in scores.undefined["intervals.mean_average_precision"]
    assert set(COUNTED) <= set(scores.intervals)


def test_areas_too_expensive_are_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "PAIRS_MOST", 100)
    Y, p = predictions(5, 300)
    scores = evaluate_labels(Y, p, range(6))
    assert scores.mean_average_precision is scores.auc is None
    assert "left out" in scores.undefined["micro_auc"]
    assert scores.per_label[0]["average_precision"] is None
    assert set(scores.intervals) == set(COUNTED)


@pytest.mark.slow
@pytest.mark.daily(3)
@pytest.mark.parametrize("exact", [True, False])
def test_intervals_hold_the_scores_of_the_population_about_19_times_in_20(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 test sets of 500 from one population of 60,000: what the intervals promise, by counting."""
    monkeypatch.setattr(label_scores, "AREAS_MOST", 10**9 if exact else 0)
    monkeypatch.setattr(label_scores, "FIRST_ORDER_FROM", 1)
    Y, p = predictions(6, 60_000)
    whole = evaluate_labels(Y, p, range(6), replicates=0)
    held = dict.fromkeys((*AREAS, *COUNTED), 0)
    rng = np.random.default_rng(0)
    for _ in range(400):
        chosen = rng.choice(len(Y), 500, replace=False)
        scores = evaluate_labels(Y[chosen], p[chosen], range(6), replicates=300)
        for name in held:
            held[name] += scores.intervals[name][0] <= getattr(whole, name) <= scores.intervals[name][1]
    assert all(0.90 <= count / 400 <= 0.985 for count in held.values()), held


@pytest.mark.slow
def test_a_hundred_thousand_samples_of_twenty_labels_have_every_interval() -> None:
    Y, p = predictions(7, 100_000, np.linspace(0.01, 0.4, 20))
    scores = evaluate_labels(Y, p, range(20))
    assert set(scores.intervals) == {*AREAS, *COUNTED}
    assert all(0 < high - low < 0.02 for low, high in scores.intervals.values())


# ---- thresholds


@pytest.mark.rotates(6)
@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    rounded=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_no_other_threshold_has_a_better_f1(n: int, seed: int, rounded: bool, dtype: Any) -> None:
    Y, p = predictions(seed, n, rounded=rounded)
    p = p.astype(dtype)
    chosen = choose_thresholds(Y, p)
    for own, score, threshold in zip(Y.T, p.T, chosen, strict=True):
        if not own.any():
            assert threshold == 0.5
            continue
        assert 0 <= threshold < 1
        best = metrics.f1_score(own, score > threshold, zero_division=0)
        others = [metrics.f1_score(own, score >= other, zero_division=0) for other in score if other > 0]
        assert best == pytest.approx(max(others, default=0.0)) or best > max(others)


def test_thresholds_stand_between_probabilities_and_near_the_middle() -> None:
    Y = np.array([[0, 1, 0], [1, 1, 0], [1, 1, 0]])
    p = np.array([[0.1, 0.9, 0.3], [0.7, 0.8, 0.2], [0.9, 0.6, 0.1]])
    assert choose_thresholds(Y, p) == pytest.approx([0.4, 0.3, 0.5])
    neighbours = np.nextafter(0.25, [0, 1])
    (found,) = choose_thresholds([[0], [1]], neighbours[:, None])
    assert (neighbours > found).tolist() == [False, True]
    with pytest.raises(ValueError, match="same shape"):
        choose_thresholds(Y, p[:, :2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        choose_thresholds(Y, p + 1)


# ---- pairs


def test_the_difference_of_two_heads_is_compared_in_pairs() -> None:
    Y, p = predictions(8, 400)
    noise = np.random.default_rng(0).normal(size=p.shape)
    worse = np.clip(p + 0.5 * noise, 0, 1)
    found = paired_labels(Y, p, worse)
    a, b = (evaluate_labels(Y, one, range(6), replicates=0).mean_average_precision for one in (p, worse))
    assert found.values == pytest.approx((a, b))
    assert found.difference == pytest.approx(a - b)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.distinct
    assert found.p_value < 0.05
    assert (found.metric, found.higher_is_better, found.n) == ("mean_average_precision", True, 400)
    other = paired_labels(Y, worse, p)
    assert other.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    same = paired_labels(Y, p, p)
    assert (same.difference, same.interval, same.p_value, same.distinct) == (0, (0, 0), 1, False)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    with pytest.raises(ValueError, match="No sample has a label"):
        paired_labels(Y * 0, p, p)
    with pytest.raises(ValueError, match="must have one shape"):
        paired_labels(Y, p, p[:, :2])


@pytest.mark.rotates(3)
def test_first_order_pairs_are_near_whole_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    Y, p = predictions(9, 2000)
    other = np.clip(p + 0.1 * np.random.default_rng(0).normal(size=p.shape), 0, 1)
    exact = paired_labels(Y, p, other, groups=np.arange(2000) // 2)
    monkeypatch.setattr(paired_scores, "AREAS_MOST", 0)
    found = paired_labels(Y, p, other, groups=np.arange(2000) // 2)
    width = exact.interval[1] - exact.interval[0]
    assert found.interval == pytest.approx(exact.interval, abs=0.25 * width)


@pytest.mark.slow
@pytest.mark.daily(2)
def test_equal_heads_are_told_apart_one_time_in_twenty() -> None:
    """400 pairs of heads that are equally good, each on 300 samples of its own."""
    distinct = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        Y = rng.random((300, 6)) < RATES
        a, b = (1 / (1 + np.exp(1 - rng.normal(size=Y.shape) - 1.5 * Y)) for _ in range(2))
        distinct += paired_labels(Y, a, b, seed=seed).distinct
    assert 0.02 <= distinct / 400 <= 0.09, distinct
