"""Plain JPEG (grey or RGB) -> pixels, by simplejpeg: libjpeg-turbo without Pillow's detour over four bytes a pixel.

Pillow has read the header before, and is asked again for every file that is not flawless: simplejpeg stops there
without a word, where other decoders print to stderr from C (docs/decisions/011).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from precompute.errors import SampleError

FORMATS = ("JPEG", "MPO")
MAX_SCANS = 100  # each goes over all pixels, in 40 ms at the limit of pixels; a progressive JPEG has about ten
END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
FACTORS = (8, 4, 2)  # what both libjpeg and Pillow can divide the sides by
REDUCED_AT_LEAST = 2  # times the size after the resize: closer, the two filters would blur noticeably
KEPT_BYTES = 64 * 2**20  # a thread keeps memory for 22 megapixels; fresh pages for each photo cost a tenth of its time
TURNED = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
RIGHT_TO_LEFT = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
UPSIDE_DOWN = {
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
}


class _Kept(threading.local):
    """Each thread's memory for pixels, used again for the next photo."""

    pixels: NDArray[np.uint8] = np.empty(0, np.uint8)


_kept = _Kept()


def check(image: Image.Image, data: bytes, start: int) -> None:
    """Raise SampleError for a JPEG without an end, or with too many scans; `start` is where its first scan begins."""
    # Where the tail of a file is zeros (a write that never finished) Pillow's picture is grey. From `start` on, an end
    # marker is not that of a thumbnail. The last one is found at once; the first one only matters where scans follow.
    if data.rfind(END_OF_IMAGE, start) < 0:
        raise SampleError("no end-of-image marker: the rest of the picture is missing", reason="TRUNCATED")
    if _one_scan(image, data, start):
        return
    if (scans := data.count(START_OF_SCAN, start, data.find(END_OF_IMAGE, start))) > MAX_SCANS:
        raise SampleError(f"{scans:,} scans, more than the limit of {MAX_SCANS}", reason="TOO_LARGE")


def _one_scan(image: Image.Image, data: bytes, start: int) -> bool:
    """Whether the first scan holds every component in full, so that libjpeg reads no other."""
    components = len(image.getbands())
    length = 6 + 2 * components  # of the scan's header, which ends at `start`
    return not image.info.get("progressive") and data[start - length : start - length + 3] == bytes(
        (0, length, components)
    )


def reduction(size: tuple[int, int], resize: int, *, upright: bool) -> int:
    """What a fast decode divides the sides by: the most that leaves REDUCED_AT_LEAST times `resize`, or 1."""
    for factor in FACTORS:
        # A last column that is only partly picture is left out on the right, but turned to the left it shifts the rest
        whole = upright or not any(side % factor for side in size)
        if whole and min(size) >= factor * REDUCED_AT_LEAST * resize:
            return factor
    return 1


def pixels(image: Image.Image, data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 of a JPEG that Pillow has opened as `image`, with its sides divided by `factor` (rounded up).

    None where Pillow has to decide what comes of a file that is damaged or unusual. What is returned may be overwritten
    by the same thread's next call. Raises MemoryError.
    """
    width, height = (-(-side // factor) for side in image.size)
    size = width * height * 3
    if _kept.pixels.size < size <= KEPT_BYTES:
        _kept.pixels = np.empty(size, np.uint8)
    # simplejpeg never writes beyond a buffer: no header that it reads otherwise than Pillow gets more memory
    buffer = _kept.pixels if size <= KEPT_BYTES else np.empty(size, np.uint8)
    try:
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=factor, buffer=buffer, strict=True
        )
    except ValueError:  # libjpeg's errors and warnings
        return None
    return found if found.shape == (height, width, 3) else None


def turned(pixels: NDArray[np.uint8], method: Any) -> NDArray[np.uint8]:
    """(H, W, 3) pixels turned as Pillow's `image.transpose(method)` would."""
    whole: NDArray[Any] = np.ndarray(pixels.shape[:2], "V3", pixels)  # three bytes move as one: twice as fast
    whole = whole.T if method in TURNED else whole
    whole = whole[:, ::-1] if method in RIGHT_TO_LEFT else whole
    whole = whole[::-1] if method in UPSIDE_DOWN else whole
    return np.ascontiguousarray(whole).view(np.uint8).reshape(*whole.shape, 3)
