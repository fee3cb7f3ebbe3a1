"""Two classifiers on the same samples: McNemar's exact test and the paired bootstrap."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from precompute.heads import paired

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.rotates(3)
@given(flags)
def test_mcnemar_is_the_exact_binomial_test_of_discordant_pairs(pairs):
    a, b = np.array(pairs).T
    found = paired(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert (found.only_a, found.only_b) == (only_a, only_b)
    fewer = binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)  # the textbook's: twice the smaller tail
    assert found.p_value == pytest.approx(min(1.0, 2 * fewer))
    assert found.accuracies == (a.mean(), b.mean())
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.interval[0] <= found.interval[1]
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


@pytest.mark.rotates(3)
@given(flags)
def test_the_order_of_the_two_turns_the_sign(pairs):
    a, b = np.array(pairs).T
    one, other = paired(a, b), paired(b, a)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx([-end for end in other.interval[::-1]])
    assert one.distinct == other.distinct


def test_a_classifier_equals_itself():
    right = np.random.default_rng(0).random(200) < 0.8
    found = paired(right, right)
    assert (found.difference, found.interval, found.p_value, found.distinct) == (0, (0, 0), 1, False)


def test_pairs_tell_more_than_two_intervals_do():
    """10 of 400 apart: far inside either accuracy's own interval, and yet no chance where all ten fall to one side."""
    a, b = np.ones(400, dtype=bool), np.ones(400, dtype=bool)
    a[:40] = b[:50] = False
    found = paired(a, b)
    assert found.difference == pytest.approx(0.025)
    assert found.distinct
    b[10:50] = True
    b[350:380] = False  # the same accuracies, but 30 and 40 discordant pairs
    a[:40], b[:10] = False, False
    assert not paired(a, b).distinct


@pytest.mark.rotates(3)
def test_chance_is_taken_for_a_difference_once_in_20_times_at_most():
    rng = np.random.default_rng(0)
    alarms = sum(paired(*(rng.random((2, 120)) < 0.8), seed=None).distinct for _ in range(200))
    assert alarms <= 0.08 * 200  # three standard deviations above 5% are 9.6%


def test_copies_count_once_where_they_are_groups():
    a, b = np.array([True] * 4 + [False, True]), np.array([False] * 4 + [True, True])
    assert paired(a, b).only_a == 4
    found = paired(a, b, groups=[0, 0, 0, 0, 1, 2])
    assert (found.only_a, found.only_b, found.p_value) == (1, 1, 1)


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_shapes_are_checked(a, b):
    with pytest.raises(ValueError, match="Both must have shape"):
        paired(a, b)
