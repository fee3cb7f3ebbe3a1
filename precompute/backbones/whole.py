"""A cut network behind the part of its preprocessing that runs on the device."""

from __future__ import annotations

import torch
from torch import nn


class WholeNetwork(nn.Module):
    """Batches as `Preprocess.host` gives them -> for each tap (B, *shape) in `dtype`, that of the network."""

    def __init__(self, front: nn.Module, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.front = front
        self.network = network
        self.dtype = dtype

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features: tuple[torch.Tensor, ...] = self.network(*network_input(self.front, batch, self.dtype))
        return features


def network_input(front: nn.Module, batch: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What the network is called with; floating values in its dtype, others (token numbers, masks) as they are."""
    made = front(*batch)
    values = made if isinstance(made, tuple) else (made,)
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)
