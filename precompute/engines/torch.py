"""The forward pass in torch: frozen, BatchNorm folded, channels_last, weights cast once."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from precompute.backbones.whole import WholeNetwork
from precompute.engines.base import Engine, EngineChoice, Features, Tensors, buffers_of, fill
from precompute.engines.folding import fold_batch_norms
from precompute.engines.graphs import GRAPHS_UP_TO, Graph, NotRecordableError
from precompute.errors import DeviceError, reason_of
from precompute.inputs.base import Preprocess, shape_of

REFERENCE_BATCH = 4  # as fast an image as more are, on CPUs
MOST_COMPILED = 8  # shapes that torch.compile takes for one module; beyond that it falls back without a word
_ATTENTION = threading.Lock()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Reference:
    """What all engines are compared with: a backbone in fp32 eager torch, some samples at a time.

    Its weights are laid out as channels_last, which takes a CPU half the time and changes no value. On CUDA fp32 means
    fp32: TF32 is off. Called with samples, as `Preprocess.host` gives them, it gives for each tap their features,
    (n, everything) float64.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, device: str = "cpu") -> None:
        self._choice = EngineChoice("torch", device, "fp32", REFERENCE_BATCH)
        self._lock, self._fp32 = attention_lock(module), partial(true_fp32, device)
        network = module.to(memory_format=torch.channels_last)
        if self._choice.kind != "cpu":
            network = copy.deepcopy(network).to(device)
        self._plain = WholeNetwork(preprocess.device(), network, torch.float32).to(device).eval()

    def __call__(self, samples: Sequence[Tensors]) -> tuple[NDArray[np.float64], ...]:
        parts = []
        for some in _batches(samples):
            batch = [torch.stack(one) for one in zip(*some, strict=True)]
            with torch.inference_mode(), self._fp32(), self._lock:
                features = self._plain(*(one.to(self._choice.device) for one in batch))
            parts.append([tap.flatten(1).to("cpu").double().numpy() for tap in features])
        return tuple(np.concatenate(tap) for tap in zip(*parts, strict=True))


def _batches(samples: Sequence[Tensors]) -> Iterator[list[Tensors]]:
    """`samples` in their order, up to REFERENCE_BATCH neighbours of one shape at a time."""
    for _, alike in groupby(samples, shape_of):
        while some := list(islice(alike, REFERENCE_BATCH)):
            yield some


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
    """Memory for one batch in progress. On a GPU host memory is pinned, so that copies run next to the computation.

    graph: the forward pass over `device`, where it is recorded.
    """

    host: Tensors
    device: Tensors
    done: torch.cuda.Event | None = None
    features: Tensors = ()
    count: int = 0
    graph: Graph | None = None


