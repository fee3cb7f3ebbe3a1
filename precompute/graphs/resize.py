"""The 8-bit part of a transform, resize and crop, as operations of a graph: to the last grey level what precompute does
where a picture is decoded.

Both libraries that resize there, torch (plain JPEG) and Pillow (everything else), do the same in two passes, across and
then down, and round to whole grey levels after each. A pass is a product with a matrix of weights, which are rounded
to integers first: by Pillow to multiples of 2^-22, by torch to 16 bits, with as many binary places as the largest
weight leaves. Products of such integers are exact in float64, so the order of a sum makes no difference, and a graph
that computes the weights from the size of its input gives the same pixels as either library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import nn

from precompute.errors import HeadError
from precompute.inputs.images.transform import FILTER_REACH, Transform

REACH = {"bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}
"""Pixels that a filter takes from either side, rounded up; times the scale where a picture shrinks."""
OF_TORCH = ("bilinear", "bicubic")
PLACES = 22  # binary places of Pillow's weights, and the most of torch's
WEIGHTS_BELOW = 2**15  # torch's weights are int16
STRIP = 4  # a picture longer than so many times the resize is resized by Pillow: see Transform.suits_tensor
BLOCK = 32  # pixels of the result that are computed from one run of pixels of the picture

Number = torch.Tensor
"""0-d, float64: sizes differ from picture to picture, so what follows from them is computed in the graph."""


class ResizeAndCrop(nn.Module):
    """(H, W, 3) uint8 -> (1, crop, crop, 3) uint8, as `transform` says, for a picture of any size.

    pillow: (1,) bool, whether weights are rounded as Pillow does, which resizes all but plain JPEG. It makes a
    difference of one grey level in a few pixels. Strips, longer than four times the resize, and interpolations that
    torch does not have are Pillow's in any case. See `other_order` for what is not to the last grey level.
    Raises HeadError for the interpolations `nearest` and `box`, whose weights jump where rounding decides.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        if transform.interpolation not in REACH:
            raise HeadError(
                f"A graph resizes by {', '.join(REACH)}. The transform of this head resizes by "
                f"{transform.interpolation}.",
                hint="Extract with --interpolation bilinear and train again, or use `precompute predict`.",
            )
        self.transform = transform

    def forward(self, image: torch.Tensor, pillow: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[0], image.shape[1]
        rows, columns = _number(height), _number(width)
        across, down = self._resized(columns, rows)
        longest = STRIP * max(self.transform.resize, self.transform.crop)
        by_pillow = pillow.reshape(()) | (torch.maximum(across, down) > longest)
        if self.transform.interpolation not in OF_TORCH:
            by_pillow = by_pillow | True
        seen = torch.where(by_pillow, rows, self._rows_seen(rows, down, across))
        pixels = _Axis(self.transform, width, columns, across, columns, by_pillow).resized(image.permute(1, 0, 2))
        pixels = _Axis(self.transform, height, rows, down, seen, by_pillow).resized(pixels.permute(1, 0, 2))
        return pixels.to(torch.uint8)[None]

    def _resized(self, width: Number, height: Number) -> tuple[Number, Number]:
        """`Transform.resized`: the longer side rounded down."""
        resize = torch.ones_like(width) * self.transform.resize
        if self.transform.squash:
            return resize, resize
        across = torch.maximum(resize, torch.floor(resize * width / height))
        return across, torch.maximum(resize, torch.floor(resize * height / width))

    def _rows_seen(self, rows: Number, down: Number, across: Number) -> Number:
        """How many rows `Transform.apply_tensor` has torch resize: the others are below the crop."""
        crop, scale = self.transform.crop, rows / down
        needed = torch.ceil((_crop_start(self.transform, down) + crop + FILTER_REACH) * scale) + 1
        whole = (scale <= 1) | (torch.minimum(across, down) < crop)
        return torch.where(whole, rows, torch.minimum(rows, needed))


@dataclass(frozen=True)
class _Axis:
    """One pass over a picture of `size` pixels, a dimension and as a `number`, of which `wanted` are made.

    seen: pixels that take part; the others are behind the crop · pillow: whose rounding, () bool.
    """

    transform: Transform
    size: int
    number: Number
    wanted: Number
    seen: Number
    pillow: torch.Tensor

    def resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """(size, n, 3) whole numbers -> (crop, n, 3) float64 of whole numbers from 0 to 255."""
        crop, reach = self.transform.crop, REACH[self.transform.interpolation]
        blocks = -(-crop // BLOCK)
        place = torch.arange(blocks * BLOCK, dtype=torch.float64).reshape(blocks, BLOCK)
        place = place + _crop_start(self.transform, self.wanted)
        run = (BLOCK + 2 * reach) * self.size // self.transform.resize + 2 * reach + 4
        weights, pixel = self._weights(place, place[:, :1], run)
        unit = self._unit()
        inside = (place >= 0) & (place < self.wanted)  # what is not is black
        rounded = torch.where(inside[..., None], _nearest(weights * unit), 0.0)
        taken = torch.minimum(pixel.reshape(-1), self.number - 1).to(torch.int64)
        taken_pixels = pixels.index_select(0, taken).reshape(blocks, run, -1)
        sums = torch.bmm(rounded, taken_pixels.to(torch.float64)).reshape(blocks * BLOCK, -1, 3)[:crop]
        return torch.clamp(torch.floor((sums + unit / 2) / unit), 0.0, 255.0)

    def _grid(self) -> tuple[Number, Number, Number]:
        """(scale, origin, first): the place `first` + k of the result is at `origin` + (k + 1/2) `scale` of the
        picture. Of a strip only a middle part is made, whose ends Pillow takes as float32."""
        longest = STRIP * max(self.transform.resize, self.transform.crop)
        scale = torch.where(self.pillow, self.number / self.wanted, 1 / (self.wanted / self.number))
        strip = self.wanted > longest
        first = _crop_start(self.transform, self.wanted) - _crop_start(self.transform, torch.full_like(scale, longest))
        begin, end = ((place * scale).to(torch.float32) for place in (first, first + longest))
        cut = (end - begin).to(torch.float64) / longest
        nothing = torch.zeros_like(scale)
        return (
            torch.where(strip, cut, scale),
            torch.where(strip, begin.to(torch.float64), nothing),
            torch.where(strip, first, nothing),
        )

    def _weights(self, place: torch.Tensor, first: torch.Tensor, run: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (m, k, run) of `run` pixels for each of the `place` (m, k) of the result, and which (m, 1, run)
        pixels these are: from the one on that the place `first` (m, 1) begins with."""
        scale, origin, zero = self._grid()
        stretch = torch.clamp(scale, min=1.0)
        centre = origin + (place - zero + 0.5) * scale
        begin = origin + (first - zero + 0.5) * scale - REACH[self.transform.interpolation] * stretch
        begin = torch.floor(begin + 0.5)
        pixel = torch.clamp(begin, min=0.0)[..., None] + torch.arange(run, dtype=torch.float64)
        weights = FILTERS[self.transform.interpolation]((pixel - centre[..., None] + 0.5) * (1 / stretch))
        weights = torch.where(pixel < self.seen, weights, 0.0)
        total = weights.sum(dim=-1, keepdim=True)
        return weights / torch.where(total == 0, 1.0, total), pixel

    def _unit(self) -> Number:
        """What weights are multiplied by before they are rounded: a power of two."""
        reach = REACH[self.transform.interpolation]
        every = STRIP * max(self.transform.resize, self.transform.crop)
        place = torch.arange(every, dtype=torch.float64)[:, None]
        taps = 2 * reach * self.size // self.transform.resize + 2 * reach + 3
        weights, _ = self._weights(place, place, taps)
        # A part of the rows gives a part of the result, rounded down
        made = torch.floor(self.seen * (self.wanted / self.number) * (1 + 1e-15))
        largest = torch.where(place[..., None] < made, weights, 0.0).flatten().amax(dim=0)
        powers = 2.0 ** torch.arange(PLACES + 1, dtype=torch.float64)
        fitting = torch.where(torch.floor(0.5 + largest * powers) < WEIGHTS_BELOW, powers, 1.0).amax(dim=0)
        return torch.where(self.pillow, 2.0**PLACES, fitting)


def other_order(width: int, height: int, transform: Transform) -> bool:
    """Whether Pillow resizes a picture of this size down first and then across: a graph's pixels then differ from its
    own by a grey level or a few. From release 13 on it does so where it leaves out more than twice as many rows as
    columns: where a picture is taller than about twice its width."""
    longest = STRIP * max(transform.resize, transform.crop)
    across, down = (min(side, longest) for side in transform.resized(width, height))
    return down < height and height - down > 2 * (width - across) and _pillow_begins_down()


@cache
def _pillow_begins_down() -> bool:
    """Found by trying: rounding after each pass makes a difference."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 12), dtype=np.uint8))
    across_first = picture.resize((11, 90), Image.Resampling.BILINEAR).resize((11, 40), Image.Resampling.BILINEAR)
    at_once = picture.resize((11, 40), Image.Resampling.BILINEAR)
    return not np.array_equal(np.asarray(at_once), np.asarray(across_first))


def _number(size: int) -> Number:
    return torch.full((), size, dtype=torch.float64)


def _nearest(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers, halves away from zero."""
    return torch.sign(values) * torch.floor(torch.abs(values) + 0.5)


def _crop_start(transform: Transform, side: Number) -> Number:
    """The first place of the crop, below 0 where the picture is smaller: the crop is then black around it."""
    spare = side - transform.crop
    start = torch.floor(spare / 2) if transform.floor_crop else torch.round(spare / 2)  # halves to even, as Python
    return torch.where(spare < 0, -torch.floor(-spare / 2), start)


def _bilinear(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(1 - torch.abs(x), min=0.0)


def _cubic(x: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    x = torch.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _sinc(x: torch.Tensor) -> torch.Tensor:
    angle = torch.where(x == 0, 1.0, x) * math.pi
    return torch.where(x == 0, 1.0, torch.sin(angle) / angle)


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return torch.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _hamming(x: torch.Tensor) -> torch.Tensor:
    x = torch.abs(x)
    window = 0.54 + 0.46 * torch.sin(x * math.pi + math.pi / 2)  # a cosine, which onnxruntime has not for float64
    angle = torch.where(x == 0, 1.0, x) * math.pi
    return torch.where(x == 0, 1.0, torch.where(x < 1, torch.sin(angle) / angle * window, 0.0))


FILTERS = {"bilinear": _bilinear, "hamming": _hamming, "bicubic": _cubic, "lanczos": _lanczos}
