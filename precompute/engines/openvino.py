"""The forward pass in OpenVINO, on CPUs: uint8 pixels in, normalisation folded in, many requests at once."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from precompute.backbones.whole import WholeNetwork
from precompute.engines import model_cache
from precompute.engines.base import Engine, EngineChoice, Features, Tensors, buffers_of, fill
from precompute.engines.torch import attention_lock
from precompute.errors import BackboneError
from precompute.inputs.base import Preprocess, Shape, shape_of
from precompute.system import cores

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
DECIDING = ("openvino", "torch", "torchvision", "precompute")
"""Packages whose release decides what a backbone's name compiles to."""

FORM = 2
"""Part of a compiled model's name: raised where the same network comes to be compiled otherwise."""

_converted: WeakKeyDictionary[nn.Module, tuple[Preprocess, dict[Shape, Any]]] = WeakKeyDictionary()


def load_openvino() -> Any:
    """The module openvino, without its telemetry: it reports to its makers on import unless that package is absent."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python marks what must not load
    import openvino

    return openvino


@cache
def the_core() -> Any:
    """OpenVINO's Core, one for the whole process, which stays.

    On processors with AVX-512 each Core gives its thread another stack for signal handlers, and the last one that goes
    away leaves the thread with the freed stack of the first: the next signal would end the process by SIGSEGV.
    """
    return load_openvino().Core()


@cache  # the processor stays the same
def supported_precisions() -> tuple[str, ...]:
    """Precisions this CPU has instructions for, those of fewer bits first. Others OpenVINO would quietly replace."""
    able = the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return (*(name for name, word in CAPABILITIES.items() if word in able), "fp32")


class OpenVINOEngine(Engine):
    """A network compiled by OpenVINO for throughput: one request for each of its streams, all in progress at once.

    For samples of several shapes there is one for each, made when the first of them comes.
    The compiled model is kept (see `model_cache`), so that a second process starts in a fraction of a second.
    Raises BackboneError for a network that
    OpenVINO cannot convert.
    """

    def __init__(
        self, module: nn.Module, preprocess: Preprocess, choice: EngineChoice, *, identity: str | None = None
    ) -> None:
        super().__init__(choice)
        self._network = module, preprocess, identity
        self._examples = {shape_of(example): example for example in preprocess.examples()}
        self._blobs: list[Any] = []
        self._free: dict[Shape, deque[_Request]] = {}
        first = self._compiled(next(iter(self._examples.values())))
        self._taps = len(first.outputs)
        self.depth = int(first.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._open(first, next(iter(self._examples)))
        self._under_way: deque[_Request] = deque()

    def _open(self, compiled: Any, shape: Shape) -> deque[_Request]:
        """Requests of one shape, as many as there may be in progress, since all of these may have it."""
        size = self.choice.batch_size
        self._free[shape] = deque(_Request(compiled, self._examples[shape], size) for _ in range(self.depth))
        return self._free[shape]

    def start(self, samples: Sequence[Tensors]) -> None:
        shape = shape_of(samples[0])
        requests = self._free.get(shape)
        if requests is None:  # texts of a rare length may never come
            requests = self._open(self._compiled(self._examples[shape]), shape)
        request = requests.popleft()
        fill(request.buffers, samples)
        request.count = len(samples)
        request.infer.start_async()
        self._under_way.append(request)

    def finish(self) -> Features:
        request = self._under_way.popleft()
        request.infer.wait()
        # A copy: the memory is used again for another batch
        features = tuple(
            np.array(request.infer.get_output_tensor(tap).data[: request.count], dtype=np.float32)
            for tap in range(self._taps)
        )
        self._free[shape_of(request.buffers, batched=True)].append(request)
        return features

    def _compiled(self, example: Tensors) -> Any:
        """The network for samples like `example`."""
        module, preprocess, identity = self._network
        openvino = load_openvino()
        core = the_core()
        config = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[self.choice.precision],
            "INFERENCE_NUM_THREADS": cores(),
            # Decoding threads share the cores: a thread that may not move waits behind them
            "ENABLE_CPU_PINNING": False,
        }
        if identity is not None and len(self._examples) > 1:
            identity = f"{identity} {shape_of(example)}"
        name = None if identity is None else _file_name(core, identity, preprocess, self.choice.batch_size, config)
        if name is not None and (blob := model_cache.read(name)) is not None:
            try:
                # As a tensor it is read where it lies; as bytes it would be copied twice
                compiled = core.import_model(openvino.Tensor(blob, shared_memory=True), "CPU", config)
                self._blobs.append(blob)  # must stay for as long as the model that may point into it
                return compiled
            except Exception as error:  # noqa: BLE001 - whatever wrong contents lead OpenVINO to, such as UnicodeDecodeError
                self.notes += (f"the compiled model that was kept could not be used ({_first_line(error)})",)
                model_cache.discard(name)
        model = _convert(openvino, module, preprocess, example)
        shapes = [[self.choice.batch_size, *one.shape] for one in example]
        model.reshape(dict(enumerate(shapes)))
        if self.choice.precision != "fp32":
            model = _bounded(model, self.choice.batch_size)
        compiled = core.compile_model(model, "CPU", config)
        if name is not None:
            exported = compiled.export_model()
            try:
                model_cache.write(name, exported if isinstance(exported, bytes) else exported.getvalue())
            except OSError as error:
                self.notes += (f"the compiled model could not be kept for the next run: {error}",)
        return compiled


class _Request:
    """One batch's memory and the request that reads it."""

    def __init__(self, compiled: Any, example: Tensors, batch_size: int) -> None:
        self.buffers = buffers_of(example, batch_size)
        self.infer = compiled.create_infer_request()
        for place, buffer in enumerate(self.buffers):
            self.infer.set_input_tensor(place, load_openvino().Tensor(buffer.numpy(), shared_memory=True))
        self.count = 0


