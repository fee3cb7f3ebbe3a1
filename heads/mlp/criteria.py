"""What an MLP is trained to lower, by the kind of its targets: the loss, and the score that its history shows."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.nn import functional

__all__ = ["Criterion", "CrossEntropy", "LabelEntropy", "SquaredError"]


class Criterion(ABC):
    """outputs: of the network · device, dtype: of what is trained · score: the name of what `scores` gives · unit: what
    it is multiplied by in the history.

    A target (b, ...) is what `Samples.label` holds for a batch.
    """

    outputs: int
    device: torch.device
    dtype: torch.dtype
    score: str
    unit: float = 1.0

    @abstractmethod
    def losses(self, outputs: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
        """The loss (H, b) of each sample, weighted by its class, for outputs (H, b, K)."""

    @abstractmethod
    def weights(self, target: torch.Tensor) -> torch.Tensor:
        """What each sample (b,) counts in `losses`."""

    @abstractmethod
    def scores(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The score (H, b) of each sample."""

    def loss(
        self, outputs: torch.Tensor, target: torch.Tensor, smoothing: float, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The mean loss (H,), weighted by class and by `weight` (b,), averaged as torch averages it."""
        losses, total = self.losses(outputs, target, smoothing), self.weights(target)
        if weight is not None:
            losses, total = losses * weight, total * weight
        # Of weights that the dtype rounds to zero nothing is learned.
        return losses.sum(dim=1) / total.sum().clamp_min(torch.finfo(total.dtype).tiny)


class CrossEntropy(Criterion):
    """Of one class a sample, `target` (b,) positions; class_weight: (K,)."""

    score = "accuracy"

    def __init__(self, class_weight: torch.Tensor) -> None:
        self.class_weight, self.outputs = class_weight, len(class_weight)
        self.device, self.dtype = class_weight.device, class_weight.dtype

    def losses(self, outputs: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
        return functional.cross_entropy(
            outputs.flatten(0, 1),
            target.repeat(len(outputs)),
            self.class_weight,
            reduction="none",
            label_smoothing=smoothing,
        ).view(len(outputs), -1)

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        return self.class_weight[target]

    def scores(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(dim=2) == target


class LabelEntropy(Criterion):
    """Binary cross-entropy of several labels a sample, `target` (b, L) of 0 and 1, averaged over the labels.

    label_weight: (2, L), that of a label that a sample has not, and has. Smoothing moves targets towards 1/2.
    """

    score = "accuracy"

    def __init__(self, label_weight: torch.Tensor) -> None:
        self.label_weight, self.outputs = label_weight, label_weight.shape[1]
        self.device, self.dtype = label_weight.device, label_weight.dtype

    def losses(self, outputs: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
        goal = target * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(outputs, goal.expand_as(outputs), reduction="none")
        return (losses * self._of_labels(target)).mean(dim=2)

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        return self._of_labels(target).mean(dim=1)

    def scores(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((outputs > 0) == (target > 0.5)).to(self.dtype).mean(dim=2)

    def _of_labels(self, target: torch.Tensor) -> torch.Tensor:
        return torch.where(target > 0.5, self.label_weight[1], self.label_weight[0])


class SquaredError(Criterion):
    """Of a number a sample, `target` (b,), standardised; the score is the absolute error, `unit` the scale."""

    score = "absolute_error"
    outputs = 1

    def __init__(self, unit: float, device: torch.device, dtype: torch.dtype) -> None:
        self.unit, self.device, self.dtype = unit, device, dtype

    def losses(self, outputs: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:  # noqa: ARG002
        return (outputs[..., 0] - target) ** 2

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(target)

    def scores(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (outputs[..., 0] - target).abs()
