"""Which images of a source stand for all of them: as many of each class as its share, the same ones every time."""

from __future__ import annotations

import os

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import TrainingError, UsageError
from precompute.sources.base import Source, Table
from precompute.training.columns import Values, find_target
from precompute.training.targets import CLASSES, Rows, Target, check_target

TRAIN = 1  # in `Table.splits`
LEAST = 2  # of each class: one to learn from and one to be scored


def target_of(source: Source, task: str, separator: str | None) -> Target:
    """What the labels of `source` request, in the order of its rows. Raises UsageError for labels that are not so."""
    table = source.table
    classes = tuple(os.fsdecode(name) for name in table.classes)
    values = Values(classes, table.labels, table.ids, numbers=False, path=source.name, origin="the source")
    return find_target(values, task, separator)[0]


def training_rows(source: Source, target: Target) -> Rows:
    """The labelled rows of split train; all labelled ones of a source without splits. Never any of val or test.

    Raises TrainingError where there are none, or where there is nothing to learn.
    """
    splits = source.table.splits
    in_train = splits == (TRAIN if splits.any() else 0)
    rows: Rows = np.flatnonzero(in_train & target.known)
    if not len(rows):
        where = " in split train" if splits.any() else ""
        raise TrainingError(
            f"{source.name} has no labelled images{where}.",
            hint="Put the images into one folder for each class (photos/cats, photos/dogs), or name --label-column.",
        )
    check_target(target, {"train": rows}, source.name)
    return rows


def sample_rows(source: Source, target: Target, n: int, seed: int) -> Rows:
    """Up to `n` of `training_rows`, ascending, stratified by `Target.strata`, with LEAST of each class that has them.

    Within a stratum those whose ids hash lowest under `seed` are taken: so they depend on ids and seed alone, and more
    images add to fewer. Raises UsageError where `n` holds no LEAST of each class, and what `training_rows` raises.
    """
    rows = training_rows(source, target)
    if n >= len(rows):
        return rows
    strata: Rows = np.unique(target.strata(rows), return_inverse=True)[1]
    sizes = np.bincount(strata)
    least = np.minimum(sizes, LEAST)
    if n < least.sum():
        what = "classes" if target.task == CLASSES else "strata"
        raise UsageError(
            f"{n:,} images cannot hold {LEAST} of each of the {len(sizes):,} {what} of {source.name}.",
            hint=f"Use at least {least.sum():,}: -n {least.sum()}",
        )
    quota = least + shares(sizes - least, n - int(least.sum()))
    rank = _ranks(hashed(source.table, rows, seed), strata)
    found: Rows = rows[rank < quota[strata]]
    return found


def shares(sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """`n` divided in proportion to `sizes`, as whole numbers (the largest remainders get what rounding leaves)."""
    exact = sizes * (n / max(1, sizes.sum()))
    found: Rows = np.minimum(np.floor(exact).astype(np.int64), sizes)
    left = n - int(found.sum())
    order = np.argsort(found - exact, kind="stable")
    found[order[:left]] += 1
    return found


def hashed(table: Table, rows: Rows, seed: int) -> NDArray[np.uint64]:
    """(n,) one number for each id, the same in any listing."""
    ids = table.ids[rows].tolist()
    return np.array([xxhash.xxh3_64_intdigest(name, seed=seed) for name in ids], dtype=np.uint64)


def _ranks(keys: NDArray[np.uint64], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the place of each by its key among those of its stratum."""
    order = np.lexsort((keys, strata))
    counts = np.bincount(strata)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - first[strata[order]]
    return rank
