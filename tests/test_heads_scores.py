"""Scores against scikit-learn's metrics, which do not share their code."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binned_statistic, binomtest
from sklearn import metrics

from precompute.heads import evaluate
from precompute.heads.scoring.bootstrap import resamplings
from precompute.heads.scoring.metrics import Outcomes
from precompute.heads.scoring.scores import wilson_interval

NAMES = np.array(["ant", "bee", "cat", "dog"])


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    k=st.integers(2, 4),
    seed=st.integers(0, 2**32),
    sharpness=st.sampled_from([0.1, 1, 30, 300]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_every_score_is_scikit_learns(n, k, seed, sharpness, dtype):
    rng = np.random.default_rng(seed)
    classes = NAMES[:k]
    y = rng.choice(classes[: rng.integers(1, k + 1)], n)  # some classes may be absent
    logits = sharpness * rng.normal(size=(n, k))
    proba = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(dtype)
    proba /= proba.sum(axis=1, keepdims=True)
    predicted, present = classes[proba.argmax(axis=1)], np.unique(y)

    scores = evaluate(y, proba, classes)
    assert scores.n == n
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(y, predicted))
    recall = metrics.recall_score(y, predicted, labels=present, average="macro", zero_division=0)
    assert scores.balanced_accuracy == pytest.approx(recall)
    if set(predicted) <= set(y) and len(present) > 1:  # else scikit-learn warns, and gives the same
        assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(y, predicted))
    f1 = metrics.f1_score(y, predicted, labels=present, average="macro", zero_division=0)
    assert scores.macro_f1 == pytest.approx(f1)
    assert scores.log_loss == pytest.approx(metrics.log_loss(y, proba, labels=classes), rel=1e-5, abs=1e-6)
    assert scores.confusion.dtype == np.int64
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(y, predicted, labels=classes))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_scipys(case):
    hits, n = case
    low, high = wilson_interval(hits, n)
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= hits / n <= high <= 1


def test_scores_survive_json():
    scores = evaluate(["bee", "ant"], np.array([[0.25, 0.75], [0.0, 1.0]], dtype=np.float32), NAMES[:2])
    restored = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert restored == scores.to_dict()
    assert restored["confusion"] == [[0, 1], [0, 1]]
    assert restored["n"] == 2
    assert set(restored) == {*scores.__dataclass_fields__, "per_class"}
    assert restored["per_class"][0]["precision"] is None


def test_classes_may_stand_in_any_order_and_be_tensors():
    proba = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    scores = evaluate(torch.tensor([7, 3]), proba, [7, 3])
    assert scores.accuracy == 1
    assert scores.confusion.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("y", "proba", "message"),
    [
        ([0, 1], [[1.0, 0.0]], "proba must have shape"),
        ([0], [[1.0, 0.0, 0.0]], "proba must have shape"),
        ([0], [1.0], "proba must have shape"),
        ([[0]], [[1.0, 0.0]], "proba must have shape"),
        ([], np.empty((0, 2)), "both at least 1"),
        ([2], [[1.0, 0.0]], "y_true has labels that the head does not know: '2'"),
        ([0], [[0.7, 0.7]], "sum to 1"),
        ([0], [[1.5, -0.5]], "sum to 1"),
        ([0], [[np.nan, 1.0]], r"sum to 1. Row 0 holds \[nan"),
    ],
)
def test_what_is_not_probabilities_of_the_classes_is_refused(y, proba, message):
    with pytest.raises(ValueError, match=message):
        evaluate(y, np.array(proba), [0, 1])


def predictions(seed, n, k, *, rounded):
    """Labels that hold every class, and probabilities that know something of them; rounded ones tie often."""
    rng = np.random.default_rng(seed)
    true = rng.permutation(np.arange(n) % k)
    logits = rng.normal(size=(n, k)) + np.eye(k)[true]
    proba = np.exp(logits.round(0) if rounded else logits)
    return true, proba / proba.sum(axis=1, keepdims=True)


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(12, 60), k=st.integers(2, 9), seed=st.integers(0, 2**32), rounded=st.booleans(), weigh=st.booleans()
)
def test_weighted_scores_are_scikit_learns(n, k, seed, rounded, weigh):
    true, proba = predictions(seed, n, k, rounded=rounded)
    weights = np.random.default_rng(seed).integers(1, 4, n).astype(float) if weigh else np.ones(n)
    found = {name: value[0] for name, value in Outcomes(true, proba).scores(weights[:, None]).items()}
    options = {"sample_weight": weights}
    best = proba.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, best, **options))
    recall = metrics.recall_score(true, best, average="macro", zero_division=0, **options)
    assert found["balanced_accuracy"] == pytest.approx(recall)
    f1 = metrics.f1_score(true, best, average="macro", zero_division=0, **options)
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(true, proba, labels=range(k), **options))
    auc = (
        metrics.roc_auc_score(true, proba[:, 1], **options)
        if k == 2
        else metrics.roc_auc_score(true, proba, multi_class="ovr", average="macro", **options)
    )
    assert found["auc"] == pytest.approx(auc)
    if k <= 5:
        assert "top5_accuracy" not in found
    elif not rounded:
        top = metrics.top_k_accuracy_score(true, proba, k=5, labels=range(k), **options)
        assert found["top5_accuracy"] == pytest.approx(top)
    copies = np.repeat(np.arange(n), weights.astype(int))  # a weight of 2 means: the sample is there twice
    again = Outcomes(true[copies], proba[copies]).scores(np.ones((len(copies), 1)))
    assert {name: value[0] for name, value in again.items()} == pytest.approx(found)


@given(n=st.integers(1, 80), k=st.integers(2, 6), seed=st.integers(0, 2**32))
def test_calibration_error_is_the_mean_gap_in_15_bins_of_confidence(n, k, seed):
    true, proba = predictions(seed, n, k, rounded=False)
    confidence, hit = proba.max(axis=1), proba.argmax(axis=1) == true
    gap = binned_statistic(confidence, [hit, confidence], statistic="sum", bins=15, range=(0, 1)).statistic
    expected = abs(gap[0] - gap[1]).sum() / n
    assert evaluate(true, proba, range(k), replicates=0).calibration_error == pytest.approx(expected)


@pytest.mark.rotates(3)
def test_a_calibrated_head_is_below_what_chance_makes_19_times_in_20_and_an_overconfident_one_never():
    below = {1: 0, 3: 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(150, 4))
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        true = (proba.cumsum(axis=1) < rng.random((150, 1))).sum(axis=1).clip(max=3)  # drawn as the head says
        for sharpness in below:
            reported = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
            scores = evaluate(true, reported, range(4), replicates=200, seed=seed)
            below[sharpness] += scores.calibration_error <= scores.calibration_error_by_chance
    assert 0.91 <= below[1] / 200 <= 0.99
    assert below[3] == 0
    assert "calibration_error" not in scores.intervals


def test_per_class_table_is_scikit_learns():
    true, proba = predictions(0, 90, 4, rounded=False)
    proba[:, 3] = 0  # never predicted
    scores = evaluate(true, proba / proba.sum(axis=1, keepdims=True), range(4))
    report = metrics.classification_report(true, proba.argmax(axis=1), output_dict=True, zero_division=0)
    for c, row in enumerate(scores.per_class):
        expected = report[str(c)]
        assert row["images"] == expected["support"]
        assert row["recall"] == pytest.approx(expected["recall"])
        assert row["f1"] == pytest.approx(expected["f1-score"])
        interval = binomtest(round(row["recall"] * row["images"]), row["images"]).proportion_ci(method="wilson")
        assert row["recall_interval"] == pytest.approx([interval.low, interval.high])
        if c < 3:
            assert row["precision"] == pytest.approx(expected["precision"])
    assert scores.per_class[3]["precision"] is None
    assert scores.balanced_accuracy == pytest.approx(np.mean([row["recall"] for row in scores.per_class]))


def test_what_is_undefined_is_none_with_a_reason():
    proba = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1]])
    scores = evaluate(["a", "b"], proba, ["a", "b", "c"])
    assert scores.auc is None
    assert "none of 'c'" in scores.undefined["auc"]
    assert scores.top5_accuracy is None
    assert scores.undefined["top5_accuracy"] == "needs more than 5 classes"
    one = evaluate(["a", "a"], proba, ["a", "b", "c"])
    assert one.auc is None
    assert one.undefined["auc"] == "needs samples of two classes or more"
    assert one.balanced_accuracy == 0.5
    assert one.per_class[1]["recall"] is one.per_class[1]["f1"] is None
    assert not {"auc", "top5_accuracy"} & {*one.intervals}


@pytest.mark.rotates(3)
def test_an_interval_too_expensive_is_left_out_and_said_so():
    true, proba = predictions(0, 300, 8, rounded=False)
    scores = evaluate(true, proba, range(8), replicates=10**5)
    assert scores.auc is not None
    assert "auc" not in scores.intervals
    assert "left out: 300 samples of 8 classes" in scores.undefined["intervals.auc"]
    assert "macro_f1" in scores.intervals


@given(n=st.integers(1, 30), seed=st.integers(0, 2**32), replicates=st.integers(1, 40))
def test_a_resampling_draws_whole_groups_and_as_many_as_there_are(n, seed, replicates):
    groups = np.random.default_rng(seed).integers(0, 8, n)
    weights = np.hstack(list(resamplings(n, groups, replicates=replicates, seed=seed)))
    assert weights.shape == (n, replicates)
    of_group = {g: weights[groups == g] for g in set(groups.tolist())}
    assert all((block == block[0]).all() for block in of_group.values())
    assert (sum(block[0] for block in of_group.values()) == len(of_group)).all()


def test_a_seed_decides_the_intervals_and_blocks_do_not():
    true, proba = predictions(1, 50, 3, rounded=False)
    first, same, other = (evaluate(true, proba, range(3), seed=seed).intervals for seed in (0, 0, 1))
    assert first == same != other
    many, few = (list(resamplings(1500, None, replicates=replicates)) for replicates in (1000, 400))
    assert len(many) > len(few) == 1
    assert np.array_equal(np.hstack(many)[:, :400], few[0])


@pytest.mark.rotates(3)
def test_intervals_hold_the_scores_of_the_population_about_19_times_in_20():
    """200 test sets of 150 from one population of 40,000: what the intervals promise, by counting."""
    true, proba = predictions(2, 40_000, 6, rounded=False)
    whole = evaluate(true, proba, range(6), replicates=0)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "auc")
    held = dict.fromkeys((*names, "accuracy_interval", "top5_accuracy_interval"), 0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        chosen = rng.choice(len(true), 150, replace=False)
        scores = evaluate(true[chosen], proba[chosen], range(6), replicates=300)
        ends = {**scores.intervals, **{name: getattr(scores, name) for name in held if name not in names}}
        for name in held:
            held[name] += ends[name][0] <= getattr(whole, name.removesuffix("_interval")) <= ends[name][1]
    assert all(0.89 <= count / 200 <= 0.995 for count in held.values()), held


def test_copies_drawn_together_leave_the_intervals_as_wide_as_without_them():
    true, proba = predictions(3, 200, 3, rounded=False)
    plain = evaluate(true, proba, range(3))
    four = np.repeat(np.arange(200), 4)
    grouped = evaluate(true[four], proba[four], range(3), groups=four)
    naive = evaluate(true[four], proba[four], range(3))
    for name, (low, high) in plain.intervals.items():
        assert grouped.intervals[name] == pytest.approx((low, high))
        assert np.diff(naive.intervals[name])[0] < 0.7 * (high - low)
    assert grouped.calibration_error_by_chance == pytest.approx(plain.calibration_error_by_chance)
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        evaluate(true, proba, range(3), groups=[1])
