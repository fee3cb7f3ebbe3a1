"""Heads of numbers: the mean of neighbours, and a network, in the units of y."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from precompute.heads import KNNRegressionHead, MLPRegressionHead, RidgeRegressionHead, RowView, load_head, save_head
from precompute.heads.persistence.export import to_sklearn

X, Y = load_diabetes(return_X_y=True)
TRAIN, TEST = np.arange(300), np.arange(300, 442)
HEADS: dict[str, Any] = {
    "ridge": RidgeRegressionHead,
    "knn": KNNRegressionHead,
    "mlp": lambda: MLPRegressionHead(hidden=(16,), max_epochs=5),
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Any:
    return HEADS[request.param]()


@given(st.integers(1, 60), st.floats(0.05, 5), st.booleans())
@settings(deadline=None, max_examples=25)
def test_the_mean_of_neighbours_is_scikit_learns(k: int, t: float, weighted: bool) -> None:
    expected = KNeighborsRegressor(k, metric="cosine", weights=lambda distance: np.exp(-distance / t))
    expected.fit(X[TRAIN], Y[TRAIN])
    weight = np.ones(len(TRAIN)) if weighted else None
    found = KNNRegressionHead(k=k, temperature=t).fit(X[TRAIN], Y[TRAIN], weight).predict(X[TEST])
    np.testing.assert_allclose(found, expected.predict(X[TEST]), rtol=1e-6)
    assert found.dtype == np.float64


def test_tensors_of_torch_find_the_same_neighbours() -> None:
    one, other = (KNNRegressionHead(device=name).fit(X[TRAIN], Y[TRAIN]).predict(X[TEST]) for name in ("cpu", "cpu:0"))
    np.testing.assert_allclose(one, other)


@pytest.mark.rotates(3)
def test_a_network_without_hidden_layers_comes_to_least_squares() -> None:
    head = MLPRegressionHead(
        hidden=(), dropout=0.0, weight_decay=0.0, batch_size=400, learning_rate=0.05, max_epochs=4000, patience=4000,
        schedule="constant", validation_fraction=0.001,
    ).fit(X[TRAIN], Y[TRAIN])  # fmt: skip
    expected = LinearRegression().fit(X[TRAIN], Y[TRAIN])
    np.testing.assert_allclose(head.predict(X[TEST]), expected.predict(X[TEST]), atol=1.0)
    last = head.history_[-1]
    residual = Y[TRAIN] - head.predict(X[TRAIN])
    assert head.history_[head.best_epoch_ - 1]["train_loss"] * Y[TRAIN].var() == pytest.approx(
        (residual**2).mean(), 1e-5
    )
    assert head.history_[head.best_epoch_ - 1]["train_absolute_error"] == pytest.approx(abs(residual).mean(), 1e-5)
    assert last["validation_loss"] is None
    assert head.validation_source_.startswith("none")


@pytest.mark.rotates(3)
def test_the_network_is_about_as_good_as_scikit_learns() -> None:
    head = MLPRegressionHead(hidden=(32,)).fit(X[TRAIN], Y[TRAIN])
    other = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(32,), max_iter=5000, early_stopping=True, random_state=0)
    )
    assert head.score(X[TEST], Y[TEST]) > other.fit(X[TRAIN], Y[TRAIN]).score(X[TEST], Y[TEST]) - 0.05
    assert head.score(X[TEST], Y[TEST]) > 0.35
    assert head.validation_source_ == "held out"


@pytest.mark.rotates(3)
def test_it_stops_on_the_validation_set_in_the_units_of_y() -> None:
    head = MLPRegressionHead(hidden=(16,), patience=5).fit(X[TRAIN], Y[TRAIN], validation=(X[TEST], Y[TEST]))
    assert head.used_validation()
    best = head.history_[head.best_epoch_ - 1]
    residual = Y[TEST] - head.predict(X[TEST])
    assert best["validation_absolute_error"] == pytest.approx(abs(residual).mean(), 1e-5)
    assert best["validation_loss"] == pytest.approx((residual**2).mean() / Y[TRAIN].var(), 1e-5)
    assert best["validation_loss"] == min(epoch["validation_loss"] for epoch in head.history_)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, -1e8), (1.0, 1e5)])
def test_the_units_of_y_do_not_matter(head: Any, scale: float, shift: float) -> None:
    head.set_params(**({"alpha": 1.0} if "alpha" in head.get_params() else {}))
    plain = head.fit(X[TRAIN], Y[TRAIN]).predict(X[TEST])
    other = head.fit(X[TRAIN], scale * Y[TRAIN] + shift).predict(X[TEST])
    np.testing.assert_allclose((other - shift) / scale, plain, rtol=1e-3)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1e9), (1.0, -1e10), (20.0, 1950.0), (1e-12, 0.0), (1e30, 0.0)])
def test_features_of_float32_predict_numbers_that_are_large_and_differ_by_little(
    head: Any, scale: float, shift: float, tmp_path: Path
) -> None:
    """As well as their standardised form; also from a file, and as scikit-learn's model."""
    few, y = X.astype(np.float32), (Y - Y.mean()) / Y.std()
    expected = r2_score(y[TEST], head.fit(few[TRAIN], y[TRAIN]).predict(few[TEST]))
    numbers = scale * y + shift
    head.fit(few[TRAIN], numbers[TRAIN])
    save_head(tmp_path / "head.safetensors", head, metadata={})
    for one in (head, load_head(tmp_path / "head.safetensors").head):
        assert r2_score(numbers[TEST], one.predict(few[TEST])) == pytest.approx(expected, abs=0.01)
    if isinstance(head, RidgeRegressionHead):
        assert r2_score(numbers[TEST], to_sklearn(head).predict(few[TEST])) == pytest.approx(expected, abs=0.01)


