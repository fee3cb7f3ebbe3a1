"""The stages of timm's networks, by the names that timm gives them, and cutting by its `forward_intermediates`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precompute.backbones.layers import OUTPUT, Pooling, Tap, Truncated
from precompute.backbones.layout import by_name
from precompute.errors import BackboneError


def stages(model: nn.Module) -> list[str]:
    """The stages or blocks that timm names, in the order of execution."""
    info = getattr(model, "feature_info", None)
    found = [one["module"] for one in getattr(info, "info", info or [])]
    return list(dict.fromkeys(found)) if len(found) == len(set(found)) else []


class _Intermediates(nn.Module):
    """A network run by timm's `forward_intermediates`: images -> (B, C, H, W) of each stage, by its name."""

    def __init__(self, model: Any, there: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = [name for name in there if name in names]
        self.indices = [there.index(name) for name in self.names]
        self.with_output = OUTPUT in names

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        options = {"indices": self.indices, "output_fmt": "NCHW", "intermediates_only": not self.with_output}
        found: Any = self.model.forward_intermediates(images, **options)
        final, maps = found if self.with_output else (None, found)
        outputs = dict(zip(self.names, maps, strict=True))
        if self.with_output:
            outputs[OUTPUT] = self.model.forward_head(final, pre_logits=True)
        return outputs


def cut_between(
    model: nn.Module, wanted: Sequence[tuple[str, str]], inputs: tuple[torch.Tensor, ...], there: Sequence[str]
) -> tuple[Truncated, tuple[Tap, ...]]:
    names = [layer for layer, _ in wanted]
    body = model.eval() if names == [OUTPUT] else _Intermediates(model, there, names).eval()
    with torch.inference_mode():
        outputs = by_name(body(*inputs), names)
    given = dict(zip(names, outputs, strict=True))
    taps, poolings = [], []
    for layer, pooling in wanted:
        shape = tuple(given[layer].shape[1:])
        is_map = len(shape) == 3
        axes = ("channel", "height", "width") if is_map else ("channel",)
        if len(shape) not in (1, 3):
            raise BackboneError(
                f"The layer {layer!r} gives {tuple(shape)} for one image, neither a map nor a vector.",
                hint="Name another layer with --layer.",
            )
        pooled = is_map and pooling == "mean"
        taps.append(Tap(layer, pooling, shape[:1] if pooled else shape, axes[:1] if pooled else axes))
        poolings.append(Pooling((2, 3)) if pooled else Pooling())
    return Truncated(body, names, poolings).eval(), tuple(taps)
