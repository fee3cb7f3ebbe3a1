"""Decoding: every kind of image becomes the pixels a viewer shows, or an SampleError that says why not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional

from precompute import extract
from precompute.cache import Status
from precompute.errors import SampleError
from precompute.inputs.images.decode import FORMATS, decode, quiet_pillow
from precompute.inputs.images.transform import Transform

SIDE = 24
PLAIN = Transform(SIDE, SIDE)  # leaves a picture of SIDE x SIDE as it is


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with quiet_pillow():
        yield


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> NDArray[np.int64]:
    return decode(data, PLAIN).permute(1, 2, 0).numpy().astype(int)


def rgb(seed: int = 0) -> Image.Image:
    return make_image(seed, (SIDE, SIDE))


def alpha(seed: int = 1) -> Image.Image:
    return make_image(seed, (SIDE, SIDE)).convert("L")


def over_white(image: Image.Image, mask: Image.Image) -> NDArray[np.int64]:
    share = np.asarray(mask)[..., None] / 255
    return np.rint(np.asarray(image.convert("RGB")) * share + 255 * (1 - share)).astype(int)


# What every viewer shows


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}, {"subsampling": 0, "quality": 100}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode: str, options: dict[str, Any]) -> None:
    data = encoded(rgb().convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        assert np.array_equal(decoded(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_lossless_formats_are_exact(kind: str, mode: str) -> None:
    image = rgb().convert(mode)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decoded(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    image = rgb()
    image.putalpha(alpha())
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(decoded(data) - over_white(rgb(), alpha())).max() <= 1


def test_grey_with_alpha() -> None:
    image = Image.merge("LA", (rgb().convert("L"), alpha()))
    assert np.abs(decoded(encoded(image, "PNG")) - over_white(rgb().convert("L"), alpha())).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind: str) -> None:
    image = rgb().quantize(8)
    hidden = int(np.bincount(np.asarray(image).ravel()).argmax())
    expected = np.asarray(image.convert("RGB")).copy()
    expected[np.asarray(image) == hidden] = 255
    assert np.array_equal(decoded(encoded(image, kind, transparency=hidden)), expected)


def test_a_palette_with_degrees_of_transparency() -> None:
    image = rgb().quantize(4)
    degrees = bytes([0, 85, 170, 255])
    mask = Image.fromarray(np.frombuffer(degrees, np.uint8)[np.asarray(image)])
    assert np.abs(decoded(encoded(image, "PNG", transparency=degrees)) - over_white(image, mask)).max() <= 1


def test_a_transparent_grey_or_rgb_value_is_white() -> None:
    image = Image.new("RGB", (SIDE, SIDE), (10, 20, 30))
    image.putpixel((3, 4), (90, 20, 30))
    expected = np.full((SIDE, SIDE, 3), 255)
    expected[4, 3] = (90, 20, 30)
    assert np.array_equal(decoded(encoded(image, "PNG", transparency=(10, 20, 30))), expected)


def extended(kind: str) -> Any:
    return pytest.param(kind, marks=pytest.mark.skipif(kind not in FORMATS, reason=f"Pillow was built without {kind}"))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("RGB", {}), ("RGB", {"no_jp2": True}), ("RGB", {"tile_size": (16, 16)}), ("P", {})],
)
@pytest.mark.parametrize("kind", [extended("JPEG2000")])
def test_jpeg_2000_is_exact_where_it_is_lossless(kind: str, mode: str, options: dict[str, Any]) -> None:
    image = rgb().convert(mode)
    if mode == "P":
        image = image.convert("RGB")
    assert np.array_equal(decoded(encoded(image, kind, **options)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", [extended("JPEG2000")])
def test_jpeg_2000_with_16_bits_or_with_alpha(kind: str) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    assert np.abs(decoded(encoded(Image.fromarray(values), kind)) - (values / 257)[..., None]).max() <= 1
    image = rgb()
    image.putalpha(alpha())
    assert np.abs(decoded(encoded(image, kind)) - over_white(rgb(), alpha())).max() <= 1


@pytest.mark.parametrize("kind", [extended("AVIF")])
def test_avif_is_what_pillow_shows(kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    image = make_image(2, (SIDE + 10, SIDE))
    plain, turned = encoded(image, kind, quality=90), encoded(image, kind, quality=90, exif=exif)
    assert np.array_equal(decoded(plain), reference(plain))
    assert np.array_equal(decoded(turned), reference(turned))
    assert not np.array_equal(decoded(plain), decoded(turned))
    transparent = rgb()
    transparent.putalpha(alpha())
    data = encoded(transparent, kind, quality=100, subsampling="4:4:4")
    assert np.abs(decoded(data) - over_white(rgb(), alpha())).mean() < 3
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime")]
    first = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(first - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", [extended("JPEG2000"), extended("AVIF")])
def test_half_of_a_newer_format_is_truncated(kind: str) -> None:
    data = encoded(make_image(2, (100, 100)), kind)
    for length in (20, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(SampleError) as caught:
            decoded(data[:length])
        assert caught.value.reason == "TRUNCATED", length


@pytest.mark.parametrize(("kind", "name"), [("JPEG2000", "JPEG 2000"), ("AVIF", "AVIF")])
def test_a_pillow_built_without_a_format_says_so_and_is_asked_again(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"AVIF": b"\0\0\0\x1cftypavif\0\0\0\0", "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n"}[kind]
    monkeypatch.setattr("precompute.inputs.images.decode.FORMATS", tuple(one for one in FORMATS if one != kind))
    with pytest.raises(SampleError, match=f"{name}, which this Pillow does not decode: pip install") as caught:
        decoded(data)
    assert Status[caught.value.reason].may_change


def heads_of_foreign_files() -> dict[str, tuple[str, bytes]]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"
    tags.tagtype[50706] = 1
    preview = TiffImagePlugin.ImageFileDirectory_v2()
    preview[254], preview[330] = 1, 8
    return {
        "a.heic": ("pillow-heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "b.heif": ("pillow-heif", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        "c.jxl": ("pillow-jxl-plugin", b"\xff\x0a" + bytes(30)),
        "d.jxl": ("pillow-jxl-plugin", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30)),
        "e.dng": ("rawpy", encoded(rgb(), "TIFF", tiffinfo=tags)),
        "f.nef": ("rawpy", encoded(rgb(), "TIFF", tiffinfo=preview)),
        "g.cr2": ("rawpy", b"II*\0\x10\0\0\0CR\2\0" + bytes(30)),
        "h.cr3": ("rawpy", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
        "i.raf": ("rawpy", b"FUJIFILMCCD-RAW 0201" + bytes(30)),
    }


@pytest.mark.parametrize("name", heads_of_foreign_files())
def test_what_pillow_does_not_decode_is_named_with_a_package_that_does(name: str) -> None:
    package, data = heads_of_foreign_files()[name]
    with pytest.raises(SampleError, match=f"convert it to JPEG or PNG, for example with {package}$") as caught:
        decoded(data)
    assert caught.value.reason == "UNDECODABLE"


def test_a_folder_of_foreign_pictures_is_a_source_with_or_without_their_extensions(tmp_path: Path) -> None:
    pictures = heads_of_foreign_files()
    for name, (_, data) in pictures.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name[0]).write_bytes(data)
    result = extract(tmp_path, tmp_path / "a.h5", backbone="tiny")
    assert result.failures == {"UNDECODABLE": 2 * len(pictures)}
    assert any("pillow-heif" in detail for _, _, detail in result.failed)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((SIDE, SIDE), 9, np.int32), "32-bit integers"),
        (np.full((SIDE, SIDE), 40_000, np.uint32), "32-bit integers"),
        (np.full((SIDE, SIDE), 70_000, np.int32), "32-bit integers"),
        (np.full((SIDE, SIDE), 9, np.int16), "16-bit signed integers"),
        (np.full((SIDE, SIDE), 0.5, np.float32), "32-bit floats"),
    ],
)
def test_a_tiff_is_judged_by_its_type_and_not_by_its_content(values: NDArray[Any], what: str) -> None:
    pixels, sample_format = values.tobytes(), {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: SIDE, 257: SIDE, 258: values.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE}
    tags |= {279: len(pixels), 339: sample_format}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)
    with pytest.raises(SampleError, match=f"pixels are {what}, whose range no viewer agrees on") as caught:
        decoded(data)
    assert caught.value.reason == "UNDECODABLE"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8(kind: str) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    pixels = decoded(encoded(Image.fromarray(values), kind))
    assert np.abs(pixels - (values / 257)[..., None]).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_transparent_16_bit_grey_is_white_and_no_other_grey_is() -> None:
    values = np.full((SIDE, SIDE), 200 * 257, np.uint16)  # 200 as 8-bit grey
    values[0] = 200
    data = bytearray(encoded(Image.fromarray(values), "PNG"))
    chunk = b"tRNS" + struct.pack(">H", 200)  # after the header, which ends at byte 33
    data[33:33] = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    pixels = decoded(bytes(data))
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 200).all()


def test_16_bit_rgb_png_is_scaled_to_8() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    assert np.abs(decoded(data) - values / 257).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decoded(data), np.full((SIDE, SIDE, 3), (255, 0, 0)))


def test_a_first_gif_frame_smaller_than_its_canvas() -> None:
    small = Image.new("P", (4, 4), 1)
    small.putpalette([0, 0, 0, 200, 0, 0])
    data = bytearray(encoded(small, "GIF"))
    data[6:10] = struct.pack("<HH", SIDE, SIDE)  # the logical screen
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decoded(bytes(data)), np.asarray(image.convert("RGB")))
    assert (decoded(bytes(data))[:4, :4] == (200, 0, 0)).all()


def test_cmyk_tiff_and_mpo() -> None:
    cmyk = encoded(rgb().convert("CMYK"), "TIFF")
    assert np.array_equal(decoded(cmyk), np.asarray(rgb().convert("CMYK").convert("RGB")))
    mpo = encoded(rgb(1), "MPO", save_all=True, append_images=[rgb(2)])
    with Image.open(io.BytesIO(mpo)) as image:
        assert image.format == "MPO"
        assert np.array_equal(decoded(mpo), np.asarray(image))


def test_lab_is_not_shown_in_false_colours() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(rgb(), *profiles, outputMode="LAB")
    assert np.abs(decoded(encoded(lab, "TIFF")) - np.asarray(rgb())).mean() < 4


# EXIF


def reference(data: bytes, transform: Transform = PLAIN) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    resized = functional.resize(upright, [transform.resize])
    return np.asarray(functional.center_crop(resized, [transform.crop] * 2)).astype(int)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")],
)
def test_exif_orientation_is_applied(kind: str, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    image = make_image(2, (SIDE + 10, SIDE)).convert(mode)
    data = encoded(image, kind, exif=exif)
    assert np.array_equal(decoded(data), reference(data))
    if 2 <= orientation <= 8:
        assert not np.array_equal(decoded(data), decoded(encoded(image, kind)))


def test_orientation_in_xmp_is_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(make_image(2, (SIDE + 10, SIDE)), "JPEG", xmp=xmp)
    assert np.array_equal(decoded(data), reference(data))
    assert not np.array_equal(decoded(data), decoded(encoded(make_image(2, (SIDE + 10, SIDE)), "JPEG")))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_broken_exif_does_not_spoil_the_picture(mode: str) -> None:
    exif = Image.Exif()
    exif[0x10F], exif[0x112] = "camera", 6
    whole, generator = exif.tobytes(), np.random.default_rng(0)
    image = make_image(2, (SIDE, SIDE)).convert(mode)
    plain = decoded(encoded(image, "JPEG"))
    turned = [np.rot90(plain, k)[:, ::flip] for k in range(4) for flip in (1, -1)]
    for _ in range(150):
        broken = bytearray(whole[: generator.integers(6, len(whole) + 1)])
        place = int(generator.integers(6, len(broken) + 1))
        broken[place : place + 2] = generator.bytes(2)
        pixels = decoded(encoded(image, "JPEG", exif=bytes(broken)))
        assert any(np.array_equal(pixels, way) for way in turned)


def test_exif_cut_behind_the_orientation_still_turns_the_picture() -> None:
    """Pillow warns of it, and this test runs with warnings as errors: what is decoded must not depend on that."""
    exif = Image.Exif()
    exif[0x112], exif[0x131] = 6, "the name of a program"
    data = encoded(make_image(2, (SIDE + 10, SIDE)), "JPEG", exif=exif.tobytes()[:-30])
    with pytest.warns(UserWarning), Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x112] == 6
    assert np.array_equal(decoded(data), reference(data))


# Real photos


@pytest.mark.parametrize("split", ["train", pytest.param("val", marks=pytest.mark.slow)])
def test_photos_equal_pil_and_the_preset(hymenoptera: Path, split: str) -> None:
    transform = Transform.from_preset(ResNet18_Weights.DEFAULT.transforms())
    paths = sorted(path for path in (hymenoptera / split).rglob("*") if path.suffix in (".jpg", ".jpeg", ".gif"))
    assert len(paths) > 100
    for path in paths if split == "val" else paths[::4]:
        data = path.read_bytes()
        pixels = decode(data, transform)
        assert pixels.dtype == torch.uint8
        expected = reference(data, transform)
        difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).max()
        # JPEG is resized by torch's kernels, everything else by Pillow's
        assert difference <= (1 if data.startswith(b"\xff\xd8") else 0), path.name


def test_the_pil_path_gives_photos_bit_for_bit(hymenoptera: Path) -> None:
    transform = Transform(256, 224, "bicubic")
    for path in sorted((hymenoptera / "val" / "ants").iterdir())[:8]:
        with Image.open(path) as image:
            data = encoded(image.convert("RGB"), "BMP")
            expected = functional.resize(image.convert("RGB"), [256], functional.InterpolationMode.BICUBIC)
        expected = functional.pil_to_tensor(functional.center_crop(expected, [224, 224]))
        assert torch.equal(decode(data, transform), expected)
