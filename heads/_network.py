"""The network behind MLPHead: fully connected layers on standardised features, all random numbers from one generator.

torch.nn.Linear and torch.nn.Dropout draw from torch's global generator, and so would change, and be changed by, every
other user of it in the process. Hence tensors and functions here, not modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from ._rows import RowView

__all__ = ["Network", "Samples", "evaluate_network", "moments"]

CHUNK = 1024  # rows that are read and converted at a time: 8 MiB of float32 for ResNet-50's 2048 features


@dataclass(frozen=True)
class Samples:
    """Some `rows` of features `X` (n, d) with label positions `label` (n,)."""

    X: RowView
    label: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp]

    def batch(self, chosen: npt.NDArray[np.intp], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (b, d) float32 and label positions (b,) int64 of the chosen ones among `rows`."""
        rows = self.rows[chosen]
        features = self.X[rows].astype(np.float32, copy=False)  # memory of its own, which torch may keep
        return torch.from_numpy(features).to(device), torch.from_numpy(self.label[rows]).to(device)

    def chunks(self) -> Iterator[npt.NDArray[np.intp]]:
        """Positions 0..len(rows)-1, in order, at most `CHUNK` at a time."""
        for start in range(0, len(self.rows), CHUNK):
            yield np.arange(start, min(start + CHUNK, len(self.rows)))


@dataclass(frozen=True)
class Network:
    """`mean` and `scale` (d,), then for each layer `weights` (out, in) and `biases` (out,), all float32."""

    mean: torch.Tensor
    scale: torch.Tensor
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]

    @classmethod
    def start(
        cls, sizes: list[int], mean: Any, scale: Any, generator: torch.Generator, device: torch.device
    ) -> Network:
        """A network for layer sizes [d, ..., K], initialised as torch.nn.Linear is: uniform in +-1/sqrt(in)."""
        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for n_in, n_out in pairwise(sizes):
            for shape, parameters in (((n_out, n_in), weights), ((n_out,), biases)):
                drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
                drawn.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator)
                parameters.append(drawn.to(device).requires_grad_())
        return cls(torch.from_numpy(mean).to(device), torch.from_numpy(scale).to(device), weights, biases)

    def logits(
        self, x: torch.Tensor, *, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Logits (b, K) of features (b, d). With `dropout`, each hidden unit is zeroed with that probability."""
        x = (x - self.mean) / self.scale
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = functional.linear(x, weight, bias)
            if layer < last:
                x = functional.relu(x)
                if dropout:
                    kept = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32) >= dropout
                    x = x * kept / (1 - dropout)
        return x

    def copy_parameters(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in (*self.weights, *self.biases)]

    def set_parameters(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip((*self.weights, *self.biases), values, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def evaluate_network(network: Network, samples: Samples, class_weight: torch.Tensor) -> tuple[float, float]:
    """Class-weighted cross-entropy and plain accuracy, without dropout."""
    loss = weight = hits = 0.0
    for chosen in samples.chunks():
        x, label = samples.batch(chosen, network.mean.device)
        logits = network.logits(x)
        loss += float(functional.cross_entropy(logits, label, weight=class_weight, reduction="sum"))
        weight += float(class_weight[label].sum())
        hits += int((logits.argmax(dim=1) == label).sum())
    return loss / weight, hits / len(samples.rows)


def moments(samples: Samples) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation (d,) of each feature, as float32, accumulated in float64 chunk by chunk.

    A feature that is constant up to rounding gets scale 1, as dividing by its noise would blow up any other value.
    """
    n, d = len(samples.rows), samples.X.shape[1]
    mean, variance = np.zeros(d), np.zeros(d)
    for chosen in samples.chunks():
        mean += samples.X[samples.rows[chosen]].sum(axis=0, dtype=np.float64) / n
    for chosen in samples.chunks():
        variance += np.square(samples.X[samples.rows[chosen]] - mean).sum(axis=0) / n
    scale = np.sqrt(variance)
    constant = scale <= np.finfo(np.float32).eps * np.abs(mean)
    scale = np.where(constant, 1.0, scale).astype(np.float32)
    return mean.astype(np.float32), np.maximum(scale, np.finfo(np.float32).tiny)
