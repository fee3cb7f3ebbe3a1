"""Mutated pictures."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

from hostile.good import make_pictures

from .edits import scrambled
from .target import Target, WrongError

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hymenoptera"


class ImageTarget(Target):
    """Small pictures of every format, and a few real photos where they are there."""

    def __init__(self, folder: Path) -> None:
        from precompute.inputs.images.transform import Transform

        super().__init__(folder)
        self.bases = list(make_pictures().values())
        photos = [path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".jpeg", ".gif")]
        smallest = sorted(photos, key=lambda path: (path.stat().st_size, path.name))
        self.bases += [path.read_bytes() for path in smallest[:8]]
        self.transform = Transform(resize=20, crop=16)
        for data in self.bases:
            self.data = data
            if self.check() != "opened":
                raise WrongError("a picture to mutate does not decode")

    def mutate(self, rng: random.Random) -> None:
        self.data = scrambled(rng.choice(self.bases), rng, others=self.bases)
        if self.data.startswith(b"\x89PNG") and rng.random() < 0.8:
            self.data = with_right_sums(self.data)

    def check(self) -> str:
        import torch

        from precompute.cache import Status
        from precompute.errors import SampleError
        from precompute.inputs.images.decode import decode

        try:
            pixels = decode(self.data, self.transform)
        except SampleError as error:
            if error.reason not in Status.__members__ or not error.message:
                raise WrongError(f"the reason {error.reason!r}, the message {error.message!r}") from error
            return error.reason
        if tuple(pixels.shape) != (3, 16, 16) or pixels.dtype != torch.uint8:
            raise WrongError(f"{tuple(pixels.shape)} {pixels.dtype}")
        return "opened"


def with_right_sums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have."""
    result, place = bytearray(data), 8
    while place + 12 <= len(result):
        end = place + 8 + int.from_bytes(result[place : place + 4], "big")
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(result)
