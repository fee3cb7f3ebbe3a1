"""The linear probe for several labels a sample: a logistic regression for each, solved over the same readings of X."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.labels import SURE, MultilabelHead, check_balanced, label_strata, varying
from precompute.heads.base.threads import one_pool
from precompute.heads.linear.certificate import certify_labels
from precompute.heads.linear.design import Design, working_dtype
from precompute.heads.linear.logistic_base import TOO_FEW, LogisticBase, among
from precompute.heads.linear.objective import Objective, check_memory
from precompute.heads.linear.path import Problem, Split, in_step
from precompute.heads.linear.solver import minimise

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.labels import LabelTraining
    from precompute.heads.base.rows import Features, RowView
    from precompute.heads.linear.passes import Steps
    from precompute.heads.linear.solver import Fit

    Array = npt.NDArray[Any]
    Indicators = npt.NDArray[np.bool_]

__all__ = ["MultilabelLogisticHead"]

METRICS = 8  # that the fits of labels share: their curvatures differ as the frequencies of the labels do


class MultilabelLogisticHead(MultilabelHead, LogisticBase):
    """Independent L2-regularised logistic regressions, one for each label, with the same C: the linear probe.

    Each label's model is the one that `LogisticHead`, and scikit-learn's `LogisticRegression`, has of that label alone
    (`OneVsRestClassifier` of indicators). The fits of all labels and folds go in step: each keeps its own L-BFGS and
    ends by its own tolerance, and one reading of the features, and one product with the columns of all, serves them.

    Parameters
    ----------
    C, choose_by, cv, max_iter, tol, random_state, time_budget, device : as in `LogisticHead`. One C is chosen for all
        labels, by the mean log loss (or accuracy) over all pairs of a sample and a label; the folds are stratified by
        each sample's rarest label. A label without positives, or without negatives, in the training part of a fold has
        no part in the scores of that fold.
    class_weight : None, or "balanced": for each label, the samples with it weigh as much as those without it

    Attributes
    ----------
    labels_ : (L,), names as `fit` got them, or 0 to L - 1
    thresholds_ : (L,) float64, the probability above which a label is predicted: 0.5, or what `set_thresholds` got
    coef_, intercept_ : (L, d) and (L,) float32, float64 where `X` was. A label that all training samples have, or none,
        has coefficients of 0 and the intercept 100 or -100, so that its probability is 1 or (nearly) 0.
    C_, C_source_, trials_, stopped_early_, n_features_in_ : as in `LogisticHead`
    objective_, gap_ : as in `LogisticHead`, summed over the labels that were fitted
    n_iter_ : int, the most steps of a label's final fit
    converged_ : bool, whether the final fits of all labels met `tol`
    """

    _FITTED = (*LogisticBase._FITTED, "thresholds_")

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_balanced(self.class_weight)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
        label_names: npt.ArrayLike | None = None,
    ) -> MultilabelLogisticHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and labels `y` (n, L) of 0 and 1.

        `validation`, `groups` and `sample_weight` as in `LogisticHead.fit`; `label_names` (L,) become `labels_`.

        Raises ValueError for NaN, infinity, a y that is not (n, L) of 0 and 1, labels that do not vary, lengths that
        differ, a parameter out of range, weights that are negative or all zero, or coefficients that memory does not
        hold. Raises DeviceError if the machine lacks the device.
        """
        self._check_parameters()
        grid = self._grid()
        training = self._check_training(X, y, sample_weight, validation, groups, label_names)
        views: list[RowView] = [training.given.view]
        given, weight = training.Y, training.given.weight
        if training.held is not None and grid:
            views.append(training.held[0])
            given = np.concatenate([given, training.held[1]])
            weight = np.concatenate([weight, np.ones(len(training.held[1]))])
        varied = varying(given)
        n_fitted, n_features = int(varied.sum()), views[0].shape[1]
        check_memory(n_features, n_fitted, views[0].working_dtype.itemsize)
        arrays = arrays_on(self.device, working_dtype(views), type(self).__name__)
        design = Design(views, arrays)
        design.most_metrics = METRICS
        label = np.asfortranarray(given[:, varied].astype(np.int8))
        with one_pool(2 * math.prod(design.shape) * n_fitted):
            problems, n_splits, source = self._problems(label, weight, training) if grid else ([], 0, "given")
            self.C_source_ = source
            self._choose(design, problems, grid, n_splits)
            weights = _label_weights(self.class_weight, label, weight)
            fits = self._fit_all(design, label, weights)
            fitted = [design.unfold(fit.theta) for fit in fits]
            self.n_iter_, self.converged_ = max(fit.n_iter for fit in fits), all(fit.converged for fit in fits)
            coef, intercept = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
            proven = certify_labels(views, label, weights, coef, intercept, self.C_, self._wide(arrays))
        self.objective_, self.gap_ = proven.objective, proven.gap
        self.coef_ = np.zeros((len(varied), n_features), coef.dtype)
        self.intercept_ = np.where(given[0], SURE, -SURE).astype(coef.dtype)
        self.coef_[varied], self.intercept_[varied] = coef, proven.intercept
        return self

    def _problems(self, label: Array, weight: Array, training: LabelTraining) -> tuple[list[Problem], int, str]:
        """What is fitted for a C: a problem for each split and each label that varies in its training part.

        label: (m, L) int8 · weight: (m,). Also the number of splits, and their name.
        """
        parts, source = self._parts(label_strata(label > 0), training.given, training.n_rows)
        problems = []
        for train, test in parts:
            held_out, in_train = among(test, len(label)), among(train, len(label))
            weights = _label_weights(self.class_weight, label, np.where(in_train, weight, 0.0))
            for column, of_column in enumerate(np.broadcast_to(weights, label.shape).T):
                if label[train, column].any() and not label[train, column].all():
                    problems.append(Problem(label[:, column], 2, Split(of_column, held_out, scored=weight)))
        return problems, len(parts), source if problems else TOO_FEW

    def _fit_all(self, design: Design, label: Array, weights: Array) -> list[Fit]:
        """The final fits of all labels (m, L), with their weights (m, L) or (m, 1)."""
        every = np.ones(len(label), bool)
        problems = [
            Problem(label[:, column], 2, Split(of_column, every))
            for column, of_column in enumerate(np.broadcast_to(weights, label.shape).T)
        ]

        def start(number: int, fits: int) -> Steps[Fit]:
            one = problems[number]
            objective = Objective(design, one.label, one.split.weight, one.n_classes, self.C_, fits=fits)
            return minimise(objective, tol=self.tol, max_iter=self.max_iter)

        return in_step(design, problems, start)

    def decision_function(self, X: Features) -> npt.NDArray[np.floating]:
        """Logits (n, L) of features (n, d); float64 where the head or `X` is and else float32."""
        return self._linear(X)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Each label's own probability (n, L) of features (n, d), in the order of `labels_`.

        float64 where the head or `X` is and else float32.
        """
        proba: npt.NDArray[np.floating] = expit(self._linear(X))
        return proba

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, L) of `predict_proba`, finite also where a probability is too small for its dtype."""
        logs: npt.NDArray[np.floating] = log_expit(self._linear(X))
        return logs

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        self._restore_coefficients(arrays, len(self.labels_))
        self._restore_solution(fitted)
        self._restore_thresholds(fitted)


def _label_weights(class_weight: str | None, label: Array, fitted: Array) -> Array:
    """The weight of each loss, (m, L), or (m, 1) where all labels have the same.

    fitted: (m,) weights of the samples, 0 for those that are not fitted on; "balanced" counts these.
    """
    if class_weight is None:
        return fitted[:, None]
    total = fitted.sum()
    positive = fitted @ label
    return np.stack(
        [
            fitted * np.where(column > 0, total / (2 * max(has, 1e-300)), total / (2 * max(total - has, 1e-300)))
            for column, has in zip(label.T, positive, strict=True)
        ],
        axis=1,
    )
