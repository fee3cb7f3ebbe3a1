"""The attentive probe as a scikit-learn classifier."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.attentive.fitting import fit_attention
from precompute.heads.attentive.network import Grid, attention_of, logits_of, pooled_by
from precompute.heads.base.arrays import usable_device
from precompute.heads.base.file_checks import check_shapes
from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_features,
    check_number,
    check_training,
    class_weights,
    weighted_rows,
)
from precompute.heads.mlp.criteria import CrossEntropy
from precompute.heads.mlp.mlp_base import MLPBase, check_history, diverged
from precompute.heads.mlp.samples import Samples, early_stopping_split

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from precompute.heads.base.rows import Features

__all__ = ["AttentiveHead"]


class AttentiveHead(ClassifierMixin, MLPBase):  # type: ignore[misc]  # scikit-learn has no types
    """A few learned queries that weigh the positions of a token map by attention, then a linear classifier.

    Efficient probing (Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency",
    ICLR 2026; see `network.py` for what is simpler here); attentive probes go back to CoCa (Yu et al. 2022), V-JEPA
    (Bardes et al. 2024) and CAPI (Darcet et al. 2025). With one position, or with queries of zero, it is a linear
    classifier of the mean. Trained as MLPHead is, with AdamW and early stopping; with a `random_state`, the same
    machine and number of threads give the same bits on a CPU. Features are read a batch at a time and may be larger
    than memory.

    Parameters
    ----------
    tokens : T, how many positions the features (d,) of a sample are; each has C = d / T channels
    channels_first : whether they are stored as (C, T), such as (channel, height, width), and not as (T, C)
    queries : M, how many weighted means are taken
    dropout : probability with which a value of these means is zeroed in a training step
    label_smoothing, weight_decay, learning_rate, batch_size, max_epochs, patience, schedule, validation_fraction,
    class_weight, random_state, device : as those of MLPHead; the weights of the linear layer alone decay

    Attributes
    ----------
    classes_ : (K,), sorted
    mean_, scale_ : (C,), of the channels of the training features over all positions, float64 where `X` was and else
        float32
    query_, weight_, bias_ : (M, C), (K, M C) and (K,) in the same dtype
    history_, best_epoch_, validation_source_, n_iter_, n_features_in_ : as those of MLPHead
    """

    hidden = ()
    batch_norm = False
    mixup = 0.0

    def __init__(
        self,
        *,
        tokens: int = 1,
        channels_first: bool = False,
        queries: int = 4,
        dropout: float = 0.2,
        label_smoothing: float = 0.0,
        weight_decay: float = 1e-2,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        max_epochs: int = 100,
        patience: int = 20,
        schedule: str = "cosine",
        validation_fraction: float = 0.15,
        class_weight: Any = None,
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.tokens = tokens
        self.channels_first = channels_first
        self.queries = queries
        self.dropout = dropout
        self.label_smoothing = label_smoothing
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
        for name in ("tokens", "queries"):
            check_number(name, getattr(self, name), whole=True, low=1)
        if not isinstance(self.channels_first, bool):
            raise ValueError(f"channels_first must be True or False. Got {self.channels_first!r} instead.")
        check_number("label_smoothing", self.label_smoothing, low=0, high=1)
        check_class_weight(self.class_weight)

    def _grid(self, d: int) -> Grid:
        """Raises ValueError where `d` features are no positions of as many channels each."""
        if d % self.tokens:
            raise ValueError(f"{d} features are not {self.tokens} positions of as many channels each.")
        return Grid(self.tokens, d // self.tokens, self.channels_first)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> AttentiveHead:
        """Fit on features `X` (n, T C), float64 in float64 and others in float32, and labels `y` (n,).

        `validation`, `groups` and `sample_weight` are those of MLPHead. Raises what its `fit` does, and ValueError
        where the features are no positions of as many channels each.
        """
        self._check_parameters()
        features, label, self.classes_ = check_training(self, X, y)
        grid = self._grid(features.shape[1])
        given = weighted_rows(features, sample_weight, groups)
        label = given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        device = usable_device(self.device, features.working_dtype, type(self).__name__)
        train, held, self.validation_source_ = early_stopping_split(
            self, given, label, validation, fraction=self.validation_fraction, seed=self.random_state
        )
        weight = class_weights(self.class_weight, self.classes_, label, given.weight).astype(train.dtype)
        criterion = CrossEntropy(torch.from_numpy(weight).to(device))
        fit = fit_attention(self._settings(), grid, self.queries, train, held, criterion)
        if fit.run.diverged:
            raise diverged(fit.run, type(self).__name__)
        self.mean_, self.scale_ = fit.run.mean, fit.run.scale
        self.query_, self.weight_, self.bias_ = fit.query, fit.weight, fit.bias
        self.history_, self.best_epoch_, self.n_iter_ = fit.run.history, fit.run.best_epoch, len(fit.run.history)
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

    def attention(self, X: Features) -> npt.NDArray[np.floating]:
        """Where each query looks: the weight (n, M, T) of each position of features (n, d), which add up to 1."""
        return self._of_positions(X, lambda z, query, *_: attention_of(z, query), (self.queries, self.tokens))

    def _of_logits(self, X: Features, function: Callable[[torch.Tensor], torch.Tensor]) -> npt.NDArray[np.floating]:
        check_is_fitted(self)
        return self._of_positions(
            X,
            lambda z, query, weight, bias: function(logits_of(pooled_by(z, query), weight, bias)),
            (self._n_outputs,),
        )

    def _of_positions(
        self, X: Features, function: Callable[..., torch.Tensor], shape: tuple[int, ...]
    ) -> npt.NDArray[np.floating]:
        """What `function` makes of standardised positions (b, T, C) and the weights, (n, *shape) for all rows."""
        check_is_fitted(self)
        features = check_features(self, X)
        grid, dtype = self._grid(features.shape[1]), np.result_type(features.working_dtype, self.mean_)
        device = usable_device(self.device, dtype, type(self).__name__)
        mean, scale, *weights = (
            torch.tensor(array.astype(dtype, copy=False), device=device)
            for array in (self.mean_, self.scale_, self.query_, self.weight_, self.bias_)
        )
        samples = Samples(features, np.zeros(len(features), np.intp), np.arange(len(features)), dtype)
        found, at = np.empty((len(features), *shape), dtype), 0
        with torch.no_grad():
            for x, *_ in samples.in_order(device):
                found[at : at + len(x)] = function(grid.standardised(x, mean, scale), *weights).cpu().numpy()
                at += len(x)
        return found

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        names = ("mean", "scale", "query", "weight", "bias")
        return {name: getattr(self, f"{name}_") for name in names}

    def _restore(self, arrays: dict[str, npt.NDArray[Any]], fitted: dict[str, Any]) -> None:
        channels = len(arrays["mean"]) if "mean" in arrays else 0
        expected: dict[str, tuple[int, ...]] = {"mean": (channels,), "scale": (channels,)}
        expected |= {"query": (self.queries, channels), "bias": (self._n_outputs,)}
        check_shapes(arrays, {**expected, "weight": (self._n_outputs, self.queries * channels)})
        if not (arrays["scale"] > 0).all():
            raise ValueError("its array scale must be above 0")
        check_history(fitted, self.SCORE)
        if not isinstance(fitted["validation_source"], str):
            raise ValueError("its validation_source must be a string")
        for name, array in arrays.items():
            setattr(self, f"{name}_", array)
        self.n_features_in_ = self.tokens * channels
