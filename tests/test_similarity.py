"""The search for near-duplicates finds the pairs of a brute-force float64 search, in blocks of any shape."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.heads import RowView
from precompute.training import similarity
from precompute.training.similarity import margin, nearest, rounding

BAR = 0.9


def cosines(scored: np.ndarray, train: np.ndarray) -> np.ndarray:
    """All of them, (n, m), with sums of the widest floating-point type there is: the oracle."""
    scored, train = scored.astype(np.longdouble), train.astype(np.longdouble)
    mean = train.mean(axis=0)
    units = []
    for rows in (scored - mean, train - mean):
        length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        units.append(rows / np.where(length > 0, length, 1))
    return np.array([(row * units[1]).sum(axis=1) for row in units[0]], dtype=np.float64)


def check(scored: np.ndarray, train: np.ndarray, bar: float = BAR) -> int:
    """`nearest` finds what the oracle finds, at this least similarity and at none; how many reach it."""
    # A float64 mean holds large offsets no better than this, in parts of what is left when it is subtracted.
    values = train.astype(np.float64)
    tie = rounding(train.shape[1]) + 4 * np.finfo(np.float64).eps * abs(values).max() / (values.std() or math.inf)
    all_pairs = cosines(scored, train)
    best, first = all_pairs.max(axis=1), (all_pairs >= all_pairs.max(axis=1, keepdims=True) - tie).argmax(axis=1)
    for least in (-math.inf, bar):
        found, which = nearest(RowView(scored), RowView(train), least)
        reached = best >= least
        assert np.array_equal(found > -math.inf, reached)
        np.testing.assert_allclose(found[reached], best[reached], rtol=0, atol=tie)
        assert np.array_equal(which[reached], first[reached])
    return int((best >= bar).sum())


@pytest.fixture(params=[(2048, 2**28, 2048), (7, 2**28, 2048), (5, 4 * 64 * 11, 10)], ids=["one", "blocks", "holds"])
def shapes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in one block; blocks of 7 rows; blocks of 5, 11 rows held where they have 64 features, sums of 10."""
    for name, value in zip(("BLOCK", "HOLD_BYTES", "PART"), request.param, strict=True):
        monkeypatch.setattr(similarity, name, value)


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("offset", [0, 3, 1e6])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_planted_copies_are_found_among_features_with_any_offset(dtype: type, offset: float) -> None:
    if dtype is np.float16 and offset > 1e4:
        offset = 1e3  # float16 ends at 65,504
    rng = np.random.default_rng(0)
    scale = 100 if offset > 10 else 1  # so that rounding to the dtype leaves something
    train = (offset + scale * rng.normal(size=(53, 64))).astype(dtype)
    scored = (offset + scale * rng.normal(size=(38, 64))).astype(dtype)
    noise = rng.normal(size=(12, 64)) * np.linspace(0, 0.7, 12)[:, None]  # cosines from 1 to about 0.8
    scored[3:38:3] = (train[4:52:4] + scale * noise).astype(dtype)
    assert 5 <= check(scored, train) <= 12


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("away", [1e-6, 1e-9, 1e-12])
def test_a_cosine_close_to_the_least_one_falls_on_its_side_of_it(away: float) -> None:
    """Rows made with a cosine just above and just below 0.9, in float64, to 20 training rows."""
    rng = np.random.default_rng(1)
    train = rng.normal(size=(60, 64))
    mean, wanted, scored = train.mean(axis=0), np.tile([BAR + away, BAR - away], 20), []
    for row, cosine in zip(train[:40] - mean, wanted, strict=True):
        along = row / np.linalg.norm(row)
        across = rng.normal(size=64)
        across -= across @ along * along
        scored.append(mean + 3 * (cosine * along + math.sqrt(1 - cosine**2) * across / np.linalg.norm(across)))
    assert away > 10 * rounding(64)
    best, which = nearest(RowView(np.array(scored)), RowView(train), BAR)
    assert np.array_equal(best > -math.inf, wanted > BAR)
    assert np.array_equal(which[::2], np.arange(0, 40, 2))
    assert check(np.array(scored), train) == 20


@pytest.mark.usefixtures("shapes")
def test_of_training_rows_that_are_the_same_the_first_is_named() -> None:
    rng = np.random.default_rng(2)
    few = rng.normal(size=(9, 64)).astype(np.float32)
    train = few[rng.integers(0, 9, 70)]
    assert check(few, train, 1.0) == len(np.unique(train, axis=0))


