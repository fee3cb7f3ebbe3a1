"""Splits: stratified, and never dividing a group."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.heads import folds, holdout

labels = st.lists(st.sampled_from("abcd"), min_size=1, max_size=40)
# Groups whose samples share a label, as byte-identical files in one folder do.
labelled_groups = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=25)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)


def expand(units):
    """Labels and groups of samples, one group per (label, size)."""
    y = [label for label, size in units for _ in range(size)]
    return np.array(y), np.repeat(np.arange(len(units)), [size for _, size in units])


@pytest.mark.rotates(3)
@settings(deadline=None)
@given(labelled_groups, fractions, seeds)
def test_holdout_has_each_label_with_two_groups_on_both_sides_and_parts_none(units, fraction, seed):
    y, groups = expand(units)
    counts = {label: sum(unit[0] == label for unit in units) for label in set(y)}
    if max(counts.values()) < 2:
        with pytest.raises(ValueError, match="nothing can be held out"):
            holdout(y, groups=groups, fraction=fraction, seed=seed)
        return
    train, test = holdout(y, groups=groups, fraction=fraction, seed=seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert not set(groups[train]) & set(groups[test])
    for label, count in counts.items():
        assert label in y[train]
        assert (label in y[test]) == (count >= 2)
        in_test = len({g for g in groups[test] if units[g][0] == label})
        assert abs(in_test - fraction * count) <= 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=40), seeds)
def test_groups_of_mixed_labels_stay_together_too(samples, seed):
    y, groups = np.array([label for label, _ in samples]), np.array([group for _, group in samples])
    for train, test in folds(y, groups=groups, n_folds=4, seed=seed):
        assert not set(groups[train]) & set(groups[test])
    try:
        train, test = holdout(y, groups=groups, fraction=0.3, seed=seed)
    except ValueError:
        return
    assert not set(groups[train]) & set(groups[test])
    assert len(train) and len(test)


@settings(deadline=None)
@given(labelled_groups, st.integers(2, 6), seeds)
def test_folds_cover_every_sample_once_and_train_on_every_label_that_has_two_groups(units, n_folds, seed):
    y, groups = expand(units)
    counts = sorted(sum(unit[0] == label for unit in units) for label in set(y))
    splits = folds(y, groups=groups, n_folds=n_folds, seed=seed)
    expected = min(n_folds, counts[-2]) if len(counts) > 1 else 0
    assert len(splits) == (expected if expected >= 2 else 0)
    if not splits:
        return
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(len(y)))
    sizes = [len(set(groups[test])) for _, test in splits]
    assert max(sizes) - min(sizes) <= 1
    for train, test in splits:
        assert sorted([*train, *test]) == list(range(len(y)))
        assert not set(groups[train]) & set(groups[test])
        for label in set(y):
            assert label in y[train] or sum(unit[0] == label for unit in units) == 1


@given(labels, fractions, seeds)
def test_the_same_seed_gives_the_same_split(y, fraction, seed):
    try:
        first = holdout(y, fraction=fraction, seed=seed)
    except ValueError:
        return
    second = holdout(y, groups=np.arange(len(y)), fraction=fraction, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seeds_differ_and_groups_may_be_digests():
    y = np.repeat(["a", "b"], 50)
    digests = np.array([f"{i:064x}".encode() for i in range(100)])
    tests = {tuple(holdout(y, groups=digests, fraction=0.2, seed=seed)[1]) for seed in range(5)}
    assert len(tests) == 5


def test_a_mixed_group_counts_for_its_most_frequent_label():
    y = np.array(["b", "a", "a", "b", "b", "b"])
    train, test = holdout(y, groups=[0, 0, 0, 1, 2, 3], fraction=0.34, seed=0)
    assert len(test) == 1  # one of the three groups of b; group 0 is the only one of a
    assert set(train) >= {0, 1, 2}


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        holdout(["a", "a"], fraction=fraction, seed=0)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="groups must have one entry per sample"):
        holdout(["a", "a"], groups=[1], fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="y must be a sequence of one label or more"):
        holdout([], fraction=0.5, seed=0)
