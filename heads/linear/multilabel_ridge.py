"""The ridge head for several labels a sample: least squares on one target a label, solved at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from precompute.heads.base.inputs import check_number
from precompute.heads.base.labels import SURE, MultilabelHead
from precompute.heads.linear.ridge_base import RidgeBase
from precompute.heads.linear.spectrum import LabelTargets
from precompute.heads.scoring.sigmoid import UNFITTED, fit_sigmoid

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["MultilabelRidgeHead"]


class MultilabelRidgeHead(MultilabelHead, RidgeBase):
    """Ridge regression on targets of 1 for a label and -1 without it: scikit-learn's `RidgeClassifier` of indicators.

    All labels are solved at once, as `RidgeHead` solves classes, and share one alpha.

    `predict_proba` is the sigmoid of slope * score + offset, both for each label, fitted by log loss on scores of
    training rows that were left out of their own model (Platt 1999). `predict` goes by these probabilities, and not by
    the sign of the score as in RidgeClassifier: a score of a rare label is hardly ever above 0.

    Parameters
    ----------
    alpha : strength of the penalty, as in scikit-learn, or "auto", as in `RidgeHead`
    cv : None or a list of splits (train, test), as in `RidgeHead`

    Attributes
    ----------
    labels_ : (L,), names as `fit` got them, or 0 to L - 1
    thresholds_ : (L,) float64, the probability above which a label is predicted: 0.5, or what `set_thresholds` got
    coef_, intercept_ : (L, d) and (L,) float32, float64 where `X` was. A label that all training samples have, or none,
        has coefficients of 0.
    alpha_, alpha_source_ : as in `RidgeHead`, but that the default is for samples that are all one group
    trials_ : list of {"alpha", "accuracy", "squared_error"}: accuracy is the share of sample-label pairs that are right
    slopes_, offsets_ : lists of L floats, of the probabilities
    n_features_in_ : int
    """

    _FITTED = ("alpha_", "alpha_source_", "trials_", "slopes_", "offsets_", "thresholds_")
    _ADDED = ()

    def __init__(self, *, alpha: float | str = "auto", cv: Any = None) -> None:
        self.alpha = alpha
        self.cv = cv

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
        label_names: npt.ArrayLike | None = None,
    ) -> MultilabelRidgeHead:
        """Fit on features `X` (n, d), read in blocks, and labels `y` (n, L) of 0 and 1.

        `validation`, `groups` and `sample_weight` as in `RidgeHead.fit`; `label_names` (L,) become `labels_`.

        Raises ValueError for NaN, infinity, a y that is not (n, L) of 0 and 1, labels that do not vary, lengths that
        differ, a parameter out of range, weights that are negative or all zero, or a min(n, d) x min(n, d) matrix that
        memory does not hold.
        """
        self._check_parameters()
        training = self._check_training(X, y, sample_weight, validation, groups, label_names)
        given = training.given
        held = None if training.held is None else (training.held[0], LabelTargets(training.held[1]))
        group = self._left_out_together(given, training.n_rows)
        only_default = "all samples are one group" if group is not None and group.max() == 0 else None
        spectrum = self._solve(given, LabelTargets(training.Y), 1.0, group, held, only_default)
        self.coef_[~training.varied] = 0  # what rounding left
        self.intercept_[~training.varied] = np.sign(self.intercept_[~training.varied])
        sigmoids = [UNFITTED] * len(self.labels_)
        if not only_default:
            scores, rows = self._left_out_scores(spectrum, group)
            sigmoids = [
                fit_sigmoid(column, truth, given.weight[rows])
                for column, truth in zip(scores.T, training.Y[rows].T, strict=True)
            ]
        self.slopes_ = [
            slope if varied else SURE for (slope, _), varied in zip(sigmoids, training.varied.tolist(), strict=True)
        ]
        self.offsets_ = [
            offset if varied else 0.0 for (_, offset), varied in zip(sigmoids, training.varied.tolist(), strict=True)
        ]
        return self

    def decision_function(self, X: Features) -> npt.NDArray[np.floating]:
        """Scores (n, L) of features (n, d), those of scikit-learn's RidgeClassifier.

        float64 where the head or `X` is and else float32.
        """
        return self._linear(X)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Each label's own probability (n, L) of features (n, d), in the order of `labels_`.

        float64 where the head or `X` is and else float32.
        """
        scores = self._linear(X)
        proba: npt.NDArray[np.floating] = expit(scores * np.array(self.slopes_) + np.array(self.offsets_))
        return proba.astype(scores.dtype)

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        width = len(self.labels_)
        self._restore_linear(arrays, fitted, width, {"alpha", "accuracy", "squared_error"})
        self._restore_thresholds(fitted)
        for name, low in (("slopes", 0.0), ("offsets", -np.inf)):
            values = fitted[name]
            if not isinstance(values, list) or len(values) != width:
                raise ValueError(f"its {name} must be a list of {width} numbers")
            for value in values:
                check_number(f"every one of its {name}", value, low=low, open_low=True)
