"""The kNN head votes as DINO's protocol does, whatever the blocks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from precompute.errors import DeviceError
from precompute.heads import KNNHead, RowView, load_head, save_head
from precompute.heads.base import arrays, rows
from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.unit import unit_rows
from precompute.heads.neighbours import knn_base, nearest
from precompute.heads.neighbours.nearest import Candidates, first_largest

DIGITS, LABELS = load_digits(return_X_y=True)
TORCH = "cpu:0"  # torch on the CPU: what runs on a GPU, where there is none


@pytest.fixture(params=["cpu", "resident", "sent"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device to compute on: with NumPy, with torch that holds the training rows, or that gets them in blocks."""
    if request.param == "cpu":
        return "cpu"
    monkeypatch.setattr(arrays._Torch, "free_bytes", lambda _: 0 if request.param == "sent" else 2**30)
    return TORCH


def neighbours(head: KNNHead, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and positions of the rows that vote, as a prediction finds them."""
    on = arrays_on(head.device, X.dtype, "KNNHead")
    return Candidates.on(on, head.features_, knn_base.AT_ONCE_BYTES // 2).nearest(X, head._n_nearest)


def set_block(monkeypatch: pytest.MonkeyPatch, n_rows: int, width: int) -> None:
    """Compare 40 rows of `width` float32 features with so many training rows at once, on every device."""
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * width * n_rows)
    monkeypatch.setattr(nearest, "DEVICE_BYTES", (3 * 4 + nearest.PAIR_BYTES) * 40 * n_rows)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60), st.floats(0.05, 5), st.integers(20, 200), st.integers(20, 300))
def test_it_votes_as_scikit_learns_neighbours_with_those_weights(k: int, t: float, queries: int, block: int) -> None:
    X, y = DIGITS[:250], LABELS[:250]
    expected = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / t)).fit(X, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_base, "QUERIES", queries)
        patch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
        proba = KNNHead(k=k, temperature=t).fit(X, y).predict_proba(DIGITS[250:400])
    np.testing.assert_allclose(proba, expected.predict_proba(DIGITS[250:400]), atol=2e-5)


@pytest.mark.rotates(3)
def test_of_equally_similar_rows_the_first_count_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    X = np.random.default_rng(0).integers(0, 2, size=(200, 3)).astype(np.float32)  # many are the same
    y = np.random.default_rng(1).integers(0, 4, 200)
    similar = unit_rows(X) @ unit_rows(X).T
    first = np.argsort(-similar, axis=1, kind="stable")[:, :9]
    for block in (1, 7, 64, 200):
        monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 3 * block)
        head = KNNHead(k=9, device=place).fit(X, y)
        similarity, found = neighbours(head, X)
        label = head.labels_[found]
        np.testing.assert_allclose(np.sort(similarity), np.sort(np.take_along_axis(similar, first, axis=1)), atol=1e-6)
        if block == 200 and place == "cpu":  # elsewhere sums of another order round equal similarities apart
            assert np.array_equal(np.sort(label), np.sort(y[first]))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("k", [1, 9, 100, 300])
@pytest.mark.parametrize("block", [1, 7, 150, 1000])
def test_of_exactly_equal_similarities_the_first_count_on_every_device(
    monkeypatch: pytest.MonkeyPatch, place: str, block: int, k: int
) -> None:
    """One or four entries of the same size: lengths are powers of two, and so are all products, in any order."""
    rng = np.random.default_rng(0)
    X = np.zeros((200, 6), np.float32)
    for row in X:
        row[rng.permutation(6)[: rng.choice([1, 4])]] = 2.0 ** rng.integers(-3, 4)
    similar = unit_rows(X) @ unit_rows(X).T
    first = np.sort(np.argsort(-similar, axis=1, kind="stable")[:, :k], axis=1)
    set_block(monkeypatch, block, 6)
    similarity, found = neighbours(KNNHead(k=k, device=place).fit(X, np.arange(200) % 3), X[:40])
    assert np.array_equal(found, first[:40])
    assert np.array_equal(similarity, np.take_along_axis(similar[:40], first[:40], axis=1))


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@given(st.integers(1, 6), st.integers(0, 99))
def test_the_first_largest(library: Any, k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 3, size=(5, 6)).astype(np.float32)
    expected = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :k], axis=1)
    assert np.array_equal(first_largest(library(values), k), expected)


def test_fewer_rows_than_k_all_vote_and_it_is_told() -> None:
    head = KNNHead(k=20).fit(DIGITS[:7], LABELS[:7] % 2)
    assert head.k_ == 7
    assert "k = 20, but there are only 7 training samples" in head.summary()
    assert np.array_equal(
        head.predict_proba(DIGITS), KNNHead(k=7).fit(DIGITS[:7], LABELS[:7] % 2).predict_proba(DIGITS)
    )
    assert "only" not in KNNHead().fit(DIGITS, LABELS).summary()


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e18, 1e37])
def test_length_does_not_matter(scale: float) -> None:
    X = DIGITS[:100].astype(np.float32)
    expected = KNNHead().fit(X, LABELS[:100]).predict_proba(X)
    found = KNNHead().fit((X * np.float32(scale)).astype(np.float32), LABELS[:100]).predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-3 if scale == 1e-40 else 1e-5)  # 1e-40 has few bits left


def test_a_row_of_zeros_is_as_similar_to_one_as_to_another() -> None:
    X = np.vstack([np.zeros((4, 3)), np.eye(3), -np.eye(3)])
    y = [0, 1, 0, 1, 0, 0, 0, 1, 1, 1]
    head = KNNHead(k=10).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(np.zeros((1, 3))), [[0.5, 0.5]])


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    DIGITS[:300].astype(np.float16).tofile(tmp_path / "features")
    return np.memmap(tmp_path / "features", np.float16, "r", shape=(300, 64))


def test_rows_of_a_file_stay_there_and_others_are_copied(mapped: np.memmap, tmp_path: Path) -> None:
    rows = np.arange(0, 300, 2)
    head = KNNHead().fit(RowView(mapped, rows), LABELS[rows])
    assert head.features_.mapped
    assert head.features_.features.base is mapped.base or np.shares_memory(head.features_.features, mapped)
    X = np.array(mapped[rows])
    copied = KNNHead().fit(X, LABELS[rows])
    X[:] = 0
    expected = copied.predict_proba(DIGITS)
    assert np.array_equal(head.predict_proba(DIGITS), expected)
    save_head(tmp_path / "head", head, metadata={})
    sent = pickle.loads(pickle.dumps(head))
    for other in (load_head(tmp_path / "head").head, sent):
        assert not other.features_.mapped
        assert other.features_.dtype == np.float16
        assert np.array_equal(other.predict_proba(DIGITS), expected)


@pytest.mark.rotates(4)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [3, pytest.param(20, marks=pytest.mark.slow), 500])
@pytest.mark.parametrize("dtype", [np.float16, pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
@pytest.mark.parametrize("place", ["resident", "sent"], indirect=True)
def test_a_device_gives_the_votes_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, dtype: Any, k: int, *, weighted: bool
) -> None:
    """Of rows of a file, in blocks, for rows of their dtype and of another."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 32)).astype(dtype), np.arange(400) % 5
    X.tofile(tmp_path / "features")
    view = RowView(np.memmap(tmp_path / "features", dtype, "r", shape=X.shape), np.arange(399, 0, -2))
    weight = rng.choice([0.0, 0.25, 1.0, 3.0], 200) if weighted else None
    head = KNNHead(k=k, class_weight="balanced").fit(view, y[view.rows], weight)
    for asked in (X[:90], X[:90].astype(np.float32), X[:90].astype(np.float64)):
        expected = head.set_params(device="cpu").predict_proba(asked)
        rounding = 1e-12 if asked.dtype == dtype == np.float64 else 1e-5
        for block in (13, 10_000):
            monkeypatch.setattr(knn_base, "QUERIES", 40)
            set_block(monkeypatch, block, 32)
            found = head.set_params(device=place).predict_proba(asked)
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, atol=rounding)
            assert np.array_equal(head.predict(asked), head.classes_[found.argmax(axis=1)])


