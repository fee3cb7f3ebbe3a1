"""Head2Toe: which features are chosen, by whom, and that nothing that is scored has a part in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, MultiTaskLasso
from sklearn.preprocessing import StandardScaler

from precompute.heads import RowView, SelectedHead
from precompute.heads.linear import selected, selection
from precompute.heads.linear.columns import ChosenColumns, spread
from precompute.heads.linear.relevance import SHARE, ranked, relevance

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:400] / 16, LABELS[:400]
WIDTHS = (5, 40, 300)


def layers(n: int = 240, *, informative: int = 0, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features of layers of WIDTHS side by side, of which one alone says something; the later, the wider and louder."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    parts = [rng.normal(size=(n, width)) * 10.0**place for place, width in enumerate(WIDTHS)]
    parts[informative][:, :classes] += 3 * 10.0**informative * np.eye(classes)[y]
    return np.concatenate(parts, axis=1).astype(np.float32), y


def standardised(X: np.ndarray) -> np.ndarray:
    found: np.ndarray = StandardScaler().fit_transform(X.astype(np.float64))
    return found


def chosen_by_scikit_learn(X: np.ndarray, y: np.ndarray, count: int) -> np.ndarray:
    """The features that a group lasso of scikit-learn ranks first: by norm, then by how near they are to a weight."""
    Z = standardised(X)
    targets = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    targets = targets[:, -1:] if targets.shape[1] == 2 else targets
    centred = targets - targets.mean(axis=0)
    top = np.linalg.norm(Z.T @ centred / len(y), axis=1).max()
    lasso = MultiTaskLasso(alpha=SHARE * top, tol=1e-10, max_iter=100_000).fit(Z, targets)
    norms = np.linalg.norm(lasso.coef_, axis=0)
    near = np.linalg.norm(Z.T @ (targets - lasso.predict(Z)) / len(y), axis=1)
    return np.sort(np.lexsort((-near, -norms))[:count])


# What is chosen


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(400, 30), (60, 345)], ids=["more rows", "more features"])
def test_the_weights_are_those_of_scikit_learns_group_lasso(classes: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(shape[0]) % classes
    Z = standardised(rng.normal(size=shape) + 2 * np.eye(classes, shape[1])[y])
    targets = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
    top = np.linalg.norm(Z.T @ (targets - targets.mean(axis=0)) / len(y), axis=1).max()
    lasso = MultiTaskLasso(alpha=SHARE * top, tol=1e-10, max_iter=100_000).fit(Z, targets)
    expected = np.linalg.norm(lasso.coef_, axis=0)
    found = relevance(Z, targets, np.ones(len(y)))
    np.testing.assert_allclose(np.maximum(found, 0), expected, atol=2e-5 * expected.max())
    assert ((found > 0) == (expected > 0)).mean() > 0.98


@pytest.mark.parametrize("informative", [0, 1, 2])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])
def test_the_features_are_those_that_scikit_learn_would_choose(informative: int, fraction: float) -> None:
    X, y = layers(informative=informative)
    head = SelectedHead(fraction=fraction, C=0.1, layers=WIDTHS).fit(X, y)
    expected = chosen_by_scikit_learn(X, y, len(head.kept_))
    assert len(head.kept_) == round(fraction * X.shape[1])
    nearly_equal = 1 if fraction > 0.1 else 0  # the last
    assert len(np.intersect1d(head.kept_, expected)) >= len(expected) - nearly_equal
    Z = StandardScaler().fit_transform(X[:, head.kept_].astype(np.float64))
    answers = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(Z, y).predict_proba(Z)
    # How near float32 comes to the best weights depends on the order in which a processor adds; float64 shows the rest.
    np.testing.assert_allclose(head.predict_proba(X), answers, atol=1e-3)
    exact = SelectedHead(fraction=fraction, C=0.1, layers=WIDTHS, tol=1e-9).fit(X.astype(np.float64), y)
    assert np.array_equal(exact.kept_, head.kept_)
    np.testing.assert_allclose(exact.predict_proba(X.astype(np.float64)), answers, atol=2e-5)


def test_what_was_not_kept_has_no_weight() -> None:
    X, y = layers()
    head = SelectedHead(fraction=0.05, C=0.1).fit(X, y)
    rest = np.setdiff1d(np.arange(X.shape[1]), head.kept_)
    assert not head.coef_[:, rest].any() and head.coef_[:, head.kept_].all()
    X[:, rest] = 1e6
    moved, _ = layers()
    assert np.array_equal(head.predict(X), head.predict(moved))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("informative", [0, 1, 2])
def test_the_one_layer_that_says_something_is_found(informative: int) -> None:
    """Whether it is the narrowest and faintest or the widest and loudest."""
    X, y = layers(informative=informative)
    new, truth = layers(informative=informative, seed=7)
    head = SelectedHead(layers=WIDTHS).fit(X, y)
    share = np.array(head.kept_by_layer_) / np.array(WIDTHS)
    assert share.argmax() == informative
    assert head.fraction_ < 0.2
    plain = LogisticRegression(max_iter=5000).fit(X, y)
    assert head.score(new, truth) > 0.9
    assert head.score(new, truth) >= plain.score(new, truth)
    assert sum(head.kept_by_layer_) == len(head.kept_) == head.choices()["kept"]


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_a_louder_layer_or_another_unit_changes_no_choice(seed: int, factor: float) -> None:
    X, y = layers(n=60, seed=seed)
    X = X.astype(np.float64)
    head = SelectedHead(fraction=0.03, C=0.1, layers=WIDTHS).fit(X, y)
    X[:, 5:45] = X[:, 5:45] * factor + 10
    assert np.array_equal(SelectedHead(fraction=0.03, C=0.1, layers=WIDTHS).fit(X, y).kept_, head.kept_)


# Who chooses


@pytest.mark.rotates(3)
def test_a_label_that_is_held_out_has_no_part_in_the_choice() -> None:
    """Labels without meaning: features that were ranked on all rows would tell them, and do where they are."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4000)).astype(np.float32), np.arange(60) % 2
    head = SelectedHead(fraction=(0.005, 0.01), C=(1e-2, 1e-1)).fit(X, y)
    assert all(trial["accuracy"] < 0.75 for trial in head.trials_)
    assert all(trial["log_loss"] > 0.55 for trial in head.trials_)
    kept = X[:, head.kept_]
    leaking = SelectedHead(fraction=(1.0,), C=(1e-2, 1e-1)).fit(kept, y)
    assert max(trial["accuracy"] for trial in leaking.trials_) > 0.85


