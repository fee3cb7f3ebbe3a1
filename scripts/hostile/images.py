"""Makes the hostile pictures: headers that lie, bombs, loops, and the largest that are allowed."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, features

from .good import encoded, make_pictures
from .parts import bomb


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """A PNG of these chunks, with this header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def tiff(*tags: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF with one directory: (tag, type, count, value), then `data` at byte 8."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + struct.pack("<I", following)


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], **options: Any) -> bytes:
    plain = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (4, height)}
    plain |= {273: (4, 8), 279: (4, width * height % 2**32)}
    tags = {tag: (tag, kind, 1, value) for tag, (kind, value) in plain.items()}
    tags |= {tag[0]: tag for tag in more}
    return tiff(*tags.values(), **options)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def lying_headers(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """A few hundred bytes whose headers promise billions of pixels."""
    jpeg, gif = bytearray(pictures["baseline.jpg"]), bytearray(pictures["plain.gif"])
    bmp, webp = bytearray(pictures["rgb.bmp"]), bytearray(pictures["lossless.webp"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    webp[21:25] = (int.from_bytes(webp[21:25], "little") | (1 << 28) - 1).to_bytes(4, "little")
    return {
        "lying_jpeg": bytes(jpeg),
        "lying_gif": bytes(gif),
        "lying_bmp": bytes(bmp),
        "lying_webp": bytes(webp),
        "lying_png": png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b"\0"))),
        "lying_png_2_to_31": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")),
        "lying_tiff": grey_tiff(2**31 - 1, 2**31 - 1),
        "lying_tiff_2_to_32": grey_tiff(2**32 - 1, 2**32 - 1),
        "one_pixel_high": png(2**31 - 1, 1, chunk(b"IDAT", zlib.compress(b"\0"))),
        "one_pixel_wide": png(1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"\0"))),
        "no_pixels": png(0, 0, chunk(b"IDAT", zlib.compress(b"\0"))),
    }


def jpeg_2000(
    side: int,
    *,
    tile: int = 0,
    count: int = 3,
    block: int = 6,
    precinct: int = 15,
    layers: int = 1,
    boxes: bool = False,
) -> bytes:
    """A JPEG 2000 whose headers promise this and whose data are missing; block and precinct are exponents of 2."""
    levels = 6
    siz = struct.pack(">H8IH", 0, side, side, 0, 0, tile or side, tile or side, 0, 0, count) + b"\7\1\1" * count
    cod = (
        struct.pack(">BBHBBBBBB", 1, 0, layers, 1, levels - 1, block - 2, block - 2, 0, 1)
        + bytes([precinct * 17]) * levels
    )
    qcd = b"\x40" + b"\x48" * (3 * levels - 2)
    stream = b"\xff\x4f" + segment(0x51, siz) + segment(0x52, cod) + segment(0x5C, qcd)
    stream += segment(0x90, struct.pack(">HIBB", 0, 14, 0, 1)) + b"\xff\x93\xff\xd9"
    if not boxes:
        return stream
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", side, side, 3, 7, 7, 0, 0)
    header += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 16)
    kinds = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    return kinds + struct.pack(">I4s", 8 + len(header), b"jp2h") + header + struct.pack(">I4s", 0, b"jp2c") + stream


def avif_that_lies() -> dict[str, bytes]:
    """A large picture that says it has 64 x 64 pixels, and a small one that says it has 256 million."""
    if not features.check("avif"):
        return {}
    large, small = (bytearray(encoded(Image.new("RGB", (side, side)), "AVIF", speed=10)) for side in (12_000, 64))
    for data, side in ((large, 64), (small, 16_000)):
        place = data.index(b"ispe") + 8
        data[place : place + 8] = struct.pack(">II", side, side)
    return {"avif_larger_than_said": bytes(large), "avif_smaller_than_said": bytes(small)}


