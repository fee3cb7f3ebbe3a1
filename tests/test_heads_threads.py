"""The logistic head leaves cores to one pool of BLAS threads at a time, and puts their numbers back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import run_python
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
        def _choose(self, *given: Any) -> None:
            seen.append(threads())
            super()._choose(*given)

    X, y = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        Watched().fit(X, y)
        assert threads() == before
    assert [set(numbers.values()) for numbers in seen] == [{1}]


OVERLAP = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_info
from precompute.heads import LogisticHead
from precompute.heads.base.threads import FEW_OPERATIONS, one_pool

def threads():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

def first():
    with one_pool(0):
        first_in.set()
        assert second_in.wait(60)
    first_out.set()

def second():
    assert first_in.wait(60)
    with one_pool(0):
        second_in.set()
        assert first_out.wait(60)
        return threads()

before = threads()
for starter in (None, second):  # who is in this process' main thread
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(first), *([] if starter else [pool.submit(second)])]
        alone = second() if starter else running[1].result()
        running[0].result()
    assert set(alone.values()) == {1}, alone
    assert threads() == before, threads()
    for event in (first_in, second_in, first_out):
        event.clear()

with one_pool(0), one_pool(FEW_OPERATIONS):
    assert set(threads().values()) == {1}
assert threads() == before

rng = np.random.default_rng(0)
problems = [(rng.normal(size=(80, 6)), rng.integers(0, 3, 80)) for _ in range(12)]
alone = [LogisticHead(C=1.0).fit(X, y).coef_ for X, y in problems]
with ThreadPoolExecutor(4) as pool:
    for _ in range(3):
        together = list(pool.map(lambda given: LogisticHead(C=1.0).fit(*given).coef_, problems))
        assert threads() == before, threads()
        for found, expected in zip(together, alone):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
print("restored", before)
"""


@pytest.mark.slow
def test_uses_in_several_threads_share_one_thread_and_the_last_puts_the_numbers_back() -> None:
    """The one that began first ends first, while the other still wants one thread; then fits in four threads."""
    done = run_python(OVERLAP, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    assert done.stdout.startswith("restored"), done.stderr
