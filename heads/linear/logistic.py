"""The linear probe: multinomial logistic regression, with its regularisation chosen on held-out samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.inputs import (
    check_classes_with_weight,
    check_training,
    check_validation,
    class_weights,
    weighted_rows,
)
from precompute.heads.base.threads import one_pool
from precompute.heads.linear.certificate import certify
from precompute.heads.linear.design import Design, working_dtype
from precompute.heads.linear.logistic_base import C_GRID, DEFAULT_C, LogisticBase, among
from precompute.heads.linear.model import LinearClassifier, log_probabilities, probabilities
from precompute.heads.linear.objective import Objective, check_memory
from precompute.heads.linear.passes import alone
from precompute.heads.linear.path import Problem, Split
from precompute.heads.linear.solver import minimise

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.inputs import Weighted
    from precompute.heads.base.rows import Features, RowView

    Array = npt.NDArray[Any]

__all__ = ["C_GRID", "DEFAULT_C", "LogisticHead"]


class LogisticHead(LinearClassifier, LogisticBase):
    """L2-regularised multinomial logistic regression with an unpenalised intercept: the linear probe.

    The objective is that of scikit-learn's `LogisticRegression`: 1/2 ||coef||^2 + C * the sum of (weighted) log
    losses. The solver is L-BFGS in float32 (float64 for float64 features) on centred features. Its first metric is
    the inverse of their second moments, and in a long fit that of the Hessian's blocks (see `metric.py`). Centring
    changes nothing in the model, as the intercept absorbs it. Features above 0.4 of the free memory are read
    in blocks in every step and never held. The folds of a choice go in step, so that one reading serves them all.

    Parameters
    ----------
    C : inverse strength of the regularisation, as in scikit-learn; or "auto", the 45 values of `C_GRID`; or a sequence
        of values. Of several, that with the lowest log loss (ties: the smaller C) on the validation set that `fit` is
        given, else by stratified cross-validation. The head is then fitted on all of `X`, and on the validation set
        too. Log loss and not accuracy, because on a few hundred samples many values of C get the same ones right, and
        the rest is chance.
    choose_by : "log_loss", or "accuracy" as the linear probes of published protocols do.
    cv : number of folds, fewer where the second most common class has fewer samples (or groups). If that is one,
        C is `DEFAULT_C`. Or a list of splits (train, test), positions of rows; `groups` then does not count.
    max_iter : steps of one fit at most.
    tol : a fit ends when its next step is expected to lower the objective by no more than this share of it. One
        tolerance suits every C; the final error is then a few times as much.
    class_weight : None, "balanced", or a dict from label to weight, as in scikit-learn. Held-out samples are scored
        without, and with their sample_weight.
    random_state : seed of the folds; None draws a new one.
    device : where to solve: "cpu", with NumPy, or a device as torch names it, such as "cuda" ("cpu:0" is torch on the
        CPU). Not part of a saved head, which predicts on the CPU.
    time_budget : seconds for the choice of C, None for no limit. With one, every fourth value is tried first and those
        between after them, and no further C is begun once it is spent. The first is always tried, and the final fit is
        not counted.

    Attributes
    ----------
    classes_ : (K,), sorted
    coef_ : (K, d) float32, float64 where `X` was, or (1, d) for two classes, where it scores `classes_[1]` as
        in scikit-learn
    intercept_ : (K,) or (1,), as `coef_`
    C_ : float, the C that was used
    C_source_ : "given", "validation, then fitted on both", "5-fold cross-validation", or "default: too few samples for
        cross-validation"
    trials_ : one dict for each C that was tried, in rising order: "C", "accuracy" and "log_loss" on what was held out,
        "n_iter" (of all folds together), "objective" (the mean of the folds) and "seconds". "auto" without a time
        budget ends once the log loss has risen over 6 values in a row, none of which is near the best. Of large sets it
        solves only what is near the best to 1e-6, others to 1e-4: their scores differ a little from those of exact
        fits.
    stopped_early_ : bool, whether `time_budget` ended the choice before every C was tried
    objective_ : float, the objective of the final fit, from `coef_` and `intercept_` in float64
    gap_ : float, at most so much is `objective_` above its minimum, as its gradient in float64 proves. Where the
        penalty is weak that is far more than it is. None in a head that an earlier release wrote
    n_iter_ : int, steps of the final fit
    converged_ : bool, whether the final fit met `tol` (no ConvergenceWarning is raised)
    n_features_in_ : int
    """

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> LogisticHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and labels `y` (n,).

        `validation` is a pair (X, y) to choose C on; the head is then fitted on both. `groups` (n,) says which samples
        must stay in one fold, such as files with the same bytes. Both serve only a C that has to be chosen; they are
        checked with any. `sample_weight` (n,), 0 or above, weighs the losses, also of held-out samples: a weight of 2
        is the sample twice, both in one fold, and 0 leaves it out. A validation set has equal weights.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, weights that
        are negative or all zero, or coefficients that memory does not hold. Raises DeviceError if the machine lacks the
        device.
        """
        self._check_parameters()
        grid = self._grid()
        view, label, self.classes_ = check_training(self, X, y)
        given = weighted_rows(view, sample_weight, groups)
        label, weight = given.of(label), given.weight
        check_classes_with_weight(self, label, self.classes_)
        views: list[RowView] = [given.view]
        if validation is not None:
            chosen_on, held = check_validation(self, validation, self.classes_)
            if grid:
                views.append(chosen_on)
                label, weight = np.concatenate([label, held]), np.concatenate([weight, np.ones(len(held))])
        check_memory(view.shape[1], len(self.classes_), view.working_dtype.itemsize)
        arrays = arrays_on(self.device, working_dtype(views), "LogisticHead")
        design = Design(views, arrays)
        splits, self.C_source_ = self._splits(label, weight, given, len(view)) if grid else ([], "given")
        with one_pool(2 * math.prod(design.shape) * len(self.classes_)):
            weight_of_loss = weight * class_weights(self.class_weight, self.classes_, label, weight)[label]
            problems = [Problem(label, len(self.classes_), split) for split in splits]
            self._choose(design, problems, grid, len(splits))
            objective = Objective(design, label, weight_of_loss, len(self.classes_), self.C_)
            fit = alone(design, minimise(objective, tol=self.tol, max_iter=self.max_iter))
            self.coef_, self.intercept_ = design.unfold(fit.theta)
            self.n_iter_, self.converged_ = fit.n_iter, fit.converged
            wide = self._wide(arrays)
            proven = certify(views, label, weight_of_loss, self.coef_, self.intercept_, self.C_, wide)
        self.intercept_, self.objective_ = proven.intercept, proven.objective
        self.gap_: float | None = proven.gap
        return self

    def _splits(self, label: Array, sample_weight: Array, given: Weighted, n_rows: int) -> tuple[list[Split], str]:
        """The splits to choose C on, and their name.

        label, sample_weight: (m,), of the rows that are `given` of `n_rows`, and then of a validation set.
        """
        n_train = len(given.view)
        by_class = class_weights(self.class_weight, self.classes_, label[:n_train], sample_weight[:n_train])
        weight = sample_weight * by_class[label]
        parts, source = self._parts(label, given, n_rows)
        for train, _ in parts:
            check_classes_with_weight(self, label[train], self.classes_)
        return [
            Split(np.where(among(train, len(label)), weight, 0.0), among(test, len(label)), scored=sample_weight)
            for train, test in parts
        ], source

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) of features (n, d), in the order of `classes_`.

        float64 where the head or `X` is and else float32.
        """
        return probabilities(self._linear(X))

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`, from the logits: finite where a probability is too small for its
        dtype.
        """
        return log_probabilities(self._linear(X))

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        self._restore_coefficients(arrays, self._outputs)
        self._restore_solution(fitted)
