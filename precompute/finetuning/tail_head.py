"""A fitted tail as scoring and prediction see it: a head on the activations of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.engines.devices import check_device
from precompute.engines.torch import true_fp32
from precompute.finetuning.network import TailNetwork, n_parameters
from precompute.heads.base.ahead import ahead
from precompute.heads.base.labels import INITIAL_THRESHOLD, check_thresholds
from precompute.heads.base.rows import BLOCK_BYTES
from precompute.training.targets import CLASSES, LABELS, NUMBER

MOST_AT_ONCE = 256  # samples a forward pass of a prediction


@dataclass(frozen=True)
class Fitted:
    """What the training decided, JSON-ready.

    history: an entry for each epoch as in `MLPHead.history_`, and one for epoch 0, the linear head alone · best_epoch:
    whose weights are kept · stopped_on: "given", "held out", or why there was nothing to hold out · linear: what the
    linear head chose · settings: those of the training · target_mean, target_scale: by which numbers are standardised ·
    thresholds: of labels.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    stopped_on: str
    linear: dict[str, Any]
    settings: dict[str, Any]
    target_mean: float = 0.0
    target_scale: float = 1.0
    thresholds: list[float] = field(default_factory=list)


class TailHead:
    """Predicts from the activations of one layer, (n, *shape), also flattened, as an array or a `RowView`.

    task: "classes", "labels" or "number" · classes_ or labels_: names, of the first two · thresholds_: (L,) of labels ·
    n_features_in_: numbers in the activation of one sample · fitted: see `Fitted`.
    """

    def __init__(
        self,
        network: TailNetwork,
        shape: tuple[int, ...],
        task: str,
        names: tuple[str, ...],
        fitted: Fitted,
        device: str = "cpu",
    ) -> None:
        check_device(device)
        self.network, self.shape, self.task, self.fitted, self.device = network.to(device), shape, task, fitted, device
        self.n_features_in_ = math.prod(shape)
        if task == CLASSES:
            self.classes_: NDArray[Any] = np.array(names, dtype=np.str_)
        elif task == LABELS:
            self.labels_: NDArray[Any] = np.array(names, dtype=np.str_)
            self.set_thresholds(fitted.thresholds or [INITIAL_THRESHOLD] * len(names))

    def set_thresholds(self, thresholds: Any) -> TailHead:
        """Predict a label where its probability is above its threshold: (L,) from 0 to 1."""
        self.thresholds_ = check_thresholds(thresholds, len(self.labels_))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.floating]:
        """Probabilities float32: (n, K) of classes, (n, L) of labels, each its own."""
        outputs = torch.from_numpy(self.outputs(X))
        found: NDArray[np.floating] = (outputs.sigmoid() if self.task == LABELS else outputs.softmax(dim=1)).numpy()
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """Names of classes (n,), 0 and 1 of labels (n, L), or numbers (n,) float64."""
        if self.task == NUMBER:
            standardised = self.outputs(X)[:, 0].astype(np.float64)
            numbers: NDArray[Any] = standardised * self.fitted.target_scale + self.fitted.target_mean
            return numbers
        proba = self.predict_proba(X)
        if self.task == LABELS:
            return (proba > self.thresholds_).astype(np.intp)
        named: NDArray[Any] = self.classes_[proba.argmax(axis=1)]
        return named

    def outputs(self, X: Any) -> NDArray[np.float32]:
        """What the output layer gives, (n, K), in blocks: a block is read while the one before it is computed."""
        n = len(X)
        size = max(1, min(MOST_AT_ONCE, BLOCK_BYTES // (4 * self.n_features_in_)))
        found = np.empty((n, self.network.output.out_features), np.float32)
        at = 0
        with torch.inference_mode(), true_fp32(self.device):
            for block in ahead(self._block(X, slice(start, start + size)) for start in range(0, n, size)):
                found[at : at + len(block)] = self.network(block.to(self.device)).cpu().numpy()
                at += len(block)
        return found

    def _block(self, X: Any, rows: slice) -> torch.Tensor:
        values = np.ascontiguousarray(X[rows], dtype=np.float32)
        return torch.from_numpy(values.reshape(len(values), *self.shape))

    def choices(self) -> dict[str, Any]:
        """What the training decided, ready for JSON."""
        more = {"thresholds": self.thresholds_.tolist()} if self.task == LABELS else {}
        return {
            "best_epoch": self.fitted.best_epoch,
            "epochs": self.epochs,
            "stopped_on": self.fitted.stopped_on,
            "history": self.fitted.history,
            "linear": self.fitted.linear,
            "settings": self.fitted.settings,
            "parameters": n_parameters(self.network),
            **more,
        }

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.fitted.history) - 1

    def summary(self) -> str:
        """The same as one line."""
        kept = f"epoch {self.fitted.best_epoch} of {self.epochs}" if self.fitted.best_epoch else "the linear head"
        return f"{kept} (validation: {self.fitted.stopped_on}), {n_parameters(self.network):,} parameters trained"

    def used_validation(self) -> bool:
        """Whether a split that is scored has decided anything."""
        return self.fitted.stopped_on == "given"
