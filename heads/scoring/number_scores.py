"""How good predicted numbers are, on samples that the head was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_array

from precompute.heads.base.inputs import as_numpy
from precompute.heads.scoring.bootstrap import LARGE, REPLICATES, group_numbers, intervals
from precompute.heads.scoring.number_metrics import NumberOutcomes
from precompute.heads.scoring.strata import mean_interval

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

__all__ = ["NumberScores", "check_numbers_pair", "evaluate_numbers"]


@dataclass(frozen=True, eq=False)
class NumberScores:
    """The scores of `n` predicted numbers. docs/scores.md says how to read them. The definitions are scikit-learn's.

    r2 : 1 less the mean squared error divided by the variance of the true numbers; 0 is what their mean gives, and less
        is worse. None where they are all the same
    mae : mean absolute error, in the units of y · rmse : root of the mean squared error, in the units of y
    spearman : Spearman's rank correlation, scipy's `spearmanr`. None where the true or the predicted ones are all the
        same
    intervals : 95% percentile intervals of a bootstrap over samples or groups, by the name of the score; from 20,000 on
        by strata, and those of r2 and spearman to first order
    undefined : why a score, or the interval of one, is None or missing, by its name
    """

    n: int
    r2: float | None
    mae: float
    rmse: float
    spearman: float | None
    intervals: dict[str, tuple[float, float]]
    undefined: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain ints, floats and lists, ready for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "undefined": dict(self.undefined),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
        }


def evaluate_numbers(
    y: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int | None = 0,
) -> NumberScores:
    """Score `predicted` (n,) numbers against the true ones `y` (n,).

    `groups` (n,) says which samples are one observation, such as files with the same bytes: the bootstrap (`replicates`
    draws from `seed`, 0 for none) draws them together.

    Raises ValueError for shapes that do not fit, NaN and infinity.
    """
    true, guess = check_numbers_pair(y, predicted)
    outcomes, n = NumberOutcomes(true, guess), len(true)
    undefined = {}
    if (true == true[0]).all():
        undefined["r2"] = "the true numbers are all the same"
        undefined["spearman"] = "the true numbers are all the same"
    elif (guess == guess[0]).all():
        undefined["spearman"] = "the predicted numbers are all the same"
    found = {name: float(values[0]) for name, values in outcomes.scores(np.ones((n, 1))).items()}
    if "r2" not in undefined and np.isnan(found["r2"]):
        undefined["r2"] = "the squared differences of the true numbers are 0 in float64"
    ends = {}
    if replicates:
        group = group_numbers(n, None if groups is None else np.asarray(groups))
        draw: dict[str, Any] = {"replicates": replicates, "seed": seed}
        if group.max() + 1 < LARGE:
            ends = intervals(outcomes.scores, n, group, **draw)
        else:
            ends["mae"] = mean_interval(outcomes.error, group, **draw)
            low, high = mean_interval(outcomes.error**2, group, **draw)
            ends["rmse"] = float(np.sqrt(low)), float(np.sqrt(high))
            if "r2" not in undefined:
                ends["r2"] = mean_interval(outcomes.r2_first_order(), group, **draw)
            if "spearman" not in undefined:
                ends["spearman"] = mean_interval(outcomes.spearman_first_order(), group, **draw)
    return NumberScores(
        n=n,
        r2=None if "r2" in undefined else found["r2"],
        mae=found["mae"],
        rmse=found["rmse"],
        spearman=None if "spearman" in undefined else found["spearman"],
        intervals={name: pair for name, pair in ends.items() if name not in undefined},
        undefined=undefined,
    )


def check_numbers_pair(y: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Values, Values]:
    """Both as finite float64 (n,), n at least 1. Raises ValueError."""
    true, guess = (
        check_array(as_numpy(values), ensure_2d=False, allow_nd=True, dtype=np.float64, input_name=name)
        for name, values in (("y", y), ("predicted", predicted))
    )
    if true.ndim != 1 or true.shape != guess.shape:
        raise ValueError(f"y and predicted must have shape (n,) both. Got {true.shape} and {guess.shape} instead.")
    return true, guess
