"""Damaged and hostile images: refused with a reason, never taken for a picture that is half grey."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from numpy.typing import NDArray
from PIL import Image
from test_decode import PLAIN, SIDE, decoded, encoded, rgb

from precompute.errors import SampleError
from precompute.inputs.images.decode import FORMATS, decode, quiet_pillow
from precompute.inputs.images.transform import Transform


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with quiet_pillow():
        yield


def damaged_samples() -> dict[str, bytes]:
    image = make_image(5, (SIDE, SIDE))
    return {
        "jpeg": encoded(image, "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image, "PNG"),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP"),
        "tiff": encoded(image, "TIFF"),
        "tiff_lzw": encoded(image, "TIFF", compression="tiff_lzw"),
    }


@pytest.mark.parametrize("kind", damaged_samples())
def test_a_file_cut_anywhere_is_refused_unless_every_pixel_is_there(kind: str) -> None:
    data = damaged_samples()[kind]
    whole = decoded(data)
    refused = 0
    for cut in {*np.linspace(0, len(data), 60, endpoint=False).astype(int).tolist(), *range(len(data) - 4, len(data))}:
        try:
            assert np.array_equal(decoded(data[:cut]), whole), f"cut at {cut} of {len(data)}"
        except SampleError as error:
            assert error.reason in ("TRUNCATED", "UNDECODABLE")
            assert error.message
            refused += 1
    assert refused >= 40


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "cmyk", "png", "tiff_lzw"])
def test_a_file_whose_tail_was_never_written_is_refused(kind: str) -> None:
    """After a crash a file often has its full length, and zeros where data should be. (GIF and BMP cannot tell.)"""
    data = damaged_samples()[kind]
    for share in (0.6, 0.8, 0.95):
        kept = data[: int(len(data) * share)]
        with pytest.raises(SampleError) as caught:
            decode(kept + bytes(len(data) - len(kept)), PLAIN)
        assert caught.value.reason in ("TRUNCATED", "UNDECODABLE")


def test_bytes_after_the_picture_do_no_harm() -> None:
    for kind in ("jpeg", "cmyk", "png", "gif", "webp"):
        data = damaged_samples()[kind]
        assert np.array_equal(decoded(data + b"\0\xff trailing" * 20), decoded(data))


@pytest.mark.parametrize("kind", damaged_samples())
def test_whatever_the_bytes_only_image_errors_come_out(kind: str) -> None:
    data, generator = damaged_samples()[kind], np.random.default_rng(1)
    outcomes = set()
    for _ in range(80):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            broken[place] = generator.integers(256)
        try:
            assert decode(bytes(broken), Transform(8, 8)).shape == (3, 8, 8)
            outcomes.add("ok")
        except SampleError as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 1


@pytest.mark.parametrize("data", [b"", b"\n", b"hello, this is text\n" * 50, b"\0" * 5000, b"%PDF-1.7", b"<svg/>"])
def test_what_is_no_image_is_called_so(data: bytes) -> None:
    with pytest.raises(SampleError) as caught:
        decode(data, PLAIN)
    assert caught.value.reason == "UNDECODABLE"


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "EPS"])
def test_formats_outside_the_list_are_not_opened(kind: str) -> None:
    assert kind not in FORMATS
    with pytest.raises(SampleError) as caught:
        decode(encoded(rgb(), kind), PLAIN)
    assert caught.value.reason == "UNDECODABLE"


@pytest.mark.parametrize("values", [np.float32([[0.5] * SIDE] * SIDE), np.int32([[70_000] * SIDE] * SIDE)])
def test_pixels_without_an_agreed_range_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(SampleError, match="range"):
        decode(encoded(Image.fromarray(values), "TIFF"), PLAIN)


def test_a_big_image_below_the_limit_is_not_refused_for_pillow_s_warning() -> None:
    data = bytearray(encoded(rgb().convert("L"), "PNG"))
    data[16:24] = struct.pack(">II", 9500, 9500)  # 90 million pixels; Pillow warns from 89
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(SampleError, match="truncated") as caught:  # the pixels are not there, that is all
        decode(bytes(data), PLAIN)
    assert caught.value.reason == "TRUNCATED"


def with_huge_size(kind: str) -> bytes:
    """A few hundred bytes whose header promises billions of pixels."""
    data = bytearray(encoded(rgb(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 65535, 65535)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    elif kind == "WEBP":
        data[21:25] = (int.from_bytes(data[21:25], "little") | (1 << 28) - 1).to_bytes(4, "little")
    else:
        start = int.from_bytes(data[4:8], "little") + 2
        for entry in (start, start + 12):  # the first two tags of an image are its width and height
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 2**31 - 1)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_lying_header_is_refused_before_memory_is_taken(kind: str) -> None:
    with pytest.raises(SampleError) as caught:
        decode(with_huge_size(kind), PLAIN)
    assert caught.value.reason == "TOO_LARGE"
    assert "pixels" in caught.value.message
