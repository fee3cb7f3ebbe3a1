"""Temperature scaling: the best temperature, and that no prediction ever changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from precompute.heads import evaluate, temperature
from precompute.heads.scoring.temperature import as_logits, scale


def samples(seed, *, n=400, k=4, sharpness=1.0):
    """Labels drawn from the probabilities themselves, so that the true temperature of `sharpness` x logits is known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(n, k))
    proba = softmax(logits, axis=1)
    labels = (proba.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=k - 1)
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0, 60.0])
def test_the_temperature_that_made_the_labels_is_found(sharpness):
    logits, labels = samples(0, n=20_000, sharpness=sharpness)
    assert temperature(logits, labels) == pytest.approx(sharpness, rel=0.05)


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.05, 20))
def test_no_other_temperature_has_a_lower_loss(seed, sharpness):
    logits, labels = samples(seed, n=60, sharpness=sharpness)
    T = temperature(logits, labels)

    def loss(T):
        return log_loss(labels, softmax(logits / T, axis=1), labels=range(4))

    assert loss(T) <= min(loss(T * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2)) + 1e-12


def test_it_is_what_torch_finds():
    logits, labels = samples(1, sharpness=3.0)
    z, y = torch.tensor(logits), torch.tensor(labels)
    log_T = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_T], max_iter=100, line_search_fn="strong_wolfe")

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(z / log_T.exp(), y)
        loss.backward()
        return loss

    optimizer.step(step)
    assert temperature(z, y) == pytest.approx(log_T.detach().exp().item(), rel=1e-4)


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(0, 1, width=32)),
    st.one_of(st.floats(1e-4, 1e4), st.sampled_from([1e-4, 1.0, 1e4])),
)
def test_the_most_probable_class_stays(values, T):
    values[:, 0] += np.float32(1e-30)  # no row of zeros
    proba = values / values.sum(axis=1, keepdims=True)
    scaled = scale(proba, T)
    assert np.array_equal(scaled.argmax(axis=1), proba.argmax(axis=1))
    assert np.allclose(scaled.sum(axis=1), 1)
    assert np.isfinite(scaled).all()


def test_neighbouring_float32_numbers_stay_apart_at_the_highest_temperature():
    low = np.float32(0.5)
    proba = np.array([[low, np.nextafter(low, np.float32(1)), 0]], dtype=np.float32)
    assert scale(proba, 1e4).argmax() == 1


def test_probabilities_come_back_at_temperature_1():
    proba = softmax(samples(2)[0], axis=1)
    assert np.allclose(scale(proba, 1.0), proba, atol=1e-15)
    assert np.allclose(log_softmax(as_logits(proba), axis=1), np.log(proba))


def test_an_overconfident_classifier_of_digits_becomes_calibrated():
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(0).normal(scale=6, size=X.shape)  # as sure as before, and wrong more often
    model = LogisticRegression(C=100, max_iter=2000).fit(X[:300], y[:300])
    proba = model.predict_proba(X[300:])
    half = len(proba) // 2
    T = temperature(as_logits(proba[:half]), y[300:][:half])
    before, after = (evaluate(y[300:][half:], p[half:], range(10), replicates=0) for p in (proba, scale(proba, T)))
    assert T > 1
    assert after.accuracy == before.accuracy
    assert after.log_loss < before.log_loss
    assert after.calibration_error < before.calibration_error / 2


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[2.0, 1.0], [0.0, 1.0]], [0, 1], "every sample is right"),
        ([[2.0, 1.0], [0.0, 1.0]], [1, 0], "no better than chance"),
        ([[1.0, 1.0]], [0], "every sample is right"),
        ([[np.nan, 1.0]], [0], "logits must be finite"),
        ([[0.0, 1.0]], [2], "labels must be positions from 0 to 1"),
        ([[0.0, 1.0]], [0.5], "labels must be positions"),
        ([[0.0, 1.0]], [0, 1], "logits must have shape"),
        (np.empty((0, 2)), np.empty(0, int), "logits must have shape"),
    ],
)
def test_where_no_temperature_is_best_it_is_said(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        temperature(np.array(logits), np.array(labels))


@pytest.mark.parametrize("T", [0, -1.0, 1e-5, 1e5, float("nan"), "2", None, True])
def test_impossible_temperatures_are_refused(T):
    with pytest.raises(ValueError, match="the temperature must be"):
        scale(np.array([[0.5, 0.5]]), T)
