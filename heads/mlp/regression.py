"""The multi-layer perceptron for a number, such as an age or a count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import RegressorMixin

from precompute.heads.base.arrays import usable_device
from precompute.heads.base.inputs import check_number
from precompute.heads.base.numbers import check_held_number, check_number_training
from precompute.heads.mlp.criteria import SquaredError
from precompute.heads.mlp.mlp_base import MLPBase
from precompute.heads.mlp.samples import stopping_split

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["MLPRegressionHead"]


class MLPRegressionHead(RegressorMixin, MLPBase):  # type: ignore[misc]  # scikit-learn has no types
    """A multi-layer perceptron with one output, trained on the squared error of standardised targets.

    Trained, stopped and read as `MLPHead` is; predictions are in the units of y.

    Parameters
    ----------
    Those of `MLPHead`, less `label_smoothing` and `class_weight`. What is held out to stop on is drawn at random.

    Attributes
    ----------
    target_mean_, target_scale_ : float, weighted mean and standard deviation of the training targets (1 where they are
        all the same)
    mean_, scale_, weights_, biases_, best_epoch_, validation_source_, n_iter_, n_features_in_ : as in `MLPHead`
    history_ : as in `MLPHead`, with "train_absolute_error" and "validation_absolute_error", means in the units of y, in
        the place of accuracies; losses are mean squared errors of the standardised targets.
    """

    _FITTED = (*MLPBase._FITTED, "target_mean_", "target_scale_")
    SCORE = "absolute_error"

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.2,
        batch_norm: bool = False,
        mixup: float = 0.0,
        weight_decay: float = 1e-4,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        max_epochs: int = 200,
        patience: int = 20,
        schedule: str = "cosine",
        validation_fraction: float = 0.15,
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.mixup = mixup
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> MLPRegressionHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and real targets `y` (n,).

        `validation`, `groups` and `sample_weight` as in `MLPHead.fit`.

        Raises ValueError for NaN, infinity, a single sample, lengths that differ, a parameter out of range, or weights
        that are negative or all zero; TrainingError if the loss does not stay finite; DeviceError if the machine lacks
        the device; UsageError if the network would take more memory than there is.
        """
        self._check_parameters()
        given, targets = check_number_training(self, X, y, sample_weight, groups)
        held = None if validation is None else check_held_number(self, validation)
        dtype = given.view.working_dtype
        device = usable_device(self.device, dtype, type(self).__name__)
        self.target_mean_ = float(np.average(targets, weights=given.weight))
        spread = float(np.sqrt(np.average((targets - self.target_mean_) ** 2, weights=given.weight)))
        # What rounding leaves of equal targets is no spread.
        self.target_scale_ = spread if spread > np.finfo(np.float64).eps * abs(self.target_mean_) else 1.0
        train, stop_on, self.validation_source_ = stopping_split(
            given,
            self._standardised(targets).astype(dtype),
            np.zeros(len(targets), np.intp),
            None if held is None else (held[0], self._standardised(held[1]).astype(dtype)),
            fraction=self.validation_fraction,
            seed=self.random_state,
        )
        self._train(train, stop_on, SquaredError(self.target_scale_, device, getattr(torch, dtype.name)))
        return self

    def _standardised(self, targets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (targets - self.target_mean_) / self.target_scale_

    @property
    def _n_outputs(self) -> int:
        return 1

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Predicted targets (n,), in the units of y, of features (n, d)."""
        standardised = self._of_logits(X, lambda outputs: outputs)[:, 0].astype(np.float64)
        return standardised * self.target_scale_ + self.target_mean_

    def _restore(self, arrays: dict[str, npt.NDArray[Any]], fitted: dict[str, Any]) -> None:
        super()._restore(arrays, fitted)
        check_number("target_mean", fitted["target_mean"], low=-np.inf, open_low=True)
        check_number("target_scale", fitted["target_scale"], low=0, open_low=True)
