"""What a choice of features is made on, and how the candidates do there: see `SelectedHead`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.rows import RowView
from precompute.heads.linear.columns import spread
from precompute.heads.linear.design import Design, working_dtype
from precompute.heads.linear.logistic_base import among
from precompute.heads.linear.path import Problem, Split, regularisation_path
from precompute.heads.linear.relevance import ranked, relevance
from precompute.heads.linear.spectrum import ClassTargets

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

RISING = 2  # values of C in a row with a higher log loss than the one before end a path: weaker penalties cost most
LOOSE, MOST_STEPS = 1e-4, 200  # of the fits that a choice is made by: what they gain after that moves no score


@dataclass(frozen=True)
class ChoiceSample:
    """What a choice is made on, in memory. X: (m, d) · label: (m,) · weight: (m,) of a row · loss: (m,) of its loss."""

    X: Array
    label: Array
    weight: Array
    loss: Array
    n_classes: int

    def standardised(self, rows: Array) -> Array:
        """All rows, standardised by the moments of these."""
        mean, scale = spread([RowView(self.X, rows)], self.weight[rows])
        found: Array = (self.X - mean.astype(self.X.dtype)) / scale.astype(self.X.dtype)
        return found

    def ranking(self, Z: Array, rows: Array) -> npt.NDArray[np.intp]:
        """Features (d,), the most relevant first, by these rows of standardised `Z` and no others."""
        targets = ClassTargets(self.label[rows], self.n_classes).rows(slice(None))
        return ranked(relevance(Z[rows], targets, self.loss[rows]))


def trials(
    sample: ChoiceSample,
    train: Array,
    test: Array,
    fractions: Sequence[float],
    strengths: Sequence[float],
    device: str,
) -> dict[tuple[float, float], Array]:
    """Accuracy and log loss on `test` for each pair (fraction, C), of what only `train` has chosen and fitted.

    Without the weak penalties that were worse and worse.
    """
    Z = sample.standardised(train)
    order = sample.ranking(Z, train)
    held, trained = among(test, len(Z)), among(train, len(Z))
    problem = Problem(
        sample.label, sample.n_classes, Split(np.where(trained, sample.loss, 0.0), held, scored=sample.weight)
    )
    found: dict[tuple[float, float], Array] = {}
    for fraction in sorted(set(fractions)):
        kept = np.sort(order[: count_of(fraction, Z.shape[1])])
        design = Design([RowView(Z[:, kept])], arrays_on(device, working_dtype([RowView(Z)]), "SelectedHead"))
        for trial in regularisation_path(
            *(design, [problem], strengths),
            n_splits=1,
            choose_by="log_loss",
            tol=LOOSE,
            max_iter=MOST_STEPS,
            time_budget=None,
            whole=False,
            rising=RISING,
        )[0]:
            found[fraction, trial["C"]] = np.array([trial["accuracy"], trial["log_loss"]])
    return found


def count_of(fraction: float, d: int) -> int:
    """How many of `d` features that is: one at least."""
    return min(d, max(1, round(fraction * d)))


def read_rows(views: Sequence[RowView], positions: Array) -> Array:
    """These rows of all views, in memory, of their working dtype."""
    dtype, start, parts = working_dtype(views), 0, []
    for view in views:
        inside = positions[(start <= positions) & (positions < start + len(view))] - start
        parts.append(view.take(inside)._read(slice(None), dtype))
        start += len(view)
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
