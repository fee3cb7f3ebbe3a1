"""The kNN head votes as DINO's protocol does, whatever the blocks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from precompute.heads import KNNHead, RowView, load_head, save_head
from precompute.heads.base import rows
from precompute.heads.neighbours import knn

DIGITS, LABELS = load_digits(return_X_y=True)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60), st.floats(0.05, 5), st.integers(20, 200), st.integers(20, 300))
def test_it_votes_as_scikit_learns_neighbours_with_those_weights(k: int, t: float, queries: int, block: int) -> None:
    X, y = DIGITS[:250], LABELS[:250]
    expected = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / t)).fit(X, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "QUERIES", queries)
        patch.setattr(rows, "BLOCK_BYTES", 4 * 64 * block)
        proba = KNNHead(k=k, temperature=t).fit(X, y).predict_proba(DIGITS[250:400])
    np.testing.assert_allclose(proba, expected.predict_proba(DIGITS[250:400]), atol=2e-5)


def test_of_equally_similar_rows_the_first_count_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).integers(0, 2, size=(200, 3)).astype(np.float32)  # many are the same
    y = np.random.default_rng(1).integers(0, 4, 200)
    similar = knn.unit_rows(X) @ knn.unit_rows(X).T
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :9]
    for block in (1, 7, 64, 200):
        monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 3 * block)
        head = KNNHead(k=9).fit(X, y)
        similarity, found = head._neighbours(X)
        label = head.labels_[found]
        np.testing.assert_allclose(
            np.sort(similarity), np.sort(np.take_along_axis(similar, nearest, axis=1)), atol=1e-6
        )
        if block == 200:  # elsewhere sums of another order round equal similarities apart
            assert np.array_equal(np.sort(label), np.sort(y[nearest]))


@given(st.integers(1, 6), st.integers(0, 99))
def test_the_first_largest(k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 3, size=(5, 6)).astype(np.float32)
    expected = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :k], axis=1)
    assert np.array_equal(knn._first_largest(values, k), expected)


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
