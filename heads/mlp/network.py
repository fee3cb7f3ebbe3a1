"""The networks behind MLPHead: many heads of the same widths as one batched model, and their optimiser.

Every array has a leading dimension of heads, and every product is a torch.bmm over it, so that a batch is read and
converted once for all heads. Heads share their initial weights, their batches and the random numbers of dropout (each
compares them with its own probability): they differ by their settings and not by luck, and each is what it would be if
it were trained alone with the same seed, up to rounding.

torch.nn.Linear and torch.nn.Dropout draw from torch's global generator, and so would change, and be changed by, every
other user of it in the process. Therefore tensors and functions here, not modules.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    Tensors = list[torch.Tensor]

__all__ = ["AdamW", "Stack", "logits_of"]

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8  # AdamW's, as in torch and in the paper on Adam
NORM_MOMENTUM, NORM_EPS = 0.1, 1e-5  # batch norm's, as in torch.nn.BatchNorm1d


def logits_of(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits (H, b, K) of standardised features (b, d), by weights (H, out, in) and biases (H, 1, out)."""
    x = x.expand(len(weights[0]), -1, -1)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = torch.baddbmm(bias, functional.relu(x) if layer else x, weight.transpose(1, 2))
    return x


class AdamW:
    """AdamW with a learning rate and a weight decay for each head (Loshchilov & Hutter 2019).

    For a parameter p with gradient g, in step t:  p -= lr wd p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).  That is torch.optim.AdamW, where lr and wd have shape
    (H, 1, 1). Biases and the two vectors of batch norm do not decay.
    """

    def __init__(self, learning_rate: torch.Tensor, weight_decay: torch.Tensor, parameters: Tensors) -> None:
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.first = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.second = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Sequence[torch.Tensor], n_decaying: int, factor: float) -> None:
        """Change `parameters`, of which the first `n_decaying` decay; `factor` is the schedule's."""
        self.steps += 1
        rate = self.learning_rate * factor
        for number, (p, g, m, v) in enumerate(zip(parameters, gradients, self.first, self.second, strict=True)):
            if number < n_decaying:
                p.mul_(1 - rate * self.weight_decay)
            m.lerp_(g, 1 - BETA_1)
            v.mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
            root = v.sqrt().div_(math.sqrt(1 - BETA_2**self.steps)).add_(EPS)
            p.sub_(root.reciprocal_().mul_(m).mul_(rate / (1 - BETA_1**self.steps)))


class Stack:
    """H heads of the layer sizes [d, ..., K], in training.

    settings : for each head (learning rate, weight decay, dropout) · start_seed, dropout_seed : of what is drawn for it
    · dtype : float32 or float64, of every array
    """

    def __init__(
        self,
        sizes: Sequence[int],
        settings: Sequence[tuple[float, float, float]],
        *,
        batch_norm: bool,
        start_seed: int,
        dropout_seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(start_seed)
        self.generator = torch.Generator(device).manual_seed(dropout_seed)

        def same_for_all(row: torch.Tensor) -> torch.Tensor:
            return row.to(device).repeat(len(settings), 1, 1)

        self.weights: Tensors = []
        self.biases: Tensors = []
        for n_in, n_out in pairwise(sizes):  # as torch.nn.Linear starts: uniform in +-1/sqrt(in)
            for shape, drawn in (((1, n_out, n_in), self.weights), ((1, 1, n_out), self.biases)):
                row = torch.empty(shape, dtype=dtype, device="cpu")
                drawn.append(same_for_all(row.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator)))
        widths = sizes[1:-1] if batch_norm else []
        ones = [torch.ones((1, 1, n), dtype=dtype, device="cpu") for n in widths]
        self.gains = [same_for_all(row) for row in ones]
        self.shifts = [same_for_all(row * 0) for row in ones]
        self.running_means = [same_for_all(row * 0) for row in ones]
        self.running_variances = [same_for_all(row) for row in ones]
        if self.gains:  # batch norm takes a bias before it out again; its gradient would be nothing but rounding
            self.biases[:-1] = [torch.zeros_like(bias) for bias in self.biases[:-1]]
        for parameter in self._parameters():
            parameter.requires_grad_()
        rate, decay, self.dropout = (
            torch.tensor(column, dtype=dtype, device=device)[:, None, None] for column in zip(*settings, strict=True)
        )
        self.drops = bool(self.dropout.any())
        self.optimizer = AdamW(rate, decay, self._parameters())

    def _parameters(self) -> Tensors:
        biases = self.biases[-1:] if self.gains else self.biases
        return [*self.weights, *biases, *self.gains, *self.shifts]

    def step(self, loss: torch.Tensor, factor: float) -> None:
        """One step down the losses (H,), the learning rates multiplied by `factor`."""
        parameters = self._parameters()
        # A head's parameters have a part in its own loss alone, so the sum's gradient is each one's own.
        gradients = torch.autograd.grad(loss.sum(), parameters)
        self.optimizer.step(parameters, gradients, len(self.weights), factor)

    def training_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (H, b, K) of standardised features (b, d), with dropout and the batch's own moments."""
        x = x.expand(len(self.dropout), -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight.transpose(1, 2))
            if layer < last:
                x = functional.relu(self._normalised(x, layer) if self.gains else x)
                if self.drops:
                    drawn = torch.rand(x.shape[1:], generator=self.generator, device=x.device, dtype=x.dtype)
                    x = x * (drawn >= self.dropout) / (1 - self.dropout)
        return x

    def _normalised(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Batch norm (Ioffe & Szegedy 2015) of (H, b, width); the running moments follow."""
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
        with torch.no_grad():
            self.running_means[layer].lerp_(mean, NORM_MOMENTUM)
            self.running_variances[layer].lerp_(variance * x.shape[1] / (x.shape[1] - 1), NORM_MOMENTUM)
        return (x - mean) / (variance + NORM_EPS).sqrt() * self.gains[layer] + self.shifts[layer]

    @torch.no_grad()
    def folded(self) -> tuple[Tensors, Tensors]:
        """Weights and biases for `logits_of`, batch norm with its running moments folded into them."""
        weights = [weight.detach() for weight in self.weights]
        biases = [bias.detach() for bias in self.biases]
        for layer, gain in enumerate(self.gains):
            factor = gain / (self.running_variances[layer] + NORM_EPS).sqrt()
            weights[layer] = weights[layer] * factor.transpose(1, 2)
            biases[layer] = (biases[layer] - self.running_means[layer]) * factor + self.shifts[layer]
        return weights, biases

    def keep(self, chosen: Sequence[int]) -> None:
        """Go on with some of the heads, by their positions."""
        index = torch.tensor(chosen, device=self.dropout.device, dtype=torch.int64)
        optimizer = self.optimizer
        trained = (self.weights, self.biases, self.gains, self.shifts)
        followed = (self.running_means, self.running_variances, optimizer.first, optimizer.second)
        for tensors in (*trained, *followed):
            tensors[:] = [tensor.detach()[index].requires_grad_(tensor.requires_grad) for tensor in tensors]
        self.dropout = self.dropout[index]
        self.drops = bool(self.dropout.any())
        optimizer.learning_rate, optimizer.weight_decay = optimizer.learning_rate[index], optimizer.weight_decay[index]
