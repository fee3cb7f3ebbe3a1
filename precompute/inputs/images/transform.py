"""The deterministic transform of a backbone: resize the shorter side, crop the centre, normalise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from precompute.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from PIL import Image

DECODER = "pillow, jpeg resized by torch, 1"
"""Part of the cache's key; its number goes up when a change in `decode` changes pixels."""
CPU, NVJPEG = "cpu", "nvjpeg"
DECODERS = {CPU: DECODER, NVJPEG: f"nvjpeg, resized by torch on the device, 1; else {DECODER}"}
"""What decodes plain JPEG, and how the key has it."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 8192  # a side beyond this is a mistake, and a head from a stranger must not ask for the memory

OFF_BY_DEFAULT = ("fast_decode", "squash", "floor_crop")

FILTER_REACH = 2  # pixels that a bicubic filter takes from either side, times the scale; a bilinear one takes 1


@dataclass(frozen=True)
class Transform:
    """Resize the shorter side to `resize`, cut `crop` x `crop` from the centre, scale to 0..1, (x - mean) / std.

    The same steps as torchvision.transforms._presets.ImageClassification. The 8-bit part (resize and crop) runs where
    the image is decoded, the rest on the device. With `fast_decode`, JPEG far larger than `resize` is decoded at
    a half, a quarter or an eighth of its size (libjpeg's scaling of the DCT): near the full decode, not equal to it.
    With `squash` both sides become `resize`, whatever the picture's shape, as some networks want it. Where the centre
    is between two pixels the crop begins at the even one, as in torchvision; with `floor_crop` always at the first,
    as in transformers. The `decoder` nvjpeg decodes and resizes plain JPEG on a CUDA device: pixels up to a grey level
    from those of cpu, see `nvjpeg`.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fast_decode: bool = False
    squash: bool = False
    floor_crop: bool = False
    decoder: str = CPU

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
                raise _bad(f"{name} must be a whole number of pixels from 1 to {MAX_SIDE}. Got {value!r} instead.")
        if self.interpolation not in INTERPOLATIONS:
            raise _bad(f"interpolation must be one of {', '.join(INTERPOLATIONS)}. Got {self.interpolation!r} instead.")
        if self.decoder not in DECODERS:
            raise _bad(f"decoder must be one of {', '.join(DECODERS)}. Got {self.decoder!r} instead.")
        if self.decoder == NVJPEG and self.fast_decode:
            raise _bad("fast_decode is for the decoder cpu: nvjpeg has no reduced sizes.")
        for name in OFF_BY_DEFAULT:
            if not isinstance(getattr(self, name), bool):
                raise _bad(f"{name} must be True or False. Got {getattr(self, name)!r} instead.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            try:
                numbers = _triple(values)
            except (TypeError, ValueError):
                numbers = (float("nan"),) * 3
            if not all(abs(number) < 1e6 for number in numbers):
                raise _bad(f"{name} must be three numbers, one for each of R, G, B. Got {values!r} instead.")
            object.__setattr__(self, name, numbers)  # 0 and [0, 0, 0] name the same transform as 0.0 and a tuple
        if min(self.std) <= 0:
            raise _bad(f"std must be positive. Got {self.std!r} instead.")

    def spec(self) -> dict[str, Any]:
        """JSON-ready description, part of the cache's key. What is off by default is in it only where on."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        for name in OFF_BY_DEFAULT:
            if not values[name]:
                del values[name]  # the key is that of caches from before there was a choice
        return {**values, "decoder": DECODERS[self.decoder]}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Transform:
        """The inverse of `spec`. Raises BackboneError where a value is missing or out of range."""
        try:
            return cls(
                resize=spec["resize"],
                crop=spec["crop"],
                interpolation=spec["interpolation"],
                mean=_triple(spec["mean"]),
                std=_triple(spec["std"]),
                **{name: spec.get(name, False) for name in OFF_BY_DEFAULT},
                decoder=NVJPEG if spec.get("decoder") == DECODERS[NVJPEG] else CPU,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(f"the stored transform cannot be understood ({error!r}).") from error

    @classmethod
    def from_preset(cls, preset: Any) -> Transform:
        """From torchvision's ImageClassification preset, as `weights.transforms()` gives it."""
        return cls(
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
            mean=_triple(preset.mean),
            std=_triple(preset.std),
        )

    def resized(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) after the resize, with torchvision's rounding: the longer side is rounded down."""
        if self.squash:
            return self.resize, self.resize
        if width <= height:
            return self.resize, max(1, int(self.resize * height / width))
        return max(1, int(self.resize * width / height)), self.resize

    def apply_pil(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> (3, crop, crop) uint8; bit for bit what torchvision's preset does to a PIL image."""
        from torchvision.transforms import functional

        image = self._resize_pil(image)
        if self.floor_crop:
            return self._floor_cropped(functional.pil_to_tensor(image))
        tensor: torch.Tensor = functional.pil_to_tensor(functional.center_crop(image, [self.crop, self.crop]))
        return tensor

    def _floor_cropped(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) -> (3, crop, crop), black where the picture is smaller."""
        from torch.nn.functional import pad

        rows, columns = (max(0, self.crop - side) for side in image.shape[1:])
        image = pad(image, (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2))
        top, left = (self._crop_start(side) for side in image.shape[1:])
        return image[:, top : top + self.crop, left : left + self.crop].clone()  # lets go of the rest

    def _resize_pil(self, image: Image.Image) -> Image.Image:
        from torchvision.transforms import InterpolationMode, functional

        width, height = self.resized(*image.size)
        longest = 4 * max(self.resize, self.crop)
        if max(width, height) <= longest:
            interpolation = InterpolationMode(self.interpolation)
            size = [height, width] if self.squash else [self.resize]
            resized: Image.Image = functional.resize(image, size, interpolation, antialias=True)
            return resized
        # A strip of 1 x 1,000,000 pixels would grow to gigabytes, of which the crop takes the middle. Only a middle
        # part is computed, on the same grid, with a margin far wider than any filter.
        from PIL import Image

        method = Image.Resampling[self.interpolation.upper()]
        if width > height:
            scale, left = image.width / width, self._crop_start(width) - self._crop_start(longest)
            return image.resize((longest, height), method, (left * scale, 0, (left + longest) * scale, image.height))
        scale, top = image.height / height, self._crop_start(height) - self._crop_start(longest)
        return image.resize((width, longest), method, (0, top * scale, image.width, (top + longest) * scale))

    def _crop_start(self, side: int) -> int:
        if self.floor_crop:
            return (side - self.crop) // 2
        return round((side - self.crop) / 2)  # torchvision's rounding

    def apply_tensor(self, image: torch.Tensor, size: tuple[float, float] | None = None) -> torch.Tensor:
        """(3, H, W) uint8 -> (3, crop, crop) uint8; at most one grey level from `apply_pil`, and faster.

        size: (width, height) of the picture where they are not whole, and the last column or row of `image` is only
        partly in it. Fastest where the three values of a pixel lie side by side in memory; the result is new memory.
        """
        import torch
        from torch.nn.functional import interpolate
        from torchvision.transforms import functional

        width, height = size or (image.shape[2], image.shape[1])
        across, down = self.resized(width, height)
        left, top = self._crop_start(across), self._crop_start(down)
        padded = min(across, down) < self.crop
        rows, scale = image.shape[1], height / down
        if scale > 1 and not padded:
            # What lies below the crop is not resized. What lies above is: torch cannot start between pixels. Where a
            # picture grows, all of it is: torch takes as many rows as before for rows that need no change.
            rows = min(rows, math.ceil((top + self.crop + FILTER_REACH) * scale) + 1)
        factors = (_factor(height, down), _factor(width, across))
        resize = partial(interpolate, scale_factor=factors, mode=self.interpolation, antialias=True)
        if image.device.type == "cpu":
            pixels = image.permute(1, 2, 0)[:rows].contiguous()  # a copy only where the values lay apart
            resized = resize(pixels[None].permute(0, 3, 1, 2))[0]  # with strides that torch knows as "channels last"
        else:  # which have no kernel for bytes
            resized = resize(image[None, :, :rows].float())[0].round_().clamp_(0, 255).to(torch.uint8)
        if padded and self.floor_crop:
            return self._floor_cropped(resized[:, :down, :across])
        if padded:
            cropped: torch.Tensor = functional.center_crop(resized[:, :down, :across], [self.crop, self.crop])
            return cropped
        return resized[:, top : top + self.crop, left : left + self.crop].clone()  # lets go of the rest

    def suits_tensor(self, width: int, height: int) -> bool:
        """Whether `apply_tensor` knows the interpolation and the resized image stays small."""
        return self.interpolation in ("bilinear", "bicubic") and max(self.resized(width, height)) <= 4 * max(
            self.resize, self.crop
        )


def _factor(side: float, wanted: int) -> float:
    """The scale factor by which torch makes at least `wanted` pixels of `side`; it rounds their number down."""
    factor = wanted / side
    return factor if int(side * factor) >= wanted else math.nextafter(factor, math.inf)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _bad(message: str) -> BackboneError:
    return BackboneError(
        f"Transform: {message}", hint="See --resize, --crop, --interpolation, --decoder, --mean and --std."
    )
