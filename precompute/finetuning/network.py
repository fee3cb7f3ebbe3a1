"""The network that is trained: a tail and a new output layer on it, beginning as a linear head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.training.targets import CLASSES, NUMBER


@dataclass(frozen=True)
class OutputLayer:
    """The weights of an output layer: weight (K, d) and bias (K,), float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of_head(cls, head: Any, task: str, mean: float = 0.0, scale: float = 1.0) -> OutputLayer:
        """The one that predicts what a fitted linear head does.

        Of two classes a head has one row, whose logit is the difference of the two here. Of numbers the layer gives the
        standardised ones, of which `mean` and `scale` make those of the head.
        """
        coef, intercept = head.coef_.astype(np.float64), np.asarray(head.intercept_, np.float64)
        if task == CLASSES and len(coef) == 1:
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        if task == NUMBER:
            coef, intercept = coef / scale, (intercept - mean) / scale
        return cls(coef.astype(np.float32), intercept.astype(np.float32))


def features_of(tail: nn.Module, activations: torch.Tensor) -> torch.Tensor:
    """What a tail makes of activations, (B, d). Maps are laid out as `TailNetwork` has its weights."""
    if activations.ndim == 4:
        activations = activations.contiguous(memory_format=torch.channels_last)
    features: torch.Tensor = tail(activations)
    return features


def prepared(tail: nn.Module, device: str) -> nn.Module:
    """`tail` on its device, in eval mode, with the layout of weights that is the fastest for maps on CPUs."""
    return tail.eval().to(device).to(memory_format=torch.channels_last)


class TailNetwork(nn.Module):
    """Activations (B, *shape) -> outputs (B, K): logits, or one standardised number.

    tail: (B, *shape) -> (B, d) · output: the new layer. Always in eval mode: BatchNorm keeps the statistics of the
    pretraining, and what is random in a network in training mode stays off.
    """

    def __init__(self, tail: nn.Module, layer: OutputLayer) -> None:
        super().__init__()
        self.tail = tail
        outputs, width = layer.weight.shape
        self.output = nn.Linear(width, outputs, device="meta")  # which draws no random numbers
        self.output.weight = nn.Parameter(torch.from_numpy(layer.weight.copy()))
        self.output.bias = nn.Parameter(torch.from_numpy(layer.bias.copy()))
        self.eval()
        self.to(memory_format=torch.channels_last)

    def features(self, activations: torch.Tensor) -> torch.Tensor:
        """(B, d)."""
        return features_of(self.tail, activations)

    def forward(self, activations: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """dropped: (B, d) what features are multiplied by, see `batches.dropout_of`."""
        features = self.features(activations)
        outputs: torch.Tensor = self.output(features if dropped is None else features * dropped)
        return outputs


def n_parameters(network: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(math.prod(parameter.shape) for parameter in network.parameters())
