"""Whether two heads of several labels, or of numbers, differ on the same samples by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.inputs import as_numpy
from precompute.heads.base.labels import check_indicators
from precompute.heads.scoring.bootstrap import ENDS, LARGE, REPLICATES, gathered, group_numbers, resamplings
from precompute.heads.scoring.label_metrics import Ranking, check_probabilities, macro, macro_first_order
from precompute.heads.scoring.label_scores import AREAS_MOST
from precompute.heads.scoring.number_scores import check_numbers_pair
from precompute.heads.scoring.paired import LEVEL
from precompute.heads.scoring.strata import mean_replicates

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]
    Index = npt.NDArray[np.intp]

__all__ = ["PairedScores", "paired_labels", "paired_numbers"]


@dataclass(frozen=True)
class PairedScores:
    """Heads a and b on the same n samples.

    metric : the compared score · higher_is_better : whether it is the better the higher · values : of a and of b ·
    difference : a's less b's · interval : its 95% percentile interval over resamplings of the pairs · p_value : twice
    the share of the resamplings in which the difference has the other sign, or is 0, two-sided · distinct : whether the
    difference is more than chance, which takes both: a p value below 0.05 and an interval without 0
    """

    n: int
    metric: str
    higher_is_better: bool
    values: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float
    distinct: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "values": list(self.values), "interval": list(self.interval)}


def paired_labels(
    Y: npt.ArrayLike,
    proba_a: npt.ArrayLike,
    proba_b: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    seed: int | None = 0,
) -> PairedScores:
    """Compare the mean average precisions of two heads, probabilities (n, L) both, on the labels `Y` (n, L).

    `groups` (n,) says which samples are one observation: the bootstrap draws them together. Where all draws would take
    too long, the difference is taken to first order.

    Raises ValueError for shapes that do not fit, Y that is not 0 and 1, what is no probability, and where no label has
    a positive.
    """
    both = [check_probabilities(np.asarray(as_numpy(proba))) for proba in (proba_a, proba_b)]
    truth = check_indicators(Y, len(both[0]))
    if any(proba.shape != truth.shape for proba in both):
        raise ValueError(f"Y and both proba must have one shape. Got {[truth.shape, *(one.shape for one in both)]}.")
    present = truth.any(axis=0)
    if not present.any():
        raise ValueError("No sample has a label, so there is nothing to compare by mean average precision.")
    n = len(truth)
    a, b = (
        [Ranking(score, own) for score, own in zip(proba.T[present], truth.T[present], strict=True)] for proba in both
    )
    ones = np.ones((n, 1))
    values = float(macro(a, ones)[0][0]), float(macro(b, ones)[0][0])
    group = group_numbers(n, None if groups is None else np.asarray(groups))
    if 2 * n * int(present.sum()) * REPLICATES <= AREAS_MOST:
        weighings = resamplings(n, group, seed=seed)
        replicates = gathered({"": macro(a, weights)[0] - macro(b, weights)[0]} for weights in weighings)[""]
    else:
        moves_a, moves_b = (macro_first_order([one.precision_first_order() for one in head]) for head in (a, b))
        replicates = mean_replicates(moves_a - moves_b, group, seed=seed)
    return _compared("mean_average_precision", True, n, values, replicates)


def paired_numbers(
    y: npt.ArrayLike,
    predicted_a: npt.ArrayLike,
    predicted_b: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    seed: int | None = 0,
) -> PairedScores:
    """Compare the mean absolute errors of two heads, predicted numbers (n,) both, on the true ones `y` (n,).

    `groups` (n,) says which samples are one observation: the bootstrap draws them together.

    Raises ValueError for shapes that do not fit, NaN and infinity.
    """
    true, a = check_numbers_pair(y, predicted_a)
    _, b = check_numbers_pair(y, predicted_b)
    errors = abs(true - a), abs(true - b)
    more = errors[0] - errors[1]
    group = group_numbers(len(true), None if groups is None else np.asarray(groups))
    if group.max() + 1 < LARGE:
        weighings = resamplings(len(true), group, seed=seed)
        replicates = gathered({"": more @ weights / weights.sum(axis=0)} for weights in weighings)[""]
    else:
        replicates = mean_replicates(more, group, seed=seed)
    values = float(errors[0].mean()), float(errors[1].mean())
    return _compared("mean absolute error", False, len(true), values, replicates)


def _compared(
    metric: str, higher_is_better: bool, n: int, values: tuple[float, float], replicates: Values
) -> PairedScores:
    low, high = np.quantile(replicates, ENDS)
    # The draw that was made, the samples themselves, counts as one more.
    beyond = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(replicates) + 1))
    return PairedScores(
        n=n,
        metric=metric,
        higher_is_better=higher_is_better,
        values=values,
        difference=values[0] - values[1],
        interval=(float(low), float(high)),
        p_value=p_value,
        distinct=p_value < LEVEL and not low <= 0 <= high,
    )
