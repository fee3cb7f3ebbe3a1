"""What no head can learn from is reported; what is only odd gives a sensible head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris

from precompute.heads import CentroidHead, KNNHead, LogisticHead, MLPHead, RidgeHead, RowView

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])
HEADS = {
    "logistic": lambda: LogisticHead(C=1.0),
    "mlp": lambda: MLPHead(hidden=(8,), max_epochs=3),
    "knn": KNNHead,
    "ridge": RidgeHead,
    "mahalanobis": CentroidHead,
    "cosine": lambda: CentroidHead(metric="cosine"),
    "euclidean": lambda: CentroidHead(metric="euclidean"),
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Any:
    return HEADS[request.param]()


@pytest.fixture(params=["array", "view"])
def wrap(request: pytest.FixtureRequest) -> Any:
    return np.float32 if request.param == "array" else lambda rows: RowView(np.float32(rows))


def probabilities(head: Any, rows: Any) -> np.ndarray:
    proba: np.ndarray = head.predict_proba(rows)
    assert np.isfinite(proba).all()
    assert (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    return proba


def test_a_row_of_nan_is_refused(head: Any, wrap: Any) -> None:
    spoilt = np.where(np.arange(150)[:, None] == 77, np.nan, X)
    with pytest.raises(ValueError, match="contains NaN"):
        head.fit(wrap(spoilt), NAMES[Y])
    with pytest.raises(ValueError, match="contains NaN"):
        head.fit(wrap(X), NAMES[Y]).predict(wrap(spoilt))


def test_one_class_is_refused(head: Any, wrap: Any) -> None:
    with pytest.raises(ValueError, match="at least 2 classes. Got 1 class, 'setosa'. Add images of another class"):
        head.fit(wrap(X[:50]), NAMES[Y[:50]])


def test_zero_rows_are_refused(head: Any, wrap: Any) -> None:
    with pytest.raises(ValueError, match="0 sample"):
        head.fit(wrap(X[:0]), NAMES[Y[:0]])
    head.fit(wrap(X), NAMES[Y])
    with pytest.raises(ValueError, match="0 sample"):
        head.predict(wrap(X[:0]))
    with pytest.raises(ValueError, match="0 sample"):
        head.predict_proba(wrap(X[:0]))


def test_widths_that_do_not_match_are_refused(head: Any, wrap: Any) -> None:
    with pytest.raises(ValueError, match="3 features, but .* is expecting 4 features"):
        head.fit(wrap(X), NAMES[Y]).predict(wrap(X[:, :3]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        head.fit(wrap(X), NAMES[Y[:-1]])


def test_a_class_with_one_sample_is_known(head: Any, wrap: Any) -> None:
    rows = np.arange(101)  # 50, 50 and 1
    head.fit(wrap(X[rows]), NAMES[Y[rows]])
    assert probabilities(head, X).shape == (150, 3)
    assert set(head.predict(X)) <= set(NAMES)


def test_as_many_classes_as_samples(head: Any, wrap: Any) -> None:
    head.fit(wrap(np.eye(6)), list("abcdef"))
    assert probabilities(head, np.eye(6)).shape == (6, 6)
    if not isinstance(head, MLPHead):  # after three epochs
        assert head.predict(np.eye(6)).tolist() == list("abcdef")


@pytest.mark.parametrize("value", [0, 1, -1e4])
def test_constant_features_tell_nothing(head: Any, wrap: Any, value: float) -> None:
    """Every class is as likely for one row as for another."""
    head.fit(wrap(np.full((30, 3), value)), np.arange(30) % 2)
    proba = probabilities(head, np.full((4, 3), value))
    assert (proba == proba[0]).all()
    if not isinstance(head, MLPHead):
        np.testing.assert_allclose(proba, 0.5, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15])
def test_features_of_any_size_give_a_head(head: Any, scale: float) -> None:
    if isinstance(head, MLPHead | LogisticHead):
        pytest.skip("what L-BFGS and AdamW do with them is another matter")
    head.fit((X * scale).astype(np.float32), Y)
    assert (head.predict((X * scale).astype(np.float32)) == Y).mean() > (0.3 if isinstance(head, RidgeHead) else 0.9)
    probabilities(head, (X * scale).astype(np.float32))


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "head",
    [
        *(KNNHead(k=1), RidgeHead(alpha=1.0)),
        *(CentroidHead(metric=metric) for metric in ("mahalanobis", "cosine", "euclidean")),
    ],
)
def test_a_hundred_thousand_classes(head: Any) -> None:
    """Logistic and MLP heads take n times K values of memory a step, which are 40 GB here."""
    rows = np.random.default_rng(0).normal(size=(100_000, 8)).astype(np.float16)
    head.fit(rows, np.arange(100_000))
    chosen = rows[::10_000]
    assert probabilities(head, chosen).shape == (10, 100_000)
    if not isinstance(head, RidgeHead):  # eight numbers do not separate so many linearly
        assert head.predict(chosen).tolist() == list(range(0, 100_000, 10_000))
