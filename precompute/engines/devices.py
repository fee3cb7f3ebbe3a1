"""Which engines there are, what options they take, and making one: engine, device, precision, batch size."""

from __future__ import annotations

import torch
from torch import nn

from precompute.engines.base import Engine, EngineChoice
from precompute.errors import DeviceError, UsageError
from precompute.inputs.base import Preprocess

ENGINES = ("torch", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")
BATCH_SIZES = {("torch", "cpu"): 32, ("torch", "cuda"): 256, ("openvino", "cpu"): 16}
"""Larger ones were no faster on CPUs, and take more memory; on an H100 1,024 at a time are 2 to 4% faster than 256."""
HEAVY_PARAMETERS, HEAVY_BATCH = 50_000_000, 4
"""From ViT-B/16 on, 16 images take OpenVINO over a second on a core; 4 are as fast an image (decision 015)."""
MAX_BATCH = 65_536
INSTALL_OPENVINO = "pip install 'precompute[openvino]'"


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


def default_batch(engine: str, device: str, module: nn.Module | None = None) -> int:
    """Images a forward pass; `module` is the network, where it is known."""
    parameters = sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0
    if engine == "openvino" and parameters >= HEAVY_PARAMETERS:
        return HEAVY_BATCH
    return BATCH_SIZES.get((engine, torch.device(device).type), 32)


def make_engine(module: nn.Module, preprocess: Preprocess, choice: EngineChoice, *, identity: str | None) -> Engine:
    """The engine of `choice` for `module`, ready to run; the values of `module` stay as they are.

    identity: names the module's code and weights, so that what is compiled can be kept for later processes; None
    where nothing can name them (code of the user's own).
    """
    if choice.engine == "openvino":
        from precompute.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(module, preprocess, choice, identity=identity)
    from precompute.engines.torch import TorchEngine

    return TorchEngine(module, preprocess, choice)


def check_device(device: str) -> str:
    """The kind of the device ("cpu", "cuda", ...), once it has been used. Raises DeviceError where it cannot be."""
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"The device {device!r} cannot be used here: {reason}",
            hint="Use --device cpu or auto, or install the torch build and driver for that device.",
        ) from error
    if kind == "meta":
        raise DeviceError("The device 'meta' holds no values.", hint="Use --device cpu or auto.")
    return kind
