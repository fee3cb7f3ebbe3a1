"""A small multi-layer perceptron on features, trained with early stopping."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import ClassifierMixin

from precompute.heads.base.arrays import usable_device
from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_number,
    check_training,
    class_weights,
    weighted_rows,
)
from precompute.heads.mlp.criteria import CrossEntropy
from precompute.heads.mlp.mlp_base import MLPBase
from precompute.heads.mlp.samples import early_stopping_split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["MLPHead"]


class MLPHead(ClassifierMixin, MLPBase):  # type: ignore[misc]  # scikit-learn has no types
    """A multi-layer perceptron: standardised features, then ReLU layers with dropout, then one logit per class.

    Trained with AdamW (Loshchilov & Hutter 2019) on the cross-entropy. Training stops once the validation loss has not
    improved for `patience` epochs, and the weights of the best epoch are kept. With a `random_state`, the same machine
    and number of threads give the same bits on a CPU. No global state of torch or NumPy is read or changed.

    Features are read a batch at a time and may be larger than memory (`RowView`). Up to 1 GiB of them are shuffled row
    by row; larger ones as blocks of neighbours, 1 MiB long, of which 256 at a time are mixed in memory, so that a disk
    reads runs and not single rows. A GPU with twice the memory that they take gets them once, and batches are gathered
    there, row by row.

    Parameters
    ----------
    hidden : widths of the hidden layers; () is a linear head
    dropout : probability with which a hidden unit is zeroed in a training step (Srivastava et al. 2014)
    batch_norm : whether each hidden layer is normalised over the batch (Ioffe & Szegedy 2015), before its ReLU; folded
        into `weights_` and `biases_` afterwards. A last batch of one sample is skipped.
    label_smoothing : share of the target that is spread over all classes, 0 to below 1 (Szegedy et al. 2016)
    mixup : alpha of the Beta distribution by which pairs of features and their labels are mixed (Zhang et al. 2018,
        there on pixels); 0 for none
    weight_decay : AdamW's, on the weights and not on the biases
    learning_rate, batch_size, max_epochs, patience : as the names say
    schedule : "cosine" lowers the learning rate to zero over `max_epochs` (Loshchilov & Hutter 2017, one cycle, a step
        per epoch), "constant" leaves it. Early stopping works as ever and mostly comes first where `max_epochs` is
        large; for the whole descent set `max_epochs` to the length that you want and `patience` to the same.
    validation_fraction : share of the training samples held out to stop on, where `fit` gets no validation set
    class_weight : None, "balanced", or a dict from label to weight; it weighs the loss, also the one to stop on
    random_state : seed of the initial weights, batches, dropout and hold-out; None draws a new one
    device : where to compute, as torch names it; not part of a saved head

    Attributes
    ----------
    classes_ : (K,), sorted
    mean_, scale_ : (d,), of the training features, float64 where `X` was and else float32
    weights_, biases_ : lists of (out, in) and (out,) in the same dtype, one per layer
    history_ : list with one dict per epoch: "epoch" (from 1), "train_loss", "train_accuracy", "validation_loss",
        "validation_accuracy". All four are measured at the end of the epoch without dropout, label smoothing and mixup,
        so that the curves can be compared; on no more than 50,000 training samples, drawn once. Without a validation
        set the latter two are None.
    best_epoch_ : int, the epoch whose weights were kept
    validation_source_ : "given", "held out", or "none: too few samples to hold out" (fewer than 10 would be held out,
        or, because one of each class is a lot where classes are small, over twice the fraction); then all samples are
        trained on and the training loss decides when to stop
    n_iter_ : int, epochs trained
    n_features_in_ : int
    """

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
        class_weight: Any = None,
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
        check_class_weight(self.class_weight)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> MLPHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and labels `y` (n,).

        `validation` is a pair (X, y) to stop on; without it some samples are held out, stratified, and `groups` (n,)
        says which must stay together, such as files with the same bytes. `sample_weight` (n,), 0 or above, weighs the
        loss, mean_ and scale_, and the loss to stop on; held-out samples have their own weight, a validation set equal
        ones. Only their ratios matter; 0 leaves a sample out. A weight of 2 is the sample twice where a batch holds all
        samples, without dropout and mixup; otherwise the random draws differ.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, or weights
        that are negative or all zero;
        TrainingError if the loss does not stay finite; DeviceError if the machine lacks the device; UsageError if the
        network would take more memory than there is.
        """
        self._check_parameters()
        features, label, self.classes_ = check_training(self, X, y)
        given = weighted_rows(features, sample_weight, groups)
        label = given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        device = usable_device(self.device, features.working_dtype, "MLPHead")
        train, held, self.validation_source_ = early_stopping_split(
            self, given, label, validation, fraction=self.validation_fraction, seed=self.random_state
        )
        weight = class_weights(self.class_weight, self.classes_, label, given.weight).astype(train.dtype)
        self._train(train, held, CrossEntropy(torch.from_numpy(weight).to(device)))
        return self

    @property
    def _n_outputs(self) -> int:
        return len(self.classes_)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K), float64 where the head or `X` is and else float32, of features (n, d), in the order of
        `classes_`.
        """
        return self._of_logits(X, partial(torch.softmax, dim=1))

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`, from the logits: finite where a probability is too small for its
        dtype.
        """
        return self._of_logits(X, partial(torch.log_softmax, dim=1))

    def predict(self, X: Features) -> npt.NDArray[Any]:
        """The most probable label (n,) of each row of features (n, d)."""
        proba = self.predict_proba(X)
        predicted: npt.NDArray[Any] = self.classes_[proba.argmax(axis=1)]
        return predicted
