"""Whether two classifiers that were right or wrong on the same samples differ by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest

from precompute.heads.scoring.bootstrap import LARGE, group_numbers, intervals
from precompute.heads.scoring.strata import cell_intervals

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Paired", "paired"]

LEVEL = 0.05  # of a test whose interval has 95%


@dataclass(frozen=True)
class Paired:
    """Classifiers a and b on the same n samples.

    accuracies : of a and of b · difference : a's less b's · interval : its 95% percentile interval over resamplings of
    the pairs · only_a, only_b : groups in which a was right more often than b, and the other way round ·
    p_value : McNemar's exact test, two-sided · distinct : whether the difference is more than chance, which takes
    both: a p value below 0.05 and an interval without 0
    """

    n: int
    accuracies: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p_value: float
    distinct: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "accuracies": list(self.accuracies), "interval": list(self.interval)}


def paired(
    right_a: npt.ArrayLike, right_b: npt.ArrayLike, *, groups: npt.ArrayLike | None = None, seed: int | None = 0
) -> Paired:
    """Compare two classifiers by which of the same samples each got right, (n,) bool both.

    McNemar's test (Psychometrika 12, 1947) asks whether the samples that only one got right could be split between the
    two by tossing a coin. It is the exact binomial test here, for few samples and for many. `groups` (n,) says which
    samples are one observation: the bootstrap draws them together, and in the test each group is one toss, won by the
    one that got more of it right.

    Raises ValueError for lengths that differ or that are 0.
    """
    a, b = (np.asarray(values, dtype=bool) for values in (right_a, right_b))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"Both must have shape (n,), with n at least 1. Got {a.shape} and {b.shape} instead.")
    more = a.astype(np.float64) - b
    group = group_numbers(len(a), groups)
    if group.max() + 1 < LARGE:
        ends = intervals(lambda weights: {"": more @ weights / weights.sum(axis=0)}, len(a), group, seed=seed)[""]
    else:
        won_by = np.array([-1.0, 0.0, 1.0])  # b alone, both or none, a alone
        ends = cell_intervals(
            lambda weights: {"": won_by[: len(weights)] @ weights / weights.sum(axis=0)},
            (more + 1).astype(np.intp),
            group,
            seed=seed,
        )[""]
    won = np.bincount(group, weights=more)
    only_a, only_b = int((won > 0).sum()), int((won < 0).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Paired(
        n=len(a),
        accuracies=(float(a.mean()), float(b.mean())),
        difference=float(more.mean()),
        interval=ends,
        only_a=only_a,
        only_b=only_b,
        p_value=p_value,
        distinct=p_value < LEVEL and not ends[0] <= 0 <= ends[1],
    )
