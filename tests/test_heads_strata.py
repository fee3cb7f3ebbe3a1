"""The bootstrap by strata draws from the distribution of the one that draws each observation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.heads import evaluate, paired
from precompute.heads.scoring import scores as scores_module
from precompute.heads.scoring.bootstrap import LARGE
from precompute.heads.scoring.metrics import Outcomes
from precompute.heads.scoring.strata import RUNS, _kinds, _runs, auc_interval, placements

REPLICATES = 4000  # the ends of an interval then move by about a fortieth of its width


def predictions(seed: int, n: int, k: int, *, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels of every class, few of the first ones, and probabilities that know of them; rounded ones tie often."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    true = rng.permutation(np.append(np.arange(k), rng.choice(k, n - k, p=share)))
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[true]
    proba = np.exp(logits.round(0) if rounded else logits)
    return true, proba / proba.sum(axis=1, keepdims=True)


def groupings(n: int) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(9)
    pairs = np.arange(n)
    pairs[: n // 10] = np.arange(n // 10) // 2  # some images are there twice, as in most data sets
    return {"alone": None, "copies": pairs, "groups": rng.integers(0, n // 4, n)}


@pytest.mark.rotates(4)
@pytest.mark.parametrize("k", [2, 7])
@pytest.mark.parametrize("grouping", ["alone", "copies", "groups"])
@pytest.mark.parametrize("rounded", [False, True])
def test_intervals_are_those_of_drawing_each_observation(
    k: int, grouping: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, proba = predictions(k, 1500, k, rounded=rounded)
    options = {"groups": groupings(1500)[grouping], "replicates": REPLICATES}
    each = evaluate(true, proba, range(k), **options)
    assert set(each.intervals) >= {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "auc"}
    for module in ("scores", "calibration"):
        monkeypatch.setattr(f"precompute.heads.scoring.{module}.LARGE", 1)
    monkeypatch.setattr(scores_module, "AUC_LINEAR_FROM", 1)
    for name in ("RUNS", "LEAST_RUNS"):  # samples alone then share strata, and groups do not
        monkeypatch.setattr(f"precompute.heads.scoring.strata.{name}", 60)
    strata = evaluate(true, proba, range(k), **{**options, "seed": 1})
    assert set(strata.intervals) == set(each.intervals)
    for name, ends in each.intervals.items():
        assert strata.intervals[name] == pytest.approx(ends, abs=0.08 * (ends[1] - ends[0])), name
    assert strata.calibration_error_by_chance == pytest.approx(each.calibration_error_by_chance, rel=0.05)
    assert strata.to_dict() == evaluate(true, proba, range(k), **{**options, "seed": 1}).to_dict()


@pytest.mark.parametrize("grouping", ["alone", "groups"])
def test_the_interval_of_a_difference_is_that_of_drawing_each_pair(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3000)) < [[0.8], [0.75]]
    groups = groupings(3000)[grouping]
    each = paired(a, b, groups=groups)
    monkeypatch.setattr("precompute.heads.scoring.paired.LARGE", 1)
    strata = paired(a, b, groups=groups)
    assert strata.interval == pytest.approx(each.interval, abs=0.1 * (each.interval[1] - each.interval[0]))
    assert paired(a, a).interval == (0, 0)
    assert paired(~a & False, a | True).interval == (-1, -1)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_kinds_are_groups_with_the_same_cells(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 3, n)
    group = np.unique(rng.integers(0, n, n), return_inverse=True)[1]
    kind, cells = _kinds(cell, group)
    counts = np.array([np.bincount(cell[group == g], minlength=cell.max() + 1) for g in range(group.max() + 1)])
    assert np.array_equal(cells.toarray()[kind], counts)
    assert cells.shape[0] == len(np.unique(counts, axis=0))


@given(n=st.integers(1, 60), kinds=st.integers(1, 3), runs=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_runs_hold_one_kind_and_close_values(n: int, kinds: int, runs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind, value = rng.integers(0, kinds, n), rng.exponential(size=n).round(1)
    strata = _runs(kind, value, runs)
    assert strata.sizes.sum() == n
    assert (strata.sizes > 0).all()
    for stratum in range(len(strata.sizes)):
        members = np.flatnonzero(strata.of == stratum)
        assert len(set(kind[members].tolist())) == 1
        of_kind = value[kind == kind[members[0]]]
        assert len(members) <= -(-len(of_kind) // runs)
        assert np.ptp(value[members]) <= np.ptp(of_kind) / runs + 1e-12


@pytest.mark.parametrize("tail", [1, 3])
def test_what_is_lost_inside_strata_is_below_a_ten_thousandth_of_the_variance(tail: int) -> None:
    loss = np.random.default_rng(0).exponential(size=LARGE) ** tail  # most of the variance in few samples
    strata = _runs(np.zeros(LARGE, np.intp), loss, RUNS)
    assert ((loss - strata.means(loss)[strata.of]) ** 2).mean() < 1e-4 * loss.var()


@settings(deadline=None)
@given(positives=st.integers(1, 20), negatives=st.integers(1, 20), levels=st.integers(1, 30), seed=st.integers(0, 99))
def test_placements_are_shares_of_pairs_in_the_right_order(
    positives: int, negatives: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.arange(positives + negatives) < positives)
    score = rng.integers(0, levels, len(own)) / levels
    right = (score[own][:, None] > score[~own]) + (score[own][:, None] == score[~own]) / 2
    found = placements(score, own)
    np.testing.assert_allclose(found[own], right.mean(axis=1))
    np.testing.assert_allclose(found[~own], right.mean(axis=0))


@pytest.mark.parametrize("limit", ["HELD", "AUC_MEANS"])
def test_memory_bounds_change_the_work_and_not_the_interval(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true, proba = predictions(5, 3000, 4)
    outcomes, alone = Outcomes(true, proba), np.arange(3000)
    free = auc_interval(outcomes, alone)
    assert free is not None
    monkeypatch.setattr(f"precompute.heads.scoring.strata.{limit}", {"HELD": 0, "AUC_MEANS": 16 * 60}[limit])
    bound = auc_interval(outcomes, alone)
    assert bound == pytest.approx(free, abs=(1e-6 if limit == "HELD" else 0.15 * (free[1] - free[0])))
    monkeypatch.setattr("precompute.heads.scoring.strata.AUC_MEANS", 15)
    assert auc_interval(outcomes, alone) is None


@pytest.mark.slow
def test_two_hundred_thousand_samples_have_all_intervals_as_wide_as_theory_says() -> None:
    n, k = 200_000, 10
    true, proba = predictions(6, n, k)
    scores = evaluate(true, proba.astype(np.float32), range(k))
    assert set(scores.intervals) == {"accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "log_loss", "auc"}
    loss = -np.log(proba[np.arange(n), true])
    for name, deviation in {"accuracy": (proba.argmax(axis=1) == true).std(), "log_loss": loss.std()}.items():
        low, high = scores.intervals[name]
        assert high - low == pytest.approx(2 * 1.96 * deviation / np.sqrt(n), rel=0.15)
        assert low < getattr(scores, name) < high
    low, high = scores.intervals["auc"]
    assert low < scores.auc < high
    assert high - low < 0.01
    assert not scores.undefined
