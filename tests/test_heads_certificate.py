"""`gap_`: how far a logistic head is from its optimum at most, against float64 optima found another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from precompute.heads import LogisticHead, load_head

Array = npt.NDArray[Any]
PROBLEMS = 50


def problem(number: int) -> tuple[Array, Array, Array | None, float]:
    """(X, y, sample weights or None, C) of one of 50 kinds: few or many rows, separable or not, weak or strong."""
    rng = np.random.default_rng(number)
    n, d = [(120, 8), (40, 60), (300, 20), (25, 5), (60, 200)][number % 5]
    classes = [2, 3, 5][number % 3]
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    X = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, d) + rng.normal(size=d) * [0, 5][number % 2]
    X += [0.0, 0.5, 4.0][number % 7 % 3] * rng.normal(size=(classes, d))[y]
    weight = rng.uniform(0.1, 3, n) if number % 4 == 0 else None
    return X.astype([np.float32, np.float64][number % 2]), y, weight, 10.0 ** rng.uniform(-4, 3)


def objective(parameters: Array, X: Array, onehot: Array, weight: Array, C: float) -> tuple[float, Array]:
    """scikit-learn's, with its gradient, for K logits a sample; both float64."""
    d = X.shape[1]
    theta = parameters.reshape(d + 1, -1)
    logits = X @ theta[:-1] + theta[-1]
    residual = C * weight[:, None] * (softmax(logits, axis=1) - onehot)
    value = np.sum(theta[:-1] ** 2) / 2 - C * np.sum(weight[:, None] * onehot * log_softmax(logits, axis=1))
    return value, np.concatenate([X.T @ residual + theta[:-1], residual.sum(axis=0)[None]]).ravel()


def theta_of(head: LogisticHead) -> Array:
    """(d + 1, K) float64, intercepts last; K = 1 for two classes."""
    return np.concatenate([head.coef_.T, head.intercept_[None]]).astype(np.float64)


def value_and_optimum(head: LogisticHead, X: Array, y: Array, weight: Array | None, C: float) -> tuple[float, float]:
    """The head's objective, and a lower one: where scipy's BFGS, from the head on, finds nothing more to gain."""
    X, weight = X.astype(np.float64), np.ones(len(y)) if weight is None else weight
    onehot = np.eye(len(head.classes_))[y]
    theta = theta_of(head)

    def function(parameters: Array) -> tuple[float, Array]:
        if theta.shape[1] > 1:
            return objective(parameters, X, onehot, weight, C)
        both = np.stack([np.zeros_like(parameters), parameters], axis=1)  # one logit z is the pair (0, z)
        value, gradient = objective(both.ravel(), X, onehot, weight, C)
        return value, gradient.reshape(both.shape)[:, 1]

    at_head = function(theta.ravel())[0]
    found = minimize(function, theta.ravel(), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 3000})
    return at_head, min(float(found.fun), at_head)


@pytest.mark.rotates(5)
@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.slow] * (number >= 5)) for number in range(PROBLEMS)]
)
@pytest.mark.daily(3)
def test_the_gap_is_never_too_small(number: int) -> None:
    X, y, weight, C = problem(number)
    for tol, steps in ((1e-6, 1000), (1e-2, 1000), (1e-9, 2)):
        head = LogisticHead(C=C, tol=tol, max_iter=steps).fit(X, y, weight)
        value, lowest = value_and_optimum(head, X, y, weight, C)
        assert head.objective_ == pytest.approx(value, rel=1e-9)
        assert head.gap_ is not None
        assert value - lowest <= head.gap_ + 1e-13 * value  # what rounding in `value` itself may be
        assert np.isfinite(head.gap_)


def test_the_gap_is_near_where_the_penalty_is_strong() -> None:
    X, y, _, _ = problem(0)
    rough = LogisticHead(C=1e-3, max_iter=1).fit(X, y)
    value, lowest = value_and_optimum(rough, X, y, None, 1e-3)
    assert rough.gap_ is not None
    assert value - lowest <= rough.gap_ <= 10 * (value - lowest)


def test_a_class_without_samples_does_not_hide_in_the_gap() -> None:
    """Its weight is 0 for all of its rows."""
    X, y, _, _ = problem(2)
    weight = np.where(y == 1, 0.0, 1.0)
    head = LogisticHead(C=1.0, tol=1e-9).fit(X, y, weight)
    assert head.gap_ is not None
    assert 0 <= head.gap_ <= 1e-3 * head.objective_


def test_a_head_of_an_earlier_release_does_not_know_its_gap() -> None:
    head = load_head(Path(__file__).parent / "golden" / "version1.safetensors").head
    assert head.choices()["gap"] is None
