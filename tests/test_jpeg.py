"""Plain JPEG takes a faster road than Pillow's: to the same pixels, and to the same refusals."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_decode import encoded, reference

from precompute.errors import SampleError
from precompute.inputs.images import jpeg
from precompute.inputs.images.decode import ORIENTATIONS, decode
from precompute.inputs.images.transform import Transform

END = b"\xff\xd9"
TRANSFORM = Transform(64, 56)
FAST = Transform(64, 56, fast_decode=True)
AMBIGUOUS = [((3, 3), 2), ((5, 5), 4)]
"""Reduced to 2x2 at 5/8 as at 1/2, at 3/8 as at 1/4: told the size alone, libjpeg-turbo takes the larger scale."""


def pixels(data: bytes, factor: int = 1) -> NDArray[np.uint8] | None:
    with Image.open(io.BytesIO(data)) as image:
        found = jpeg.pixels(image, data, factor)
    return None if found is None else found.copy()


def by_pillow(data: bytes, factor: int = 1) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (image.width // factor, image.height // factor))
        return np.asarray(image.convert("RGB"))


def flawed(data: bytes) -> bytes:
    """The same picture with stray bytes before its end, for which libjpeg warns."""
    assert data.endswith(END)
    return data[:-2] + bytes(40) + END


# The same pixels as Pillow's


@pytest.mark.rotates(3)
@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["L", "RGB"]),
    options=st.fixed_dictionaries(
        {"quality": st.integers(1, 100), "progressive": st.booleans(), "restart_marker_blocks": st.integers(0, 4)},
        optional={"subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])},
    ),
    factor=st.sampled_from([1, 2, 4, 8]),
)
def test_pixels_are_pillow_s(size: tuple[int, int], mode: str, options: dict[str, Any], factor: int) -> None:
    data = encoded(make_image(size[0], size).convert(mode), "JPEG", **options)
    found = pixels(data, factor)
    assert found is not None
    if min(size) >= factor and (size, factor) not in AMBIGUOUS:
        assert np.array_equal(found, by_pillow(data, factor))


def test_photos_take_the_fast_road_to_pillow_s_pixels(hymenoptera: Path) -> None:
    paths = sorted(hymenoptera.rglob("*.jpg"))[::8]
    assert len(paths) > 40
    for path in paths:
        data = path.read_bytes()
        found = pixels(data)
        assert found is not None, path.name
        assert np.array_equal(found, by_pillow(data)), path.name


@pytest.mark.parametrize("method", ORIENTATIONS.values())
def test_turned_is_pillow_s_transpose(method: Image.Transpose) -> None:
    image = make_image(3, (7, 5))
    assert np.array_equal(jpeg.turned(np.array(image), method), np.asarray(image.transpose(method)))


def test_threads_do_not_write_into_each_other_s_pictures() -> None:
    """Each thread keeps its memory for the next picture."""
    pictures = [encoded(make_image(seed, (120 + seed % 3, 90)), "JPEG") for seed in range(60)]
    alone = [decode(data, TRANSFORM).clone() for data in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decode(data, TRANSFORM), pictures))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


# Flaws


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_flaw_is_left_to_pillow_without_a_word(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(make_image(1, (200, 150)).convert(mode), "JPEG")
    assert pixels(flawed(data)) is None
    assert torch.equal(decode(flawed(data), TRANSFORM), decode(data, TRANSFORM))
    assert capfd.readouterr() == ("", "")


def test_a_header_that_is_read_in_two_ways_gets_no_more_memory_than_pillow_s() -> None:
    large = encoded(make_image(1, (300, 200)), "JPEG")
    with Image.open(io.BytesIO(encoded(make_image(1, (30, 20)), "JPEG"))) as small:
        assert jpeg.pixels(small, large, 1) is None
    with Image.open(io.BytesIO(large)) as image:
        assert jpeg.pixels(image, encoded(make_image(1, (30, 20)), "JPEG"), 1) is None


def test_what_follows_the_picture_is_not_taken_for_scans() -> None:
    """Phones append a film, in which any two bytes come up."""
    film = b"\xff\xda" * (jpeg.MAX_SCANS + 1) + END
    for progressive in (False, True):
        data = encoded(make_image(1, (200, 150)), "JPEG", progressive=progressive)
        assert torch.equal(decode(data + film, TRANSFORM), decode(data, TRANSFORM))


def test_scans_are_counted_where_libjpeg_reads_more_than_one() -> None:
    progressive = encoded(make_image(1, (200, 150)), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    scan = progressive[last:-2]
    with pytest.raises(SampleError, match="scans") as caught:
        decode(progressive[:-2] + scan * jpeg.MAX_SCANS + END, TRANSFORM)
    assert caught.value.reason == "TOO_LARGE"


# fast_decode


def large(path: Path, size: tuple[int, int], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    with Image.open(path) as image:
        return encoded(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), "JPEG", quality=92, exif=exif)


@pytest.fixture(scope="module")
def photo(hymenoptera: Path) -> Path:
    return sorted((hymenoptera / "val" / "ants").glob("*.jpg"))[0]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1203), (700, 530), (260, 256)])
def test_fast_decode_is_near_the_reference(photo: Path, size: tuple[int, int], orientation: int) -> None:
    """On average within 1.5 grey levels of Pillow's full decode, upright or turned, whatever the sides divide by."""
    data = large(photo, size, orientation)
    found = decode(data, FAST).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - reference(data, FAST)).mean() < 1.5


def test_fast_decode_does_decode_less(photo: Path) -> None:
    data = large(photo, (1600, 1200))
    assert not torch.equal(decode(data, FAST), decode(data, TRANSFORM))
    found = pixels(data, jpeg.reduction((1600, 1200), FAST.resize, upright=True))
    assert found is not None
    assert found.shape == (150, 200, 3)


def test_fast_decode_of_a_flawed_photo_is_that_of_the_whole_one(photo: Path) -> None:
    data = large(photo, (1601, 1203))
    assert pixels(flawed(data)) is None
    assert torch.equal(decode(flawed(data), FAST), decode(data, FAST))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "CMYK JPEG", "small JPEG"])
def test_fast_decode_leaves_everything_but_large_plain_jpeg_as_it_is(photo: Path, kind: str) -> None:
    with Image.open(photo) as image:
        picture = image.convert("RGB").resize((255, 300) if kind == "small JPEG" else (600, 500))
    picture = picture.convert("CMYK") if kind == "CMYK JPEG" else picture
    data = encoded(picture, kind.rsplit(maxsplit=1)[-1])
    assert torch.equal(decode(data, FAST), decode(data, TRANSFORM))


@pytest.mark.parametrize(
    ("size", "upright", "factor"),
    [
        ((511, 9000), True, 1),
        ((1023, 1023), True, 1),
        ((1024, 1600), True, 2),
        ((1600, 1067), True, 2),
        ((4000, 3000), True, 4),
        ((6000, 4096), True, 8),
        ((4000, 3000), False, 4),
        ((4002, 3000), False, 2),
        ((4001, 3000), False, 1),
    ],
)
def test_at_least_twice_the_pixels_of_the_resize_are_decoded(size: tuple[int, int], upright: bool, factor: int) -> None:
    assert jpeg.reduction(size, 256, upright=upright) == factor
