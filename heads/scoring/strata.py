"""The bootstrap of many observations: how often each stratum is drawn, instead of each observation.

A replicate draws as many of G observations as there are, with replacement. How many of them fall into each of S strata
is a multinomial draw (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 2.3), which takes S
binomial numbers, and not G integers. What is lost is which members of a stratum were drawn. So there are three schemes:

- Scores that only count (accuracy, balanced accuracy, macro F1, top-5 accuracy, a difference of accuracies): a stratum
  is all observations with the same counts. Its members do not differ, so the distribution is that of `resamplings`.
- Log loss: a stratum is a run of observations of one size with about the same loss, and each counts with their mean.
  That averages over what is lost, so the variance is smaller by that inside strata: less than 1 part in 10,000, with
  4,096 runs of equal length that are divided by 4,096 steps of equal width.
- AUC depends on pairs. It is taken to first order in how often each sample was drawn: the mean placement value of the
  drawn positives among all negatives, plus that of the drawn negatives among all positives, less the AUC (the
  structural components of DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988). What that leaves out has a standard
  deviation of at most 1 / (2 sqrt(positives x negatives)) in the AUC of a class. Strata are runs of observations that
  hold the same number of samples of each class and move the score by about the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from precompute.heads.base.progress import report
from precompute.heads.scoring.bootstrap import BLOCK, REPLICATES, gathered, percentiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from precompute.heads.scoring.metrics import Outcomes

    Index = npt.NDArray[np.intp]
    Values = npt.NDArray[np.float64]
    Score = Callable[[Values], dict[str, Values]]

__all__ = ["auc_interval", "cell_intervals", "mean_interval", "mean_replicates", "placements"]

QUICKER = 12  # integers drawn in the time of a binomial number; with fewer observations a stratum, integers are drawn
RUNS = 4096  # in which the observations of one kind are divided by their value, by length and by width
LEAST_RUNS = 256  # of each kind, where there are many kinds
AUC_MEANS = 2**26  # strata x classes whose mean placement values are held, 256 MB
HELD = 2**28  # bytes of placement values that are kept between their two uses; more are computed twice


@dataclass(frozen=True)
class Strata:
    """of: (G,) stratum of each observation · sizes: (S,) observations in each."""

    of: Index
    sizes: npt.NDArray[np.int64]

    def means(self, values: npt.NDArray[Any]) -> Values:
        """(S,) mean of `values` (G,) in each stratum."""
        found: Values = np.bincount(self.of, weights=values, minlength=len(self.sizes)) / self.sizes
        return found

    def draws(self, replicates: int, seed: int | None) -> Iterator[Values]:
        """Blocks (b, S) of how often each stratum was drawn, `replicates` rows in all."""
        rng, total, n = np.random.default_rng(seed), len(self.of), len(self.sizes)
        one_by_one = n * QUICKER > total
        at_once = max(1, BLOCK // (total if one_by_one else n))
        for start in range(0, replicates, at_once):
            report("draws of the bootstrap", start, replicates)
            size = min(at_once, replicates - start)
            if one_by_one:
                drawn = self.of[rng.integers(0, total, (size, total))] + n * np.arange(size)[:, None]
                counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
            else:
                counts = rng.multinomial(total, self.sizes / total, size=size)
            yield counts.astype(np.float64)
        report("draws of the bootstrap", replicates, replicates)


def cell_intervals(
    score: Score, cell: Index, group: Index, *, replicates: int = REPLICATES, seed: int | None = 0
) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of scores that only count how many samples fall into each cell: exact.

    cell, group: (n,) of each sample, 0, 1, ... · score: takes weights of the cells (n_cells, b) and gives (b,) for each
    name.
    """
    kind, cells = _kinds(cell, group)
    strata = Strata(kind, np.bincount(kind))
    return percentiles(score((draws @ cells).T) for draws in strata.draws(replicates, seed))


def mean_interval(
    values: Values, group: Index, *, replicates: int = REPLICATES, seed: int | None = 0
) -> tuple[float, float]:
    """The 95% percentile interval of the mean of `values` (n,), from strata of groups with about the same sum."""
    return percentiles(_mean_replicates(values, group, replicates, seed))[""]


def mean_replicates(values: Values, group: Index, *, replicates: int = REPLICATES, seed: int | None = 0) -> Values:
    """The replicates (replicates,) that `mean_interval` has the percentiles of."""
    return gathered(_mean_replicates(values, group, replicates, seed))[""]


def _mean_replicates(values: Values, group: Index, replicates: int, seed: int | None) -> Iterator[dict[str, Values]]:
    total, size = _sums(group, values), np.bincount(group)
    strata = _runs(size, total, RUNS)
    sums, sizes = strata.means(total), strata.means(size)
    for draws in strata.draws(replicates, seed):
        yield {"": draws @ sums / (draws @ sizes)}


