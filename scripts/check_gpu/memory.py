"""Section: memory that the engine takes on the device, and what it does where there is too little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from check_gpu.inputs import noise
from check_gpu.running import Report
from check_gpu.settings import Settings

if TYPE_CHECKING:
    from precompute import Backbone
    from precompute.engines.base import Tensors
    from precompute.engines.torch import TorchEngine

BATCH = 256


def measure(settings: Settings, report: Report) -> None:
    if not settings.cuda:
        report.skip("memory of the device", "needs a CUDA device")
        return
    from precompute import load_backbone

    for name in settings.backbones:
        model = load_backbone(name, weights="random:0")
        for precision in ("fp32", "bf16"):
            if report.enough(f"{name} {precision}", 2):
                with report.attempt(f"{name} {precision}"):
                    _peak(model, precision, report)
    if report.enough("too little memory", 3):
        with report.attempt("too little memory"):
            _halving(load_backbone(settings.backbones[0], weights="random:0"), report)


def _peak(model: Backbone, precision: str, report: Report) -> None:
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine, samples = _engine(model, precision)
    list(engine.map([samples] * 3))
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    report.row(
        model.name,
        precision=precision,
        batch=BATCH,
        peak_allocated_mib=round(allocated / 2**20),
        peak_reserved_mib=round(reserved / 2**20),
        chunk=engine.chunk,
    )


def _halving(model: Backbone, report: Report) -> None:
    """Allow the process less than the batch needs, and look whether it gets through in parts."""
    import numpy as np
    import torch

    engine, samples = _engine(model, "bf16")
    (expected,) = engine(samples)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    engine(samples)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    allowed = held + (peak - held) // 3
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        (found,) = engine(samples)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    report.row(
        "too little memory",
        batch=BATCH,
        needed_mib=round(peak / 2**20),
        allowed_mib=round(allowed / 2**20),
        chunk=engine.chunk,
        max_difference=float(np.abs(found - expected).max() / np.abs(expected).max()),
    )
    if engine.chunk == BATCH:
        report.error("too little memory", "the batch was not halved: the limit was not felt")


def _engine(model: Backbone, precision: str) -> tuple[TorchEngine, list[Tensors]]:
    """The engine and one full batch."""
    from precompute.engines.base import EngineChoice
    from precompute.engines.torch import TorchEngine

    engine = TorchEngine(model.module, model.preprocess, EngineChoice("torch", "cuda", precision, BATCH))
    return engine, noise(model, BATCH)
