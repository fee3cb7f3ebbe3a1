"""Fitted heads as modules of torch, in the arithmetic of their `predict_proba` and `predict`: float32 where these are,
float64 where these are.

A head's module takes features (1, d) float32 and gives probabilities (1, K) of classes, (1, L) of labels, or a number
(1, 1), float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from precompute.errors import HeadError
from precompute.finetuning.tail_head import TailHead
from precompute.heads.attentive.network import logits_of, pooled_by
from precompute.heads.persistence.kinds import kind_of
from precompute.heads.scoring.temperature import SMALLEST
from precompute.training.targets import LABELS, NUMBER

LARGEST_NEIGHBOURS = 2**29  # bytes of training features in a graph, which must be below 2 GiB in all


def head_module(head: Any, name: str) -> nn.Module:
    """The module of a fitted head, or of a tail that is attached to its backbone; `name` is its file's.

    Raises HeadError for a head that is too large for a graph.
    """
    if isinstance(head, TailHead):
        return _Tail(head).eval()
    return MODULES[kind_of(head)](head, name).eval()


class AtTemperature(nn.Module):
    """Probabilities (1, K) at the temperature of `train-head --calibrate`: the softmax of their logarithms by it."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = float(temperature)

    def forward(self, proba: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.log(torch.clamp(proba.double(), min=SMALLEST)) / self.temperature, dim=1)


class _Head(nn.Module):
    """Keeps arrays of a head as buffers, in the dtype that they have."""

    def keep(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """coef x + intercept (1, outputs): in float64 where one of the two is."""
        coef, intercept = self.get_buffer("coef"), self.get_buffer("intercept")
        scores = x.to(coef.dtype) @ coef.T
        double = torch.float64 in (scores.dtype, intercept.dtype)
        return (scores.double() if double else scores) + intercept


class _Linear(_Head):
    """`function` of what a linear head scores with; one column of two classes stands for the second."""

    def __init__(self, head: Any, function: Callable[[torch.Tensor], torch.Tensor], **arrays: Any) -> None:
        super().__init__()
        self.keep(coef=head.coef_, intercept=head.intercept_, **arrays)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x)).double()


def _logistic(head: Any, name: str) -> nn.Module:
    del name
    return _Linear(head, lambda logits: _softmax(_from_zero(logits)))


def _ridge(head: Any, name: str) -> nn.Module:
    del name
    temperature = float(head.temperature_)
    return _Linear(head, lambda scores: _softmax(_two_sided(scores).double() / temperature))


def _label_logistic(head: Any, name: str) -> nn.Module:
    del name
    return _Linear(head, torch.sigmoid)


