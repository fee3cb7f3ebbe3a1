"""Images as an input: decoded, resized and cropped in threads, normalised on the device."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from precompute.inputs.base import Preprocess
from precompute.inputs.images import nvjpeg
from precompute.inputs.images.augmentation import Augmentation
from precompute.inputs.images.decode import decode, decode_view, decode_views, quiet_pillow
from precompute.inputs.images.transform import NVJPEG, Transform


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """The steps of torchvision's preset, see `Transform`. `host` gives (crop, crop, 3) uint8.

    augmentation: what makes the views but the first, where there are several.
    """

    transform: Transform
    views: int = 1
    augmentation: Augmentation | None = None

    modality = "image"

    def __post_init__(self) -> None:
        if self.augmentation is not None:
            self.augmentation.check_size(self.transform.crop)
        if self.transform.decoder == NVJPEG:
            nvjpeg.check()

    def spec(self) -> dict[str, Any]:
        return self.transform.spec()

    def augment_spec(self) -> dict[str, Any] | None:
        return None if self.augmentation is None else self.augmentation.spec()

    def plain(self) -> ImagePreprocess:
        return replace(self, views=1, augmentation=None)

    def host(self, raw: bytes, view: int = 0) -> tuple[torch.Tensor, ...]:
        with self._decoding():
            if not view or self.augmentation is None:
                return (_by_pixel(decode(raw, self.transform)),)
            digest = hashlib.sha256(raw).digest()
            return (_by_pixel(decode_view(raw, self.transform, self.augmentation, digest, view)),)

    def all_views(self, raw: bytes, digest: bytes | None = None) -> tuple[tuple[torch.Tensor, ...], ...]:
        if self.augmentation is None:
            return (self.host(raw),)
        digest = digest or hashlib.sha256(raw).digest()
        with self._decoding():
            made = decode_views(raw, self.transform, self.augmentation, digest, self.views)
            return tuple((_by_pixel(pixels),) for pixels in made)

    def _decoding(self) -> contextlib.AbstractContextManager[object]:
        return nvjpeg.stream() if self.transform.decoder == NVJPEG else contextlib.nullcontext()

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(self.transform.crop, self.transform.crop, 3, dtype=torch.uint8),)

    def device(self) -> nn.Module:
        return Normalise(self.transform)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        with quiet_pillow(), nvjpeg.quiet():
            yield


def _by_pixel(picture: torch.Tensor) -> torch.Tensor:
    """(3, H, W) -> (H, W, 3), side by side in memory, mostly as it is already: a batch of copies takes a third of the
    time, and takes it in the thread that drives the engine."""
    return picture.permute(1, 2, 0).contiguous().cpu()


class Normalise(nn.Module):
    """torchvision's normalisation, in its steps: (B, crop, crop, 3) uint8 -> (B, 3, crop, crop) fp32."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Seen as (B, 3, H, W) this is channels_last in memory, which is what the kernels want.
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        return (images / 255 - self.mean) / self.std
