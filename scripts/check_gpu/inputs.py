"""What the networks are fed with: the transform of their photos, and made-up pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precompute import Backbone
    from precompute.engines.base import Tensors
    from precompute.inputs.images.transform import Transform


def transform_of(model: Backbone) -> Transform:
    from precompute.inputs.images.preprocess import ImagePreprocess

    assert isinstance(model.preprocess, ImagePreprocess)  # as torchvision's networks have it
    return model.preprocess.transform


def noise(model: Backbone, count: int) -> list[Tensors]:
    """`count` samples as `Preprocess.host` gives them, of random pixels."""
    import torch

    (example,) = model.preprocess.example()
    return [(torch.randint(0, 256, example.shape, dtype=example.dtype),) for _ in range(count)]
