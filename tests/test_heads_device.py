"""The logistic head's solver on tensors of torch: the same heads as with NumPy. Folds share readings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from precompute.errors import DeviceError
from precompute.heads import LogisticHead, RowView
from precompute.heads.base.ahead import ahead
from precompute.heads.base.arrays import arrays_on
from precompute.heads.linear import design, objective
from precompute.heads.linear.metric import ClassMetric

TORCH = "cpu:0"  # tensors of torch without another device; tests/test_cuda.py has the one of CUDA
DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS = DIGITS.astype(np.float32)


def overlapping(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    return generator.normal(size=(n, d)) + 0.6 * generator.normal(size=(classes, d))[y], y


def assert_same(one: LogisticHead, other: LogisticHead, X: np.ndarray, *, atol: float = 2e-3) -> None:
    assert one.C_ == other.C_
    assert one.converged_
    assert other.converged_
    assert one.objective_ == pytest.approx(other.objective_, rel=2e-6)
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), atol=atol)


@pytest.mark.rotates(4)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "d", "classes"), [(400, 12, 2), (400, 12, 5), (40, 100, 2), (60, 200, 4)],
    ids=["binary", "many rows", "binary, few rows", "rows as features"],
)  # fmt: skip
def test_torch_finds_the_same_optimum(n: int, d: int, classes: int, dtype: Any) -> None:
    X, y = overlapping(n, d, classes)
    X = X.astype(dtype)
    weight = np.random.default_rng(1).integers(0, 3, n)
    for C in (1e-3, 1.0, 100.0):
        options: dict[str, Any] = {"C": C, "tol": 1e-9, "class_weight": "balanced"}
        one = LogisticHead(device=TORCH, **options).fit(X, y, weight)
        other = LogisticHead(**options).fit(X, y, weight)
        assert_same(one, other, X)
        assert one.coef_.dtype == other.coef_.dtype == dtype
        if C <= 1:  # near the optimum the certificate is a difference of nearly equal numbers
            assert one.gap_ < 1e-4 * one.objective_


@pytest.mark.slow
def test_torch_chooses_the_same_C() -> None:
    rows = np.random.default_rng(0).permutation(len(LABELS))[:250]
    heads = [LogisticHead(device=device).fit(DIGITS[rows], LABELS[rows]) for device in (TORCH, "cpu")]
    assert_same(*heads, DIGITS)
    one, other = ([trial["log_loss"] for trial in head.trials_] for head in heads)
    np.testing.assert_allclose(one, other, rtol=5e-3)


def test_torch_makes_class_metrics_in_a_long_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of = ClassMetric.of.__func__  # type: ignore[attr-defined]

    def seen(cls: type, *given: Any) -> Any:
        made.append(given)
        return of(cls, *given)

    monkeypatch.setattr(ClassMetric, "of", classmethod(seen))
    X, y = overlapping(2000, 20, 6)
    heads = []
    for device in (TORCH, "cpu"):
        heads.append(LogisticHead(C=1e3, tol=1e-9, device=device).fit(X.astype(np.float32), y))
        assert made
        made.clear()
    assert_same(*heads, X)


@pytest.mark.rotates(6)
@pytest.mark.parametrize("device", [TORCH, "cpu"])
def test_what_memory_does_not_hold_is_read_again(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = overlapping(500, 16, 3)
    X.astype(np.float16).tofile(tmp_path / "features")
    view = RowView(np.memmap(tmp_path / "features", np.float16, "r", shape=X.shape))
    held = LogisticHead(C=[0.1, 10.0], tol=1e-9, device=device).fit(view, y)
    monkeypatch.setattr(design, "IN_MEMORY_SHARE", 0)
    monkeypatch.setattr(design, "LEAST_ROWS", 64)
    monkeypatch.setattr(type(arrays_on(device, np.dtype(np.float32), "")), "block_bytes", 1)
    streamed = LogisticHead(C=[0.1, 10.0], tol=1e-9, device=device).fit(view, y)
    assert_same(held, streamed, view[:].astype(np.float32))
    monkeypatch.setattr(objective, "LOGITS_SHARE", 0)
    assert_same(held, LogisticHead(C=[0.1, 10.0], tol=1e-9, device=device).fit(view, y), view[:].astype(np.float32))


@pytest.mark.parametrize("device", ["abacus", "cuda:127", 3.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(DeviceError, match="LogisticHead cannot use the device"):
        LogisticHead(device=device).fit(DIGITS, LABELS)


class Counted(RowView):
    """A view that counts the readings of its rows."""

    readings = 0

    def blocks(self, n_rows: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        self.readings += 1
        return super().blocks(n_rows)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("stored", [True, False], ids=["logits are stored", "logits are computed again"])
def test_folds_share_each_reading_of_the_features(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "IN_MEMORY_SHARE", 0)
    monkeypatch.setattr(objective, "MANY_OUTPUTS", 1 if stored else 10**9)
    X, y = overlapping(600, 10, 4)
    of_one, of_five = Counted(X.astype(np.float32)), Counted(X.astype(np.float32))
    rows = np.arange(len(y))
    fold = [(rows[rows % 5 > 0], rows[rows % 5 == 0])]
    LogisticHead(C=[1.0], cv=fold).fit(of_one, y)
    head = LogisticHead(C=[1.0], cv=5, random_state=0).fit(of_five, y)
    assert head.trials_[0]["n_iter"] > 5 * 4
    assert of_five.readings < 1.5 * of_one.readings


@pytest.mark.rotates(3)
def test_folds_that_memory_does_not_hold_together_are_fitted_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = overlapping(600, 10, 4)
    together = LogisticHead(C=[0.1, 10.0], tol=1e-9).fit(X, y)
    two = 2.5 * 2 * 8 * len(y) * 4 / arrays_on("cpu", np.dtype(np.float64), "").free_bytes()
    monkeypatch.setattr(objective, "LOGITS_SHARE", two)
    assert_same(together, LogisticHead(C=[0.1, 10.0], tol=1e-9).fit(X, y), X)


def test_what_is_read_ahead_comes_in_order_and_no_further_than_one() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    found = []
    for number in ahead(numbers()):
        found.append(number)
        assert len(made) <= number + 2
    assert found == list(range(10))
    assert list(ahead([])) == []


def test_an_error_while_reading_ahead_reaches_who_reads() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    coming = ahead(broken())
    assert next(coming) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(coming)


def test_no_thread_stays_where_reading_ahead_is_given_up() -> None:
    before = threading.active_count()
    for number in ahead(range(10)):
        if number == 3:
            break
    coming = ahead(range(10))
    next(coming)
    coming.close()
    assert threading.active_count() == before
