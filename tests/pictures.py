"""Pictures of noise as an engine takes them, and what plain torch makes of them."""

from __future__ import annotations

import numpy as np
import torch
from reference import transform_of

from precompute.backbones.load import Backbone


def images(count: int, crop: int = 64, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, 256, (crop, crop, 3), dtype=torch.uint8, generator=generator),) for _ in range(count)]


def eager(backbone: Backbone, pictures: list[tuple[torch.Tensor, ...]]) -> np.ndarray:
    """What the tutorials do: the preset's normalisation, fp32 on the CPU, no tricks. Each tap is flattened."""
    transform = transform_of(backbone)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    pixels = torch.stack([one for (one,) in pictures]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return backbone.module((pixels.float() / 255 - mean) / std)[0].flatten(1).numpy()
