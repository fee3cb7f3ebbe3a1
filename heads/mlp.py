"""A small multi-layer perceptron on features, trained with early stopping."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional

from precompute.errors import DeviceError, TrainingError

from ._inputs import (
    check_class_weight,
    check_features,
    check_number,
    check_training,
    check_validation,
    class_weights,
)
from ._network import Network, Samples, evaluate_network, moments
from .splits import held_out

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._rows import Features

__all__ = ["MLPHead"]

# Fewer held-out samples say too little about when to stop to be worth not training on them.
MIN_HELD_OUT = 10
# One sample of each small class can be far more than the fraction asked for; then training needs them more.
MAX_TIMES_FRACTION = 2


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A multi-layer perceptron: standardised features, then ReLU layers with dropout, then one logit per class.

    Trained with AdamW (Loshchilov & Hutter 2019) on the cross-entropy. Training stops once the validation loss has not
    improved for `patience` epochs, and the weights of the best epoch are kept. With a `random_state`, the same machine
    and number of threads give the same bits on a CPU. No global state of torch or NumPy is read or changed.

    Parameters
    ----------
    hidden : widths of the hidden layers; () is a linear head
    dropout : probability with which a hidden unit is zeroed in a training step (Srivastava et al. 2014)
    weight_decay : AdamW's, on the weights and not on the biases
    learning_rate, batch_size, max_epochs, patience : as the names say
    validation_fraction : share of the training samples held out to stop on, where `fit` gets no validation set
    class_weight : None, "balanced", or a dict from label to weight; it weighs the loss, also the one to stop on
    random_state : seed of the initial weights, batches, dropout and hold-out; None draws a new one
    device : where to compute, as torch names it; not part of a saved head

    Attributes
    ----------
    classes_ : (K,), sorted
    mean_, scale_ : (d,) float32, of the training features
    weights_, biases_ : lists of (out, in) and (out,) float32, one per layer
    history_ : list with one dict per epoch: "epoch" (from 1), "train_loss", "train_accuracy", "validation_loss",
        "validation_accuracy". All four are measured at the end of the epoch without dropout, so that the curves can be
        compared. Without a validation set the latter two are None.
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
        weight_decay: float = 1e-4,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        max_epochs: int = 200,
        patience: int = 20,
        validation_fraction: float = 0.15,
        class_weight: Any = None,
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
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
        check_number("weight_decay", self.weight_decay, low=0, high=1e6)  # beyond float32 torch raises in the middle
        check_number("learning_rate", self.learning_rate, low=0, high=1e6, open_low=True)
        for name in ("batch_size", "max_epochs", "patience"):
            check_number(name, getattr(self, name), whole=True, low=1)
        check_number("validation_fraction", self.validation_fraction, low=0, high=1, open_low=True)
        check_class_weight(self.class_weight)
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> MLPHead:
        """Fit on features `X` (n, d), float16 or float32 as they are (others as float32), and labels `y` (n,).

        `validation` is a pair (X, y) to stop on; without it some samples are held out, stratified, and `groups` (n,)
        says which must not be parted, such as files with the same bytes.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, or a parameter out of range;
        TrainingError if the loss does not stay finite; DeviceError if the machine lacks the device.
        """
        self._check_parameters()
        device = _usable_device(self.device)
        features, label, self.classes_ = check_training(self, X, y)
        train, held = self._split(features, label, validation, groups)
        weight = class_weights(self.class_weight, self.classes_, label).astype(np.float32)
        self._train(train, held, torch.from_numpy(weight).to(device))
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.float32]:
        """Probabilities (n, K) float32 of features (n, d), in the order of `classes_`."""
        check_is_fitted(self)
        device = _usable_device(self.device)
        features = check_features(self, X)
        fitted = [[torch.tensor(a, device=device) for a in arrays] for arrays in (self.weights_, self.biases_)]
        network = Network(torch.tensor(self.mean_, device=device), torch.tensor(self.scale_, device=device), *fitted)
        samples = Samples(features, np.zeros(len(features), dtype=np.intp), np.arange(len(features)))
        with torch.no_grad():
            parts = [network.logits(samples.batch(c, device)[0]).softmax(dim=1).cpu() for c in samples.chunks()]
        return torch.cat(parts).numpy()

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

    def _split(self, X: Any, label: Any, validation: Any, groups: Any) -> tuple[Samples, Samples | None]:
        """The samples to train on and those to stop on; sets `validation_source_`."""
        every = Samples(X, label, np.arange(len(X)))
        if validation is not None:
            Xv, held_label = check_validation(self, validation, self.classes_)
            self.validation_source_ = "given"
            return every, Samples(Xv, held_label, np.arange(len(Xv)))
        held = held_out(label, groups=groups, fraction=self.validation_fraction, seed=self.random_state)
        if not MIN_HELD_OUT <= held.sum() <= MAX_TIMES_FRACTION * self.validation_fraction * len(X):
            self.validation_source_ = "none: too few samples to hold out"
            return every, None
        self.validation_source_ = "held out"
        return Samples(X, label, np.flatnonzero(~held)), Samples(X, label, np.flatnonzero(held))

    @torch.enable_grad()  # the caller may be inside no_grad
    def _train(self, train: Samples, held: Samples | None, class_weight: torch.Tensor) -> None:
        """The whole training; sets the fitted attributes."""
        device = class_weight.device
        generator, on_device = torch.Generator(), torch.Generator(device)
        seed = generator.seed() if self.random_state is None else int(self.random_state)
        generator.manual_seed(seed)
        on_device.manual_seed(seed)
        self.mean_, self.scale_ = moments(train)
        sizes = [train.X.shape[1], *self.hidden, len(class_weight)]
        network = Network.start(sizes, self.mean_, self.scale_, generator, device)
        optimizer = torch.optim.AdamW(
            [
                {"params": network.weights, "weight_decay": self.weight_decay},
                {"params": network.biases, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
        )
        self.history_: list[dict[str, Any]] = []
        self.best_epoch_, best_loss, best = 0, math.inf, network.copy_parameters()
        for epoch in range(1, self.max_epochs + 1):
            order = torch.randperm(len(train.rows), generator=generator, device="cpu")
            for chosen in torch.split(order, self.batch_size):
                x, label = train.batch(chosen.numpy(), device)
                logits = network.logits(x, dropout=self.dropout, generator=on_device)
                loss = functional.cross_entropy(logits, label, weight=class_weight)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
            watched = self._record(epoch, network, train, held, class_weight)
            if watched < best_loss:
                best_loss, self.best_epoch_, best = watched, epoch, network.copy_parameters()
            elif epoch - self.best_epoch_ >= self.patience:
                break
        network.set_parameters(best)
        self.weights_ = [weight.detach().cpu().numpy() for weight in network.weights]
        self.biases_ = [bias.detach().cpu().numpy() for bias in network.biases]
        self.n_iter_ = len(self.history_)

    def _record(
        self, epoch: int, network: Network, train: Samples, held: Samples | None, class_weight: torch.Tensor
    ) -> float:
        """Append one epoch to `history_` and return the loss that early stopping watches."""
        names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        measured = evaluate_network(network, train, class_weight)
        validated = (None, None) if held is None else evaluate_network(network, held, class_weight)
        self.history_.append({"epoch": epoch, **dict(zip(names, (*measured, *validated), strict=True))})
        watched = measured[0] if validated[0] is None else validated[0]
        if not (math.isfinite(measured[0]) and math.isfinite(watched)):
            raise TrainingError(
                f"The loss of MLPHead was not finite after epoch {epoch} (learning_rate={self.learning_rate}).",
                hint="Lower learning_rate, for example by a factor of ten.",
            )
        return watched


def _usable_device(name: str) -> torch.device:
    """The torch device of that name, once it has shown that it can hold a tensor."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises AssertionError where CUDA is compiled out
        raise DeviceError(
            f"MLPHead cannot use the device {name!r}: {str(error).partition(chr(10))[0]}",
            hint="Use device='cpu', or a device that `torch.accelerator.is_available()` finds.",
        ) from error
    return device
