"""Section: features of each network and precision on the device beside fp32 eager torch on the CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from check_gpu.inputs import transform_of
from check_gpu.running import Report
from check_gpu.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from precompute import Backbone
    from precompute.engines.base import Tensors

PRECISIONS = ("fp32", "bf16", "fp16")
TIMES_FP32 = {"fp32": 2, "bf16": 3, "fp16": 10}
"""What a CPU may take of fp32's seconds where it has no instructions for the precision."""
SUFFIXES = (".pth", ".pt", ".safetensors")


def measure(settings: Settings, report: Report) -> None:
    from precompute import load_backbone

    for name in settings.backbones:
        for weights in weights_of(name, settings):
            with report.attempt(f"{name} {Path(weights).name}"):
                model = load_backbone(name, weights=weights)
                _precisions(model, Path(weights).name, settings, report)


def weights_of(name: str, settings: Settings) -> list[str]:
    """Random weights, and those files of the user's whose name begins with the network's."""
    folder = Path(settings.weights_dir) if settings.weights_dir else None
    files = sorted(path for path in folder.glob(f"{name}*") if path.suffix in SUFFIXES) if folder else []
    return ["random:0", *map(str, files)]


def samples_of(model: Backbone, settings: Settings, count: int) -> list[Tensors]:
    """The first `count` photos, decoded, as `Preprocess.host` gives them."""
    from precompute.extraction.pipeline import read
    from precompute.inputs.images.formats import IMAGES
    from precompute.sources.folder import list_folder

    source = list_folder(settings.source, IMAGES)
    items = [read(source, row, model.preprocess, None) for row in range(min(count, len(source)))]
    return [item.tensors for item in items if item.tensors is not None]


def eager(model: Backbone, samples: list[Tensors]) -> NDArray[np.float64]:
    """(n, everything): what the tutorials do, on the CPU."""
    import numpy as np
    import torch

    transform = transform_of(model)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(samples), 16):
            pixels = torch.stack([one for (one,) in samples[start : start + 16]]).permute(0, 3, 1, 2)
            parts.append(model.module((pixels.float() / 255 - mean) / std)[0].flatten(1).double().numpy())
    return np.concatenate(parts)


def _precisions(model: Backbone, weights: str, settings: Settings, report: Report) -> None:
    label = f"{model.name} {weights}"
    count = 64 if settings.cuda else 32
    samples = samples_of(model, settings, count)
    eager(model, samples[:1])
    began = time.perf_counter()
    eager(model, samples[:1])
    if not report.enough(label, len(samples) * (time.perf_counter() - began)):
        return
    began = time.perf_counter()
    expected = eager(model, samples)
    cpu_seconds = time.perf_counter() - began
    for precision in PRECISIONS:
        needed = 3.0 if settings.cuda else TIMES_FP32[precision] * cpu_seconds
        if not report.enough(f"{label} {precision}", needed):
            continue
        with report.attempt(f"{label} {precision}"):
            found, seconds = _run(model, precision, samples, settings.device)
            report.row(
                model.name,
                weights=weights,
                precision=precision,
                images=len(samples),
                **differences(found, expected),
                seconds=round(seconds, 2),
                cpu_seconds=round(cpu_seconds, 2),
            )


def _run(model: Backbone, precision: str, samples: list[Tensors], device: str) -> tuple[NDArray[np.float64], float]:
    import numpy as np

    from precompute.engines.base import EngineChoice
    from precompute.engines.devices import make_engine

    began, size = time.perf_counter(), 16
    choice = EngineChoice("torch", device, precision, size)
    engine = make_engine(model.module, model.preprocess, choice, identity=None)
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    found = np.concatenate([features for (features,) in engine.map(batches)])
    return found.reshape(len(samples), -1).astype(np.float64), time.perf_counter() - began


def differences(found: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, Any]:
    """Cosines and relative L2 distance of rows."""
    import numpy as np

    from precompute.engines.guard import cosine

    cosines = cosine(found, expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "worst_cosine": round(float(cosines.min()), 7),
        "median_cosine": round(float(np.median(cosines)), 7),
        "max_relative_l2": float(f"{float(distance.max()):.3g}"),
        "largest_feature": float(f"{float(np.abs(expected).max()):.3g}"),
        "not_finite": int((~np.isfinite(found)).sum()),
    }