def test_targets_that_are_all_the_same_are_predicted(head: Any) -> None:
    for value in (0.0, 1e7 + 0.1, -3e-9):
        found = head.fit(X[TRAIN], np.full(len(TRAIN), value)).predict(X[TEST])
        np.testing.assert_allclose(found, value, atol=0.5 if isinstance(head, MLPRegressionHead) else 1e-6)


def test_y_is_checked(head: Any) -> None:
    with pytest.raises(ValueError, match="y contains NaN"):
        head.fit(X, np.where(np.arange(442) == 3, np.nan, Y))
    with pytest.raises(ValueError, match="y contains infinity"):
        head.fit(X, np.where(np.arange(442) == 3, np.inf, Y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        head.fit(X, Y[:-1])
    with pytest.raises(ValueError, match="needs at least 2 samples. Got 1 sample. Add images"):
        head.fit(X[:1], Y[:1])
    with pytest.raises(ValueError, match="1 sample with a weight above 0"):
        head.fit(X, Y, np.arange(442) == 1)
    with pytest.raises(ValueError, match="target y is None"):
        head.fit(X, None)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        head.fit(X, Y, validation=(X[:3], Y[:2]))
    with pytest.raises(ValueError, match="validation must be a pair"):
        head.fit(X, Y, validation=X)
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        head.fit(X, Y, groups=[1])
    if not isinstance(head, RidgeRegressionHead):
        with pytest.raises(ValueError, match=r"y should be a 1d array|\(n,\)"):
            head.fit(X, np.stack([Y, Y], axis=1))
        with pytest.raises(ValueError, match=r"y must hold numbers of at most 1e\+38. Got -1e\+39"):
            head.fit(X, np.where(np.arange(442) == 3, -1e39, Y))


def test_a_view_is_taken_as_an_array_is(head: Any) -> None:
    rows = np.random.default_rng(1).permutation(442)[:200]
    stored = X.astype(np.float16)
    expected = head.fit(stored[rows], Y[rows]).predict(stored)
    assert np.array_equal(head.fit(RowView(stored, rows), Y[rows]).predict(RowView(stored)), expected)
    assert head.summary()
    assert not head.used_validation()
    assert head.choices()
    assert len(cross_val_score(head, X, Y, cv=3)) == 3


WEIGHTED: dict[str, Any] = {
    "knn": lambda: KNNRegressionHead(k=5),
    "mlp": lambda: MLPRegressionHead(
        hidden=(8,), dropout=0.0, max_epochs=5, validation_fraction=0.01, batch_size=10_000
    ),
    "ridge": RidgeRegressionHead,
}


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
@pytest.mark.parametrize("kind", WEIGHTED)
def test_whole_weights_are_repeated_rows(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen, weight = rng.choice(442, 40, replace=False), rng.integers(0, 4, 40)
    copies = np.repeat(np.arange(40), weight)
    one = WEIGHTED[kind]().fit(X[chosen], Y[chosen], weight)
    other = WEIGHTED[kind]().fit(X[chosen][copies], Y[chosen][copies], groups=copies)
    np.testing.assert_allclose(one.predict(X[TEST]), other.predict(X[TEST]), rtol=1e-3)


def test_ridge_is_scikit_learns() -> None:
    head = RidgeRegressionHead(alpha=0.1).fit(X[TRAIN], Y[TRAIN])
    np.testing.assert_allclose(head.predict(X[TEST]), Ridge(alpha=0.1).fit(X[TRAIN], Y[TRAIN]).predict(X[TEST]))