def _convert(openvino: Any, module: nn.Module, preprocess: Preprocess, sample: Tensors) -> Any:
    """`module` behind its normalisation as an OpenVINO model of any batch size, made once for each module and shape."""
    known = _converted.get(module)
    if known is None or known[0] != preprocess:
        known = _converted[module] = preprocess, {}
    if (made := known[1].get(shape_of(sample))) is not None:
        return made
    wrapped = WholeNetwork(preprocess.device(), module, torch.float32).eval()
    example = buffers_of(sample, 1)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with warnings.catch_warnings(), torch.no_grad(), attention_lock(module):
            torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that nothing else knows
            warnings.simplefilter("ignore")  # of a tracer: shapes are constant here, which is what it warns about
            try:
                traced = torch.jit.trace(wrapped, example, check_trace=False)  # type: ignore[no-untyped-call]
            finally:
                torch.backends.mha.set_fastpath_enabled(fast_path)
            shapes = [openvino.PartialShape([-1, *one.shape[1:]]) for one in example]
            model = openvino.convert_model(traced, input=shapes)
    except Exception as error:
        raise BackboneError(
            f"OpenVINO cannot convert the backbone ({_first_line(error)}).", hint="Use --engine torch."
        ) from error
    known[1][shape_of(sample)] = model
    return model


def _bounded(model: Any, batch_size: int) -> Any:
    """`model` with a convolution by a single 1 in front of each output, which changes no value.

    OpenVINO computes what is between the last convolution or matrix product and an output in fp32. So a tap in the
    midst of a network would move the places where values are rounded, for itself and for all that comes behind it, and
    the changes of type back and forth took 15% of ResNet-50's time with five layers.
    """
    import openvino.opset13 as ops

    model = model.clone()  # the converted one is used again, for another batch size or precision
    kernel = ops.constant(np.ones((1, 1, 1, 1), np.float32))
    for result in model.get_results():
        source = result.input_value(0)
        flat = ops.reshape(source, [batch_size, 1, 1, -1], special_zero=False)
        same = ops.convolution(flat, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        result.input(0).replace_source_output(ops.reshape(same, ops.shape_of(source), special_zero=False).output(0))
    model.validate_nodes_and_infer_types()
    return model


def _file_name(core: Any, identity: str, preprocess: Preprocess, batch_size: int, config: dict[str, Any]) -> str:
    """Names everything that decides the compiled model, this machine's processor included."""
    parts = [
        identity,
        json.dumps(preprocess.spec(), sort_keys=True),
        str(batch_size),
        f"form {FORM}",
        str(sorted(config.items())),
        str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        str(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        *(f"{name} {version(name)}" for name in DECIDING),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
