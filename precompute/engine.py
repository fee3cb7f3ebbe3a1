"""The forward pass: device, precision, one fixed batch shape."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.errors import DeviceError, UsageError
from precompute.transform import Transform

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 32, "cuda": 256}  # beyond these, measured throughput no longer grows
MAX_BATCH = 65_536


@dataclass(frozen=True)
class EngineChoice:
    """What will run, and in words why where `auto` decided."""

    device: str
    precision: str
    batch_size: int
    why: str


def choose(*, device: str = "auto", precision: str = "auto", batch_size: int | None = None) -> EngineChoice:
    """Resolve `auto` for this machine.

    Raises DeviceError for a device that is not there (nothing falls back to the CPU unasked), UsageError for values
    out of range.
    """
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(
            f"precision must be auto or one of {', '.join(PRECISIONS)}. Got {precision!r} instead.",
            hint="See --precision.",
        )
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH:
        raise UsageError(
            f"batch size must lie between 1 and {MAX_BATCH}. Got {batch_size} instead.", hint="See --batch-size."
        )
    reasons = []
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reasons.append(f"{device}: {'a CUDA device is there' if device == 'cuda' else 'no CUDA device was found'}")
    kind = _check_device(device)
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
        reasons.append(f"{precision}: the default on {kind}")
    return EngineChoice(device, precision, batch_size or BATCH_SIZES.get(kind, 32), "; ".join(reasons))


def _check_device(device: str) -> str:
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"The device {device!r} cannot be used here: {reason}",
            hint="Take --device cpu or auto, or install the torch build and driver for that device.",
        ) from error
    if kind == "meta":
        raise DeviceError("The device 'meta' holds no values.", hint="Take --device cpu or auto.")
    return kind


class TorchEngine:
    """Run a backbone in eager torch: frozen, channels_last, weights cast once, every batch of the same shape.

    With one shape the kernels are the same for every batch, so a row does not depend on who shares its batch, nor on
    its place in it.
    """

    name = "torch"

    def __init__(self, module: nn.Module, transform: Transform, choice: EngineChoice) -> None:
        self.choice = choice
        self._dtype = PRECISIONS[choice.precision]
        self._module = module.to(choice.device, self._dtype).to(memory_format=torch.channels_last).eval()
        self._mean = torch.tensor(transform.mean, device=choice.device).view(1, 3, 1, 1)
        self._std = torch.tensor(transform.std, device=choice.device).view(1, 3, 1, 1)
        size = (choice.batch_size, 3, transform.crop, transform.crop)
        self._batch = torch.zeros(size, dtype=torch.uint8, pin_memory=torch.device(choice.device).type == "cuda")

    @property
    def batch_size(self) -> int:
        return self.choice.batch_size

    def __call__(self, images: list[torch.Tensor]) -> NDArray[np.float32]:
        """At most `batch_size` images, (3, crop, crop) uint8 -> (len(images), *shape) float32 features."""
        for place, image in enumerate(images):
            self._batch[place] = image
        with torch.inference_mode(), _true_fp32(self.choice):
            pixels = self._batch.to(self.choice.device, non_blocking=True)
            # The steps and the order of torchvision's preset, so that fp32 is its fp32.
            inputs = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
            inputs = inputs.to(self._dtype).contiguous(memory_format=torch.channels_last)
            features: torch.Tensor = self._module(inputs)
            return features[: len(images)].to("cpu", torch.float32).contiguous().numpy()


@contextlib.contextmanager
def _true_fp32(choice: EngineChoice) -> Iterator[None]:
    """On CUDA convolutions use TF32 unless told otherwise, with 10 bits of mantissa instead of 23."""
    if choice.precision != "fp32" or not choice.device.startswith("cuda"):
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
