"""A network of transformers as a backbone: its states, how they are pooled, and where it is cut.

What a loader module (`hf_text`, `hf_images`, `hf_audio`) gives is one function,

    def load(folder: HFFolder, kind: ModelType) -> Parts

which reads the files next to the weights and takes no memory for the network. `hf` then makes the network, with weights
from the folder or random ones, and puts `Parts.encoder` around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from precompute.backbones.layers import OUTPUT, Pooling, Tap, Truncated, unknown_layer
from precompute.errors import BackboneError
from precompute.inputs.base import Preprocess
from precompute.inputs.images.transform import Transform

POOLINGS = ("none", "mean", "cls", "max", "mean_sqrt_len", "pooler", "projection")
"""none: every token · mean: over real tokens · cls: the first token · max: over real tokens · mean_sqrt_len: the sum
over real tokens by the root of their number · pooler: what the network's own pooler makes · projection: what it is
projected to for comparing it with another modality (CLIP, SigLIP, CLAP)."""

OF_TOKENS = ("none", "mean", "cls", "max", "mean_sqrt_len")
"""Those that hidden layers have too."""


@dataclass(frozen=True)
class States:
    """What a network gives for B inputs of T tokens.

    tokens: (B, T, D) of its last layer · mask: (B, T), 1 for a token that counts in a mean, 0 for padding and for those
    that stand for nothing of the sample; None where all count · pooler: (B, D), None where there is none · projection:
    (B, E), the same · hidden: (B, T, D) of each of `Encoder.blocks`, where requested.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None = None
    pooler: torch.Tensor | None = None
    projection: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()


class Encoder(nn.Module, ABC):
    """network: of transformers, or a part of it · pooling, poolings: of its output, see `ModelType` · blocks: names of
    its hidden layers, in order.
    """

    def __init__(
        self, network: nn.Module, pooling: str | None, poolings: Sequence[str], blocks: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.poolings = tuple(poolings)
        self.blocks = tuple(blocks)

    @abstractmethod
    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        """inputs: what `Preprocess.device` gives. hidden: those of `blocks` too.

        A row must depend on its own input alone, so nothing may be chosen by what all of a batch holds.
        """

    def check(self, base: Preprocess | Transform) -> None:
        """Raise BackboneError where the network does not keep what is promised of samples that `base` makes."""

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        """What follows behind the pooling of the output; (B, D) -> (B, E)."""
        return features

    def features(self, states: States, layer: str, pooling: str) -> torch.Tensor:
        """(B, ...) of one layer."""
        if layer != OUTPUT:
            return pooled(states.hidden[self.blocks.index(layer)], states.mask, pooling)
        if pooling in OF_TOKENS:
            return self.finish(pooled(states.tokens, states.mask, pooling))
        found = states.pooler if pooling == "pooler" else states.projection
        assert found is not None  # else its `poolings` do not name it
        return self.finish(found)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.features(self.states(*inputs, hidden=False), OUTPUT, self.pooling or "none")


@dataclass(frozen=True)
class Parts:
    """What a loader module says of a folder.

    encoder: puts the wrapper around the network · base: its preprocessing · settings: what else decides the features,
    next to what `base` says of itself; it goes into the key under `backend` · notes: choices worth telling · network:
    the name of the class in transformers, None for AutoModel's · tower: the attribute of the configuration that this
    class takes, such as "vision_config"; empty for all of it · pooler: beginning of the names of the tensors that the
    pooling `pooler` needs, which may be missing from the weights where it is not requested.
    """

    encoder: Callable[[nn.Module], Encoder]
    base: Preprocess | Transform
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    network: str | None = None
    tower: str = ""
    pooler: str = "pooler."


def pooled(tokens: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """(B, T, D) tokens and the (B, T) mask of those that count -> (B, D), or as they are for none."""
    if pooling == "none":
        return tokens
    if pooling == "cls":
        return tokens[:, 0]
    tokens = tokens.float()  # a sum of 512 tokens is beyond what 16 bits hold well
    if mask is None:
        mask = torch.ones(tokens.shape[:2], device=tokens.device)
    weights = mask.to(tokens.dtype).unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(weights == 0, torch.finfo(tokens.dtype).min).amax(1)
    total, count = (tokens * weights).sum(1), weights.sum(1).clamp(min=1)
    return total / (count if pooling == "mean" else count.sqrt())


class _Taps(nn.Module):
    """An encoder's inputs -> its features at each of `wanted`, by the layer's name."""

    def __init__(self, encoder: Encoder, wanted: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.wanted = tuple(wanted)

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.encoder.states(*inputs, hidden=any(layer != OUTPUT for layer, _ in self.wanted))
        return {layer: self.encoder.features(states, layer, pooling) for layer, pooling in self.wanted}


def cut(
    name: str, encoder: Encoder, wanted: Sequence[tuple[str, str]], inputs: tuple[torch.Tensor, ...]
) -> tuple[Truncated, tuple[Tap, ...]]:
    """The features of `wanted`, pairs of a layer and its pooling. Raises BackboneError for those there are not."""
    for layer, pooling in wanted:
        if layer not in (OUTPUT, *encoder.blocks):
            raise unknown_layer(layer, [*encoder.blocks, OUTPUT])
        check_pooling(name, encoder, layer, pooling)
    body = _Taps(encoder, wanted).eval()
    with torch.inference_mode():
        given = body(*inputs)
    taps = []
    for layer, pooling in wanted:
        shape = tuple(given[layer].shape[1:])
        axes = {1: ("channel",), 2: ("token", "channel")}.get(len(shape))
        taps.append(Tap(layer, pooling, shape, axes or tuple(f"axis{place}" for place, _ in enumerate(shape, 1))))
    return Truncated(body, [layer for layer, _ in wanted], [Pooling() for _ in wanted]).eval(), tuple(taps)


def check_pooling(name: str, encoder: Encoder, layer: str, pooling: str) -> None:
    """Raise BackboneError for `auto`, where it stands for nothing, and for a pooling that there is not."""
    there = [one for one in encoder.poolings if layer == OUTPUT or one in OF_TOKENS]
    if pooling == "auto":
        raise BackboneError(
            f"The pooling of {name} is not known, and precompute does not guess it.",
            hint=f"Choose one: --pooling {'|'.join(there)}.",
        )
    if pooling not in there:
        raise BackboneError(
            f"The layer {layer!r} of {name} has no {pooling!r} pooling.",
            hint=f"It has {', '.join(there)}: see --pooling.",
        )
