"""The embedded default backbone, `-b tiny`: 32x32 images to 128 features, with the weights inside the package.

It is there so that the whole road, extraction to prediction, runs with no download. It knows handwritten digits and
clothes (MNIST, Fashion-MNIST) at high and low resolution; for photographs take an ImageNet backbone. How it was
trained and how well it does: docs/tiny.md. `scripts/train_tiny_backbone.py` makes the weights again.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from precompute.errors import WeightsError

__all__ = ["INTERPOLATION", "MEAN", "NUM_FEATURES", "SIZE", "STD", "TinyBackbone", "metadata", "tiny", "weights_path"]

# The transform: resize the shorter side to SIZE, crop the centre, scale to 0..1, then (x - MEAN) / STD.
SIZE = 32
INTERPOLATION = "bilinear"
# Of the training images, one number for all channels: subtracting it then commutes with taking the luminance.
MEAN = (0.21, 0.21, 0.21)
STD = (0.34, 0.34, 0.34)

NUM_FEATURES = 128
NUM_CLASSES = 20  # MNIST's ten digits, then Fashion-MNIST's ten garments


class _ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU; `stride` 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class _Residual(nn.Module):
    """One convolution block with a way around it (He et al. 2016, arXiv:1512.03385, cut to one convolution)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.block(x)
        return added


class TinyBackbone(nn.Module):
    """A small residual network: (N, 3, 32, 32) normalised RGB, any floating dtype, to (N, num_classes) class scores.

    The input of `classifier` is the features, (N, 128) and never negative. Colour is dropped first, because both
    training sets are grey. The last 4x4 map is weighed position by position (the global depthwise convolution of
    MobileFaceNet, arXiv:1804.07573) rather than averaged: where a stroke lies tells a 6 from a 9.
    """

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _ConvBlock(1, 32, kernel=5, stride=2),
            _ConvBlock(32, 48),
            _ConvBlock(48, 96, stride=2),
            _Residual(96),
            _ConvBlock(96, 192, stride=2),
            _Residual(192),
        )
        self.embed = nn.Sequential(
            nn.Conv2d(192, 192, SIZE // 8, groups=192, bias=False),
            nn.Flatten(1),
            nn.Linear(192, NUM_FEATURES, bias=False),
            nn.BatchNorm1d(NUM_FEATURES),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(NUM_FEATURES, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the scale of what passes through, so random weights are usable
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def features(self, grey: Tensor) -> Tensor:
        """Features of luminance images: (N, 1, 32, 32) to (N, 128)."""
        embedded: Tensor = self.embed(self.body(grey))
        return embedded

    def forward(self, images: Tensor) -> Tensor:
        # ITU-R BT.601, the weights of PIL's mode "L". They add up to 1, so a grey image stays what it was.
        grey = 0.299 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]
        scores: Tensor = self.classifier(self.features(grey))
        return scores


def tiny(*, weights: bool = True, seed: int = 0) -> TinyBackbone:
    """The backbone in evaluation mode, float32, on the CPU: trained, or random but always the same for one `seed`.

    The weights are stored as float16 to halve the file and loaded as float32. Raises WeightsError.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        model = TinyBackbone()
    if weights:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(weights_path())
            model.load_state_dict(state)  # strict: a missing or extra tensor is an error; copies into float32
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"The weights of the tiny backbone, {weights_path()}, cannot be loaded: {error}",
                hint="Reinstall precompute, or make them again with scripts/train_tiny_backbone.py.",
            ) from error
    return model.eval()


def weights_path() -> Path:
    """Where the weights lie: a safetensors file shipped as package data."""
    return Path(str(resources.files("precompute.backbones") / "tiny.safetensors"))


def metadata() -> dict[str, Any]:
    """What is known of the shipped weights: `num_params`, `recipe` and `scores`, read from the file's header."""
    from safetensors import safe_open

    with safe_open(weights_path(), framework="pt") as file:
        header: dict[str, str] = file.metadata() or {}
    return {name: json.loads(text) for name, text in header.items()}
