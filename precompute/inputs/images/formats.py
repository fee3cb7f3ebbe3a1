"""Which files are pictures, by their names and first bytes; and those that nothing here decodes, with what does."""

from __future__ import annotations

from precompute.sources.base import FileKind
from precompute.system.samples import IMAGE, WORDS

DECODED = (
    b".jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .webp .tif .tiff .mpo .jp2 .j2k .j2c .jpc .jpf .jpx .avif .avifs"
)
FOREIGN = b".heic .heif .hif .jxl .cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw"
EXTENSIONS = frozenset(DECODED.split() + FOREIGN.split())
"""A file with one of these is a sample whatever it holds: should it not be decoded, that is worth reporting."""

NAMES = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF or JPEG 2000"
HEAD_BYTES = 16  # of a file decide what it is
BRANDS_BYTES = 64  # of an ISO container (AVIF, HEIF) hold its brands
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
RAW = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW")  # Olympus, Panasonic, Fujifilm
AVIF_BRANDS = (b"avif", b"avis")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

HOW = {"HEIF": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "a camera's raw format": "rawpy"}
"""Kinds of pictures that Pillow does not decode, with a package that reads them."""


def looks_like_image(head: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file are those of a picture, whether it can be decoded or not."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", *JPEG_2000, *TIFF))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or is_avif(head)
        or foreign_kind(head) is not None
    )


def is_avif(head: bytes) -> bool:
    """Whether a file with these first bytes says that it is AVIF."""
    return head[4:8] == b"ftyp" and any(brand in AVIF_BRANDS for brand in _brands(head))


def foreign_kind(head: bytes) -> str | None:
    """The key of HOW for a file with these first bytes, BRANDS_BYTES of them to be sure; None for all others."""
    if head.startswith(JPEG_XL):
        return "JPEG XL"
    if head.startswith(RAW) or (head.startswith(TIFF) and head[8:10] == b"CR") or head[4:12] == b"ftypcrx ":
        return "a camera's raw format"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not is_avif(head):
        return "HEIF"
    return None


def _brands(head: bytes) -> list[bytes]:
    """The main brand of an ISO container, and the further ones as far as its first box reaches into `head`."""
    end = min(int.from_bytes(head[:4], "big"), BRANDS_BYTES, len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]


IMAGES = FileKind(WORDS[IMAGE].single, WORDS[IMAGE].plural, NAMES, EXTENSIONS, HEAD_BYTES, looks_like_image)
"""Which files of a folder are samples."""
