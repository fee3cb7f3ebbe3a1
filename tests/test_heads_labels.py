"""Heads of several labels a sample: each label as scikit-learn has it alone, and what is odd about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from precompute.heads import (
    KNNHead,
    LogisticHead,
    MLPHead,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    MultilabelRidgeHead,
    RidgeHead,
    RowView,
    label_strata,
)
from precompute.heads.base import rows
from precompute.heads.base.splits import folds
from precompute.heads.linear import design, path
from precompute.heads.scoring.sigmoid import fit_sigmoid

DIGITS, NUMBER = load_digits(return_X_y=True)
DIGITS = DIGITS / 16
NAMES = ["even", "above four", "round", "prime"]
LABELS = np.stack(
    [NUMBER % 2 == 0, NUMBER > 4, np.isin(NUMBER, [0, 6, 8, 9]), np.isin(NUMBER, [2, 3, 5, 7])], axis=1
).astype(int)
X, Y, TEST, TRUE = DIGITS[:400], LABELS[:400], DIGITS[400:900], LABELS[400:900]
HEADS: dict[str, Any] = {
    "logistic": lambda **kw: MultilabelLogisticHead(**{"C": 0.1, **kw}),
    "ridge": MultilabelRidgeHead,
    "knn": MultilabelKNNHead,
    "mlp": lambda **kw: MultilabelMLPHead(**{"hidden": (16,), "max_epochs": 40, "learning_rate": 1e-2, **kw}),
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Any:
    return HEADS[request.param]()


# ---- each label as scikit-learn has it


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_regressions_are_scikit_learns(C: float, class_weight: Any) -> None:
    head = MultilabelLogisticHead(C=C, tol=1e-15, class_weight=class_weight).fit(X, Y, label_names=NAMES)
    each = MultiOutputClassifier(LogisticRegression(C=C, tol=1e-10, max_iter=5000, class_weight=class_weight)).fit(X, Y)
    for label, expected in enumerate(each.estimators_):
        np.testing.assert_allclose(head.coef_[label], expected.coef_[0], atol=1e-5 * max(1, abs(expected.coef_).max()))
        np.testing.assert_allclose(head.intercept_[label], expected.intercept_[0], atol=1e-4)
        np.testing.assert_allclose(head.predict_proba(TEST)[:, label], expected.predict_proba(TEST)[:, 1], atol=1e-5)
    assert head.labels_.tolist() == NAMES
    assert head.converged_
    assert np.array_equal(head.predict(TEST), head.decision_function(TEST) > 0)


def test_a_label_of_several_is_the_logistic_head_of_that_label_alone() -> None:
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    head = MultilabelLogisticHead(C=0.3, tol=1e-12).fit(X, Y, weight)
    objective, gap = 0.0, 0.0
    for label in range(4):
        alone = LogisticHead(C=0.3, tol=1e-12).fit(X, Y[:, label], weight)
        np.testing.assert_allclose(head.coef_[[label]], alone.coef_, atol=1e-6)
        objective, gap = objective + alone.objective_, gap + alone.gap_
    assert head.objective_ == pytest.approx(objective, rel=1e-12)
    assert 0 <= head.gap_ < 1e-6 * head.objective_
    assert gap < 1e-6 * head.objective_


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_certificate_bounds_how_far_above_the_minimum_it_is(C: float, dtype: Any) -> None:
    exact = MultilabelLogisticHead(C=C, tol=1e-16, max_iter=10_000).fit(X[:100], Y[:100])
    for tol in (1e-2, 1e-5):
        head = MultilabelLogisticHead(C=C, tol=tol).fit(X[:100].astype(dtype), Y[:100])
        assert head.gap_ is not None
        assert head.objective_ - head.gap_ <= exact.objective_ * (1 + 1e-12)
        assert head.objective_ >= exact.objective_ * (1 - 1e-9)


@pytest.mark.rotates(6)
def test_the_chosen_C_is_that_of_the_lowest_log_loss_in_the_same_folds() -> None:
    grid = [1e-4, 1e-3, 1e-2, 1e-1]
    head = MultilabelLogisticHead(C=grid, tol=1e-10).fit(X, Y)
    splits = folds(label_strata(Y > 0), n_folds=5, seed=0)
    losses = []
    for C in grid:
        loss = 0.0
        for train, test in splits:
            model = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=5000)).fit(X[train], Y[train])
            proba = model.predict_proba(X[test])
            loss += sum(log_loss(Y[test, label], proba[:, label]) * len(test) for label in range(4))
        losses.append(loss / (4 * len(X)))
    np.testing.assert_allclose([trial["log_loss"] for trial in head.trials_], losses, rtol=1e-4)
    assert grid[int(np.argmin(losses))] == head.C_
    assert head.C_source_ == "5-fold cross-validation"
    auto = MultilabelLogisticHead().fit(X, Y)
    assert min(trial["log_loss"] for trial in auto.trials_) <= min(losses) * (1 + 1e-3)


def test_a_validation_set_chooses_C_and_is_then_fitted_on() -> None:
    grid = [1e-3, 1e-1]
    head = MultilabelLogisticHead(C=grid, tol=1e-12).fit(X, Y, validation=(TEST, TRUE))
    assert head.used_validation()
    expected = MultilabelLogisticHead(C=head.C_, tol=1e-12).fit(np.vstack([X, TEST]), np.vstack([Y, TRUE]))
    np.testing.assert_allclose(head.coef_, expected.coef_, atol=1e-6)
    for trial in head.trials_:
        proba = MultilabelLogisticHead(C=trial["C"], tol=1e-12).fit(X, Y).predict_proba(TEST)
        assert trial["log_loss"] == pytest.approx(log_loss(TRUE.ravel(), proba.ravel()), rel=1e-4)
        assert trial["accuracy"] == pytest.approx(((proba > 0.5) == TRUE).mean())


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_ridge_scores_are_scikit_learns(alpha: float) -> None:
    weight = np.random.default_rng(0).integers(1, 4, len(X))
    head = MultilabelRidgeHead(alpha=alpha).fit(X, Y, weight)
    expected = RidgeClassifier(alpha=alpha).fit(X, Y, weight)
    np.testing.assert_allclose(head.decision_function(TEST), expected.decision_function(TEST), atol=1e-8)
    single = RidgeHead(alpha=alpha).fit(X, Y[:, 1], weight)
    np.testing.assert_allclose(head.decision_function(TEST)[:, 1], single.decision_function(TEST), atol=1e-8)


def test_ridge_chooses_alpha_by_leaving_out_each_row() -> None:
    head = MultilabelRidgeHead().fit(X[:60], Y[:60])
    assert head.alpha_source_ == "leave-one-out"
    trial = next(trial for trial in head.trials_ if trial["alpha"] == 10)
    every = np.arange(60)
    left = np.array(
        [
            RidgeClassifier(alpha=10).fit(X[:60][every != i], Y[:60][every != i]).decision_function(X[[i]])[0]
            for i in every
        ]
    )
    assert trial["squared_error"] == pytest.approx(((2 * Y[:60] - 1 - left) ** 2).mean())
    assert trial["accuracy"] == pytest.approx(((left > 0) == Y[:60]).mean())
    # The probabilities are sigmoids that are fitted on these scores.
    head = MultilabelRidgeHead(alpha=10).fit(X[:60], Y[:60])
    for label in range(4):
        slope, offset = fit_sigmoid(left[:, label], Y[:60, label] > 0, np.ones(60))
        assert (head.slopes_[label], head.offsets_[label]) == pytest.approx((slope, offset), rel=1e-4, abs=1e-4)
    scores = head.decision_function(TEST)
    np.testing.assert_allclose(head.predict_proba(TEST), expit(scores * head.slopes_ + head.offsets_), rtol=1e-6)


def test_sigmoids_are_platts_as_scikit_learn_fits_them() -> None:
    scores = RidgeClassifier(alpha=10).fit(X[:200], Y[:200, 0]).decision_function(TEST)
    weight = np.random.default_rng(0).integers(1, 4, len(TEST)).astype(float)

    class Scores(LogisticRegression):
        def fit(self, X: Any, y: Any) -> Scores:
            self.classes_ = np.arange(2)
            return self

        def decision_function(self, X: Any) -> Any:
            return X[:, 0]

    copies = np.repeat(np.arange(len(TEST)), weight.astype(int))
    platt = CalibratedClassifierCV(FrozenEstimator(Scores().fit(None, None)), method="sigmoid")
    platt.fit(scores[copies, None], TRUE[copies, 0])
    slope, offset = fit_sigmoid(scores, TRUE[:, 0] > 0, weight)
    np.testing.assert_allclose(expit(slope * scores + offset), platt.predict_proba(scores[:, None])[:, 1], atol=1e-4)


@pytest.mark.parametrize("scores", [np.zeros(9), np.arange(9.0), -np.arange(9.0), np.array([1e300] + [0.0] * 8)])
def test_sigmoids_keep_the_order_of_any_scores(scores: np.ndarray) -> None:
    slope, offset = fit_sigmoid(scores / max(1, abs(scores).max()), np.arange(9) > 6, np.ones(9))
    assert slope > 0
    assert np.isfinite(offset)


@given(st.integers(1, 60), st.floats(0.05, 5), st.booleans())
@settings(deadline=None, max_examples=25)
def test_shares_are_those_of_scikit_learns_neighbours(k: int, t: float, weighted: bool) -> None:
    expected = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / t)).fit(X, Y)
    weight = np.ones(len(X)) if weighted else None
    found = MultilabelKNNHead(k=k, temperature=t).fit(X, Y, weight).predict_proba(TEST[:100])
    np.testing.assert_allclose(found, np.stack(expected.predict_proba(TEST[:100]), axis=2)[:, 1], atol=1e-6)
    one = KNNHead(k=k, temperature=t).fit(X, Y[:, 2]).predict_proba(TEST[:100])[:, 1]
    np.testing.assert_allclose(found[:, 2], one, atol=1e-9)


@pytest.mark.rotates(3)
def test_a_network_without_hidden_layers_comes_to_the_logistic_regressions() -> None:
    options: dict[str, Any] = {"dropout": 0.0, "weight_decay": 0.0, "batch_size": 400, "learning_rate": 0.05}
    head = MultilabelMLPHead(
        hidden=(), max_epochs=600, patience=600, schedule="constant", validation_fraction=0.001, **options
    ).fit(X[:60], (Y + np.arange(len(Y))[:, None] // 3 % 2)[:60] > 0)
    target = (Y + np.arange(len(Y))[:, None] // 3 % 2)[:60] > 0
    loss = log_loss(target.ravel(), head.predict_proba(X[:60]).ravel())
    assert head.validation_source_.startswith("none")
    assert min(epoch["train_loss"] for epoch in head.history_) == pytest.approx(loss, rel=1e-4)
    assert loss < 0.05  # which a hyperplane can reach for each label


@pytest.mark.rotates(3)
def test_the_network_is_about_as_good_as_scikit_learns() -> None:
    head = MultilabelMLPHead(hidden=(64,)).fit(X, Y)
    other = MLPClassifier(hidden_layer_sizes=(64,), max_iter=3000, early_stopping=True, random_state=0).fit(X, Y)
    ours, theirs = ((model.predict(TEST) == TRUE).mean() for model in (head, other))
    assert ours > theirs - 0.03
    epoch = head.history_[head.best_epoch_ - 1]
    assert 0.8 < epoch["validation_accuracy"] <= 1
    single = MLPHead(hidden=(64,)).fit(X, Y[:, 0])
    assert (head.predict(TEST)[:, 0] == TRUE[:, 0]).mean() > (single.predict(TEST) == TRUE[:, 0]).mean() - 0.05


# ---- what is odd


@pytest.mark.rotates(3)
def test_labels_that_all_have_or_none_are_predicted_so(head: Any) -> None:
    target = np.column_stack([np.zeros(400), Y[:, 0], np.ones(400), Y[:, 3]])
    for validation in (None, (TEST, np.column_stack([np.zeros(500), TRUE[:, 0], np.ones(500), TRUE[:, 3]]))):
        proba = head.fit(X, target, validation=validation).predict_proba(TEST)
        assert (proba[:, 0] < 1e-6).all()
        assert (proba[:, 2] > 1 - 1e-6).all()
        assert (head.predict(TEST)[:, [0, 2]] == [0, 1]).all()
        assert (head.predict(TEST)[:, 1] == TRUE[:, 0]).mean() > 0.8
        if hasattr(head, "coef_"):
            assert (head.coef_[[0, 2]] == 0).all()


@pytest.mark.rotates(3)
@pytest.mark.parametrize("C", [0.1, "auto"])
def test_other_labels_are_solved_as_without_those(C: Any) -> None:
    with_them = np.column_stack([np.zeros(100), Y[:100], np.ones(100)])
    one, other = (MultilabelLogisticHead(C=C, tol=1e-10).fit(X[:100], target) for target in (with_them, Y[:100]))
    assert one.C_ == other.C_
    np.testing.assert_allclose(one.coef_[1:5], other.coef_, atol=1e-9)


@pytest.mark.rotates(3)
def test_a_label_that_some_folds_lack_is_fitted(head: Any) -> None:
    target = np.column_stack([np.arange(400) == 7, np.isin(np.arange(400), [3, 9]), Y[:, 0]])
    for params in ({"C": "auto"}, {}):
        if params and "C" not in head.get_params():
            continue
        proba = head.set_params(**params).fit(X, target).predict_proba(TEST)
        assert np.isfinite(proba).all()
        assert proba[:, :2].mean() < 0.1


def test_labels_that_do_not_vary_at_all_are_refused(head: Any) -> None:
    for target in (np.zeros((400, 3)), np.tile([0, 1, 1], (400, 1))):
        with pytest.raises(ValueError, match=r"needs a label that some samples have and others lack"):
            head.fit(X, target)
    with pytest.raises(ValueError, match=r"with a weight above 0 that all have the same labels"):
        head.fit(X, Y, np.arange(400) < 1)
    with pytest.raises(ValueError, match=r"Got 1 sample that all have"):
        head.fit(X[:1], Y[:1])


def test_y_is_checked(head: Any) -> None:
    with pytest.raises(ValueError, match=r"y must have shape \(n, L\).*Got shape \(400,\).*give y\[:, None\]"):
        head.fit(X, Y[:, 0])
    with pytest.raises(ValueError, match="Got 2 for sample 5 and label 1. Give 1 where a sample has a label"):
        head.fit(X, np.where((np.arange(400) == 5)[:, None] & (np.arange(4) == 1), 2, Y))
    with pytest.raises(ValueError, match="must hold 0 and 1 only. Got 0.5"):
        head.fit(X, Y / 2)
    with pytest.raises(ValueError, match="y contains NaN"):
        head.fit(X, np.where(Y > 0, np.nan, 0))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[400, 399\]"):
        head.fit(X, Y[:-1])
    with pytest.raises(ValueError, match="target y is None"):
        head.fit(X, None)
    with pytest.raises(ValueError, match=r"0 feature|minimum of 1"):
        head.fit(X, Y[:, :0])


def test_names_validation_and_groups_are_checked(head: Any) -> None:
    with pytest.raises(ValueError, match=r"label_names must have one name per label, \(4,\). Got shape \(2,\)"):
        head.fit(X, Y, label_names=["a", "b"])
    with pytest.raises(ValueError, match="label_names must all differ. Got 'a' twice"):
        head.fit(X, Y, label_names=["a", "b", "a", "c"])
    with pytest.raises(ValueError, match="label_names must be strings or integers"):
        head.fit(X, Y, label_names=[0.5, 1, 2, 3])
    with pytest.raises(ValueError, match="validation has 2 labels, and y has 4"):
        head.fit(X, Y, validation=(TEST, TRUE[:, :2]))
    with pytest.raises(ValueError, match="validation must be a pair"):
        head.fit(X, Y, validation=TEST)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        head.fit(X, Y, validation=(TEST, TRUE[:-1]))
    with pytest.raises(ValueError, match="The validation set's y must hold 0 and 1"):
        head.fit(X, Y, validation=(TEST, TRUE * 3))
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        head.fit(X, Y, groups=[1, 2])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (MultilabelLogisticHead(class_weight={0: 1.0}), "class_weight must be None or 'balanced'"),
        (MultilabelLogisticHead(C=-1), "C must be"),
        (MultilabelMLPHead(class_weight="equal"), "class_weight must be None or 'balanced'"),
        (MultilabelMLPHead(label_smoothing=1), "label_smoothing must be"),
        (MultilabelMLPHead(hidden=256), "hidden must be"),
        (MultilabelRidgeHead(alpha=0), "alpha must be"),
        (MultilabelKNNHead(k=0), "k must be"),
    ],
)
def test_parameters_are_checked_in_fit(head: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head.fit(X, Y)


@pytest.mark.parametrize("value", [0, 1, -1e4])
def test_constant_features_give_each_label_its_share(head: Any, value: float) -> None:
    proba = head.fit(np.full((400, 3), value, np.float32), Y).predict_proba(np.full((4, 3), value, np.float32))
    assert (proba == proba[0]).all()
    if not isinstance(head, MultilabelKNNHead):  # all rows are equally near, and the first ones vote
        np.testing.assert_allclose(proba[0], Y.mean(axis=0), atol=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15])
@pytest.mark.parametrize("head", [MultilabelRidgeHead(), MultilabelKNNHead()], ids=["ridge", "knn"])
def test_features_of_any_size_give_probabilities(head: Any, scale: float) -> None:
    proba = head.fit((X * scale).astype(np.float32), Y).predict_proba((TEST * scale).astype(np.float32))
    assert ((proba >= 0) & (proba <= 1)).all()


def test_very_few_samples_give_a_head(head: Any) -> None:
    assert head.fit(X[:2], [[0, 1], [1, 0]]).predict_proba(TEST).shape == (500, 2)
    if "C" in head.get_params():
        assert head.set_params(C="auto").fit(X[:2], [[0, 1], [1, 0]]).C_source_.startswith("default: too few samples")


# ---- thresholds


@pytest.mark.rotates(3)
def test_thresholds_decide_what_is_predicted(head: Any) -> None:
    head.fit(X, Y)
    assert head.thresholds_.tolist() == [0.5] * 4
    proba = head.predict_proba(TEST)
    assert np.array_equal(head.predict(TEST), (proba > 0.5).astype(int))
    assert head.set_thresholds([0.1, 0.2, 0.8, 1.0]) is head
    assert np.array_equal(head.predict(TEST), (proba > [0.1, 0.2, 0.8, 1.0]).astype(int))
    assert head.choices()["thresholds"] == [0.1, 0.2, 0.8, 1.0]
    for wrong in ([0.5], [[0.5] * 4], [0.5, 0.5, 0.5, 1.5], [0.5, 0.5, 0.5, np.nan], [-0.1] * 4):
        with pytest.raises(ValueError, match="thresholds must"):
            head.set_thresholds(wrong)
    assert head.fit(X, Y).thresholds_.tolist() == [0.5] * 4


@pytest.mark.rotates(3)
def test_what_scikit_learn_makes_of_them(head: Any) -> None:
    assert [part.tolist() for part in head.fit(X, Y).classes_] == [[0, 1]] * 4
    assert head.score(TEST, TRUE) == (head.predict(TEST) == TRUE).all(axis=1).mean()
    found = cross_val_score(head, X, Y, scoring="average_precision", cv=3)
    assert (found > 0.7).all()
    assert set(head.choices()) > {"thresholds"}
    assert head.summary()


# ---- how it is computed


@pytest.mark.rotates(3)
def test_every_kind_of_array_gives_the_same_head(head: Any) -> None:
    expected = {kind: head.fit(X.astype(kind), Y).predict_proba(X.astype(kind)) for kind in ("float32", "float64")}
    kinds: list[tuple[Any, Any, str]] = [
        (X.astype(np.float16), Y.astype(bool), "float32"),
        (torch.tensor(X, dtype=torch.float32), torch.tensor(Y), "float32"),
        (RowView(np.vstack([X, X]).astype(np.float16), np.arange(400)), Y.astype(np.uint8), "float32"),
        (X.tolist(), Y.tolist(), "float64"),
        (X, Y.astype(np.float32), "float64"),
    ]
    for features, target, kind in kinds:
        proba = head.fit(features, target).predict_proba(features)
        assert proba.dtype == kind
        assert np.array_equal(proba, expected[kind])


@pytest.mark.rotates(3)
def test_features_of_a_file_give_the_same_head(head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = head.fit(X.astype(np.float32), Y).predict_proba(TEST.astype(np.float32))
    np.save(tmp_path / "features.npy", np.vstack([X, TEST]).astype(np.float32))
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(design, "IN_MEMORY_SHARE", 0.0)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    head.fit(RowView(stored, np.arange(400)), Y)
    np.testing.assert_allclose(head.predict_proba(RowView(stored, np.arange(400, 900))), expected, atol=2e-3)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_how_many_fits_go_in_step_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid: dict[str, Any] = {"C": [1e-2, 1e-1], "tol": 1e-12}
    expected = MultilabelLogisticHead(**grid).fit(X, Y)
    monkeypatch.setattr(path, "fits_at_once", lambda *_: at_once)
    head = MultilabelLogisticHead(**grid).fit(X, Y)
    np.testing.assert_allclose(head.coef_, expected.coef_, atol=2e-6)
    for one, other in zip(head.trials_, expected.trials_, strict=True):
        assert one["log_loss"] == pytest.approx(other["log_loss"], rel=1e-6)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("C", [0.1, [1e-2, 1e-1]])
def test_tensors_of_torch_find_the_same_optimum(C: Any) -> None:
    one, other = (MultilabelLogisticHead(C=C, tol=1e-12, device=name).fit(X, Y) for name in ("cpu", "cpu:0"))
    assert one.C_ == other.C_
    np.testing.assert_allclose(one.coef_, other.coef_, atol=1e-6)
    found = MultilabelKNNHead(device="cpu:0").fit(X, Y).predict_proba(TEST)
    np.testing.assert_allclose(found, MultilabelKNNHead().fit(X, Y).predict_proba(TEST), atol=1e-9)


EXACT_MLP = {"hidden": (8,), "dropout": 0.0, "max_epochs": 5, "validation_fraction": 0.01, "batch_size": 10_000}
WEIGHTED: dict[str, Any] = {
    "logistic": lambda: MultilabelLogisticHead(C=0.1, tol=1e-15),
    "balanced logistic": lambda: MultilabelLogisticHead(C=0.1, tol=1e-15, class_weight="balanced"),
    "logistic auto": lambda: MultilabelLogisticHead(C=[1e-3, 1e-2, 1e-1], tol=1e-15),
    "ridge": MultilabelRidgeHead,
    "ridge with alpha": lambda: MultilabelRidgeHead(alpha=1.0),
    "knn": lambda: MultilabelKNNHead(k=5),
    "mlp": lambda: MultilabelMLPHead(**EXACT_MLP),
    "balanced mlp": lambda: MultilabelMLPHead(**EXACT_MLP, class_weight="balanced"),
}


@pytest.mark.rotates(4)
@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6))
@pytest.mark.parametrize("kind", WEIGHTED)
def test_whole_weights_are_repeated_rows(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(DIGITS), 40, replace=False)
    features, target = DIGITS[chosen], LABELS[chosen]
    weight = rng.integers(0, 4, 40)
    copies = np.repeat(np.arange(40), weight)
    fold = np.arange(40) % 3
    one, other = WEIGHTED[kind](), WEIGHTED[kind]()
    if "cv" in one.get_params():
        one.set_params(cv=[(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(3)])
        other.set_params(cv=[(np.flatnonzero(fold[copies] != k), np.flatnonzero(fold[copies] == k)) for k in range(3)])
    one.fit(features, target, weight)
    other.fit(features[copies], target[copies], groups=copies)
    np.testing.assert_allclose(one.predict_proba(TEST), other.predict_proba(TEST), atol=2e-4)


@pytest.mark.rotates(3)
def test_groups_stay_in_one_fold() -> None:
    """Eight copies of each row, and noise for labels: what a row says of its copies would make C large."""
    noise = np.random.default_rng(0).integers(0, 2, (60, 3))
    copies = np.repeat(np.arange(60), 8)
    naive = MultilabelLogisticHead().fit(X[copies], noise[copies])
    grouped = MultilabelLogisticHead().fit(X[copies], noise[copies], groups=copies)
    assert grouped.C_ < naive.C_ / 100
    left = MultilabelRidgeHead().fit(X[copies], noise[copies], groups=copies)
    assert left.alpha_source_ == "leave-one-group-out"
    assert left.alpha_ > MultilabelRidgeHead().fit(X[copies], noise[copies]).alpha_
    one = MultilabelRidgeHead().fit(X[:60], noise, groups=np.zeros(60))
    assert one.alpha_source_ == "default: all samples are one group"


def test_strata_are_the_rarest_labels() -> None:
    found = label_strata(np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]], bool))
    assert found.tolist() == [1, 0, 0, 3, 1]  # the last label has one sample, which cannot be on both sides
    target = np.column_stack([np.arange(500) % 50 == 0, Y.repeat(2, axis=0)[:500]])
    for _, test in folds(label_strata(target > 0), n_folds=5, seed=0):
        assert target[test, 0].sum() == 2


@pytest.mark.rotates(3)
def test_a_head_of_many_labels_is_fitted_in_parts() -> None:
    target = np.random.default_rng(0).random((300, 200)) < np.linspace(0.004, 0.5, 200)
    head = MultilabelLogisticHead(C=0.01, tol=1e-9).fit(X[:300], target)
    assert head.coef_.shape == (200, 64)
    last = LogisticRegression(C=0.01, tol=1e-9, max_iter=2000).fit(X[:300], target[:, -1])
    np.testing.assert_allclose(head.coef_[-1], last.coef_[0], atol=1e-5)