def newer_formats() -> dict[str, bytes]:
    """JPEG 2000 and AVIF: 192 bytes took 12 GB before they were looked at."""
    return {
        "j2k_lying": jpeg_2000(2**31 - 1),
        "j2k_large": jpeg_2000(8000),
        "j2k_blocks": jpeg_2000(4096, block=2),
        "j2k_precincts": jpeg_2000(4096, precinct=1),
        "j2k_layers": jpeg_2000(512, precinct=1, layers=65_535),
        "j2k_tiles_without_end": jpeg_2000(30_000, tile=1),
        "j2k_components": jpeg_2000(512, tile=2, count=16_000, boxes=True),
        "j2k_components_few_tiles": jpeg_2000(512, count=16_000, boxes=True),
        "j2k_tiles_missing": jpeg_2000(512, tile=8, boxes=True),
        "j2k_empty": jpeg_2000(512),
        "j2k_box_without_end": jpeg_2000(64, boxes=True).replace(b"\0\0\0\x14ftyp", b"\0\0\0\0ftyp"),
        "heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(1000),
        **avif_that_lies(),
    }


def largest_images() -> dict[str, bytes]:
    """Pictures just below the limit: small as files, and all of their pixels are really there."""
    width, height = 10_240, 10_240
    turned = Image.Exif()
    turned[0x0112] = 5
    return {
        "largest_rgba": png(width, height, chunk(b"IDAT", bomb((4 * width + 1) * height)), colour=6),
        "largest_grey16": png(width, height, chunk(b"IDAT", bomb((2 * width + 1) * height)), depth=16, colour=0),
        "largest_interlaced": png(width, height, chunk(b"IDAT", bomb(2**20 * 320)), interlaced=1),
        "largest_jpeg_turned": encoded(Image.new("RGB", (width, height)), "JPEG", exif=turned, subsampling=0),
        "largest_progressive": encoded(Image.new("RGB", (width, 9300)), "JPEG", progressive=True, subsampling=0),
        "largest_webp": encoded(Image.new("RGBA", (16_383, 3200)), "WEBP", lossless=True, method=0, quality=0),
        "cmyk_progressive": encoded(Image.new("CMYK", (width, height - 1024)), "JPEG", progressive=True, quality=10),
        "largest_jpeg_2000": encoded(Image.new("RGB", (6400, 6000)), "JPEG2000"),
        "largest_jpeg_2000_tiled": encoded(Image.new("RGBA", (7900, 7900)), "JPEG2000", tile_size=(512, 512)),
        "largest_avif": encoded(Image.new("RGB", (6600, 6600)), "AVIF", speed=10, subsampling="4:4:4"),
        "webp_beyond": encoded(Image.new("RGB", (16_383, 3300)), "WEBP", lossless=True, method=0, quality=0),
    }


