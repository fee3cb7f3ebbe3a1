"""A transform of the user's own, of torchvision's second kind, made to follow from a seed.

It draws from generators that all of a program shares: torch's, Python's and NumPy's. While it runs they are seeded, and
afterwards they are what they were before; one lock keeps two threads from doing so at once. What it draws from
elsewhere cannot be known, so it is tried when it is loaded: the same seed must give the same picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.errors import UsageError
from precompute.system import release_of
from precompute.system.code import current_folder_importable, load_attribute

if TYPE_CHECKING:
    import torch

PROBES = ((97, 160), (131, 89))  # heights and widths of what it is tried on
_GENERATORS = threading.Lock()
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class OwnTransform:
    """name: `package.module:name` · size: (height, width) where all pictures come out of it in one, None where not."""

    name: str
    transform: Any = field(compare=False)
    size: tuple[int, int] | None = None

    @classmethod
    def load(cls, name: str) -> OwnTransform:
        """Import it, also from the current folder, and try it. A class is called for the transform.

        Raises UsageError where that fails, or the same seed gives two pictures.
        """
        with current_folder_importable():
            try:
                found = load_attribute(name)
                transform = found() if isinstance(found, type) else found
            except Exception as error:
                module, _, attribute = name.partition(":")
                raise UsageError(
                    f"The transform {name} cannot be loaded: {type(error).__name__}: {error}",
                    hint=f"Check it with: python -c 'from {module} import {attribute}'",
                ) from error
        if not callable(transform):
            raise UsageError(
                f"{name} is a {type(transform).__name__}, which is not a transform.",
                hint="Name a torchvision.transforms.v2 transform, or a function from one picture to another.",
            )
        one = cls(name, transform)
        results = [one(probe, b"probe") for probe in _probes()]
        again = [one(probe, b"probe") for probe in _probes()]
        if any(a.shape != b.shape or not a.equal(b) for a, b in zip(results, again, strict=True)):
            raise UsageError(
                f"The transform {name} gives two pictures for one seed, so a run could not be resumed.",
                hint="Let it draw from torch's generator, Python's or NumPy's global one, and keep no state.",
            )
        sizes = {(int(result.shape[1]), int(result.shape[2])) for result in results}
        return cls(name, transform, sizes.pop() if len(sizes) == 1 else None)

    def spec(self) -> dict[str, Any]:
        """Its name, what it says of itself and of its parameters, and the library that it builds on."""
        said = ADDRESS.sub("", repr(self.transform))
        return {"name": self.name, "transform": said, "torchvision": release_of("torchvision")}

    def __call__(self, pixels: torch.Tensor, seed: bytes) -> torch.Tensor:
        """(3, H, W) uint8 -> the same of any size, which follows from `pixels` and `seed` alone.

        Raises UsageError where it fails, or returns anything else.
        """
        import torch
        from torchvision import tv_tensors

        with _seeded(seed):
            try:
                result = self.transform(tv_tensors.Image(pixels))
            except Exception as error:
                raise UsageError(
                    f"The transform {self.name} failed on a picture of {pixels.shape[2]} x {pixels.shape[1]} pixels: "
                    f"{type(error).__name__}: {error}",
                    hint="It gets the whole picture, (3, H, W) uint8, of any size.",
                ) from error
        good = isinstance(result, torch.Tensor) and result.dtype == torch.uint8 and result.ndim == 3
        if not good or result.shape[0] != 3 or not result.numel():
            what = (
                f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            )
            raise UsageError(
                f"The transform {self.name} must give a picture of (3, H, W) uint8. Got {what} instead.",
                hint="Leave out ToDtype, Normalize and ToPILImage: scaling and normalising come later.",
            )
        found: torch.Tensor = result.as_subclass(torch.Tensor)
        return found


@contextlib.contextmanager
def _seeded(seed: bytes) -> Iterator[None]:
    """Inside, the generators that all threads share are those of `seed`; then they are what they were before."""
    import torch

    words = hashlib.sha256(seed).digest()
    number = int.from_bytes(words[:8], "little")
    with _GENERATORS:
        before = torch.default_generator.get_state(), random.getstate(), np.random.get_state(legacy=False)
        torch.default_generator.manual_seed(number >> 1)  # not torch.manual_seed, which would seed every GPU as well
        random.seed(number)
        np.random.seed(np.frombuffer(words, np.uint32))
        try:
            yield
        finally:
            torch.default_generator.set_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])


def _probes() -> Iterator[torch.Tensor]:
    import torch

    for height, width in PROBES:
        values = np.random.default_rng(height).integers(0, 256, (3, height, width), dtype=np.uint8)
        yield torch.from_numpy(values)
