"""Bytes -> (3, crop, crop) uint8, the way a viewer shows the picture.

JPEG goes through torchvision's libjpeg-turbo (the same library that PIL carries, so the same pixels) and torch's 8-bit
resize; everything else, and every JPEG that is not plain grey or YCbCr, goes through PIL. PIL is the oracle of both.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from precompute.errors import ImageError
from precompute.transform import Transform

if TYPE_CHECKING:
    import torch

DECODER = "torchvision-jpeg/pillow 1"
"""Part of the cache's key; its number goes up when a change here changes pixels."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF")
MAX_PIXELS = 178_956_970  # Pillow's own limit: a 24-bit image of this many pixels takes 512 MiB
WHITE = (255, 255, 255, 255)
ORIENTATIONS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation tag."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings (broken metadata, sizes still below the limit) out of a run with worker threads.

    Enter it around the whole run, in one thread: Python's warning filters are global to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def decode(data: bytes, transform: Transform) -> torch.Tensor:
    """Decode one image file and apply the 8-bit part of `transform`; (3, crop, crop) uint8.

    First frame, EXIF orientation applied, transparency over white, 16-bit scaled to 8. Raises ImageError with the
    reason `NOT_AN_IMAGE`, `TRUNCATED` or `TOO_MANY_PIXELS`. The size in the header is checked before pixels are made.
    """
    try:
        return _decode(data, transform)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError("no JPEG, PNG, GIF, BMP, WebP or TIFF header", reason="NOT_AN_IMAGE") from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(error), reason="TOO_MANY_PIXELS") from error
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them to
        if "can't allocate memory" in str(error):  # torch's spelling of MemoryError: not the image's fault
            raise MemoryError(str(error)) from error
        raise ImageError(f"{type(error).__name__}: {error}", reason="TRUNCATED") from error


def _decode(data: bytes, transform: Transform) -> torch.Tensor:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}", reason="TOO_MANY_PIXELS"
            )
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and transform.suits_tensor(width, height):
            return transform.apply_tensor(_decode_jpeg(data))
        return transform.apply_pil(to_rgb(image))


def _decode_jpeg(data: bytes) -> torch.Tensor:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # bytearray: torch warns of read-only memory
    return decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of `image` as 8-bit RGB, upright, over white where it is transparent."""
    image.load()
    image = _upright(image)
    if image.mode == "F":
        raise ImageError("pixels are 32-bit floats, whose range no viewer agrees on", reason="NOT_AN_IMAGE")
    if image.mode.startswith("I"):
        # 16-bit grey: PIL's own conversion would clip everything above 255 to white
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - metadata that cannot be read does not spoil the picture
        orientation = None
    method = ORIENTATIONS.get(orientation)
    return image if method is None else image.transpose(method)
