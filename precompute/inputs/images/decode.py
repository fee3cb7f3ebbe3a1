"""Bytes -> (3, crop, crop) uint8, the way a viewer shows the picture.

Pillow opens everything. Plain JPEG is decoded in `jpeg`, to Pillow's pixels, and resized by torch's 8-bit kernels, at
most one grey level from Pillow's; both are faster (docs/decisions/011). Everything else is left to Pillow altogether,
bit for bit as in torchvision's preset. All of it frees the interpreter lock.
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
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, features

from precompute.errors import PrecomputeError, SampleError
from precompute.inputs.images import formats, jpeg, jpeg2000, nvjpeg
from precompute.inputs.images.picture import Picture
from precompute.inputs.images.transform import NVJPEG, Transform

if TYPE_CHECKING:
    import torch

    from precompute.inputs.images.augmentation import Augmentation

OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # formats that a Pillow may have been built without
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF"),
    *(kind for kind, name in OPTIONAL.items() if name in features.modules | features.codecs and features.check(name)),
)
MAX_PIXELS = 100 * 2**20  # at 10 bytes each they take 1 GiB less 24 MiB; cameras of 100 megapixels stay below
BYTES_A_PIXEL = 10
"""At most so many are held at once for most images: 4 for Pillow's pixels, 4 for those made from them. Kinds that take
more, such as progressive JPEG with its coefficients, have a lower limit of pixels."""
WEBP_BYTES_A_PIXEL = 20  # the decoder keeps two canvases of its own
AVIF_BYTES_A_PIXEL = 24  # the decoder's own planes have two bytes a value above 8 bits, and there may be an alpha
TILE_WIDTH, TILE_LENGTH, NEW_SUBFILE_TYPE, SUB_DIRECTORIES, DNG_VERSION = 322, 323, 254, 330, 50706  # tags of TIFF
REDUCED = 1  # a bit of NEW_SUBFILE_TYPE: a smaller version of another picture in the file
STRIP_PIXELS = 2**20  # what is only passing through is made for so many at a time
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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

    First frame, EXIF orientation applied, transparency over white, 16-bit scaled to 8. Raises SampleError with the
    reason `UNDECODABLE`, `TRUNCATED` or `TOO_LARGE`, and `UNREADABLE` for a format that another build of Pillow
    decodes. The size in the header is checked before pixels are made.
    """
    with _as_sample_errors(data):
        return _picture(data, transform).plain(transform)


def decode_picture(data: bytes, transform: Transform) -> Picture:
    """One image file as a picture that is not resized yet. Raises what `decode` raises."""
    with _as_sample_errors(data):
        return _picture(data, transform)


def decode_views(
    data: bytes, transform: Transform, augmentation: Augmentation, digest: bytes, views: int
) -> tuple[torch.Tensor, ...]:
    """`views` tensors as `decode` gives them, of one decoding: the plain view, then those that `augmentation` draws.

    digest: SHA-256 of `data`. Raises what `decode` and `Augmentation.view` raise.
    """
    with _as_sample_errors(data):
        picture = _picture(data, transform)
        plain = picture.plain(transform)
    return plain, *(augmentation.view(picture, transform, digest, number) for number in range(1, views))


def decode_view(
    data: bytes, transform: Transform, augmentation: Augmentation, digest: bytes, number: int
) -> torch.Tensor:
    """View `number`, from 1 on, alone: the same as among those of `decode_views`. Raises what that raises."""
    with _as_sample_errors(data):
        picture = _picture(data, transform)
    return augmentation.view(picture, transform, digest, number)


def thumbnail(data: bytes, side: int) -> Image.Image:
    """The whole picture, upright and in RGB, made to fit into `side` x `side` pixels; smaller ones stay as they are.

    JPEG far larger than that is decoded at a part of its size. It carries no metadata. Raises what `decode` raises.
    """
    with _as_sample_errors(data):
        picture = _picture(data, Transform(resize=side, crop=side, fast_decode=True)).pixels
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.BOX if max(small.size) > 8 * side else Image.Resampling.LANCZOS)
        small.info.clear()
        return small


