"""The forward pass in torch: frozen, BatchNorm folded, channels_last, weights cast once."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from precompute.engines.base import Engine, EngineChoice, fill
from precompute.engines.folding import fold_batch_norms
from precompute.errors import DeviceError
from precompute.inputs.images.transform import Transform

REFERENCE_BATCH = 4  # as fast an image as more are, on CPUs
_ATTENTION = threading.Lock()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Normalised(nn.Module):
    """uint8 pixels -> features: torchvision's normalisation in front of a network, in its steps and their order.

    (B, crop, crop, 3) uint8 -> (B, *shape) in the network's dtype.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, transform: Transform, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Seen as (B, 3, H, W) this is channels_last in memory, which is what the kernels want.
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        images = ((images / 255 - self.mean) / self.std).to(self.dtype)
        features: torch.Tensor = self.network(images)
        return features


class Reference:
    """What all engines are compared with: `module` behind its normalisation in fp32 eager torch, some images at a time.

    Its weights are laid out as channels_last, which takes a CPU half the time and changes no value. On CUDA fp32 means
    fp32: TF32 is off. Called with images, (3, crop, crop) uint8, it gives their features, (n, everything) float64.
    """

    def __init__(self, module: nn.Module, transform: Transform, device: str = "cpu") -> None:
        self._choice = EngineChoice("torch", device, "fp32", REFERENCE_BATCH)
        self._lock = attention_lock(module)
        network = module.to(memory_format=torch.channels_last)
        if self._choice.kind != "cpu":
            network = copy.deepcopy(network).to(device)
        self._plain = Normalised(network, transform, torch.float32).to(device).eval()

    def __call__(self, images: Sequence[torch.Tensor]) -> NDArray[np.float64]:
        parts = []
        for start in range(0, len(images), REFERENCE_BATCH):
            pixels = torch.stack([image.permute(1, 2, 0) for image in images[start : start + REFERENCE_BATCH]])
            with torch.inference_mode(), _true_fp32(self._choice), self._lock:
                features = self._plain(pixels.to(self._choice.device))
            parts.append(features.flatten(1).to("cpu").double().numpy())
        return np.concatenate(parts)


def attention_lock(module: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Held while torch's fused attention is switched off, and where it matters that it is not.

    The switch is one for all threads. Networks without attention need not wait for each other.
    """
    attends = any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    return _ATTENTION if attends else contextlib.nullcontext()


def folded(module: nn.Module) -> nn.Module:
    """A copy of a cut network with each BatchNorm folded into the convolution before it, where fx can see them.

    Exact up to rounding: both are affine, and their product is taken in fp32.
    """
    result = copy.deepcopy(module)
    body = getattr(result, "body", None)
    if isinstance(body, fx.GraphModule):
        # As a plain GraphModule: torchvision's own comes out of copying in training mode
        result.body = fold_batch_norms(fx.GraphModule(body, body.graph).eval())
    return result.eval().requires_grad_(False)


@dataclass
class _Slot:
    """Memory for one batch under way. On a GPU host memory is pinned, so that copies run beside the computation."""

    host: torch.Tensor
    device: torch.Tensor
    done: torch.cuda.Event | None = None
    features: torch.Tensor | None = None
    count: int = 0


class TorchEngine(Engine):
    """Torch on any device. On CUDA upload, computation and download of neighbouring batches overlap.

    Where a CUDA device has too little memory for the batch, it is run in halves, quarters, ... from there on;
    `chunk` tells their size. Raises DeviceError where not even one image fits.
    """

    def __init__(self, module: nn.Module, transform: Transform, choice: EngineChoice) -> None:
        super().__init__(choice)
        device, dtype = torch.device(choice.device), DTYPES[choice.precision]
        network = folded(module).to(device, dtype).to(memory_format=torch.channels_last)
        self._module = Normalised(network, transform, dtype).to(device).eval()
        self._cuda = device.type == "cuda"
        self.depth = 2 if self._cuda else 1
        self.chunk = choice.batch_size
        if choice.compiled:
            # Freezing lets the compiler lay out the weights as the kernels want them
            options: dict[str, Any] | None = None if self._cuda else {"freezing": True}
            self._run = torch.compile(self._module, dynamic=False, options=options)
        else:
            self._run = self._module
        shape = (choice.batch_size, transform.crop, transform.crop, 3)
        self._slots = [self._slot(shape, device) for _ in range(self.depth)]
        self._free = deque(self._slots)
        self._under_way: deque[_Slot] = deque()
        if choice.compiled:
            self._compile_now()
        self._upload = _stream(device) if self._cuda else None
        self._download = _stream(device) if self._cuda else None

    def _compile_now(self) -> None:
        """Run once, so that what the compiler cannot do is known before the work, and told."""
        try:
            with torch.inference_mode():
                self._run(self._slots[0].device)
        except torch.OutOfMemoryError:
            pass  # `_compute` knows what to do
        except Exception as error:  # noqa: BLE001 - a compiler that is missing or broken shows in many ways
            self._run = self._module
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.notes += (f"torch.compile failed, so it is not used: {lines[0][:200]}",)

    def _slot(self, shape: tuple[int, ...], device: torch.device) -> _Slot:
        host = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._cuda)
        on_device = host if device.type == "cpu" else torch.zeros(shape, dtype=torch.uint8, device=device)
        return _Slot(host, on_device)

    def start(self, images: Sequence[torch.Tensor]) -> None:
        slot = self._free.popleft()
        fill(slot.host, images)
        slot.count = len(images)
        with torch.inference_mode(), _true_fp32(self.choice):
            if self._cuda:
                self._start_cuda(slot)
            else:
                if slot.device is not slot.host:
                    slot.device.copy_(slot.host)
                slot.features = self._compute(slot.device).to("cpu", torch.float32)
        self._under_way.append(slot)

    def finish(self) -> NDArray[np.float32]:
        slot = self._under_way.popleft()
        if slot.done is not None:
            slot.done.synchronize()
        assert slot.features is not None  # start() puts them there
        # A copy: the memory is used again for the batch after the next
        features: NDArray[np.float32] = slot.features[: slot.count].contiguous().numpy().copy()
        self._free.append(slot)
        return features

    def _start_cuda(self, slot: _Slot) -> None:
        assert self._upload is not None and self._download is not None  # as on every CUDA device
        compute = torch.cuda.current_stream(slot.device.device)
        with torch.cuda.stream(self._upload):
            slot.device.copy_(slot.host, non_blocking=True)
        compute.wait_stream(self._upload)
        features = self._compute(slot.device).to(torch.float32)
        self._download.wait_stream(compute)
        with torch.cuda.stream(self._download):
            if slot.features is None:
                slot.features = torch.empty(features.shape, dtype=torch.float32, pin_memory=True)
            slot.features.copy_(features, non_blocking=True)
            features.record_stream(self._download)
            slot.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.done.record(self._download)

    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                parts = [self._run(part) for part in torch.split(pixels, self.chunk)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                if self.chunk == 1:
                    raise DeviceError(
                        f"{self.choice.device} has too little memory for one image.",
                        hint="Free memory on it (see nvidia-smi), or take --device cpu.",
                    ) from error
            self.chunk = (self.chunk + 1) // 2  # outside the handler, which holds on to the tensors
            torch.cuda.empty_cache()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _true_fp32(choice: EngineChoice) -> Iterator[None]:
    """On CUDA convolutions use TF32 unless told otherwise, with 10 bits of mantissa instead of 23."""
    if choice.precision != "fp32" or choice.kind != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
