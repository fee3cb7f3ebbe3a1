"""LogisticHead against scikit-learn's own LogisticRegression, and how it chooses C."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression

from precompute import extract, open_cache
from precompute.heads import LogisticHead
from precompute.heads.linear.logistic import C_GRID, DEFAULT_C

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:600] / 16, LABELS[:600]
RNG = np.random.default_rng(0)


def noise(n, d, classes):
    return RNG.normal(size=(n, d)), np.arange(n) % classes


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("C", [0.01, 1.0])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 5.0, 1: 0.5}])
def test_at_a_given_C_it_is_scikit_learns_model(n_classes, C, class_weight):
    chosen = np.isin(LABELS, range(n_classes))
    X, y = DIGITS[chosen], LABELS[chosen]
    ours = LogisticHead(C=C, tol=1e-8, class_weight=class_weight).fit(X, y)
    oracle = LogisticRegression(C=C, tol=1e-7, max_iter=5000, class_weight=class_weight).fit(X, y)
    assert ours.coef_.dtype == ours.intercept_.dtype == np.float64
    narrow = LogisticHead(C=C, tol=1e-8, class_weight=class_weight).fit(X.astype(np.float32), y)
    assert narrow.coef_.dtype == narrow.intercept_.dtype == np.float32
    np.testing.assert_allclose(narrow.coef_, oracle.coef_, atol=2e-3)
    np.testing.assert_allclose(ours.coef_, oracle.coef_, atol=2e-3)
    np.testing.assert_allclose(ours.intercept_ - ours.intercept_.mean() * (n_classes > 2), oracle.intercept_, atol=2e-2)
    np.testing.assert_allclose(ours.predict_proba(X), oracle.predict_proba(X), atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(X), oracle.decision_function(X), atol=1e-2)
    assert np.array_equal(ours.predict(X), oracle.predict(X))
    shifted = LogisticHead(C=C, tol=1e-8, class_weight=class_weight).fit(X + 100, y)  # the intercept absorbs an offset
    np.testing.assert_allclose(shifted.coef_, oracle.coef_, atol=2e-3)
    np.testing.assert_allclose(shifted.predict_proba(X + 100), oracle.predict_proba(X), atol=1e-3)
    assert (ours.C_, ours.C_source_, ours.trials_, ours.converged_) == (C, "given", [], True)


@pytest.mark.rotates(3)
def test_validation_trials_are_what_scikit_learn_measures():
    X, y, Xv, yv = DIGITS[:400], LABELS[:400], DIGITS[400:], LABELS[400:]
    head = LogisticHead(C=[1.0, 1e-4, 10.0, 1e-2], tol=1e-8).fit(X, y, validation=(Xv, yv))
    assert head.C_source_ == "validation, then fitted on both"
    assert [trial["C"] for trial in head.trials_] == [1e-4, 1e-2, 1.0, 10.0]
    for trial in head.trials_:
        oracle = LogisticRegression(C=trial["C"], tol=1e-8, max_iter=5000).fit(X, y)
        proba = oracle.predict_proba(Xv)
        assert trial["accuracy"] == pytest.approx(oracle.score(Xv, yv), abs=0.006)
        assert trial["log_loss"] == pytest.approx(-np.log(proba[np.arange(len(yv)), yv]).mean(), rel=0.01)


@pytest.mark.rotates(3)
def test_the_lowest_log_loss_wins():
    X, y = load_iris(return_X_y=True)
    head = LogisticHead().fit(X[50:], y[50:])
    assert head.C_source_ == "5-fold cross-validation"
    chosen = min(head.trials_, key=lambda trial: trial["log_loss"])
    assert chosen["C"] == head.C_
    assert chosen["log_loss"] < head.trials_[0]["log_loss"]


def test_strong_regularisation_is_chosen_where_features_are_mostly_noise():
    X, y = noise(120, 300, 2)
    X[:, :40] += 0.15 * (2 * y[:, None] - 1)
    head = LogisticHead().fit(X, y)
    loss = {trial["C"]: trial["log_loss"] for trial in head.trials_}
    assert head.C_ < 1
    assert loss[head.C_] < loss[head.trials_[-1]["C"]]


@pytest.mark.parametrize("choose_by", ["log_loss", "accuracy"])
@pytest.mark.parametrize(
    ("n", "d", "shift"),
    [
        (120, 300, 0.15),
        pytest.param(300, 20, 0.5, marks=pytest.mark.slow),
        pytest.param(200, 100, 2.0, marks=pytest.mark.slow),
        (90, 10, 0.0),
    ],
)
def test_a_path_that_ends_early_and_is_solved_loosely_chooses_what_the_whole_one_would(n, d, shift, choose_by):
    X, y = noise(n, d, 4)
    X[:, : d // 4] += shift * (2 * y[:, None] - 1)
    auto = LogisticHead(choose_by=choose_by).fit(X, y)
    every = LogisticHead(C=list(C_GRID), choose_by=choose_by).fit(X, y)
    assert len(every.trials_) == len(C_GRID)
    assert auto.C_ == every.C_
    assert np.array_equal(auto.coef_, every.coef_)
    assert [trial["C"] for trial in auto.trials_] == list(C_GRID[: len(auto.trials_)])
    chosen = next(trial for trial in auto.trials_ if trial["C"] == auto.C_)
    exact = next(trial for trial in every.trials_ if trial["C"] == auto.C_)
    assert chosen["objective"] == pytest.approx(exact["objective"], rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("choose_by", ["log_loss", "accuracy"])
@pytest.mark.daily(2)
def test_the_same_on_real_photos(hymenoptera, squeezenet_weights, tmp_path, choose_by):
    done = extract(hymenoptera, tmp_path / "a.h5", backbone="squeezenet1_1", weights=str(squeezenet_weights))
    assert done.computed > 390
    cache = open_cache(tmp_path / "a.h5")
    rows = cache.ok & (cache.labels >= 0)
    X, y = cache.features()[rows].reshape(rows.sum(), -1).astype(np.float32), cache.labels[rows]
    auto = LogisticHead(choose_by=choose_by).fit(X, y)
    every = LogisticHead(C=list(C_GRID), choose_by=choose_by).fit(X, y)
    assert auto.C_ == every.C_
    assert np.array_equal(auto.coef_, every.coef_)


@pytest.mark.rotates(3)
def test_every_C_of_the_path_gets_as_low_as_a_fit_from_nothing():
    """The trap: with scikit-learn's absolute tolerance a path stands still at large C, where it starts."""
    X, y = noise(200, 100, 3)
    X[:, :10] += 0.5 * y[:, None]
    head = LogisticHead(C=C_GRID).fit(X, y, validation=(X[:90] + 0.1, y[:90]))
    assert [trial["C"] for trial in head.trials_] == list(C_GRID)
    for trial in head.trials_[::4]:
        cold = LogisticHead(C=trial["C"]).fit(X, y).objective_
        assert trial["objective"] == pytest.approx(cold, rel=2e-5), trial
        assert trial["n_iter"] > 0


@pytest.mark.rotates(6)
def test_the_final_fit_is_that_of_the_chosen_C_on_all_samples():
    chosen = LogisticHead().fit(DIGITS, LABELS)
    given = LogisticHead(C=chosen.C_).fit(DIGITS, LABELS)
    assert np.array_equal(chosen.coef_, given.coef_)
    assert np.array_equal(chosen.intercept_, given.intercept_)


@pytest.mark.rotates(3)
def test_copies_of_a_sample_stay_on_one_side_of_cross_validation():
    X, y = noise(60, 200, 3)
    X, y, groups = np.repeat(X, 5, axis=0), np.repeat(y, 5), np.repeat(np.arange(60), 5)
    leaking = LogisticHead().fit(X, y)
    honest = LogisticHead().fit(X, y, groups=groups)
    assert max(trial["accuracy"] for trial in leaking.trials_) > 0.95
    assert max(trial["accuracy"] for trial in honest.trials_) < 0.6


@pytest.mark.parametrize(
    ("counts", "source"),
    [
        ((9, 9), "5-fold cross-validation"),
        ((9, 3), "3-fold cross-validation"),
        ((9, 9, 1), "5-fold cross-validation"),
        ((2, 2), "2-fold cross-validation"),
        ((9, 1), "default: too few samples for cross-validation"),
        ((1, 1, 1), "default: too few samples for cross-validation"),
    ],
)
def test_small_classes_mean_fewer_folds_then_the_default(counts, source):
    y = np.repeat(np.arange(len(counts)), counts)
    head = LogisticHead().fit(RNG.normal(size=(len(y), 4)), y)
    assert head.C_source_ == source
    assert np.array_equal(head.classes_, np.arange(len(counts)))
    assert (head.C_ == DEFAULT_C and head.trials_ == []) == source.startswith("default")


@pytest.mark.rotates(3)
def test_a_validation_set_may_lack_classes():
    only_some = LABELS < 3
    head = LogisticHead().fit(DIGITS, LABELS, validation=(DIGITS[only_some], LABELS[only_some]))
    assert head.C_source_ == "validation, then fitted on both"
    assert len(head.classes_) == 10


@pytest.mark.rotates(3)
def test_stopping_early_is_recorded_and_not_warned_about():
    head = LogisticHead(C=1.0, max_iter=1).fit(DIGITS, LABELS)  # pytest turns a warning into a failure
    assert not head.converged_
    assert head.n_iter_ == 1
    assert not LogisticHead(max_iter=1).fit(DIGITS, LABELS).converged_
    assert LogisticHead(C=1.0).fit(DIGITS, LABELS).converged_


@pytest.mark.slow
def test_runs_do_not_change_the_result():
    one, two = LogisticHead().fit(DIGITS, LABELS), LogisticHead().fit(DIGITS, LABELS)
    assert one.C_ == two.C_
    np.testing.assert_allclose(one.coef_, two.coef_, rtol=1e-5, atol=1e-7)
    assert [t["accuracy"] for t in one.trials_] == [t["accuracy"] for t in two.trials_]


def test_text_labels_keep_their_names():
    names = np.array(["naïve", "b\udcff", "cat"])
    X, y = load_iris(return_X_y=True)
    head = LogisticHead(C=1.0).fit(X, names[y])
    assert head.classes_.tolist() == sorted(names.tolist())
    assert (head.predict(X) == names[y]).mean() > 0.95