class _LabelRidge(_Head):
    def __init__(self, head: Any, name: str) -> None:
        super().__init__()
        del name
        self.keep(coef=head.coef_, intercept=head.intercept_)
        self.keep(slopes=np.array(head.slopes_, np.float64), offsets=np.array(head.offsets_, np.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.linear(x).double() * self.get_buffer("slopes")
        return torch.sigmoid(scores + self.get_buffer("offsets"))


def _ridge_regression(head: Any, name: str) -> nn.Module:
    if not head.one_target_:
        raise HeadError(
            f"The head {name} predicts {len(head.coef_)} numbers, and a graph gives one.",
            hint="Train a head for each of them.",
        )
    return _Linear(head, lambda scores: scores)


class _Layers(_Head):
    """An MLP: standardised features, then layers with ReLU between them."""

    def __init__(self, head: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.n_layers, self.function = len(head.weights_), function
        self.keep(mean=head.mean_, scale=head.scale_)
        for number, (weight, bias) in enumerate(zip(head.weights_, head.biases_, strict=True)):
            self.keep(**{f"weight_{number}": weight, f"bias_{number}": bias})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.get_buffer("mean")
        x = (x.to(mean.dtype) - mean) / self.get_buffer("scale")
        for number in range(self.n_layers):
            x = functional.relu(x) if number else x
            x = functional.linear(x, self.get_buffer(f"weight_{number}"), self.get_buffer(f"bias_{number}"))
        return self.function(x).double()


def _mlp_regression(head: Any, name: str) -> nn.Module:
    del name
    scale, mean = float(head.target_scale_), float(head.target_mean_)
    return _Layers(head, lambda outputs: outputs.double() * scale + mean)


class _Attentive(_Head):
    def __init__(self, head: Any, name: str) -> None:
        super().__init__()
        del name
        self.grid = head._grid(int(head.n_features_in_))
        self.keep(mean=head.mean_, scale=head.scale_, query=head.query_, weight=head.weight_, bias=head.bias_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.get_buffer("mean")
        positions = self.grid.standardised(x.to(mean.dtype), mean, self.get_buffer("scale"))
        pooled = pooled_by(positions, self.get_buffer("query"))
        return _softmax(logits_of(pooled, self.get_buffer("weight"), self.get_buffer("bias"))).double()


class _Centroid(_Head):
    """The cosine, or minus the squared distance but for what is the same for all classes, see `CentroidHead`."""

    def __init__(self, head: Any, name: str) -> None:
        super().__init__()
        del name
        centroids, directions = head.centroids_.astype(np.float64), head.directions_.astype(np.float64)
        self.cosine, self.temperature = head.metric == "cosine", float(head.temperature_)
        middle = np.zeros(centroids.shape[1]) if self.cosine else centroids.mean(axis=0)
        offset = ((centroids - middle) * directions).sum(axis=1)
        self.keep(directions=directions, middle=middle, offset=offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = _unit(x.double()) if self.cosine else x.double()
        scores = (rows - self.get_buffer("middle")) @ self.get_buffer("directions").T
        scores = scores if self.cosine else 2 * scores - self.get_buffer("offset")
        return _softmax(scores / self.temperature)


class _Neighbours(_Head):
    """The votes of the nearest training rows, see `NeighboursBase`; the training features are part of the graph.

    targets: (n, t) float64, of which the votes make a mean · weights: (n,) float64 of a vote, by the row's class.
    """

    def __init__(self, head: Any, name: str, targets: NDArray[Any], weights: NDArray[Any] | None = None) -> None:
        super().__init__()
        rows = head.features_[:]
        dtype = np.result_type(np.float32, head.features_.working_dtype)
        if (size := rows.size * dtype.itemsize) > LARGEST_NEIGHBOURS:
            raise HeadError(
                f"The head {name} compares with {len(rows):,} training rows, which take {size:,} bytes; in a graph "
                f"{LARGEST_NEIGHBOURS:,} are the most.",
                hint="Train another kind of head (--head logistic), or use `precompute predict`.",
            )
        unit = _unit(torch.from_numpy(rows.astype(dtype)))
        self.keep(rows=unit.numpy(), targets=np.asarray(targets, np.float64))
        self.keep(vote=np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64))
        self.weighs = head.sample_weight_ is not None
        if self.weighs:
            self.keep(weight=np.asarray(head.sample_weight_, np.float64))
        self.n_nearest, self.k, self.temperature = int(head._n_nearest), float(head.k_), float(head.temperature)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.get_buffer("rows")
        similarity = (_unit(x.to(rows.dtype)) @ rows.T)[0]
        nearest, position = torch.topk(similarity, self.n_nearest)
        vote = torch.exp((nearest - nearest[0]).double() / self.temperature)
        if self.weighs:
            weight = self.get_buffer("weight")[position]
            before = torch.cumsum(weight, dim=0) - weight
            vote = vote * torch.clamp(torch.minimum(self.k - before, weight), min=0.0)
        vote = vote * self.get_buffer("vote")[position]
        share = vote / vote.sum()
        found: torch.Tensor = share[None] @ self.get_buffer("targets")[position]
        return torch.clamp(found, self.low, self.high)

    low, high = 0.0, 1.0


class _NeighboursOfNumbers(_Neighbours):
    low, high = -torch.inf, torch.inf


def _knn(head: Any, name: str) -> nn.Module:
    targets = np.eye(len(head.classes_))[head.labels_]
    return _Neighbours(head, name, targets, head.class_weight_[head.labels_])


class _Tail(nn.Module):
    """A tail behind its activation, flattened as features are."""

    def __init__(self, head: TailHead) -> None:
        super().__init__()
        self.network, self.shape, self.task = head.network, head.shape, head.task
        self.scale, self.mean = float(head.fitted.target_scale), float(head.fitted.target_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(x.reshape(1, *self.shape))
        if self.task == NUMBER:
            return outputs.double() * self.scale + self.mean
        return (torch.sigmoid(outputs) if self.task == LABELS else _softmax(outputs)).double()


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, d) of length 1; zeros stay zeros."""
    peak = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(peak > 0, peak, torch.ones_like(peak))
    norm = (rows * rows).sum(dim=1, keepdim=True).sqrt()
    return rows / torch.where(norm > 0, norm, torch.ones_like(norm))


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=1)


def _from_zero(logits: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _two_sided(scores: torch.Tensor) -> torch.Tensor:
    return torch.cat([-scores, scores], dim=1) if scores.shape[1] == 1 else scores


MODULES: dict[str, Callable[[Any, str], nn.Module]] = {
    "logistic": _logistic,
    "selected": _logistic,
    "mlp": lambda head, _: _Layers(head, _softmax),
    "knn": _knn,
    "ridge": _ridge,
    "centroid": _Centroid,
    "attentive": _Attentive,
    "multilabel-logistic": _label_logistic,
    "multilabel-ridge": _LabelRidge,
    "multilabel-knn": lambda head, name: _Neighbours(head, name, head.targets_),
    "multilabel-mlp": lambda head, _: _Layers(head, torch.sigmoid),
    "ridge-regression": _ridge_regression,
    "knn-regression": lambda head, name: _NeighboursOfNumbers(head, name, head.targets_[:, None]),
    "mlp-regression": _mlp_regression,
}
"""By kind of head, as its file names it."""