@contextmanager
def _as_sample_errors(data: bytes) -> Iterator[None]:
    """What decoders raise becomes a SampleError with its reason."""
    try:
        yield
    except (PrecomputeError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise SampleError(str(error), reason="TOO_LARGE") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        if "can't allocate memory" in str(error):  # torch's spelling of MemoryError: not the image's fault
            raise MemoryError(str(error)) from error
        raise SampleError(f"{type(error).__name__}: {error}", reason="TRUNCATED") from error


def _picture(data: bytes, transform: Transform) -> Picture:
    if (kind := formats.foreign_kind(data[: formats.BRANDS_BYTES])) is not None:
        raise _foreign(kind)
    stream = io.BytesIO(data)
    image: Image.Image = Image.open(stream, formats=FORMATS)
    _check_kind(image)
    _check_size(image)
    if image.format in jpeg.FORMATS:
        jpeg.check(image, data, stream.tell())  # opening one reads up to the first scan
        if image.mode in ("L", "RGB") and transform.suits_tensor(*image.size):
            return _plain_jpeg(image, data, transform)
    if image.format == "PNG":
        _check_png(data)
    elif image.format == "JPEG2000":
        jpeg2000.check(data, image.size)
    image.load()
    method = ORIENTATIONS.get(_orientation(image))
    image = _flat(image)  # the name is used again, so that there are never three copies of all pixels
    return Picture(image if method is None else image.transpose(method))


def _plain_jpeg(image: Image.Image, data: bytes, transform: Transform) -> Picture:
    import torch

    method = ORIENTATIONS.get(_orientation(image))
    if transform.decoder == NVJPEG and (picture := nvjpeg.pixels(image, data)) is not None:
        return Picture(picture if method is None else nvjpeg.turned(picture, method))
    fast = transform.fast_decode
    factor = jpeg.reduction(image.size, transform.resize, upright=method is None) if fast else 1
    width, height = (side / factor for side in image.size)  # not whole where the last column is only partly picture
    pixels = jpeg.pixels(image, data, factor)
    if pixels is None:
        image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        pixels = _as_array(image)
    if method is not None:
        pixels = jpeg.turned(pixels, method)
        width, height = (height, width) if method in jpeg.TURNED else (width, height)
    return Picture(torch.from_numpy(pixels).permute(2, 0, 1), (width, height))


def _unidentified(data: bytes) -> SampleError:
    """Why Pillow took a file for none of FORMATS."""
    for kind, name, there in (
        ("AVIF", "AVIF", formats.is_avif(data[: formats.BRANDS_BYTES])),
        ("JPEG2000", "JPEG 2000", data.startswith(formats.JPEG_2000)),
    ):
        if there and kind in FORMATS:
            return SampleError(f"damaged {name} header", reason="TRUNCATED")
        if there:
            what = f"{name}, which this Pillow does not decode: pip install --upgrade pillow"
            return SampleError(what, reason="UNREADABLE")
    return SampleError(f"no {formats.NAMES} header", reason="UNDECODABLE")


def _foreign(kind: str) -> SampleError:
    package = formats.HOW[kind]
    what = f"{kind}, which precompute does not decode: convert it to JPEG or PNG, for example with {package}"
    return SampleError(what, reason="UNDECODABLE")


def _check_kind(image: Image.Image) -> None:
    """Raise SampleError for pixels without an agreed meaning, by their type alone, and for a raw file's preview."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    reduced = _number(tags.get(NEW_SUBFILE_TYPE)) & REDUCED and SUB_DIRECTORIES in tags
    if DNG_VERSION in tags or reduced:
        raise _foreign("a camera's raw format")
    if image.mode in ("F", "I"):  # I is for integers of 32 bits, and for those of 16 with a sign
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (0,))[0]
        kind = "floats" if image.mode == "F" else "integers" if bits == 32 else "signed integers"
        raise SampleError(f"pixels are {bits}-bit {kind}, whose range no viewer agrees on", reason="UNDECODABLE")


def _check_size(image: Image.Image) -> None:
    """Raise SampleError where the pixels would take more than about 1 GiB on their way to RGB."""
    width, height = image.size
    needed = BYTES_A_PIXEL
    if image.format == "WEBP":
        needed = WEBP_BYTES_A_PIXEL
    elif image.format == "AVIF":
        needed = AVIF_BYTES_A_PIXEL
    elif image.info.get("progressive"):
        needed = max(needed, 5 + 2 * len(image.getbands()))  # pixels, coefficients, and libjpeg's own
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        # A strip or tile is unpacked as a whole, and a tile may be larger than the image.
        width = max(width, _number(image.tag_v2.get(TILE_WIDTH)))
        height = max(height, _number(image.tag_v2.get(TILE_LENGTH)))
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
        needed = max(needed, 4 + sum(map(_number, bits if isinstance(bits, tuple) else (bits,))) // 8)
    limit = MAX_PIXELS * BYTES_A_PIXEL // needed
    if width * height > limit:
        raise SampleError(f"{width} x {height} pixels, more than the limit of {limit:,}", reason="TOO_LARGE")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _check_png(data: bytes) -> None:
    """Raise SampleError where the checksum of pixel data is wrong; Pillow leaves that out."""
    view, place = memoryview(data), len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if kind == b"IDAT" and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise SampleError("a wrong checksum: pixel data is missing or damaged", reason="TRUNCATED")
        place = end + 4


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """`image` in strips of about STRIP_PIXELS from top to bottom, each with its first row."""
    height = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _as_array(image: Image.Image) -> NDArray[np.uint8]:
    """Grey or RGB image -> (H, W, 3) uint8."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top, strip in _strips(image):  # at once, NumPy would make one copy more
        pixels[top : top + strip.height] = np.asarray(strip.convert("RGB"))
    return pixels


def _flat(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB, over white where it is transparent."""
    if image.mode.startswith("I"):
        flatten = _grey_of_16_bit
    elif image.has_transparency_data:
        flatten = _over_white
    else:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.width * image.height <= STRIP_PIXELS:
        return flatten(image)
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(flatten(strip), (0, top))
    return result


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _grey_of_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit RGB; PIL's own conversion would clip everything above 255 to white."""
    values = np.asarray(image.convert("I"))
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - metadata that cannot be read does not spoil the picture
        return None