def auc_interval(
    outcomes: Outcomes, group: Index, *, replicates: int = REPLICATES, seed: int | None = 0
) -> tuple[float, float] | None:
    """The 95% percentile interval of the AUC, to first order; every class has samples. None where it takes too much.

    That is where groups have so many different numbers of samples of each class that their mean placement values would
    not fit into AUC_MEANS.
    """
    of = outcomes.ranked
    kind, classes = _kinds(outcomes.true, group)
    room = AUC_MEANS // (len(of) * classes.shape[0])
    if not room:
        return None
    areas, moves = np.empty(len(of)), np.zeros(len(group))
    columns = _Placements(outcomes)
    for at, (own, values) in enumerate(columns):
        areas[at] = values[own].mean(dtype=np.float64)
        moves += (values - areas[at]) / np.where(own, own.sum(), (~own).sum())
    runs = min(max(RUNS // classes.shape[0], LEAST_RUNS), max(1, room // 2))
    strata = _runs(kind, _sums(group, moves), runs)
    stratum = strata.of[group]
    below = np.empty((len(strata.sizes), len(of)), np.float32)  # of one observation, as a mean: sums less the area
    above, positives = np.zeros(len(group)), np.zeros(len(group))
    for at, (own, values) in enumerate(columns):
        moved = values - areas[at]
        below[:, at] = np.bincount(stratum, weights=np.where(own, 0, moved)) / strata.sizes
        above[own], positives[own] = moved[own], 1
    column = np.searchsorted(of, outcomes.true).clip(max=len(of) - 1)
    above_, positive_ = (
        csr_array((values / strata.sizes[stratum], (stratum, column)), shape=below.shape)
        for values in (above, positives)
    )
    sizes = strata.means(np.bincount(group))

    def score(draws: Values) -> Values:
        positive = draws @ positive_
        negative = (draws @ sizes)[:, None] - positive
        defined = (positive > 0.5) & (negative > 0.5)
        moved = draws @ above_ / np.where(defined, positive, 1)
        moved += draws.astype(np.float32) @ below / np.where(defined, negative, 1)
        with np.errstate(invalid="ignore"):
            mean: Values = np.where(defined, (areas + moved).clip(0, 1), 0).sum(axis=1) / defined.sum(axis=1)
        return mean

    return percentiles({"": score(draws)} for draws in strata.draws(replicates, seed)).get("")


class _Placements:
    """For each ranked class: which samples are its own, (n,) bool, and the placement value of each, (n,).

    That is the share of the other side that a sample is on the right side of: for the samples of the class the share of
    the others that it scores higher than, for the others the share of the class that scores higher. Ties count half.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self.held: list[npt.NDArray[np.float32]] = []

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]]:
        of, n = self.outcomes.ranked, len(self.outcomes.true)
        for at, c in enumerate(of.tolist()):
            own = self.outcomes.true == c
            if at < len(self.held):
                yield own, self.held[at]
                continue
            values = placements(self.outcomes.proba[:, c], own)
            if 4 * n * len(of) <= HELD:
                self.held.append(values.astype(np.float32))
            yield own, values


def placements(score: npt.NDArray[Any], own: npt.NDArray[np.bool_]) -> Values:
    """(n,) placement values of samples with `score` (n,), of which `own` (n,) are the positives; see `_Placements`."""
    order = np.argsort(score)
    ordered = score[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(score))  # of each run of equal scores
    starts = np.append(0, ends[:-1])
    up_to = np.append(0, np.cumsum(own[order]))
    positives = (up_to[starts] + up_to[ends]) / 2  # before the middle of the run
    negatives = (starts + ends) / 2 - positives
    many, length = up_to[-1], ends - starts
    found = np.empty(len(score))
    found[order] = np.where(
        own[order],
        np.repeat(negatives / max(1, len(score) - many), length),
        np.repeat(1 - positives / max(1, many), length),
    )
    return found


def _kinds(cell: Index, group: Index) -> tuple[Index, csr_array]:
    """(G,) the kind of each group, and (n_kinds, n_cells) how many samples of a group of each kind are in each cell."""
    order = np.lexsort((cell, group))
    size = np.bincount(group)
    start = np.cumsum(size) - size
    kind, n_kinds = np.empty(len(size), np.intp), 0
    rows, columns = [], []
    for length in np.unique(size).tolist():
        of = np.flatnonzero(size == length)
        members = cell[order[start[of][:, None] + np.arange(length)]]
        if length == 1:
            found, inverse = np.unique(members.ravel(), return_inverse=True)
        else:
            found, inverse = np.unique(members, axis=0, return_inverse=True)
        kind[of] = n_kinds + inverse.ravel()
        rows.append(np.repeat(np.arange(n_kinds, n_kinds + len(found)), length))
        columns.append(found.ravel())
        n_kinds += len(found)
    at = np.concatenate(rows), np.concatenate(columns)
    return kind, csr_array((np.ones(len(at[0])), at), shape=(n_kinds, int(cell.max()) + 1))


def _sums(group: Index, values: Values) -> Values:
    """(G,) the sum of `values` (n,) in each group."""
    return np.asarray(np.bincount(group, weights=values), np.float64)


def _runs(kind: Index, value: Values, runs: int) -> Strata:
    """Strata of observations of one kind with about the same value: runs of equal length, divided by equal steps."""
    order = np.lexsort((value, kind))
    kind, value = kind[order], value[order]
    new = np.append(True, kind[1:] != kind[:-1])
    start = np.flatnonzero(new)
    count = np.diff(np.append(start, len(kind)))
    rank = np.arange(len(kind)) - np.repeat(start, count)
    length = np.repeat(-(-count // runs), count)
    low, high = value[start], value[start + count - 1]
    width = np.repeat(np.where(high > low, (high - low) / runs, 1), count)
    at = np.stack([rank // length, ((value - np.repeat(low, count)) / width).astype(np.int64)])
    new[1:] |= (at[:, 1:] != at[:, :-1]).any(axis=0)
    of = np.empty(len(order), np.intp)
    of[order] = np.cumsum(new) - 1
    return Strata(of, np.bincount(of))