class TorchEngine(Engine):
    """Torch on any device. On CUDA upload, computation and download of neighbouring batches overlap.

    Where a CUDA device has too little memory for the batch, it is run in halves, quarters, ... from there on;
    `chunk` tells their size. Small batches are recorded as CUDA graphs (see `graphs`), which changes no bit. Raises
    DeviceError where not even one sample fits.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, choice: EngineChoice) -> None:
        super().__init__(choice)
        device, dtype = torch.device(choice.device), DTYPES[choice.precision]
        network = folded(module).to(device, dtype).to(memory_format=torch.channels_last)
        self._module = WholeNetwork(preprocess.device(), network, dtype).to(device).eval()
        self._cuda = device.type == "cuda"
        self.depth = 2 if self._cuda else 1
        self.chunk = choice.batch_size
        shapes = len(preprocess.examples())
        if choice.compiled and shapes > MOST_COMPILED:
            self.notes += (f"torch.compile is not used: it would compile the network for {shapes} shapes of samples",)
        if choice.compiled and shapes <= MOST_COMPILED:
            # Freezing lets the compiler lay out the weights as the kernels want them
            options: dict[str, Any] | None = None if self._cuda else {"freezing": True}
            self._run = torch.compile(self._module, dynamic=False, options=options)
        else:
            self._run = self._module
        self._free = {
            shape_of(example): deque(self._slot(example, device) for _ in range(self.depth))
            for example in preprocess.examples()
        }
        self._under_way: deque[_Slot] = deque()
        if self._run is not self._module:
            self._compile_now()
        # A compiled network has few launches left to save
        if self._cuda and not choice.compiled and choice.batch_size <= GRAPHS_UP_TO:
            self._record_now()
        self._upload = _stream(device) if self._cuda else None
        self._download = _stream(device) if self._cuda else None

    def _compile_now(self) -> None:
        """Run once, so that what the compiler cannot do is known before the work, and told."""
        try:
            with torch.inference_mode():
                for slots in self._free.values():
                    self._run(*slots[0].device)
        except torch.OutOfMemoryError:
            pass  # `_compute` knows what to do
        except Exception as error:  # noqa: BLE001 - a compiler that is missing or broken shows in many ways
            self._run = self._module
            self.notes += (f"torch.compile failed, so it is not used: {reason_of(error)}",)

    def _fp32(self) -> contextlib.AbstractContextManager[None]:
        return true_fp32(self.choice.device if self.choice.precision == "fp32" else "cpu")

    def _record_now(self) -> None:
        """Record the forward pass over each slot before the work begins, and say what cannot be recorded."""
        slots = [slot for some in self._free.values() for slot in some]
        try:
            with torch.inference_mode(), self._fp32():
                for slot in slots:
                    slot.graph = Graph(self._as_float32, slot.device)
        except NotRecordableError as error:
            for slot in slots:
                slot.graph = None
            self.notes += (f"No CUDA graph is used: {error}",)

    def _slot(self, example: Tensors, device: torch.device) -> _Slot:
        host = buffers_of(example, self.batch_size, pin_memory=self._cuda)
        on_device = host if device.type == "cpu" else tuple(torch.zeros_like(one, device=device) for one in host)
        return _Slot(host, on_device)

    def start(self, samples: Sequence[Tensors]) -> None:
        slot = self._free[shape_of(samples[0])].popleft()
        fill(slot.host, samples)
        slot.count = len(samples)
        with torch.inference_mode(), self._fp32():
            if self._cuda:
                self._start_cuda(slot)
            else:
                if slot.device is not slot.host:
                    for there, here in zip(slot.device, slot.host, strict=True):
                        there.copy_(here)
                slot.features = tuple(one.to("cpu") for one in self._as_float32(*slot.device))
        self._under_way.append(slot)

    def finish(self) -> Features:
        slot = self._under_way.popleft()
        if slot.done is not None:
            slot.done.synchronize()
        # A copy: the memory is used again for the batch after the next
        features = tuple(one[: slot.count].contiguous().numpy().copy() for one in slot.features)
        self._free[shape_of(slot.host, batched=True)].append(slot)
        return features

    def _start_cuda(self, slot: _Slot) -> None:
        assert self._upload is not None and self._download is not None  # as on every CUDA device
        compute = torch.cuda.current_stream(slot.device[0].device)
        with torch.cuda.stream(self._upload):
            for there, here in zip(slot.device, slot.host, strict=True):
                there.copy_(here, non_blocking=True)
        compute.wait_stream(self._upload)
        features = self._as_float32(*slot.device) if slot.graph is None else slot.graph.replay()
        self._download.wait_stream(compute)
        with torch.cuda.stream(self._download):
            if not slot.features:
                slot.features = tuple(torch.empty(one.shape, dtype=torch.float32, pin_memory=True) for one in features)
            for here, there in zip(slot.features, features, strict=True):
                here.copy_(there, non_blocking=True)
                if slot.graph is None:  # a graph keeps the memory of its outputs
                    there.record_stream(self._download)
            slot.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.done.record(self._download)

    def _as_float32(self, *batch: torch.Tensor) -> Tensors:
        return tuple(one.to(torch.float32) for one in self._compute(batch))

    def _compute(self, batch: Tensors) -> Tensors:
        while True:
            try:
                pieces = zip(*(torch.split(one, self.chunk) for one in batch), strict=True)
                parts = [self._run(*piece) for piece in pieces]
                return parts[0] if len(parts) == 1 else tuple(torch.cat(tap) for tap in zip(*parts, strict=True))
            except torch.OutOfMemoryError as error:
                if self.chunk == 1:
                    raise DeviceError(
                        f"{self.choice.device} has too little memory for one sample.",
                        hint="Free memory on it (see nvidia-smi), or use --device cpu.",
                    ) from error
            self.chunk = (self.chunk + 1) // 2  # outside the handler, which holds on to the tensors
            torch.cuda.empty_cache()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def true_fp32(device: str) -> Iterator[None]:
    """Without TF32, which convolutions use on CUDA by default, with 10 bits of mantissa instead of 23."""
    if torch.device(device).type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
