"""Features of one photo, from a backbone and from the whole network that it was cut from."""

from __future__ import annotations

from importlib import resources

import torch
from torch import nn

from precompute.backbones.load import Backbone
from precompute.inputs.images.decode import decode
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform


def real_photo() -> bytes:
    """A JPEG photograph, 640 x 427, that comes with scikit-learn."""
    return (resources.files("sklearn") / "datasets" / "images" / "flower.jpg").read_bytes()


def transform_of(backbone: Backbone) -> Transform:
    assert isinstance(backbone.preprocess, ImagePreprocess)
    return backbone.preprocess.transform


def features(backbone: Backbone, data: bytes) -> torch.Tensor:
    transform = transform_of(backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    pixels = decode(data, transform).float().div(255).sub(mean).div(std)
    with torch.inference_mode():
        given: torch.Tensor = backbone.module(pixels[None])[0][0]
    return given


def reference(model: nn.Module, classifier: str, backbone: Backbone, data: bytes) -> torch.Tensor:
    """What enters the classifier of the whole network, seen by a hook."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(classifier).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone())
    )
    transform = transform_of(backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    with torch.inference_mode():
        model.eval()(decode(data, transform).float().div(255).sub(mean).div(std)[None])
    handle.remove()
    return seen[0].mean(dim=(2, 3))[0] if seen[0].ndim == 4 else seen[0][0]
