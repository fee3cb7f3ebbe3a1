"""Attentive pooling: each query weighs the positions by attention, and their weighted means go into one linear layer.

As in efficient probing (Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of
Efficiency", ICLR 2026), the positions are their own keys: several queries without a key projection do what several
attention heads with one do. That paper projects values by a matrix of (C, C), of which each query has a part; here the
linear layer sees all channels of each query's mean, which holds that as a special case and has fewer parameters where
classes are few: (M C + 1) K, and M C for the queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Grid", "attention_of", "logits_of", "pooled_by"]


@dataclass(frozen=True)
class Grid:
    """How the features of a sample (d,) are positions (T, C). channels_first: stored as (C, T)."""

    tokens: int
    channels: int
    channels_first: bool

    def of(self, x: Any) -> Any:
        """Features (b, d), of NumPy or torch, as (b, T, C); a view."""
        if self.channels_first:
            return x.reshape(len(x), self.channels, self.tokens).swapaxes(1, 2)
        return x.reshape(len(x), self.tokens, self.channels)

    def standardised(self, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(b, T, C), by moments of the channels (C,)."""
        found: torch.Tensor = (self.of(x) - mean) / scale
        return found


def attention_of(z: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The weight (b, M, T) of each position (b, T, C) for each query (M, C); those of a query add up to 1."""
    return torch.softmax(query @ z.transpose(1, 2) / math.sqrt(z.shape[2]), dim=2)


def pooled_by(z: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The mean of the positions (b, T, C) by the attention of each query (M, C), side by side: (b, M C)."""
    return (attention_of(z, query) @ z).flatten(1)


def logits_of(pooled: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(b, K) of pooled features (b, M C), by weight (K, M C) and bias (K,)."""
    return functional.linear(pooled, weight, bias)


def as_arrays(*tensors: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Copies on the host."""
    return [tensor.detach().cpu().numpy().copy() for tensor in tensors]
