"""Scores of predicted numbers that have weights, for many weightings at once (`metrics.py`), and to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Values = npt.NDArray[np.float64]

__all__ = ["NumberOutcomes"]


class NumberOutcomes:
    """Predicted numbers (n,) next to the true ones (n,), both float64."""

    def __init__(self, y: Values, predicted: Values) -> None:
        self.error = abs(y - predicted)
        self.centred = y - y.mean()
        self.ranks = _Ranks(y), _Ranks(predicted)

    def scores(self, weights: Values) -> dict[str, Values]:
        """R2, mean absolute error, root mean squared error and Spearman's correlation for `weights` (n, B).

        NaN for R2 and Spearman's correlation where numbers do not differ.
        """
        total = weights.sum(axis=0)
        squared = (self.error**2) @ weights
        spread = (self.centred**2) @ weights - (self.centred @ weights) ** 2 / total
        scale = float((self.centred**2).sum())
        true, guess = (ranks.of(weights) for ranks in self.ranks)
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(spread > 1e-12 * scale, 1 - squared / spread, np.nan)
            spearman = _covariance(true, guess, weights) / np.sqrt(
                _covariance(true, true, weights) * _covariance(guess, guess, weights)
            )
        return {
            "r2": r2,
            "mae": self.error @ weights / total,
            "rmse": np.sqrt(squared / total),
            "spearman": np.where(np.isfinite(spearman), spearman.clip(-1, 1), np.nan),
        }

    def r2_first_order(self) -> Values:
        """What (n,) R2 is the mean of, to first order in how often each sample is drawn."""
        squares = self.error**2
        mean, spread = squares.mean(), (self.centred**2).mean()
        found: Values = 1 - mean / spread - (squares - mean) / spread + mean / spread**2 * (self.centred**2 - spread)
        return found

    def spearman_first_order(self) -> Values:
        """The same for Spearman's correlation, whose ranks move with the weights as well."""
        true, guess = self.ranks
        u, v = true.plain(), guess.plain()
        both, of_true, of_guess = (
            u * v + true.above(v) + guess.above(u),
            u * u + 2 * true.above(u),
            v * v + 2 * guess.above(v),
        )
        covariance, first, second = ((a * b).mean() - 0.25 for a, b in ((u, v), (u, u), (v, v)))
        value = covariance / np.sqrt(first * second)
        moves = (both - both.mean()) / np.sqrt(first * second)
        moves -= value / 2 * ((of_true - of_true.mean()) / first + (of_guess - of_guess.mean()) / second)
        found: Values = value + moves
        return found


class _Ranks:
    """Ranks of `values` (n,) as shares of all samples: those that are smaller, and half of those that are equal."""

    def __init__(self, values: Values) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        bounds = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        starts, ends = np.append(0, bounds), np.append(bounds, len(values))
        place = np.empty(len(values), np.intp)
        place[self.order] = np.repeat(np.arange(len(starts)), ends - starts)
        self.first, self.last = starts[place], ends[place]

    def of(self, weights: Values) -> Values:
        """(n, B) for `weights` (n, B)."""
        up_to = np.zeros((len(weights) + 1, weights.shape[1]))
        np.cumsum(weights[self.order], axis=0, out=up_to[1:])
        found: Values = (up_to[self.first] + up_to[self.last]) / (2 * up_to[-1])
        return found

    def plain(self) -> Values:
        """(n,) at equal weights."""
        found: Values = (self.first + self.last) / (2 * len(self.first))
        return found

    def above(self, values: Values) -> Values:
        """(n,) of `values` the sum over the samples that are larger than each, and half over its equals, / n."""
        up_to = np.append(0, np.cumsum(values[self.order]))
        found: Values = (up_to[-1] - (up_to[self.first] + up_to[self.last]) / 2) / len(values)
        return found


def _covariance(a: Values, b: Values, weights: Values) -> Values:
    """(B,) of ranks (n, B), whose means are 1/2."""
    found: Values = ((a - 0.5) * (b - 0.5) * weights).sum(axis=0)
    return found
