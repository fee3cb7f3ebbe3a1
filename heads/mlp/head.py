"""A small multi-layer perceptron on features, trained with early stopping."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.errors import TrainingError
from precompute.heads.base.arrays import usable_device
from precompute.heads.base.file_checks import check_shapes, list_of_objects
from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_features,
    check_number,
    check_training,
    class_weights,
    weighted_rows,
)
from precompute.heads.mlp.fitting import Run, Settings, fit_together
from precompute.heads.mlp.network import logits_of
from precompute.heads.mlp.samples import Samples, early_stopping_split

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["MLPHead", "diverged"]

SCHEDULES = ("constant", "cosine")
# The keys of an entry of `history_`.
EPOCH = {"epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"}


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
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

    draws_views = True  # of samples with several views, as `ViewRows`, one in each epoch
    _FITTED = ("history_", "best_epoch_", "validation_source_", "n_iter_")

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
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not isinstance(self.hidden, tuple | list):
            raise ValueError(f"hidden must be a tuple of layer widths, such as (256,). Got {self.hidden!r} instead.")
        for width in self.hidden:
            check_number("every width in hidden", width, whole=True, low=1)
        check_number("dropout", self.dropout, low=0, high=1)
        if not isinstance(self.batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False. Got {self.batch_norm!r} instead.")
        check_number("label_smoothing", self.label_smoothing, low=0, high=1)
        check_number("mixup", self.mixup, low=0, high=1e6)
        check_number("weight_decay", self.weight_decay, low=0, high=1e6)  # beyond float32 torch raises in the middle
        check_number("learning_rate", self.learning_rate, low=0, high=1e6, open_low=True)
        for name in ("batch_size", "max_epochs", "patience"):
            check_number(name, getattr(self, name), whole=True, low=1)
        if self.batch_norm and self.batch_size == 1:
            raise ValueError("batch_size must be at least 2 with batch_norm, which needs a variance. Got 1 instead.")
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}. Got {self.schedule!r} instead.")
        check_number("validation_fraction", self.validation_fraction, low=0, high=1, open_low=True)
        check_class_weight(self.class_weight)
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)

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
        (run,), _ = fit_together([self._settings()], train, held, torch.from_numpy(weight).to(device))
        if run.diverged:
            raise diverged(run)
        self._adopt(run)
        return self

    def _settings(self) -> Settings:
        """The parameters that training reads."""
        chosen = {field.name: getattr(self, field.name) for field in fields(Settings)}
        return Settings(**{**chosen, "hidden": tuple(self.hidden)})

    def _adopt(self, run: Run) -> None:
        """Set what training has fitted."""
        self.mean_, self.scale_, self.weights_, self.biases_ = run.mean, run.scale, run.weights, run.biases
        self.history_, self.best_epoch_, self.n_iter_ = run.history, run.best_epoch, len(run.history)

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

    def _of_logits(self, X: Features, function: Callable[[torch.Tensor], torch.Tensor]) -> npt.NDArray[np.floating]:
        """What `function` makes of the logits (b, K) of some rows, for all rows of `X` (n, d)."""
        check_is_fitted(self)
        features = check_features(self, X)
        dtype = np.result_type(features.working_dtype, self.mean_)
        device = usable_device(self.device, dtype, "MLPHead")
        mean, scale, *layers = (
            torch.tensor(array.astype(dtype, copy=False), device=device)
            for array in (self.mean_, self.scale_, *self.weights_, *self.biases_)
        )
        weights = [weight[None] for weight in layers[: len(self.weights_)]]
        biases = [bias[None, None] for bias in layers[len(self.weights_) :]]
        samples = Samples(features, np.zeros(len(features), dtype=np.intp), np.arange(len(features)), dtype)
        found = np.empty((len(features), len(self.classes_)), dtype)  # small results kept one by one pin the heap
        at = 0
        with torch.no_grad():
            for x, *_ in samples.in_order(device):
                logits = logits_of(weights, biases, (x - mean) / scale)[0]
                found[at : at + len(x)] = function(logits).cpu().numpy()
                at += len(x)
        return found

    def predict(self, X: Features) -> npt.NDArray[Any]:
        """The most probable label (n,) of each row of features (n, d)."""
        proba = self.predict_proba(X)
        predicted: npt.NDArray[Any] = self.classes_[proba.argmax(axis=1)]
        return predicted

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        chosen = {"best_epoch": self.best_epoch_, "epochs": self.n_iter_}
        return {**chosen, "stopped_on": self.validation_source_, "history": self.history_}

    def summary(self) -> str:
        """The same as one line."""
        return f"epoch {self.best_epoch_} of {self.n_iter_} (validation: {self.validation_source_})"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.validation_source_ == "given"

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays = {"mean": self.mean_, "scale": self.scale_}
        for layer, (weight, bias) in enumerate(zip(self.weights_, self.biases_, strict=True)):
            arrays |= {f"weight_{layer}": weight, f"bias_{layer}": bias}
        return arrays

    def _restore(self, arrays: dict[str, npt.NDArray[Any]], fitted: dict[str, Any]) -> None:
        n_features = len(arrays["mean"]) if "mean" in arrays else 0
        sizes = [n_features, *self.hidden, len(self.classes_)]
        layers = range(len(sizes) - 1)
        expected: dict[str, tuple[int, ...]] = {"mean": (n_features,), "scale": (n_features,)}
        for layer in layers:
            expected |= {f"weight_{layer}": (sizes[layer + 1], sizes[layer]), f"bias_{layer}": (sizes[layer + 1],)}
        check_shapes(arrays, expected)
        if not (arrays["scale"] > 0).all():
            raise ValueError("its array scale must be above 0")
        _check_history(fitted)
        if not isinstance(fitted["validation_source"], str):
            raise ValueError("its validation_source must be a string")
        self.mean_, self.scale_, self.n_features_in_ = arrays["mean"], arrays["scale"], n_features
        self.weights_ = [arrays[f"weight_{layer}"] for layer in layers]
        self.biases_ = [arrays[f"bias_{layer}"] for layer in layers]


def _check_history(fitted: dict[str, Any]) -> None:
    """Raise ValueError unless the history in a file counts its epochs from 1, and the other counts agree with it."""
    history = list_of_objects("history", fitted["history"], EPOCH)
    for number, epoch in enumerate(history, start=1):
        if epoch["epoch"] != number:
            raise ValueError(f"its history must count epochs from 1, and has {epoch['epoch']!r} in place {number}")
        for name, value in epoch.items():
            if value is not None or not name.startswith("validation"):
                check_number(name, value, low=0)
    check_number("n_iter", fitted["n_iter"], whole=True, low=len(history), high=len(history) + 1)
    check_number("best_epoch", fitted["best_epoch"], whole=True, low=1, high=len(history) + 1)


def diverged(run: Run) -> TrainingError:
    """What to raise for a head whose loss did not stay finite."""
    rate = run.settings.learning_rate
    return TrainingError(
        f"The loss of MLPHead was not finite after epoch {len(run.history)} (learning_rate={rate}).",
        hint="Lower learning_rate, for example by a factor of ten.",
    )
