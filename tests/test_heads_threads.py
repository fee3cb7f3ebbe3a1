"""The logistic head leaves cores to one pool of BLAS threads at a time, and puts their numbers back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from precompute.heads import LogisticHead
from precompute.heads.base.threads import FEW_OPERATIONS, one_pool


def threads() -> dict[str, int]:
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_pool_at_a_time_has_threads() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert set(before.values()) == {2}
        with one_pool(FEW_OPERATIONS - 1):
            assert set(threads().values()) == {1}
        with one_pool(FEW_OPERATIONS):
            assert threads() == {path: 1 if "scipy.libs" in path else 2 for path in before}
        assert threads() == before
        with pytest.raises(KeyError), one_pool(0):
            raise KeyError
        assert threads() == before


def test_a_fit_keeps_to_it_and_puts_the_numbers_back() -> None:
    seen = []

    class Watched(LogisticHead):
        def _solve(self, *given: Any) -> Any:
            seen.append(threads())
            return super()._solve(*given)

    X, y = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        Watched().fit(X, y)
        assert threads() == before
    assert [set(numbers.values()) for numbers in seen] == [{1}]
