"""MLPHead: reproducible, early stopped, and telling about its training."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from precompute.errors import DeviceError, TrainingError
from precompute.heads import MLPHead, holdout

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = (DIGITS[:600] / 16).astype(np.float32), LABELS[:600]
KEYS = {"epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"}


def parameters(head):
    return b"".join(a.tobytes() for a in (head.mean_, head.scale_, *head.weights_, *head.biases_))


@pytest.mark.rotates(3)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_state():
    settings = {"hidden": (32, 16), "max_epochs": 6}
    first = MLPHead(**settings).fit(DIGITS, LABELS)
    torch.rand(7)
    np.random.rand(7)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            second = MLPHead(**settings).fit(DIGITS, LABELS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert parameters(first) == parameters(second)
    assert first.history_ == second.history_
    assert parameters(first) != parameters(MLPHead(random_state=1, **settings).fit(DIGITS, LABELS))
    assert parameters(MLPHead(random_state=None, max_epochs=1).fit(DIGITS, LABELS)) != parameters(
        MLPHead(random_state=None, max_epochs=1).fit(DIGITS, LABELS)
    )


def test_global_state_is_left_alone():
    def state():
        flags = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), flags

    before = state()
    MLPHead(max_epochs=2).fit(DIGITS, LABELS).predict(DIGITS)
    assert state() == before


@pytest.mark.rotates(3)
def test_it_learns_digits():
    train, test = holdout(LABELS, fraction=0.3, seed=0)
    head = MLPHead(max_epochs=60).fit(DIGITS[train], LABELS[train])
    assert head.score(DIGITS[test], LABELS[test]) > 0.9
    assert head.validation_source_ == "held out"


def test_without_hidden_layers_it_is_linear():
    head = MLPHead(hidden=(), max_epochs=1).fit(DIGITS, LABELS)
    assert [w.shape for w in head.weights_] == [(10, 64)]
    standardised = (DIGITS - head.mean_) / head.scale_
    logits = standardised @ head.weights_[0].T + head.biases_[0]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(DIGITS), expected, atol=1e-5)


@pytest.mark.rotates(3)
def test_overfitting_shows_in_the_curves_and_the_best_epoch_is_kept():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 40)).astype(np.float32), rng.integers(0, 4, 200)  # nothing but noise to learn
    Xv, yv = rng.normal(size=(100, 40)).astype(np.float32), rng.integers(0, 4, 100)
    head = MLPHead(dropout=0.0, learning_rate=1e-2, batch_size=50, max_epochs=30, patience=30)
    head.fit(X, y, validation=(Xv, yv))
    history = head.history_
    assert head.validation_source_ == "given"
    assert [epoch["epoch"] for epoch in history] == list(range(1, head.n_iter_ + 1))
    assert all(set(epoch) == KEYS for epoch in history)
    assert history[-1]["train_loss"] < 0.1 < history[0]["train_loss"]
    assert history[-1]["train_accuracy"] > 0.95
    best = history[head.best_epoch_ - 1]
    assert best["validation_loss"] == min(epoch["validation_loss"] for epoch in history)
    assert history[-1]["validation_loss"] > best["validation_loss"] + 0.5
    likelihood = head.predict_proba(Xv)[np.arange(100), yv]
    assert -np.log(likelihood).mean() == pytest.approx(best["validation_loss"], rel=1e-4)
    assert head.score(Xv, yv) == best["validation_accuracy"]


def test_dropout_keeps_the_training_loss_up():
    def final_loss(dropout):
        head = MLPHead(dropout=dropout, max_epochs=10, patience=10, learning_rate=1e-2)
        return head.fit(DIGITS, LABELS).history_[-1]["train_loss"]

    assert final_loss(0.9) > 2 * final_loss(0.0)


def test_training_stops_after_patience_epochs_without_improvement():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(200, 40)), rng.integers(0, 2, 200)
    head = MLPHead(dropout=0.0, learning_rate=1e-2, max_epochs=150, patience=3).fit(X, y)
    assert head.n_iter_ == head.best_epoch_ + 3 < 150


def test_too_few_samples_to_hold_out_means_training_on_all():
    X, y = DIGITS[:20], LABELS[:20]
    head = MLPHead(max_epochs=5).fit(X, y)
    assert head.validation_source_ == "none: too few samples to hold out"
    assert head.history_[0]["validation_loss"] is None
    assert head.history_[0]["validation_accuracy"] is None
    np.testing.assert_allclose(head.mean_, X.mean(axis=0), atol=1e-6)
    one_group_per_class = MLPHead(max_epochs=2).fit(DIGITS, LABELS, groups=LABELS)
    assert one_group_per_class.validation_source_ == "none: too few samples to hold out"


def test_copies_of_a_sample_stay_together_in_the_hold_out():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 100)), np.arange(60) % 3
    X, y, groups = np.repeat(X, 5, axis=0), np.repeat(y, 5), np.repeat(np.arange(60), 5)
    settings = {"dropout": 0.0, "learning_rate": 1e-2, "max_epochs": 15}
    leaking = MLPHead(**settings).fit(X, y)
    honest = MLPHead(**settings).fit(X, y, groups=groups)
    assert leaking.history_[-1]["validation_accuracy"] > 0.95
    assert honest.history_[-1]["validation_accuracy"] < 0.75


def test_standardisation_is_that_of_the_training_samples_and_spares_constants():
    X = np.column_stack([DIGITS[:, 20] * 100, np.full(600, 0.1), np.zeros(600)]).astype(np.float16)
    head = MLPHead(max_epochs=1).fit(X, LABELS, validation=(X[:50], LABELS[:50]))
    np.testing.assert_allclose(head.mean_, X.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(head.scale_, [X[:, 0].astype(np.float64).std(), 1, 1], rtol=1e-6)
    assert head.mean_.dtype == head.scale_.dtype == np.float32


@pytest.mark.rotates(3)
def test_class_weights_move_predictions_to_the_rare_class():
    rng = np.random.default_rng(0)
    y = np.array(["common"] * 540 + ["rare"] * 60)
    X = rng.normal(size=(600, 5)) + 0.7 * (y == "rare")[:, None]
    settings = {"max_epochs": 15, "learning_rate": 1e-2}
    plain = (MLPHead(**settings).fit(X, y).predict(X) == "rare").sum()
    for class_weight in ("balanced", {"rare": 9.0}):
        weighted = (MLPHead(class_weight=class_weight, **settings).fit(X, y).predict(X) == "rare").sum()
        assert weighted > 2 * plain


def test_a_loss_that_explodes_says_what_to_do():
    with pytest.raises(TrainingError, match="not finite after epoch") as caught:
        MLPHead(hidden=(8,) * 8, learning_rate=1e5, max_epochs=2).fit(DIGITS, LABELS)
    assert "Lower learning_rate" in caught.value.hint


@pytest.mark.parametrize("device", ["abacus", "cuda:127", 3.5])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(DeviceError, match="cannot use the device"):
        MLPHead(device=device).fit(DIGITS, LABELS)
