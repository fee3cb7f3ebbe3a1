"""Bytes -> (3, crop, crop) uint8, the way a viewer shows the picture.

Pillow decodes everything (its JPEG decoder is libjpeg-turbo, and it frees the interpreter lock). Plain JPEG is then
resized by torch's 8-bit kernels, which are faster than Pillow's and at most one grey level from them; everything else
is resized by Pillow, bit for bit as in torchvision's preset. torchvision's own decoders are not used: they are
deprecated (docs/decisions/004).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from precompute.errors import ImageError
from precompute.transform import Transform

if TYPE_CHECKING:
    import torch

DECODER = "pillow, jpeg resized by torch, 1"
"""Part of the cache's key; its number goes up when a change here changes pixels."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF")
MAX_PIXELS = 178_956_970  # Pillow's own limit: a 24-bit image of this many pixels takes 512 MiB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
END_OF_JPEG = b"\xff\xd9"
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
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        if "can't allocate memory" in str(error):  # torch's spelling of MemoryError: not the image's fault
            raise MemoryError(str(error)) from error
        raise ImageError(f"{type(error).__name__}: {error}", reason="TRUNCATED") from error


def _decode(data: bytes, transform: Transform) -> torch.Tensor:
    stream = io.BytesIO(data)
    with Image.open(stream, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}", reason="TOO_MANY_PIXELS"
            )
        # Where the tail of a file is zeros (a write that never finished) Pillow's picture is grey or black.
        # Opening a JPEG reads up to the scan, so an end marker found from there is not that of a thumbnail.
        if image.format == "JPEG" and data.find(END_OF_JPEG, stream.tell()) < 0:
            raise ImageError("no end-of-image marker: the rest of the picture is missing", reason="TRUNCATED")
        if image.format == "PNG":
            _check_png(data)
        plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        rgb = to_rgb(image)
        if plain and transform.suits_tensor(*rgb.size):
            return transform.apply_tensor(_as_tensor(rgb))
        return transform.apply_pil(rgb)


def _check_png(data: bytes) -> None:
    """Raise ImageError where the checksum of pixel data is wrong; Pillow leaves that out."""
    view, place = memoryview(data), len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if kind == b"IDAT" and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError("a wrong checksum: pixel data is missing or damaged", reason="TRUNCATED")
        place = end + 4


def _as_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> (3, H, W) uint8, channels last in memory, which is what torch's fast resize wants."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of `image` as 8-bit RGB, upright, over white where it is transparent."""
    image.load()
    method = ORIENTATIONS.get(_orientation(image))
    image = image if method is None else image.transpose(method)
    if image.mode == "F":
        raise ImageError("pixels are 32-bit floats, whose range no viewer agrees on", reason="NOT_AN_IMAGE")
    if image.mode.startswith("I"):
        return _grey_of_16_bit(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; PIL's own conversion would clip everything above 255 to white."""
    values = np.asarray(image.convert("I"))
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("pixels are 32-bit integers, whose range no viewer agrees on", reason="NOT_AN_IMAGE")
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - metadata that cannot be read does not spoil the picture
        return None
