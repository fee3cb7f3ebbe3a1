"""What the MLP heads share: their parameters, how they are trained, what a file holds of them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from precompute.errors import TrainingError
from precompute.heads.base.arrays import usable_device
from precompute.heads.base.file_checks import check_shapes, list_of_objects
from precompute.heads.base.inputs import check_features, check_number
from precompute.heads.mlp.fitting import Run, Settings, fit_together
from precompute.heads.mlp.network import logits_of
from precompute.heads.mlp.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.base.rows import Features
    from precompute.heads.mlp.criteria import Criterion

__all__ = ["MLPBase", "check_history", "diverged"]

SCHEDULES = ("constant", "cosine")


class MLPBase(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Parameters of training; fitted `mean_`, `scale_`, `weights_`, `biases_` and how training went.

    SCORE: what the history shows next to the loss.
    """

    _FITTED: tuple[str, ...] = ("history_", "best_epoch_", "validation_source_", "n_iter_")
    SCORE = "accuracy"
    draws_views = True  # of samples with several views, as `ViewRows`, one in each epoch
    validation_source_: str
    hidden: tuple[int, ...]
    dropout: float
    batch_norm: bool
    mixup: float
    weight_decay: float
    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int
    schedule: str
    validation_fraction: float
    random_state: int | None
    device: str

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not isinstance(self.hidden, tuple | list):
            raise ValueError(f"hidden must be a tuple of layer widths, such as (256,). Got {self.hidden!r} instead.")
        for width in self.hidden:
            check_number("every width in hidden", width, whole=True, low=1)
        check_number("dropout", self.dropout, low=0, high=1)
        if not isinstance(self.batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False. Got {self.batch_norm!r} instead.")
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
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)

    @property
    def _n_outputs(self) -> int:
        """Of the network."""
        raise NotImplementedError

    def _train(self, train: Samples, held: Samples | None, criterion: Criterion) -> None:
        """Fit. Raises TrainingError where the loss does not stay finite."""
        (run,), _ = fit_together([self._settings()], train, held, criterion)
        if run.diverged:
            raise diverged(run, type(self).__name__)
        self._adopt(run)

    def _settings(self) -> Settings:
        """The parameters that training reads; a head without one of them has its default."""
        chosen = {field.name: getattr(self, field.name) for field in fields(Settings) if hasattr(self, field.name)}
        return Settings(**{**chosen, "hidden": tuple(self.hidden)})

    def _adopt(self, run: Run) -> None:
        """Set what training has fitted."""
        self.mean_, self.scale_, self.weights_, self.biases_ = run.mean, run.scale, run.weights, run.biases
        self.history_, self.best_epoch_, self.n_iter_ = run.history, run.best_epoch, len(run.history)

    def _of_logits(self, X: Features, function: Callable[[torch.Tensor], torch.Tensor]) -> npt.NDArray[np.floating]:
        """What `function` makes of the logits (b, K) of some rows, for all rows of `X` (n, d)."""
        check_is_fitted(self)
        features = check_features(self, X)
        dtype = np.result_type(features.working_dtype, self.mean_)
        device = usable_device(self.device, dtype, type(self).__name__)
        mean, scale, *layers = (
            torch.tensor(array.astype(dtype, copy=False), device=device)
            for array in (self.mean_, self.scale_, *self.weights_, *self.biases_)
        )
        weights = [weight[None] for weight in layers[: len(self.weights_)]]
        biases = [bias[None, None] for bias in layers[len(self.weights_) :]]
        samples = Samples(features, np.zeros(len(features), dtype=np.intp), np.arange(len(features)), dtype)
        found = np.empty((len(features), self._n_outputs), dtype)  # small results kept one by one pin the heap
        at = 0
        with torch.no_grad():
            for x, *_ in samples.in_order(device):
                logits = logits_of(weights, biases, (x - mean) / scale)[0]
                found[at : at + len(x)] = function(logits).cpu().numpy()
                at += len(x)
        return found

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
        sizes = [n_features, *self.hidden, self._n_outputs]
        layers = range(len(sizes) - 1)
        expected: dict[str, tuple[int, ...]] = {"mean": (n_features,), "scale": (n_features,)}
        for layer in layers:
            expected |= {f"weight_{layer}": (sizes[layer + 1], sizes[layer]), f"bias_{layer}": (sizes[layer + 1],)}
        check_shapes(arrays, expected)
        if not (arrays["scale"] > 0).all():
            raise ValueError("its array scale must be above 0")
        check_history(fitted, self.SCORE)
        if not isinstance(fitted["validation_source"], str):
            raise ValueError("its validation_source must be a string")
        self.mean_, self.scale_, self.n_features_in_ = arrays["mean"], arrays["scale"], n_features
        self.weights_ = [arrays[f"weight_{layer}"] for layer in layers]
        self.biases_ = [arrays[f"bias_{layer}"] for layer in layers]


def check_history(fitted: dict[str, Any], score: str) -> None:
    """Raise ValueError unless the history in a file counts its epochs from 1, and the other counts agree with it."""
    keys = {"epoch", *(f"{of}_{what}" for of in ("train", "validation") for what in ("loss", score))}
    history = list_of_objects("history", fitted["history"], keys)
    for number, epoch in enumerate(history, start=1):
        if epoch["epoch"] != number:
            raise ValueError(f"its history must count epochs from 1, and has {epoch['epoch']!r} in place {number}")
        for name, value in epoch.items():
            if value is not None or not name.startswith("validation"):
                check_number(name, value, low=0)
    check_number("n_iter", fitted["n_iter"], whole=True, low=len(history), high=len(history) + 1)
    check_number("best_epoch", fitted["best_epoch"], whole=True, low=1, high=len(history) + 1)


def diverged(run: Run, name: str) -> TrainingError:
    """What to raise for a head whose loss did not stay finite."""
    rate = run.settings.learning_rate
    return TrainingError(
        f"The loss of {name} was not finite after epoch {len(run.history)} (learning_rate={rate}).",
        hint="Lower learning_rate, for example by a factor of ten.",
    )
