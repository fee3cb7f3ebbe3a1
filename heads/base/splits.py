"""Splits that are stratified by label and never divide a group.

A group is a set of samples that must stay together, such as files with the same bytes: one of them in the training
part and another in the test part would make the scores a memory test.

scikit-learn's StratifiedGroupKFold keeps the same promise with a Python loop over groups: 3 s for 20,000 of them,
minutes for a million. Here every group becomes one unit with one label, and units are split, which is vectorised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.inputs import check_number

if TYPE_CHECKING:
    import numpy.typing as npt

    Index = npt.NDArray[np.intp]

__all__ = ["check_cv", "folds", "given_splits", "groups_of_splits", "held_out", "holdout"]


def holdout(
    y: npt.ArrayLike, *, groups: npt.ArrayLike | None = None, fraction: float, seed: int | None
) -> tuple[Index, Index]:
    """One stratified split into a training and a test part.

    `y` (n,) holds the labels, `groups` (n,) what must stay together (None: every sample for itself). Each label sends
    `fraction` of its groups to the test part, rounded, but at least one to each part if it has two or more; a label
    with a single group stays in the training part. A group whose samples carry different labels counts for its most
    frequent one. Returns two sorted index arrays that together hold every sample once.

    Raises ValueError where `fraction` is not between 0 and 1, where the lengths differ, and where no label has two
    groups, so that nothing could be tested.
    """
    in_test = held_out(y, groups=groups, fraction=fraction, seed=seed)
    if not in_test.any():
        raise ValueError("No label has two groups, so nothing can be held out. Add samples, or give a test set.")
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def held_out(
    y: npt.ArrayLike, *, groups: npt.ArrayLike | None, fraction: float, seed: int | None
) -> npt.NDArray[np.bool_]:
    """Whether `holdout` puts each sample (n,) into the test part; all False where no label has two groups."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, both excluded. Got {fraction!r} instead.")
    unit_of_sample, unit_label = _units(y, groups)
    rank, size = _shuffled_ranks(unit_label, seed)
    n_test = np.clip(np.rint(fraction * size), 1, size - 1)  # size 1 gives 0: that label cannot be on both sides
    in_test: npt.NDArray[np.bool_] = (rank < n_test)[unit_of_sample]
    return in_test


def folds(
    y: npt.ArrayLike, *, groups: npt.ArrayLike | None = None, n_folds: int, seed: int | None
) -> list[tuple[Index, Index]]:
    """`n_folds` stratified (train, test) splits whose test parts together hold every sample once.

    Arguments as for `holdout`. The groups of each label are dealt to the folds in turn, so a label with two groups or
    more is in every training part. There are fewer folds, possibly none (an empty list), where the second most common
    label has fewer than `n_folds` groups: every training part needs two labels.
    """
    unit_of_sample, unit_label = _units(y, groups)
    rank, _ = _shuffled_ranks(unit_label, seed)
    groups_per_label = np.sort(np.bincount(unit_label))
    n_folds = min(n_folds, int(groups_per_label[-2])) if len(groups_per_label) > 1 else 0
    if n_folds < 2:
        return []
    # Each label starts one fold after where the label before it ended, so that the folds have the same size.
    start = np.cumsum(np.bincount(unit_label)) - np.bincount(unit_label)
    fold = ((start[unit_label] + rank) % n_folds)[unit_of_sample]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def _units(y: npt.ArrayLike, groups: npt.ArrayLike | None) -> tuple[Index, Index]:
    """The unit (group) of each sample, and the label index of each unit."""
    labels, label = np.unique(np.asarray(y), return_inverse=True)
    if label.ndim != 1 or len(label) == 0:
        raise ValueError(f"y must be a sequence of one label or more. Got shape {label.shape} instead.")
    if groups is None:
        return np.arange(len(label)), label
    names = np.asarray(groups)
    if names.shape != label.shape:
        raise ValueError(f"groups must have one entry per sample, {label.shape}. Got shape {names.shape} instead.")
    unit = np.unique(names, return_inverse=True)[1]
    pair, count = np.unique(unit * len(labels) + label, return_counts=True)
    pair = pair[np.argsort(count, kind="stable")]
    unit_label = np.empty(unit.max() + 1, dtype=np.intp)
    unit_label[pair // len(labels)] = pair % len(labels)  # the last write stands: the most frequent label of the unit
    return unit, unit_label


def _shuffled_ranks(unit_label: Index, seed: int | None) -> tuple[Index, Index]:
    """The rank of each unit among those of its label in random order, and how many there are, both per unit."""
    order = np.random.default_rng(seed).permutation(len(unit_label))
    order = order[np.argsort(unit_label[order], kind="stable")]
    count = np.bincount(unit_label)
    first = np.cumsum(count) - count
    rank = np.empty_like(unit_label)
    rank[order] = np.arange(len(order)) - first[unit_label[order]]
    return rank, count[unit_label]


def check_cv(value: Any, *, default: Any) -> None:
    """Raise ValueError unless `cv` is a sequence of splits, or what `default` is: a number of folds, or None.

    Splits are pairs (train, test) of positions, as scikit-learn's splitters give them.
    """
    if value is None and default is None:
        return
    if isinstance(value, str) or not isinstance(value, Sequence):
        if default is None:
            raise ValueError(f"cv must be None or a list of (train, test) positions. Got {value!r} instead.")
        check_number("cv", value, whole=True, low=2)
        return
    if not value:
        raise ValueError("cv must have at least one split. Got none.")
    for split in value:
        parts = [np.asarray(part) for part in split] if isinstance(split, Sequence) and len(split) == 2 else []
        if not parts or not all(part.ndim == 1 and len(part) and part.dtype.kind in "iu" for part in parts):
            raise ValueError("every split in cv must be a pair (train, test) of positions, none of them empty.")


def given_splits(cv: Any, rows: Index, n_rows: int) -> list[tuple[Index, Index]]:
    """The splits `cv` of `n_rows` samples as positions in `rows` (m,), ascending: the samples that are fitted on.

    Raises ValueError for a position that is no sample's, for one in both parts, and where a part has none of `rows`.
    """
    place = np.full(n_rows, -1)
    place[rows] = np.arange(len(rows))
    found = []
    for number, split in enumerate(cv):
        train, test = (np.unique(np.asarray(part)) for part in split)
        if min(train[0], test[0]) < 0 or max(train[-1], test[-1]) >= n_rows or len(np.intersect1d(train, test)):
            raise ValueError(f"Split {number} of cv must have positions from 0 to {n_rows - 1}, each in one part only.")
        train, test = (part[part >= 0] for part in (place[train], place[test]))
        if not len(train) or not len(test):
            raise ValueError(f"Split {number} of cv has no sample with a weight above 0 to train on, or to test on.")
        found.append((train, test))
    return found


def groups_of_splits(cv: Any, rows: Index, n_rows: int) -> Index:
    """Which split of `cv` tests each of `rows` (m,), where every split leaves out its test part and no other sample.

    Raises ValueError as `given_splits` does, and for splits that are not of that kind.
    """
    splits = given_splits(cv, rows, n_rows)
    tested = np.concatenate([test for _, test in splits])
    whole = len(tested) == len(np.unique(tested)) == len(rows)
    if len(splits) < 2 or not whole or any(len(train) + len(test) != len(rows) for train, test in splits):
        raise ValueError("cv must test every sample in one split, and train that split on all others.")
    group = np.empty(len(rows), np.intp)
    for number, (_, test) in enumerate(splits):
        group[test] = number
    return group
