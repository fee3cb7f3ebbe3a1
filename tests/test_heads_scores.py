"""Scores against scikit-learn's metrics, which do not share their code."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from precompute.heads import evaluate
from precompute.heads.scores import wilson_interval

NAMES = np.array(["ant", "bee", "cat", "dog"])


@settings(deadline=None)
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
    assert scores.log_loss == pytest.approx(metrics.log_loss(y, y_proba=proba, labels=classes), rel=1e-5, abs=1e-6)
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
    assert set(restored) == set(scores.__dataclass_fields__)


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
        ([0], [[np.nan, 1.0]], "sum to 1"),
    ],
)
def test_what_is_not_probabilities_of_the_classes_is_refused(y, proba, message):
    with pytest.raises(ValueError, match=message):
        evaluate(y, np.array(proba), [0, 1])
