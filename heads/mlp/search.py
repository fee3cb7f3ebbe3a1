"""The search for an MLP's settings, with all heads of the search trained at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.arrays import usable_device
from precompute.heads.base.inputs import (
    check_classes_with_weight,
    check_number,
    check_training,
    class_weights,
    weighted_rows,
)
from precompute.heads.mlp.criteria import CrossEntropy
from precompute.heads.mlp.fitting import SEARCHED, Run, fit_together
from precompute.heads.mlp.head import MLPHead
from precompute.heads.mlp.mlp_base import diverged
from precompute.heads.mlp.samples import early_stopping_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["MLP_GRID", "MLPSearch"]

MLP_GRID: dict[str, tuple[Any, ...]] = {
    "hidden": ((128,), (512,)),
    "dropout": (0.0, 0.5),
    "weight_decay": (1e-4, 3e-1),  # AdamW multiplies it by the learning rate: less than 1e-4 does nothing
    "learning_rate": (3e-4, 1e-3, 3e-3),
}


class MLPSearch(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A grid search over the settings of an MLPHead, on one validation set, all heads trained at once.

    A batch is read and converted once and goes through all heads as one batched model (torch.bmm over a leading
    dimension of heads; the 52 heads at once of DINOv2's linear evaluation are the precedent, Oquab et al. 2023). Each
    head has its own learning rate, weight decay, dropout and early stopping, and comes out as if it were trained alone
    with the same seed, up to rounding. Where the arrays of all heads take more than 1 GiB, some heads are trained
    after the others.

    The head with the lowest validation loss is kept as it is; it is not fitted again on the validation samples. The
    score on the validation set is then optimistic: measure it on other samples.

    Parameters
    ----------
    estimator : MLPHead with the settings that are not searched; None for the defaults
    param_grid : dict from "hidden", "dropout", "weight_decay" or "learning_rate" to the values to try, as in
        scikit-learn's GridSearchCV; None for `MLP_GRID` (24 heads)
    time_budget : seconds for the search, None for no limit. It stops after the epoch in which they run out, and the
        best head so far is kept.

    Attributes
    ----------
    best_estimator_ : MLPHead, fitted
    best_params_ : dict, its values of the grid
    trials_ : list with one dict per head: its values of the grid, "validation_loss" and "validation_accuracy" of its
        best epoch (None where the loss did not stay finite), "best_epoch", "epochs" and "seconds" (its share of the
        time)
    validation_source_ : "given", "held out", or "none: too few samples to hold out"; then there is nothing to choose
        by, and `estimator` is fitted as it is
    cut_short_ : bool, whether the time budget ended the search · n_untried_ : int, heads that were not begun
    classes_ : (K,), sorted · n_features_in_ : int
    """

    draws_views = True  # of samples with several views, as `ViewRows`, one in each epoch

    def __init__(
        self,
        estimator: MLPHead | None = None,
        *,
        param_grid: Mapping[str, Sequence[Any]] | None = None,
        time_budget: float | None = None,
    ) -> None:
        self.estimator = estimator
        self.param_grid = param_grid
        self.time_budget = time_budget

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> MLPSearch:
        """Search with features `X` (n, d) and labels `y` (n,); arguments and errors as for `MLPHead.fit`."""
        base, heads, points = self._heads()
        features, label, self.classes_ = check_training(self, X, y)
        given = weighted_rows(features, sample_weight, groups)
        label = given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        device = usable_device(base.device, features.working_dtype, "MLPHead")
        train, held, self.validation_source_ = early_stopping_split(
            self, given, label, validation, fraction=base.validation_fraction, seed=base.random_state
        )
        if held is None:
            heads, points = [base], [{name: getattr(base, name) for name in points[0]}]
        by_class = class_weights(base.class_weight, self.classes_, label, given.weight).astype(train.dtype)
        weight = torch.from_numpy(by_class).to(device)
        runs, self.cut_short_ = fit_together(
            [head._settings() for head in heads], train, held, CrossEntropy(weight), time_budget=self.time_budget
        )
        self.n_untried_ = len(heads) - len(runs)
        self.trials_ = [_trial(point, run) for point, run in zip(points, runs, strict=False)]
        finite = [number for number, run in enumerate(runs) if not run.diverged]
        if not finite:
            raise diverged(min(runs, key=lambda run: run.settings.learning_rate), "MLPHead")
        best = min(finite, key=lambda number: runs[number].best_loss)
        self.best_params_, self.best_estimator_ = points[best], heads[best]
        self.best_estimator_._adopt(runs[best])
        self.best_estimator_.classes_, self.best_estimator_.n_features_in_ = self.classes_, self.n_features_in_
        self.best_estimator_.validation_source_ = self.validation_source_
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) by the best head."""
        check_is_fitted(self)
        proba: npt.NDArray[np.floating] = self.best_estimator_.predict_proba(X)
        return proba

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Their logarithms (n, K), as `MLPHead.predict_log_proba` computes them."""
        check_is_fitted(self)
        logs: npt.NDArray[np.floating] = self.best_estimator_.predict_log_proba(X)
        return logs

    def predict(self, X: Features) -> npt.NDArray[Any]:
        """The most probable label (n,) by the best head."""
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        names = ("best_params", "trials", "cut_short", "n_untried")
        return {**self.best_estimator_.choices(), **{name: getattr(self, f"{name}_") for name in names}}

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.validation_source_ == "given"

    def _heads(self) -> tuple[MLPHead, list[MLPHead], list[dict[str, Any]]]:
        """The head of the settings that are not searched, one for each point of the grid, and the points."""
        if self.estimator is not None and not isinstance(self.estimator, MLPHead):
            raise ValueError(f"estimator must be an MLPHead or None. Got {self.estimator!r} instead.")
        if self.time_budget is not None:
            check_number("time_budget", self.time_budget, low=0, open_low=True)
        grid = MLP_GRID if self.param_grid is None else self.param_grid
        if not isinstance(grid, dict) or not grid or not set(grid) <= set(SEARCHED):
            raise ValueError(
                f"param_grid must be a dict with some of the keys {', '.join(SEARCHED)}. Got {grid!r} instead."
            )
        base = MLPHead() if self.estimator is None else clone(self.estimator)
        points = list(ParameterGrid(grid))  # raises ValueError for values that are no lists
        heads = [clone(base).set_params(**point) for point in points]
        for head in [base, *heads]:
            head._check_parameters()
        return base, heads, points


def _trial(point: dict[str, Any], run: Run) -> dict[str, Any]:
    best = None if run.diverged or not run.best_epoch else run.history[run.best_epoch - 1]
    return {
        **point,
        "validation_loss": best and best["validation_loss"],
        "validation_accuracy": best and best["validation_accuracy"],
        "best_epoch": run.best_epoch,
        "epochs": len(run.history),
        "seconds": run.seconds,
    }