def test_a_device_holds_training_rows_where_half_of_its_memory_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    X = DIGITS[:100].astype(np.float16)
    on = arrays_on(TORCH, np.dtype(np.float32), "KNNHead")
    monkeypatch.setattr(arrays._Torch, "free_bytes", lambda _: 2 * 4 * X.size)
    held = Candidates.on(on, RowView(X), 1).resident
    np.testing.assert_allclose(held, unit_rows(X.astype(np.float32)), rtol=1e-6)
    monkeypatch.setattr(arrays._Torch, "free_bytes", lambda _: 2 * 4 * X.size - 1)
    assert Candidates.on(on, RowView(X), 1).resident is None


@pytest.mark.parametrize("device", ["abacus", "cuda:127", 3.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(DeviceError, match="KNNHead cannot use the device"):
        KNNHead(device=device).fit(DIGITS, LABELS)
    with pytest.raises(DeviceError, match="KNNHead cannot use the device"):
        KNNHead().fit(DIGITS, LABELS).set_params(device=device).predict(DIGITS)


def test_a_head_keeps_nothing_on_its_device(tmp_path: Path) -> None:
    head = KNNHead(device=TORCH).fit(DIGITS[:300], LABELS[:300])
    expected = head.predict_proba(DIGITS)
    assert not any(isinstance(value, torch.Tensor) for value in vars(head).values())
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other.device == TORCH
        assert np.array_equal(other.predict_proba(DIGITS), expected)
    save_head(tmp_path / "head", head, metadata={})
    loaded = load_head(tmp_path / "head").head
    assert loaded.device == "cpu"
    np.testing.assert_allclose(loaded.predict_proba(DIGITS), expected, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e37])
def test_length_does_not_matter_on_a_device(scale: float) -> None:
    X = DIGITS[:100].astype(np.float32)
    head = KNNHead(device=TORCH).fit(X, LABELS[:100])
    found = head.predict_proba((X * np.float32(scale)).astype(np.float32))
    np.testing.assert_allclose(found, KNNHead().fit(X, LABELS[:100]).predict_proba(X), atol=1e-5)
    assert np.isfinite(head.predict_proba(np.zeros((1, 64)))).all()