def bombs(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """What grows or goes on when it is read."""
    dots = chunk(b"IDAT", zlib.compress(b"\0\1\2\3" * 1))
    text = bomb(2**30)
    many = chunk(b"zTXt", b"k\0\0" + bomb(2**20))
    jpeg = pictures["progressive.jpg"]
    long = encoded(Image.new("RGB", (6000, 6000)), "JPEG", progressive=True, subsampling=0)
    scan = long.rindex(b"\xff\xda")
    frame = pictures["animated.gif"]
    first = frame.index(b"\x21\xf9\x04")
    apng = pictures["animated.png"]
    following = apng.rindex(b"IEND") - 4
    tail = apng[apng.index(b"fcTL", apng.index(b"IDAT")) - 4 : following]
    webp = pictures["animated.webp"]
    frames = webp[webp.index(b"ANMF") :] * 3000
    size = len(webp) - 8 + len(frames)
    huge_exif = b"Exif\0\0" + tiff((0x8769, 4, 1, 8), following=8)
    wide = grey_tiff(64, 64, (322, 4, 1, 2**16), (323, 4, 1, 2**16), (324, 4, 1, 8), (325, 4, 1, 64), data=bytes(64))
    deflated = bomb(2**30)
    tiles = ((259, 3, 1, 8), (322, 4, 1, 2**15), (323, 4, 1, 2**15), (324, 4, 1, 8), (325, 4, 1, len(deflated)))
    gigabyte = grey_tiff(64, 64, *tiles, data=deflated)
    strip = grey_tiff(64, 64, (259, 3, 1, 8), (279, 4, 1, len(deflated)), data=deflated)
    return {
        "text_bomb": png(1, 1, chunk(b"zTXt", b"k\0\0" + text), dots),
        "text_bomb_international": png(1, 1, chunk(b"iTXt", b"k\0\1\0\0\0" + text), dots),
        "text_bombs_many": png(1, 1, *[many] * 2000, dots),
        "text_bombs_behind": png(1, 1, dots, *[many] * 2000),
        "profile_bomb": png(1, 1, chunk(b"iCCP", b"k\0\0" + text), dots),
        "pixels_too_many": png(64, 64, chunk(b"IDAT", text)),
        "chunks_empty": png(64, 64, *[chunk(b"IDAT", b"")] * 200_000),
        "chunk_2_to_31": png(1, 1, dots).replace(b"\0\0\0\x0cIDAT", b"\x7f\xff\xff\xffIDAT"),
        "scans_10000": long[:-2] + long[scan:-2] * 10_000 + b"\xff\xd9",
        "markers_200000": jpeg[:2] + segment(0xFE, b"x") * 200_000 + jpeg[2:],
        "profiles_255": jpeg[:2]
        + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)) for n in range(1, 256))
        + jpeg[2:],
        "exif_loop": jpeg[:2] + segment(0xE1, huge_exif) + jpeg[2:],
        "mpf_lying": pictures["several.jpg"].replace(b"MPF\0", b"MPF\0" + b"\xff" * 8),
        "frames_gif": frame[:-1] + frame[first:-1] * 3000 + b";",
        "frames_gif_endless": frame[:-1] + frame[first:-1] * 3000,
        "blocks_gif": frame[:first] + (b"\x21\xfe\xff" + bytes(255) + b"\0") * 20_000 + frame[first:],
        "frames_png": apng[:following] + tail * 2000 + apng[following:],
        "frames_png_claimed": apng.replace(apng[33:53], chunk(b"acTL", b"\x7f\xff\xff\xff\0\0\0\0")),
        "frames_webp": b"RIFF" + struct.pack("<I", size) + webp[8:] + frames,
        "directory_loop": grey_tiff(8, 8, following=8 + 64, data=bytes(64)),
        "directory_of_itself": grey_tiff(8, 8, (330, 4, 1, 72), following=72, data=bytes(64)),
        "directory_65535": struct.pack("<2sHIH", b"II", 42, 8, 65_535) + struct.pack("<HHII", 256, 4, 1, 8) * 65_535,
        "tag_2_to_32": grey_tiff(8, 8, (270, 2, 2**32 - 1, 8), data=bytes(64)),
        "strips_2_to_32": grey_tiff(8, 8, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8), data=bytes(64)),
        "strip_to_itself": grey_tiff(8000, 8000, data=bytes(64)),
        "tile_2_to_16": wide,
        "tile_bomb": gigabyte,
        "strip_bomb": strip,
        "big_tiff_loop": struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<QQ", 2**63, 16),
        "bmp_run_length": pictures["palette.bmp"][:30] + b"\1" + pictures["palette.bmp"][31:],
        "bmp_palette_2_to_31": pictures["palette.bmp"][:46] + b"\xff\xff\xff\x7f" + pictures["palette.bmp"][50:],
        "bmp_offset": pictures["rgb.bmp"][:10] + b"\xff\xff\xff\x7f" + pictures["rgb.bmp"][14:],
        "polyglot_gif_zip": pictures["plain.gif"] + b"PK\3\4" + bytes(100),
        "polyglot_jpeg_html": jpeg[:2] + segment(0xFE, b"<script>alert(1)</script>") + jpeg[2:],
        "polyglot_png_pickle": png(1, 1, dots) + pickle.dumps(["x"]),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "xpm": b'/* XPM */ static char *a[] = { "999999 999999 2 1",',
        "nothing": b"",
    }


def make_largest(folder: Path) -> None:
    folder.mkdir()
    for name, data in largest_images().items():
        (folder / name).write_bytes(data)


def make_images(folder: Path) -> None:
    folder.mkdir()
    pictures = make_pictures()
    cases = {**lying_headers(pictures), **bombs(pictures), **newer_formats()}
    cases |= {f"cut_{name}": data[: len(data) // 2] for name, data in pictures.items()}
    for name, data in cases.items():
        (folder / name).write_bytes(data)
