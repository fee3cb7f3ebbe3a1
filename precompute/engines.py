"""Which engines there are, what this machine can do, and making one: engine, device, precision, batch size."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import nn

from precompute.engine import Engine, EngineChoice
from precompute.errors import DeviceError, UsageError
from precompute.system import cpu_flags
from precompute.transform import Transform

ENGINES = ("torch", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")
BATCH_SIZES = {("torch", "cpu"): 32, ("torch", "cuda"): 256, ("openvino", "cpu"): 16}
"""Larger ones were no faster on CPUs, and take more memory; the one for CUDA has not been measured."""
HEAVY_PARAMETERS, HEAVY_BATCH = 50_000_000, 4
"""From ViT-B/16 on, 16 images take OpenVINO over a second on a core; 4 are as fast an image (decision 015)."""
MAX_BATCH = 65_536
ENGINE_VARIABLE, PRECISION_VARIABLE = "PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"
"""Environment variables that say what `auto` stands for, where many machines shall make the same choice."""
INSTALL_OPENVINO = "pip install 'precompute[openvino]'"


def choose(
    *,
    precision: str,
    engine: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    module: nn.Module | None = None,
) -> EngineChoice:
    """Resolve `auto` for engine, device and batch size for the network `module`; the precision is given.

    Raises DeviceError for a device or engine that is not there (nothing falls back unasked), UsageError for values
    out of range.
    """
    check_options(engine, precision, batch_size)
    engine, device, reasons = settle(engine, device)
    check_precision(engine, precision)
    batch_size = batch_size or default_batch(engine, device, module)
    return EngineChoice(engine, device, precision, batch_size, why="; ".join(reasons))


def check_options(engine: str, precision: str, batch_size: int | None) -> None:
    """Raise UsageError for what no machine could do."""
    for name, value, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in ("auto", *known):
            raise UsageError(
                f"{name} must be auto or one of {', '.join(known)}. Got {value!r} instead.", hint=f"See --{name}."
            )
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH:
        raise UsageError(
            f"batch size must lie between 1 and {MAX_BATCH}. Got {batch_size} instead.", hint="See --batch-size."
        )


def settle(engine: str, device: str) -> tuple[str, str, list[str]]:
    """(engine, device, reasons): OpenVINO where it is installed and the device is a CPU, else torch."""
    reasons = []
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and engine != "openvino" else "cpu"
        if device == "cpu" and engine == "auto":
            reasons.append("cpu: no CUDA device was found")
    kind = _check_device(device)
    if engine == "auto":
        engine = os.environ.get(ENGINE_VARIABLE, "")
        if engine:
            check_options(engine, "auto", None)
            reasons.append(f"{engine}: {ENGINE_VARIABLE} says so")
        else:
            engine = "openvino" if kind == "cpu" and find_spec("openvino") else "torch"
            if kind == "cpu" and engine == "torch":
                reasons.append(f"torch: OpenVINO, which is faster on a CPU, is not installed ({INSTALL_OPENVINO})")
    if engine == "openvino":
        if find_spec("openvino") is None:
            raise DeviceError("The engine openvino is not installed.", hint=f"{INSTALL_OPENVINO}, or --engine torch.")
        if kind != "cpu":
            raise UsageError(f"The engine openvino runs on the CPU, not on {device}.", hint="Take --engine torch.")
    return engine, device, reasons


def default_batch(engine: str, device: str, module: nn.Module | None = None) -> int:
    """Images a forward pass; `module` is the network, where it is known."""
    parameters = sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0
    if engine == "openvino" and parameters >= HEAVY_PARAMETERS:
        return HEAVY_BATCH
    return BATCH_SIZES.get((engine, torch.device(device).type), 32)


def available_precisions(engine: str, device: str) -> list[str]:
    """Precisions that this machine computes in itself, those of fewer bits first; fp32 is always the last."""
    if engine == "openvino":
        from precompute.openvino_engine import supported_precisions

        return list(supported_precisions())
    kind = torch.device(device).type
    if kind == "cuda":
        return [*(["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []), "fp16", "fp32"]
    return ["bf16", "fp32"] if kind == "cpu" and _computes_bf16() else ["fp32"]


def _computes_bf16() -> bool:
    """By oneDNN, with instructions for it: without them it goes by way of fp32, slower than fp32 itself."""
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return onednn and not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def check_precision(engine: str, precision: str) -> None:
    """Raise DeviceError for a precision that OpenVINO would quietly replace by another one on this CPU."""
    if engine == "openvino" and precision not in ("auto", *available_precisions(engine, "cpu")):
        raise DeviceError(
            f"This CPU does not compute in {precision} with OpenVINO.",
            hint=f"Take --precision {' or '.join(available_precisions(engine, 'cpu'))}, or --engine torch.",
        )


def make_engine(module: nn.Module, transform: Transform, choice: EngineChoice, *, identity: str | None) -> Engine:
    """The engine of `choice` for `module`, ready to run; `module` itself is left as it is.

    identity: names the module's code and weights, so that what is compiled can be kept for later processes; None
    where nothing can name them (code of the user's own).
    """
    if choice.engine == "openvino":
        from precompute.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(module, transform, choice, identity=identity)
    from precompute.torch_engine import TorchEngine

    return TorchEngine(module, transform, choice)


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
