"""Rows of features that are read as they are asked for, and do not stay in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import resident_kib
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from precompute.heads import (
    CentroidHead,
    KNNHead,
    LogisticHead,
    MLPHead,
    MultilabelKNNHead,
    MultilabelRidgeHead,
    RidgeHead,
    RowView,
)
from precompute.heads.base import rows
from precompute.heads.linear import ridge_base, spectrum
from precompute.heads.neighbours import centroid, knn_base

X = np.random.default_rng(0).normal(size=(60, 2, 3)).astype(np.float16)
Y = np.arange(60) % 3


@given(
    rows=st.none() | arrays.arrays(np.intp, st.integers(0, 80), elements=st.integers(0, 59)),
    n_rows=st.integers(1, 70),
)
def test_a_view_is_the_rows_of_the_array(rows: np.ndarray | None, n_rows: int) -> None:
    expected = X.reshape(60, 6) if rows is None else X.reshape(60, 6)[rows]
    view = RowView(X, rows)
    assert view.shape == expected.shape
    assert np.array_equal(view[:], expected)
    assert np.array_equal(view.take(np.arange(len(view))[::-2])[:], expected[::-2])
    blocks = list(view.blocks(n_rows))
    assert all(block.dtype == np.float32 for _, block in blocks)
    assert [place.start for place, _ in blocks] == list(range(0, len(expected), n_rows))
    for place, block in blocks:
        assert np.array_equal(block, expected[place])


@given(chosen=arrays.arrays(np.intp, st.integers(0, 20), elements=st.integers(0, 29)))
def test_rows_of_a_view_are_memory_of_their_own(chosen: np.ndarray) -> None:
    source = X.copy()
    view = RowView(source, np.arange(30, 60))
    found = view[chosen]
    found[:] = 7
    assert np.array_equal(source, X)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("shuffled", [False, True])
def test_pages_of_a_mapped_file_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> None:
    size, limit = 128 * 2**20, 16 * 2**20
    with open(tmp_path / "features", "wb") as file:
        for _ in range(size // 2**20):
            file.write(b"\1" * 2**20)
    monkeypatch.setattr(rows, "MAPPED_BYTES", limit)
    mapped = np.memmap(tmp_path / "features", np.float16, "r", shape=(size // 4096, 2048))
    order = np.random.default_rng(0).permutation(len(mapped)) if shuffled else None
    view, before, most = RowView(mapped, order), resident_kib(), 0
    for _ in view.blocks(1024):
        most = max(most, resident_kib() - before)
    assert most < 4 * limit // 1024
    assert view[:1].any()  # and they come back


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    "head",
    [KNNHead(), RidgeHead(), RidgeHead(alpha=1.0), CentroidHead(), MultilabelKNNHead(), MultilabelRidgeHead()],
    ids=["knn", "ridge", "ridge with alpha", "centroid", "knn of labels", "ridge of labels"],
)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Any) -> None:
    """With blocks of 1 MiB, fitting on 32 MiB and predicting a few rows takes a small part of that."""
    shape = (2**17, 128)
    rng = np.random.default_rng(0)
    with open(tmp_path / "features", "wb") as file:
        for _ in range(16):
            file.write(rng.normal(size=(shape[0] // 16, shape[1])).astype(np.float16).tobytes())
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(spectrum, "BLOCK_VALUES", 2**17)
    monkeypatch.setattr(ridge_base, "BLOCK_VALUES", 2**17)
    for module in (ridge_base, centroid):
        monkeypatch.setattr(module, "MOST_SCORES", 2**14)
    view = RowView(np.memmap(tmp_path / "features", np.float16, "r", shape=shape))
    label = np.arange(shape[0], dtype=np.int32) % 3
    if hasattr(head, "set_thresholds"):
        label = label[:, None] == np.arange(3)
    tracemalloc.start()
    try:
        head.fit(view, label).predict_proba(view.take(np.arange(32)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20  # of which labels, weights and their like take 8 bytes a row each


@pytest.mark.rotates(4)
@pytest.mark.parametrize("dtype", [np.float16, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [4, 16, 64, 1024])
def test_the_memory_of_neighbours_is_bounded_at_any_width(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: Any
) -> None:
    """As many training rows and rows to classify as took 6 GiB at a width of 16: similarities of 1024 rows to 2^18.

    With a sixteenth of the budget, so that a small problem is a large one.
    """
    budget = knn_base.AT_ONCE_BYTES // 16
    monkeypatch.setattr(knn_base, "AT_ONCE_BYTES", budget)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**20)
    n_rows = max(4096, 2**16 // width)
    training = np.random.default_rng(0).integers(-3, 4, size=(n_rows, width)).astype(dtype)  # with many of equal rank
    label = np.arange(n_rows) % 7
    asked = RowView(np.tile(training, (3, 1))[: 2 * knn_base.QUERIES])
    for head in (KNNHead(), KNNHead(k=300), KNNHead(class_weight="balanced")):
        weight = None if head.k == 20 else np.full(n_rows, 0.5)
        head.fit(training, label, weight)
        held = asked.shape[0] * 7 * 8 + 2**20
        tracemalloc.start()
        try:
            head.predict_proba(asked)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < held + budget + 12 * 2**20  # of training rows a block of float32, and float64 copies of it


@pytest.mark.rotates(3)
@pytest.mark.parametrize("k", [20, 300])
def test_the_memory_of_neighbours_is_bounded_with_many_labels(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    budget = knn_base.AT_ONCE_BYTES // 16
    monkeypatch.setattr(knn_base, "AT_ONCE_BYTES", budget)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**20)
    rng = np.random.default_rng(0)
    training, target = rng.normal(size=(4096, 16)).astype(np.float16), rng.random((4096, 500)) < 0.1
    head = MultilabelKNNHead(k=k).fit(training, target)
    tracemalloc.start()
    try:
        head.predict_proba(np.tile(training, (2, 1))[:5000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5000 * 500 * 4 + budget + 32 * 2**20  # the result, and targets of the neighbours of some rows


def test_what_would_be_lost_is_not_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.zeros((64, 2048), np.float16).tofile(tmp_path / "features")
    monkeypatch.setattr(rows, "MAPPED_BYTES", 4096)
    private = np.memmap(tmp_path / "features", np.float16, "c", shape=(64, 2048))
    private[:] = 1
    assert all((block == 1).all() for _ in range(2) for _, block in RowView(private).blocks(4))


@pytest.mark.parametrize(
    "head",
    [LogisticHead(C=1.0), MLPHead(hidden=(8,), max_epochs=3), KNNHead(), RidgeHead(), CentroidHead()],
    ids=["logistic", "mlp", "knn", "ridge", "centroid"],
)
def test_heads_take_a_view_as_they_take_an_array(head: Any) -> None:
    rows = np.random.default_rng(1).permutation(60)[:50]
    expected = head.fit(X[rows].reshape(50, -1), Y[rows]).predict_proba(X.reshape(60, -1))
    found = head.fit(RowView(X, rows), Y[rows]).predict_proba(RowView(X))
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="features"):
        head.predict_proba(RowView(X[:, :1]))
    with pytest.raises(ValueError, match="0 sample"):
        head.predict_proba(RowView(X, []))
    with pytest.raises(ValueError, match="inconsistent"):
        head.fit(RowView(X), Y[:-1])
    with pytest.raises(ValueError, match="NaN"):
        head.fit(RowView(np.full_like(X, np.nan)), Y)