@pytest.mark.usefixtures("shapes")
def test_rows_of_nothing_but_copies_of_few() -> None:
    """Features that collapsed: every pair is a candidate, and all are computed in float64."""
    rng = np.random.default_rng(3)
    few = rng.normal(size=(2, 64))
    scored, train = (few[rng.integers(0, 2, n)] * (1 + 1e-5 * rng.random((n, 1))) for n in (40, 50))
    best, which = nearest(RowView(scored.astype(np.float32)), RowView(train.astype(np.float32)), BAR)
    exact = cosines(scored.astype(np.float32), train.astype(np.float32))
    np.testing.assert_allclose(best, exact.max(axis=1), atol=rounding(64))
    np.testing.assert_allclose(exact[np.arange(40), which], exact.max(axis=1), atol=2 * rounding(64))


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_rows_and_rows_that_are_no_numbers(dtype: type) -> None:
    rng = np.random.default_rng(4)
    constant = np.full((30, 64), 0.1, dtype)
    best, which = nearest(RowView(constant[:12]), RowView(constant))
    assert not best.any() and not which.any()
    assert (nearest(RowView(constant[:12]), RowView(constant), BAR)[0] == -math.inf).all()

    train, scored = rng.normal(size=(40, 64)).astype(dtype), rng.normal(size=(20, 64)).astype(dtype)
    scored[5] = 0.5  # all of its features the same
    scored[6] = train[7]
    want = nearest(RowView(scored), RowView(train))
    at = [0, 3, 6, 12, 12]  # before these training rows
    broken = np.insert(train, at, [[math.nan], [math.inf], [-math.inf], [math.nan], [math.nan]], axis=0)
    best, which = nearest(RowView(np.insert(scored, [2, 9], math.nan, axis=0)), RowView(broken))
    assert np.flatnonzero(best == -math.inf).tolist() == [2, 10]
    kept = np.delete(np.arange(22), [2, 10])
    np.testing.assert_allclose(best[kept], want[0], atol=1e-12)
    assert np.array_equal(np.flatnonzero(np.isfinite(broken).all(axis=1))[want[1]], which[kept])
    assert (nearest(RowView(scored), RowView(np.full((3, 64), math.nan)))[0] == -math.inf).all()


@pytest.mark.rotates(3)
@settings(deadline=None)
@given(
    n=st.integers(1, 25),
    m=st.integers(1, 25),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    block=st.integers(1, 9),
    held=st.integers(1, 9),
    part=st.integers(1, 50),
)
def test_blocks_of_any_shape_give_the_same(n: int, m: int, d: int, seed: int, block: int, held: int, part: int) -> None:
    rng = np.random.default_rng(seed)
    scored, train = (rng.normal(2, 1, (rows, d)).astype(np.float32) for rows in (n, m))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BLOCK", block), ("HOLD_BYTES", 4 * d * held), ("PART", part)):
            patch.setattr(similarity, name, value)
        check(scored, train, 0.5)


@given(d=st.integers(1, 6000), seed=st.integers(0, 2**32), scale=st.sampled_from([1e-30, 1.0, 1e30]))
@settings(deadline=None, max_examples=30)
def test_float32_products_are_within_the_margin(d: int, seed: int, scale: float) -> None:
    """The filter loses nothing: also where all terms have one sign, and errors add up."""
    rng = np.random.default_rng(seed)
    rows = similarity.unit_rows(scale * rng.exponential(size=(6, d)))
    single = rows.astype(np.float32)
    assert abs(similarity._products(single, single) - rows @ rows.T).max() < margin(d) / 2


def test_rows_of_a_file_are_read_in_blocks_and_progress_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    features = np.memmap(tmp_path / "features", np.float32, "w+", shape=(5000, 12))
    features[:] = rng.normal(size=features.shape)
    rows, reports = rng.permutation(5000), []
    scored, train = RowView(features, rows[:300]), RowView(features, rows[200:])
    found = nearest(scored, train, progress=lambda done, total: reports.append((done, total)))
    want = nearest(RowView(np.array(features[rows[:300]])), RowView(np.array(features[rows[200:]])))
    assert np.array_equal(found, want)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len(reports) >= 3
    assert reports[-1] == (300, 300)
