"""The multi-layer perceptron for several labels a sample: one network with a logit for each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from precompute.heads.base.arrays import usable_device
from precompute.heads.base.inputs import check_number
from precompute.heads.base.labels import SURE, MultilabelHead, check_balanced, label_strata
from precompute.heads.mlp.criteria import LabelEntropy
from precompute.heads.mlp.mlp_base import MLPBase
from precompute.heads.mlp.samples import stopping_split

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["MultilabelMLPHead"]


class MultilabelMLPHead(MultilabelHead, MLPBase):
    """A multi-layer perceptron with one logit for each label, trained on their binary cross-entropies.

    Trained, stopped and read as `MLPHead` is. The loss is the mean over samples and labels.

    Parameters
    ----------
    label_smoothing : how far targets are moved from 0 and 1 towards 1/2, 0 to below 1
    class_weight : None, or "balanced": for each label, the samples with it weigh as much as those without it, also in
        the loss to stop on
    The others are those of `MLPHead`; what is held out is stratified by each sample's rarest label.

    Attributes
    ----------
    labels_ : (L,), names as `fit` got them, or 0 to L - 1
    thresholds_ : (L,) float64, the probability above which a label is predicted: 0.5, or what `set_thresholds` got
    mean_, scale_, weights_, biases_, history_, best_epoch_, validation_source_, n_iter_, n_features_in_ : as in
        `MLPHead`; the accuracies are shares of the sample-label pairs. A label that all training samples have, or none,
        has weights of 0 in the last layer and the bias 100 or -100.
    """

    _FITTED = (*MLPBase._FITTED, "thresholds_")

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.2,
        batch_norm: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        weight_decay: float = 1e-4,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        max_epochs: int = 200,
        patience: int = 20,
        schedule: str = "cosine",
        validation_fraction: float = 0.15,
        class_weight: str | None = None,
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("label_smoothing", self.label_smoothing, low=0, high=1)
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
    ) -> MultilabelMLPHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and labels `y` (n, L) of 0 and 1.

        `validation`, `groups` and `sample_weight` as in `MLPHead.fit`; `label_names` (L,) become `labels_`.

        Raises ValueError for NaN, infinity, a y that is not (n, L) of 0 and 1, labels that do not vary, lengths that
        differ, a parameter out of range, or weights that are negative or all zero; TrainingError if the loss does not
        stay finite; DeviceError if the machine lacks the device; UsageError if the network would take more memory than
        there is.
        """
        self._check_parameters()
        training = self._check_training(X, y, sample_weight, validation, groups, label_names)
        given = training.given
        dtype = given.view.working_dtype
        device = usable_device(self.device, dtype, type(self).__name__)
        held = None if training.held is None else (training.held[0], training.held[1].astype(dtype))
        train, stop_on, self.validation_source_ = stopping_split(
            given,
            training.Y.astype(dtype),
            label_strata(training.Y),
            held,
            fraction=self.validation_fraction,
            seed=self.random_state,
        )
        weight = np.ones((2, len(self.labels_)))
        if self.class_weight == "balanced":
            positive, total = given.weight @ training.Y, given.weight.sum()
            for row, count in ((0, total - positive), (1, positive)):
                weight[row] = np.where(training.varied, total / (2 * np.where(training.varied, count, 1)), 1)
        self._train(train, stop_on, LabelEntropy(torch.from_numpy(weight.astype(dtype)).to(device)))
        constant = ~training.varied
        self.weights_[-1][constant] = 0
        self.biases_[-1][constant] = np.where(training.Y[0], SURE, -SURE)[constant]
        return self

    @property
    def _n_outputs(self) -> int:
        return len(self.labels_)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Each label's own probability (n, L), float64 where the head or `X` is and else float32, of features (n, d),
        in the order of `labels_`.
        """
        return self._of_logits(X, torch.sigmoid)

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, L) of `predict_proba`, from the logits: finite where a probability is too small for its
        dtype.
        """
        return self._of_logits(X, torch.nn.functional.logsigmoid)

    def _restore(self, arrays: dict[str, npt.NDArray[Any]], fitted: dict[str, Any]) -> None:
        super()._restore(arrays, fitted)
        self._restore_thresholds(fitted)
