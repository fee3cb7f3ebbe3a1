"""Plain JPEG -> pixels on a CUDA device, by nvJPEG through torchvision, for many threads at once.

What threads bring while a batch is decoded makes up the next one, so nobody waits for a batch to fill. Which files
share a batch changes no pixel. Which files are decoded here follows from the file alone; nvJPEG reports nothing of
damage in the middle of a file, where the decoder of the CPU does.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from precompute.errors import DeviceError, reason_of

if TYPE_CHECKING:
    import torch

MOST_PIXELS = 32 * 2**20  # of a picture: its float32 copy for the resize takes 12 bytes a pixel of the device's memory
BATCH_PIXELS = 128 * 2**20  # of the pictures of one call, each 3 bytes there
DEVICE = "cuda"
DEPRECATED = "The image decoding and encoding capabilities of TorchVision"  # from 0.29 on, for TorchCodec
REFUSED = re.compile(r"(image info|jpeg stream|batch( decoding)?): [34]\b|chroma subsampling")
"""How torchvision words NVJPEG_STATUS_BAD_JPEG (3) and NVJPEG_STATUS_JPEG_NOT_SUPPORTED (4), the file's own fault."""


@dataclass
class _Job:
    """One file. pixels: (3, H, W) uint8 on the device, None where nvJPEG refuses the file."""

    data: bytes
    size: int
    done: bool = False
    pixels: torch.Tensor | None = None
    error: Exception | None = field(default=None, repr=False)


class _Batches:
    """Files that wait, and the turn to decode them."""

    def __init__(self) -> None:
        self._waiting: list[_Job] = []
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def decode(self, job: _Job) -> torch.Tensor | None:
        with self._lock:
            self._waiting.append(job)
        with self._turn:  # whoever is next decodes for all that wait, and these find it done
            while not job.done:
                _run(self._next())
        if job.error is not None:
            raise job.error
        return job.pixels

    def _next(self) -> list[_Job]:
        with self._lock:
            count, pixels = 1, self._waiting[0].size
            while count < len(self._waiting) and pixels + self._waiting[count].size <= BATCH_PIXELS:
                pixels += self._waiting[count].size
                count += 1
            jobs, self._waiting = self._waiting[:count], self._waiting[count:]
        return jobs


_batches = _Batches()


def pixels(image: Image.Image, data: bytes) -> torch.Tensor | None:
    """(3, H, W) uint8 on the device, of a JPEG whose header Pillow has read as `image`, not turned upright.

    None where it is too large, or where nvJPEG refuses the file: then the CPU's decoder decides. To be called within
    `stream`. Raises DeviceError where the device has too little memory, or fails.
    """
    size = image.width * image.height
    return None if size > MOST_PIXELS else _batches.decode(_Job(data, size))


def turned(picture: torch.Tensor, method: Image.Transpose) -> torch.Tensor:
    """(3, H, W) turned as Pillow's `image.transpose(method)` would."""
    from precompute.inputs.images import jpeg

    picture = picture.transpose(1, 2) if method in jpeg.TURNED else picture
    sides = [2] * (method in jpeg.RIGHT_TO_LEFT) + [1] * (method in jpeg.UPSIDE_DOWN)
    return picture.flip(sides) if sides else picture


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep out of a run that torchvision will leave this to another package some day; in one thread, around the run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DEPRECATED)
        yield


@contextlib.contextmanager
def stream() -> Iterator[None]:
    """All threads decode and resize on one stream, next to that of the network."""
    import torch

    if DEVICE == "cpu":  # where tests run this without a GPU
        yield
        return
    with torch.cuda.stream(_stream()):
        yield


def check() -> None:
    """Raise DeviceError unless nvJPEG decodes a picture here."""
    import torch

    if DEVICE != "cpu" and not torch.cuda.is_available():
        raise DeviceError(
            "The decoder nvjpeg needs a CUDA device, and there is none here.",
            hint="Use --decoder cpu. Features that were made with nvjpeg need such a device for new images too.",
        )
    _check_decodes(DEVICE)


@cache
def _check_decodes(device: str) -> None:
    del device  # once for each
    stream_, image = io.BytesIO(), Image.new("RGB", (16, 16), (200, 100, 50))
    image.save(stream_, "JPEG")
    try:
        with quiet(), stream():
            found = pixels(image, stream_.getvalue())
    except Exception as error:
        raise DeviceError(
            f"nvJPEG does not work here: {reason_of(error)}",
            hint="Install a torchvision that is built for CUDA, or use --decoder cpu.",
        ) from error
    if found is None or tuple(found.shape) != (3, 16, 16):
        raise DeviceError("nvJPEG does not decode a plain picture here.", hint="Use --decoder cpu.")


@cache
def _stream() -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _run(jobs: list[_Job]) -> None:
    """Decode them in one call; one by one where that fails, to find whose fault it is."""
    try:
        found = _decoded([job.data for job in jobs])
    except Exception:  # noqa: BLE001 - each says it again
        for job in jobs:
            _run_alone(job)
    else:
        for job, picture in zip(jobs, found, strict=True):
            job.pixels = picture
    for job in jobs:
        job.done = True


def _run_alone(job: _Job) -> None:
    import torch

    try:
        (job.pixels,) = _decoded([job.data])
    except torch.OutOfMemoryError as error:
        job.error = DeviceError(
            f"The device has too little memory to decode a picture of {job.size:,} pixels: {reason_of(error)}",
            hint="Free memory on it (see nvidia-smi), take a smaller --batch-size, or --decoder cpu.",
        )
    except Exception as error:  # noqa: BLE001 - of the file where it says so, else of the device
        if not REFUSED.search(str(error)):
            job.error = DeviceError(f"nvJPEG fails: {reason_of(error)}", hint="Use --decoder cpu.")


def _decoded(files: list[bytes]) -> list[torch.Tensor]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in files]
    found: list[torch.Tensor] = decode_jpeg(data, mode=ImageReadMode.RGB, device=DEVICE)
    return found