def test_each_fold_is_that_of_an_independent_pipeline() -> None:
    X, y = layers(n=90)
    order = np.random.default_rng(0).permutation(90)
    splits = [(np.setdiff1d(order, order[k::3]), np.sort(order[k::3])) for k in range(3)]
    head = SelectedHead(fraction=(0.02, 0.1), C=(1e-2, 1.0), cv=splits).fit(X, y)
    for trial in head.trials_:
        losses = []
        for train, test in splits:
            kept = chosen_by_scikit_learn(X[train], y[train], round(trial["fraction"] * X.shape[1]))
            scaler = StandardScaler().fit(X[train][:, kept])
            model = LogisticRegression(C=trial["C"], tol=1e-10, max_iter=10_000)
            model.fit(scaler.transform(X[train][:, kept]), y[train])
            proba = model.predict_proba(scaler.transform(X[test][:, kept]))
            losses += (-np.log(proba[np.arange(len(test)), y[test]])).tolist()
        assert trial["log_loss"] == pytest.approx(np.mean(losses), abs=0.01)
    best = min(head.trials_, key=lambda trial: trial["log_loss"])
    assert (head.fraction_, head.C_) == (best["fraction"], best["C"])


@pytest.mark.rotates(3)
def test_a_group_is_never_on_both_sides() -> None:
    """Copies of each row with labels without meaning: a fold that parted them would know its labels."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 300)), np.arange(40) % 2
    group = np.tile(np.arange(40), 4)
    X, y = np.tile(X, (4, 1)), np.tile(y, 4)
    together = SelectedHead().fit(X, y, groups=group)
    parted = SelectedHead().fit(X, y)
    assert max(trial["accuracy"] for trial in together.trials_) < 0.8
    assert max(trial["accuracy"] for trial in parted.trials_) > 0.95


@pytest.mark.rotates(3)
def test_a_validation_set_chooses_and_is_then_fitted_on() -> None:
    X, y = layers(n=120)
    held, truth = layers(n=60, seed=3)
    head = SelectedHead(layers=WIDTHS).fit(X, y, validation=(held, truth))
    assert head.used_validation() and head.source_ == "validation, then fitted on both"
    again = SelectedHead(fraction=head.fraction_, C=head.C_).fit(np.concatenate([X, held]), np.concatenate([y, truth]))
    assert np.array_equal(again.kept_, head.kept_)
    np.testing.assert_allclose(head.predict_proba(X), again.predict_proba(X), atol=1e-5)
    given_both = SelectedHead(fraction=0.1, C=0.1).fit(X, y, validation=(held, truth))
    assert not given_both.used_validation() and given_both.source_ == "given"


def test_too_few_samples_to_choose_on_are_an_answer() -> None:
    X, y = layers(n=3)
    head = SelectedHead().fit(X, y)
    assert head.source_.startswith("default: too few")
    assert len(head.kept_) == X.shape[1]


# Memory


@pytest.mark.rotates(3)
def test_a_choice_on_some_rows_ends_in_a_fit_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = layers(n=300)
    held, truth = layers(n=90, seed=5)
    monkeypatch.setattr(selected, "SAMPLE_BYTES", 100 * 4 * X.shape[1])
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        selection, "relevance", lambda Z, targets, weight: seen.append(Z.shape) or relevance(Z, targets, weight)
    )
    head = SelectedHead(layers=WIDTHS).fit(X, y, groups=np.arange(300) // 2)
    assert max(shape[0] for shape in seen) <= 101
    assert np.argmax(np.array(head.kept_by_layer_) / WIDTHS) == 0
    kept = StandardScaler().fit(X[:, head.kept_])
    model = LogisticRegression(C=head.C_, tol=1e-10, max_iter=10_000).fit(kept.transform(X[:, head.kept_]), y)
    np.testing.assert_allclose(head.predict_proba(X), model.predict_proba(kept.transform(X[:, head.kept_])), atol=1e-3)
    validated = SelectedHead(layers=WIDTHS).fit(X, y, validation=(held, truth))
    assert validated.used_validation()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_columns_are_read_as_they_are_asked_for(dtype: Any) -> None:
    X = DIGITS.astype(dtype)
    views = [RowView(X, np.arange(0, 200)), RowView(X, np.arange(399, 199, -1))]
    weight = np.arange(1.0, 401)
    mean, scale = spread(views, weight)
    rows = np.concatenate([np.arange(200), np.arange(399, 199, -1)])
    reference = StandardScaler().fit(DIGITS[rows], sample_weight=weight)
    np.testing.assert_allclose(mean, reference.mean_, rtol=1e-6)
    np.testing.assert_allclose(scale, reference.scale_, rtol=1e-6)
    columns = np.array([3, 20, 61])
    view = ChosenColumns(views, columns, mean, scale)
    expected = reference.transform(DIGITS[rows])[:, columns]
    assert view.shape == (400, 3) and len(view) == 400
    np.testing.assert_allclose(view[:], expected, atol=1e-5)
    some = np.array([399, 5, 200, 199, 5])
    np.testing.assert_allclose(view[some], expected[some], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([block for _, block in view.blocks(7)]), expected, atol=1e-5)
    ascending = np.array([5, 199, 200, 399])
    np.testing.assert_allclose(view.take(ascending)[:], expected[ascending], atol=1e-5)


def test_equal_features_are_ranked_in_their_order() -> None:
    scores = relevance(np.zeros((10, 4)), np.ones((10, 1)), np.ones(10))
    assert ranked(scores).tolist() == [0, 1, 2, 3]
