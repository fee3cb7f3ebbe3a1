"""The ridge head: least squares on one-vs-all targets, solved at once, with alpha chosen by exact leave-one-out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_number,
    check_training,
    check_validation,
    class_weights,
    weighted_rows,
)
from precompute.heads.linear.model import LinearClassifier
from precompute.heads.linear.ridge_base import RidgeBase
from precompute.heads.linear.spectrum import ClassTargets, Spectrum
from precompute.heads.scoring.temperature import bounded_temperature, log_softmax_at, softmax_at

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["RidgeHead"]


class RidgeHead(LinearClassifier, RidgeBase):
    """Ridge regression on targets of 1 for the class and -1 for the others: scikit-learn's `RidgeClassifier`.

    Solved in closed form, in float64, from X'X or XX' (the smaller), summed over blocks of rows; the intercept is not
    penalised. There are no iterations that could stop early, and every alpha costs little once the first is solved.

    Parameters
    ----------
    alpha : strength of the penalty, as in scikit-learn, or "auto": the value of `ALPHA_GRID` (0.001 to 1,000,000, one
        a decade) with the least mean squared error (ties: the larger) on the validation set that `fit` is given, else
        on each row as predicted by the model fitted without it (and without its group): exact, by the identity that
        scikit-learn's RidgeCV uses, with no model fitted twice.
    class_weight : None, "balanced", or a dict from label to weight, as in scikit-learn
    cv : None to leave out each row, or a list of splits (train, test), positions of rows: every row in one test part,
        and each split trained on all rows but its test part. One test part is then left out at a time, and `groups`
        does not count.

    Attributes
    ----------
    classes_ : (K,), sorted
    coef_ : (K, d) float32, float64 where `X` was, or (1, d) for two classes, where it scores `classes_[1]` as
        in scikit-learn
    intercept_ : (K,) or (1,), as `coef_`
    alpha_ : float, the alpha that was used
    alpha_source_ : "given", "validation", "leave-one-out", "leave-one-group-out", "5-fold cross-validation" (with
        `cv`), or "default: no class has two samples (groups)", where that is not possible and alpha is 1
    trials_ : list of {"alpha", "accuracy", "squared_error"}, one per value that was tried, on rows that were left out
    temperature_ : float, what `predict_proba` divides scores by; 1.0 where no row could be left out
    n_features_in_ : int
    """

    _FITTED = ("alpha_", "alpha_source_", "trials_", "temperature_")

    def __init__(self, *, alpha: float | str = "auto", class_weight: Any = None, cv: Any = None) -> None:
        self.alpha = alpha
        self.class_weight = class_weight
        self.cv = cv

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_class_weight(self.class_weight)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> RidgeHead:
        """Fit on features `X` (n, d), read in blocks, and labels `y` (n,).

        `validation` is a pair (X, y) to choose alpha on. `groups` (n,) says which samples are left out together, such
        as files with the same bytes. `sample_weight` (n,), 0 or above, weighs squared errors, also those that alpha is
        chosen by: a weight of 2 is the row twice, both in one group, and 0 leaves it out.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, weights that
        are negative or all zero, or a min(n, d) x min(n, d) matrix that memory does not hold.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        n_classes = len(self.classes_)
        given = weighted_rows(view, sample_weight, groups)
        label = given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        group = self._left_out_together(given, len(view))
        held = None
        if validation is not None:
            chosen_on, held_label = check_validation(self, validation, self.classes_)
            held = (chosen_on, ClassTargets(held_label, n_classes))
        class_weight = class_weights(self.class_weight, self.classes_, label, given.weight)[label]
        # A class with one sample is unknown to the model that leaves it out; where all are such, that has no effect.
        units = len(label) if group is None else len(np.unique(group * n_classes + label))
        only_default = "no class has two samples (groups)" if units == len(np.unique(label)) else None
        spectrum = self._solve(given, ClassTargets(label, n_classes), class_weight, group, held, only_default)
        self.temperature_ = 1.0 if only_default else self._fit_temperature(spectrum, label, given.weight, group)
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) of features (n, d), in the order of `classes_`.

        float64 where the head or `X` is and else float32.

        softmax(scores / temperature_), the temperature fitted by log loss on scores of training rows that were left
        out of their own model (Guo et al. 2017). One number makes the probabilities as sharp as the head is right on
        the whole; the scores are still least squares, no logits, so for a class or a sample they can be off.
        `LogisticHead` fits probabilities themselves.
        """
        scores = self._linear(X)
        return softmax_at(_two_sided(scores), self.temperature_, scores.dtype)

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`, finite also where a probability is too small for its dtype."""
        scores = self._linear(X)
        return log_softmax_at(_two_sided(scores), self.temperature_, scores.dtype)

    def _fit_temperature(self, spectrum: Spectrum, label: Array, weight: Array, group: Array | None) -> float:
        scores, rows = self._left_out_scores(spectrum, group)
        return bounded_temperature(_two_sided(scores), label[rows], weight[rows])

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        self._restore_linear(arrays, fitted, self._outputs, {"alpha", "accuracy", "squared_error"})
        check_number("temperature", fitted["temperature"], low=0, open_low=True)


def _two_sided(scores: Array) -> Array:
    """(n, K): the score of the first of two classes is that of the second, negated."""
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores
